"""The rule for dropout's masks. `exporters.hashing` has the formula; here it is in int32, with shifts in uint32."""

from __future__ import annotations

import math

import numpy as np

from exporters.graph import BatchSize
from exporters.hashing import FACTORS, SHIFTS, WORD, bound, stride
from exporters.lowering.builder import Builder
from exporters.lowering.site import Rule, Site


def _int32(b: Builder, value: int) -> str:
    """A constant, wrapped around."""
    return b.constant(np.array(value & WORD, np.uint32).astype(np.int32))


def _shifted(b: Builder, x: str, count: int) -> str:
    """x ^ x >> count, as int32."""
    unsigned = b.cast(x, "int32", "uint32")
    shifted = b.op("BitShift", unsigned, b.scalar(count, "uint32"), direction="RIGHT")
    return b.cast(b.op("BitwiseXor", unsigned, shifted), "uint32", "int32")


def _stirred(b: Builder, x: str) -> str:
    """Both rounds of the hash."""
    for shift, factor in zip(SHIFTS, FACTORS, strict=True):
        x = b.op("Mul", _shifted(b, x, shift), _int32(b, factor))
    return x


def _keep(s: Site) -> str:
    b, size = s.b, s.dims("size")
    # Rows up to the last size that depends on the batch, and columns of a fixed number.
    rows = max((axis + 1 for axis, dim in enumerate(size) if isinstance(dim, BatchSize)), default=0)
    width = math.prod(s.fixed(size[rows:]))
    height = b.scalar(1, "int32")
    for dim in size[:rows]:
        height = b.op("Mul", height, b.size(dim, "int32"))
    zero, one, step = b.scalar(0, "int32"), b.scalar(1, "int32"), stride(s.integer("site"))
    seed = _shifted(b, _stirred(b, b.cast(s.tensor("seed"), "int64", "int32")), SHIFTS[0])
    down = b.op("Add", b.op("Mul", b.op("Range", zero, height, one), _int32(b, step * width)), seed)
    along = b.op("Mul", b.op("Range", zero, b.scalar(width, "int32"), one), _int32(b, step))
    x = _stirred(b, b.op("Add", b.op("Unsqueeze", down, b.int64s([1])), along))
    return b.reshape(b.op("Less", x, b.scalar(bound(s.real("share")), "int32")), size)


RULES: dict[str, Rule] = {"edge_sdk.keep.default": _keep}
