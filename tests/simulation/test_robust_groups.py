"""Rounds in groups: no device is in two rounds of one group, whatever restarts, and the model moves once a group."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.service.tasks import newest_model
from device_sim.script import CrashCoordinator, Fault
from edge_sdk.errors import ConfigError
from tests.simulation.world import World, known_update, task_config

GROUPS, COHORT, FLEET = 3, 8, 40


@pytest.mark.parametrize("faults", [(), (CrashCoordinator(40), CrashCoordinator(90))])
def test_the_rounds_of_a_group_share_no_device(folder: Path, faults: tuple[Fault, ...]) -> None:
    config = replace(task_config(COHORT, rounds=2 * GROUPS), server_optimizer=f"median:groups={GROUPS}>fedavg")
    with World(folder, FLEET, config=config, faults=faults) as world:
        assert world.run()
        committed = [view for view in world.rounds if view.phase == "committed"]
        assert [view.number for view in committed] == list(range(1, 2 * GROUPS + 1))
        taken: dict[int, list[int]] = defaultdict(list)
        for name, store in world.stores.items():
            for participation in store.participations("task"):
                taken[(participation.round_number - 1) // GROUPS].append(int(name.removeprefix("device-")))
        assert sorted(taken) == [0, 1]
        for devices in taken.values():
            assert len(devices) == len(set(devices)) == GROUPS * COHORT
        _, model = newest_model(world.database, world.blobs, "task")
    # The second group trained from the first one's model, but a known update does not depend on that.
    assert np.frombuffer(model, "<f4").shape == (config.dimension,)
    assert np.abs(np.frombuffer(model, "<f4")).max() <= 2 * np.abs([known_update(n, 50) for n in range(FLEET)]).max()


def test_rounds_that_make_no_whole_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match="10 rounds do not make whole groups of 3"):
        replace(task_config(COHORT, rounds=10), server_optimizer="median:groups=3>fedavg")
