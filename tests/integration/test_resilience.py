"""What happens to a device out in the world: the broker moves, its certificate is revoked, clocks are wrong or set."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
import socket
import sqlite3
import ssl
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography import x509

from coordinator.registrar.authority import create_authority, issue_identity
from coordinator.registrar.folder import issue_logged
from coordinator.service.broker import BrokerTls, RunningBroker, start_broker
from coordinator.service.driver import serve
from coordinator.service.tasks import list_rounds
from device_sim.fleet import FleetFolders, make_authorities, make_devices
from edge_sdk.client import EdgeClient
from edge_sdk.clock import ManualClock, SystemClock
from edge_sdk.credentials import (
    CA_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    NewFile,
    certificate_files,
    load_identity,
    load_public_key,
    private_key_file,
    save_identity,
    write_folder,
)
from edge_sdk.errors import ArtifactError, StoreError, TransportError
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.runtime.broker_url import BrokerUrl, parse_broker_url
from edge_sdk.runtime.dial import TlsFiles
from edge_sdk.runtime.driver import Transport, mqtt, run_devices
from edge_sdk.runtime.enrolment import REGISTRAR_FILE
from edge_sdk.runtime.home import examples_file
from edge_sdk.runtime.mqtt import MqttTransport
from edge_sdk.signing import new_private_key, public_key_to_pem
from edge_sdk.training.artifact import read_artifact
from exporters import export
from tests.integration.commands import Command
from tests.integration.peers import Peer
from tests.integration.test_broker_tls import revocation_list
from tests.integration.test_registrar_server import Served
from tests.shared import free_port
from tests.simulation import world
from tests.simulation.world import World

NOW = SystemClock().now()
DAY_S = 86_400.0


# ---- the broker moves


def test_a_broker_that_moved_behind_its_name_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is looked up for each connection anew."""
    port, lives_at = free_port(), ["127.0.0.1"]
    look_up = socket.getaddrinfo

    def named(host: str, *rest: Any, **options: Any) -> Any:
        if host == "broker.example":
            if options.get("flags", 0) & socket.AI_NUMERICHOST:
                raise socket.gaierror(socket.EAI_NONAME, "not a number")
            host = lives_at[0]
        return look_up(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", named)

    async def scenario() -> None:
        first = start_broker(tmp_path / "first", kind="mosquitto", port=port)
        peer = await Peer(parse_broker_url(f"mqtt://broker.example:{port}"), "a", ["t"]).start()
        first.kill()
        await peer.down()
        with start_broker(tmp_path / "second", kind="mosquitto", host="127.0.0.2", port=port):
            lives_at[0] = "127.0.0.2"
            await peer.up()
            assert peer.publish("t", b"here")
            assert await peer.message() == ("t", b"here")
            await peer.stop()

    asyncio.run(scenario())


@pytest.mark.usefixtures("now")
def test_a_round_goes_on_at_another_broker(tmp_path: Path) -> None:
    """Both ends are told the new address and started again: the open round goes on there."""
    made = World(tmp_path / "world", 6)

    async def run(broker: RunningBroker, over: Any) -> None:
        stop, agents = asyncio.Event(), [made.agent_maker(n)() for n in range(6)]
        tasks = [
            asyncio.create_task(run_devices(agents, mqtt(broker.url), stop=stop)),
            asyncio.create_task(serve(made.make_coordinator(), broker.url, "coordinator", stop=stop)),
        ]
        async with asyncio.timeout(60):
            while not over():
                done, _ = await asyncio.wait(tasks, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        stop.set()
        await asyncio.gather(*tasks)

    def rounds() -> list[Any]:
        return list_rounds(made.database, "task")

    with made:
        with start_broker(tmp_path / "first", kind="mosquitto") as broker:
            asyncio.run(run(broker, lambda: bool(rounds()) and rounds()[0].selected == 6))
        opened = rounds()[0].opened_at
        with start_broker(tmp_path / "second", kind="mosquitto") as broker:
            asyncio.run(run(broker, lambda: rounds()[0].phase == "committed"))
        (only,) = rounds()
        assert (only.opened_at, only.reported) == (opened, 6)


# ---- who is not let in is told why


def files(folder: Path) -> TlsFiles:
    return TlsFiles(folder / CA_FILE, folder / CERTIFICATE_FILE, folder / KEY_FILE)


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, BrokerUrl]]:
    """A broker over TLS that knows that `gone` was revoked, and the folder of everybody's identities."""
    folder = tmp_path_factory.mktemp("strict")
    authority = create_authority("test registrar", now=NOW - 100 * DAY_S)
    options: dict[str, Any] = {"now": NOW, "lifetime_days": 2}
    for name in ("good", "gone"):
        save_identity(folder / name, issue_identity(authority, identity_id=name, role="device", **options))
    then: dict[str, Any] = {"now": NOW - 10 * DAY_S, "lifetime_days": 1}
    save_identity(folder / "late", issue_identity(authority, identity_id="late", role="device", **then))
    unknown = create_authority("another registrar", now=NOW)
    save_identity(folder / "stranger", issue_identity(unknown, identity_id="stranger", role="device", **options))
    hosts = ("127.0.0.1", "localhost")
    save_identity(
        folder / "broker", issue_identity(authority, identity_id="broker", role="broker", hosts=hosts, **options)
    )
    serial = x509.load_pem_x509_certificate((folder / "gone" / CERTIFICATE_FILE).read_bytes()).serial_number
    (folder / "revoked.pem").write_bytes(revocation_list(authority, [serial]))
    own = files(folder / "broker")
    assert own.ca
    assert own.certificate
    assert own.key
    tls = BrokerTls(own.ca, own.certificate, own.key, folder / "revoked.pem")
    with start_broker(folder / "mqtt", kind="mosquitto", tls=tls) as broker:
        yield folder, broker.url


