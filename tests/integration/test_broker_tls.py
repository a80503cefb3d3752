"""TLS and access control on mosquitto: who gets in, and what a device with a good certificate still cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from coordinator.registrar.authority import Authority, create_authority, issue_identity
from coordinator.service.broker import BrokerTls, start_broker
from edge_sdk.clock import SystemClock
from edge_sdk.credentials import CA_FILE, CERTIFICATE_FILE, KEY_FILE, save_identity
from edge_sdk.errors import ConfigError, IdentityError, TransportError
from edge_sdk.identity import Role
from edge_sdk.protocol.messages import DeviceId
from edge_sdk.protocol.topics import coordinator_subscriptions, device_subscriptions
from edge_sdk.runtime.broker_url import BrokerUrl
from edge_sdk.runtime.mqtt import TlsFiles
from tests.integration.peers import Peer

NOW = SystemClock().now()
DAY_S = 86_400.0


def files(folder: Path) -> TlsFiles:
    return TlsFiles(folder / CA_FILE, folder / CERTIFICATE_FILE, folder / KEY_FILE)


def broker_files(folder: Path, revoked: Path | None = None) -> BrokerTls:
    return BrokerTls(folder / CA_FILE, folder / CERTIFICATE_FILE, folder / KEY_FILE, revoked)


class World:
    """A registrar's folder of identities, and a broker that trusts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = create_authority("test registrar", now=NOW)
        self.issue("broker", "broker", hosts=("127.0.0.1", "localhost"))
        self.tls = broker_files(folder / "broker")
        self.broker = start_broker(folder / "run", kind="mosquitto", tls=self.tls)

    def issue(self, name: str, role: Role = "device", **options: Any) -> TlsFiles:
        folder = self.folder / name
        if not folder.exists():
            options = {"now": NOW, "lifetime_days": 2, **options}
            save_identity(folder, issue_identity(self.authority, identity_id=name, role=role, **options))
        return files(folder)

    def peer(self, name: str, subscriptions: Sequence[str], client_id: str | None = None, **options: Any) -> Peer:
        return Peer(self.broker.url, client_id or name, subscriptions, tls=self.issue(name), **options)

    def coordinator(self) -> Peer:
        self.issue("coordinator", "coordinator")
        return self.peer("coordinator", (*coordinator_subscriptions(0), "fl/v1/pub/#"))

    def device(self, name: str, **options: Any) -> Peer:
        return self.peer(name, device_subscriptions(DeviceId(name), "main"), **options)


def revocation_list(authority: Authority, serials: Sequence[int]) -> bytes:
    then = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(then - datetime.timedelta(hours=1))
        .next_update(then + datetime.timedelta(days=1))
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(then).build()
        builder = builder.add_revoked_certificate(entry)
    signed = builder.sign(authority.private_key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("tls"))
    with made.broker:
        yield made


@pytest.fixture(params=["5", "3.1.1"])
def protocol(request: pytest.FixtureRequest) -> str:
    version: str = request.param
    return version


def test_devices_and_coordinator_talk(world: World) -> None:
    async def scenario() -> None:
        coordinator, device = world.coordinator(), world.device("dev-1")
        await coordinator.start()
        await device.start()
        assert device.publish("fl/v1/d/dev-1/up/ctl", b"check in")
        assert await coordinator.message() == ("fl/v1/d/dev-1/up/ctl", b"check in")
        chunk = bytes(60_000)
        assert device.publish("fl/v1/w/0/dev-1/c", chunk)
        assert await coordinator.message() == ("fl/v1/w/0/dev-1/c", chunk)
        for topic in ("fl/v1/d/dev-1/dn/ctl", "fl/v1/d/dev-1/dn/b"):
            assert coordinator.publish(topic, chunk)
            assert await device.message() == (topic, chunk)
        assert coordinator.publish("fl/v1/pub/task/main", b"task")
        assert await device.message() == ("fl/v1/pub/task/main", b"task")
        device.transport.abort()
        await device.up()
        assert device.publish("fl/v1/d/dev-1/up/ctl", b"again")
        assert await coordinator.message() == ("fl/v1/pub/task/main", b"task")
        assert await coordinator.message() == ("fl/v1/d/dev-1/up/ctl", b"again")
        await device.stop()
        await coordinator.stop()

    asyncio.run(scenario())


