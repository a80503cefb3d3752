"""Whole rounds over the in-memory bus: what the coordinator learns is exactly the survivors' sum, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from coordinator.service.tasks import newest_model
from device_sim.script import Fault, Vanish
from device_sim.virtual import Network
from tests.simulation.world import Case, World, device_name, known_update, task_config

STAGES = ("check_in", "advertise_keys", "share_keys", "masked_input", "unmasking")


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


@pytest.mark.parametrize("epsilon", [math.inf, 8.0])
def test_sparse_graph_with_dropouts_at_every_stage(folder: Path, epsilon: float) -> None:
    devices = 64
    config = task_config(devices, min_reports=30, epsilon=epsilon, dropout_share=0.1)
    faults = spread_over_stages(devices, 1)
    with World(folder, devices, config=config, faults=faults) as world:
        assert world.run()
        (view,) = world.rounds
        ((state, _),) = world.witness.sums
    assert state.cohort.parameters.degree < devices // 2
    assert view.phase == "committed"
    assert (view.checked_in, view.advertised, view.shared, view.reported, view.answered) == (63, 62, 61, 60, 59)


@pytest.mark.parametrize("stage", STAGES)
def test_dropouts_at_one_stage(folder: Path, stage: str) -> None:
    faults = tuple(Vanish(device_name(n), 1, stage) for n in range(2))
    (view,) = Case(12, min_reports=5, faults=faults).run(folder)
    assert view.phase == "committed"


def test_two_rounds_over_a_poor_network(folder: Path) -> None:
    rounds = Case(10, rounds=2, seed=4, network=Network(latency_s=0.5, loss=0.1, duplicates=0.2)).run(folder)
    assert [view.phase for view in rounds].count("committed") == 2
