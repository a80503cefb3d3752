"""The device's own account of what left it: capped, composed, and kept over restarts."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from device_sim.script import Reboot
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.protocol.messages import AbandonReason, Decline, DeclineReason, Outcome, Plan, TaskState
from edge_sdk.protocol.policy import DevicePolicy, composed_epsilon, release_of
from tests.simulation.world import World, device_name, fresh_folder, task_config
from tests.unit.post import Cohort, Post, make_announcement, make_plan, next_round, one


@pytest.fixture
def post() -> Iterator[Post]:
    with fresh_folder() as folder:
        held = Post(folder)
        yield held
        held.store.close()


def take_part(post: Post, number: int, **changes: object) -> Plan:
    """A whole round, to its end."""
    plan = make_plan(**next_round(number), **changes)
    cohort = Cohort(post, plan)
    cohort.play_until_reported()
    post.tell(Outcome(plan.rid, True, AbandonReason.NONE, 6))
    return plan


def declined(post: Post, number: int, **changes: object) -> DeclineReason:
    plan = make_plan(**next_round(number), **changes)
    post.announce(make_announcement(sequence=number, rid=plan.rid, round_number=number, task=plan.task))
    return one(post.tell(plan), Decline).reason


def test_participations_are_capped_over_rounds_and_restarts(post: Post) -> None:
    policy = DevicePolicy(min_reports=2, participations_at_most=2)
    held = post.reboot(policy=policy)
    take_part(held, 1)
    held = held.reboot(policy=policy)
    take_part(held, 2)
    held = held.reboot(policy=policy)
    assert declined(held, 3) is DeclineReason.PARTICIPATION_CAP
    assert len(held.store.participations()) == 2
    held.store.close()


def test_the_plans_own_cap_holds_too(post: Post) -> None:
    for number in (1, 2, 3):
        take_part(post, number)
    assert declined(post, 4) is DeclineReason.PARTICIPATION_CAP
    assert declined(post, 5, participation_cap=2) is DeclineReason.PARTICIPATION_CAP


def test_the_ledger_tells_what_each_participation_cost(post: Post) -> None:
    plans = [take_part(post, number) for number in (1, 2)]
    first, second = post.store.participations("task")
    release = release_of(plans[0])
    assert (first.rid, second.rid) == (plans[0].rid, plans[1].rid)
    assert first.epsilon == pytest.approx(composed_epsilon([(release, 1)], plans[0].delta))
    assert second.epsilon == pytest.approx(composed_epsilon([(release, 2)], plans[0].delta))
    assert (first.release, first.delta, first.sent_bytes) == (release, plans[0].delta, 40)


def test_another_task_does_not_begin_with_a_fresh_budget(post: Post) -> None:
    """The budget is the device's; a coordinator cannot renew it by another name."""
    take_part(post, 1, task="first", participation_cap=1, device_variance=500)
    stale = {"participation_cap": 1, "device_variance": 500}
    assert declined(post, 2, task="second", **stale) is DeclineReason.EPSILON_TOO_LARGE
    take_part(post, 3, task="second", participation_cap=1, device_variance=1_000_000)
    assert [p.task for p in post.store.participations()] == ["first", "second"]


def test_a_round_without_noise_is_entered_as_such(post: Post) -> None:
    lenient = DevicePolicy(min_reports=2, epsilon_at_most=math.inf)
    held = post.reboot(policy=lenient)
    take_part(held, 1, mechanism=Mechanism.NONE, device_variance=0)
    (participation,) = held.store.participations()
    assert math.isinf(participation.epsilon)
    strict = held.reboot()
    assert declined(strict, 2) is DeclineReason.EPSILON_TOO_LARGE
    strict.store.close()


def test_a_declined_round_costs_nothing(post: Post) -> None:
    assert declined(post, 1, min_reports=1) is DeclineReason.COHORT_TOO_SMALL
    assert post.store.participations() == []


def test_a_whole_fleet_stops_at_its_cap() -> None:
    """Rounds go on until nobody may give more, and then the task pauses; reboots do not help the coordinator."""
    config = task_config(5, rounds=4, participation_cap=2, epsilon=8.0)
    policy = DevicePolicy(min_reports=2, epsilon_at_most=8.0)
    faults = [Reboot(device_name(0), 1, "masked_input"), Reboot(device_name(1), 2, "unmasking")]
    with fresh_folder() as folder, World(folder, 5, config=config, policy=policy, faults=faults) as world:
        assert world.run()
        assert [view.phase for view in world.rounds][:3] == ["committed", "committed", "abandoned"]
        assert world.rounds[2].declined == {"participation_cap": 5}
        assert world.rounds[2].reason is AbandonReason.TOO_FEW_KEYS
        assert world.task_state is TaskState.PAUSED
        for store in world.stores.values():
            costs = [p.epsilon for p in store.participations("task")]
            assert len(costs) == 2
            assert costs[0] < costs[1] <= 8.0
