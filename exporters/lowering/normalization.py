"""Rules for layer, group and batch normalisation and their gradients, from primitives that every runtime has."""

from __future__ import annotations

import math
from dataclasses import dataclass

from exporters.graph import BatchSize, Call, Graph, Ref, Shape
from exporters.lowering.builder import Builder
from exporters.lowering.site import Result, Rule, Site


def _normalise(b: Builder, rows: str, eps: float) -> tuple[str, str, str]:
    """Normalise over the last axis: the result, and mean and reciprocal deviation with that axis of size one."""
    last = b.int64s([-1])
    mean = b.op("ReduceMean", rows, last, keepdims=1)
    centred = b.op("Sub", rows, mean)
    variance = b.op("ReduceMean", b.op("Mul", centred, centred), last, keepdims=1)
    reciprocal = _reciprocal_deviation(b, variance, eps)
    return b.op("Mul", centred, reciprocal), mean, reciprocal


def _reciprocal_deviation(b: Builder, variance: str, eps: float) -> str:
    return b.op("Reciprocal", b.op("Sqrt", b.op("Add", variance, b.scalar(eps, "float32"))))


def _normalise_backward(b: Builder, rows: str, gradient: str, mean: str, reciprocal: str) -> tuple[str, str]:
    """The gradient of `_normalise`, and the normalised rows."""
    last = b.int64s([-1])
    normal = b.op("Mul", b.op("Sub", rows, mean), reciprocal)
    level = b.op("ReduceMean", gradient, last, keepdims=1)
    slope = b.op("ReduceMean", b.op("Mul", gradient, normal), last, keepdims=1)
    rest = b.op("Sub", b.op("Sub", gradient, level), b.op("Mul", normal, slope))
    return b.op("Mul", rest, reciprocal), normal


def _rows(shape: Shape, normalised: int, site: Site) -> Shape:
    return (*shape[: len(shape) - normalised], math.prod(site.fixed(shape[len(shape) - normalised :])))


def _layer_norm(s: Site) -> tuple[Result | None, ...]:
    shape, count = s.shape("input"), len(s.ints("normalized_shape"))
    rows = _rows(shape, count, s)
    x = s.tensor("input") if rows == shape else s.b.reshape(s.tensor("input"), rows)
    y, mean, reciprocal = _normalise(s.b, x, s.real("eps"))
    y = y if rows == shape else s.b.reshape(y, shape)
    if s.has("weight"):
        y = s.b.op("Mul", y, s.tensor("weight"))
    if s.has("bias"):
        y = s.b.op("Add", y, s.tensor("bias"))
    # torch gives the statistics one axis of size one for every normalised one.
    statistics = s.output(1).shape
    if len(statistics) != len(rows):
        mean, reciprocal = s.b.reshape(mean, statistics), s.b.reshape(reciprocal, statistics)
    return y, mean, reciprocal


def _layer_norm_backward(s: Site) -> tuple[Result | None, ...]:
    shape, count = s.shape("input"), len(s.ints("normalized_shape"))
    rows, lead = _rows(shape, count, s), len(shape) - count
    gradient, scaled = s.tensor("grad_out"), s.tensor("grad_out")
    if s.has("weight"):
        scaled = s.b.op("Mul", gradient, s.tensor("weight"))

    def flat(name: str, target: Shape) -> str:
        return name if rows == shape else s.b.reshape(name, target)

    one: Shape = (*rows[:-1], 1)
    found, normal = _normalise_backward(
        s.b,
        flat(s.tensor("input"), rows),
        flat(scaled, rows),
        flat(s.tensor("mean"), one),
        flat(s.tensor("rstd"), one),
    )
    wants_input, wants_weight, wants_bias = s.flags("output_mask")
    weight = bias = None
    over = s.b.int64s(range(lead))
    if wants_weight:
        weight = s.b.op("ReduceSum", s.b.op("Mul", gradient, flat(normal, shape)), over, keepdims=0)
    if wants_bias:
        bias = s.b.op("ReduceSum", gradient, over, keepdims=0)
    return flat(found, shape) if wants_input else None, weight, bias


