"""Rules for convolutions of one, two or three dimensions, and their gradients.

ONNX has no gradient of a convolution. That of the input is a transposed convolution. That of the weight,

    dW[o, c, k] = sum over examples b and positions i of dY[b, o, i] * X[b, c, i * stride + k * dilation - pad],

is computed in one of four ways; which is the fastest was measured on ONNX Runtime, one thread.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from exporters.graph import Dim, Shape
from exporters.lowering.builder import Builder
from exporters.lowering.site import Result, Rule, Site

# Below this many multiplications an example, the fewest nodes win over the best kernel.
_TINY = 40_000
_FEW_CHANNELS = 8
_SMALL_MAP = 4


@dataclass(frozen=True, slots=True)
class _Geometry:
    """The fixed numbers of a convolution: one entry a spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    batch: Dim
    channels: int
    outputs: int
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    out_size: tuple[int, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial axes of an activation."""
        return tuple(range(2, 2 + len(self.kernel)))

    @property
    def taps(self) -> list[tuple[int, ...]]:
        """Every position in the kernel, in row-major order."""
        return list(itertools.product(*(range(extent) for extent in self.kernel)))

    @property
    def needed(self) -> tuple[int, ...]:
        """How much of the padded input, from its start, the convolution reads."""
        return tuple(
            s * (o - 1) + d * (k - 1) + 1
            for s, o, d, k in zip(self.stride, self.out_size, self.dilation, self.kernel, strict=True)
        )


def _per_dim(s: Site, name: str, rank: int) -> tuple[int, ...]:
    values = s.ints(name)
    return values * rank if len(values) == 1 else values


def _geometry(s: Site, wide: Shape, narrow: Shape) -> _Geometry:
    """Of the convolution that maps `wide` to `narrow`; a transposed one goes the other way."""
    kernel = s.fixed(s.shape("weight")[2:])
    rank = len(kernel)
    if len(wide) != rank + 2:
        raise s.refuse("its input has no batch dimension")
    return _Geometry(
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


def _plain(b: Builder, g: _Geometry, *inputs: str) -> str:
    """From the wide tensor and the weight to the narrow one."""
    return b.op(
        "Conv",
        *inputs,
        kernel_shape=g.kernel,
        strides=g.stride,
        pads=g.padding * 2,
        dilations=g.dilation,
        group=g.groups,
    )


def _transposed(b: Builder, g: _Geometry, *inputs: str) -> str:
    """From the narrow tensor and the weight to the wide one."""
    # The stride may leave input at the far end unread: its gradient is zero, output_padding adds it.
    extra = tuple(size - (need - 2 * pad) for size, need, pad in zip(g.size, g.needed, g.padding, strict=True))
    return b.op(
        "ConvTranspose",
        *inputs,
        kernel_shape=g.kernel,
        strides=g.stride,
        pads=g.padding * 2,
        dilations=g.dilation,
        group=g.groups,
        output_padding=extra,
    )


def _weight_gradient(b: Builder, x: str, gradient: str, g: _Geometry) -> str:
    plain = g.groups == 1 and all(stride == 1 for stride in g.stride)
    if plain and math.prod(g.kernel) == 1 and not any(g.padding):
        return _by_product(b, x, gradient, g)
    work = g.channels // g.groups * g.outputs * math.prod(g.kernel) * math.prod(g.out_size)
    if g.groups > 1 or work < _TINY:
        return _by_convolution(b, x, gradient, g)
    if g.channels < _FEW_CHANNELS:
        return _by_columns(b, x, gradient, g)
    if not plain or min(g.out_size) <= _SMALL_MAP:
        return _by_convolution(b, x, gradient, g)
    return _by_shifts(b, x, gradient, g)


def _by_product(b: Builder, x: str, gradient: str, g: _Geometry) -> str:
    """A kernel of one tap: one matrix product an example."""
    rows = b.reshape(gradient, (g.batch, g.outputs, math.prod(g.out_size)))
    columns = b.transpose(b.reshape(x, (g.batch, g.channels, math.prod(g.size))), [0, 2, 1])
    total = b.op("ReduceSum", b.op("MatMul", rows, columns), b.int64s([0]), keepdims=0)
    return b.reshape(total, (g.outputs, g.channels, *g.kernel))


def _by_convolution(b: Builder, x: str, gradient: str, g: _Geometry) -> str:
    """Convolve the input with the gradient as kernel, examples as channels, stride and dilation swapped."""
    within = g.channels // g.groups
    if g.groups == 1:
        turned = b.transpose(x, [1, 0, *g.axes])
    else:
        grouped = b.reshape(x, (g.batch, g.groups, within, *g.size))
        order = [2, 1, 0, *(axis + 1 for axis in g.axes)]
        # Two symbolic factors cannot both be told: the joined dimension is whatever remains.
        target = b.int64s([within, -1, *g.size])
        turned = b.op("Reshape", b.transpose(grouped, order), target)
    right = tuple(max(need - size - pad, 0) for need, size, pad in zip(g.needed, g.size, g.padding, strict=True))
    found = b.op(
        "Conv",
        turned,
        b.transpose(gradient, [1, 0, *g.axes]),
        kernel_shape=g.out_size,
        strides=g.dilation,
        dilations=g.stride,
        pads=g.padding + right,
        group=g.groups,
    )
    produced = tuple(
        (size + pad + end - stride * (out - 1) - 1) // dilation + 1
        for size, pad, end, stride, out, dilation in zip(
            g.size, g.padding, right, g.stride, g.out_size, g.dilation, strict=True
        )
    )
    if produced != g.kernel:
        zeros = b.int64s([0] * len(g.kernel))
        found = b.op("Slice", found, zeros, b.int64s(g.kernel), b.int64s(g.axes))
    return b.transpose(found, [1, 0, *g.axes])


def _padded(b: Builder, x: str, g: _Geometry) -> tuple[str, tuple[int, ...]]:
    """The input padded (or cut, at the end) to what the convolution reads, and that size."""
    ends = tuple(need - size - pad for need, size, pad in zip(g.needed, g.size, g.padding, strict=True))
    if any(g.padding) or any(end > 0 for end in ends):
        positive = [max(end, 0) for end in ends]
        x = b.op("Pad", x, b.int64s([0, 0, *g.padding, 0, 0, *positive]))
    if any(end < 0 for end in ends):
        x = b.op("Slice", x, b.int64s([0] * len(ends)), b.int64s(g.needed), b.int64s(g.axes))
    return x, g.needed


def _by_columns(b: Builder, x: str, gradient: str, g: _Geometry) -> str:
    """Put the input's shifted copies side by side, then one matrix product an example."""
    padded, _ = _padded(b, x, g)
    copies = []
    for tap in g.taps:
        start = tuple(t * d for t, d in zip(tap, g.dilation, strict=True))
        end = tuple(
            first + stride * (out - 1) + 1 for first, stride, out in zip(start, g.stride, g.out_size, strict=True)
        )
        copies.append(b.op("Slice", padded, b.int64s(start), b.int64s(end), b.int64s(g.axes), b.int64s(g.stride)))
    positions, taps = math.prod(g.out_size), len(copies)
    columns = b.reshape(b.op("Concat", *copies, axis=1), (g.batch, taps * g.channels, positions))
    rows = b.reshape(gradient, (g.batch, g.outputs, positions))
    product = b.op("MatMul", rows, b.transpose(columns, [0, 2, 1]))
    total = b.op("ReduceSum", product, b.int64s([0]), keepdims=0)
    by_tap = b.transpose(b.reshape(total, (g.outputs, taps, g.channels)), [0, 2, 1])
    return b.reshape(by_tap, (g.outputs, g.channels, *g.kernel))


def _by_shifts(b: Builder, x: str, gradient: str, g: _Geometry) -> str:
    """For each tap, one matrix product with a shifted view of the flat padded input; stride 1 only."""
    padded, extent = _padded(b, x, g)
    flat = b.reshape(padded, (g.batch, g.channels, math.prod(extent)))
    strides = [math.prod(extent[axis + 1 :]) for axis in range(len(extent))]
    # Laid out with the input's row length, the gradient meets each tap's input at a constant distance.
    gaps = [wide - narrow for wide, narrow in zip(extent, g.out_size, strict=True)]
    widened = b.op("Pad", gradient, b.int64s([0] * (2 + len(gaps)) + [0, 0, *gaps])) if any(gaps) else gradient
    length = sum((out - 1) * stride for out, stride in zip(g.out_size, strides, strict=True)) + 1
    rows = b.reshape(widened, (g.batch, g.outputs, math.prod(extent)))
    if length != math.prod(extent):
        rows = b.op("Slice", rows, b.int64s([0]), b.int64s([length]), b.int64s([2]))
    found = []
    for tap in g.taps:
        start = sum(t * d * stride for t, d, stride in zip(tap, g.dilation, strides, strict=True))
        shifted = b.op("Slice", flat, b.int64s([start]), b.int64s([start + length]), b.int64s([2]))
        product = b.op("MatMul", rows, b.transpose(shifted, [0, 2, 1]))
        found.append(b.op("ReduceSum", product, b.int64s([0]), keepdims=1))
    by_tap = b.transpose(b.op("Concat", *found, axis=0), [1, 2, 0])
    return b.reshape(by_tap, (g.outputs, g.channels, *g.kernel))


RULES: dict[str, Rule] = {
    "aten.convolution.default": _convolution,
    "aten.convolution_backward.default": _convolution_backward,
}
