"""What a task may choose of its privacy, in whole rounds: both ends account for the same, device by device."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.config import TaskConfig
from coordinator.privacy import accountant
from coordinator.privacy.clipping import AdaptiveClipping
from coordinator.privacy.ledger import ReleaseEvent
from coordinator.service.tasks import encoding_for, list_tasks, newest_model
from device_sim.script import CrashCoordinator
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.protocol.messages import DeclineReason, RoundId, TaskState
from edge_sdk.protocol.policy import DevicePolicy, objection
from tests.simulation.world import World, known_update, task_config


def private_task(devices: int, *, rounds: int, epsilon: float, **privacy: Any) -> TaskConfig:
    base = task_config(devices, rounds=rounds, epsilon=epsilon)
    chosen = replace(base.privacy, **privacy)
    encoding = encoding_for(chosen, dimension=base.dimension, min_reports=base.min_reports, goal_count=base.goal_count)
    return replace(base, privacy=chosen, encoding=encoding)


def check_both_ledgers(world: World, mechanism: Mechanism) -> None:
    """Each device that took part in every round has spent what the coordinator's ledger says, by its own accounting."""
    spent, privacy = world.rounds[-1].epsilon, world.config.privacy
    for store in world.stores.values():
        held = store.participations("task")
        assert {p.release.mechanism for p in held} == {mechanism}
        events = [ReleaseEvent.of(p.release, world.config.goal_count) for p in held]
        assert spent == accountant.epsilon(events, privacy.delta) == pytest.approx(held[-1].epsilon, rel=1e-9)


@pytest.mark.parametrize("mechanism", [Mechanism.SKELLAM, Mechanism.DISCRETE_GAUSSIAN])
def test_both_ends_account_for_the_mechanism_that_was_planned(folder: Path, mechanism: Mechanism) -> None:
    config = private_task(8, rounds=2, epsilon=8.0, mechanism=mechanism)
    with World(folder, 8, config=config, policy=DevicePolicy(min_reports=2, epsilon_at_most=8.0)) as world:
        assert world.run()
        assert [view.phase for view in world.rounds] == ["committed", "committed"]
        check_both_ledgers(world, mechanism)


def test_the_coordinator_stops_when_the_next_release_would_overdraw_the_budget(folder: Path) -> None:
    """Noise for two participations, promised for five: after two rounds the run is over, whatever its devices allow."""
    config = private_task(6, rounds=5, epsilon=8.0, participation_cap=2)
    config = replace(config, privacy=replace(config.privacy, participation_cap=5))
    policy = DevicePolicy(min_reports=2, epsilon_at_most=100.0)
    with World(folder, 6, config=config, policy=policy, faults=[CrashCoordinator(40), CrashCoordinator(95)]) as world:
        assert world.run()
        assert [view.phase for view in world.rounds] == ["committed"] * 2
        (task,) = list_tasks(world.database)
        assert (task.state, task.reason) == (TaskState.COMPLETE, "the privacy budget is spent")
        spent = world.rounds[-1].epsilon
        assert spent is not None
        assert 7.9 < spent <= 8.0
        assert all(len(store.participations("task")) == 2 for store in world.stores.values())


def test_devices_stop_when_the_next_release_would_overdraw_theirs(folder: Path) -> None:
    """Rounds that would each be within a device's budget end where its own ledger says so; the run is paused then."""
    config = private_task(6, rounds=5, epsilon=8.0, participation_cap=2)
    config = replace(config, privacy=replace(config.privacy, epsilon=100.0, participation_cap=3), max_abandoned=1)
    policy = DevicePolicy(min_reports=2, epsilon_at_most=8.0, participations_at_most=2)
    with World(folder, 6, config=config, policy=policy) as world:
        assert world.run()
        assert [view.phase for view in world.rounds] == ["committed", "committed", "abandoned"]
        assert world.rounds[-1].declined == {"participation_cap": 6}
        assert world.task_state is TaskState.PAUSED
        # A lenient cap does not help: what the ledger holds and one more release cost more than 8.
        plan = config.plan(RoundId(bytes(16)), round_number=3, model_version=3, checkpoint=config.bundle, clip_norm=1.0)
        for store in world.stores.values():
            spending = store.spending("task")
            found = objection(plan, replace(policy, participations_at_most=3), spending)
            assert found is not None
            assert found.reason is DeclineReason.EPSILON_TOO_LARGE
            assert objection(plan, replace(policy, participations_at_most=3, epsilon_at_most=11.0), spending) is None


def test_local_noise_satisfies_devices_that_trust_nobody(folder: Path) -> None:
    policy = DevicePolicy(min_reports=2, epsilon_at_most=8.0, local_noise=True)
    config = private_task(8, rounds=2, epsilon=8.0, local_noise=True)
    with World(folder, 8, config=config, policy=policy) as world:
        assert world.run()
        assert [view.phase for view in world.rounds] == ["committed"] * 2
        check_both_ledgers(world, Mechanism.SKELLAM)
        assert {p.release.honest for store in world.stores.values() for p in store.participations("task")} == {1}


def test_devices_that_trust_nobody_decline_noise_that_is_shared(folder: Path) -> None:
    policy = DevicePolicy(min_reports=2, epsilon_at_most=8.0, local_noise=True)
    config = replace(private_task(8, rounds=2, epsilon=8.0), max_abandoned=1)
    with World(folder, 8, config=config, policy=policy) as world:
        assert world.run()
        (view,) = world.rounds
        assert view.declined == {"epsilon_too_large": 8}
        assert world.task_state is TaskState.PAUSED


def test_the_clip_norm_moves_with_what_devices_say_and_outlives_a_crash(folder: Path) -> None:
    """All updates have norm 0.7: while the clip norm is above, all are within it."""
    rounds = 7
    config = private_task(8, rounds=rounds, epsilon=math.inf, adaptive_clipping=AdaptiveClipping(0.5))
    with World(folder, 8, config=config, faults=[CrashCoordinator(delivery) for delivery in (90, 150)]) as world:
        assert world.run()
        views = world.rounds
        _, model = newest_model(world.database, world.blobs, "task")
    assert [view.phase for view in views] == ["committed"] * rounds
    norms = [view.clip_norm for view in views]
    expected = [math.exp(-0.1 * moved) for moved in (0, 1, 2, 3, 4, 3, 4)]
    assert norms == pytest.approx(expected, rel=1e-3)
    assert [round(view.within or 0) for view in views] == [1, 1, 1, 1, 0, 1, 0]
    # Four of the rounds left the mean as it was, and three clipped it to 0.67.
    mean = np.mean([known_update(number) for number in range(8)], axis=0)
    share = sum(min(1.0, norm / 0.7) for norm in expected)
    np.testing.assert_allclose(np.frombuffer(model, "<f4"), share * mean, atol=0.02)


def test_noise_for_the_clip_norm_is_accounted_by_both_ends(folder: Path) -> None:
    config = private_task(12, rounds=3, epsilon=8.0, adaptive_clipping=AdaptiveClipping(0.5))
    with World(folder, 12, config=config, policy=DevicePolicy(min_reports=2, epsilon_at_most=8.0)) as world:
        assert world.run()
        assert [view.phase for view in world.rounds] == ["committed"] * 3
        assert len({view.clip_norm for view in world.rounds}) == 3
        check_both_ledgers(world, Mechanism.SKELLAM)
        (release,) = {p.release for store in world.stores.values() for p in store.participations("task")}
        assert release.length == config.dimension + 1
