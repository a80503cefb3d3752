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
