"""Rules for pooling over windows of two or three dimensions, and its gradients; one dimension comes as two."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from exporters.graph import Shape
from exporters.lowering.resampling import Matrix, along
from exporters.lowering.site import Result, Rule, Site


@dataclass(frozen=True, slots=True)
class _Windows:
    """The fixed numbers of a pooling: one entry a spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    size: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The number of spatial dimensions."""
        return len(self.size)


def _windows(s: Site, wide: Shape, narrow: Shape) -> _Windows:
    rank = 3 if "3d" in s.operator else 2
    if len(wide) != rank + 2:
        raise s.refuse("its input has no batch dimension")

    def each(name: str) -> tuple[int, ...]:
        values = s.ints(name)
        return values * rank if len(values) == 1 else values

    kernel = each("kernel_size")
    return _Windows(kernel, each("stride") or kernel, each("padding"), s.fixed(wide[2:]), s.fixed(narrow[2:]))


def _dilation(s: Site, rank: int) -> tuple[int, ...]:
    values = s.ints("dilation")
    return values * rank if len(values) == 1 else values


def _max_pool(s: Site) -> tuple[Result | None, ...]:
    w = _windows(s, s.shape("self"), s.output().shape)
    # torch gives positions within each plane, ONNX within the whole tensor. Only the gradient below reads
    # them, and it takes ONNX's. Where several are largest, both take the first.
    return s.b.op_many(
        "MaxPool",
        2,
        s.tensor("self"),
        kernel_shape=w.kernel,
        strides=w.stride,
        pads=w.padding * 2,
        dilations=_dilation(s, w.rank),
        ceil_mode=int(s.flag("ceil_mode")),
    )


def _max_pool_backward(s: Site) -> str:
    w = _windows(s, s.shape("self"), s.shape("grad_output"))
    gradient, indices, x = s.tensor("grad_output"), s.tensor("indices"), s.tensor("self")
    whole = s.b.op("Shape", x)
    apart = all(t >= k and d == 1 for t, k, d in zip(w.stride, w.kernel, _dilation(s, w.rank), strict=True))
    if apart and not any(w.padding) and not s.flag("ceil_mode"):
        if w.kernel == w.stride == (2, 2) and not any(size % 2 for size in w.size):
            return _to_first_largest(s, x, gradient, w)
        return s.b.op("MaxUnpool", gradient, indices, whole, kernel_shape=w.kernel, strides=w.stride)
    # Windows overlap: a position may be the largest of several, whose gradients add up.
    flat = s.b.int64s([-1])
    length = s.b.op("Reshape", s.b.op("Size", x), flat)
    zeros = s.b.op("Expand", s.b.scalar(0, s.output().dtype), length)
    spread = s.b.op(
        "ScatterElements",
        zeros,
        s.b.op("Reshape", indices, flat),
        s.b.op("Reshape", gradient, flat),
        axis=0,
        reduction="add",
    )
    return s.b.op("Reshape", spread, whole)


def _to_first_largest(s: Site, x: str, gradient: str, w: _Windows) -> str:
    """Give the gradient of each 2x2 window to the first of its largest numbers.

    ONNX Runtime's pooling takes seven times as long if it has to tell the indices too.
    """
    largest, *others = s.b.op_many("Split", 4, s.b.op("SpaceToDepth", x, blocksize=2), axis=1, num_outputs=4)
    place = ""
    for index, other in enumerate(others, start=1):
        larger = s.b.cast(s.b.op("Greater", other, largest), "bool", "float32")
        larger = s.b.op("Mul", larger, s.b.scalar(index, "float32"))
        place = s.b.op("Max", place, larger) if place else larger
        largest = s.b.op("Max", largest, other)
    double = s.b.constant(np.array([1, 1, 2, 2], np.float32))

    def enlarged(value: str) -> str:
        return s.b.op(
            "Resize", value, "", double,
            mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        )  # fmt: skip

    places = s.b.op("Tile", s.b.constant(np.array([[0, 1], [2, 3]], np.float32)), s.b.int64s(w.out))
    first = s.b.op("Equal", enlarged(place), places)
    return s.b.op("Mul", enlarged(gradient), s.b.cast(first, "bool", s.output().dtype))


def _has_kernel(s: Site, w: _Windows) -> bool:
    """Whether every window counts all of its kernel's positions, so that ONNX's own pooling is meant."""
    return (
        not s.flag("ceil_mode")
        and not s.has("divisor_override")
        and (s.flag("count_include_pad") or not any(w.padding))
    )


def _averages(s: Site, w: _Windows) -> list[Matrix]:
    """Averaging as a linear map for each axis, [out, in]: windows that hang over the edge have their own divisors."""
    matrices = []
    for kernel, stride, padding, size, out in zip(w.kernel, w.stride, w.padding, w.size, w.out, strict=True):
        matrix = np.zeros((out, size))
        for position in range(out):
            first = position * stride - padding
            last = min(first + kernel, size + padding)
            inside = slice(max(first, 0), min(last, size))
            count = last - first if s.flag("count_include_pad") else inside.stop - inside.start
            matrix[position, inside] = 1 if s.has("divisor_override") else 1 / count
        matrices.append(matrix)
    if s.has("divisor_override"):
        matrices[0] /= s.integer("divisor_override")
    return matrices


def _average_pool(s: Site) -> str:
    w = _windows(s, s.shape("self"), s.output().shape)
    if not _has_kernel(s, w):
        return along(s.b, s.tensor("self"), s.shape("self"), _averages(s, w), s.output().dtype)
    return s.b.op(
        "AveragePool",
        s.tensor("self"),
        kernel_shape=w.kernel,
        strides=w.stride,
        pads=w.padding * 2,
        count_include_pad=1,
    )


def _average_pool_backward(s: Site) -> str:
    w = _windows(s, s.output().shape, s.shape("grad_output"))
    if _has_kernel(s, w):
        return _spread(s, s.tensor("grad_output"), w)
    turned = [matrix.T for matrix in _averages(s, w)]
    return along(s.b, s.tensor("grad_output"), s.shape("grad_output"), turned, s.output().dtype)


def _spread(s: Site, gradient: str, w: _Windows) -> str:
    """Give every position of each window its share of the window's gradient."""
    lead, dtype, share = s.output().shape[:2], s.output().dtype, 1 / math.prod(w.kernel)
    if w.stride == w.kernel and not any(w.padding):
        scaled = s.b.op("Mul", gradient, s.b.scalar(share, dtype))
        gaps = tuple(dim for out in w.out for dim in (out, 1))
        ones = tuple(dim for kernel in w.kernel for dim in (1, kernel))
        covered = tuple(out * kernel for out, kernel in zip(w.out, w.kernel, strict=True))
        apart = s.b.op("Expand", s.b.reshape(scaled, (*lead, *gaps)), s.b.int64s((1, 1, *ones)))
        result = s.b.reshape(apart, (*lead, *covered))
        rest = [whole - part for whole, part in zip(w.size, covered, strict=True)]
        return s.b.op("Pad", result, s.b.int64s([0] * (w.rank + 4) + rest)) if any(rest) else result
    (channels,) = s.fixed(lead[1:])
    extra = tuple(
        whole - ((o - 1) * t - 2 * p + k)
        for whole, o, t, p, k in zip(w.size, w.out, w.stride, w.padding, w.kernel, strict=True)
    )
    weight = s.b.constant(np.full((channels, 1, *w.kernel), share, np.dtype(dtype)))
    return s.b.op(
        "ConvTranspose",
        gradient,
        weight,
        kernel_shape=w.kernel,
        strides=w.stride,
        pads=w.padding * 2,
        group=channels,
        output_padding=extra,
    )


