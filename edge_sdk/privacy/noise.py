"""Integer noise by inversion of an integer table, with no floating-point number anywhere.

Skellam(0, v) is the difference of two Poisson(v/2); its variance is v, and sums of independent ones are
Skellam again. The discrete Gaussian N_Z(0, v) has P[k] proportional to exp(-k^2 / (2 v)); its variance is v but
for less than 10 v exp(-2 pi^2 v), and sums of it are nearly, not quite, discrete Gaussian. Tables are computed with
big integers and floor divisions only, so that every language gets them bit for bit; floating-point noise
would leak (Mironov 2012). Knows nothing of updates.

The table of variance v, with r = isqrt(v) and half = 14 r + 74, from weights w[k] = w[-k]:
  Skellam, start = half + 6 r + 80 (Miller's backward recurrence of Bessel functions):
    w[start+1] = 0, w[start] = 2^256, w[k-1] = w[k+1] + floor(2 k w[k] / v)
  Discrete Gaussian, P = 256 (powers of q = exp(-1/(2v)), by its series):
    t[0] = 2^P, t[j] = floor(t[j-1] / (2 v j)), q = t[0] - t[1] + t[2] - ... while t[j] > 0
    w[0] = 2^P, s[0] = q, w[k+1] = floor(w[k] s[k] / 2^P), s[k+1] = floor(s[k] floor(q^2 / 2^P) / 2^P)
  Both: cdf[k] = floor(2^128 * (w[-half] + ... + w[k]) / (w[-half] + ... + w[half])), at most 2^128 - 1
A uniform 128-bit integer u draws the number of table entries that are <= u, less `half`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import PrivacyError
from edge_sdk.secagg.suite import Stream

MAXIMUM_VARIANCE = 1 << 28

_PIECE = 1 << 16
_AMBIGUOUS = np.int32(-(1 << 31))
_GUARD_BITS = 256
_LARGEST_ENTRY = (1 << 128) - 1


class Mechanism(IntEnum):
    """The noise that each device adds its share of."""

    NONE = 0
    SKELLAM = 1
    DISCRETE_GAUSSIAN = 2


@dataclass(frozen=True, slots=True, eq=False)
class NoiseTable:
    """The integer distribution function of one noise, and the values its top 16 bits decide.

    Attributes:
        half: the support is -half..half.
        high: top 64 bits of the 128-bit entries for -half..half-1, ascending; the last entry, 2^128, is
            left out.
        low: their bottom 64 bits.
        prefix: for each top 16 bits of u the value drawn, or a mark where they do not decide it.
        below: for each top 16 bits the entries whose own are less.
        crowded: for each top 16 bits whether more than one entry has the same.
    """

    half: int
    high: NDArray[np.uint64] = field(repr=False)
    low: NDArray[np.uint64] = field(repr=False)
    prefix: NDArray[np.int32] = field(repr=False)
    below: NDArray[np.int32] = field(repr=False)
    crowded: NDArray[np.bool_] = field(repr=False)


def half_width(variance: int) -> int:
    """Return the largest value drawn; beyond it lies less than 2^-139 of the distribution."""
    return 14 * math.isqrt(variance) + 74


def draw_error(variance: int) -> float:
    """Return a bound on the total variation distance of one draw from the distribution of either mechanism.

    Half the sum of 2*half+1 errors of at most 2^-128, less than 2^-139 of tail cut off, and less than
    2^-200 from the recurrences.
    """
    return math.ldexp(half_width(variance) + 2, -128) if variance else 0.0


def sample(mechanism: Mechanism, variance: int, count: int, stream: Stream) -> NDArray[np.int32]:
    """Return `count` draws of a mechanism's noise; zeros for variance 0 and for no mechanism.

    Takes from the stream: count 16-bit integers, the top bits of every u; then a 64-bit integer for each
    value they leave open, in order, its top 48 bits the next bits of u; then, for each still open, a
    64-bit integer, the last bits of u.

    Raises:
        PrivacyError: the variance is negative or above 2^28.
    """
    if variance == 0 or mechanism is Mechanism.NONE:
        return np.zeros(count, np.int32)
    table = noise_table(mechanism, variance)
    tops = stream.uint16(count)
    drawn = np.empty(count, np.int32)
    for start in range(0, count, _PIECE):  # numpy indexes with eight bytes each
        drawn[start : start + _PIECE] = table.prefix.take(tops[start : start + _PIECE])
    open_places = np.flatnonzero(drawn == _AMBIGUOUS)
    if len(open_places):
        drawn[open_places] = _refine(table, tops[open_places], stream)
    return drawn


@lru_cache(maxsize=8)
def noise_table(mechanism: Mechanism, variance: int) -> NoiseTable:
    """Return the table of one mechanism and variance; see the head of this module."""
    if not 1 <= variance <= MAXIMUM_VARIANCE:
        raise PrivacyError(
            f"a noise variance of {variance} is not in 1..2^28", hint="choose a smaller scale or fewer bits"
        )
    half = half_width(variance)
    weights = (_gaussian if mechanism is Mechanism.DISCRETE_GAUSSIAN else _bessel)(variance, half)
    total = 2 * sum(weights) - weights[0]
    entries = bytearray()
    cumulative = 0
    for value in range(-half, half):
        cumulative += weights[abs(value)]
        entries += min((cumulative << 128) // total, _LARGEST_ENTRY).to_bytes(16, "little")
    words = np.frombuffer(entries, "<u8").astype(np.uint64).reshape(-1, 2)
    high, low = np.ascontiguousarray(words[:, 1]), np.ascontiguousarray(words[:, 0])
    inside = np.bincount((high >> np.uint64(48)).astype(np.int64), minlength=1 << 16)
    below = (np.cumsum(inside) - inside).astype(np.int32)
    prefix = np.where(inside > 0, _AMBIGUOUS, below - np.int32(half))
    crowded = inside > 1
    for part in (high, low, prefix, below, crowded):
        part.flags.writeable = False
    return NoiseTable(half, high, low, prefix, below, crowded)


def _bessel(variance: int, half: int) -> list[int]:
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


def _gaussian(variance: int, half: int) -> list[int]:
    """Return multiples of exp(-k^2 / (2v)) for k = 0 ... half, as powers k^2 = 1 + 3 + ... + (2k-1) of exp(-1/(2v))."""
    base, term, order = 0, 1 << _GUARD_BITS, 0
    while term:
        base += -term if order % 2 else term
        order += 1
        term //= 2 * variance * order
    step = base * base >> _GUARD_BITS
    weights, factor = [1 << _GUARD_BITS], base
    for _ in range(half):
        weights.append(weights[-1] * factor >> _GUARD_BITS)
        factor = factor * step >> _GUARD_BITS
    return weights


def _refine(table: NoiseTable, tops: NDArray[np.uint16], stream: Stream) -> NDArray[np.int32]:
    """Return the values of draws whose top 16 bits leave them open."""
    values = np.empty(len(tops), np.int32)
    ties: list[tuple[int, np.uint64]] = []
    # Piece by piece: what is needed beside the values stays small, and in the cache.
    for start in range(0, len(tops), _PIECE):
        piece = tops[start : start + _PIECE]
        words = (piece.astype(np.uint64) << np.uint64(48)) | (stream.uint64(len(piece)) >> np.uint64(16))
        # Most have one entry to be compared with; searching the table for all would take several times as long.
        counts = table.below.take(piece)
        counts += table.high.take(counts) <= words
        crowded = np.flatnonzero(table.crowded.take(piece))
        counts[crowded] = np.searchsorted(table.high, words[crowded], side="right")
        tied = np.flatnonzero((counts > 0) & (table.high[counts - 1] == words))
        ties += [(start + place, words[place]) for place in tied.tolist()]
        values[start : start + _PIECE] = counts
    if ties:
        for (place, word), last_bits in zip(ties, stream.uint64(len(ties)), strict=True):
            first = int(np.searchsorted(table.high, word, side="left"))
            equal = table.low[first : values[place]]
            values[place] = first + np.searchsorted(equal, last_bits, side="right")
    values -= table.half
    return values
