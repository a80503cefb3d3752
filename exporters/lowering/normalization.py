"""Rules for layer and group normalisation and their gradients, from primitives that every runtime has."""

from __future__ import annotations

import math

from exporters.graph import BatchSize, Shape
from exporters.lowering.builder import Builder
from exporters.lowering.site import Result, Rule, Site


def _normalise(b: Builder, rows: str, eps: float) -> tuple[str, str, str]:
    """Normalise over the last axis: the result, and mean and reciprocal deviation with that axis of size one."""
    last = b.int64s([-1])
    mean = b.op("ReduceMean", rows, last, keepdims=1)
    centred = b.op("Sub", rows, mean)
    variance = b.op("ReduceMean", b.op("Mul", centred, centred), last, keepdims=1)
    reciprocal = b.op("Reciprocal", b.op("Sqrt", b.op("Add", variance, b.scalar(eps, "float32"))))
    return b.op("Mul", centred, reciprocal), mean, reciprocal


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


def _group_shapes(s: Site, shape: Shape) -> tuple[Shape, Shape, Shape]:
    """Shapes of the input's groups as rows, of the statistics, and of a weight to broadcast."""
    batch, *rest = shape
    if not isinstance(batch, BatchSize):
        raise s.refuse("its input has no batch dimension")
    groups, elements = s.integer("group"), math.prod(s.fixed(tuple(rest)))
    affine = (s.integer("C"), *([1] * (len(rest) - 1)))
    return (batch, groups, elements // groups), (batch, groups, 1), affine


def _group_norm(s: Site) -> tuple[Result | None, ...]:
    shape = s.shape("input")
    rows, _, affine = _group_shapes(s, shape)
    y, mean, reciprocal = _normalise(s.b, s.b.reshape(s.tensor("input"), rows), s.real("eps"))
    y = s.b.reshape(y, shape)
    if s.has("weight"):
        y = s.b.op("Mul", y, s.b.reshape(s.tensor("weight"), affine))
    if s.has("bias"):
        y = s.b.op("Add", y, s.b.reshape(s.tensor("bias"), affine))
    statistics = s.output(1).shape
    return y, s.b.reshape(mean, statistics), s.b.reshape(reciprocal, statistics)


def _group_norm_backward(s: Site) -> tuple[Result | None, ...]:
    shape = s.shape("input")
    rows, one, affine = _group_shapes(s, shape)
    gradient, scaled = s.tensor("grad_out"), s.tensor("grad_out")
    if s.has("weight"):
        scaled = s.b.op("Mul", gradient, s.b.reshape(s.tensor("weight"), affine))
    found, normal = _normalise_backward(
        s.b,
        s.b.reshape(s.tensor("input"), rows),
        s.b.reshape(scaled, rows),
        s.b.reshape(s.tensor("mean"), one),
        s.b.reshape(s.tensor("rstd"), one),
    )
    wants_input, wants_weight, wants_bias = s.flags("output_mask")
    weight = bias = None
    over = s.b.int64s([axis for axis in range(len(shape)) if axis != 1])
    if wants_weight:
        weight = s.b.op("ReduceSum", s.b.op("Mul", gradient, s.b.reshape(normal, shape)), over, keepdims=0)
    if wants_bias:
        bias = s.b.op("ReduceSum", gradient, over, keepdims=0)
    return s.b.reshape(found, shape) if wants_input else None, weight, bias


RULES: dict[str, Rule] = {
    "aten.native_layer_norm.default": _layer_norm,
    "aten.native_layer_norm_backward.default": _layer_norm_backward,
    "aten.native_group_norm.default": _group_norm,
    "aten.native_group_norm_backward.default": _group_norm_backward,
}
