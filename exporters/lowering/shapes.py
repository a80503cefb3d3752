"""Rules for operators that move, cut, join or make elements without computing on them."""

from __future__ import annotations

from collections.abc import Callable

from exporters.graph import Shape
from exporters.lowering.builder import Tensor
from exporters.lowering.reductions import scaled
from exporters.lowering.site import Result, Rule, Site

_END = 2**63 - 1


def _moved(rule: Callable[[Site], Result]) -> Rule:
    """Elements moved; of a tensor of one value there is nothing to move."""

    def moved(s: Site) -> Result:
        return s.lazy("self") if s.lazy("self").shape == () else rule(s)

    return moved


def _view(s: Site) -> str:
    """Any operator that only renames positions is a reshape to its output's shape."""
    shape = s.output().shape
    return s.tensor("self") if shape == s.shape("self") else s.b.reshape(s.tensor("self"), shape)


def _permute(s: Site) -> str:
    rank = len(s.shape("self"))
    return s.b.transpose(s.tensor("self"), [axis % rank for axis in s.ints("dims")])


def _transpose(s: Site) -> str:
    order = list(range(len(s.shape("self"))))
    one, two = s.integer("dim0"), s.integer("dim1")
    order[one], order[two] = order[two], order[one]
    return s.b.transpose(s.tensor("self"), order)


def _t(s: Site) -> str:
    return s.b.transpose(s.tensor("self"), list(range(len(s.shape("self"))))[::-1])


def _expand(s: Site) -> Tensor:
    # Not done before somebody needs the full shape: ONNX's elementwise operators broadcast by themselves.
    return s.lazy("self")


def _slice(s: Site) -> str:
    axis = s.integer("dim") % len(s.shape("self"))
    start = s.integer("start") if s.has("start") else 0
    end = s.integer("end") if s.has("end") else _END
    if s.output().shape == s.shape("self") and s.integer("step") == 1:
        return s.tensor("self")
    return s.b.op(
        "Slice",
        s.tensor("self"),
        *(s.b.int64s([value]) for value in (start, end, axis, s.integer("step"))),
    )


def _pad_back(s: Site, name: str, axis: int, start: int, kept: int) -> str:
    """Put a gradient where its slice was cut from; everything else is zero."""
    shape = s.output().shape
    size = shape[axis]
    if not isinstance(size, int):
        raise s.refuse("it cuts the batch dimension")
    before, after = [0] * len(shape), [0] * len(shape)
    before[axis], after[axis] = start, size - start - kept
    return s.b.op("Pad", name, s.b.int64s(before + after))


