"""The gradient of a convolution's weight, which ONNX has no operator for:

dW[o, c, k] = sum over examples b and positions i of dY[b, o, i] * X[b, c, i * stride + k * dilation - pad].
"""

from __future__ import annotations

import math

from exporters.lowering.builder import Builder
from exporters.lowering.geometry import Geometry


def by_product(b: Builder, x: str, gradient: str, g: Geometry) -> str:
    """A kernel of one tap without padding or groups: one matrix product an example."""
    if any(stride > 1 for stride in g.stride):
        x = b.op("Slice", x, b.int64s([0] * len(g.size)), b.int64s(g.needed), b.int64s(g.axes), b.int64s(g.stride))
    rows = b.reshape(gradient, (g.batch, g.outputs, math.prod(g.out_size)))
    columns = b.transpose(b.reshape(x, (g.batch, g.channels, math.prod(g.out_size))), [0, 2, 1])
    total = b.op("ReduceSum", b.op("MatMul", rows, columns), b.int64s([0]), keepdims=0)
    return b.reshape(total, (g.outputs, g.channels, *g.kernel))


def by_convolution(b: Builder, x: str, gradient: str, g: Geometry) -> str:
    """Convolve the input with the gradient as kernel: examples are channels, stride and dilation swap their parts.

    The input's own channels become its last spatial axis, so that the runtime copies them in one piece for every
    tap. Where the taps lie side by side that axis is joined with the one before, and a run is longer still.
    """
    within, rank = g.channels // g.groups, len(g.kernel)
    if g.groups == 1:
        wide = b.transpose(x, [0, *g.axes, 1])  # Of one dimension less than below, which the runtime does faster.
    else:
        wide = b.transpose(b.reshape(x, (g.batch, g.groups, within, *g.size)), [1, 0, *range(3, 3 + rank), 2])
    narrow = b.transpose(gradient, [1, 0, *g.axes])
    size, kernel, taps = [*g.size, within], [*g.out_size, 1], [*g.kernel, within]
    strides, dilations = [*g.dilation, 1], [*g.stride, 1]
    before, after = [*g.padding, 0], [*(max(end, 0) for end in g.ends), 0]
    if g.dilation[-1] == 1:
        del kernel[-1], strides[-1]
        for joined in (size, taps, dilations, before, after):
            joined[-2:] = [joined[-2] * within]
    else:
        narrow = b.op("Reshape", narrow, b.int64s([g.outputs, -1, *kernel]))
    found = b.op(
        "Conv",
        # Two symbolic factors cannot both be told: the joined dimension of groups and examples is whatever remains.
        b.op("Reshape", wide, b.int64s([1, -1, *size])),
        narrow,
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        pads=before + after,
        group=g.groups,
    )
    if any(end < 0 for end in g.ends):
        found = b.op("Slice", found, b.int64s([0] * len(taps)), b.int64s(taps), b.int64s(range(2, 2 + len(taps))))
    return b.transpose(b.reshape(found, (g.outputs, *g.kernel, within)), [0, rank + 1, *range(1, rank + 1)])
