"""Rules for operators that act on each element: arithmetic, comparison, activations and their gradients."""

from __future__ import annotations

from itertools import zip_longest

from exporters.graph import Shape
from exporters.lowering.builder import Builder, Tensor
from exporters.lowering.linear import biased_product, joined_products, minus_scaled_product
from exporters.lowering.site import Rule, Site


def broadcast(*shapes: Shape) -> Shape:
    """The shape that shapes have together, by numpy's rules."""
    result = []
    for dims in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        result.append(next((dim for dim in dims if dim != 1), 1))
    return tuple(reversed(result))


def combine(b: Builder, operator: str, dtype: str, *tensors: Tensor) -> Tensor:
    """Apply an elementwise ONNX operator; the result broadcasts as far as its operands do."""
    shape = broadcast(*(tensor.shape for tensor in tensors))
    return Tensor(b.op(operator, *(_aligned(b, tensor, shape) for tensor in tensors)), shape, dtype)


def _aligned(b: Builder, tensor: Tensor, shape: Shape) -> str:
    """A number of as many dimensions as what it meets, if the last of those is one, as in weights of 1x1 convolutions.

    With fewer, ONNX Runtime takes the elements one by one, and a hundred times as long.
    """
    if len(tensor.shape) == len(shape) or shape[-1] != 1 or any(dim != 1 for dim in tensor.shape):
        return tensor.name
    value, whole = b.constant_value(tensor.name), (1,) * len(shape)
    return b.reshape(tensor.name, whole) if value is None else b.constant(value.reshape(whole))


class Floats:
    """Writes formulas over floats: every operand is a Tensor of one dtype or a number."""

    def __init__(self, b: Builder, dtype: str) -> None:
        self.b = b
        self.dtype = dtype

    def __call__(self, operator: str, *operands: Tensor | float) -> Tensor:
        tensors = [item if isinstance(item, Tensor) else self.number(item) for item in operands]
        return combine(self.b, operator, self.dtype, *tensors)

    def number(self, value: float) -> Tensor:
        """A constant."""
        return Tensor(self.b.scalar(value, self.dtype), (), self.dtype)

    def mul(self, *operands: Tensor | float) -> Tensor:
        """The product of all."""
        first, *others = operands
        result = first if isinstance(first, Tensor) else self("Identity", first)
        for other in others:
            result = self("Mul", result, other)
        return result

    def add(self, x: Tensor | float, y: Tensor | float) -> Tensor:
        """x + y."""
        return self("Add", x, y)

    def sub(self, x: Tensor | float, y: Tensor | float) -> Tensor:
        """x - y."""
        return self("Sub", x, y)


def _unary(operator: str) -> Rule:
    def rule(s: Site) -> Tensor:
        return combine(s.b, operator, s.output().dtype, s.operand("self", s.output().dtype))

    return rule


def _binary(operator: str) -> Rule:
    def rule(s: Site) -> Tensor:
        dtype = s.output().dtype
        x, y = s.operand("self", dtype), s.operand("other", dtype)
        if dtype == "bool":
            return combine(s.b, _ON_TRUTH[operator], dtype, x, y)
        alpha = s.number("alpha") if s.has("alpha") else 1
        if alpha != 1:
            y = combine(s.b, "Mul", dtype, y, Tensor(s.b.scalar(s.real("alpha"), dtype), (), dtype))
        if operator == "Sub" and (stepped := minus_scaled_product(s.b, x, y)) is not None:
            return stepped
        if operator == "Add":
            for join, one, other in ((biased_product, x, y), (biased_product, y, x), (joined_products, x, y)):
                if (joined := join(s.b, one, other)) is not None:
                    return joined
        neutral = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0}.get(operator)
        if neutral is not None and _is_scalar(s.b, y, neutral):
            return x
        if operator in ("Mul", "Add") and neutral is not None and _is_scalar(s.b, x, neutral):
            return y
        return combine(s.b, operator, dtype, x, y)

    return rule


# Arithmetic on truth values.
_ON_TRUTH = {"Add": "Or", "Mul": "And", "Max": "Or", "Min": "And"}


def _is_scalar(b: Builder, tensor: Tensor, value: float) -> bool:
    constant = b.constant_value(tensor.name)
    return constant is not None and constant.shape == () and float(constant) == value


def _comparison(operator: str, negate: bool = False) -> Rule:
    def rule(s: Site) -> Tensor:
        dtype = s.dtype("self")
        other = s.number("other")
        if isinstance(other, float) and not dtype.startswith("float"):
            dtype = "float32"
        elif other is None and s.dtype("other") != dtype:
            dtype = "float32" if "float" in s.dtype("other") + dtype else "int64"
        if dtype == "bool" and operator != "Equal":
            dtype = "int32"
        result = combine(s.b, operator, "bool", s.operand("self", dtype), s.operand("other", dtype))
        return combine(s.b, "Not", "bool", result) if negate else result

    return rule


