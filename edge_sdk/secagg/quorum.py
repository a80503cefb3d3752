"""One set of survivors for all, held by a quorum of signatures instead of by the threshold.

With many dropouts a threshold that no two survivor sets can both reach asks for hundreds of neighbours. Here a
committee, drawn by the roster itself, signs the survivors; more than half of it, colluders counted twice, is a quorum,
and two sets cannot both have one. The threshold then only has to withstand the colluders. What it no longer does, each
device does: it looks whether the survivors that it is shown still hold the ring together. PROTOCOL.md has the argument.
Knows no keys, signatures or messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import PrivacyError
from edge_sdk.secagg import graph
from edge_sdk.secagg.chances import check_shares, count, hypergeometric
from edge_sdk.secagg.graph import CORRECTNESS_BITS, SECURITY_BITS, GraphParameters
from edge_sdk.secagg.suite import Stream

COMMITTEE_SECURITY_BITS = 60
"""More colluders than counted with are on a committee with a chance of at most 2^-60: room for trying many rosters."""


@dataclass(frozen=True, slots=True)
class QuorumParameters:
    """A graph whose threshold withstands the colluders, and the committee that keeps the survivors one set.

    Attributes:
        graph: degree and threshold.
        committee: devices that may sign.
        quorum: signatures that are shown.
    """

    graph: GraphParameters
    committee: int
    quorum: int


@lru_cache(maxsize=256)
def parameters(size: int, corrupt_share: float, dropout_share: float) -> QuorumParameters:
    """Return the smallest degree and the smallest committee that serve `size` devices.

    Below 50 devices, and where no degree serves, the graph is complete.

    Args:
        size: devices in the roster.
        corrupt_share: share of them that may collude with the coordinator.
        dropout_share: share that may drop out after advertise_keys.

    Raises:
        PrivacyError: so many collude and drop out that no quorum is left.
    """
    check_shares(corrupt_share, dropout_share)
    if not 2 <= size <= graph.LARGEST_ROSTER:
        raise PrivacyError(f"a round of {size} devices cannot be masked", hint="choose larger cohorts")
    live = size - count(dropout_share, size)
    for committee in range(1, size + 1):
        quorum = _least_quorum(size, committee, corrupt_share)
        if _chance_below(size, live, committee, quorum) <= 2.0**-CORRECTNESS_BITS:
            return QuorumParameters(_graph(size, corrupt_share, dropout_share), committee, quorum)
    raise PrivacyError(
        f"no quorum is left of {size} devices if {corrupt_share:.0%} collude and {dropout_share:.0%} drop out",
        hint="both together must leave more than half of the honest: 2 * dropout_share < 1 - corrupt_share",
    )


def is_sound(size: int, committee: int, quorum: int, corrupt_share: float) -> bool:
    """Return whether two quorums of the committee always share a device that does not collude."""
    return 1 <= committee <= size and _least_quorum(size, committee, corrupt_share) <= quorum <= committee


def members(size: int, committee: int, seed: bytes) -> frozenset[int]:
    """Return who sits on the committee: the first of the indices in the order that a 32-byte seed gives.

    Args:
        seed: another one than the graph's, so that a committee is no neighbourhood.
    """
    return frozenset(np.argsort(Stream(seed).uint64(size), kind="stable")[:committee].tolist())


def holds_together(size: int, degree: int, survivors: frozenset[int], corrupt_share: float, seed: bytes) -> bool:
    """Return whether the honest survivors are one piece of the graph, whoever colludes.

    A ring falls apart only where two separate runs of degree/2 places hold no honest survivor. So any two runs
    together must hold more survivors than may collude there.

    Args:
        survivors: indices of U3.
        seed: of the graph.
    """
    if degree >= size - 1:
        return True
    alive = np.zeros(size, np.int64)
    alive[list(survivors)] = 1
    return _fewest_in_two_runs(alive[graph.permutation(size, seed)], degree // 2) > _cut_bound(
        size, degree, corrupt_share
    )


def _fewest_in_two_runs(marks: NDArray[np.int64], run: int) -> int:
    """Return the smallest sum of the marks in two disjoint runs of a cyclic row."""
    size = len(marks)
    sums = np.concatenate([[0], np.cumsum(np.concatenate([marks, marks[: run - 1]]))])
    first = sums[run:] - sums[:-run]  # of the run that begins at each place
    # The least of the runs that begin run .. size-run places later: `width` of them, by doubling.
    width = size - 2 * run + 1
    reach, least = 1, first
    while 2 * reach <= width:
        least = np.minimum(least, np.roll(least, -reach))
        reach *= 2
    second = np.minimum(np.roll(least, -run), np.roll(least, -(size - run - reach + 1)))
    return int(np.min(first + second))


def _graph(size: int, corrupt_share: float, dropout_share: float) -> GraphParameters:
    live = size - count(dropout_share, size)
    if size >= graph.COMPLETE_BELOW:
        for degree in range(2, size - 1, 2):
            threshold = max(2, graph.colluding_neighbours(size, degree, corrupt_share) + 1)
            bound = _cut_bound(size, degree, corrupt_share)
            if (
                graph.is_sound(size, degree, threshold, corrupt_share, False)
                and _chance_below(size, live, degree, threshold) <= 2.0**-CORRECTNESS_BITS / size
                and _chance_below(size, live, degree, bound + 1) <= 2.0**-CORRECTNESS_BITS / _pairs(size, degree)
            ):
                return GraphParameters(degree, threshold, threshold - 1)
    threshold = max(2, count(corrupt_share, size) + 1) if size > 2 else 1
    return GraphParameters(size - 1, threshold, count(corrupt_share, size))


@lru_cache(maxsize=1024)
def _least_quorum(size: int, committee: int, corrupt_share: float) -> int:
    """Two quorums of a committee of m with at most c colluders share an honest device if 2q > m + c."""
    tails = np.cumsum(hypergeometric(size, count(corrupt_share, size), committee)[::-1])[::-1]
    colluders = int(np.count_nonzero(tails > 2.0**-COMMITTEE_SECURITY_BITS)) - 1
    return (committee + colluders) // 2 + 1


@lru_cache(maxsize=1024)
def _cut_bound(size: int, degree: int, corrupt_share: float) -> int:
    """Return the least B with P[any two runs of degree/2 places hold more than B colluders] <= 2^-41."""
    tails = np.cumsum(hypergeometric(size, count(corrupt_share, size), degree)[::-1])[::-1]
    return int(np.count_nonzero(tails > 2.0 ** -(SECURITY_BITS + 1) / _pairs(size, degree))) - 1


def _pairs(size: int, degree: int) -> float:
    """Return how many pairs of separate runs there are, or a few more."""
    return size * max(size - degree - 1, 1) / 2


def _chance_below(size: int, marked: int, drawn: int, least: int) -> float:
    """Return P[fewer than `least` marked among those drawn]."""
    return float(np.sum(hypergeometric(size, marked, drawn)[:least]))
