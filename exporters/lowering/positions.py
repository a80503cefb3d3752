"""Rules for operators that pick elements at places known beforehand: padding, windows, diagonals, nearest neighbours.

Each is a lookup in a constant table along one axis. Its gradient turns the table around: every element gathers what
was made of it, and adds it up. So nothing is scattered, and both directions use the same few nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from exporters.graph import BatchSize, Shape
from exporters.lowering.builder import Builder
from exporters.lowering.site import Rule, Site

Table = npt.NDArray[np.int64]

_NOTHING = -1
"""In a table: a place that holds zero."""


def take(b: Builder, x: str, shape: Shape, axis: int, table: Table) -> str:
    """The elements of x (of that shape) along an axis, in the table's order."""
    size = shape[axis]
    if isinstance(size, int) and np.array_equal(table, np.arange(size)):
        return x
    first = int(table[0])
    if first >= 0 and np.array_equal(table, np.arange(first, first + len(table))):
        return b.op("Slice", x, b.int64s([first]), b.int64s([first + len(table)]), b.int64s([axis]))
    if (table == _NOTHING).any():
        x, table = _after_zero(b, x, len(shape), axis), table + 1
    return b.op("Gather", x, b.constant(table), axis=axis)


def spread(b: Builder, gradient: str, shape: Shape, axis: int, table: Table, size: int) -> str:
    """The gradient of `take`: shape is the gradient's, size the axis' extent before."""
    first = int(table[0])
    if first >= 0 and np.array_equal(table, np.arange(first, first + len(table))):
        if len(table) == size:
            return gradient
        before, after = [0] * len(shape), [0] * len(shape)
        before[axis], after[axis] = first, size - first - len(table)
        return b.op("Pad", gradient, b.int64s(before + after))
    sources: list[list[int]] = [[] for _ in range(size)]
    for source, target in enumerate(table.tolist()):
        if target != _NOTHING:
            sources[target].append(source)
    most = max(map(len, sources))
    turned = np.full((size, most), _NOTHING, np.int64)
    for row, found in zip(turned, sources, strict=True):
        row[: len(found)] = found
    if (turned == _NOTHING).any():
        gradient, turned = _after_zero(b, gradient, len(shape), axis), turned + 1
    gathered = b.op("Gather", gradient, b.constant(turned if most > 1 else turned[:, 0]), axis=axis)
    return b.op("ReduceSum", gathered, b.int64s([axis + 1]), keepdims=0) if most > 1 else gathered


def _after_zero(b: Builder, x: str, rank: int, axis: int) -> str:
    """The tensor with one zero before its first element along an axis."""
    pads = [0] * (2 * rank)
    pads[axis] = 1
    return b.op("Pad", x, b.int64s(pads))


def _flat(s: Site, shape: Shape, axes: int) -> tuple[Shape, tuple[int, ...]]:
    """A shape with its last axes as one, and what they were."""
    last = s.fixed(shape[len(shape) - axes :])
    return (*shape[: len(shape) - axes], math.prod(last)), last


def _strided_table(s: Site, base: Shape) -> tuple[Shape, Table]:
    """The base, flat behind its batch, and where in it each element of a strided view lies."""
    size, stride = s.dims("size"), s.dims("stride")
    offset = s.integer("storage_offset") if s.has("storage_offset") else 0
    apart = math.prod(dim if isinstance(dim, int) else dim.scale for dim in base)
    flat: Shape = (apart,)
    batches = [dim for dim in base if isinstance(dim, BatchSize)]
    if batches:
        # An example's elements lie together, one example after the other.
        whole = len(batches) == 1 and batches[0].offset == 0
        if not whole or not size or size[0] != BatchSize(1, 0) or stride[0] != apart:
            raise s.refuse("it looks across examples")
        flat, size, stride = (BatchSize(1, 0), apart), size[1:], stride[1:]
    places = np.array(offset, np.int64)
    for extent, step in zip(s.fixed(size), s.fixed(stride), strict=True):
        places = places[..., None] + np.arange(extent) * step
    return flat, places.reshape(-1)


def _as_strided(s: Site) -> str:
    flat, table = _strided_table(s, s.shape("self"))
    x = s.b.reshape(s.tensor("self"), flat)
    return s.b.reshape(take(s.b, x, flat, len(flat) - 1, table), s.output().shape)


