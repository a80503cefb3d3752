"""The device's own accountant and the coordinator's, against each other and against what is known."""

from __future__ import annotations

import math

import pytest

from coordinator.privacy import accountant
from coordinator.privacy.ledger import ReleaseEvent
from edge_sdk.errors import PrivacyError, StoreError
from edge_sdk.privacy.accounting import SkellamRelease, honest_reports, rdp_epsilon

AGREEMENT = 1e-9
"""Relative difference allowed between the two accountants, which share formulas and nothing else."""

EVENT = ReleaseEvent("skellam", norm_bound=141.75, dimension=2048, variance=57_988, reports=150)


def own(event: ReleaseEvent) -> SkellamRelease:
    return SkellamRelease(event.norm_bound, event.l1_bound, event.variance)


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("rounds", [1, 10, 300])
@pytest.mark.parametrize(
    ("norm_bound", "dimension", "variance"),
    [
        (141.75, 2048, 57_988),
        (3903.25, 1 << 20, 73_520_300),
        (53.0, 16, 57_909),
        (2.0, 4, 5),
        (30.0, 1, 10**7),
    ],
)
def test_both_accountants_agree(norm_bound: float, dimension: int, variance: int, rounds: int, delta: float) -> None:
    event = ReleaseEvent("skellam", norm_bound, dimension, variance, 10)
    expected = accountant.epsilon([event] * rounds, delta)
    assert rdp_epsilon([own(event)] * rounds, delta) == pytest.approx(expected, rel=AGREEMENT, abs=1e-12)


def test_a_mixed_ledger_costs_no_less_at_the_coordinator() -> None:
    """It takes the better bound for the whole ledger, the device's takes it for each release and order."""
    other = ReleaseEvent("skellam", norm_bound=2.0, dimension=4, variance=5, reports=10)
    events = [EVENT, other, EVENT]
    theirs, mine = accountant.epsilon(events, 1e-5), rdp_epsilon(map(own, events), 1e-5)
    assert mine <= theirs * (1 + AGREEMENT)
    assert theirs < 1.2 * mine


def test_with_much_noise_skellam_costs_what_the_gaussian_does() -> None:
    # z = 2.18, ten rounds, delta 1e-6: 8.00 over all Renyi orders, up to one percent more over integers.
    norm, variance = 1e6, round((2.18e6) ** 2)
    release = SkellamRelease(norm, norm * 100, variance)
    assert 8.0 < rdp_epsilon([release] * 10, 1e-6) < 8.08


def test_epsilon_grows_with_releases_and_falls_with_noise_and_delta() -> None:
    one = rdp_epsilon([own(EVENT)], 1e-5)
    assert rdp_epsilon([own(EVENT)] * 2, 1e-5) > one > 0
    assert rdp_epsilon([own(EVENT)], 1e-3) < one
    assert rdp_epsilon([SkellamRelease(141.75, 6412.0, 200_000)], 1e-5) < one


def test_an_empty_ledger_has_spent_nothing() -> None:
    assert accountant.epsilon([], 1e-5) == 0.0
    assert rdp_epsilon([], 1e-5) == 0.0


def test_the_budget_stops_the_release_that_would_overdraw_it() -> None:
    events = [EVENT] * 9
    tenth = accountant.epsilon([*events, EVENT], 1e-5)
    assert not accountant.would_exceed(events, EVENT, tenth, 1e-5)
    assert accountant.would_exceed(events, EVENT, tenth * (1 - 1e-9), 1e-5)


def test_only_as_many_releases_count_as_a_device_took_part_in() -> None:
    quieter = ReleaseEvent("skellam", EVENT.norm_bound, EVENT.dimension, EVENT.variance * 2, 300)
    ledger = [quieter, EVENT, quieter, EVENT, quieter]
    assert accountant.epsilon(ledger, 1e-5, participations=2) == accountant.epsilon([EVENT] * 2, 1e-5)
    assert accountant.epsilon(ledger, 1e-5, participations=5) == accountant.epsilon(ledger, 1e-5)
    budget = accountant.epsilon([EVENT] * 2, 1e-5)
    assert not accountant.would_exceed(ledger, EVENT, budget, 1e-5, participations=2)
    assert accountant.would_exceed(ledger, EVENT, budget, 1e-5)


def test_a_release_without_noise_costs_infinity() -> None:
    silent = ReleaseEvent("none", norm_bound=141.75, dimension=2048, variance=0, reports=150)
    assert accountant.epsilon([EVENT, silent], 1e-5) == math.inf
    assert accountant.would_exceed([], silent, 100.0, 1e-5)
    assert not accountant.would_exceed([], silent, math.inf, 1e-5)


@pytest.mark.parametrize(
    ("event", "what"),
    [
        (ReleaseEvent("gaussian", 1.0, 2, 3, 4), "'gaussian', which is not known"),
        (ReleaseEvent("skellam", 1.0, 2, 0, 4), "makes no sense"),
        (ReleaseEvent("skellam", math.inf, 2, 3, 4), "makes no sense"),
        (ReleaseEvent("skellam", 1.0, 0, 3, 4), "makes no sense"),
    ],
)
def test_a_ledger_that_cannot_be_judged_is_refused(event: ReleaseEvent, what: str) -> None:
    with pytest.raises(PrivacyError, match=what):
        accountant.epsilon([EVENT, event], 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_delta_is_a_chance(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta"):
        accountant.epsilon([EVENT], delta)
    with pytest.raises(PrivacyError, match="delta"):
        rdp_epsilon([own(EVENT)], delta)


@pytest.mark.parametrize("release", [SkellamRelease(1.0, 1.0, 0), SkellamRelease(math.inf, 1.0, 5)])
def test_a_release_without_a_bound_has_no_epsilon(release: SkellamRelease) -> None:
    with pytest.raises(PrivacyError, match="no epsilon"):
        rdp_epsilon([release], 1e-5)


def test_the_one_norm_bound_is_over_the_padded_vector() -> None:
    release = SkellamRelease.of_rounded(norm_bound=100.0, dimension=1025, variance=9)
    assert release.l1_bound == pytest.approx(100.0 * math.sqrt(2048))
    assert SkellamRelease.of_rounded(norm_bound=3.0, dimension=1025, variance=9).l1_bound == 9.0


@pytest.mark.parametrize(
    ("reports", "roster", "corrupt_share", "honest"),
    [
        (140, 200, 0.05, 130),
        (140, 140, 0.05, 133),
        (10, 10, 0.0, 10),
        (1, 20, 0.05, 1),
        (70, 70, 0.1, 63),
        (3, 9, 0.4, 1),
    ],
)
def test_all_colluders_of_the_roster_may_be_in_the_smallest_sum(
    reports: int, roster: int, corrupt_share: float, honest: int
) -> None:
    assert honest_reports(reports, roster, corrupt_share) == honest


def test_an_event_survives_as_json() -> None:
    text = EVENT.to_json()
    assert ReleaseEvent.from_json(text) == EVENT
    assert text == (
        '{"dimension": 2048, "mechanism": "skellam", "norm_bound": 141.75, "reports": 150, "variance": 57988}'
    )


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", EVENT.to_json().replace("57988", "57988.5"), EVENT.to_json().replace("141.75", "[]")],
)
def test_a_damaged_event_is_refused(text: str) -> None:
    with pytest.raises(StoreError, match="ledger entry"):
        ReleaseEvent.from_json(text)
