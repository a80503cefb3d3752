"""Enrolment and renewal over real HTTPS: who gets a certificate, who does not, and what a crash leaves."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from coordinator.registrar.authority import DAY_S, create_authority, issue_identity
from coordinator.registrar.folder import init_folder, read_log, revoke
from coordinator.registrar.server import RateLimit, Registrar, serve
from coordinator.registrar.tokens import make_tokens
from edge_sdk.clock import SystemClock
from edge_sdk.credentials import CERTIFICATE_FILE, KEY_FILE, load_certificate, load_identity, save_identity
from edge_sdk.errors import ConfigError, IdentityError, TransportError
from edge_sdk.identity import Identity
from edge_sdk.runtime import enrolment
from edge_sdk.runtime.enrolment import NEXT_KEY_FILE, enrol, finish_renewal, is_due, renew

NOW = SystemClock().now()


class Served:
    """A registrar that serves from a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "registrar"
        self.authority = init_folder(self.folder, name="Test Registrar", now=NOW)
        self.now = NOW
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"https://localhost:{self.port}"
        own = issue_identity(self.authority, identity_id="registrar", role="registrar", now=NOW, hosts=["localhost"])
        save_identity(folder / "tls", own)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(folder / "tls" / CERTIFICATE_FILE, folder / "tls" / KEY_FILE)
        self.registrar = Registrar(self.folder, self.authority, lambda: self.now)
        self.loop = asyncio.new_event_loop()
        self.stop = asyncio.Event()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(tls,))
        self.thread.start()
        assert self.ready.wait(10)

    def _run(self, tls: ssl.SSLContext) -> None:
        async def main() -> None:
            serving = asyncio.create_task(serve(self.registrar, "127.0.0.1", self.port, tls, self.stop))
            while not serving.done():
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0)
            self.ready.set()
            await serving

        self.loop.run_until_complete(main())
        self.loop.close()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join()

    def token(self, **options: str) -> str:
        (token,) = make_tokens(self.folder, 1, expires_at=NOW + DAY_S, identity_id=options.get("identity_id", ""))
        return token

    def enrol(self, folder: Path, token: str, identity_id: str = "") -> Identity:
        return enrol(
            folder, self.url, token=token, ca=self.authority.certificate, now=self.now, identity_id=identity_id
        )


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.close()


def test_a_token_gives_one_device_one_identity(served: Served, tmp_path: Path) -> None:
    token = served.token()
    identity = served.enrol(tmp_path / "one", token)
    assert load_identity(tmp_path / "one", role="device", now=NOW).id == identity.id
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "identity.crt",
        "identity.key",
        "registrar.crt",
    ]
    assert (tmp_path / "one" / KEY_FILE).stat().st_mode & 0o77 == 0
    with pytest.raises(IdentityError, match="unknown, expired, already used"):
        served.enrol(tmp_path / "two", token)
    with pytest.raises(IdentityError, match="holds an identity already"):
        served.enrol(tmp_path / "one", served.token())
    assert [line.id for line in read_log(served.folder)] == [identity.id]


