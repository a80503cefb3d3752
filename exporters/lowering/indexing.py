"""Rules for operators that read or write elements at places that tensors hold: indexing, embeddings, sorting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporters.graph import Shape
from exporters.lowering.elementwise import broadcast
from exporters.lowering.site import Result, Rule, Site


@dataclass(frozen=True, slots=True)
class _Places:
    """What `x[..., i, j]` names: axes of x, an int64 value for each that broadcast together, and their shape."""

    axes: tuple[int, ...]
    values: tuple[str, ...]
    shape: Shape

    @property
    def adjacent(self) -> bool:
        """Whether the indexed axes follow each other; if not, the result has their places in front."""
        return self.axes == tuple(range(self.axes[0], self.axes[0] + len(self.axes)))


def _places(s: Site) -> _Places:
    axes: list[int] = []
    values: list[str] = []
    shapes: list[Shape] = []
    axis = 0
    for ref in s.optional_refs("indices"):
        if ref is None:
            axis += 1
            continue
        kind, held = s.type_of(ref), s.held(ref)
        if kind.dtype in ("bool", "uint8"):
            mask = s.b.constant_value(held.name)
            if mask is None:
                raise s.refuse("a mask chooses elements, whose number depends on the values in the batch")
            for found in np.nonzero(np.broadcast_to(mask, s.fixed(kind.shape))):
                axes.append(axis)
                values.append(s.b.constant(found.astype(np.int64)))
                shapes.append(found.shape)
                axis += 1
            continue
        axes.append(axis)
        values.append(s.b.cast(held.name, kind.dtype, "int64"))
        shapes.append(held.shape)
        axis += 1
    return _Places(tuple(axes), tuple(values), broadcast(*shapes))


def _joined(s: Site, places: _Places) -> str:
    """The places as one value, the axes they belong to last."""
    if len(places.values) > 1:
        target = s.b.sizes(places.shape)
        expanded = [s.b.op("Expand", value, target) for value in places.values]
    else:
        expanded = list(places.values)
    last = s.b.int64s([-1])
    columns = [s.b.op("Unsqueeze", value, last) for value in expanded]
    return s.b.op("Concat", *columns, axis=-1) if len(columns) > 1 else columns[0]


def _in_front(places: _Places, rank: int) -> list[int]:
    """The axes of x with those that are indexed in front."""
    return [*places.axes, *(axis for axis in range(rank) if axis not in places.axes)]


def _behind(places: _Places, rank: int) -> list[int]:
    """How axes that lie as (places, other axes) come into the order torch gives them."""
    count, before = len(places.shape), places.axes[0] if places.adjacent else 0
    return [
        *range(count, count + before),
        *range(count),
        *range(count + before, count + rank - len(places.axes)),
    ]


def _index(s: Site) -> str:
    places, rank = _places(s), len(s.shape("self"))
    if not places.axes:
        return s.tensor("self")
    if len(places.axes) == 1:
        return s.b.op("Gather", s.tensor("self"), places.values[0], axis=places.axes[0])
    turned = s.b.transpose(s.tensor("self"), _in_front(places, rank))
    return s.b.transpose(s.b.op("GatherND", turned, _joined(s, places)), _behind(places, rank))


def _index_put(s: Site) -> str:
    shape, dtype = s.shape("self"), s.output().dtype
    (*others, last) = s.optional_refs("indices")
    if last is not None and s.type_of(last).dtype == "bool" and s.b.constant_value(s.held(last).name) is None:
        mask, kind = s.held(last), s.type_of(last)
        if any(others) or s.flag("accumulate") or any(dim != 1 for dim in s.shape("values")):
            raise s.refuse("a mask chooses elements, whose number depends on the values in the batch")
        lead: Shape = (*([1] * len(others)), *kind.shape, *([1] * (len(shape) - len(others) - len(kind.shape))))
        wide = s.b.reshape(s.b.expand(mask, kind.shape), lead)
        value = s.operand("values", dtype)
        return s.b.op("Where", wide, s.b.reshape(value.name, ()) if value.shape else value.name, s.tensor("self"))
    places, rank = _places(s), len(shape)
    order = _in_front(places, rank)
    turned = s.b.transpose(s.tensor("self"), order)
    rest = tuple(shape[axis] for axis in order[len(places.axes) :])
    placed: Shape = (*places.shape, *rest)
    behind = _behind(places, rank)
    values = s.b.op("Expand", s.operand("values", dtype).name, s.b.sizes(tuple(placed[axis] for axis in behind)))
    in_front = s.b.transpose(values, [behind.index(axis) for axis in range(len(behind))])
    reduction = "add" if s.flag("accumulate") else "none"
    written = s.b.op("ScatterND", turned, _joined(s, places), in_front, reduction=reduction)
    return s.b.transpose(written, [order.index(axis) for axis in range(rank)])


def _axis(s: Site) -> int:
    return s.integer("dim") % max(len(s.shape("self")), 1)


def _index_select(s: Site) -> str:
    return s.b.op("Gather", s.tensor("self"), s.tensor("index"), axis=_axis(s))


def _index_write(s: Site, source: str, reduction: str) -> str:
    axis, rank = _axis(s), len(s.shape("self"))
    order = [axis, *(other for other in range(rank) if other != axis)]
    places = s.b.op("Unsqueeze", s.b.cast(s.tensor("index"), s.dtype("index"), "int64"), s.b.int64s([-1]))
    turned = s.b.transpose(s.tensor("self"), order)
    written = s.b.op("ScatterND", turned, places, s.b.transpose(source, order), reduction=reduction)
    return s.b.transpose(written, [order.index(other) for other in range(rank)])


def _index_add(s: Site) -> str:
    source, dtype = s.tensor("source"), s.output().dtype
    if s.real("alpha") != 1:
        source = s.b.op("Mul", source, s.b.scalar(s.real("alpha"), dtype))
    return _index_write(s, source, "add")


def _index_copy(s: Site) -> str:
    return _index_write(s, s.tensor("source"), "none")


def _index_fill(s: Site) -> str:
    shape, axis = s.shape("self"), _axis(s)
    target = s.b.sizes((*shape[:axis], *s.shape("index"), *shape[axis + 1 :]))
    return _index_write(s, s.b.op("Expand", s.operand("value", s.output().dtype).name, target), "none")


def _gather(s: Site) -> str:
    return s.b.op("GatherElements", s.tensor("self"), s.tensor("index"), axis=_axis(s))


_SCATTERS = {"sum": "add", "add": "add", "prod": "mul", "multiply": "mul", "amax": "max", "amin": "min"}


def _scatter(s: Site) -> str:
    shape, dtype, reduction = s.shape("index"), s.output().dtype, "none"
    if "scatter_add" in s.operator:
        reduction = "add"
    elif "reduce" in s.argument_names:
        if s.text("reduce") not in _SCATTERS or ("include_self" in s.argument_names and not s.flag("include_self")):
            raise s.refuse(f"reduce={s.text('reduce')!r}, or without what was there before")
        reduction = _SCATTERS[s.text("reduce")]
    if "src" in s.argument_names:
        source = s.tensor("src")
        if s.shape("src") != shape:
            zeros = s.b.int64s([0] * len(shape))
            source = s.b.op("Slice", source, zeros, s.b.sizes(shape), s.b.int64s(range(len(shape))))
    else:
        source = s.b.op("Expand", s.operand("value", dtype).name, s.b.sizes(shape))
    return s.b.op("ScatterElements", s.tensor("self"), s.tensor("index"), source, axis=_axis(s), reduction=reduction)


def _embedding(s: Site) -> str:
    weight, indices = s.tensor("weight"), s.tensor("indices")
    stored = s.b.inputs_of(weight, "DequantizeLinear")
    if stored is None:
        return s.b.op("Gather", weight, indices, axis=0)
    # Only the rows that are read become floats.
    numbers, scales = (s.b.op("Gather", name, indices, axis=0) for name in stored)
    return s.b.op("Mul", s.b.cast(numbers, "int8", "float32"), s.b.op("Unsqueeze", scales, s.b.int64s([-1])))


def _embedding_backward(s: Site) -> str:
    if s.flag("scale_grad_by_freq"):
        raise s.refuse("scale_grad_by_freq makes an example's gradient depend on the others in its batch")
    rows, width = s.fixed(s.output().shape)
    indices, gradient = s.tensor("indices"), s.tensor("grad_output")
    flat = s.b.op("Reshape", indices, s.b.int64s([-1, 1]))
    values = s.b.op("Reshape", gradient, s.b.int64s([-1, width]))
    padding = s.integer("padding_idx")
    if padding >= 0:
        skipped = s.b.op("Equal", flat, s.b.scalar(padding, s.dtype("indices")))
        values = s.b.op("Where", skipped, s.b.scalar(0, s.output().dtype), values)
    zeros = s.b.op("Expand", s.b.scalar(0, s.output().dtype), s.b.int64s([rows, width]))
    return s.b.op("ScatterND", zeros, s.b.cast(flat, s.dtype("indices"), "int64"), values, reduction="add")


def _ranked(s: Site, count: int, axis: int, largest: bool) -> tuple[str, str]:
    """The largest or smallest elements along an axis in order, and where they were; ties come as they lie."""
    values, places = s.b.op_many(
        "TopK", 2, s.tensor("self"), s.b.int64s([count]), axis=axis, largest=int(largest), sorted=1
    )
    return values, places


def _topk(s: Site) -> tuple[Result | None, ...]:
    return _ranked(s, s.integer("k"), _axis(s), s.flag("largest"))


def _sort(s: Site) -> tuple[Result | None, ...]:
    (count,) = s.fixed((s.shape("self")[_axis(s)],))
    return _ranked(s, count, _axis(s), s.flag("descending"))


def _kth(s: Site) -> tuple[Result | None, ...]:
    """The k-th smallest element along an axis; the median is the middle one, the lower of two."""
    axis = _axis(s)
    (size,) = s.fixed((s.shape("self")[axis],))
    count = s.integer("k") if "k" in s.argument_names else (size + 1) // 2
    last = s.b.int64s([count - 1]) if s.flag("keepdim") else s.b.scalar(count - 1, "int64")
    return tuple(s.b.op("Gather", found, last, axis=axis) for found in _ranked(s, count, axis, False))


def _select_scatter(s: Site) -> str:
    axis = _axis(s)
    (size,) = s.fixed((s.shape("self")[axis],))
    shape = s.shape("self")
    row = s.b.reshape(s.tensor("src"), (*shape[:axis], 1, *shape[axis + 1 :]))
    return _replaced(s, row, axis, s.integer("index") % size, 1, size)


def _slice_scatter(s: Site) -> str:
    axis, shape = _axis(s), s.shape("self")
    if s.shape("src") == shape:
        return s.tensor("src")
    (size,) = s.fixed((shape[axis],))
    start = s.integer("start") if s.has("start") else 0
    start = min(max(start + size, 0) if start < 0 else start, size)
    step = s.integer("step")
    (count,) = s.fixed((s.shape("src")[axis],))
    if step == 1:
        return _replaced(s, s.tensor("src"), axis, start, count, size)
    chosen = np.arange(size)
    chosen[start + step * np.arange(count)] = size + np.arange(count)
    both = s.b.op("Concat", s.tensor("self"), s.tensor("src"), axis=axis)
    return s.b.op("Gather", both, s.b.constant(chosen), axis=axis)


def _replaced(s: Site, source: str, axis: int, start: int, count: int, size: int) -> str:
    """The tensor with a part along an axis replaced."""
    parts = [source]
    if start > 0:
        parts.insert(0, s.b.op("Slice", s.tensor("self"), s.b.int64s([0]), s.b.int64s([start]), s.b.int64s([axis])))
    if start + count < size:
        first, last = s.b.int64s([start + count]), s.b.int64s([size])
        parts.append(s.b.op("Slice", s.tensor("self"), first, last, s.b.int64s([axis])))
    return s.b.op("Concat", *parts, axis=axis) if len(parts) > 1 else source


RULES: dict[str, Rule] = {
    "aten.index.Tensor": _index,
    "aten._unsafe_index.Tensor": _index,
    "aten.index_put.default": _index_put,
    "aten._unsafe_index_put.default": _index_put,
    "aten.index_select.default": _index_select,
    "aten.index_add.default": _index_add,
    "aten.index_copy.default": _index_copy,
    "aten.index_fill.int_Scalar": _index_fill,
    "aten.index_fill.int_Tensor": _index_fill,
    "aten.gather.default": _gather,
    "aten.scatter.src": _scatter,
    "aten.scatter.value": _scatter,
    "aten.scatter.reduce": _scatter,
    "aten.scatter_add.default": _scatter,
    "aten.scatter_reduce.two": _scatter,
    "aten.select_scatter.default": _select_scatter,
    "aten.slice_scatter.default": _slice_scatter,
    "aten.embedding.default": _embedding,
    "aten.embedding_dense_backward.default": _embedding_backward,
    "aten.topk.default": _topk,
    "aten.sort.default": _sort,
    "aten.sort.stable": _sort,
    "aten.kthvalue.default": _kth,
    "aten.median.dim": _kth,
}
