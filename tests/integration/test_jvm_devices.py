"""Devices in Python and devices of the Kotlin client in one secure round, over a real broker."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.registrar.authority import issue_identity
from coordinator.rounds.outbox import live
from coordinator.rounds.states import Unmasking
from coordinator.secagg.work import Workers
from coordinator.service import release as releasing
from coordinator.service.broker import BrokerTls, RunningBroker, start_broker
from coordinator.service.driver import serve
from coordinator.service.tasks import list_rounds
from edge_sdk.credentials import CA_FILE, CERTIFICATE_FILE, KEY_FILE, save_identity
from edge_sdk.protocol.messages import Consistency
from edge_sdk.runtime.dial import TlsFiles
from edge_sdk.runtime.driver import mqtt, run_devices
from edge_sdk.secagg import client, modular
from tests.integration.jvm import Jvm, classpath
from tests.simulation import world
from tests.simulation.world import POPULATION, World, device_name, known_update

# The first test may have to compile the client.
pytestmark = [pytest.mark.timeout(600), pytest.mark.slow, pytest.mark.usefixtures("now")]
LIMIT_S = 240.0
ADVERTISE_KEYS, MASKED_INPUT, UNMASKING_SHARES = 33, 35, 36


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    classpath()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[RunningBroker]:
    with start_broker(tmp_path / "broker", kind="mosquitto") as running:
        yield running


class Sums:
    """What every device masked, in whichever language, and whether the unmasked sums are of just that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compared: list[int] = []
        self._plain: dict[tuple[bytes, int], modular.Words] = {}
        self._there = threading.Condition()
        mask, unmask = client.mask, releasing.unmask

        def watched_mask(*arguments: Any) -> modular.Words:
            self._put(arguments[4], arguments[7], modular.reduce(arguments[0], arguments[1]))
            return mask(*arguments)

        def watched_unmask(
            state: Unmasking, total: modular.Words, workers: Workers
        ) -> tuple[modular.Words, frozenset[int]]:
            found, liars = unmask(state, total, workers)
            expected = np.zeros_like(found)
            for index in live(state):
                key = (state.config.context, index)
                with self._there:
                    assert self._there.wait_for(lambda key=key: key in self._plain, LIMIT_S)  # type: ignore[misc]
                    expected += self._plain[key].astype(found.dtype)
            assert np.array_equal(found, modular.reduce(expected, state.config.plan.bits)), "the sum is another"
            self.compared.append(len(live(state)))
            return found, liars

        monkeypatch.setattr(client, "mask", watched_mask)
        monkeypatch.setattr(releasing, "unmask", watched_unmask)

    def said(self, line: str) -> None:
        """What a JVM device says that it masks."""
        _, context, index, numbers = line.split(" ")
        self._put(bytes.fromhex(context), int(index), np.array(numbers.split(","), np.int64).astype(np.uint32))

    def _put(self, context: bytes, index: int, vector: modular.Words) -> None:
        with self._there:
            self._plain[context, index] = vector
            self._there.notify_all()


class Kotlin:
    """One JVM device: its folder, and a thread that reads what it says.

    Args:
        hold: the kind of frame before which the first process is killed; None lets it be.
        returns: whether another process then takes up where it stopped.
    """

    def __init__(
        self, folder: Path, number: int, broker: str, dimension: int, sums: Sums, hold: int | None, returns: bool
    ) -> None:
        self._home, self._broker, self._sums = folder / f"kotlin-{number}", broker, sums
        self._hold, self._returns = hold, returns
        self.said: list[str] = []
        self.problem: BaseException | None = None
        save_identity(self._home / "identity", world.identity(device_name(number)))
        (self._home / "update.f32").write_bytes(known_update(number, dimension).astype("<f4").tobytes())
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def _live(self) -> None:
        try:
            if self._hold is not None:
                self._run(f"holding {self._hold}", str(self._hold))
            if self._hold is None or self._returns:
                self._run("done")
        except BaseException as error:
            self.problem = error

    def _run(self, until: str, *arguments: str) -> None:
        with Jvm("edge.TestDeviceKt", self._home, self._broker, POPULATION, *arguments) as process:
            line = ""
            while until not in line:
                line = process.wait_for("")
                self.said.append(line)
                if line.startswith("masks "):
                    self._sums.said(line)


