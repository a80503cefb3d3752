"""What a task may choose of its privacy, in whole rounds: both ends account for the same, device by device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.privacy import accountant
from coordinator.privacy.ledger import ReleaseEvent
from coordinator.service.tasks import encoding_for
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.protocol.policy import DevicePolicy
from tests.simulation.world import World, task_config


@pytest.mark.parametrize("mechanism", [Mechanism.SKELLAM, Mechanism.DISCRETE_GAUSSIAN])
def test_both_ends_account_for_the_mechanism_that_was_planned(folder: Path, mechanism: Mechanism) -> None:
    base = task_config(8, rounds=2, epsilon=8.0)
    privacy = replace(base.privacy, mechanism=mechanism)
    encoding = encoding_for(privacy, dimension=base.dimension, min_reports=base.min_reports, goal_count=base.goal_count)
    config = replace(base, privacy=privacy, encoding=encoding)
    policy = DevicePolicy(min_reports=2, epsilon_at_most=8.0)
    with World(folder, 8, config=config, policy=policy) as world:
        assert world.run()
        assert [view.phase for view in world.rounds] == ["committed", "committed"]
        spent = world.rounds[-1].epsilon
        for store in world.stores.values():
            held = store.participations("task")
            assert {p.release.mechanism for p in held} == {mechanism}
            events = [ReleaseEvent.of(p.release, 8) for p in held]
            assert spent == accountant.epsilon(events, privacy.delta) == pytest.approx(held[-1].epsilon, rel=1e-9)
