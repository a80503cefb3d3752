"""Rules for matrix products."""

from __future__ import annotations

from exporters.graph import Shape
from exporters.lowering.site import Rule, Site


def _mm(s: Site) -> str:
    # Gemm turns its operands itself, so that gradients of linear layers need no transposes.
    a, turn_a = s.b.transposed(s.tensor("self"))
    b, turn_b = s.b.transposed(s.tensor("mat2"))
    return s.b.op("Gemm", a, b, transA=int(turn_a), transB=int(turn_b))


def _addmm(s: Site) -> str:
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
