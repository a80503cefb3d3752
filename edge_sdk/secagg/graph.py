"""Who shares and masks with whom: the degree, the threshold and the neighbours of the SecAgg+ graph.

The graph is Harary's of even degree k over a random cyclic order: each device's neighbours are the k/2
before it and the k/2 after it. Degree and threshold keep security 2^-40 and correctness 2^-20 (Bell et
al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead"). Knows no keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import LocalProtocolError, PrivacyError
from edge_sdk.secagg.chances import check_shares, count, hypergeometric
from edge_sdk.secagg.suite import Stream

COMPLETE_BELOW = 50
"""Rounds smaller than this use the complete graph."""

LARGEST_ROSTER = 65_535
"""Shares lie at the points index+1 of GF(2^16), zero excepted."""

SECURITY_BITS = 40
"""Protocol 1: a round's graph fails to protect with a chance of at most 2^-40."""

CORRECTNESS_BITS = 20
"""A round fails though no more dropped out than planned for with a chance of at most 2^-20."""


@dataclass(frozen=True, slots=True)
class GraphParameters:
    """The degree k, the number t of neighbours' shares that rebuild a secret, and the bound t1.

    Except with probability 2^-41, no honest device has more than `corrupt_bound` corrupt neighbours.
    """

    degree: int
    threshold: int
    corrupt_bound: int


