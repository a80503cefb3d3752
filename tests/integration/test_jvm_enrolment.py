"""The Kotlin client gets its identity from the registrar, and renews it before it expires."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.registrar.authority import DAY_S
from coordinator.registrar.folder import read_log
from edge_sdk.credentials import CA_FILE, CERTIFICATE_FILE, KEY_FILE, load_certificate, load_identity
from edge_sdk.signing import new_private_key, public_key_to_pem
from tests.integration.jvm import Jvm, classpath
from tests.integration.test_registrar_server import NOW, Served
from tests.shared import free_port

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
        said = started(home, stranger, stranger.token(), "error")
    finally:
        stranger.close()
    assert "does not prove that it is the registrar" in said
    assert not (home / "identity" / CERTIFICATE_FILE).exists()