@dataclass(frozen=True, slots=True)
class _Groups:
    """A group norm's input as [batch, groups, channels of a group, positions], and what it is normalised by.

    Scale and shift are one number for each channel of each example, so that they cost one pass over the input each.
    """

    shape: Shape
    one: Shape
    per_channel: Shape
    elements: int
    centred: str


def _groups(s: Site) -> _Groups:
    batch, *rest = s.shape("input")
    if not isinstance(batch, BatchSize):
        raise s.refuse("its input has no batch dimension")
    groups, channels, elements = s.integer("group"), s.integer("C"), math.prod(s.fixed(tuple(rest)))
    within = channels // groups
    shape: Shape = (batch, groups, within, elements // channels)
    x = s.b.reshape(s.tensor("input"), shape)
    # The backward rule finds forward's nodes again, and makes none.
    centred = s.b.op("Sub", x, s.b.op("ReduceMean", x, s.b.int64s([2, 3]), keepdims=1))
    return _Groups(shape, (batch, groups, 1, 1), (groups, within, 1), elements // groups, centred)


def _group_norm(s: Site) -> tuple[Result | None, ...]:
    b, g = s.b, _groups(s)
    variance = b.op("ReduceMean", b.op("Mul", g.centred, g.centred), b.int64s([2, 3]), keepdims=1)
    reciprocal = _reciprocal_deviation(b, variance, s.real("eps"))
    scale = b.op("Mul", reciprocal, b.reshape(s.tensor("weight"), g.per_channel)) if s.has("weight") else reciprocal
    y = b.op("Mul", g.centred, scale)
    if s.has("bias"):
        y = b.op("Add", y, b.reshape(s.tensor("bias"), g.per_channel))
    mean = b.op("ReduceMean", b.reshape(s.tensor("input"), g.shape), b.int64s([2, 3]), keepdims=1)
    statistics = s.output(1).shape
    return b.reshape(y, s.shape("input")), b.reshape(mean, statistics), b.reshape(reciprocal, statistics)


def _group_norm_backward(s: Site) -> tuple[Result | None, ...]:
    """By sums over each channel, from which those over groups and over examples follow."""
    b, g = s.b, _groups(s)
    gradient = b.reshape(s.tensor("grad_out"), g.shape)
    reciprocal = b.reshape(s.tensor("rstd"), g.one)
    level = b.op("ReduceSum", gradient, b.int64s([3]), keepdims=1)
    slope = b.op("ReduceSum", b.op("Mul", gradient, g.centred), b.int64s([3]), keepdims=1)
    slope = b.op("Mul", slope, reciprocal)
    wants_input, wants_weight, wants_bias = s.flags("output_mask")
    channels: Shape = (s.integer("C"),)
    weight = bias = found = None
    if wants_weight:
        weight = b.reshape(b.op("ReduceSum", slope, b.int64s([0]), keepdims=0), channels)
    if wants_bias:
        bias = b.reshape(b.op("ReduceSum", level, b.int64s([0]), keepdims=0), channels)
    if wants_input:
        scale = reciprocal
        if s.has("weight"):
            factors = b.reshape(s.tensor("weight"), g.per_channel)
            scale, level, slope = (b.op("Mul", value, factors) for value in (scale, level, slope))
        share = b.op("Mul", reciprocal, b.scalar(1 / g.elements, "float32"))
        level = b.op("Mul", b.op("ReduceSum", level, b.int64s([2]), keepdims=1), share)
        slope = b.op("Mul", b.op("ReduceSum", slope, b.int64s([2]), keepdims=1), b.op("Mul", share, reciprocal))
        rest = b.op("Add", b.op("Mul", g.centred, slope), level)
        found = b.reshape(b.op("Sub", b.op("Mul", gradient, scale), rest), s.shape("input"))
    return found, weight, bias


def _channels(s: Site, shape: Shape) -> tuple[str, str, Shape]:
    """Axes that a batch norm reduces, the number of values it then sees, and a shape to broadcast channels with."""
    batch, channels, *rest = shape
    axes = s.b.int64s(axis for axis in range(len(shape)) if axis != 1)
    inner = math.prod(s.fixed(tuple(rest)))
    count = BatchSize(batch.scale * inner, batch.offset * inner) if isinstance(batch, BatchSize) else batch * inner
    return axes, s.b.size(count, "float32"), (channels, *([1] * len(rest)))


def _batch_norm(s: Site) -> tuple[Result | None, ...]:
    """By the statistics of the batch in training, with new running statistics where it keeps any; else by those."""
    b, x = s.b, s.tensor("input")
    axes, count, per_channel = _channels(s, s.shape("input"))
    training = s.flag("training")

    def spread(name: str) -> str:
        return b.reshape(name, per_channel)

    if training:
        mean = b.op("ReduceMean", x, axes, keepdims=0)
        centred = b.op("Sub", x, spread(mean))
        variance = b.op("ReduceMean", b.op("Mul", centred, centred), axes, keepdims=0)
    else:
        # A federation's noise can make a variance negative.
        mean, variance = s.tensor("running_mean"), b.op("Max", s.tensor("running_var"), b.scalar(0, "float32"))
        centred = b.op("Sub", x, spread(mean))
    reciprocal = _reciprocal_deviation(b, variance, s.real("eps"))
    scale = b.op("Mul", reciprocal, s.tensor("weight")) if s.has("weight") else reciprocal
    y = b.op("Mul", centred, spread(scale))
    if s.has("bias"):
        y = b.op("Add", y, spread(s.tensor("bias")))
    if not training:
        return y, None, None
    if "functional" not in s.operator:
        return y, mean, reciprocal
    # Running variances are unbiased.
    unbiased = b.op("Mul", variance, b.op("Div", count, b.op("Sub", count, b.scalar(1, "float32"))))
    momentum = b.scalar(s.real("momentum"), "float32")

    def moved(running: str, seen: str) -> str:
        return b.op("Add", running, b.op("Mul", b.op("Sub", seen, running), momentum))

    return y, mean, reciprocal, moved(s.tensor("running_mean"), mean), moved(s.tensor("running_var"), unbiased)


def _batch_norm_backward(s: Site) -> tuple[Result | None, ...]:
    b, x, gradient = s.b, s.tensor("input"), s.tensor("grad_out")
    axes, count, per_channel = _channels(s, s.shape("input"))

    def spread(name: str) -> str:
        return b.reshape(name, per_channel)

    training = s.flag("train")
    if training:
        mean, reciprocal = s.tensor("save_mean"), s.tensor("save_invstd")
    else:
        mean, variance = s.tensor("running_mean"), b.op("Max", s.tensor("running_var"), b.scalar(0, "float32"))
        reciprocal = _reciprocal_deviation(b, variance, s.real("eps"))
    wants_input, wants_weight, wants_bias = s.flags("output_mask")
    centred = b.op("Sub", x, spread(mean))
    level = b.op("ReduceSum", gradient, axes, keepdims=0)
    slope = b.op("Mul", b.op("ReduceSum", b.op("Mul", gradient, centred), axes, keepdims=0), reciprocal)
    found = None
    if wants_input:
        scale = b.op("Mul", reciprocal, s.tensor("weight")) if s.has("weight") else reciprocal
        rest = gradient
        if training:
            share = b.op("Div", b.op("Mul", slope, reciprocal), count)
            rest = b.op("Sub", gradient, spread(b.op("Div", level, count)))
            rest = b.op("Sub", rest, b.op("Mul", centred, spread(share)))
        found = b.op("Mul", rest, spread(scale))
    return found, slope if wants_weight else None, level if wants_bias else None


def joins_examples(graph: Graph) -> bool:
    """Whether some batch norm normalises by the statistics of the whole batch."""

    def joins(call: Call) -> bool:
        source = call.arguments.get("input")
        if "native_batch_norm" not in call.operator or "backward" in call.operator or not isinstance(source, Ref):
            return False
        # Instance norm is batch norm over one row whose channels are those of every example.
        return call.arguments["training"] is True and isinstance(graph.types[source].shape[0], BatchSize)

    return any(joins(call) for call in graph.calls)


RULES: dict[str, Rule] = {
    "aten.native_batch_norm.default": _batch_norm,
    "aten._native_batch_norm_legit_functional.default": _batch_norm,
    "aten.native_batch_norm_backward.default": _batch_norm_backward,
    "aten.native_layer_norm.default": _layer_norm,
    "aten.native_layer_norm_backward.default": _layer_norm_backward,
    "aten.native_group_norm.default": _group_norm,
    "aten.native_group_norm_backward.default": _group_norm_backward,
}
