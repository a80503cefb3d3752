"""Whole rounds over the in-memory bus: what the coordinator learns is exactly the survivors' sum, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from coordinator.service.tasks import newest_model
from device_sim.script import Fault, Vanish
from device_sim.virtual import Network
from edge_sdk.protocol.messages import AbandonReason, Consistency
from edge_sdk.runtime.budget import DAY_S, MB, Budget
from edge_sdk.runtime.device_store import DeviceStore
from tests.simulation.world import START, Case, KnownLearner, World, device_name, known_update, task_config

STAGES = ("check_in", "advertise_keys", "share_keys", "masked_input", "unmasking")


def test_devices_whose_budget_a_round_exceeds_decline_by_name_and_the_others_go_on(folder: Path) -> None:
    small, devices = 3, 12
    learners = [KnownLearner(number, memory=300 * MB if number < small else 100 * MB) for number in range(devices)]
    config = task_config(devices, rounds=2, min_reports=5)
    budget = Budget(memory_mb=200)
    with World(folder, devices, config=config, learners=learners, budget=budget) as world:
        assert world.run()
        first, second = world.rounds
    assert (first.phase, second.phase) == ("committed", "committed")
    assert first.declined == {"over_memory_budget": small}
    assert second.declined == {}
    assert (first.answered, second.answered) == (devices - small, devices - small)


class Spent(World):
    """Half of the devices used their day's traffic up before."""

    def make_store(self, path: Path) -> DeviceStore:
        store = super().make_store(path)
        if len(self.stores) % 2:
            store.count_traffic(int(START // DAY_S), 40_000, 10_000)
        return store


def test_devices_that_used_their_day_up_join_no_round(folder: Path) -> None:
    devices = 12
    with Spent(
        folder, devices, config=task_config(devices, min_reports=5), budget=Budget(bytes_per_day=50_000)
    ) as world:
        assert world.run()
        (view,) = world.rounds
    assert view.phase == "committed"
    assert (view.checked_in, view.answered) == (devices // 2, devices // 2)


def spread_over_stages(devices: int, per_stage: int) -> tuple[Fault, ...]:
    """At each stage other devices vanish."""
    return tuple(
        Vanish(device_name((stage * per_stage + n) % devices), 1, name)
        for stage, name in enumerate(STAGES)
        for n in range(per_stage)
    )


@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_small_round_without_dropouts(folder: Path, epsilon: float | None) -> None:
    (view,) = Case(8, epsilon=epsilon).run(folder)
    assert view.phase == "committed"
    assert view.answered == 8


def test_new_model_is_the_mean_of_the_survivors_updates(folder: Path) -> None:
    with World(folder, 12, faults=[Vanish(device_name(3), 1, "masked_input")]) as world:
        assert world.run()
        version, checkpoint = newest_model(world.database, world.blobs, "task")
    assert version == 2
    mean = np.mean([known_update(n) for n in range(12) if n != 3], axis=0)
    np.testing.assert_allclose(np.frombuffer(checkpoint, "<f4"), mean, atol=2e-2)


@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_complete_graph_with_dropouts_at_every_stage(folder: Path, epsilon: float | None) -> None:
    case = Case(20, min_reports=8, epsilon=epsilon, faults=spread_over_stages(20, 1))
    (view,) = case.run(folder)
    assert view.phase == "committed"
    assert (view.checked_in, view.advertised, view.shared, view.reported, view.answered) == (19, 18, 17, 16, 15)


@pytest.mark.parametrize(
    ("epsilon", "consistency"),
    [(math.inf, Consistency.THRESHOLD), (8.0, Consistency.THRESHOLD), (8.0, Consistency.QUORUM)],
)
def test_sparse_graph_with_dropouts_at_every_stage(folder: Path, epsilon: float, consistency: Consistency) -> None:
    devices = 64
    config = task_config(devices, min_reports=30, epsilon=epsilon, dropout_share=0.1, consistency=consistency)
    faults = spread_over_stages(devices, 1)
    with World(folder, devices, config=config, faults=faults) as world:
        assert world.run()
        (view,) = world.rounds
        ((state, _),) = world.witness.sums
    assert state.cohort.parameters.degree < devices // 2
    assert view.phase == "committed"
    assert (view.checked_in, view.advertised, view.shared, view.reported, view.answered) == (63, 62, 61, 60, 59)


@pytest.mark.parametrize(
    ("stage", "by_quorum"), [*((stage, False) for stage in STAGES), ("endorsement", True), ("unmasking", True)]
)
def test_dropouts_at_one_stage(folder: Path, stage: str, by_quorum: bool) -> None:
    faults = tuple(Vanish(device_name(n), 1, stage) for n in range(2))
    (view,) = Case(12, min_reports=5, faults=faults, by_quorum=by_quorum).run(folder)
    assert view.phase == "committed"


def test_a_committee_of_which_too_few_are_left_ends_the_round(folder: Path) -> None:
    """Nothing was revealed for it: nobody answers without a quorum."""
    faults = tuple(Vanish(device_name(n), 1, "endorsement") for n in range(20))
    with Case(20, min_reports=5, faults=faults, by_quorum=True).world(folder) as world:
        assert world.run()
        assert [view.reason for view in world.rounds] == [AbandonReason.NO_QUORUM, AbandonReason.NONE]
        first = next(iter(world.witness.survivors))
        assert not world.witness.answers[first]


@pytest.mark.parametrize("by_quorum", [False, True])
def test_two_rounds_over_a_poor_network(folder: Path, by_quorum: bool) -> None:
    network = Network(latency_s=0.5, loss=0.1, duplicates=0.2)
    rounds = Case(10, rounds=2, seed=4, network=network, by_quorum=by_quorum).run(folder)
    assert [view.phase for view in rounds].count("committed") == 2