def _as_strided_scatter(s: Site) -> str:
    flat, table = _strided_table(s, s.shape("self"))
    axis, count = len(flat) - 1, s.fixed(flat[-1:])[0]
    chosen = np.arange(count)
    chosen[table] = count + np.arange(len(table))
    lead = flat[:-1]
    both = s.b.op(
        "Concat", s.b.reshape(s.tensor("self"), flat), s.b.reshape(s.tensor("src"), (*lead, len(table))), axis=axis
    )
    joined: Shape = (*lead, count + len(table))
    return s.b.reshape(take(s.b, both, joined, axis, chosen), s.output().shape)


def _diagonal_table(s: Site, shape: Shape) -> tuple[list[int], Table, int]:
    """The axes with those of the matrix last, where the diagonal lies in the flat matrix, and that matrix' size."""
    rank = len(shape)
    one, two = s.integer("dim1") % rank, s.integer("dim2") % rank
    rows, columns = s.fixed((shape[one], shape[two]))
    offset = s.integer("offset")
    first = max(-offset, 0) * columns + max(offset, 0)
    length = max(min(rows - max(-offset, 0), columns - max(offset, 0)), 0)
    order = [axis for axis in range(rank) if axis not in (one, two)] + [one, two]
    return order, first + np.arange(length) * (columns + 1), rows * columns


def _diagonal(s: Site) -> str:
    shape = s.shape("self")
    order, table, count = _diagonal_table(s, shape)
    flat: Shape = (*(shape[axis] for axis in order[:-2]), count)
    x = s.b.reshape(s.b.transpose(s.tensor("self"), order), flat)
    return take(s.b, x, flat, len(flat) - 1, table)


def _back_in_order(s: Site, flat: str, order: list[int], shape: Shape) -> str:
    turned = s.b.reshape(flat, tuple(shape[axis] for axis in order))
    return s.b.transpose(turned, [order.index(axis) for axis in range(len(order))])


def _diagonal_backward(s: Site) -> str:
    shape = s.output().shape
    order, table, count = _diagonal_table(s, shape)
    lead: Shape = tuple(shape[axis] for axis in order[:-2])
    found = spread(s.b, s.tensor("grad_output"), (*lead, len(table)), len(lead), table, count)
    return _back_in_order(s, found, order, shape)


def _diagonal_scatter(s: Site) -> str:
    shape = s.shape("self")
    order, table, count = _diagonal_table(s, shape)
    lead: Shape = tuple(shape[axis] for axis in order[:-2])
    chosen = np.arange(count)
    chosen[table] = count + np.arange(len(table))
    x = s.b.reshape(s.b.transpose(s.tensor("self"), order), (*lead, count))
    both = s.b.op("Concat", x, s.tensor("src"), axis=len(lead))
    found = take(s.b, both, (*lead, count + len(table)), len(lead), chosen)
    return _back_in_order(s, found, order, shape)


def _window_table(count: int, size: int, step: int) -> Table:
    return (np.arange(count)[:, None] * step + np.arange(size)).reshape(-1)


def _unfold(s: Site) -> str:
    """Windows along one axis; torch puts the position within a window last."""
    shape, out = s.shape("self"), s.output().shape
    axis = s.integer("dimension") % max(len(shape), 1)
    count, size = s.fixed((out[axis],))[0], s.integer("size")
    windows = take(s.b, s.tensor("self"), shape, axis, _window_table(count, size, s.integer("step")))
    apart = s.b.reshape(windows, (*shape[:axis], count, size, *shape[axis + 1 :]))
    order = [*range(axis + 1), *range(axis + 2, len(shape) + 1), axis + 1]
    return s.b.transpose(apart, order)


def _unfold_backward(s: Site) -> str:
    shape, out = s.shape("grad_in"), s.output().shape
    axis = s.integer("dim") % len(out)
    count, size = s.fixed((shape[axis],))[0], s.integer("size")
    order = [*range(axis + 1), len(shape) - 1, *range(axis + 1, len(shape) - 1)]
    windows: Shape = (*out[:axis], count * size, *out[axis + 1 :])
    flat = s.b.reshape(s.b.transpose(s.tensor("grad_in"), order), windows)
    table = _window_table(count, size, s.integer("step"))
    return spread(s.b, flat, windows, axis, table, s.fixed((out[axis],))[0])