def _logical(operator: str) -> Rule:
    """Truth values, or the bits of integers."""

    def rule(s: Site) -> Tensor:
        dtype = s.output().dtype
        name = operator if dtype == "bool" else f"Bitwise{operator}"
        return combine(s.b, name, dtype, s.operand("self", dtype), s.operand("other", dtype))

    return rule


def _truth(operator: str) -> Rule:
    """The logic of numbers, true where they are not zero."""

    def rule(s: Site) -> Tensor:
        return combine(s.b, operator, "bool", s.operand("self", "bool"), s.operand("other", "bool"))

    return rule


def _not(s: Site) -> Tensor:
    dtype = "bool" if s.operator.startswith("aten.logical") else s.output().dtype
    return combine(s.b, "Not" if dtype == "bool" else "BitwiseNot", dtype, s.operand("self", dtype))


def _rsub(s: Site) -> Tensor:
    dtype = s.output().dtype
    x = s.operand("self", dtype)
    if s.number("alpha") != 1:
        x = combine(s.b, "Mul", dtype, x, s.operand("alpha", dtype))
    return combine(s.b, "Sub", dtype, s.operand("other", dtype), x)


def _div_mode(s: Site) -> Tensor:
    dtype = s.output().dtype
    x, y = s.operand("self", dtype), s.operand("other", dtype)
    whole, mode = not dtype.startswith("float"), s.text("rounding_mode") if s.has("rounding_mode") else ""
    if mode == "floor" and whole:
        # Integers never pass through floats, which hold no large ones: x less its remainder divides evenly.
        x = combine(s.b, "Sub", dtype, x, combine(s.b, "Mod", dtype, x, y))
    quotient = combine(s.b, "Div", dtype, x, y)
    if whole or not mode:
        return quotient  # ONNX cuts the quotient of integers towards zero.
    floor = combine(s.b, "Floor", dtype, quotient)
    if mode == "floor":
        return floor
    negative = combine(s.b, "Less", "bool", quotient, Tensor(s.b.scalar(0, dtype), (), dtype))
    return combine(s.b, "Where", dtype, negative, combine(s.b, "Ceil", dtype, quotient), floor)


def _remainder(s: Site) -> Tensor:
    """What is left of a division that rounds down."""
    dtype = s.output().dtype
    x, y = s.operand("self", dtype), s.operand("other", dtype)
    if not dtype.startswith("float"):
        return combine(s.b, "Mod", dtype, x, y)
    whole = combine(s.b, "Floor", dtype, combine(s.b, "Div", dtype, x, y))
    return combine(s.b, "Sub", dtype, x, combine(s.b, "Mul", dtype, whole, y))


def _fmod(s: Site) -> Tensor:
    """What is left of a division that rounds towards zero."""
    dtype = s.output().dtype
    x, y = s.operand("self", dtype), s.operand("other", dtype)
    if not dtype.startswith("float"):
        # By Mod with fmod=1, ONNX Runtime takes integers through float64.
        return combine(s.b, "Sub", dtype, x, combine(s.b, "Mul", dtype, combine(s.b, "Div", dtype, x, y), y))
    return Tensor(s.b.op("Mod", x.name, y.name, fmod=1), broadcast(x.shape, y.shape), dtype)


def _is(operator: str) -> Rule:
    def rule(s: Site) -> Tensor:
        return combine(s.b, operator, "bool", s.lazy("self"))

    return rule


def _is_finite(s: Site) -> Tensor:
    # The difference of anything else with itself is not a number.
    x = s.lazy("self")
    return combine(s.b, "Not", "bool", combine(s.b, "IsNaN", "bool", combine(s.b, "Sub", x.dtype, x, x)))


def _pow(s: Site) -> Tensor:
    dtype = s.output().dtype
    x = s.operand("self", dtype)
    match s.number("exponent"):
        case 1:
            return x
        case 2:
            return combine(s.b, "Mul", dtype, x, x)
        case 3:
            return combine(s.b, "Mul", dtype, combine(s.b, "Mul", dtype, x, x), x)
        case 0.5:
            return combine(s.b, "Sqrt", dtype, x)
        case _:
            return combine(s.b, "Pow", dtype, x, s.operand("exponent", dtype))


def _rsqrt(s: Site) -> Tensor:
    f = Floats(s.b, s.output().dtype)
    return f("Reciprocal", f("Sqrt", s.operand("self", s.output().dtype)))


