"""Arithmetic in GF(2^16) with the polynomial x^16 + x^12 + x^3 + x + 1 (0x1100B), on numpy vectors.

Elements are uint16; addition is xor; the generator of the multiplicative group is x (2). Tables are built on
first use. Knows nothing of secrets or shares. Table look-ups are not constant in time: use it only where
the operands are secret from the network, not from other code on the machine.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Elements: TypeAlias = NDArray[np.uint16]
Logarithms: TypeAlias = NDArray[np.int32]

ORDER = 65535
"""Size of the multiplicative group."""

_POLYNOMIAL = 0x1100B
_LOG_OF_ZERO = 2 * ORDER


@lru_cache(maxsize=1)
def tables() -> tuple[Elements, Logarithms]:
    """Return (exp, log) such that exp[log[a] + log[b]] is the product a*b, zeros included.

    log[0] is 2*ORDER, and exp holds zeros from there on, so that no product needs a test for zero.
    """
    exp = np.zeros(2 * _LOG_OF_ZERO + 1, np.uint16)
    powers = np.ones(1, np.uint32)
    step = 2  # x to the power len(powers)
    while len(powers) < ORDER:
        powers = np.concatenate([powers, _multiply_slowly(powers, step)])
        step = int(_multiply_slowly(np.array([step], np.uint32), step)[0])
    exp[:ORDER] = exp[ORDER : 2 * ORDER] = powers[:ORDER]
    log = np.empty(ORDER + 1, np.int32)
    log[exp[:ORDER]] = np.arange(ORDER, dtype=np.int32)
    log[0] = _LOG_OF_ZERO
    exp.flags.writeable = log.flags.writeable = False
    return exp, log


def multiply(left: Elements, right: Elements) -> Elements:
    """Return the products of two broadcastable arrays."""
    exp, log = tables()
    product: Elements = exp[log[left] + log[right]]
    return product


def inverse(values: Elements) -> Elements:
    """Return the inverses of non-zero elements."""
    exp, log = tables()
    return exp[ORDER - log[values]]


def exclusive_or(values: Elements, axis: int) -> Elements:
    """Return the sum in the field along one axis."""
    reduced: Elements = np.bitwise_xor.reduce(values, axis=axis)
    return reduced


def log_powers(points: Elements, count: int) -> Logarithms:
    """Return the logarithms of points^0 ... points^(count-1), one row per non-zero point."""
    _, log = tables()
    exponents = np.arange(count, dtype=np.int64)
    return (log[points].astype(np.int64)[:, None] * exponents % ORDER).astype(np.int32)


def log_differences(points: Elements) -> NDArray[np.int64]:
    """Return log(prod over j != i of (x_i - x_j)) for each of several distinct points, modulo ORDER."""
    _, log = tables()
    pairwise = log[points[:, None] ^ points[None, :]].astype(np.int64)
    np.fill_diagonal(pairwise, 0)
    total: NDArray[np.int64] = pairwise.sum(axis=1) % ORDER
    return total


def log_weights_at_zero(points: Elements) -> Logarithms:
    """Return the logarithms of the Lagrange weights that evaluate at 0 a polynomial known at `points`."""
    _, log = tables()
    logs = log[points].astype(np.int64)
    weights: Logarithms = ((logs.sum() - logs - log_differences(points)) % ORDER).astype(np.int32)
    return weights


def _multiply_slowly(values: NDArray[Any], factor: int) -> NDArray[np.uint32]:
    """Return the products with one element by shifting and reducing; only the tables need it."""
    product = np.zeros(len(values), np.uint32)
    shifted = values.astype(np.uint32)
    while factor:
        if factor & 1:
            product ^= shifted
        shifted = (shifted << np.uint32(1)) ^ (shifted >> np.uint32(15)) * np.uint32(_POLYNOMIAL)
        factor >>= 1
    return product