def run(
    made: World,
    broker: RunningBroker,
    sums: Sums,
    holds: dict[int, int | None],
    *,
    returns: bool = True,
    tls: Path | None = None,
) -> list[Kotlin]:
    """Run until the task ended; the devices in `holds` are Kotlin's, the rest Python's."""
    dimension = made.config.dimension
    kotlin = [
        Kotlin(made.folder, number, str(broker.url), dimension, sums, hold, returns) for number, hold in holds.items()
    ]
    agents = [agent for name, agent in made.fleet.agents.items() if name not in map(device_name, holds)]

    async def main() -> None:
        stop, coordinator = asyncio.Event(), made.make_coordinator()
        files = None if tls is None else TlsFiles(tls / CA_FILE, tls / CERTIFICATE_FILE, tls / KEY_FILE)
        server = asyncio.create_task(serve(coordinator, broker.url, "coordinator", stop=stop, tls=files))
        devices = asyncio.create_task(run_devices(agents, mqtt(broker.url), stop=stop))
        end = time.monotonic() + LIMIT_S
        while not (coordinator.idle and all(device.ended for device in kotlin)):
            done, _ = await asyncio.wait((server, devices), timeout=0.05)
            for task in done:
                task.result()
            said = "\n".join(f"{device.problem} {device.said[-8:]}" for device in kotlin)
            assert time.monotonic() < end, f"it did not end:\n{said}"
        stop.set()
        await asyncio.gather(devices, server)

    asyncio.run(main())
    assert [device.problem for device in kotlin] == [None] * len(kotlin)
    return kotlin


def make_world(folder: Path, devices: int, **options: Any) -> World:
    """A world whose rounds wait for every device: JVMs start slowly where others work too."""
    config = world.task_config(devices, **options)
    pacing = dataclasses.replace(
        config.pacing, selection_timeout_s=200, advertise_timeout_s=60, share_timeout_s=60, unmask_timeout_s=60
    )
    return World(folder, devices, config=dataclasses.replace(config, min_check_ins=devices, pacing=pacing))


@pytest.mark.parametrize("consistency", Consistency)
def test_one_round_of_both_languages(
    tmp_path: Path, broker: RunningBroker, monkeypatch: pytest.MonkeyPatch, consistency: Consistency
) -> None:
    """amqtt speaks MQTT 3.1.1 only."""
    sums = Sums(monkeypatch)
    made = make_world(tmp_path, 6, rounds=2, min_reports=6, consistency=consistency)
    run(made, broker, sums, {4: None, 5: None})
    assert [(r.phase, r.reported) for r in list_rounds(made.database, "task")] == [("committed", 6)] * 2
    assert sums.compared == [6, 6]


def test_kotlin_devices_come_in_by_their_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = Sums(monkeypatch)
    made = make_world(tmp_path, 3, min_reports=3)
    authority, now = world.authority(), world.START
    save_identity(tmp_path / "coordinator", world.identity("coordinator", "coordinator"))
    hosts = ("127.0.0.1", "localhost")
    issued = issue_identity(authority, identity_id="broker", role="broker", now=now, hosts=hosts)
    save_identity(tmp_path / "broker", issued)
    ca, certificate, key = (tmp_path / "broker" / name for name in (CA_FILE, CERTIFICATE_FILE, KEY_FILE))
    with start_broker(tmp_path / "run", kind="mosquitto", tls=BrokerTls(ca, certificate, key, None)) as broker:
        run(made, broker, sums, {0: None, 1: None, 2: None}, tls=tmp_path / "coordinator")
    assert sums.compared == [3]


def test_a_kotlin_device_that_goes_before_its_input_is_left_out_of_the_sum(
    tmp_path: Path, mosquitto: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = Sums(monkeypatch)
    made = make_world(tmp_path, 8)
    run(made, mosquitto, sums, {6: None, 7: MASKED_INPUT}, returns=False)
    assert [(r.phase, r.reported) for r in list_rounds(made.database, "task")] == [("committed", 7)]
    assert sums.compared == [7]


@pytest.mark.parametrize("kind", [ADVERTISE_KEYS, MASKED_INPUT, UNMASKING_SHARES])
def test_a_killed_kotlin_device_goes_on_with_its_round(
    tmp_path: Path, mosquitto: RunningBroker, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    """It is killed when what it says next is on its disk and not yet sent."""
    sums = Sums(monkeypatch)
    # Nobody may be left out: the round waits for the one that was killed.
    made = make_world(tmp_path, 4, min_reports=4, dropout_share=0.0)
    run(made, mosquitto, sums, {3: kind})
    assert [(r.phase, r.reported) for r in list_rounds(made.database, "task")] == [("committed", 4)]
    assert sums.compared == [4]


def test_large_vectors_are_pulled_from_kotlin_devices(
    tmp_path: Path, mosquitto: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = Sums(monkeypatch)
    made = make_world(tmp_path, 3, min_reports=3, dimension=150_000)
    run(made, mosquitto, sums, {2: None})
    assert [(r.phase, r.reported) for r in list_rounds(made.database, "task")] == [("committed", 3)]
    assert sums.compared == [3]