FORGED = (
    "fl/v1/d/victim/up/ctl",
    "fl/v1/d/victim/dn/ctl",
    "fl/v1/d/victim/dn/b",
    "fl/v1/d/mallory/dn/ctl",
    "fl/v1/w/0/victim/c",
    "fl/v1/pub/task/main",
)


@pytest.mark.parametrize("topic", FORGED)
def test_a_device_cannot_write_where_it_must_not(world: World, topic: str, protocol: str) -> None:
    async def scenario() -> None:
        coordinator = await world.coordinator().start()
        victim = await world.device("victim").start()
        mallory = await world.device("mallory", protocol=protocol).start()
        assert mallory.publish(topic, b"forged", retain=True)
        # Some versions drop a client that tries, so that what it says next may be lost.
        heard: tuple[str, bytes] | None = None
        for _ in range(60):
            mallory.publish("fl/v1/d/mallory/up/ctl", b"marker")
            with contextlib.suppress(TimeoutError):
                heard = await asyncio.wait_for(coordinator.inbox.get(), 0.5)
                break
        assert heard == ("fl/v1/d/mallory/up/ctl", b"marker")
        assert coordinator.publish("fl/v1/d/victim/dn/ctl", b"end")
        assert await victim.message() == ("fl/v1/d/victim/dn/ctl", b"end")
        assert mallory.inbox.empty()
        for peer in (mallory, victim, coordinator):
            await peer.stop()

    asyncio.run(scenario())


def test_a_device_cannot_read_what_is_not_its_own(world: World, protocol: str) -> None:
    async def scenario() -> None:
        coordinator = await world.coordinator().start()
        victim = await world.device("victim").start()
        spying: tuple[str, ...] = (
            "#",
            "fl/v1/#",
            "fl/v1/d/+/dn/ctl",
            "fl/v1/d/victim/dn/ctl",
            "fl/v1/d/victim/up/ctl",
            "fl/v1/w/+/+/c",
        )
        if protocol == "5":
            spying += ("$share/workers/fl/v1/d/+/up/ctl",)
        own = device_subscriptions(DeviceId("mallory"), "main")
        mallory = world.peer("mallory", (*spying, *own), protocol=protocol)
        await mallory.start()
        for topic in ("fl/v1/d/victim/dn/ctl", "fl/v1/d/victim/dn/b"):
            assert coordinator.publish(topic, b"secret")
            assert await victim.message() == (topic, b"secret")
        for topic in ("fl/v1/d/victim/up/ctl", "fl/v1/w/0/victim/c"):
            assert victim.publish(topic, b"secret")
            assert await coordinator.message() == (topic, b"secret")
        assert coordinator.publish("fl/v1/d/mallory/dn/ctl", b"end")
        heard = await mallory.message()
        assert heard == ("fl/v1/d/mallory/dn/ctl", b"end")
        for peer in (mallory, victim, coordinator):
            await peer.stop()

    asyncio.run(scenario())


def test_a_stolen_client_id_evicts_nobody(world: World, protocol: str) -> None:
    async def scenario() -> None:
        coordinator = await world.coordinator().start()
        victim = await world.device("victim").start()
        thief = world.peer(
            "mallory", device_subscriptions(DeviceId("victim"), "main"), client_id="victim", protocol=protocol
        )
        thief.transport.launch()
        await thief.up()
        assert coordinator.publish("fl/v1/d/victim/dn/ctl", b"for the victim")
        assert await victim.message() == ("fl/v1/d/victim/dn/ctl", b"for the victim")
        assert victim.publish("fl/v1/d/victim/up/ctl", b"still here")
        assert await coordinator.message() == ("fl/v1/d/victim/up/ctl", b"still here")
        assert victim.downs.empty()
        assert thief.inbox.empty()
        for peer in (thief, victim, coordinator):
            await peer.stop()

    asyncio.run(scenario())


async def attempt(url: BrokerUrl, tls: TlsFiles, name: str = "dev-1") -> None:
    peer = Peer(url, name, ["fl/v1/pub/task/main"], tls=tls)
    try:
        await peer.transport.start(10)
    finally:
        await peer.stop()


def test_without_a_certificate_nobody_gets_in(world: World) -> None:
    with pytest.raises(TransportError, match=r"closed the connection|failed") as caught:
        asyncio.run(attempt(world.broker.url, TlsFiles(world.folder / "broker" / CA_FILE)))
    assert "certificate" in caught.value.hint


