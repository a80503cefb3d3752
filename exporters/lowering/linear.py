"""Rules for matrix products."""

from __future__ import annotations

import math

from exporters.graph import BatchSize, Shape
from exporters.lowering.builder import Builder, Tensor
from exporters.lowering.site import Result, Rule, Site

# How many examples costs are weighed for.
_USUAL_BATCH = 32
# From so many elements on, a weight is worth a detour.
_LARGE = 1 << 14


def _by_weight(s: Site, rows: str, weight: str) -> str | None:
    """x W^T as (W x^T)^T where x has a row an example: runtimes copy the second operand of a product, not the first.

    Takes half the time for 32 rows, and as long as the other way for one or for 256.
    """
    b, (count, inputs), (_, outputs) = s.b, s.shape(rows), s.shape(weight)
    matrix, turned = b.transposed(s.tensor(weight))
    if not turned or not (isinstance(count, BatchSize) and count.scale == 1):
        return None
    if not isinstance(inputs, int) or not isinstance(outputs, int) or inputs * outputs < _LARGE:
        return None
    product = b.reshape(b.op("Gemm", matrix, s.tensor(rows), transA=0, transB=1), (1, outputs, count))
    # In three dimensions, or the runtime would put the turn back into the product.
    return b.reshape(b.transpose(product, [0, 2, 1]), (count, outputs))


def minus_scaled_product(b: Builder, x: Tensor, y: Tensor) -> Tensor | None:
    """x - number * A B as one Gemm, if y is such and it is cheaper to scale A or B: as in steps of gradient descent."""
    factors = b.inputs_of(y.name, "Mul")
    if factors is None or x.shape != y.shape:
        return None
    number, product = sorted(factors, key=lambda name: b.inputs_of(name, "Gemm") is not None)
    operands = b.inputs_of(product, "Gemm")
    if b.shape_of(number) != () or operands is None or len(operands) != 2:
        return None
    sizes = [_usual_size(b.shape_of(name)) for name in operands]
    small = min((0, 1), key=sizes.__getitem__)
    if 2 * sizes[small] > _usual_size(x.shape):
        return None
    scaled = [b.op("Mul", number, name) if place == small else name for place, name in enumerate(operands)]
    return Tensor(b.op("Gemm", *scaled, x.name, **{**b.attributes_of(product), "alpha": -1.0}), x.shape, x.dtype)


def joined_products(b: Builder, x: Tensor, y: Tensor) -> Tensor | None:
    """A^T B + C^T D as one product of [A, C] and [B, D], if x and y are such and it is cheaper to join the factors.

    The gradient of a weight that is used at every step of time is such a sum. The last summand comes first, since
    autograd comes to the first step last.
    """
    factors = [(b.inputs_of(each.name, "Gemm"), b.attributes_of(each.name)) for each in (y, x)]
    if x.shape != y.shape:
        return None
    pairs = []
    for operands, attributes in factors:
        if operands is None or len(operands) != 2 or attributes != {"transA": 1, "transB": 0}:
            return None
        pairs.append(operands)
    if sum(_usual_size(b.shape_of(name)) for name in pairs[0]) > _usual_size(x.shape):
        return None
    joined = []
    for names in zip(*pairs, strict=True):
        parts = [part for name in names for part in _rows_of(b, name)]
        joined.append(b.op("Concat", *parts, axis=0))
    return Tensor(b.op("Gemm", *joined, transA=1, transB=0), x.shape, x.dtype)


def _rows_of(b: Builder, name: str) -> tuple[str, ...]:
    """What a value is put together from, row after row."""
    parts = b.inputs_of(name, "Concat")
    return parts if parts and b.attributes_of(name) == {"axis": 0} else (name,)