def _slice_backward(s: Site) -> str:
    axis = s.integer("dim") % len(s.output().shape)
    shape, size = s.shape("grad_output"), s.output().shape[axis]
    kept, step, start = shape[axis], s.integer("step"), s.integer("start")
    if not isinstance(kept, int) or not isinstance(size, int):
        raise s.refuse("its slice cuts the batch dimension")
    start = max(start + size, 0) if start < 0 else start
    gradient = s.tensor("grad_output")
    if step != 1:
        # Each element is followed by step - 1 zeros; those after the last may reach past the end.
        apart = s.b.reshape(gradient, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
        gaps = [0] * (2 * len(shape) + 2)
        gaps[len(shape) + 1 + axis + 1] = step - 1
        spread: Shape = (*shape[:axis], kept * step, *shape[axis + 1 :])
        gradient = s.b.reshape(s.b.op("Pad", apart, s.b.int64s(gaps)), spread)
        kept *= step
    return _pad_back(s, gradient, axis, start, kept)


def _select(s: Site) -> str:
    axis = s.integer("dim") % len(s.shape("self"))
    return s.b.op("Gather", s.tensor("self"), s.b.scalar(s.integer("index"), "int64"), axis=axis)


def _select_backward(s: Site) -> str:
    shape = s.output().shape
    axis = s.integer("dim") % len(shape)
    size, index = shape[axis], s.integer("index")
    if not isinstance(size, int):
        raise s.refuse("it selects from the batch dimension")
    one: Shape = (*shape[:axis], 1, *shape[axis + 1 :])
    return _pad_back(s, s.b.reshape(s.tensor("grad_output"), one), axis, index % size, 1)


def _cat(s: Site) -> str:
    return s.b.op("Concat", *s.tensors("tensors"), axis=s.integer("dim") % len(s.output().shape))


def _stack(s: Site) -> str:
    shape = s.output().shape
    axis = s.integer("dim") % len(shape)
    names = s.tensors("tensors")
    if axis < len(shape) - 1:
        # Joined along the dimension that follows, and then taken apart: no reshape for each.
        return s.b.reshape(s.b.op("Concat", *names, axis=axis), shape)
    one: Shape = (*shape[:axis], 1)
    return s.b.op("Concat", *(s.b.reshape(name, one) for name in names), axis=axis)


def _split(s: Site) -> tuple[Result | None, ...]:
    axis = s.integer("dim") % len(s.shape("self"))
    size = s.shape("self")[axis]
    if not isinstance(size, int):
        raise s.refuse("it splits the batch dimension")
    given = s.ints("split_size") if s.has("split_size") else s.ints("split_sizes")
    if s.has("split_size"):
        given = tuple(min(given[0], size - start) for start in range(0, size, given[0]))
    return s.b.op_many("Split", len(given), s.tensor("self"), s.b.int64s(given), axis=axis)


def _unbind(s: Site) -> tuple[Result | None, ...]:
    shape = s.shape("self")
    axis = s.integer("dim") % len(shape)
    size = shape[axis]
    if not isinstance(size, int):
        raise s.refuse("it splits the batch dimension")
    if s.lazy("self").shape == ():
        return (s.lazy("self"),) * size
    if size > 1 and axis < len(shape) - 1:
        # Split where the dimension that follows has been joined to it: no reshape for each.
        following = shape[axis + 1]
        both = following * size if isinstance(following, int) else scaled(following, size)
        joined = s.b.reshape(s.tensor("self"), (*shape[:axis], both, *shape[axis + 2 :]))
        return s.b.op_many("Split", size, joined, axis=axis, num_outputs=size)
    return tuple(s.b.op("Gather", s.tensor("self"), s.b.scalar(index, "int64"), axis=axis) for index in range(size))


def _pad(s: Site) -> str:
    pads, rank = s.ints("pad"), len(s.shape("self"))
    before, after = [0] * rank, [0] * rank
    for position in range(len(pads) // 2):
        before[rank - 1 - position], after[rank - 1 - position] = pads[2 * position], pads[2 * position + 1]
    value = s.b.scalar(s.real("value"), s.output().dtype)
    return s.b.op("Pad", s.tensor("self"), s.b.int64s(before + after), value)


def _flip(s: Site) -> str:
    axes = s.ints("dims")
    minus = [-1] * len(axes)
    return s.b.op(
        "Slice",
        s.tensor("self"),
        s.b.int64s(minus),
        s.b.int64s([-_END] * len(axes)),
        s.b.int64s(axes),
        s.b.int64s(minus),
    )


def _repeat(s: Site) -> str:
    repeats, shape = s.dims("repeats"), s.shape("self")
    padded: Shape = (*([1] * (len(repeats) - len(shape))), *shape)
    name = s.tensor("self") if padded == shape else s.b.reshape(s.tensor("self"), padded)
    return s.b.op("Tile", name, s.b.sizes(repeats))


def _fill(value: float | None, name: str = "fill_value") -> Rule:
    """A tensor of one value is that value until somebody needs the full shape."""

    def rule(s: Site) -> Tensor:
        dtype = s.output().dtype
        return s.operand(name, dtype) if value is None else Tensor(s.b.scalar(value, dtype), (), dtype)

    return rule


def _arange(s: Site) -> str:
    dtype = s.output().dtype
    start = s.operand("start", dtype).name if s.has("start") else s.b.scalar(0, dtype)
    step = s.operand("step", dtype).name if s.has("step") else s.b.scalar(1, dtype)
    return s.b.op("Range", start, s.operand("end", dtype).name, step)


_VIEWS = ("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten")

_EMPTY = (
    "empty.memory_format",
    "empty_like.default",
    "empty_strided.default",
    "empty_permuted.default",
    "new_empty.default",
    "new_empty_strided.default",
)

RULES: dict[str, Rule] = {
    **{f"aten.{name}.default": _moved(_view) for name in _VIEWS},
    "aten.squeeze.dim": _view,
    "aten.squeeze.dims": _view,
    "aten.permute.default": _moved(_permute),
    "aten.transpose.int": _moved(_transpose),
    "aten.t.default": _moved(_t),
    "aten.expand.default": _expand,
    "aten.slice.Tensor": _slice,
    "aten.slice_backward.default": _slice_backward,
    "aten.select.int": _moved(_select),
    "aten.select_backward.default": _select_backward,
    "aten.cat.default": _cat,
    "aten.stack.default": _stack,
    "aten.split.Tensor": _split,
    "aten.unsafe_split.Tensor": _split,
    "aten.split_with_sizes.default": _split,
    "aten.unbind.int": _unbind,
    "aten.constant_pad_nd.default": _pad,
    "aten.flip.default": _flip,
    "aten.repeat.default": _repeat,
    "aten.full.default": _fill(None),
    "aten.full_like.default": _fill(None),
    "aten.new_full.default": _fill(None),
    "aten.fill.Scalar": _fill(None, "value"),
    "aten.scalar_tensor.default": _fill(None, "s"),
    # What memory holds that nothing was written to matters to no one.
    **{f"aten.{name}": _fill(0) for name in _EMPTY},
    "aten.zeros.default": _fill(0),
    "aten.zeros_like.default": _fill(0),
    "aten.new_zeros.default": _fill(0),
    "aten.zero.default": _fill(0),
    "aten.ones.default": _fill(1),
    "aten.ones_like.default": _fill(1),
    "aten.new_ones.default": _fill(1),
    "aten.arange.default": _arange,
    "aten.arange.start": _arange,
    "aten.arange.start_step": _arange,
}
