"""Processes killed before and after every single commit: the run ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa

from coordinator.store import tables
from coordinator.store.database import Database
from device_sim.script import STAGES, CrashCoordinator, Reboot, Vanish
from device_sim.virtual import Network, ProcessDied
from edge_sdk.protocol import codec
from edge_sdk.protocol.messages import AbandonReason, Bitmap, Survivors
from edge_sdk.runtime.device_store import DeviceStore
from tests.simulation.world import Case, World, device_name, task_config

T = TypeVar("T")

DEVICES = 4
STRIDE = 8
WHEN = ("before", "after")


@dataclass
class Killer:
    """Kills the caller before or after every STRIDE-th commit from number `first` on; counts commits."""

    first: int = 0
    when: str = "before"
    commits: int = 0

    def around(self, commit: Callable[[], T]) -> T:
        self.commits += 1
        due = self.first and self.commits >= self.first and (self.commits - self.first) % STRIDE == 0
        if due and self.when == "before":
            raise ProcessDied
        result = commit()
        if due:
            raise ProcessDied
        return result


@dataclass
class MortalDatabase:
    """A database whose user dies at a commit."""

    database: Database
    killer: Killer

    def run_tx(self, name: str, work: Callable[[sa.Connection], T], *, retryable: bool = True) -> T:
        if name != "record what happened":
            return self.database.run_tx(name, work, retryable=retryable)
        return self.killer.around(lambda: self.database.run_tx(name, work, retryable=retryable))

    def close(self) -> None:
        self.database.close()


@pytest.mark.parametrize("first", range(1, STRIDE + 1))
@pytest.mark.parametrize("when", WHEN)
def test_coordinator_killed_at_every_commit(folder: Path, when: str, first: int) -> None:
    killer = Killer(first, when)
    with World(folder, DEVICES, config=task_config(DEVICES, rounds=2)) as world:
        world.database = MortalDatabase(world.database, killer)  # type: ignore[assignment]
        world.fleet.coordinator = world.make_coordinator()
        assert world.run()
        assert [view.phase for view in world.rounds] == ["committed", "committed"]
        assert [view.answered for view in world.rounds] == [DEVICES, DEVICES]
    assert killer.commits > 40


@dataclass
class MortalWorld(World):
    """A world in which device 0 dies at one of its commits."""

    killer: Killer = field(default_factory=Killer)

    def __init__(self, folder: Path, killer: Killer, **options: Any) -> None:
        self.killer = killer
        super().__init__(folder, DEVICES, config=task_config(DEVICES, rounds=2, min_reports=2), **options)

    def make_store(self, path: Path) -> DeviceStore:
        store = DeviceStore(path)
        if path.parent.name == device_name(0):
            write = store._write
            setattr(store, "_write", lambda *a, **k: self.killer.around(lambda: write(*a, **k)))  # noqa: B010
        return store


@pytest.mark.parametrize("first", range(1, STRIDE + 1))
@pytest.mark.parametrize("when", WHEN)
def test_device_killed_at_every_commit(folder: Path, when: str, first: int) -> None:
    killer = Killer(first, when)
    with MortalWorld(folder, killer) as world:
        assert world.run()
        assert [view.phase for view in world.rounds] == ["committed", "committed"]
        assert len(world.stores[device_name(0)].participations()) == 2
    assert killer.commits > 15


@pytest.mark.parametrize(
    ("delivery", "by_quorum"),
    [
        *((delivery, False) for delivery in (1, 13, 22, 30, 36, 41)),
        *((delivery, True) for delivery in (36, 38, 40, 42)),
    ],
)
def test_coordinator_killed_in_every_phase_of_a_noisy_round_with_dropouts(
    folder: Path, delivery: int, by_quorum: bool
) -> None:
    faults = (
        Vanish(device_name(1), 1, "masked_input"),
        Reboot(device_name(2), 1, "share_keys"),
        Reboot(device_name(3), 1, "unmasking"),
        CrashCoordinator(delivery),
    )
    rounds = Case(9, min_reports=4, epsilon=8.0, faults=faults, by_quorum=by_quorum).run(folder)
    assert rounds[-1].phase == "committed"


@pytest.mark.parametrize("stage", STAGES)
def test_every_device_reboots_at_a_stage(folder: Path, stage: str) -> None:
    faults = tuple(Reboot(device_name(n), 1, stage) for n in range(6))
    by_quorum = stage == "endorsement"
    (view,) = Case(6, faults=faults, network=Network(duplicates=0.5), by_quorum=by_quorum).run(folder)
    assert view.phase == "committed"
    assert view.answered == 6


def test_survivors_other_than_those_published_abandon_the_round(folder: Path) -> None:
    """A restart that would publish another set must burn the round instead."""
    with World(folder, 6) as world:
        with world.witness.watching():
            assert world.fleet.run(until=lambda: bool(world.witness.survivors))
        (published,) = world.witness.survivors.values()
        other = Survivors(published.rid, published.root, published.sharers, Bitmap(bytes(1)))
        tamper(world.database, survivors=codec.encode(other))
        world.fleet.crash_coordinator()
        first = world.rounds[0]
        assert (first.phase, first.reason) == ("abandoned", AbandonReason.RESTARTED_DIFFERENTLY)
        assert world.run()
        assert world.rounds[-1].phase == "committed"


def test_round_of_other_software_is_abandoned(folder: Path) -> None:
    with World(folder, 6) as world:
        with world.witness.watching():
            assert world.fleet.run(until=lambda: bool(world.witness.inputs))
        tamper(world.database, software="0")
        world.fleet.crash_coordinator()
        first = world.rounds[0]
        assert (first.phase, first.reason) == ("abandoned", AbandonReason.RESTARTED_DIFFERENTLY)
        assert world.run()
        assert world.rounds[-1].phase == "committed"


def test_sum_that_does_not_belong_to_the_journal_abandons_the_round(folder: Path) -> None:
    with World(folder, 6) as world:
        with world.witness.watching():
            assert world.fleet.run(until=lambda: bool(world.witness.survivors))
        world.database.run_tx("tamper", lambda c: c.execute(tables.accumulators.update().values(count=5)))
        world.fleet.crash_coordinator()
        assert world.rounds[0].reason is AbandonReason.RESTARTED_DIFFERENTLY
        assert world.run()
        assert world.rounds[-1].phase == "committed"


def tamper(database: Database, **values: object) -> None:
    database.run_tx("tamper", lambda c: c.execute(tables.rounds.update().values(**values)))