def _adaptive(s: Site, wide: Shape, narrow: Shape) -> _Windows | None:
    """Adaptive averaging as windows that lie side by side, where they do."""
    rank = 3 if "3d" in s.operator else 2
    if len(wide) != rank + 2:
        raise s.refuse("its input has no batch dimension")
    size, out = s.fixed(wide[2:]), s.fixed(narrow[2:])
    if any(whole % part for whole, part in zip(size, out, strict=True)):
        return None
    kernel = tuple(whole // part for whole, part in zip(size, out, strict=True))
    return _Windows(kernel, kernel, (0,) * rank, size, out)


def _adaptive_matrices(s: Site, wide: Shape, narrow: Shape) -> list[Matrix]:
    """Adaptive averaging as a linear map for each axis, [out, in]."""
    matrices = []
    for size, out in zip(s.fixed(wide[2:]), s.fixed(narrow[2:]), strict=True):
        matrix = np.zeros((out, size))
        for position in range(out):
            first, last = adaptive_window(position, size, out)
            matrix[position, first:last] = 1 / (last - first)
        matrices.append(matrix)
    return matrices


def adaptive_window(position: int, size: int, out: int) -> tuple[int, int]:
    """Where a window of adaptive pooling begins and ends."""
    return position * size // out, -(-(position + 1) * size // out)


def _adaptive_average(s: Site) -> str:
    x, shape = s.tensor("self"), s.shape("self")
    w = _adaptive(s, shape, s.output().shape)
    if w is not None:
        return s.b.op("AveragePool", x, kernel_shape=w.kernel, strides=w.stride)
    return along(s.b, x, shape, _adaptive_matrices(s, shape, s.output().shape), s.output().dtype)


def _adaptive_average_backward(s: Site) -> str:
    gradient, shape = s.tensor("grad_output"), s.shape("grad_output")
    w = _adaptive(s, s.output().shape, shape)
    if w is not None:
        return _spread(s, gradient, w)
    turned = [matrix.T for matrix in _adaptive_matrices(s, s.output().shape, shape)]
    return along(s.b, gradient, shape, turned, s.output().dtype)


def _adaptive_max(s: Site) -> tuple[Result | None, ...]:
    """Every window's positions side by side; those that are shorter repeat their first."""
    shape, out = s.shape("self"), s.output().shape
    rank = 3 if "3d" in s.operator else 2
    if len(shape) != rank + 2:
        raise s.refuse("its input has no batch dimension")
    size, narrow = s.fixed(shape[2:]), s.fixed(out[2:])
    grid = np.arange(math.prod(size)).reshape(size)
    cells = []
    for position in np.ndindex(narrow):
        found = zip(position, size, narrow, strict=True)
        window = tuple(slice(*adaptive_window(place, whole, part)) for place, whole, part in found)
        cells.append(grid[window].reshape(-1))
    longest = max(len(cell) for cell in cells)
    table = np.stack([np.pad(cell, (0, longest - len(cell)), constant_values=cell[0]) for cell in cells])
    flat: Shape = (*shape[:2], math.prod(size))
    windows = s.b.op("Gather", s.b.reshape(s.tensor("self"), flat), s.b.constant(table), axis=2)
    chosen = s.b.op("ArgMax", windows, axis=3, keepdims=1)
    # Where in the plane the largest of each window lies, as torch says it.
    where = s.b.op("Expand", s.b.constant(table), s.b.sizes((*shape[:2], *table.shape)))
    places = s.b.reshape(s.b.op("GatherElements", where, chosen, axis=3), out)
    most = s.b.op("ReduceMax", windows, s.b.int64s([3]), keepdims=0)
    return s.b.reshape(most, out), places


def _adaptive_max_backward(s: Site) -> str:
    shape, out = s.output().shape, s.shape("grad_output")
    flat: Shape = (*shape[:2], math.prod(s.fixed(shape[2:])))
    narrow: Shape = (*out[:2], math.prod(s.fixed(out[2:])))
    zeros = s.b.op("Expand", s.b.scalar(0, s.output().dtype), s.b.sizes(flat))
    found = s.b.op(
        "ScatterElements",
        zeros,
        s.b.reshape(s.tensor("indices"), narrow),
        s.b.reshape(s.tensor("grad_output"), narrow),
        axis=2,
        reduction="add",
    )
    return s.b.reshape(found, shape)


_POOLS: dict[str, Rule] = {
    "max_pool{}d_with_indices": _max_pool,
    "max_pool{}d_with_indices_backward": _max_pool_backward,
    "avg_pool{}d": _average_pool,
    "avg_pool{}d_backward": _average_pool_backward,
    "_adaptive_avg_pool{}d": _adaptive_average,
    "_adaptive_avg_pool{}d_backward": _adaptive_average_backward,
    "adaptive_max_pool{}d": _adaptive_max,
    "adaptive_max_pool{}d_backward": _adaptive_max_backward,
}

RULES: dict[str, Rule] = {f"aten.{name.format(rank)}.default": rule for rank in (2, 3) for name, rule in _POOLS.items()}
