"""Rules for losses and their gradients."""

from __future__ import annotations

from exporters.lowering.reductions import count
from exporters.lowering.site import Result, Rule, Site

_NONE, _MEAN = 0, 1


def _labels(s: Site) -> tuple[str, str]:
    """For each row its label's position, and the label's weight (or one): zero where it is to be ignored.

    Both are [batch, 1, ...]: a matrix with a one at each label would cost several passes over [batch, classes, ...].
    What is no label points at position zero with weight zero, since ONNX takes a negative one as from the end.
    """
    b, shape, labels, ignored = s.b, s.shape("self"), s.shape("target"), s.integer("ignore_index")
    classes, dtype = shape[1], s.dtype("target")
    if len(shape) != len(labels) + 1:
        raise s.refuse("its input has no batch dimension")
    if isinstance(classes, int):
        b.classes[b.origin(s.tensor("target"))] = (classes, ignored)
    column = b.reshape(s.tensor("target"), (labels[0], 1, *labels[1:]))
    zero = b.scalar(0, dtype)
    counts = b.op("And", b.op("GreaterOrEqual", column, zero), b.op("Less", column, b.size(classes, dtype)))
    if ignored >= 0:
        counts = b.op("And", counts, b.op("Not", b.op("Equal", column, b.scalar(ignored, dtype))))
    position = b.op("Where", counts, column, zero)
    weight = b.cast(counts, "bool", s.dtype("self"))
    if s.has("weight"):
        weight = b.op("Mul", weight, b.op("Gather", s.tensor("weight"), position, axis=0))
    return position, weight


def _nll(s: Site) -> tuple[Result | None, ...]:
    b, (position, weight) = s.b, _labels(s)
    every = b.int64s(range(len(s.shape("self"))))
    total = b.op("ReduceSum", weight, every, keepdims=0)
    losses = b.op("Neg", b.op("Mul", b.op("GatherElements", s.tensor("self"), position, axis=1), weight))
    match s.integer("reduction"):
        case 0:
            return b.reshape(losses, s.shape("target")), total
        case 1:
            return b.op("Div", b.op("ReduceSum", losses, every, keepdims=0), total), total
        case _:
            return b.op("ReduceSum", losses, every, keepdims=0), total


def _nll_backward(s: Site) -> str:
    b, (position, weight) = s.b, _labels(s)
    gradient = s.lazy("grad_output").name
    if s.integer("reduction") == _NONE:
        labels = s.shape("target")
        gradient = b.reshape(s.tensor("grad_output"), (labels[0], 1, *labels[1:]))
    slope = b.op("Mul", weight, b.op("Neg", gradient))
    if s.integer("reduction") == _MEAN:
        slope = b.op("Div", slope, s.tensor("total_weight"))
    zeros = b.op("Expand", b.scalar(0, s.output().dtype), b.sizes(s.output().shape))
    return b.op("ScatterElements", zeros, position, slope, axis=1)


def _reduce(s: Site, values: str) -> str:
    """Join the losses of all elements as the `reduction` argument says."""
    reduction, every = s.integer("reduction"), s.b.int64s(range(len(s.shape("self"))))
    if reduction == _NONE:
        return values
    return s.b.op("ReduceMean" if reduction == _MEAN else "ReduceSum", values, every, keepdims=0)


def _gradient(s: Site, slope: str) -> str:
    """The gradient of a reduced loss, from the slope of each element's loss."""
    gradient, dtype = s.lazy("grad_output"), s.output().dtype
    scaled = slope
    if s.integer("reduction") == _MEAN:
        shape = s.shape("self")
        size = count(s.b, shape, tuple(range(len(shape))), dtype)
        scaled = s.b.op("Div", slope, s.b.scalar(size, dtype) if isinstance(size, float) else size)
    one = s.b.constant_value(gradient.name)
    if one is not None and one.shape == () and float(one) == 1:
        return scaled
    return s.b.op("Mul", scaled, gradient.name)


def _difference(s: Site) -> str:
    if s.shape("self") != s.shape("target"):
        raise s.refuse("output and target differ in shape")
    return s.b.op("Sub", s.tensor("self"), s.tensor("target"))


def _mse(s: Site) -> str:
    difference = _difference(s)
    return _reduce(s, s.b.op("Mul", difference, difference))


def _mse_backward(s: Site) -> str:
    return _gradient(s, s.b.op("Mul", _difference(s), s.b.scalar(2, s.output().dtype)))


def _bend(s: Site) -> tuple[str, bool]:
    """Where the loss turns from square to line, and whether it is the smooth-L1 kind (divided by the bend)."""
    smooth = "beta" in s.argument_names
    bend = s.real("beta" if smooth else "delta")
    if bend <= 0:
        raise s.refuse("beta must be positive")
    return s.b.scalar(bend, s.output().dtype), smooth


def _huber(s: Site) -> str:
    bend, smooth = _bend(s)
    dtype = s.output().dtype
    size = s.b.op("Abs", _difference(s))
    inner = s.b.op("Min", size, bend)
    # min(a, d) * (a - min(a, d) / 2) is a*a/2 below the bend and d*(a - d/2) above it.
    half = s.b.op("Mul", inner, s.b.scalar(0.5, dtype))
    values = s.b.op("Mul", inner, s.b.op("Sub", size, half))
    return _reduce(s, s.b.op("Div", values, bend) if smooth else values)


def _huber_backward(s: Site) -> str:
    bend, smooth = _bend(s)
    low = s.b.op("Neg", bend)
    slope = s.b.op("Min", s.b.op("Max", _difference(s), low), bend)
    return _gradient(s, s.b.op("Div", slope, bend) if smooth else slope)


def _bce_with_logits(s: Site) -> str:
    x, y, one = s.tensor("self"), s.tensor("target"), s.b.scalar(1, s.output().dtype)
    tail = s.b.op("Exp", s.b.op("Neg", s.b.op("Abs", x)))
    softened = s.b.op("Log", s.b.op("Add", tail, one))
    if s.has("pos_weight"):
        # (1 - y) * x + (1 + (w - 1) * y) * softplus(-x), where softplus(-x) = max(-x, 0) + log(1 + exp(-|x|))
        surplus = s.b.op("Mul", s.b.op("Sub", s.tensor("pos_weight"), one), y)
        below = s.b.op("Add", s.b.op("Relu", s.b.op("Neg", x)), softened)
        weighed = s.b.op("Mul", s.b.op("Add", surplus, one), below)
        values = s.b.op("Add", s.b.op("Mul", s.b.op("Sub", one, y), x), weighed)
    else:
        # max(x, 0) - x*y + log(1 + exp(-|x|)) never overflows.
        values = s.b.op("Add", s.b.op("Sub", s.b.op("Relu", x), s.b.op("Mul", x, y)), softened)
    return _reduce(s, s.b.op("Mul", values, s.tensor("weight")) if s.has("weight") else values)


RULES: dict[str, Rule] = {
    "aten.nll_loss_forward.default": _nll,
    "aten.nll_loss_backward.default": _nll_backward,
    "aten.nll_loss2d_forward.default": _nll,
    "aten.nll_loss2d_backward.default": _nll_backward,
    "aten.mse_loss.default": _mse,
    "aten.mse_loss_backward.default": _mse_backward,
    "aten.smooth_l1_loss.default": _huber,
    "aten.smooth_l1_loss_backward.default": _huber_backward,
    "aten.huber_loss.default": _huber,
    "aten.huber_loss_backward.default": _huber_backward,
    "aten.binary_cross_entropy_with_logits.default": _bce_with_logits,
}
