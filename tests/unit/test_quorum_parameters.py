"""Committees and the ring: two quorums always meet in an honest device, and a ring that was cut is seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.rounds.agreement import cheapest
from edge_sdk.errors import PrivacyError
from edge_sdk.protocol.messages import Consistency
from edge_sdk.secagg import graph, quorum
from edge_sdk.secagg.chances import count, hypergeometric
from edge_sdk.secagg.suite import digest

SIZES = (100, 300, 1_000, 10_000)

# Degree/threshold and committee/quorum for (corrupt share, dropout share) and each of SIZES, as in docs/privacy.md.
TABLE = {
    (0.05, 0.1): ("16/6 24/15", "32/15 46/31", "44/20 63/44", "54/24 70/49"),
    (0.1, 0.1): ("22/11 31/21", "42/22 62/45", "56/29 81/59", "70/35 93/68"),
    (0.1, 0.2): ("28/11 47/29", "56/25 105/68", "80/35 167/110", "102/43 207/137"),
    (0.1, 0.3): ("36/11 71/41", "74/27 167/99", "108/40 357/217", "142/52 575/351"),
}
SEED = digest(b"ring")


@pytest.mark.parametrize("shares", TABLE)
def test_the_finder_gives_the_table(shares: tuple[float, float]) -> None:
    for size, cell in zip(SIZES, TABLE[shares], strict=True):
        found = quorum.parameters(size, *shares)
        assert f"{found.graph.degree}/{found.graph.threshold} {found.committee}/{found.quorum}" == cell


@given(st.integers(2, 400), st.sampled_from([0.0, 0.05, 0.1, 0.2]), st.sampled_from([0.0, 0.1, 0.2, 0.3]))
def test_what_the_finder_gives_is_sound(size: int, corrupt: float, dropout: float) -> None:
    found = quorum.parameters(size, corrupt, dropout)
    assert quorum.is_sound(size, found.committee, found.quorum, corrupt)
    assert graph.is_sound(size, found.graph.degree, found.graph.threshold, corrupt, False)
    assert not quorum.is_sound(size, found.committee, found.quorum - 1, corrupt)


@pytest.mark.parametrize(("size", "corrupt", "dropout"), [(40, 0.1, 0.3), (300, 0.1, 0.2), (1_000, 0.05, 0.3)])
def test_two_quorums_share_an_honest_device(size: int, corrupt: float, dropout: float) -> None:
    found = quorum.parameters(size, corrupt, dropout)
    colluders = count(corrupt, size)
    tails = np.cumsum(hypergeometric(size, colluders, found.committee)[::-1])[::-1]
    shared = 2 * found.quorum - found.committee  # at least so many signed both
    assert shared >= 1
    assert float(tails[shared] if shared < len(tails) else 0.0) <= 2.0**-quorum.COMMITTEE_SECURITY_BITS
    # A committee of everybody leaves nothing to chance.
    assert quorum.is_sound(size, size, (size + colluders) // 2 + 1, corrupt)
    assert not quorum.is_sound(size, size, (size + colluders) // 2, corrupt)


@pytest.mark.parametrize(
    ("committee", "signatures"), [(0, 0), (0, 1), (81, 59 - 1), (81, 82), (1_001, 900), (1_000, 550), (1, 0)]
)
def test_unsound_committees(committee: int, signatures: int) -> None:
    assert quorum.is_sound(1_000, 81, 59, 0.1)
    assert not quorum.is_sound(1_000, committee, signatures, 0.1)


def test_shares_that_leave_no_quorum() -> None:
    with pytest.raises(PrivacyError, match="no quorum is left"):
        quorum.parameters(200, 0.2, 0.45)
    with pytest.raises(PrivacyError, match="cannot be masked"):
        quorum.parameters(1, 0.1, 0.1)


def test_a_committee_is_drawn_from_all() -> None:
    drawn = quorum.members(200, 40, SEED)
    assert len(drawn) == 40
    assert drawn <= set(range(200))
    assert quorum.members(200, 41, SEED) > drawn
    assert quorum.members(200, 40, digest(b"another")) != drawn
    assert quorum.members(200, 200, SEED) == frozenset(range(200))


# ---- the ring


@given(st.lists(st.integers(0, 1), min_size=4, max_size=40), st.data())
def test_the_two_poorest_runs_are_found(marks: list[int], data: st.DataObject) -> None:
    size = len(marks)
    run = data.draw(st.integers(1, (size - 1) // 2))
    sums = [sum(marks[(start + step) % size] for step in range(run)) for start in range(size)]
    pairs = [(i, j) for i in range(size) for j in range(size) if run <= (j - i) % size <= size - run]
    expected = min(sums[i] + sums[j] for i, j in pairs)
    assert quorum._fewest_in_two_runs(np.array(marks), run) == expected


def survivors_without(size: int, places: set[int]) -> frozenset[int]:
    """All but those who stand at these places of the ring."""
    order = graph.permutation(size, SEED).tolist()
    return frozenset(index for place, index in enumerate(order) if place not in places)


@pytest.mark.parametrize("size", [60, 200, 1_000])
def test_a_ring_that_the_coordinator_cuts_does_not_hold(size: int) -> None:
    found = quorum.parameters(size, 0.05, 0.2)
    run = found.graph.degree // 2
    halves = set(range(run)) | set(range(size // 2, size // 2 + run))
    assert not quorum.holds_together(size, found.graph.degree, survivors_without(size, halves), 0.05, SEED)
    # Nor where those who are alive in the gaps may all be colluders.
    colluders = quorum._cut_bound(size, found.graph.degree, 0.05)
    gaps = set(sorted(halves)[colluders:])
    assert not quorum.holds_together(size, found.graph.degree, survivors_without(size, gaps), 0.05, SEED)
    gaps = set(sorted(halves)[colluders + 1 :])
    assert quorum.holds_together(size, found.graph.degree, survivors_without(size, gaps), 0.05, SEED)


def test_one_gap_does_not_cut_a_ring() -> None:
    found = quorum.parameters(1_000, 0.05, 0.2)
    gap = set(range(found.graph.degree // 2))
    # Elsewhere all are alive, which is more than may collude.
    assert quorum.holds_together(1_000, found.graph.degree, survivors_without(1_000, gap), 0.05, SEED)


@pytest.mark.parametrize(("size", "corrupt", "dropout"), [(60, 0.05, 0.2), (200, 0.1, 0.2), (1_000, 0.1, 0.3)])
def test_random_dropouts_leave_the_ring_whole(size: int, corrupt: float, dropout: float) -> None:
    found = quorum.parameters(size, corrupt, dropout)
    random = np.random.default_rng(7)
    for _ in range(200):
        alive = frozenset(random.choice(size, size - count(dropout, size), replace=False).tolist())
        assert quorum.holds_together(size, found.graph.degree, alive, corrupt, SEED)


def test_a_complete_graph_cannot_be_cut() -> None:
    assert quorum.holds_together(10, 9, frozenset({1, 5}), 0.3, SEED)


# ---- the planner


@pytest.mark.parametrize(
    ("size", "corrupt", "dropout", "expected"),
    [
        (40, 0.05, 0.2, Consistency.THRESHOLD),
        (200, 0.05, 0.2, Consistency.THRESHOLD),
        (1_000, 0.05, 0.1, Consistency.THRESHOLD),
        (10_000, 0.1, 0.1, Consistency.THRESHOLD),
        (1_000, 0.05, 0.2, Consistency.QUORUM),
        (1_000, 0.1, 0.2, Consistency.QUORUM),
        (10_000, 0.1, 0.3, Consistency.QUORUM),
        (200, 0.3, 0.4, Consistency.THRESHOLD),
    ],
)
def test_a_quorum_is_planned_where_it_costs_less(
    size: int, corrupt: float, dropout: float, expected: Consistency
) -> None:
    assert cheapest(size, corrupt, dropout) is expected
