"""Rules for operators that act on each element: arithmetic, comparison, activations and their gradients."""

from __future__ import annotations

import math
from itertools import zip_longest

from exporters.graph import Shape
from exporters.lowering.builder import Builder, Tensor
from exporters.lowering.site import Rule, Site


def broadcast(*shapes: Shape) -> Shape:
    """The shape that shapes have together, by numpy's rules."""
    result = []
    for dims in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        result.append(next((dim for dim in dims if dim != 1), 1))
    return tuple(reversed(result))


def combine(b: Builder, operator: str, dtype: str, *tensors: Tensor) -> Tensor:
    """Apply an elementwise ONNX operator; the result broadcasts as far as its operands do."""
    name = b.op(operator, *(tensor.name for tensor in tensors))
    return Tensor(name, broadcast(*(tensor.shape for tensor in tensors)), dtype)


class _Floats:
    """Writes formulas over floats: every operand is a Tensor of one dtype or a number."""

    def __init__(self, b: Builder, dtype: str) -> None:
        self._b = b
        self._dtype = dtype

    def __call__(self, operator: str, *operands: Tensor | float) -> Tensor:
        tensors = [
            item if isinstance(item, Tensor) else Tensor(self._b.scalar(item, self._dtype), (), self._dtype)
            for item in operands
        ]
        return combine(self._b, operator, self._dtype, *tensors)

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
        alpha = s.number("alpha") if s.has("alpha") else 1
        if alpha != 1:
            y = combine(s.b, "Mul", dtype, y, Tensor(s.b.scalar(s.real("alpha"), dtype), (), dtype))
        neutral = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0}.get(operator)
        if neutral is not None and _is_scalar(s.b, y, neutral):
            return x
        if operator in ("Mul", "Add") and neutral is not None and _is_scalar(s.b, x, neutral):
            return y
        return combine(s.b, operator, dtype, x, y)

    return rule


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
    def rule(s: Site) -> Tensor:
        if s.output().dtype != "bool":
            raise s.refuse("bitwise arithmetic on integers")
        return combine(s.b, operator, "bool", s.operand("self", "bool"), s.operand("other", "bool"))

    return rule


def _not(s: Site) -> Tensor:
    if s.output().dtype != "bool":
        raise s.refuse("bitwise arithmetic on integers")
    return combine(s.b, "Not", "bool", s.operand("self", "bool"))


def _rsub(s: Site) -> Tensor:
    dtype = s.output().dtype
    if s.number("alpha") != 1:
        raise s.refuse("alpha is not 1")
    return combine(s.b, "Sub", dtype, s.operand("other", dtype), s.operand("self", dtype))


def _div_mode(s: Site) -> Tensor:
    dtype = s.output().dtype
    quotient = combine(s.b, "Div", dtype, s.operand("self", dtype), s.operand("other", dtype))
    mode = s.text("rounding_mode") if s.has("rounding_mode") else "none"
    if mode == "none":
        return quotient
    if mode == "floor" and dtype.startswith("float"):
        return combine(s.b, "Floor", dtype, quotient)
    raise s.refuse(f"rounding_mode={mode!r} on {dtype}")


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
    f = _Floats(s.b, s.output().dtype)
    return f("Reciprocal", f("Sqrt", s.operand("self", s.output().dtype)))


def _log1p(s: Site) -> Tensor:
    f = _Floats(s.b, s.output().dtype)
    return f("Log", f.add(s.operand("self", s.output().dtype), 1.0))


def _expm1(s: Site) -> Tensor:
    f = _Floats(s.b, s.output().dtype)
    return f.sub(f("Exp", s.operand("self", s.output().dtype)), 1.0)


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


def _select(s: Site, condition: Tensor, yes: Tensor | float, no: Tensor | float) -> Tensor:
    dtype = s.output().dtype
    values = [
        value if isinstance(value, Tensor) else Tensor(s.b.scalar(value, dtype), (), dtype) for value in (yes, no)
    ]
    return combine(s.b, "Where", dtype, condition, *values)


def _compare(s: Site, operator: str, x: Tensor, value: float) -> Tensor:
    return combine(s.b, operator, "bool", x, Tensor(s.b.scalar(value, x.dtype), (), x.dtype))


def _threshold_backward(s: Site) -> Tensor:
    keep = _compare(s, "Greater", s.lazy("self"), s.real("threshold"))
    return _select(s, keep, s.lazy("grad_output"), 0.0)


def _sigmoid_backward(s: Site) -> Tensor:
    f, y = _Floats(s.b, s.output().dtype), s.lazy("output")
    return f.mul(s.lazy("grad_output"), f.sub(y, f.mul(y, y)))


def _tanh_backward(s: Site) -> Tensor:
    f, y = _Floats(s.b, s.output().dtype), s.lazy("output")
    return f.mul(s.lazy("grad_output"), f.sub(1.0, f.mul(y, y)))


def _silu(s: Site) -> Tensor:
    f, x = _Floats(s.b, s.output().dtype), s.lazy("self")
    return f.mul(x, f("Sigmoid", x))


def _silu_backward(s: Site) -> Tensor:
    f, x = _Floats(s.b, s.output().dtype), s.lazy("self")
    sigmoid = f("Sigmoid", x)
    # d/dx x*sigmoid(x) = sigmoid + silu * (1 - sigmoid)
    slope = f.add(sigmoid, f.mul(f.mul(x, sigmoid), f.sub(1.0, sigmoid)))
    return f.mul(s.lazy("grad_output"), slope)


