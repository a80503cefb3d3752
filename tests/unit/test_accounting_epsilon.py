"""The device's own accountant and the coordinator's, against each other and against what is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from coordinator.privacy import accountant
from coordinator.privacy.ledger import ReleaseEvent
from edge_sdk.errors import PrivacyError, StoreError
from edge_sdk.privacy.accounting import Release, honest_reports, rdp_epsilon, sum_divergence
from edge_sdk.privacy.noise import Mechanism

AGREEMENT = 1e-9
"""Relative difference allowed between the two accountants, which share formulas and nothing else."""

RELEASE = Release(Mechanism.SKELLAM, norm_bound=141.75, length=2048, device_variance=436, honest=133)
EVENT = ReleaseEvent.of(RELEASE, reports=150)
GAUSSIAN = replace(RELEASE, mechanism=Mechanism.DISCRETE_GAUSSIAN)
OTHER = Release(Mechanism.SKELLAM, norm_bound=2.0, length=4, device_variance=1, honest=5)


@pytest.mark.parametrize("mechanism", [Mechanism.SKELLAM, Mechanism.DISCRETE_GAUSSIAN])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("rounds", [1, 10, 300])
@pytest.mark.parametrize(
    ("norm_bound", "length", "device_variance", "honest"),
    [
        (141.75, 2048, 436, 133),
        (3903.25, 1 << 20, 105_029, 700),
        (53.0, 16, 57_909, 1),
        (2.0, 4, 1, 5),
        (2.0, 1370, 2, 1_000),
        (30.0, 1, 10**7, 1),
    ],
)
def test_both_accountants_agree(
    mechanism: Mechanism, norm_bound: float, length: int, device_variance: int, honest: int, rounds: int, delta: float
) -> None:
    release = Release(mechanism, norm_bound, length, device_variance, honest)
    expected = accountant.epsilon([ReleaseEvent.of(release, 10)] * rounds, delta)
    assert rdp_epsilon([release] * rounds, delta) == pytest.approx(expected, rel=AGREEMENT, abs=1e-12)


def test_a_mixed_ledger_costs_no_less_at_the_coordinator() -> None:
    """It takes the better bound for the whole ledger, the device's takes it for each release and order."""
    releases = [RELEASE, OTHER, RELEASE, GAUSSIAN]
    theirs = accountant.epsilon([ReleaseEvent.of(release, 10) for release in releases], 1e-5)
    mine = rdp_epsilon(releases, 1e-5)
    assert mine <= theirs * (1 + AGREEMENT)
    assert theirs < 1.2 * mine


@pytest.mark.parametrize("mechanism", [Mechanism.SKELLAM, Mechanism.DISCRETE_GAUSSIAN])
def test_with_much_noise_both_cost_what_the_gaussian_does(mechanism: Mechanism) -> None:
    # z = 2.18, ten rounds, delta 1e-6: 8.00 over all Renyi orders, up to one percent more over integers.
    release = Release(mechanism, 1e6, 10_000, round((2.18e6) ** 2), 1)
    assert 8.0 < rdp_epsilon([release] * 10, 1e-6) < 8.08


def test_coarse_discrete_gaussians_pay_for_not_adding_up_to_one() -> None:
    """tau of theorem 1, by hand: with two devices 10 exp(-pi^2 v)."""
    assert sum_divergence(1, 2) == pytest.approx(10 * math.exp(-(math.pi**2)))
    assert sum_divergence(7, 1) == 0.0
    assert sum_divergence(1, 1000) < 10 * (math.exp(-(math.pi**2)) + 998 * math.exp(-4 / 3 * math.pi**2))
    fine, coarse = (
        replace(GAUSSIAN, norm_bound=norm, device_variance=v) for norm, v in ((141.75, 436), (141.75 / 14.76, 2))
    )
    assert fine.norm_bound**2 / fine.variance == pytest.approx(coarse.norm_bound**2 / coarse.variance, rel=1e-3)
    assert rdp_epsilon([coarse], 1e-5) > rdp_epsilon([fine], 1e-5) + 2048 * sum_divergence(2, 133) * 0.9


