"""Vectors of integers modulo 2^b, 8 <= b <= 32: packing, centring, and masking with a keystream.

Sums are computed in a wider unsigned word (the work dtype) that wraps on its own: reducing to b bits
commutes with additions modulo 2^16 or 2^32, so it is done once, at the end. Knows no keys' meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from edge_sdk.errors import LocalProtocolError, RemoteProtocolError

Words: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""A 1-D vector in the work dtype, uint16 or uint32; its high bits mean nothing until `reduce`."""

MINIMUM_BITS, MAXIMUM_BITS = 8, 32
SEED_BYTES = 32
_CHUNK_BYTES = 1 << 18
_PIECE = 1 << 16
_ZEROS = bytes(_CHUNK_BYTES)


def work_dtype(bits: int) -> type[np.unsignedinteger[Any]]:
    """Return the word that sums modulo 2^bits are computed in: uint16 up to 16 bits, else uint32."""
    if not MINIMUM_BITS <= bits <= MAXIMUM_BITS:
        raise LocalProtocolError(f"a modulus of {bits} bits is not supported", hint="use 8 to 32 bits")
    return np.uint16 if bits <= 16 else np.uint32


def reduce(vector: NDArray[np.integer[Any]], bits: int) -> Words:
    """Return the residues modulo 2^bits of any integer vector, as a new vector in the work dtype."""
    words = vector.astype(work_dtype(bits))
    words &= words.dtype.type((1 << bits) - 1)
    return words


def centre(vector: NDArray[np.integer[Any]], bits: int) -> NDArray[np.int64]:
    """Return the representatives in [-2^(bits-1), 2^(bits-1)) of a vector modulo 2^bits."""
    values = reduce(vector, bits).astype(np.int64)
    values -= (values >> (bits - 1)) << bits
    return values


def packed_bytes(length: int, bits: int) -> int:
    """Return the size of `length` packed values of `bits` bits."""
    return (length * bits + 7) // 8


def pack(vector: NDArray[np.integer[Any]], bits: int) -> bytes:
    """Pack the low `bits` bits of each value, the first value in the lowest bits of the first byte.

    The unused high bits of the last byte are zero. Widths that are a multiple of four take a fast path.
    """
    if bits in (8, 16, 32):
        return reduce(vector, bits).astype(f"<u{bits // 8}", copy=False).tobytes()
    # Piece by piece, each of whole bytes: what packing needs beside its result stays small, and in the cache.
    pieces = (reduce(vector[start : start + _PIECE], bits) for start in range(0, len(vector), _PIECE))
    return b"".join(_pack_pairs(piece, bits) if bits % 4 == 0 else _pack_groups(piece, bits) for piece in pieces)


def unpack(data: bytes, length: int, bits: int) -> Words:
    """Return the `length` values of `bits` bits packed in `data`, as a new vector in the work dtype.

    Raises:
        RemoteProtocolError: `data` is not exactly as long as they are, or its padding bits are not zero.
    """
    dtype = work_dtype(bits)
    if len(data) != packed_bytes(length, bits):
        raise RemoteProtocolError(
            f"a packed vector is {len(data)} bytes, not {packed_bytes(length, bits)}",
            hint=f"it must hold {length} values of {bits} bits",
        )
    if bits in (8, 16, 32):
        return np.frombuffer(data, f"<u{bits // 8}").astype(dtype)
    if length * bits % 8 and data[-1] >> (length * bits % 8):
        raise RemoteProtocolError("a packed vector's padding bits are not zero")
    words = _unpack_pairs(data, bits) if bits % 4 == 0 else _unpack_groups(data, bits)
    return words[:length].astype(dtype)


def add_mask(accumulator: Words, seed: bytes, sign: int) -> None:
    """Add (+1) or subtract (-1) the mask of a 32-byte seed, in place; see `add_masks`."""
    add_masks(accumulator, [(seed, sign)])