def biased_product(b: Builder, x: Tensor, y: Tensor) -> Tensor | None:
    """A B + c as one Gemm, if x is such a product, or shape of one with a bias, and y a vector."""
    product = next(iter(b.inputs_of(x.name, "Reshape") or ()), x.name)
    operands, shape = b.inputs_of(product, "Gemm"), b.shape_of(product)
    if operands is None or shape is None or len(y.shape) != 1 or y.shape != x.shape[-1:] or shape[-1:] != y.shape:
        return None
    bias = y.name
    if len(operands) == 3:
        if b.shape_of(operands[2]) != y.shape:
            return None
        bias = b.op("Add", operands[2], bias)
        b.note(Tensor(bias, y.shape, y.dtype))
    attributes = b.attributes_of(product)
    if attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1:
        return None
    found = b.op("Gemm", *operands[:2], bias, **attributes)
    b.note(Tensor(found, shape, x.dtype))
    return Tensor(b.reshape(found, x.shape), x.shape, x.dtype)


def _is_zero(s: Site, name: str) -> bool:
    """Whether an operand is nothing but zeros, as a recurrent layer's first state is."""
    constant = s.b.constant_value(s.lazy(name).name)
    return constant is not None and not constant.any()


def _usual_size(shape: Shape | None) -> float:
    if shape is None:
        return math.inf
    return math.prod(dim if isinstance(dim, int) else dim.scale * _USUAL_BATCH + dim.offset for dim in shape)


def _mm(s: Site) -> Result:
    if _is_zero(s, "self") or _is_zero(s, "mat2"):
        return Tensor(s.b.scalar(0, s.output().dtype), (), s.output().dtype)
    found = _by_weight(s, "self", "mat2")
    if found is not None:
        return found
    # Gemm turns its operands itself, so that gradients of linear layers need no transposes.
    a, turn_a = s.b.transposed(s.tensor("self"))
    b, turn_b = s.b.transposed(s.tensor("mat2"))
    return s.b.op("Gemm", a, b, transA=int(turn_a), transB=int(turn_b))


def _addmm(s: Site) -> Result:
    if s.real("alpha") == s.real("beta") == 1:
        if _is_zero(s, "mat1"):
            return s.lazy("self")
        found = _by_weight(s, "mat1", "mat2")
        if found is not None:
            return s.b.op("Add", found, s.tensor("self"))
    a, turn_a = s.b.transposed(s.tensor("mat1"))
    b, turn_b = s.b.transposed(s.tensor("mat2"))
    return s.b.op(
        "Gemm",
        a,
        b,
        s.tensor("self"),
        transA=int(turn_a),
        transB=int(turn_b),
        alpha=s.real("alpha"),
        beta=s.real("beta"),
    )


def _matmul(s: Site) -> str:
    other = "mat2" if "mat2" in s.argument_names else "other"
    return s.b.op("MatMul", s.tensor("self"), s.tensor(other))


def _baddbmm(s: Site) -> str:
    product, added = s.b.op("MatMul", s.tensor("batch1"), s.tensor("batch2")), s.tensor("self")
    if s.real("alpha") != 1:
        product = s.b.op("Mul", product, s.b.scalar(s.real("alpha"), s.output().dtype))
    if s.real("beta") != 1:
        added = s.b.op("Mul", added, s.b.scalar(s.real("beta"), s.output().dtype))
    return s.b.op("Add", product, added)


def _mv(s: Site) -> str:
    rows: Shape = s.shape("self")
    column = s.b.reshape(s.tensor("vec"), (rows[1], 1))
    return s.b.reshape(s.b.op("MatMul", s.tensor("self"), column), s.output().shape)


def _dot(s: Site) -> str:
    product = s.b.op("Mul", s.tensor("self"), s.tensor("tensor"))
    return s.b.op("ReduceSum", product, s.b.int64s([0]), keepdims=0)


RULES: dict[str, Rule] = {
    "aten.mm.default": _mm,
    "aten.addmm.default": _addmm,
    "aten.bmm.default": _matmul,
    "aten.matmul.default": _matmul,
    "aten.baddbmm.default": _baddbmm,
    "aten.mv.default": _mv,
    "aten.dot.default": _dot,
}
