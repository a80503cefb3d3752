"""The files of an identity folder serve mutual TLS as they are: handshakes in memory, checked strictly."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from coordinator.registrar.authority import Authority, create_authority, issue_identity
from edge_sdk.clock import SystemClock
from edge_sdk.credentials import CA_FILE, CERTIFICATE_FILE, KEY_FILE, save_identity
from edge_sdk.identity import Role


@pytest.fixture(scope="module")
def registrar() -> Authority:
    return create_authority("registrar", now=SystemClock().now())


def context(folder: Path, protocol: int) -> ssl.SSLContext:
    made = ssl.SSLContext(protocol)
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.load_verify_locations(folder / CA_FILE)
    made.load_cert_chain(folder / CERTIFICATE_FILE, folder / KEY_FILE)
    return made


def party(registrar: Authority, folder: Path, identity_id: str, role: Role, *hosts: str) -> Path:
    now = SystemClock().now()
    save_identity(folder, issue_identity(registrar, identity_id=identity_id, role=role, now=now, hosts=hosts))
    return folder


def shake_hands(server: Path, client: Path, host: str) -> ssl.SSLObject:
    """Return the server's end of a finished handshake."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        context(client, ssl.PROTOCOL_TLS_CLIENT).wrap_bio(down, up, server_hostname=host),
        context(server, ssl.PROTOCOL_TLS_SERVER).wrap_bio(up, down, server_side=True),
    ]
    waiting = ends
    for _ in range(10):
        waiting = [end for end in waiting if not done(end)]
    assert waiting == []
    return ends[1]


def done(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def test_a_device_and_a_broker_authenticate_each_other(registrar: Authority, tmp_path: Path) -> None:
    broker = party(registrar, tmp_path / "broker", "broker", "broker", "localhost", "127.0.0.1")
    device = party(registrar, tmp_path / "device", "dev-1", "device")
    for host in ("localhost", "127.0.0.1"):
        peer = shake_hands(broker, device, host).getpeercert()
        assert peer is not None
        assert peer["subject"] == ((("organizationalUnitName", "device"),), (("commonName", "dev-1"),))


def test_a_device_cannot_pose_as_the_broker(registrar: Authority, tmp_path: Path) -> None:
    device = party(registrar, tmp_path / "device", "dev-1", "device")
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        shake_hands(device, device, "localhost")


def test_another_registrars_device_is_turned_away(registrar: Authority, tmp_path: Path) -> None:
    broker = party(registrar, tmp_path / "broker", "broker", "broker", "localhost")
    stranger = create_authority("stranger", now=SystemClock().now())
    device = party(stranger, tmp_path / "device", "dev-1", "device")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(broker, device, "localhost")