def _columns_table(s: Site, size: tuple[int, ...]) -> Table:
    """Where in a plane each element of its windows lies, [kernel * windows]; outside of it there is nothing."""
    kernel, dilation, padding, stride = (s.ints(name) for name in ("kernel_size", "dilation", "padding", "stride"))
    places = []
    for extent, k, d, p, step in zip(size, kernel, dilation, padding, stride, strict=True):
        windows = (extent + 2 * p - d * (k - 1) - 1) // step + 1
        places.append((np.arange(k)[:, None] * d + np.arange(windows) * step) - p)
    rows, columns = places
    height, width = size
    row, column = rows[:, None, :, None], columns[None, :, None, :]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return np.asarray(np.where(inside, row * width + column, _NOTHING), np.int64).reshape(-1)


def _im2col(s: Site) -> str:
    if len(s.shape("self")) != 4:
        raise s.refuse("its input has no batch dimension")
    flat, size = _flat(s, s.shape("self"), 2)
    x = s.b.reshape(s.tensor("self"), flat)
    return s.b.reshape(take(s.b, x, flat, 2, _columns_table(s, size)), s.output().shape)


def _col2im(s: Site) -> str:
    if len(s.shape("self")) != 3:
        raise s.refuse("its input has no batch dimension")
    batch, channels, *size = s.output().shape
    table = _columns_table(s, s.fixed(tuple(size)))
    windows: Shape = (batch, channels, len(table))
    gradient = s.b.reshape(s.tensor("self"), windows)
    found = spread(s.b, gradient, windows, 2, table, math.prod(s.fixed(tuple(size))))
    return s.b.reshape(found, s.output().shape)


def _reflected(size: int, before: int, after: int) -> Table:
    places = np.abs(np.arange(-before, size + after))
    return np.where(places < size, places, 2 * (size - 1) - places)


def _replicated(size: int, before: int, after: int) -> Table:
    return np.clip(np.arange(-before, size + after), 0, size - 1)


def _padded(tables: Callable[[int, int, int], Table]) -> Rule:
    def rule(s: Site) -> str:
        name, shape = s.tensor("self"), list(s.shape("self"))
        for axis, table in _padding_tables(s, tables, s.shape("self")):
            name = take(s.b, name, tuple(shape), axis, table)
            shape[axis] = len(table)
        return name

    return rule


def _padded_backward(tables: Callable[[int, int, int], Table]) -> Rule:
    def rule(s: Site) -> str:
        name, shape, out = s.tensor("grad_output"), list(s.shape("grad_output")), s.output().shape
        for axis, table in _padding_tables(s, tables, out):
            (size,) = s.fixed((out[axis],))
            name = spread(s.b, name, tuple(shape), axis, table, size)
            shape[axis] = size
        return name

    return rule


def _padding_tables(s: Site, tables: Callable[[int, int, int], Table], shape: Shape) -> Iterable[tuple[int, Table]]:
    padding = s.ints("padding")
    for position, (before, after) in enumerate(zip(padding[::2], padding[1::2], strict=True)):
        axis = len(shape) - 1 - position
        yield axis, tables(s.fixed((shape[axis],))[0], before, after)


RULES: dict[str, Rule] = {
    "aten.as_strided.default": _as_strided,
    "aten.as_strided_scatter.default": _as_strided_scatter,
    "aten.diagonal.default": _diagonal,
    "aten.diagonal_backward.default": _diagonal_backward,
    "aten.diagonal_scatter.default": _diagonal_scatter,
    "aten.unfold.default": _unfold,
    "aten.unfold_backward.default": _unfold_backward,
    "aten.im2col.default": _im2col,
    "aten.col2im.default": _col2im,
    **{
        f"aten.{kind}_pad{rank}d{backward}.default": rule(tables)
        for kind, tables in (("reflection", _reflected), ("replication", _replicated))
        for rank in (1, 2, 3)
        for backward, rule in (("", _padded), ("_backward", _padded_backward))
    },
}
