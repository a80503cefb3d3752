"""Rules for convolutions of one, two or three dimensions, transposed ones, and their gradients.

The gradient of a convolution's input is a transposed convolution, and the other way round. How each is best
computed was measured on ONNX Runtime, one thread, maps of 4x4 to 96x96, batches of 8 and 32.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from exporters.graph import Shape
from exporters.lowering import depthwise, weight_gradient
from exporters.lowering.builder import Builder
from exporters.lowering.geometry import Geometry
from exporters.lowering.site import Result, Rule, Site

_FEW_TAPS = 49


def _per_dim(s: Site, name: str, rank: int) -> tuple[int, ...]:
    values = s.ints(name)
    return values * rank if len(values) == 1 else values


def _geometry(s: Site, wide: Shape, narrow: Shape) -> Geometry:
    """Of the convolution that maps `wide` to `narrow`; a transposed one goes the other way."""
    kernel = s.fixed(s.shape("weight")[2:])
    rank = len(kernel)
    if len(wide) != rank + 2:
        raise s.refuse("its input has no batch dimension")
    return Geometry(
        stride=_per_dim(s, "stride", rank),
        padding=_per_dim(s, "padding", rank),
        dilation=_per_dim(s, "dilation", rank),
        groups=s.integer("groups"),
        batch=wide[0],
        channels=s.fixed(wide[1:2])[0],
        outputs=s.fixed(narrow[1:2])[0],
        kernel=kernel,
        size=s.fixed(wide[2:]),
        out_size=s.fixed(narrow[2:]),
    )


def _convolution(s: Site) -> str:
    x, y = s.shape("input"), s.output().shape
    bias = [s.tensor("bias")] if s.has("bias") else []
    if s.flag("transposed"):
        if any(extra >= stride for extra, stride in zip(s.ints("output_padding"), s.ints("stride"), strict=True)):
            raise s.refuse("its output_padding is not below its stride, which ONNX Runtime does not take")
        return _transposed(s.b, _geometry(s, y, x), s.tensor("input"), s.tensor("weight"), *bias)
    return _plain(s.b, _geometry(s, x, y), s.tensor("input"), s.tensor("weight"), *bias)


def _convolution_backward(s: Site) -> tuple[Result | None, ...]:
    x, y = s.shape("input"), s.shape("grad_output")
    values, gradient, weight = s.tensor("input"), s.tensor("grad_output"), s.tensor("weight")
    wants_input, wants_weight, wants_bias = s.flags("output_mask")
    if s.flag("transposed"):
        g = _geometry(s, y, x)
        input_gradient = _plain(s.b, g, gradient, weight) if wants_input else None
        weight_gradient = _weight_gradient(s.b, gradient, values, g) if wants_weight else None
    else:
        g = _geometry(s, x, y)
        input_gradient = _transposed(s.b, g, gradient, weight) if wants_input else None
        weight_gradient = _weight_gradient(s.b, values, gradient, g) if wants_weight else None
    bias_gradient = s.b.op("ReduceSum", gradient, s.b.int64s([0, *g.axes]), keepdims=0) if wants_bias else None
    return input_gradient, weight_gradient, bias_gradient


def _plain(b: Builder, g: Geometry, x: str, weight: str, *bias: str) -> str:
    """From the wide tensor and the weight to the narrow one."""
    if depthwise.is_small(g):
        return _with_bias(b, g, depthwise.to_narrow(b, x, weight, g), *bias)
    if _turns(g) and _favours_transposed(g, g.channels, g.outputs, g.out_size):
        return _conv_transpose(b, _turned(g), x, _turned_weight(b, weight, g), *bias)
    return _conv(b, g, x, weight, *bias)


def _transposed(b: Builder, g: Geometry, x: str, weight: str, *bias: str) -> str:
    """From the narrow tensor and the weight to the wide one."""
    if depthwise.is_small(g):
        return _with_bias(b, g, depthwise.to_wide(b, x, weight, g), *bias)
    if _turns(g) and not _favours_transposed(g, g.outputs, g.channels, g.size):
        return _conv(b, _turned(g), x, _turned_weight(b, weight, g), *bias)
    return _conv_transpose(b, g, x, weight, *bias)


def _turns(g: Geometry) -> bool:
    """Whether this is a transposed convolution too, the other way, with the kernel turned round."""
    reach = [dilation * (extent - 1) for dilation, extent in zip(g.dilation, g.kernel, strict=True)]
    return (
        (g.groups == 1 or g.depthwise)
        and all(stride == 1 for stride in g.stride)
        and all(far >= pad for far, pad in zip(reach, g.padding, strict=True))
    )


def _favours_transposed(g: Geometry, inputs: int, outputs: int, positions: tuple[int, ...]) -> bool:
    """Whether what turns is faster as a transposed convolution, by up to half.

    It is with few outputs, and by channel with many taps for a map; never with a single tap.
    """
    rank, area, taps = len(positions), math.prod(positions), math.prod(g.kernel)
    if g.depthwise:
        return rank == 2 and area < 32 * taps
    return rank > 1 and taps > 1 and outputs <= min(inputs, 32) and 64 <= area <= 4096


def _turned(g: Geometry) -> Geometry:
    padding = (
        dilation * (extent - 1) - pad for dilation, extent, pad in zip(g.dilation, g.kernel, g.padding, strict=True)
    )
    return replace(g, padding=tuple(padding), channels=g.outputs, outputs=g.channels, size=g.out_size, out_size=g.size)


def _turned_weight(b: Builder, weight: str, g: Geometry) -> str:
    """Taps in reverse, which a product with a small matrix does five times as fast as a slice; channels swapped."""
    taps, lead = math.prod(g.kernel), (g.outputs, g.channels // g.groups)
    if 1 < taps <= _FEW_TAPS:
        reverse = b.constant(np.eye(taps, dtype=np.float32)[::-1].copy())
        weight = b.reshape(b.op("MatMul", b.reshape(weight, (*lead, taps)), reverse), (*lead, *g.kernel))
    elif taps > 1:
        steps = b.int64s([-1] * len(g.axes))
        weight = b.op("Slice", weight, steps, b.int64s([-1 - extent for extent in g.kernel]), b.int64s(g.axes), steps)
    return weight if g.depthwise else b.transpose(weight, [1, 0, *g.axes])


def _conv(b: Builder, g: Geometry, x: str, weight: str, *bias: str) -> str:
    return b.op(
        "Conv",
        x,
        weight,
        *bias,
        kernel_shape=g.kernel,
        strides=g.stride,
        pads=g.padding * 2,
        dilations=g.dilation,
        group=g.groups,
    )


def _conv_transpose(b: Builder, g: Geometry, x: str, weight: str, *bias: str) -> str:
    return b.op(
        "ConvTranspose",
        x,
        weight,
        *bias,
        kernel_shape=g.kernel,
        strides=g.stride,
        pads=g.padding * 2,
        dilations=g.dilation,
        group=g.groups,
        # The stride may leave input at the far end unread: its gradient is zero, output_padding adds it.
        output_padding=tuple(pad - end for pad, end in zip(g.padding, g.ends, strict=True)),
    )


def _with_bias(b: Builder, g: Geometry, x: str, *bias: str) -> str:
    if not bias:
        return x
    return b.op("Add", x, b.reshape(bias[0], (g.channels, *(1 for _ in g.axes))))


def _weight_gradient(b: Builder, x: str, gradient: str, g: Geometry) -> str:
    """From the wide and the narrow tensor."""
    if depthwise.is_small(g):
        return depthwise.small_weight_gradient(b, x, gradient, g)
    if depthwise.has_short_rows(g):
        return depthwise.weight_gradient(b, x, gradient, g)
    if g.groups == 1 and math.prod(g.kernel) == 1 and not any(g.padding):
        return weight_gradient.by_product(b, x, gradient, g)
    return weight_gradient.by_convolution(b, x, gradient, g)


RULES: dict[str, Rule] = {
    "aten.convolution.default": _convolution,
    "aten.convolution_backward.default": _convolution_backward,
}
