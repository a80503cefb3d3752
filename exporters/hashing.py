"""The hash by which dropout decides what it keeps: in int64 for torch, in int32 for graphs, bit by bit alike.

Element i of the mask of the k-th dropout of a forward pass is kept if a hash of seed, k and i lies below a bound. The
hash is lowbias32 (https://github.com/skeeto/hash-prospector) without its last shift, which only stirs low bits:

    x = i * stride(k) + mixed(seed)                         all modulo 2**32
    x = (x ^ x >> 16) * 0x7feb352d
    x = (x ^ x >> 15) * 0x846ca68b
    kept if x, as a signed number, is below bound(share) = round(share * 2**32) - 2**31

where mixed() is the whole of lowbias32 and stride(k) is mixed(k + 1) with its lowest bit set.
"""

from __future__ import annotations

from typing import Any

SHIFTS = (16, 15)
FACTORS = (0x7FEB352D, 0x846CA68B)
WORD = 0xFFFFFFFF


def stirred(x: Any) -> Any:
    """Both rounds of the hash, of an int or an int64 tensor of numbers below 2**32."""
    for shift, factor in zip(SHIFTS, FACTORS, strict=True):
        x = ((x ^ (x >> shift)) * factor) & WORD
    return x


def mixed(x: Any) -> Any:
    """The whole of lowbias32."""
    x = stirred(x)
    return x ^ (x >> SHIFTS[0])


def stride(site: int) -> int:
    """How far the counter goes from one element to the next at the dropout of that number."""
    return int(mixed(site + 1)) | 1


def bound(share: float) -> int:
    """Elements whose hash, as a signed number, lies below are kept."""
    return min(round(share * 2**32), WORD) - 2**31