def test_another_registrars_device_is_refused(world: World, tmp_path: Path) -> None:
    other = create_authority("another registrar", now=NOW)
    save_identity(tmp_path / "dev", issue_identity(other, identity_id="dev-1", role="device", now=NOW))
    theirs = files(tmp_path / "dev")
    mixed = TlsFiles(world.folder / "broker" / CA_FILE, theirs.certificate, theirs.key)
    with pytest.raises(TransportError, match=r"closed the connection|failed") as caught:
        asyncio.run(attempt(world.broker.url, mixed))
    assert "from the registrar" in caught.value.hint


def test_an_expired_certificate_is_refused(world: World, tmp_path: Path) -> None:
    then = NOW - 10 * DAY_S
    old = Authority(world.authority.certificate, world.authority.private_key)
    identity = issue_identity(old, identity_id="old", role="device", now=then, lifetime_days=1)
    save_identity(tmp_path / "old", identity)
    with pytest.raises(TransportError, match=r"closed the connection|failed") as caught:
        asyncio.run(attempt(world.broker.url, files(tmp_path / "old"), "old"))
    assert "not expired" in caught.value.hint


def test_a_broker_of_another_registrar_is_not_trusted(world: World, tmp_path: Path) -> None:
    other = create_authority("another registrar", now=NOW)
    save_identity(tmp_path / "dev", issue_identity(other, identity_id="dev-1", role="device", now=NOW))
    with pytest.raises(TransportError, match="not trusted") as caught:
        asyncio.run(attempt(world.broker.url, files(tmp_path / "dev")))
    assert "CA file" in caught.value.hint


def test_a_broker_under_another_name_is_not_trusted(world: World, tmp_path: Path) -> None:
    with start_broker(tmp_path, kind="mosquitto", tls=world.tls, host="127.0.0.2") as broker:
        # The certificate names 127.0.0.1 and localhost.
        with pytest.raises(TransportError, match=r"not trusted.*127\.0\.0\.2") as caught:
            asyncio.run(attempt(broker.url, world.issue("dev-1")))
        assert "names the host" in caught.value.hint


def test_a_device_cannot_pose_as_the_broker(world: World, tmp_path: Path) -> None:
    world.issue("poser")
    tls = broker_files(world.folder / "poser")
    with (
        start_broker(tmp_path / "poser", kind="mosquitto", tls=tls) as poser,
        pytest.raises(TransportError, match="not trusted"),
    ):
        asyncio.run(attempt(poser.url, world.issue("dev-2"), "dev-2"))


def test_unusable_tls_files_are_named(world: World, tmp_path: Path) -> None:
    good = world.issue("dev-3")
    with pytest.raises(IdentityError, match=r"missing\.pem") as caught:
        asyncio.run(attempt(world.broker.url, TlsFiles(tmp_path / "missing.pem")))
    assert caught.value.hint
    mixed = TlsFiles(good.ca, good.certificate, world.issue("dev-4").key)
    with pytest.raises(IdentityError, match="cannot be used") as caught:
        asyncio.run(attempt(world.broker.url, mixed))
    assert caught.value.hint


def test_a_revoked_certificate_is_refused_after_a_restart(world: World, tmp_path: Path) -> None:
    tls = world.issue("dev-9")
    assert tls.certificate is not None
    serial = x509.load_pem_x509_certificate(tls.certificate.read_bytes()).serial_number
    asyncio.run(attempt(world.broker.url, tls, "dev-9"))
    list_file = tmp_path / "revoked.pem"
    list_file.write_bytes(revocation_list(world.authority, [serial]))
    strict = broker_files(world.folder / "broker", list_file)
    with start_broker(tmp_path / "run", kind="mosquitto", tls=strict) as broker:
        with pytest.raises(TransportError, match=r"closed the connection|failed"):
            asyncio.run(attempt(broker.url, tls, "dev-9"))
        asyncio.run(attempt(broker.url, world.issue("dev-10"), "dev-10"))


def test_amqtt_does_not_pretend_to_secure_anything(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no access control"):
        start_broker(tmp_path, kind="amqtt", tls=world.tls)


def test_a_missing_tls_file_is_named(tmp_path: Path) -> None:
    tls = BrokerTls(tmp_path / "ca.pem", tmp_path / "c.pem", tmp_path / "k.pem")
    with pytest.raises(ConfigError, match=r"ca\.pem does not exist"):
        start_broker(tmp_path, kind="mosquitto", tls=tls)