def test_epsilon_grows_with_releases_and_falls_with_noise_and_delta() -> None:
    for release in (RELEASE, GAUSSIAN):
        one = rdp_epsilon([release], 1e-5)
        assert rdp_epsilon([release] * 2, 1e-5) > one > 0
        assert rdp_epsilon([release], 1e-3) < one
        assert rdp_epsilon([replace(release, device_variance=1_500)], 1e-5) < one
        assert rdp_epsilon([replace(release, honest=400)], 1e-5) < one


def test_an_empty_ledger_has_spent_nothing() -> None:
    assert accountant.epsilon([], 1e-5) == 0.0
    assert rdp_epsilon([], 1e-5) == 0.0


def test_the_budget_stops_the_release_that_would_overdraw_it() -> None:
    events = [EVENT] * 9
    tenth = accountant.epsilon([*events, EVENT], 1e-5)
    assert not accountant.would_exceed(events, EVENT, tenth, 1e-5)
    assert accountant.would_exceed(events, EVENT, tenth * (1 - 1e-9), 1e-5)


def test_only_as_many_releases_count_as_a_device_took_part_in() -> None:
    quieter = replace(EVENT, device_variance=EVENT.device_variance * 2)
    ledger = [quieter, EVENT, quieter, EVENT, quieter]
    assert accountant.epsilon(ledger, 1e-5, participations=2) == accountant.epsilon([EVENT] * 2, 1e-5)
    assert accountant.epsilon(ledger, 1e-5, participations=5) == accountant.epsilon(ledger, 1e-5)
    budget = accountant.epsilon([EVENT] * 2, 1e-5)
    assert not accountant.would_exceed(ledger, EVENT, budget, 1e-5, participations=2)
    assert accountant.would_exceed(ledger, EVENT, budget, 1e-5)


def test_a_release_without_noise_costs_infinity() -> None:
    silent = ReleaseEvent.of(replace(RELEASE, mechanism=Mechanism.NONE), reports=150)
    assert accountant.epsilon([EVENT, silent], 1e-5) == math.inf
    assert accountant.would_exceed([], silent, 100.0, 1e-5)
    assert not accountant.would_exceed([], silent, math.inf, 1e-5)


@pytest.mark.parametrize(
    ("event", "what"),
    [
        (replace(EVENT, mechanism="gaussian"), "'gaussian', which is not known"),
        (replace(EVENT, device_variance=0), "makes no sense"),
        (replace(EVENT, mechanism="discrete_gaussian", device_variance=0), "makes no sense"),
        (replace(EVENT, norm_bound=math.inf), "makes no sense"),
        (replace(EVENT, length=0), "makes no sense"),
        (replace(EVENT, honest=0), "makes no sense"),
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
        rdp_epsilon([RELEASE], delta)


@pytest.mark.parametrize(
    "changes",
    [{"device_variance": 0}, {"honest": 0}, {"norm_bound": math.inf}, {"length": 0}, {"mechanism": Mechanism.NONE}],
    ids=str,
)
@pytest.mark.parametrize("release", [RELEASE, GAUSSIAN], ids=["skellam", "discrete gaussian"])
def test_a_release_without_a_bound_has_no_epsilon(release: Release, changes: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError, match="no epsilon"):
        rdp_epsilon([replace(release, **changes)], 1e-5)


def test_the_one_norm_bound_is_that_of_integer_vectors() -> None:
    assert replace(RELEASE, norm_bound=100.0).l1_bound == pytest.approx(100.0 * math.sqrt(2048))
    assert replace(RELEASE, norm_bound=3.0).l1_bound == 9.0


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
        '{"device_variance": 436, "honest": 133, "length": 2048, "mechanism": "skellam", "norm_bound": 141.75, '
        '"reports": 150}'
    )


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", EVENT.to_json().replace("436", "436.5"), EVENT.to_json().replace("141.75", "[]")],
)
def test_a_damaged_event_is_refused(text: str) -> None:
    with pytest.raises(StoreError, match="ledger entry"):
        ReleaseEvent.from_json(text)
