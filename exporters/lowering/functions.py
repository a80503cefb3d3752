"""Rules for mathematical functions of one or two floats that ONNX has, or that a short formula gives."""

from __future__ import annotations

import math
from collections.abc import Callable

from exporters.lowering.builder import Tensor
from exporters.lowering.elementwise import Floats, combine
from exporters.lowering.site import Rule, Site

Formula = Callable[[Floats, Tensor], Tensor]


def _operator(name: str) -> Formula:
    return lambda f, x: f(name, x)


def _truncated(f: Floats, x: Tensor) -> Tensor:
    return f("Mul", f("Sign", x), f("Floor", f("Abs", x)))


# The series of the gamma function's logarithm and its derivative are exact to float32 from here on.
_LARGE = 6
_POLES = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)


def _choose(f: Floats, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return combine(f.b, "Where", f.dtype, condition, x, y)


def _reflected(f: Floats, x: Tensor) -> tuple[Tensor, Tensor]:
    """Whether x is below a half; and 1 - x there, x elsewhere."""
    below = combine(f.b, "Less", "bool", x, f.number(0.5))
    return below, _choose(f, below, f.sub(1.0, x), x)


def _enlarged(f: Floats, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether x > 0 is small; x where it is, else 1; and a large number that is x, or x + 6 where it is small."""
    small = combine(f.b, "Less", "bool", x, f.number(_LARGE))
    return small, _choose(f, small, x, f.number(1.0)), _choose(f, small, f.add(x, float(_LARGE)), x)


def _lgamma(f: Floats, x: Tensor) -> Tensor:
    """Stirling's series at a large number, less the logarithm of what leads there; reflected below a half."""
    below, positive = _reflected(f, x)
    small, start, large = _enlarged(f, positive)
    inverse = f("Reciprocal", large)
    square = f.mul(inverse, inverse)
    rest = f.mul(inverse, f.add(1 / 12, f.mul(square, f.add(-1 / 360, f.mul(square, 1 / 1260)))))
    series = f.add(f.sub(f.mul(f.sub(large, 0.5), f("Log", large)), large), f.add(rest, math.log(2 * math.pi) / 2))
    way = f("Log", f.mul(*(f.add(start, pole) for pole in _POLES)))
    upper = f.sub(series, _choose(f, small, way, f.number(0.0)))
    sine = f("Abs", f("Sin", f.mul(x, math.pi)))
    return _choose(f, below, f.sub(f.sub(math.log(math.pi), f("Log", sine)), upper), upper)


def _digamma(f: Floats, x: Tensor) -> Tensor:
    """The derivative of the above, in the same way."""
    below, positive = _reflected(f, x)
    small, start, large = _enlarged(f, positive)
    inverse = f("Reciprocal", large)
    square = f.mul(inverse, inverse)
    terms = f.add(1 / 12, f.mul(square, f.add(-1 / 120, f.mul(square, 1 / 252))))
    upper = f.sub(f.sub(f("Log", large), f.mul(inverse, 0.5)), f.mul(square, terms))
    way = f("Sum", *(f("Reciprocal", f.add(start, pole)) for pole in _POLES))
    upper = f.sub(upper, _choose(f, small, way, f.number(0.0)))
    return _choose(f, below, f.sub(upper, f("Div", math.pi, f("Tan", f.mul(x, math.pi)))), upper)


_FORMULAS: dict[str, Formula] = {
    **{
        name: _operator(operator)
        for name, operator in {
            "tan": "Tan",
            "asin": "Asin",
            "acos": "Acos",
            "atan": "Atan",
            "sinh": "Sinh",
            "cosh": "Cosh",
            "asinh": "Asinh",
            "acosh": "Acosh",
            "atanh": "Atanh",
            "round": "Round",
        }.items()
    },
    "trunc": _truncated,
    "frac": lambda f, x: f.sub(x, _truncated(f, x)),
    "exp2": lambda f, x: f("Exp", f.mul(x, math.log(2))),
    "log2": lambda f, x: f.mul(f("Log", x), 1 / math.log(2)),
    "log10": lambda f, x: f.mul(f("Log", x), 1 / math.log(10)),
    "log1p": lambda f, x: f("Log", f.add(x, 1.0)),
    "expm1": lambda f, x: f.sub(f("Exp", x), 1.0),
    "lgamma": _lgamma,
    "digamma": _digamma,
    "erfc": lambda f, x: f.sub(1.0, f("Erf", x)),
}


def _rule(formula: Formula) -> Rule:
    def rule(s: Site) -> Tensor:
        dtype = s.output().dtype
        return formula(Floats(s.b, dtype), s.operand("self", dtype))

    return rule


def _atan2(s: Site) -> Tensor:
    """The angle of (x, y): atan(y / x), turned by half a circle left of zero."""
    f = Floats(s.b, s.output().dtype)
    y, x = s.operand("self", f.dtype), s.operand("other", f.dtype)
    zero, left = f.number(0.0), combine(s.b, "Less", "bool", x, f.number(0.0))
    sign = combine(s.b, "Where", f.dtype, combine(s.b, "Less", "bool", y, zero), f.number(-1.0), f.number(1.0))
    level = combine(s.b, "Equal", "bool", x, zero)
    divisor = combine(s.b, "Where", f.dtype, level, f.number(1.0), x)
    angle = f("Atan", f("Div", y, divisor))
    turned = combine(s.b, "Where", f.dtype, left, f.add(angle, f.mul(sign, math.pi)), angle)
    upright = f.mul(f("Sign", y), math.pi / 2)
    return combine(s.b, "Where", f.dtype, level, upright, turned)


def _hypot(s: Site) -> Tensor:
    f = Floats(s.b, s.output().dtype)
    x, y = s.operand("self", f.dtype), s.operand("other", f.dtype)
    return f("Sqrt", f.add(f.mul(x, x), f.mul(y, y)))


def _copysign(s: Site) -> Tensor:
    f = Floats(s.b, s.output().dtype)
    size, sign = f("Abs", s.operand("self", f.dtype)), s.operand("other", f.dtype)
    negative = combine(s.b, "Less", "bool", sign, f.number(0.0))
    return combine(s.b, "Where", f.dtype, negative, f("Neg", size), size)


RULES: dict[str, Rule] = {
    **{f"aten.{name}.default": _rule(formula) for name, formula in _FORMULAS.items()},
    "aten.atan2.default": _atan2,
    "aten.hypot.default": _hypot,
    "aten.copysign.Tensor": _copysign,
    "aten.copysign.Scalar": _copysign,
}
