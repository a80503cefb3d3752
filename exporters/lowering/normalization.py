"""Rules for layer, group and batch normalisation and their gradients, from primitives that every runtime has.

Not by the operators that compute statistics too: ONNX Runtime's layer norm loses those up to 1.24 where it follows a
sum, and its batch norm writes them over what it is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from exporters.graph import BatchSize, Call, Dim, Graph, Ref, Shape
from exporters.lowering.builder import Builder, Tensor
from exporters.lowering.reductions import scaled
from exporters.lowering.site import Result, Rule, Site


def _affine(b: Builder, x: str, channels: Dim, scale: str, shift: str) -> str:
    """Each channel of [batch, channels, positions] times its scale plus its shift, in one pass."""
    zero, one = (b.op("Expand", b.constant(np.array([value], np.float32)), b.sizes((channels,))) for value in (0, 1))
    return b.op("BatchNormalization", x, scale, shift, zero, one, epsilon=0.0)


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


# From this length on, products are summed by a matrix product, which writes none of them to memory.
_LONG = 512


def _dot(b: Builder, x: str, y: str, rows: Shape) -> str:
    """Sums of products over the last axis, which becomes one; the axis before it is one."""
    x, y = b.reshape(x, rows), b.reshape(y, rows)
    if isinstance(rows[-1], int) and rows[-1] < _LONG:
        return b.op("ReduceSum", b.op("Mul", x, y), b.int64s([3]), keepdims=1)
    return b.op("MatMul", x, b.transpose(y, [0, 1, 3, 2]))


@dataclass(frozen=True, slots=True)
class _Groups:
    """The sizes of a group norm's input, and that less the mean of each group, as `rows`."""

    batch: BatchSize
    groups: int
    channels: int
    positions: int
    centred: str

    @property
    def elements(self) -> int:
        """How many numbers there are in a group."""
        return self.channels // self.groups * self.positions

    @property
    def rows(self) -> Shape:
        """A row for each group."""
        return self.batch, self.groups, 1, self.elements

    @property
    def maps(self) -> Shape:
        """A row for each channel."""
        return self.batch, self.channels, 1, self.positions

    @property
    def one(self) -> Shape:
        """One number for each group of each example."""
        return self.batch, self.groups, 1

    @property
    def each(self) -> Shape:
        """One number for each channel of each example, by group."""
        return self.batch, self.groups, self.channels // self.groups

    def by_group(self, b: Builder, factors: str) -> str:
        """One number for each channel, by group."""
        return b.reshape(factors, self.each[1:])

    def affine(self, b: Builder, scale: str, shift: str, parts: int) -> str:
        """The centred input, each of that many parts of each example times its scale plus its shift, as `maps`."""
        rows = scaled(self.batch, parts)
        flat = b.reshape(self.centred, (1, rows, self.groups * self.elements // parts))
        return b.reshape(_affine(b, flat, rows, b.reshape(scale, (rows,)), b.reshape(shift, (rows,))), self.maps)


def _groups(s: Site) -> _Groups:
    b, (batch, *rest) = s.b, s.shape("input")
    if not isinstance(batch, BatchSize):
        raise s.refuse("its input has no batch dimension")
    groups, channels = s.integer("group"), s.integer("C")
    positions = math.prod(s.fixed(tuple(rest))) // channels
    # The backward rule finds forward's nodes again, and makes none.
    x = b.reshape(s.tensor("input"), (batch, groups, 1, channels // groups * positions))
    centred = b.op("Sub", x, b.op("ReduceMean", x, b.int64s([3]), keepdims=1))
    found = _Groups(batch, groups, channels, positions, centred)
    b.note(Tensor(centred, found.rows, "float32"))
    return found


def _group_norm(s: Site) -> tuple[Result | None, ...]:
    b, g = s.b, _groups(s)
    # The reciprocal deviation from a sum instead of a mean.
    squares = b.reshape(_dot(b, g.centred, g.centred, g.rows), g.one)
    squares = b.op("Add", squares, b.scalar(s.real("eps") * g.elements, "float32"))
    reciprocal = b.op("Div", b.scalar(math.sqrt(g.elements), "float32"), b.op("Sqrt", squares))
    b.note(Tensor(reciprocal, g.one, "float32"))
    scale = b.op("Mul", reciprocal, g.by_group(b, s.tensor("weight"))) if s.has("weight") else reciprocal
    if s.has("weight") and s.has("bias"):
        y = g.affine(b, scale, b.op("Tile", s.tensor("bias"), b.sizes((g.batch,))), g.channels)
    else:
        each = b.op("Expand", scale, b.sizes(g.each))
        y = b.op("Mul", b.reshape(g.centred, g.maps), b.reshape(each, (g.batch, g.channels, 1, 1)))
        if s.has("bias"):
            y = b.op("Add", y, b.reshape(s.tensor("bias"), (g.channels, 1, 1)))
    x = b.reshape(s.tensor("input"), g.rows)
    mean, statistics = b.op("ReduceMean", x, b.int64s([3]), keepdims=1), s.output(1).shape
    return b.reshape(y, s.shape("input")), b.reshape(mean, statistics), b.reshape(reciprocal, statistics)


def _group_norm_backward(s: Site) -> tuple[Result | None, ...]:
    """By sums over each channel, from which those over groups and over examples follow."""
    b, g = s.b, _groups(s)
    gradient = b.reshape(s.tensor("grad_out"), g.maps)
    reciprocal = b.reshape(s.tensor("rstd"), g.one)
    level = b.reshape(b.op("ReduceSum", gradient, b.int64s([3]), keepdims=1), g.each)
    slope = b.op("Mul", b.reshape(_dot(b, gradient, g.centred, g.maps), g.each), reciprocal)
    wants_input, wants_weight, wants_bias = s.flags("output_mask")
    channels: Shape = (g.channels,)
    weight = bias = found = None
    if wants_weight:
        weight = b.reshape(b.op("ReduceSum", slope, b.int64s([0]), keepdims=0), channels)
    if wants_bias:
        bias = b.reshape(b.op("ReduceSum", level, b.int64s([0]), keepdims=0), channels)
    if wants_input:
        scale = b.op("Expand", reciprocal, b.sizes(g.each))
        if s.has("weight"):
            factors = g.by_group(b, s.tensor("weight"))
            scale, level, slope = (b.op("Mul", value, factors) for value in (reciprocal, level, slope))
        share = b.op("Mul", reciprocal, b.scalar(1 / g.elements, "float32"))
        level = b.op("Mul", b.op("ReduceSum", level, b.int64s([2]), keepdims=1), share)
        slope = b.op("Mul", b.op("ReduceSum", slope, b.int64s([2]), keepdims=1), b.op("Mul", share, reciprocal))
        straight = b.op("Mul", gradient, b.reshape(scale, (g.batch, g.channels, 1, 1)))
        found = b.reshape(b.op("Sub", straight, g.affine(b, slope, level, g.groups)), s.shape("input"))
    return found, weight, bias


@dataclass(frozen=True, slots=True)
class _Channels:
    """A batch norm's input as [batch, channels, positions], and the number of values of each channel."""

    shape: Shape
    count: str

    @property
    def channels(self) -> Dim:
        """How many there are; an instance norm has those of every example."""
        return self.shape[1]

    def dot(self, b: Builder, x: str, y: str) -> str:
        """For each channel the sum of products."""
        batch, channels, inner = self.shape
        if isinstance(inner, int) and inner < _LONG:
            return b.op("ReduceSum", b.op("Mul", x, y), b.int64s([0, 2]), keepdims=0)
        found = _dot(b, x, y, (batch, channels, 1, inner))
        return b.op("ReduceSum", found, b.int64s([0, 2, 3]), keepdims=0)

    def centred(self, b: Builder, x: str, mean: str) -> str:
        """The input less the mean of each channel."""
        return b.op("Sub", b.reshape(x, self.shape), b.reshape(mean, (self.channels, 1)))


def _channels(s: Site) -> _Channels:
    batch, channels, *rest = s.shape("input")
    inner = math.prod(s.fixed(tuple(rest)))
    count = scaled(batch, inner) if isinstance(batch, BatchSize) else batch * inner
    return _Channels((batch, channels, inner), s.b.size(count, "float32"))


def _running(s: Site) -> tuple[str, str]:
    """The running mean and variance. A federation's noise can make a variance negative."""
    return s.tensor("running_mean"), s.b.op("Max", s.tensor("running_var"), s.b.scalar(0, "float32"))


def _batch_norm(s: Site) -> tuple[Result | None, ...]:
    """By the statistics of the batch in training, with new running statistics where it keeps any; else by those."""
    b, x, c, training = s.b, s.tensor("input"), _channels(s), s.flag("training")
    if training:
        mean = b.op("ReduceMean", b.reshape(x, c.shape), b.int64s([0, 2]), keepdims=0)
        centred = c.centred(b, x, mean)
        variance = b.op("Div", c.dot(b, centred, centred), c.count)
    else:
        mean, variance = _running(s)
        centred = c.centred(b, x, mean)
    reciprocal = _reciprocal_deviation(b, variance, s.real("eps"))
    scale = b.op("Mul", reciprocal, s.tensor("weight")) if s.has("weight") else reciprocal
    shift = s.tensor("bias") if s.has("bias") else b.op("Expand", b.scalar(0, "float32"), b.sizes((c.channels,)))
    y = b.reshape(_affine(b, centred, c.channels, scale, shift), s.shape("input"))
    if not training:
        return y, None, None
    if "functional" not in s.operator:
        return y, mean, reciprocal
    # Running variances are unbiased.
    unbiased = b.op("Mul", variance, b.op("Div", c.count, b.op("Sub", c.count, b.scalar(1, "float32"))))
    momentum = b.scalar(s.real("momentum"), "float32")

    def moved(running: str, seen: str) -> str:
        return b.op("Add", running, b.op("Mul", b.op("Sub", seen, running), momentum))

    return y, mean, reciprocal, moved(s.tensor("running_mean"), mean), moved(s.tensor("running_var"), unbiased)


def _batch_norm_backward(s: Site) -> tuple[Result | None, ...]:
    b, c, training = s.b, _channels(s), s.flag("train")
    gradient = b.reshape(s.tensor("grad_out"), c.shape)
    if training:
        mean, reciprocal = s.tensor("save_mean"), s.tensor("save_invstd")
    else:
        mean, variance = _running(s)
        reciprocal = _reciprocal_deviation(b, variance, s.real("eps"))
    wants_input, wants_weight, wants_bias = s.flags("output_mask")
    centred = c.centred(b, s.tensor("input"), mean)
    level = b.op("ReduceSum", gradient, b.int64s([0, 2]), keepdims=0)
    slope = b.op("Mul", c.dot(b, gradient, centred), reciprocal)
    found = None
    if wants_input:
        scale = b.op("Mul", reciprocal, s.tensor("weight")) if s.has("weight") else reciprocal
        found = b.op("Mul", gradient, b.reshape(scale, (c.channels, 1)))
        if training:
            share = b.op("Div", scale, c.count)
            slopes = b.op("Mul", b.op("Mul", slope, reciprocal), share)
            found = b.op("Sub", found, _affine(b, centred, c.channels, slopes, b.op("Mul", level, share)))
        found = b.reshape(found, s.shape("input"))
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
