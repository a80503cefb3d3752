"""Rules for activation functions and their gradients, each a closed formula."""

from __future__ import annotations

import math
from dataclasses import replace

from exporters.lowering.builder import Tensor
from exporters.lowering.elementwise import Floats, combine
from exporters.lowering.site import Rule, Site


def _select(s: Site, condition: Tensor, yes: Tensor | float, no: Tensor | float) -> Tensor:
    dtype = s.output().dtype
    values = [
        value if isinstance(value, Tensor) else Tensor(s.b.scalar(value, dtype), (), dtype) for value in (yes, no)
    ]
    return combine(s.b, "Where", dtype, condition, *values)


def _compare(s: Site, operator: str, x: Tensor, value: float) -> Tensor:
    return combine(s.b, operator, "bool", x, Tensor(s.b.scalar(value, x.dtype), (), x.dtype))


def _between(s: Site, low: float, high: float) -> Tensor:
    """The gradient where the input lies between two bounds, and else zero."""
    x, gradient = s.lazy("self"), s.lazy("grad_output")
    bounds = [(1, low)] * math.isfinite(low) + [(-1, high)] * math.isfinite(high)
    exact = all(bound == 0 or 2**-60 < abs(bound) < 2**20 for _, bound in bounds)
    if s.b.is_product(gradient.name) and x.dtype == "float32" and exact:
        # A product with ones and zeros takes half as long as a selection, but an infinite gradient times zero is not
        # zero. After a matrix product or a convolution there is none unless the step is lost anyway.
        masked = s.b.masked(gradient.name)
        if masked is None and len(bounds) == 1:
            ((sign, bound),) = bounds
            # The smallest step away from the bound, if no denormal, is above one times this.
            steep = sign * 2.0 ** (100 if bound else 127)
            ones = s.b.op("HardSigmoid", x.name, alpha=steep, beta=-steep * bound)
        else:
            # Booleans are a quarter as long: two conditions are joined before they become numbers.
            inside = _inside(s, x, bounds).name
            if masked is not None:
                inside, gradient = s.b.op("And", masked[0], inside), replace(gradient, name=masked[1])
            ones = s.b.cast(inside, "bool", x.dtype)
        return combine(s.b, "Mul", x.dtype, gradient, Tensor(ones, x.shape, x.dtype))
    return _select(s, _inside(s, x, bounds), gradient, 0.0)


def _inside(s: Site, x: Tensor, bounds: list[tuple[int, float]]) -> Tensor:
    """Whether the input is above each bound whose sign is 1, and below each whose sign is -1."""
    sides = [_compare(s, "Greater" if sign > 0 else "Less", x, bound) for sign, bound in bounds]
    return sides[0] if len(sides) == 1 else combine(s.b, "And", "bool", *sides)


def _threshold_backward(s: Site) -> Tensor:
    return _between(s, s.real("threshold"), math.inf)


def _shrink_backward(gradient: str) -> Rule:
    """The gradient of what is zero (or shifted) near zero."""

    def rule(s: Site) -> Tensor:
        size = combine(s.b, "Abs", s.output().dtype, s.lazy("self"))
        return _select(s, _compare(s, "Greater", size, s.real("lambd")), s.lazy(gradient), 0.0)

    return rule


def _sigmoid_backward(s: Site) -> Tensor:
    f, y = Floats(s.b, s.output().dtype), s.lazy("output")
    return f.mul(s.lazy("grad_output"), f.sub(y, f.mul(y, y)))


def _tanh_backward(s: Site) -> Tensor:
    f, y = Floats(s.b, s.output().dtype), s.lazy("output")
    return f.mul(s.lazy("grad_output"), f.sub(1.0, f.mul(y, y)))


def _silu(s: Site) -> Tensor:
    f, x = Floats(s.b, s.output().dtype), s.lazy("self")
    return f.mul(x, f("Sigmoid", x))


def _silu_backward(s: Site) -> Tensor:
    f, x = Floats(s.b, s.output().dtype), s.lazy("self")
    sigmoid = f("Sigmoid", x)
    # d/dx x*sigmoid(x) = sigmoid + silu * (1 - sigmoid)
    slope = f.add(sigmoid, f.mul(f.mul(x, sigmoid), f.sub(1.0, sigmoid)))
    return f.mul(s.lazy("grad_output"), slope)


def _gelu_inner(f: Floats, x: Tensor) -> Tensor:
    return f("Tanh", f.mul(f.add(x, f.mul(f.mul(x, x), x, 0.044715)), math.sqrt(2 / math.pi)))


def _cumulative(f: Floats, scaled: Tensor) -> Tensor:
    """The normal distribution's, of x / sqrt(2): 0.5 * erf + 0.5, which this does in one pass and never cuts."""
    curve = f("Erf", scaled)
    return Tensor(f.b.op("HardSigmoid", curve.name, alpha=0.5, beta=0.5), curve.shape, curve.dtype)


