"""Skellam noise by inversion of an integer table, with no floating-point number anywhere.

Skellam(0, v) is the difference of two Poisson(v/2); its variance is v, and sums of independent ones are
Skellam again. The table is computed with big integers and floor divisions only, so that every language
gets it bit for bit; floating-point noise would leak (Mironov 2012). Knows nothing of updates.

The table of variance v, with r = isqrt(v), half = 14 r + 74 and start = half + 6 r + 80:
  I[start+1] = 0, I[start] = 2^256, I[k-1] = I[k+1] + floor(2 k I[k] / v)    (Miller's backward recurrence)
  cdf[k] = floor(2^128 * (I[-half] + ... + I[k]) / (I[-half] + ... + I[half])), I[-k] = I[k]
A uniform 128-bit integer u draws the number of table entries that are <= u, less `half`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import PrivacyError
from edge_sdk.secagg.suite import Stream

MAXIMUM_VARIANCE = 1 << 28

_AMBIGUOUS = np.int32(-(1 << 31))
_GUARD_BITS = 256


@dataclass(frozen=True, slots=True, eq=False)
class SkellamTable:
    """The integer distribution function of Skellam(0, variance), and the values its top 16 bits decide.

    Attributes:
        half: the support is -half..half.
        high: top 64 bits of the 128-bit entries for -half..half-1, ascending; the last entry, 2^128, is
            left out.
        low: their bottom 64 bits.
        prefix: for each top 16 bits of u the value drawn, or a mark where they do not decide it.
    """

    half: int
    high: NDArray[np.uint64] = field(repr=False)
    low: NDArray[np.uint64] = field(repr=False)
    prefix: NDArray[np.int32] = field(repr=False)


def half_width(variance: int) -> int:
    """Return the largest value drawn; beyond it lies less than 2^-139 of the distribution."""
    return 14 * math.isqrt(variance) + 74


def draw_error(variance: int) -> float:
    """Return a bound on the total variation distance of one draw from Skellam(0, variance).

    Half the sum of 2*half+1 errors below 2^-128, less than 2^-139 of tail cut off, and less than
    2^-200 from the recurrence.
    """
    return math.ldexp(half_width(variance) + 2, -128) if variance else 0.0


def sample_skellam(variance: int, count: int, stream: Stream) -> NDArray[np.int32]:
    """Return `count` draws of Skellam(0, variance), zeros for variance 0.

    Takes from the stream: count 16-bit integers, the top bits of every u; then a 64-bit integer for each
    value they leave open, in order, its top 48 bits the next bits of u; then, for each still open, a
    64-bit integer, the last bits of u.

    Raises:
        PrivacyError: the variance is negative or above 2^28.
    """
    if variance == 0:
        return np.zeros(count, np.int32)
    table = skellam_table(variance)
    tops = stream.uint16(count)
    drawn = table.prefix.take(tops)
    open_places = np.flatnonzero(drawn == _AMBIGUOUS)
    if len(open_places):
        drawn[open_places] = _refine(table, tops[open_places], stream)
    return drawn


@lru_cache(maxsize=8)
def skellam_table(variance: int) -> SkellamTable:
    """Return the table of one variance; see the head of this module."""
    if not 1 <= variance <= MAXIMUM_VARIANCE:
        raise PrivacyError(
            f"a noise variance of {variance} is not in 1..2^28", hint="choose a smaller scale or fewer bits"
        )
    half = half_width(variance)
    weights = _weights(variance, half)
    total = 2 * sum(weights) - weights[0]
    entries = bytearray()
    cumulative = 0
    for value in range(-half, half):
        cumulative += weights[abs(value)]
        entries += ((cumulative << 128) // total).to_bytes(16, "little")
    words = np.frombuffer(entries, "<u8").astype(np.uint64).reshape(-1, 2)
    high, low = np.ascontiguousarray(words[:, 1]), np.ascontiguousarray(words[:, 0])
    inside = np.bincount((high >> np.uint64(48)).astype(np.int64), minlength=1 << 16)
    prefix = (np.cumsum(inside) - half).astype(np.int32)
    prefix[inside > 0] = _AMBIGUOUS
    for part in (high, low, prefix):
        part.flags.writeable = False
    return SkellamTable(half, high, low, prefix)


def _weights(variance: int, half: int) -> list[int]:
    """Return multiples of the Bessel functions I_0(v) ... I_half(v), each rounded down."""
    start = half + 6 * math.isqrt(variance) + 80
    above, current = 0, 1 << _GUARD_BITS
    weights = []
    for order in range(start, 0, -1):
        above, current = current, above + 2 * order * current // variance
        if order <= half + 1:
            weights.append(current)
    weights.reverse()
    return weights


def _refine(table: SkellamTable, tops: NDArray[np.uint16], stream: Stream) -> NDArray[np.int32]:
    """Return the values of draws whose top 16 bits leave them open."""
    fresh = stream.uint64(len(tops))
    words = (tops.astype(np.uint64) << np.uint64(48)) | (fresh >> np.uint64(16))
    counts = np.searchsorted(table.high, words, side="right")
    ties = np.flatnonzero((counts > 0) & (table.high[counts - 1] == words))
    if len(ties):
        for place, last_bits in zip(ties.tolist(), stream.uint64(len(ties)), strict=True):
            first = int(np.searchsorted(table.high, words[place], side="left"))
            equal = table.low[first : counts[place]]
            counts[place] = first + np.searchsorted(equal, last_bits, side="right")
    return (counts - table.half).astype(np.int32)