def _where(s: Site) -> Tensor:
    dtype = s.output().dtype
    return combine(
        s.b, "Where", dtype, s.operand("condition", "bool"), s.operand("self", dtype), s.operand("other", dtype)
    )


def _where_primitive(s: Site) -> Tensor:
    dtype = s.output().dtype
    return combine(s.b, "Where", dtype, s.operand("pred", "bool"), s.operand("a", dtype), s.operand("b", dtype))


def _masked_fill(s: Site) -> Tensor:
    dtype = s.output().dtype
    return combine(s.b, "Where", dtype, s.operand("mask", "bool"), s.operand("value", dtype), s.operand("self", dtype))


def _clamp(s: Site) -> Tensor:
    dtype = s.output().dtype
    result = s.operand("self", dtype)
    if "min" in s.argument_names and s.has("min"):
        result = combine(s.b, "Max", dtype, result, s.operand("min", dtype))
    if "max" in s.argument_names and s.has("max"):
        result = combine(s.b, "Min", dtype, result, s.operand("max", dtype))
    return result


def _cast(s: Site) -> Tensor:
    return s.operand("self", s.output().dtype)


def _copy(s: Site) -> Tensor:
    return s.operand("src", s.output().dtype)


_UNARY = {
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "relu": "Relu",
    "abs": "Abs",
    "erf": "Erf",
    "reciprocal": "Reciprocal",
    "sin": "Sin",
    "cos": "Cos",
    "floor": "Floor",
    "ceil": "Ceil",
    "sign": "Sign",
    "sgn": "Sign",
}

RULES: dict[str, Rule] = {
    **{f"aten.{name}.default": _unary(operator) for name, operator in _UNARY.items()},
    **{
        f"aten.{name}.{kind}": _binary(operator)
        for name, operator in (("add", "Add"), ("sub", "Sub"), ("mul", "Mul"), ("div", "Div"))
        for kind in ("Tensor", "Scalar")
    },
    **{
        f"{name}.{kind}": _comparison(operator, negate)
        for base, operator, negate in (
            ("eq", "Equal", False),
            ("ne", "Equal", True),
            ("lt", "Less", False),
            ("le", "LessOrEqual", False),
            ("gt", "Greater", False),
            ("ge", "GreaterOrEqual", False),
        )
        for name, kind in ((f"aten.{base}", "Tensor"), (f"aten.{base}", "Scalar"), (f"prims.{base}", "default"))
    },
    "aten.maximum.default": _binary("Max"),
    "aten.minimum.default": _binary("Min"),
    **{
        f"aten.{kind}_{name}": rule(operator)
        for operator in ("And", "Or", "Xor")
        for kind, name, rule in (
            ("logical", f"{operator.lower()}.default", _truth),
            ("bitwise", f"{operator.lower()}.Tensor", _logical),
            ("bitwise", f"{operator.lower()}.Scalar", _logical),
        )
    },
    "aten.logical_not.default": _not,
    "aten.bitwise_not.default": _not,
    "aten.fmax.default": _binary("Max"),
    "aten.fmin.default": _binary("Min"),
    "aten.remainder.Tensor": _remainder,
    "aten.remainder.Scalar": _remainder,
    "aten.fmod.Tensor": _fmod,
    "aten.fmod.Scalar": _fmod,
    "aten.isnan.default": _is("IsNaN"),
    "aten.isinf.default": _is("IsInf"),
    "aten.isfinite.default": _is_finite,
    "aten.rsub.Scalar": _rsub,
    "aten.rsub.Tensor": _rsub,
    "aten.div.Tensor_mode": _div_mode,
    "aten.div.Scalar_mode": _div_mode,
    "aten.pow.Tensor_Scalar": _pow,
    "aten.pow.Tensor_Tensor": _pow,
    "aten.pow.Scalar": _pow,
    "aten.rsqrt.default": _rsqrt,
    "aten.where.self": _where,
    "prims.where.default": _where_primitive,
    "aten.masked_fill.Scalar": _masked_fill,
    "aten.masked_fill.Tensor": _masked_fill,
    "aten.clamp.default": _clamp,
    "aten.clamp_min.default": _clamp,
    "aten.clamp_max.default": _clamp,
    "aten.clamp_min.Tensor": _clamp,
    "aten.clamp_max.Tensor": _clamp,
    "aten.alias.default": _cast,
    "aten.clone.default": _cast,
    "aten.detach.default": _cast,
    "aten._to_copy.default": _cast,
    "aten.contiguous.default": _cast,
    "aten.lift_fresh_copy.default": _cast,
    "aten.copy.default": _copy,
}
