"""The random rotation that spreads an update over all coordinates: random signs, then Walsh-Hadamard.

It keeps length and 2-norm, and makes every coordinate small, so that few bits hold the sum. A transform takes 2^p
coordinates; an update of d others is not padded but rotated twice: its first m coordinates, m the largest power of two
that is at most d, and then its last m, which overlap. Given signs drawn for this round, each coordinate is sub-Gaussian
with variance proxy norm^2 / m at most, m > d/2: flat to within a factor of two of the best, for any d and any update.
The signs are public and the same for all devices of a round. Knows nothing of privacy.
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
_RADIX = 64  # matrix products of this size beat butterflies in numpy, and stay on one core in any BLAS


def block_length(length: int) -> int:
    """Return m, the largest power of two that is at most `length`."""
    if length < 1:
        raise LocalProtocolError(f"an update has at least one coordinate, not {length}")
    return 1 << (length.bit_length() - 1)


def rotate(values: NDArray[Real], ctx: bytes) -> NDArray[Real]:
    """Return the rotation of a 1-D vector, of the same length."""
    length, block = len(values), block_length(len(values))
    if block == length:
        return _mixed(values * _signs(block, values.dtype, ctx))
    first, second = np.split(_signs(2 * block, values.dtype, ctx), 2)
    rotated = np.empty_like(values)
    rotated[:block] = _mixed(values[:block] * first)
    rotated[block:] = values[block:]
    rotated[-block:] = _mixed(rotated[-block:] * second)
    return rotated


def unrotate(values: NDArray[Real], ctx: bytes) -> NDArray[Real]:
    """Return the vector that `rotate` turned into `values`."""
    length, block = len(values), block_length(len(values))
    restored = values.copy()
    signs = _signs(block if block == length else 2 * block, values.dtype, ctx)
    if block < length:
        np.multiply(_mixed(restored[-block:].copy()), signs[block:], out=restored[-block:])
    np.multiply(_mixed(restored[:block].copy()), signs[:block], out=restored[:block])
    return restored


def hadamard(values: NDArray[Real]) -> NDArray[Real]:
    """Return the unnormalised Walsh-Hadamard transform (natural order) of 2^p values, as a new vector."""
    length = len(values)
    if length & (length - 1) or not length:
        raise LocalProtocolError(f"a Walsh-Hadamard transform takes 2^p values, not {length}")
    return _transform(values.copy())


def _mixed(values: NDArray[Real]) -> NDArray[Real]:
    """Return the orthonormal transform of 2^p values, which are overwritten."""
    mixed = _transform(values)
    mixed *= values.dtype.type(1 / math.sqrt(len(values)))
    return mixed


def _transform(source: NDArray[Real]) -> NDArray[Real]:
    """Return the transform of 2^p values, which are overwritten.

    Splits the index into digits of six bits and multiplies by a 64-point matrix along each, in BLAS.
    """
    length, inner, target = len(source), 1, np.empty_like(source)
    while inner < length:
        radix, width = min(_RADIX, length // inner), min(_RADIX, inner)
        matrix = _matrix(radix, source.dtype)
        if inner == 1:
            rows = (-1, min(_RADIX, length // radix), radix)
            np.matmul(source.reshape(rows), matrix, out=target.reshape(rows))
        else:
            tiles = (-1, radix, inner // width, width)
            np.matmul(matrix, source.reshape(tiles).swapaxes(1, 2), out=target.reshape(tiles).swapaxes(1, 2))
        source, target, inner = target, source, inner * radix
    return source


def _signs(count: int, dtype: np.dtype[Any], ctx: bytes) -> NDArray[Any]:
    """Return +1 for a zero bit and -1 for a one, from the lowest bit of the first byte of the stream on."""
    data = Stream(digest(_SIGNS, ctx)).bytes((count + 7) // 8)
    return _sign_table(dtype).take(np.frombuffer(data, np.uint8), axis=0).reshape(-1)[:count]


@lru_cache(maxsize=2)
def _sign_table(dtype: np.dtype[Any]) -> NDArray[Any]:
    bits = np.unpackbits(np.arange(256, dtype=np.uint8), bitorder="little")
    table = (1 - 2 * bits.astype(dtype)).reshape(256, 8)
    table.flags.writeable = False
    return table


@lru_cache(maxsize=16)
def _matrix(size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    matrix = np.ones((1, 1), dtype)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix.flags.writeable = False
    return matrix
