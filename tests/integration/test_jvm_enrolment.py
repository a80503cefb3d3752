"""The Kotlin client gets its identity from the registrar, and renews it before it expires."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.registrar.attestation import Attestation, AttestationPolicy, read_roots
from coordinator.registrar.authority import DAY_S, issue_identity
from coordinator.registrar.folder import read_log, revoke
from coordinator.service.broker import BrokerTls, start_broker
from edge_sdk.credentials import CA_FILE, CERTIFICATE_FILE, KEY_FILE, load_certificate, load_identity, save_identity
from edge_sdk.signing import new_private_key, public_key_to_pem
from tests.integration.jvm import Jvm, classpath
from tests.integration.test_registrar_server import NOW, Served
from tests.shared import free_port
from tests.unit.phones import Maker

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    classpath()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.close()


def started(home: Path, served: Served, token: str, until: str) -> str:
    """A client that is to enrol, read until it says this; it finds no broker."""
    options: list[str | Path] = ["--home", home, "--broker", f"mqtt://127.0.0.1:{free_port()}", "--population", "p"]
    environment = {"EDGE_ENROL_TOKEN": token}
    with Jvm("edge.DeviceMainKt", *options, "--enrol", served.url, environment=environment) as process:
        return process.wait_for(until)


def make_home(folder: Path, served: Served) -> Path:
    folder.mkdir()
    (folder / CA_FILE).write_bytes((served.folder / CA_FILE).read_bytes())
    (folder / "signer.pub").write_bytes(public_key_to_pem(new_private_key().public_key()))
    return folder


def test_a_token_gives_one_kotlin_device_an_identity_that_it_renews(served: Served, tmp_path: Path) -> None:
    served.now = NOW - 75 * DAY_S
    home, token = make_home(tmp_path / "one", served), served.token()
    said = started(home, served, token, "enrolled as")
    identity = load_identity(home / "identity", role="device", now=NOW)
    assert said == f"enrolled as {identity.id}"
    assert (home / "identity" / KEY_FILE).stat().st_mode & 0o77 == 0
    assert "unknown, expired, already used" in started(make_home(tmp_path / "two", served), served, token, "error")
    assert [line.id for line in read_log(served.folder)] == [identity.id]

    # More than two thirds of the certificate's life are over: it is renewed while the device runs, for a new key.
    served.now = NOW
    started(home, served, "", f"{identity.id} has a new certificate")
    again = load_identity(home / "identity", role="device", now=NOW)
    assert again.id == identity.id
    assert again.not_after > identity.not_after + 50 * DAY_S
    assert load_certificate(home / "identity" / CERTIFICATE_FILE).public_key() != identity.private_key.public_key()


def test_a_registrar_that_is_not_the_pinned_one_gets_no_token(served: Served, tmp_path: Path) -> None:
    (tmp_path / "stranger").mkdir()
    stranger = Served(tmp_path / "stranger")
    home = make_home(tmp_path / "one", served)
    try:
        said = started(home, stranger, stranger.token(), "not enrolled yet")
    finally:
        stranger.close()
    assert "does not prove that it is the registrar" in said
    assert not (home / "identity" / CERTIFICATE_FILE).exists()


def test_a_key_in_hardware_is_enrolled_by_its_attestation_renewed_and_erased(served: Served, tmp_path: Path) -> None:
    """The hardware is software, with a maker of its own; the registrar asks for attestations by its root."""
    home, token = make_home(tmp_path / "phone", served), served.token()
    served.now = NOW - 75 * DAY_S

    def phone(until: str, *arguments: str) -> str:
        options: list[str | Path] = [home, f"mqtt://127.0.0.1:{free_port()}", served.url, *arguments]
        with Jvm("edge.TestHardwareKt", *options, environment={"EDGE_ENROL_TOKEN": token}) as process:
            return process.wait_for(until)

    served.registrar._attestation = AttestationPolicy(Attestation.REQUIRE, (Maker().root,))
    assert "does not end in a root that this registrar believes" in phone("error")
    # With the right root the same token, and the same key, are good.
    roots = read_roots(home / "hardware" / "maker.pem")
    served.registrar._attestation = AttestationPolicy(Attestation.REQUIRE, roots)
    enrolled = phone("enrolled as").removeprefix("enrolled as ")
    assert not list((home / "identity").glob("*.key"))
    served.now = NOW
    phone(f"{enrolled} has a new certificate")
    assert [(line.id, line.attestation) for line in read_log(served.folder)] == [(enrolled, "tee")] * 2
    assert len(list((home / "hardware").glob("*.key"))) == 1
    assert phone("withdrawn", "withdraw") == "withdrawn, with 0 keys"
    assert not (home / "identity").exists()


def test_a_software_key_is_refused_where_hardware_is_asked_for(served: Served, tmp_path: Path) -> None:
    served.registrar._attestation = AttestationPolicy(Attestation.REQUIRE, (Maker().root,))
    said = started(make_home(tmp_path / "one", served), served, served.token(), "error")
    assert "the registrar refused: the request holds no attestation of its key" in said


def test_a_revoked_device_is_told_so_and_comes_back_with_a_new_token(served: Served, tmp_path: Path) -> None:
    """The broker has the registrar's list; another token gets the device another identity, and it is let in."""
    home = make_home(tmp_path / "one", served)
    first = started(home, served, served.token(), "enrolled as").removeprefix("enrolled as ")
    crl = revoke(served.folder, served.authority, first, NOW)
    own = issue_identity(
        served.authority, identity_id="broker", role="broker", now=NOW, hosts=("127.0.0.1", "localhost")
    )
    save_identity(tmp_path / "broker", own)
    ca, certificate, key = (tmp_path / "broker" / name for name in (CA_FILE, CERTIFICATE_FILE, KEY_FILE))
    with start_broker(tmp_path / "run", kind="mosquitto", tls=BrokerTls(ca, certificate, key, crl)) as broker:

        def run(token: str, until: str) -> str:
            options: list[str | Path] = [
                "--home",
                home,
                "--broker",
                str(broker.url),
                "--population",
                "p",
                "--enrol",
                served.url,
            ]
            with Jvm("edge.DeviceMainKt", *options, environment={"EDGE_ENROL_TOKEN": token}) as process:
                return process.wait_for(until)

        assert first in run("", "the broker says that this device's certificate was revoked")
        # A token that is no good leaves what is there.
        assert "unknown, expired, already used" in run("not-a-token", "error")
        assert load_identity(home / "identity", role="device", now=NOW).id == first
        token = served.token()
        second = run(token, "enrolled as").removeprefix("enrolled as ")
        assert second != first
        assert load_identity(home / "identity", role="device", now=NOW).id == second
        # The same token says nothing new; and the broker lets it in.
        run(token, f"{second} is connected")