def _gelu_inner(f: _Floats, x: Tensor) -> Tensor:
    return f("Tanh", f.mul(f.add(x, f.mul(f.mul(x, x), x, 0.044715)), math.sqrt(2 / math.pi)))


def _gelu(s: Site) -> Tensor:
    f, x = _Floats(s.b, s.output().dtype), s.lazy("self")
    curve = _gelu_inner(f, x) if s.text("approximate") == "tanh" else f("Erf", f.mul(x, math.sqrt(0.5)))
    return f.mul(f.mul(x, 0.5), f.add(curve, 1.0))


def _gelu_backward(s: Site) -> Tensor:
    f, x = _Floats(s.b, s.output().dtype), s.lazy("self")
    if s.text("approximate") == "tanh":
        t = _gelu_inner(f, x)
        inner_slope = f.mul(f.add(f.mul(x, x, 3 * 0.044715), 1.0), math.sqrt(2 / math.pi))
        curve = f.mul(f.mul(x, f.sub(1.0, f.mul(t, t))), inner_slope, 0.5)
        slope = f.add(f.mul(f.add(t, 1.0), 0.5), curve)
    else:
        cumulative = f.mul(f.add(f("Erf", f.mul(x, math.sqrt(0.5))), 1.0), 0.5)
        density = f.mul(f("Exp", f.mul(x, x, -0.5)), 1 / math.sqrt(2 * math.pi))
        slope = f.add(cumulative, f.mul(x, density))
    return f.mul(s.lazy("grad_output"), slope)


def _leaky_relu_backward(s: Site) -> Tensor:
    f, g = _Floats(s.b, s.output().dtype), s.lazy("grad_output")
    positive = _compare(s, "Greater", s.lazy("self"), 0.0)
    return _select(s, positive, g, f.mul(g, s.real("negative_slope")))


def _leaky_relu(s: Site) -> Tensor:
    x = s.lazy("self")
    return Tensor(s.b.op("LeakyRelu", x.name, alpha=s.real("negative_slope")), x.shape, x.dtype)


def _elu(s: Site) -> Tensor:
    f, x = _Floats(s.b, s.output().dtype), s.lazy("self")
    alpha, scale, inner = s.real("alpha"), s.real("scale"), s.real("input_scale")
    negative = f.mul(f.sub(f("Exp", f("Min", f.mul(x, inner), 0.0)), 1.0), alpha * scale)
    return _select(s, _compare(s, "Greater", x, 0.0), f.mul(x, scale), negative)


def _elu_backward(s: Site) -> Tensor:
    f, g, x = _Floats(s.b, s.output().dtype), s.lazy("grad_output"), s.lazy("self_or_result")
    alpha, scale, inner = s.real("alpha"), s.real("scale"), s.real("input_scale")
    if s.flag("is_result"):
        slope = f.mul(f.add(x, alpha * scale), inner)
    else:
        slope = f.mul(f("Exp", f("Min", f.mul(x, inner), 0.0)), alpha * scale * inner)
    return _select(s, _compare(s, "Greater", x, 0.0), f.mul(g, scale), f.mul(g, slope))


def _hardtanh_backward(s: Site) -> Tensor:
    x = s.lazy("self")
    inside = combine(
        s.b,
        "And",
        "bool",
        _compare(s, "Greater", x, s.real("min_val")),
        _compare(s, "Less", x, s.real("max_val")),
    )
    return _select(s, inside, s.lazy("grad_output"), 0.0)


def _hardtanh(s: Site) -> Tensor:
    f = _Floats(s.b, s.output().dtype)
    return f("Min", f("Max", s.lazy("self"), s.real("min_val")), s.real("max_val"))


def _softplus(s: Site) -> Tensor:
    f, x = _Floats(s.b, s.output().dtype), s.lazy("self")
    beta, threshold = s.real("beta"), s.real("threshold")
    scaled = f.mul(x, beta)
    soft = f.mul(f("Log", f.add(f("Exp", f("Min", scaled, threshold)), 1.0)), 1 / beta)
    return _select(s, _compare(s, "Greater", scaled, threshold), x, soft)


def _softplus_backward(s: Site) -> Tensor:
    f, x, g = _Floats(s.b, s.output().dtype), s.lazy("self"), s.lazy("grad_output")
    scaled = f.mul(x, s.real("beta"))
    above = _compare(s, "Greater", scaled, s.real("threshold"))
    return _select(s, above, g, f.mul(g, f("Sigmoid", scaled)))


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
    "aten.logical_and.default": _logical("And"),
    "aten.logical_or.default": _logical("Or"),
    "aten.logical_not.default": _not,
    "aten.bitwise_and.Tensor": _logical("And"),
    "aten.bitwise_or.Tensor": _logical("Or"),
    "aten.bitwise_not.default": _not,
    "aten.rsub.Scalar": _rsub,
    "aten.rsub.Tensor": _rsub,
    "aten.div.Tensor_mode": _div_mode,
    "aten.pow.Tensor_Scalar": _pow,
    "aten.pow.Tensor_Tensor": _pow,
    "aten.rsqrt.default": _rsqrt,
    "aten.log1p.default": _log1p,
    "aten.expm1.default": _expm1,
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
    "aten.threshold_backward.default": _threshold_backward,
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