@pytest.mark.parametrize(
    ("who", "said"),
    [
        ("gone", "certificate was revoked"),
        ("late", "certificate has expired"),
        ("stranger", "does not know the registrar"),
    ],
)
def test_who_is_not_let_in_is_told_why(strict: tuple[Path, BrokerUrl], who: str, said: str) -> None:
    folder, url = strict
    own = files(folder / who)
    tls = TlsFiles(folder / "broker" / CA_FILE, own.certificate, own.key)

    async def attempt() -> None:
        await Peer(url, who, ["t"], tls=tls).start()

    with pytest.raises(TransportError, match=said):
        asyncio.run(attempt())


def test_a_device_that_is_not_let_in_keeps_trying_and_says_so_once(
    strict: tuple[Path, BrokerUrl], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = strict

    async def scenario() -> str:
        peer = Peer(url, "gone", ["t"], tls=files(folder / "gone"))
        tries, connect = asyncio.Semaphore(0), MqttTransport._open

        def counted(transport: MqttTransport, timeout_s: float) -> Coroutine[Any, Any, Any]:
            tries.release()
            return connect(transport, timeout_s)

        monkeypatch.setattr(MqttTransport, "_open", counted)
        peer.transport.launch()
        reason = await peer.down()
        # When it tries a third time, a second failure lies behind it, and it has said nothing more.
        async with asyncio.timeout(30):
            for _ in range(3):
                await tries.acquire()
        assert peer.downs.empty()
        await peer.stop()
        return reason

    assert "certificate was revoked" in asyncio.run(scenario())


def test_a_broker_out_of_its_time_puts_this_machines_clock_in_doubt(tmp_path: Path) -> None:
    """As a device sees it whose clock is years ahead, or one that has forgotten the time and is years behind."""
    authority = create_authority("test registrar", now=NOW - 1000 * DAY_S)
    for name, issued_at in (("old", NOW - 20 * DAY_S), ("new", NOW + 400 * DAY_S)):
        identity = issue_identity(
            authority, identity_id="broker", role="broker", now=issued_at, lifetime_days=3, hosts=("127.0.0.1",)
        )
        save_identity(tmp_path / name, identity)
        own = files(tmp_path / name)

        async def scenario(served: TlsFiles = own) -> None:
            assert served.certificate
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(served.certificate, served.key)
            server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
            port = server.sockets[0].getsockname()[1]
            try:
                await Peer(parse_broker_url(f"mqtts://127.0.0.1:{port}"), "a", [], tls=TlsFiles(served.ca)).start()
            finally:
                server.close()

        with pytest.raises(TransportError, match="or this machine's clock is wrong: it says 20") as caught:
            asyncio.run(scenario())
        assert "NTP" in caught.value.hint


# ---- a certificate that runs out


def test_a_running_device_process_renews_its_certificate_and_connects_with_it(tmp_path: Path) -> None:
    served = Served(tmp_path)
    try:
        authority, home, key = served.authority, tmp_path / "device", new_private_key()
        old = issue_logged(
            served.folder,
            authority,
            key.public_key(),
            identity_id="lamp",
            role="device",
            now=NOW - 80 * DAY_S,
            lifetime_days=90,
        )
        where = NewFile(REGISTRAR_FILE, served.url.encode())
        write_folder(
            home / "identity", [private_key_file(KEY_FILE, key), *certificate_files(old, authority.certificate), where]
        )
        write_folder(tmp_path / "signer", [NewFile("signer.pub", public_key_to_pem(new_private_key().public_key()))])
        shutil.copy(tmp_path / "signer" / "signer.pub", home / "signer.pub")
        hosts = ("127.0.0.1", "localhost")
        save_identity(
            tmp_path / "broker",
            issue_identity(authority, identity_id="broker", role="broker", now=NOW, hosts=hosts),
        )
        own, port = files(tmp_path / "broker"), free_port()
        assert own.ca
        assert own.certificate
        assert own.key
        tls = BrokerTls(own.ca, own.certificate, own.key)
        options = ("--broker", f"mqtts://127.0.0.1:{port}", "--population", "digits", "--verbose")
        with Command("device", "run", "--home", home, *options) as device:
            # Before it connects: the key changes while nothing depends on it.
            device.wait_for("lamp has a new certificate")
            with start_broker(tmp_path / "first", kind="mosquitto", port=port, tls=tls):
                device.wait_for("lamp is connected to")
            device.wait_for("it keeps trying")
            with start_broker(tmp_path / "second", kind="mosquitto", port=port, tls=tls):
                device.wait_for("lamp is connected to")
            device.send(signal.SIGTERM)
            assert device.finish(30) == 0
        renewed = load_identity(home / "identity", role="device", now=NOW)
        assert renewed.not_after > NOW + 80 * DAY_S
        assert renewed.private_key.public_key() != key.public_key()
    finally:
        served.close()


# ---- the clock is set


class Jumping(ManualClock):
    """A clock that somebody sets."""

    def set(self, now: float) -> None:
        self._now = now


@pytest.mark.usefixtures("now")
def test_a_clock_that_is_put_back_by_weeks_does_not_silence_a_device(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits for a time of the new clock: it asks whether it may train, and repeats what brought no answer."""
    caplog.set_level(logging.INFO, "edge.device")
    clock = Jumping(world.START)
    asked: list[float] = []
    sent: list[str] = []
    published = asyncio.Semaphore(0)

    class Deaf:
        def launch(self) -> None:
            pass

        def publish(self, topic: str, payload: bytes, *, expiry_s: float | None = None) -> bool:
            sent.append(topic)
            published.release()
            return True

        async def stop(self) -> None:
            pass

    with World(tmp_path, 1, config=world.task_config(2)) as made:
        agent = made.agent_maker(0)()
        heard: asyncio.Queue[Any] = asyncio.Queue()

        def wire(_: Any, on_message: Any, on_connected: Any) -> Transport:
            heard.put_nowait(on_message)
            return Deaf()

        def ask() -> dict[str, tuple[str, ...]]:
            asked.append(clock.now())
            return {}

        def done() -> bool:
            return len(sent) >= 2 and len(asked) >= 2

        coordinator = made.make_coordinator()
        (announcement, *_) = [p for p in coordinator.start(world.START) if p.retain]

        async def scenario() -> None:
            async with asyncio.timeout(60):
                running = asyncio.create_task(
                    run_devices([agent], wire, stop=asyncio.Event(), clock=clock, objections=ask, done=done)
                )
                hear = await heard.get()
                hear(announcement.topic, announcement.payload)
                await published.acquire()
                assert len(sent) == 1
                # The certificates of this world are a day back-dated, and so it may be put back by half of one.
                clock.set(world.START - DAY_S / 2)
                hear("fl/v1/nothing", b"")
                await running

        asyncio.run(scenario())
    assert "the clock was put back by 43200 s" in caplog.text
    assert asked[-1] == world.START - DAY_S / 2
    assert all(topic.endswith("up/ctl") for topic in sent)


# ---- another version of the SDK was here


def _bump(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute(statement).rowcount == 1
    connection.commit()
    connection.close()


def _newer_store(home: Path) -> None:
    _bump(home / "device.sqlite", "UPDATE meta SET value = '99' WHERE key = 'schema'")


def _newer_examples(home: Path) -> None:
    connection = sqlite3.connect(examples_file(home, "digits"))
    (text,) = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    connection.close()
    newer = json.dumps(json.loads(text) | {"version": 99})
    _bump(examples_file(home, "digits"), f"UPDATE meta SET value = '{newer}' WHERE key = 'schema'")  # noqa: S608


@pytest.mark.parametrize("newer", [_newer_store, _newer_examples])
def test_files_of_a_newer_version_are_refused_and_left_as_they_are(tmp_path: Path, newer: Any) -> None:
    folders = FleetFolders(tmp_path)
    make_authorities(folders, NOW)
    make_devices(folders, {"dev": {"x": np.zeros((3, 2), np.float32), "y": np.zeros(3, np.int64)}}, NOW)
    home = folders.device("dev")

    def open_all() -> None:
        with EdgeClient(home) as edge:
            edge.examples("digits")

    open_all()
    newer(home)

    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in home.rglob("*.sqlite")}

    before = content()
    with pytest.raises(StoreError, match="99") as caught:
        open_all()
    assert "update edge-sdk" in caught.value.hint
    assert content() == before


def test_an_installed_model_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    folders = FleetFolders(tmp_path)
    make_authorities(folders, NOW)
    export(
        torch.nn.Linear(2, 2),
        torch.nn.functional.cross_entropy,
        example_inputs=(torch.zeros(2, 2),),
        example_target=torch.zeros(2, dtype=torch.int64),
        path=folders.bundle,
        signer=folders.signer_key,
        name="it",
    )
    signer = load_public_key(folders.signer_public)
    artifact = read_artifact(folders.bundle, signer=signer)
    InstalledModels(tmp_path / "models", signer=signer).install(artifact, 1, artifact.checkpoint())
    (head,) = (tmp_path / "models").glob("*/head")
    content = bytearray(head.read_bytes())
    content[8:10] = (99).to_bytes(2, "little")
    head.write_bytes(content)
    with pytest.raises(ArtifactError, match="format version 99") as caught:
        InstalledModels(tmp_path / "models", signer=signer).predictor()
    assert "update" in caught.value.hint
    assert head.read_bytes() == content