def _gelu(s: Site) -> Tensor:
    f, x = Floats(s.b, s.output().dtype), s.lazy("self")
    if s.text("approximate") == "tanh":
        return f.mul(f.mul(x, 0.5), f.add(_gelu_inner(f, x), 1.0))
    return f.mul(x, _cumulative(f, f.mul(x, math.sqrt(0.5))))


def _gelu_backward(s: Site) -> Tensor:
    f, x = Floats(s.b, s.output().dtype), s.lazy("self")
    if s.text("approximate") == "tanh":
        t = _gelu_inner(f, x)
        inner_slope = f.mul(f.add(f.mul(x, x, 3 * 0.044715), 1.0), math.sqrt(2 / math.pi))
        curve = f.mul(f.mul(x, f.sub(1.0, f.mul(t, t))), inner_slope, 0.5)
        slope = f.add(f.mul(f.add(t, 1.0), 0.5), curve)
    else:
        scaled = f.mul(x, math.sqrt(0.5))
        density = f("Exp", f.sub(-math.log(math.sqrt(2 * math.pi)), f.mul(scaled, scaled)))
        slope = f.add(_cumulative(f, scaled), f.mul(x, density))
    return f.mul(s.lazy("grad_output"), slope)


def _leaky_relu_backward(s: Site) -> Tensor:
    f, g = Floats(s.b, s.output().dtype), s.lazy("grad_output")
    positive = _compare(s, "Greater", s.lazy("self"), 0.0)
    return _select(s, positive, g, f.mul(g, s.real("negative_slope")))


def _leaky_relu(s: Site) -> Tensor:
    x = s.lazy("self")
    return Tensor(s.b.op("LeakyRelu", x.name, alpha=s.real("negative_slope")), x.shape, x.dtype)


def _elu(s: Site) -> Tensor:
    f, x = Floats(s.b, s.output().dtype), s.lazy("self")
    alpha, scale, inner = s.real("alpha"), s.real("scale"), s.real("input_scale")
    negative = f.mul(f.sub(f("Exp", f("Min", f.mul(x, inner), 0.0)), 1.0), alpha * scale)
    return _select(s, _compare(s, "Greater", x, 0.0), f.mul(x, scale), negative)


def _elu_backward(s: Site) -> Tensor:
    f, g, x = Floats(s.b, s.output().dtype), s.lazy("grad_output"), s.lazy("self_or_result")
    alpha, scale, inner = s.real("alpha"), s.real("scale"), s.real("input_scale")
    if s.flag("is_result"):
        slope = f.mul(f.add(x, alpha * scale), inner)
    else:
        slope = f.mul(f("Exp", f("Min", f.mul(x, inner), 0.0)), alpha * scale * inner)
    return _select(s, _compare(s, "Greater", x, 0.0), f.mul(g, scale), f.mul(g, slope))


def _hardtanh_backward(s: Site) -> Tensor:
    return _between(s, s.real("min_val"), s.real("max_val"))


def _hardtanh(s: Site) -> Tensor:
    f = Floats(s.b, s.output().dtype)
    return f("Clip", s.lazy("self"), s.real("min_val"), s.real("max_val"))


def _softplus(s: Site) -> Tensor:
    f, x = Floats(s.b, s.output().dtype), s.lazy("self")
    beta, threshold = s.real("beta"), s.real("threshold")
    scaled = f.mul(x, beta)
    soft = f.mul(f("Log", f.add(f("Exp", f("Min", scaled, threshold)), 1.0)), 1 / beta)
    return _select(s, _compare(s, "Greater", scaled, threshold), x, soft)


def _softplus_backward(s: Site) -> Tensor:
    f, x, g = Floats(s.b, s.output().dtype), s.lazy("self"), s.lazy("grad_output")
    scaled = f.mul(x, s.real("beta"))
    above = _compare(s, "Greater", scaled, s.real("threshold"))
    return _select(s, above, g, f.mul(g, f("Sigmoid", scaled)))


RULES: dict[str, Rule] = {
    "aten.threshold_backward.default": _threshold_backward,
    "aten.softshrink_backward.default": _shrink_backward("grad_output"),
    "aten.hardshrink_backward.default": _shrink_backward("grad_out"),
    "aten.sigmoid_backward.default": _sigmoid_backward,
    "aten.tanh_backward.default": _tanh_backward,
    "aten.silu.default": _silu,
    "aten.silu_backward.default": _silu_backward,
    "aten.gelu.default": _gelu,
    "aten.gelu_backward.default": _gelu_backward,
    "aten.leaky_relu.default": _leaky_relu,
    "aten.leaky_relu_backward.default": _leaky_relu_backward,
    "aten.elu.default": _elu,
    "aten.elu_backward.default": _elu_backward,
    "aten.hardtanh.default": _hardtanh,
    "aten.hardtanh_backward.default": _hardtanh_backward,
    "aten.softplus.default": _softplus,
    "aten.softplus_backward.default": _softplus_backward,
}
