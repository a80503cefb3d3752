"""Rules for sums, means, extremes, variances and softmax."""

from __future__ import annotations

import math

from exporters.graph import BatchSize, Dim, Shape
from exporters.lowering.builder import Builder, Tensor
from exporters.lowering.site import Result, Rule, Site


def count(b: Builder, shape: Shape, axes: tuple[int, ...], dtype: str) -> str | float:
    """How many elements a reduction joins: a number, or a 0-D value where it depends on the batch."""
    dims = [shape[axis] for axis in axes]
    fixed = math.prod(dim for dim in dims if isinstance(dim, int))
    symbolic = [dim for dim in dims if isinstance(dim, BatchSize)]
    if not symbolic:
        return float(fixed)
    value = b.size(scaled(symbolic[0], fixed), dtype)
    for dim in symbolic[1:]:
        value = b.op("Mul", value, b.size(dim, dtype))
    return value


def scaled(dim: BatchSize, factor: int) -> Dim:
    """factor * dim."""
    return BatchSize(dim.scale * factor, dim.offset * factor)


def axes_of(s: Site, name: str = "dim") -> tuple[int, ...]:
    """The dimensions a reduction names, counted from the front; none named means all."""
    rank = len(s.shape("self"))
    given = s.ints(name) if name in s.argument_names and s.has(name) else ()
    return tuple(axis % rank for axis in given) if given else tuple(range(rank))


def _reduction(operator: str) -> Rule:
    def rule(s: Site) -> str:
        axes = axes_of(s)
        x = s.b.cast(s.tensor("self"), s.dtype("self"), s.output().dtype)
        if not axes:
            return x
        keep = "keepdim" in s.argument_names and s.flag("keepdim")
        return s.b.op(operator, x, s.b.int64s(axes), keepdims=int(keep))

    return rule


def _arg(operator: str) -> Rule:
    def rule(s: Site) -> str:
        if not s.has("dim"):
            flat = s.b.op("Reshape", s.tensor("self"), s.b.int64s([-1]))
            return s.b.reshape(s.b.op(operator, flat, axis=0, keepdims=0), s.output().shape)
        axis = s.integer("dim") % len(s.shape("self"))
        return s.b.op(operator, s.tensor("self"), axis=axis, keepdims=int(s.flag("keepdim")))

    return rule


def _extreme(operator: str, where: str) -> Rule:
    def rule(s: Site) -> tuple[Result | None, ...]:
        axis, keep = s.integer("dim") % len(s.shape("self")), int(s.flag("keepdim"))
        x = s.tensor("self")
        return s.b.op(operator, x, s.b.int64s([axis]), keepdims=keep), s.b.op(where, x, axis=axis, keepdims=keep)

    return rule


def _any(s: Site) -> str:
    keep = "keepdim" in s.argument_names and s.flag("keepdim")
    numbers = s.b.cast(s.tensor("self"), s.dtype("self"), "int32")
    most = s.b.op("ReduceMax", numbers, s.b.int64s(axes_of(s)), keepdims=int(keep))
    return s.b.cast(most, "int32", "bool")


def _moments(s: Site) -> tuple[str, str]:
    """The variance and the mean."""
    axes, dtype = axes_of(s), s.output().dtype
    correction = s.real("correction") if s.has("correction") else 1.0
    x = s.tensor("self")
    mean = s.b.op("ReduceMean", x, s.b.int64s(axes), keepdims=1)
    centred = s.b.op("Sub", x, mean)
    squares = s.b.op("ReduceSum", s.b.op("Mul", centred, centred), s.b.int64s(axes), keepdims=int(s.flag("keepdim")))
    size = count(s.b, s.shape("self"), axes, dtype)
    if isinstance(size, float):
        divisor = s.b.scalar(max(size - correction, 0.0), dtype)
    else:
        divisor = s.b.op("Sub", size, s.b.scalar(correction, dtype))
    return s.b.op("Div", squares, divisor), s.b.reshape(mean, s.output().shape)


def _var(s: Site) -> str:
    return _moments(s)[0]


def _std_mean(s: Site) -> tuple[Result | None, ...]:
    variance, mean = _moments(s)
    return s.b.op("Sqrt", variance), mean