def test_an_answer_that_was_lost_is_given_again(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = served.token()
    monkeypatch.setattr(enrolment, "make_identity", lambda *_, **__: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        served.enrol(tmp_path / "one", token)
    monkeypatch.undo()
    assert served.enrol(tmp_path / "one", token).id == read_log(served.folder)[0].id
    assert len(read_log(served.folder)) == 1


def test_tokens_may_be_for_one_id_and_expire(served: Served, tmp_path: Path) -> None:
    token = served.token(identity_id="lamp-7")
    with pytest.raises(IdentityError, match="for another id"):
        served.enrol(tmp_path / "other", token, "lamp-8")
    assert served.enrol(tmp_path / "lamp", token, "lamp-7").id == "lamp-7"
    with pytest.raises(IdentityError, match="has a valid certificate with another key"):
        served.enrol(tmp_path / "thief", served.token(), "lamp-7")
    late = served.token()
    served.now = NOW + 2 * DAY_S
    with pytest.raises(IdentityError, match="expired"):
        served.enrol(tmp_path / "late", late)


def test_a_certificate_is_renewed_for_a_new_key(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    before = served.enrol(folder, served.token())
    served.now = NOW + 61 * DAY_S
    assert not is_due(_certificate(folder), NOW)
    assert is_due(_certificate(folder), served.now)
    after = renew(folder, served.url, now=served.now)
    assert after.id == before.id
    assert after.not_after > before.not_after
    assert load_identity(folder, role="device", now=served.now).certificate_der == after.certificate_der
    # Off for long: the certificate expired, the key is still the device's own.
    served.now = NOW + 400 * DAY_S
    assert renew(folder, served.url, now=served.now).not_after > served.now


def test_a_renewal_cut_off_between_certificate_and_key_is_finished(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "one"
    served.enrol(folder, served.token())
    finish_renewal(folder)

    def cut(folder: Path) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(enrolment, "finish_renewal", cut)
    with pytest.raises(OSError, match="power cut"):
        renew(folder, served.url, now=NOW)
    monkeypatch.undo()
    with pytest.raises(IdentityError, match="does not belong"):
        load_identity(folder, role="device", now=NOW)
    finish_renewal(folder)
    load_identity(folder, role="device", now=NOW)
    assert not (folder / NEXT_KEY_FILE).exists()


def test_a_revoked_device_is_told_so(served: Served, tmp_path: Path) -> None:
    identity = served.enrol(tmp_path / "one", served.token())
    crl = revoke(served.folder, served.authority, identity.id, NOW)
    assert b"X509 CRL" in crl.read_bytes()
    with pytest.raises(IdentityError, match="was revoked"):
        renew(tmp_path / "one", served.url, now=NOW)
    with pytest.raises(IdentityError, match="was revoked"):
        served.enrol(tmp_path / "again", served.token(), identity.id)


def test_nobody_renews_anothers_certificate(served: Served, tmp_path: Path) -> None:
    served.enrol(tmp_path / "one", served.token())
    served.enrol(tmp_path / "two", served.token())
    # The one's key proves nothing about the other's certificate.
    os.replace(tmp_path / "two" / CERTIFICATE_FILE, tmp_path / "one" / CERTIFICATE_FILE)
    with pytest.raises(IdentityError, match="not signed by the certificate's key"):
        renew(tmp_path / "one", served.url, now=NOW)


def test_a_server_that_is_not_the_pinned_registrars_is_not_asked(served: Served, tmp_path: Path) -> None:
    stranger = create_authority("Somebody Else", now=NOW)
    with pytest.raises(TransportError, match="does not prove who it is"):
        enrol(tmp_path / "one", served.url, token=served.token(), ca=stranger.certificate, now=NOW)
    with pytest.raises(ConfigError, match="no registrar's URL"):
        enrol(tmp_path / "two", "http://localhost", token=served.token(), ca=stranger.certificate, now=NOW)


def test_what_is_no_request_is_refused(served: Served) -> None:
    ca = served.authority.certificate
    for body in ({}, {"token": "x", "request": "y"}, {"token": "x" * 40_000, "request": "y"}):
        with pytest.raises(IdentityError, match="refused"):
            enrolment._post(served.url, "/v1/enrol", body, ca)
    with pytest.raises(IdentityError, match="not a certificate request"):
        enrolment._post(served.url, "/v1/renew", {"certificate": "", "request": "", "proof": "zz"}, ca)


def test_who_asks_too_often_waits() -> None:
    limit = RateLimit(tries=3, per_s=60.0)
    assert [limit.allows("a", 0.0) for _ in range(5)] == [True, True, True, False, False]
    assert limit.allows("b", 0.0)
    assert [limit.allows("a", 45.0) for _ in range(3)] == [True, True, False]


def _certificate(folder: Path) -> x509.Certificate:
    return load_certificate(folder / CERTIFICATE_FILE)
