"""Rules for interpolation and its gradients: along each axis a linear map known beforehand.

Nearest neighbours are looked up; linear and cubic weights make a constant matrix for each axis, whose transpose is
the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from exporters.graph import Shape
from exporters.lowering.builder import Builder
from exporters.lowering.positions import Table, spread, take
from exporters.lowering.site import Rule, Site

Matrix = npt.NDArray[Any]
"""The map along one axis, [out, in]."""

_CUBIC = -0.75
_CUBIC_ANTIALIASED = -0.5


def along(b: Builder, x: str, shape: Shape, matrices: Sequence[Matrix], dtype: str) -> str:
    """Apply a linear map to each of the last axes of x (of that shape)."""
    rank = len(shape)
    for axis, matrix in zip(range(rank - len(matrices), rank), matrices, strict=True):
        if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix))):
            continue
        # The order in which axes are mapped is free: each map keeps the others' extents.
        typed = matrix.astype(dtype)
        if axis == rank - 1:
            x = b.op("MatMul", x, b.constant(typed.T.copy()))
        elif axis == rank - 2:
            x = b.op("MatMul", b.constant(typed), x)
        else:
            order = [*range(axis), *range(axis + 1, rank), axis]
            turned = b.op("MatMul", b.transpose(x, order), b.constant(typed.T.copy()))
            x = b.transpose(turned, [order.index(place) for place in range(rank)])
    return x


def _scale(size: int, out: int, given: float | None, align_corners: bool) -> float:
    """How far apart in the input two neighbours of the output are."""
    if align_corners:
        return (size - 1) / (out - 1) if out > 1 else 0.0
    return 1 / given if given else size / out


def _sources(size: int, out: int, given: float | None, align_corners: bool) -> Matrix:
    """Where in the input each position of the output lies."""
    scale, positions = _scale(size, out, given, align_corners), np.arange(out, dtype=np.float64)
    return positions * scale if align_corners else (positions + 0.5) * scale - 0.5


def _cubic(distance: Matrix, a: float) -> Matrix:
    """Keys' kernel of cubic convolution."""
    d = np.abs(distance)
    inner = ((a + 2) * d - (a + 3)) * d * d + 1
    outer = ((d - 5) * d + 8) * d * a - 4 * a
    weights: Matrix = np.where(d <= 1, inner, np.where(d < 2, outer, 0.0))
    return weights


def _hat(distance: Matrix) -> Matrix:
    weights: Matrix = np.maximum(1 - np.abs(distance), 0.0)
    return weights


def _linear(size: int, out: int, given: float | None, align_corners: bool) -> Matrix:
    sources = np.clip(_sources(size, out, given, align_corners), 0, size - 1)
    return _hat(sources[:, None] - np.arange(size))


def _bicubic(size: int, out: int, given: float | None, align_corners: bool) -> Matrix:
    sources = _sources(size, out, given, align_corners)
    matrix = np.zeros((out, size))
    for shift in range(-1, 3):
        nodes = np.floor(sources) + shift
        columns = np.clip(nodes, 0, size - 1).astype(np.int64)
        np.add.at(matrix, (np.arange(out), columns), _cubic(sources - nodes, _CUBIC))
    return matrix


def _antialiased(kernel: Callable[[Matrix], Matrix], reach: float) -> Callable[..., Matrix]:
    """Weights that widen when the output is smaller than the input, so that every input counts."""

    def build(size: int, out: int, given: float | None, align_corners: bool) -> Matrix:
        scale = _scale(size, out, given, align_corners)
        wide = max(scale, 1.0)
        matrix = np.zeros((out, size))
        for position in range(out):
            centre = scale * (position + 0.5)
            first = max(int(centre - reach * wide + 0.5), 0)
            last = min(int(centre + reach * wide + 0.5), size)
            weights = kernel((np.arange(first, last) - centre + 0.5) / wide)
            matrix[position, first:last] = weights / weights.sum()
        return matrix

    return build