@lru_cache(maxsize=256)
def parameters(
    size: int,
    corrupt_share: float,
    dropout_share: float,
    two_survivor_sets: bool = True,
    *,
    security_bits: int = SECURITY_BITS,
    correctness_bits: int = CORRECTNESS_BITS,
) -> GraphParameters:
    """Return the smallest sound degree for `size` devices and its smallest threshold.

    Args:
        size: devices in the roster.
        corrupt_share: share of them that may collude with the coordinator.
        dropout_share: share that may drop out after advertise_keys.
        two_survivor_sets: withstand a coordinator that shows two survivor sets, not only an honest one.
        security_bits: the graph protects but for a chance of 2^-this.
        correctness_bits: the round can be unmasked but for a chance of 2^-this.

    Below 50 devices, and where no degree serves, the graph is complete and the threshold is
    floor(2*size/3) + 1, but no more than the neighbours there are.

    Raises:
        PrivacyError: not even the complete graph is sound, or a share or level is out of range.
    """
    if not 2 <= size <= LARGEST_ROSTER:
        raise PrivacyError(
            f"a round of {size} devices cannot be masked", hint=f"choose cohorts of 2 to {LARGEST_ROSTER} devices"
        )
    check_shares(corrupt_share, dropout_share)
    if not (1 <= security_bits <= 128 and 1 <= correctness_bits <= 128):
        raise PrivacyError(
            f"levels of {security_bits} and {correctness_bits} bits make no graph", hint="choose 1 to 128 bits"
        )
    if size >= COMPLETE_BELOW:
        for degree in range(2, size - 1, 2):
            lost = count(corrupt_share, size) + count(dropout_share, size)
            if not _is_connected(size, degree, lost, security_bits):
                continue
            corrupt_bound = colluding_neighbours(size, degree, corrupt_share, security_bits)
            threshold = max(2, _minimum_threshold(degree, corrupt_bound, two_survivor_sets))
            if threshold <= _live_bound(size, degree, dropout_share, correctness_bits):
                return GraphParameters(degree, threshold, corrupt_bound)
    complete = GraphParameters(size - 1, min(2 * size // 3 + 1, size - 1), count(corrupt_share, size))
    if complete.threshold < _minimum_threshold(complete.degree, complete.corrupt_bound, two_survivor_sets):
        raise PrivacyError(
            f"no graph over {size} devices withstands a corrupt share of {corrupt_share}",
            hint="plan for fewer corrupt devices, or for a larger cohort",
        )
    return complete


@lru_cache(maxsize=1024)
def is_sound(
    size: int,
    degree: int,
    threshold: int,
    corrupt_share: float,
    two_survivor_sets: bool = True,
    dropout_share: float = 0.0,
) -> bool:
    """Return whether a roster's degree and threshold keep the security that a device insists on.

    Checks that the honest devices that stay are connected, that the corrupt neighbours' shares stay
    below the threshold, and that no two survivor sets can both reach it. Whether the round succeeds is
    the coordinator's affair and not checked.
    """
    check_shares(corrupt_share, dropout_share)
    if not 2 <= size <= LARGEST_ROSTER or not 1 <= degree <= size - 1 or not 1 <= threshold <= degree:
        return False
    if degree == size - 1:
        corrupt_bound = count(corrupt_share, size)
    elif degree % 2 or not _is_connected(size, degree, count(corrupt_share, size) + count(dropout_share, size)):
        return False
    else:
        corrupt_bound = colluding_neighbours(size, degree, corrupt_share)
    return threshold >= _minimum_threshold(degree, corrupt_bound, two_survivor_sets)


def permutation(size: int, seed: bytes) -> NDArray[np.int64]:
    """Return the cyclic order of 0..size-1 that a 32-byte seed gives, read-only.

    Each index draws a 64-bit integer from the seed's stream; the order is by (integer, index).
    """
    return _ring(size, seed)[0]


def neighbours(size: int, degree: int, index: int, seed: bytes) -> tuple[int, ...]:
    """Return the sorted neighbours of one device; all others where degree >= size-1."""
    if not 0 <= index < size:
        raise LocalProtocolError(f"no device has index {index} of {size}")
    if degree >= size - 1:
        return tuple(other for other in range(size) if other != index)
    if degree < 2 or degree % 2:
        raise LocalProtocolError(f"a ring graph has an even degree, not {degree}")
    order, position = _ring(size, seed)
    offsets = np.arange(1, degree // 2 + 1)
    around = np.concatenate([position[index] + offsets, position[index] - offsets]) % size
    return tuple(sorted(order[around].tolist()))


@lru_cache(maxsize=8)
def _ring(size: int, seed: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.argsort(Stream(seed).uint64(size), kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(size)
    order.flags.writeable = position.flags.writeable = False
    return order, position


def _minimum_threshold(degree: int, corrupt_bound: int, two_survivor_sets: bool) -> int:
    """Two disjoint sets of shares reach t only if 2t <= k + t1: corrupt neighbours answer both."""
    return (degree + corrupt_bound) // 2 + 1 if two_survivor_sets else corrupt_bound + 1


def _is_connected(size: int, degree: int, lost: int, security_bits: int = SECURITY_BITS) -> bool:
    """Bound the chance that two gaps of degree/2 lost devices cut the ring, over all pairs of places."""
    if degree > lost:
        return True
    log_pairs = math.log(size) + math.log(max(size - degree - 1, 1)) - math.log(2)
    log_all_lost = (
        math.lgamma(lost + 1) + math.lgamma(size - degree + 1) - math.lgamma(size + 1) - math.lgamma(lost - degree + 1)
    )
    return log_pairs + log_all_lost < -(security_bits + 1) * math.log(2)


def colluding_neighbours(size: int, degree: int, corrupt_share: float, security_bits: int = SECURITY_BITS) -> int:
    """Return the least t1 with P[more than t1 corrupt neighbours] <= 2^-(security_bits + 1) / size."""
    chances = hypergeometric(size, count(corrupt_share, size), degree)
    tails = np.cumsum(chances[::-1])[::-1]  # tails[i] = P[at least i]
    return int(np.count_nonzero(tails > 2.0 ** -(security_bits + 1) / size)) - 1


def _live_bound(size: int, degree: int, dropout_share: float, correctness_bits: int) -> int:
    """Return the greatest t with P[fewer than t live neighbours] <= 2^-correctness_bits / size."""
    live = size - count(dropout_share, size)
    below = np.cumsum(hypergeometric(size, live, degree))  # below[i] = P[at most i]
    return int(np.count_nonzero(below <= 2.0**-correctness_bits / size))