def _softmax(operator: str) -> Rule:
    def rule(s: Site) -> str:
        x = s.b.cast(s.tensor("self"), s.dtype("self"), s.output().dtype)
        return s.b.op(operator, x, axis=s.integer("dim") % len(s.shape("self")))

    return rule


def _log_softmax_backward(s: Site) -> Tensor:
    g, y = s.tensor("grad_output"), s.tensor("output")
    axis = s.integer("dim") % len(s.output().shape)
    scattered = s.b.scattered(g, axis)
    if scattered is not None:
        # A loss of labels: the gradient has one value a row, and need not be laid out.
        position, value = scattered
        spread = s.b.op("Mul", s.b.op("Exp", y), s.b.op("Neg", value))
        return _full(s, s.b.op("ScatterElements", spread, position, value, axis=axis, reduction="add"))
    total = s.b.op("ReduceSum", g, s.b.int64s([axis]), keepdims=1)
    return _full(s, s.b.op("Sub", g, s.b.op("Mul", s.b.op("Exp", y), total)))


def _softmax_backward(s: Site) -> Tensor:
    g, y = s.tensor("grad_output"), s.tensor("output")
    axis = s.integer("dim") % len(s.output().shape)
    weighted = s.b.op("Mul", g, y)
    total = s.b.op("ReduceSum", weighted, s.b.int64s([axis]), keepdims=1)
    return _full(s, s.b.op("Sub", weighted, s.b.op("Mul", y, total)))


def _norm(s: Site) -> str:
    x = s.b.cast(s.tensor("self"), s.dtype("self"), s.output().dtype)
    axes, keep, order = s.b.int64s(axes_of(s)), int(s.flag("keepdim")), s.real("ord")
    if order in (1, 2):
        return s.b.op(f"ReduceL{int(order)}", x, axes, keepdims=keep)
    size, dtype = s.b.op("Abs", x), s.output().dtype
    if math.isinf(order):
        return s.b.op("ReduceMax" if order > 0 else "ReduceMin", size, axes, keepdims=keep)
    if order == 0:
        raise s.refuse("the number of elements that are not zero has no gradient")
    total = s.b.op("ReduceSum", s.b.op("Pow", size, s.b.scalar(order, dtype)), axes, keepdims=keep)
    return s.b.op("Pow", total, s.b.scalar(1 / order, dtype))


def _cumsum(s: Site) -> str:
    axis = s.integer("dim") % len(s.shape("self"))
    x = s.b.cast(s.tensor("self"), s.dtype("self"), s.output().dtype)
    return s.b.op("CumSum", x, s.b.scalar(axis, "int64"))


def _full(s: Site, name: str) -> Tensor:
    return Tensor(name, s.output().shape, s.output().dtype)


RULES: dict[str, Rule] = {
    "aten.sum.default": _reduction("ReduceSum"),
    "aten.sum.dim_IntList": _reduction("ReduceSum"),
    "aten.mean.default": _reduction("ReduceMean"),
    "aten.mean.dim": _reduction("ReduceMean"),
    "aten.amax.default": _reduction("ReduceMax"),
    "aten.amin.default": _reduction("ReduceMin"),
    "aten.argmax.default": _arg("ArgMax"),
    "aten.argmin.default": _arg("ArgMin"),
    "aten.max.dim": _extreme("ReduceMax", "ArgMax"),
    "aten.min.dim": _extreme("ReduceMin", "ArgMin"),
    "aten.any.default": _any,
    "aten.any.dim": _any,
    "aten.max.default": _reduction("ReduceMax"),
    "aten.min.default": _reduction("ReduceMin"),
    "aten.var.correction": _var,
    "aten.var_mean.correction": _moments,
    "aten.std_mean.correction": _std_mean,
    "aten._softmax.default": _softmax("Softmax"),
    "aten._log_softmax.default": _softmax("LogSoftmax"),
    "aten._softmax_backward_data.default": _softmax_backward,
    "aten._log_softmax_backward_data.default": _log_softmax_backward,
    "aten.linalg_vector_norm.default": _norm,
    "aten.cumsum.default": _cumsum,
}