_LINEAR_ANTIALIASED = _antialiased(_hat, 1.0)
_BICUBIC_ANTIALIASED = _antialiased(lambda distance: _cubic(distance, _CUBIC_ANTIALIASED), 2.0)


def _scales(s: Site, rank: int) -> list[float | None]:
    names = {1: ("scales",), 2: ("scales_h", "scales_w"), 3: ("scales_d", "scales_h", "scales_w")}[rank]
    return [s.real(name) if s.has(name) else None for name in names]


def _matrices(s: Site, build: Callable[..., Matrix], rank: int, size: Shape, out: Shape) -> list[Matrix]:
    aligned = s.flag("align_corners")
    extents = zip(s.fixed(size[-rank:]), s.fixed(out[-rank:]), _scales(s, rank), strict=True)
    return [build(n, m, given, aligned) for n, m, given in extents]


def _weighted(build: Callable[..., Matrix], rank: int) -> Rule:
    def rule(s: Site) -> str:
        matrices = _matrices(s, build, rank, s.shape("self"), s.output().shape)
        return along(s.b, s.tensor("self"), s.shape("self"), matrices, s.output().dtype)

    return rule


def _weighted_backward(build: Callable[..., Matrix], rank: int) -> Rule:
    def rule(s: Site) -> str:
        shape = s.shape("grad_output")
        matrices = _matrices(s, build, rank, s.output().shape, shape)
        turned = [matrix.T for matrix in matrices]
        return along(s.b, s.tensor("grad_output"), shape, turned, s.output().dtype)

    return rule


def _nearest_tables(s: Site, rank: int, size: Shape, out: Shape) -> list[Table]:
    middle = 0.5 if "exact" in s.operator else 0.0
    tables = []
    for n, m, given in zip(s.fixed(size[-rank:]), s.fixed(out[-rank:]), _scales(s, rank), strict=True):
        # torch computes this in float32, which decides where a position falls between two.
        scale = np.float32(_scale(n, m, given, False))
        places = np.floor((np.arange(m, dtype=np.float32) + np.float32(middle)) * scale)
        tables.append(np.minimum(places.astype(np.int64), n - 1))
    return tables


def _nearest(rank: int) -> Rule:
    def rule(s: Site) -> str:
        name, shape = s.tensor("self"), list(s.shape("self"))
        for axis, table in enumerate(_nearest_tables(s, rank, s.shape("self"), s.output().shape), 2):
            name = take(s.b, name, tuple(shape), axis, table)
            shape[axis] = len(table)
        return name

    return rule


def _nearest_backward(rank: int) -> Rule:
    def rule(s: Site) -> str:
        name, shape, out = s.tensor("grad_output"), list(s.shape("grad_output")), s.output().shape
        for axis, table in enumerate(_nearest_tables(s, rank, out, s.shape("grad_output")), 2):
            (size,) = s.fixed((out[axis],))
            name = spread(s.b, name, tuple(shape), axis, table, size)
            shape[axis] = size
        return name

    return rule


_WEIGHTED = {
    "upsample_linear1d": (_linear, 1),
    "upsample_bilinear2d": (_linear, 2),
    "upsample_trilinear3d": (_linear, 3),
    "upsample_bicubic2d": (_bicubic, 2),
    "_upsample_bilinear2d_aa": (_LINEAR_ANTIALIASED, 2),
    "_upsample_bicubic2d_aa": (_BICUBIC_ANTIALIASED, 2),
}

RULES: dict[str, Rule] = {
    **{f"aten.{name}.default": _weighted(*settings) for name, settings in _WEIGHTED.items()},
    **{f"aten.{name}_backward.default": _weighted_backward(*settings) for name, settings in _WEIGHTED.items()},
    **{
        f"aten.{name}{rank}d{backward}.default": rule(rank)
        for name in ("upsample_nearest", "_upsample_nearest_exact")
        for rank in (1, 2, 3)
        for backward, rule in (("", _nearest), ("_backward", _nearest_backward))
    },
}
