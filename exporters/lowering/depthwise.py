"""Depthwise convolutions as matrix products: what runtimes do channel by channel is slow where maps are small.

Along one axis a convolution is a matrix with weight k where its output position o reads its input position i:
S[i, o, k] = 1 if i = o * stride + k * dilation - pad, else 0. On a small map all axes together are one matrix a
channel. On a larger one the weight's gradient alone is taken so, along the last axis; runtimes have nothing
for it that is fast.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from exporters.lowering.builder import Builder
from exporters.lowering.geometry import Geometry

# From 64 input and 64 output positions on, ONNX Runtime's own convolution is as fast (one thread, x86).
_SMALL = 4096
# The product of row lengths up to which matrices of them are kept: one of these a channel.
_ROW = 128 * 128


def is_small(g: Geometry) -> bool:
    """Whether a whole map is best taken as one matrix a channel."""
    return g.depthwise and g.pairs <= _SMALL


def has_short_rows(g: Geometry) -> bool:
    """Whether the weight's gradient is best taken row by row."""
    return g.depthwise and g.size[-1] * g.out_size[-1] <= _ROW


def to_narrow(b: Builder, x: str, weight: str, g: Geometry) -> str:
    """The convolution of a small map."""
    product = b.op("MatMul", _by_channel(b, x, g, g.size), _matrices(b, weight, g))
    return b.reshape(b.transpose(product, [1, 0, 2]), (g.batch, g.channels, *g.out_size))


def to_wide(b: Builder, x: str, weight: str, g: Geometry) -> str:
    """The transposed convolution of a small map."""
    product = b.op("MatMul", _by_channel(b, x, g, g.out_size), b.transpose(_matrices(b, weight, g), [0, 2, 1]))
    return b.reshape(b.transpose(product, [1, 0, 2]), (g.batch, g.channels, *g.size))


def small_weight_gradient(b: Builder, x: str, gradient: str, g: Geometry) -> str:
    """The weight's gradient on a small map: over which pairs of positions a tap sums the examples' products."""
    wide, narrow = _by_channel(b, x, g, g.size), _by_channel(b, gradient, g, g.out_size)
    products = b.reshape(b.op("MatMul", b.transpose(wide, [0, 2, 1]), narrow), (g.channels, g.pairs))
    return b.reshape(b.op("MatMul", products, _selection(b, g)), (g.channels, 1, *g.kernel))


def weight_gradient(b: Builder, x: str, gradient: str, g: Geometry) -> str:
    """The weight's gradient: for each tap of all axes but the last, products of the rows that it brings together."""
    row = Geometry(
        g.stride[-1:], g.padding[-1:], g.dilation[-1:], g.groups, g.batch, g.channels, g.outputs,
        g.kernel[-1:], g.size[-1:], g.out_size[-1:],
    )  # fmt: skip
    wide, narrow = b.transpose(x, [1, 0, *g.axes]), b.transpose(gradient, [1, 0, *g.axes])
    products = []
    for tap in itertools.product(*(range(extent) for extent in g.kernel[:-1])):
        met = [_meeting(g, axis, position) for axis, position in enumerate(tap)]
        if any(not there for _, there in met):
            zero = b.op("Expand", b.scalar(0, "float32"), b.int64s([g.channels, 1, row.pairs]))
            products.append(zero)
            continue
        wide_rows = b.op(
            "Reshape", _cut(b, wide, [here for here, _ in met], g.size), b.int64s([g.channels, -1, *row.size])
        )
        narrow_rows = b.op(
            "Reshape",
            _cut(b, narrow, [there for _, there in met], g.out_size),
            b.int64s([g.channels, -1, *row.out_size]),
        )
        product = b.op("MatMul", b.transpose(wide_rows, [0, 2, 1]), narrow_rows)
        products.append(b.reshape(product, (g.channels, 1, row.pairs)))
    joined = products[0] if len(products) == 1 else b.op("Concat", *products, axis=1)
    return b.reshape(b.op("MatMul", joined, _selection(b, row)), (g.channels, 1, *g.kernel))


def _meeting(g: Geometry, axis: int, position: int) -> tuple[range, range]:
    """The wide and the narrow positions on an axis that a position in the kernel brings together."""
    offset, stride = position * g.dilation[axis] - g.padding[axis], g.stride[axis]
    first = max(0, -(offset // stride))
    end = max(first, min(g.out_size[axis], (g.size[axis] - 1 - offset) // stride + 1))
    return range(first * stride + offset, end * stride + offset, stride), range(first, end)


def _cut(b: Builder, x: str, rows: list[range], size: tuple[int, ...]) -> str:
    """These rows of a tensor [channels, batch, *size]."""
    cuts = [(axis + 2, row) for axis, (row, whole) in enumerate(zip(rows, size, strict=False)) if row != range(whole)]
    if not cuts:
        return x
    return b.op(
        "Slice",
        x,
        b.int64s(row.start for _, row in cuts),
        b.int64s(row[-1] + 1 for _, row in cuts),
        b.int64s(axis for axis, _ in cuts),
        b.int64s(row.step for _, row in cuts),
    )


def _by_channel(b: Builder, x: str, g: Geometry, size: tuple[int, ...]) -> str:
    """[batch, channels, *size] as [channels, batch, positions]."""
    return b.op("Reshape", b.transpose(x, [1, 0, *g.axes]), b.int64s([g.channels, -1, math.prod(size)]))


def _matrices(b: Builder, weight: str, g: Geometry) -> str:
    """For each channel the matrix from wide to narrow positions."""
    flat = b.reshape(weight, (g.channels, math.prod(g.kernel)))
    matrices = b.op("MatMul", flat, b.transpose(_selection(b, g), [1, 0]))
    return b.reshape(matrices, (g.channels, math.prod(g.size), math.prod(g.out_size)))


def _selection(b: Builder, g: Geometry) -> str:
    """S for all axes together, [pairs of a wide and a narrow position, taps]: folded by runtimes as they load it."""
    rank, joined = len(g.kernel), ""
    for axis in range(rank):
        inputs = np.arange(g.size[axis], dtype=np.int32)
        outputs = np.arange(g.out_size[axis], dtype=np.int32) * g.stride[axis] - g.padding[axis]
        offsets = np.arange(g.kernel[axis], dtype=np.int32) * g.dilation[axis]
        # Shaped to broadcast: the first `rank` axes are wide positions, then narrow ones, then taps.
        place = [[1] * (3 * rank) for _ in range(3)]
        for part, values in enumerate((inputs, outputs, offsets)):
            place[part][part * rank + axis] = len(values)
        wide, narrow, taps = (
            b.constant(values.reshape(shape)) for values, shape in zip((inputs, outputs, offsets), place, strict=True)
        )
        one = b.cast(b.op("Equal", b.op("Sub", wide, narrow), taps), "bool", "float32")
        joined = b.op("Mul", joined, one) if joined else one
    return b.reshape(joined, (g.pairs, math.prod(g.kernel)))
