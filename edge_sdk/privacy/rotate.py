"""The random rotation that spreads an update over all coordinates: random signs, then Walsh-Hadamard.

It keeps the 2-norm and makes every coordinate about norm/sqrt(length), so that few bits hold the sum. The
signs are public and the same for all devices of a round. Knows nothing of privacy.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import LocalProtocolError
from edge_sdk.secagg.suite import Stream, digest, label

Real = TypeVar("Real", np.float32, np.float64)

_SIGNS = label("rotation")
_RADIX_BITS = 6  # 64-point transforms as matrix products beat butterflies in numpy


def padded_length(dimension: int) -> int:
    """Return the least power of two that is at least `dimension`."""
    if dimension < 1:
        raise LocalProtocolError(f"an update has at least one coordinate, not {dimension}")
    return 1 << (dimension - 1).bit_length()


def rotate(values: NDArray[Real], ctx: bytes) -> NDArray[Real]:
    """Return H(signs * values) / sqrt(d') of a 1-D vector padded with zeros to d' = padded_length."""
    length = padded_length(len(values))
    padded = np.zeros(length, values.dtype)
    np.multiply(values, _signs(length, ctx)[: len(values)], out=padded[: len(values)])
    return _transform(padded)


def unrotate(values: NDArray[Real], dimension: int, ctx: bytes) -> NDArray[Real]:
    """Return the first `dimension` coordinates of the vector that `rotate` turned into `values`."""
    if len(values) != padded_length(dimension):
        raise LocalProtocolError(f"{len(values)} rotated coordinates do not hold {dimension}")
    return _transform(values)[:dimension] * _signs(len(values), ctx)[:dimension].astype(values.dtype)


def hadamard(values: NDArray[Real]) -> NDArray[Real]:
    """Return the unnormalised Walsh-Hadamard transform (natural order) of 2^p values, as a new vector.

    Splits the index into digits of six bits and multiplies by a 64-point matrix along each, in BLAS.
    """
    length = len(values)
    if length & (length - 1) or not length:
        raise LocalProtocolError(f"a Walsh-Hadamard transform takes 2^p values, not {length}")
    result, inner = values.copy(), 1
    while inner < length:
        radix = min(1 << _RADIX_BITS, length // inner)
        matrix = _matrix(radix, values.dtype)
        if inner == 1:
            result = result.reshape(-1, radix) @ matrix
        else:
            result = np.matmul(matrix, result.reshape(-1, radix, inner))
        inner *= radix
    return result.reshape(-1)


def _transform(values: NDArray[Real]) -> NDArray[Real]:
    transformed = hadamard(values)
    transformed *= values.dtype.type(1 / math.sqrt(len(values)))
    return transformed


def _signs(length: int, ctx: bytes) -> NDArray[np.int8]:
    """Return +1 for a zero bit and -1 for a one, from the lowest bit of the first byte of the stream on."""
    data = Stream(digest(_SIGNS, ctx)).bytes((length + 7) // 8)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=length, bitorder="little")
    return 1 - 2 * bits.astype(np.int8)


@lru_cache(maxsize=16)
def _matrix(size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    matrix = np.ones((1, 1), dtype)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix.flags.writeable = False
    return matrix
