"""Devices that cheat inside the protocol: they can cost a round, never its secrecy, and never give a wrong model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.service import engine
from coordinator.service.tasks import newest_model
from device_sim.virtual import Network
from edge_sdk.protocol import session
from edge_sdk.protocol.messages import AbandonReason, TaskState
from edge_sdk.runtime.learner import Update
from edge_sdk.secagg import client, modular
from tests.simulation.world import Case, World, device_name, known_update, task_config

Mask = Callable[..., modular.Words]


def until_first_round_ends(world: World) -> None:
    assert world.fleet.run(until=lambda: bool(world.rounds) and world.rounds[0].closed_at is not None)


def test_garbage_instead_of_a_masked_input_gives_no_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask: Mask = client.mask

    def garbage(*arguments: Any) -> modular.Words:
        masked = mask(*arguments)
        if arguments[7] == 3:
            masked[:] = np.frombuffer(os.urandom(masked.nbytes), masked.dtype)
        return modular.reduce(masked, arguments[1])

    monkeypatch.setattr(client, "mask", garbage)
    with World(folder, 8, config=task_config(8, dimension=1_000)) as world:
        until_first_round_ends(world)
        first = world.rounds[0]
        assert (first.phase, first.reason) == ("abandoned", AbandonReason.AGGREGATE_UNUSABLE)
        assert "fills the modulus" in first.detail
        assert newest_model(world.database, world.blobs, "task")[0] == 1


def with_bad_shares(monkeypatch: pytest.MonkeyPatch, holders: int) -> None:
    """The first so many devices release garbage instead of the shares they hold."""
    open_box = client.open_box

    def garbage(keys: Any, ctx: bytes, root: bytes, my_index: int, peer: client.Peer, box: bytes) -> Any:
        shares = open_box(keys, ctx, root, my_index, peer, box)
        return (os.urandom(32), os.urandom(32)) if my_index < holders else shares

    monkeypatch.setattr(client, "open_box", garbage)


def test_a_few_bad_shares_do_not_matter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_bad_shares(monkeypatch, 2)
    (view,) = Case(20).run(folder)
    assert view.phase == "committed"


def test_many_bad_shares_cost_the_round_and_then_the_task_pauses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_bad_shares(monkeypatch, 6)
    with World(folder, 8) as world:
        world.check = lambda: None  # type: ignore[method-assign]  # the ledger fills up, and the witness sees no sum
        assert world.fleet.run(until=lambda: world.fleet.coordinator.idle)
        assert {view.reason for view in world.rounds} == {AbandonReason.BAD_SHARES}
        assert len(world.rounds) == world.config.max_abandoned
        assert world.task_state is TaskState.PAUSED
        assert newest_model(world.database, world.blobs, "task")[0] == 1


@pytest.mark.parametrize(
    ("lie", "reason"), [("boxes", AbandonReason.TOO_FEW_ANSWERS), ("shares", AbandonReason.BAD_SHARES)]
)
def test_a_device_that_shares_garbage_ends_one_round_and_sits_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lie: str, reason: AbandonReason
) -> None:
    """Nobody can rebuild its secrets; but it is known whose they are."""
    seal_shares = client.seal_shares

    def garbage(*arguments: Any) -> client.SealedShares:
        sealed = seal_shares(*arguments)
        if arguments[4] != 3 or arguments[6] < 6:  # alone, and in the first round, of all eight
            return sealed
        if lie == "shares":
            return dataclasses.replace(sealed, commitment=bytes(32))
        return dataclasses.replace(sealed, boxes=tuple((index, os.urandom(80)) for index, _ in sealed.boxes))

    monkeypatch.setattr(client, "seal_shares", garbage)
    config = task_config(8, rounds=1, min_reports=4)
    with World(folder, 8, config=config) as world:
        assert world.run()
        assert [(view.phase, view.reason) for view in world.rounds] == [
            ("abandoned", reason),
            ("committed", AbandonReason.NONE),
        ]
        assert world.rounds[0].faults == {"bad_shares": 1}
        assert len(world.witness.inputs[device_name(3)]) == 1
        assert world.rounds[1].reported == 7


def test_vectors_travel_in_chunks_over_a_poor_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one chunk a vector, and with several."""
    monkeypatch.setattr(session, "INLINE_UPDATE_MAX_BYTES", 0)
    for dimension in (50, 40_000):
        config = task_config(5, dimension=dimension, min_reports=3)
        network = Network(latency_s=0.1, loss=0.1, duplicates=0.1)
        with World(folder / str(dimension), 5, config=config, seed=3, network=network) as world:
            assert world.run()
            assert world.rounds[-1].phase == "committed"
            assert world.rounds[-1].bytes_up > 5 * dimension


def test_frames_too_large_for_one_message_are_pulled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CONTROL_FRAME_MAX_BYTES", 1_000)
    rounds = Case(6, rounds=2, min_reports=2, seed=2, network=Network(loss=0.05, duplicates=0.1)).run(folder)
    assert [view.phase for view in rounds].count("committed") == 2


def test_a_real_roster_of_many_neighbours_is_pulled(folder: Path) -> None:
    """A hundred devices and room for many dropouts: rosters beyond what one message holds."""
    config = task_config(100, min_reports=60, dropout_share=0.4)
    with World(folder, 100, config=config) as world:
        assert world.run()
        (view,) = world.rounds
    assert (view.phase, view.answered) == ("committed", 100)
    assert world.witness.frames["Large"] == 100


def test_updates_that_are_too_long_count_no_more_than_others(folder: Path) -> None:
    """Clipping on the device holds for honest devices; the sum stays that of the clipped."""
    with World(folder, 6) as world:
        learner = world.learners[0]
        learner.train = lambda job, should_stop=None: Update((100 * known_update(0)).astype("<f4").tobytes())  # type: ignore[method-assign]
        assert world.run()
        _, checkpoint = newest_model(world.database, world.blobs, "task")
    clipped = known_update(0) / np.linalg.norm(known_update(0))
    mean = (clipped + sum(known_update(n) for n in range(1, 6))) / 6
    np.testing.assert_allclose(np.frombuffer(checkpoint, "<f4"), mean, atol=2e-2)


def test_a_device_that_cannot_train_leaves_and_is_counted(folder: Path) -> None:
    with World(folder, 8) as world:
        world.learners[2].train = lambda job, should_stop=None: Update(np.full(50, np.nan, "<f4").tobytes())  # type: ignore[method-assign]
        assert world.run()
        (view,) = world.rounds
        assert (view.phase, view.reported) == ("committed", 7)
        assert view.declined == {"training_failed": 1}
        assert world.stores[device_name(2)].participations() == []
