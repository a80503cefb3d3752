"""A federation of real processes over mosquitto, of which one is killed again and again at a moment drawn at random.

A witness reads every frame on the broker: whatever is killed and whenever, no device says two things where it may say
one, nothing leaves a device that its ledger does not hold, and the run ends as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.service.broker import RunningBroker, start_broker
from coordinator.service.tasks import list_rounds
from coordinator.store.database import Database
from device_sim.fleet import FleetFolders, device_ids
from edge_sdk.cli import main
from edge_sdk.protocol import topics
from edge_sdk.runtime.device_store import DeviceStore
from tests.integration.commands import Command
from tests.integration.peers import Peer
from tests.simulation.world import Witness

DEVICES = device_ids(4)
COORDINATOR = "coordinator"
ROUNDS, KILLS = 3, 10
LIMIT_S = 100.0
EVERY_FRAMES = 12
"""On average; about sixty frames make a round."""


class Federation:
    """Processes by name; whoever is killed is started again at once.

    Args:
        folders: prepared, with a run.
        broker: which outlives them all.
        seed: of who dies when.
    """

    def __init__(self, folders: FleetFolders, broker: RunningBroker, seed: int) -> None:
        self._folders, self._broker = folders, broker
        self._draw = random.Random(seed)
        self.witness = Witness()
        self.complaints: list[AssertionError] = []
        self.killed: list[str] = []
        self.running = {name: self._start(name) for name in (COORDINATOR, *DEVICES)}

    def _start(self, name: str) -> Command:
        if name == COORDINATOR:
            home = self._folders.coordinator
            return Command("coordinator", "serve", "--home", home, "--broker", str(self._broker.url), "--workers", "1")
        options = ("--broker", str(self._broker.url), "--population", "digits", "--min-reports", "2")
        home = self._folders.device(name)
        return Command("device", "run", "--home", home, *options, "--epsilon", "any", "--consent", "digits")

    def heard(self, topic: str, payload: bytes) -> None:
        """Look at a frame, and now and then end somebody: mostly who has just spoken, so that he dies in the middle."""
        try:
            self.witness.observe(topic, payload)
        except AssertionError as error:
            self.complaints.append(error)
        if len(self.killed) < KILLS and self._draw.random() < 1 / EVERY_FRAMES:
            speaker = getattr(topics.parse(topic), "device_id", COORDINATOR)
            victim = speaker if self._draw.random() < 0.7 else self._draw.choice(sorted(self.running))
            self.killed.append(victim)
            with self.running[victim]:
                self.running[victim].kill()
            self.running[victim] = self._start(victim)

    def end(self) -> None:
        """Kill them all."""
        for command in self.running.values():
            with command:
                pass


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_whoever_is_killed_whenever_nobody_says_two_things(tmp_path: Path, seed: int) -> None:
    folders = FleetFolders(tmp_path / "hand")
    assert main(["sim", "prepare", "--devices", str(len(DEVICES)), "--work", str(folders.work)]) == 0
    assert main(["export", "--signer", str(folders.signer_key), "--out", str(folders.bundle)]) == 0
    signed = f"--bundle {folders.bundle} --signer {folders.signer_public}"
    options = f"--devices {len(DEVICES)} --min-reports 2 --rounds {ROUNDS} --epsilon off"
    assert main(f"run create digits --home {folders.coordinator} {signed} {options}".split()) == 0
    database = Database.in_folder(folders.coordinator)

    def committed() -> int:
        return sum(view.phase == "committed" for view in list_rounds(database, "digits"))

    with start_broker(tmp_path / "mqtt", kind="mosquitto") as broker:
        made = Federation(folders, broker, seed)
        try:
            asyncio.run(_watch(made, broker, lambda: committed() == ROUNDS))
        finally:
            made.end()
    rounds = list_rounds(database, "digits")
    database.close()
    assert made.complaints == []
    assert len(made.killed) >= KILLS / 3
    assert sum(view.phase == "committed" for view in rounds) == ROUNDS, made.killed
    for name in DEVICES:
        with DeviceStore(folders.device(name) / "device.sqlite") as store:
            ledger = {p.rid: p.sent_sha256 for p in store.participations()}
        sent = made.witness.inputs[name]
        assert sent.items() <= ledger.items(), f"{name} sent what it does not account for"


async def _watch(made: Federation, broker: RunningBroker, over: Callable[[], bool]) -> None:
    """Hear all that is said until it is over."""
    peer = await Peer(broker.url, "witness", ["fl/#"]).start()
    async with asyncio.timeout(LIMIT_S):
        while not over():
            try:
                async with asyncio.timeout(0.2):
                    topic, payload = await peer.message()
            except TimeoutError:
                continue
            made.heard(topic, payload)
    await peer.stop()