def add_masks(accumulator: Words, masks: Iterable[tuple[bytes, int]]) -> None:
    """Add or subtract the masks of many (seed, sign) in place, wrapping in the accumulator's dtype.

    A mask is the AES-128-CTR keystream of key seed[:16] and initial counter block seed[16:], read as
    little-endian words of the accumulator's dtype. All masks are added to one piece of the vector before the
    next, so that the piece stays in the cache.

    Raises:
        LocalProtocolError: the accumulator is not a contiguous uint16 or uint32 vector, a seed is not
            32 bytes, or a sign is not +1 or -1.
    """
    dtype = accumulator.dtype
    if accumulator.ndim != 1 or dtype not in (np.uint16, np.uint32) or not accumulator.flags.c_contiguous:
        raise LocalProtocolError("a mask is added to a contiguous 1-D vector of uint16 or uint32 only")
    streams = [_keystream(seed, sign) for seed, sign in masks]
    scratch = memoryview(bytearray(min(_CHUNK_BYTES, accumulator.nbytes)))
    step = max(1, len(scratch) // dtype.itemsize)
    for start in range(0, len(accumulator), step):
        piece = accumulator[start : start + step]
        zeros, output = _ZEROS[: piece.nbytes], scratch[: piece.nbytes]
        words = np.frombuffer(output, dtype.newbyteorder("<"))
        for produce, combine in streams:
            produce(zeros, output)
            combine(piece, words, out=piece)


def _keystream(seed: bytes, sign: int) -> tuple[Callable[[bytes, memoryview], int], np.ufunc]:
    if len(seed) != SEED_BYTES or sign not in (1, -1):
        raise LocalProtocolError(f"a mask has a 32-byte seed and a sign, not {len(seed)} bytes and {sign}")
    encryptor = Cipher(algorithms.AES(seed[:16]), modes.CTR(seed[16:])).encryptor()
    return encryptor.update_into, np.add if sign == 1 else np.subtract


def _pack_pairs(words: Words, bits: int) -> bytes:
    """Two values make one 64-bit word of which the low 2*bits bits, whole bytes, are kept."""
    pairs = _filled(words, 2).reshape(-1, 2).astype("<u8")
    joined = pairs[:, 0] | (pairs[:, 1] << np.uint64(bits))
    packed: bytes = joined.view(np.uint8).reshape(-1, 8)[:, : bits // 4].tobytes()
    return packed[: packed_bytes(len(words), bits)]


def _unpack_pairs(data: bytes, bits: int) -> NDArray[np.unsignedinteger[Any]]:
    size = bits // 4
    received = _filled(np.frombuffer(data, np.uint8), size).reshape(-1, size)
    joined = np.zeros((len(received), 8), np.uint8)
    joined[:, :size] = received
    pairs = joined.view("<u8")
    mask = np.uint64((1 << bits) - 1)
    return np.concatenate([pairs & mask, (pairs >> np.uint64(bits)) & mask], axis=1).reshape(-1)


def _pack_groups(words: Words, bits: int) -> bytes:
    """Eight values make `bits` bytes; byte j holds bits 8j to 8j+7, from one value or from two."""
    values = np.ascontiguousarray(_filled(words, 8).reshape(-1, 8).T).astype(np.uint32)
    columns = np.empty((bits, values.shape[1]), np.uint8)
    for byte in range(bits):
        index, offset = divmod(8 * byte, bits)
        column = values[index] >> np.uint32(offset)
        if offset + 8 > bits:
            column |= values[index + 1] << np.uint32(bits - offset)
        columns[byte] = column.astype(np.uint8)
    return columns.T.tobytes()[: packed_bytes(len(words), bits)]


def _unpack_groups(data: bytes, bits: int) -> NDArray[np.unsignedinteger[Any]]:
    received = _filled(np.frombuffer(data, np.uint8), bits).reshape(-1, bits)
    columns = np.ascontiguousarray(received.T).astype(np.uint32)
    values = np.zeros((8, columns.shape[1]), np.uint32)
    for byte in range(bits):
        index, offset = divmod(8 * byte, bits)
        values[index] |= columns[byte] << np.uint32(offset)
        if offset + 8 > bits:
            values[index + 1] |= columns[byte] >> np.uint32(bits - offset)
    return values.T.reshape(-1) & np.uint32((1 << bits) - 1)


def _filled(values: Words, group: int) -> Words:
    """Return the values with zeros after them up to a multiple of `group`."""
    return np.pad(values, (0, -len(values) % group)) if len(values) % group else values
