"""The device's own floors: every plan below them is declined for its own reason."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from edge_sdk.privacy.accounting import Release
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.protocol.messages import DeclineReason, Plan
from edge_sdk.protocol.policy import (
    DevicePolicy,
    Spending,
    composed_epsilon,
    honest_survivors,
    objection,
    release_of,
)
from tests.unit.cohort import PLAN, planned

POLICY = DevicePolicy(min_reports=4, epsilon_at_most=10.0, participations_at_most=5)
NOTHING = Spending()


def reason(plan: Plan, policy: DevicePolicy = POLICY, spending: Spending = NOTHING) -> DeclineReason | None:
    found = objection(plan, policy, spending)
    return None if found is None else found.reason


def test_a_plan_that_keeps_every_promise_is_followed() -> None:
    assert objection(PLAN, POLICY, NOTHING) is None
    assert objection(planned(device_variance=2_000), POLICY, NOTHING) is None


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (planned(suite=2), DeclineReason.SUITE_UNSUPPORTED),
        (planned(min_reports=3), DeclineReason.COHORT_TOO_SMALL),
        (planned(corrupt_share=0.04), DeclineReason.COHORT_TOO_SMALL),
        (planned(mechanism=Mechanism.NONE), DeclineReason.NOISE_TOO_SMALL),
        (planned(device_variance=0), DeclineReason.NOISE_TOO_SMALL),
        (planned(device_variance=100), DeclineReason.EPSILON_TOO_LARGE),
        (planned(norm_bound=600.0), DeclineReason.EPSILON_TOO_LARGE),
        (planned(participation_cap=200), DeclineReason.EPSILON_TOO_LARGE),
        # Among more devices more may collude: their noise does not count.
        (planned(goal_count=2_000, device_variance=2_000), DeclineReason.EPSILON_TOO_LARGE),
    ],
)
def test_a_weaker_plan_is_declined(plan: Plan, expected: DeclineReason) -> None:
    lenient = replace(POLICY, participations_at_most=1_000)
    assert reason(plan, lenient) is expected


MALFORMED: list[dict[str, Any]] = [
    {"learning_rate": 0.0},
    {"learning_rate": -0.1},
    {"learning_rate": math.inf},
    {"expires_after_s": 0.0},
    {"proximal": -0.1},
    {"proximal": math.inf},
    {"expires_after_s": math.inf},
    {"goal_count": 0},
    {"goal_count": 3},
    {"goal_count": 65_536},
    {"min_reports": 0},
    {"epochs": 0},
    {"batch_size": 0},
    {"max_steps": 0},
    {"participation_cap": 0},
    {"dimension": 0},
    {"dimension": (1 << 27) + 1},
    {"bits": 7},
    {"bits": 33},
    {"clip_norm": 0.0},
    {"clip_norm": -1.0},
    {"clip_norm": math.inf},
    {"clip_bit": -1.0},
    {"clip_bit": math.inf},
    {"clip_bit": 0.7},
    {"scale": 0.0},
    {"scale": math.inf},
    {"norm_bound": 1.0},
    {"norm_bound": math.inf},
    {"norm_bound": 2.0**31},
    {"device_variance": (1 << 28) + 1},
    {"device_variance": (1 << 64) - 1},
    {"corrupt_share": -0.1},
    {"corrupt_share": 0.5},
    {"dropout_share": -0.1},
    {"dropout_share": 0.5},
    {"dropout_share": math.inf},
    {"delta": 0.0},
    {"delta": 1.0},
    {"delta": -1e-5},
    {"delta": math.inf},
]


@pytest.mark.parametrize("changes", MALFORMED, ids=str)
def test_a_plan_that_makes_no_sense_is_declined(changes: dict[str, Any]) -> None:
    """Before anything is computed from it: a number out of range must not cost the device memory or time."""
    found = objection(planned(**changes), replace(POLICY, epsilon_at_most=math.inf), NOTHING)
    assert found is not None
    assert found.reason is DeclineReason.PLAN_MALFORMED
    assert found.detail


def test_the_largest_counts_cost_nothing() -> None:
    plan = planned(participation_cap=2**32 - 1, epochs=2**32 - 1, max_steps=2**32 - 1, batch_size=2**32 - 1)
    assert reason(plan) is None
    assert reason(plan, replace(POLICY, participations_at_most=2**40)) is DeclineReason.EPSILON_TOO_LARGE


def test_a_mechanism_is_judged_by_its_own_theorem() -> None:
    """So little noise on each device that Skellam sums still serve, and sums of discrete Gaussians do not."""
    skellam = planned(
        min_reports=1_000, goal_count=1_000, device_variance=1, norm_bound=10.0, clip_norm=0.01, participation_cap=1
    )
    gaussian = replace(skellam, mechanism=Mechanism.DISCRETE_GAUSSIAN)
    tight = replace(POLICY, epsilon_at_most=1.6)
    assert reason(skellam, tight) is None
    assert reason(gaussian, tight) is None
    assert reason(replace(gaussian, dimension=1 << 14), tight) is DeclineReason.EPSILON_TOO_LARGE
    assert reason(replace(gaussian, dimension=1 << 14, device_variance=4), tight) is None


def test_no_clip_norm_is_too_large_where_the_noise_is_in_proportion() -> None:
    """What counts is epsilon: by a larger clip norm a device tells no more, as the integers stay."""
    for norm in (1e-6, 1.0, 1e6):
        assert reason(planned(clip_norm=norm, clip_bit=norm / 2, scale=50.0 / norm)) is None


def test_the_bit_of_adaptive_clipping_is_in_the_norm_that_counts() -> None:
    plan = planned(clip_bit=0.5, norm_bound=math.hypot(1.0, 0.5) * 50.0)
    assert reason(plan) is None
    assert reason(replace(plan, norm_bound=plan.norm_bound * 0.999)) is DeclineReason.PLAN_MALFORMED
    assert release_of(plan).length == plan.dimension + 1


def test_a_device_may_rely_on_no_others_noise() -> None:
    """Of twenty devices three are counted on by default; for this one its own noise must do."""
    strict, shared = replace(POLICY, local_noise=True), planned(device_variance=1_100)
    assert honest_survivors(shared) == 3
    assert reason(shared) is None
    found = objection(shared, strict, NOTHING)
    assert found is not None
    assert found.reason is DeclineReason.EPSILON_TOO_LARGE
    assert "its own noise alone" in found.detail
    enough = planned(device_variance=3_300)
    assert reason(enough, strict) is None
    # What left it before is judged alike, whatever the plans had promised.
    assert reason(enough, strict, Spending(0, ((release_of(shared), 1),))) is DeclineReason.EPSILON_TOO_LARGE
    assert reason(enough, strict, Spending(0, ((release_of(replace(enough, device_variance=2 * 10**6)), 1),))) is None


def test_a_plan_of_local_noise_counts_as_what_it_promises() -> None:
    local = planned(local_noise=True, device_variance=1_100)
    assert honest_survivors(local) == 1
    assert release_of(local).variance == 1_100
    assert reason(local) is DeclineReason.EPSILON_TOO_LARGE
    enough = planned(local_noise=True, device_variance=3_300)
    for policy in (POLICY, replace(POLICY, local_noise=True)):
        assert reason(enough, policy) is None


def test_tasks_may_be_limited() -> None:
    assert reason(PLAN, replace(POLICY, tasks=frozenset({"task"}))) is None
    assert reason(PLAN, replace(POLICY, tasks=frozenset({"other"}))) is DeclineReason.TASK_NOT_ALLOWED


@pytest.mark.parametrize(("theirs", "mine", "cap"), [(3, 5, 3), (9, 5, 5)])
def test_the_smaller_participation_cap_holds(theirs: int, mine: int, cap: int) -> None:
    plan, policy = (
        planned(participation_cap=theirs, device_variance=40_000),
        replace(POLICY, participations_at_most=mine),
    )
    assert reason(plan, policy, Spending(cap - 1)) is None
    assert reason(plan, policy, Spending(cap)) is DeclineReason.PARTICIPATION_CAP
    assert reason(plan, policy, Spending(cap + 1)) is DeclineReason.PARTICIPATION_CAP


def test_noise_off_must_be_allowed_explicitly() -> None:
    quiet = planned(mechanism=Mechanism.NONE, device_variance=0)
    assert reason(quiet) is DeclineReason.NOISE_TOO_SMALL
    assert reason(quiet, replace(POLICY, epsilon_at_most=1e9)) is DeclineReason.NOISE_TOO_SMALL
    assert reason(quiet, replace(POLICY, epsilon_at_most=math.inf)) is None


def test_epsilon_is_the_devices_own_reckoning() -> None:
    """Whatever a plan claims of itself."""
    for claimed in (0.0, 0.001, 1e9):
        assert reason(planned(epsilon=claimed, noise_multiplier=1e9, device_variance=100)) is (
            DeclineReason.EPSILON_TOO_LARGE
        )


def test_plans_that_are_each_within_bounds_do_not_add_up_to_more() -> None:
    """A coordinator that gives each round a noise for itself alone, or each a task of its own."""
    generous = planned(participation_cap=1, device_variance=500)
    assert objection(generous, POLICY, NOTHING) is None
    spent = Spending(0, ((release_of(generous), 1),))
    assert reason(replace(generous, task="another"), POLICY, spent) is DeclineReason.EPSILON_TOO_LARGE
    stricter = planned(task="another", participation_cap=1, device_variance=1_000_000)
    assert objection(stricter, POLICY, spent) is None


def test_a_release_without_noise_leaves_no_budget() -> None:
    spent = Spending(1, ((release_of(planned(mechanism=Mechanism.NONE)), 1),))
    assert reason(PLAN, POLICY, spent) is DeclineReason.EPSILON_TOO_LARGE


def test_what_was_planned_and_spent_is_not_counted_twice() -> None:
    """A task that keeps its word is followed to its last round."""
    release = release_of(PLAN)
    whole = composed_epsilon([(release, PLAN.participation_cap)], POLICY.delta_at_most)
    policy = replace(POLICY, epsilon_at_most=whole * 1.000_001)
    for done in range(PLAN.participation_cap):
        assert objection(PLAN, policy, Spending(done, ((release, done),))) is None


def test_composition_grows_with_each_release() -> None:
    release = release_of(PLAN)
    epsilons = [composed_epsilon([(release, n)], 1e-5) for n in range(5)]
    assert epsilons[0] == 0.0
    assert epsilons == sorted(epsilons)
    assert composed_epsilon([(release, 2), (release, 2)], 1e-5) == pytest.approx(epsilons[4])
    assert math.isinf(composed_epsilon([(release, 1), (replace(release, device_variance=0), 1)], 1e-5))
    assert composed_epsilon([(Release(Mechanism.SKELLAM, 1.0, 1, 0, 1), 0)], 1e-5) == 0.0


def test_noise_of_colluders_does_not_count() -> None:
    assert honest_survivors(planned(min_reports=10, goal_count=10, corrupt_share=0.1)) == 9
    assert honest_survivors(planned(min_reports=10, goal_count=40, corrupt_share=0.1)) == 6
    assert release_of(planned(min_reports=10, goal_count=40, corrupt_share=0.1)).variance == 6 * PLAN.device_variance
