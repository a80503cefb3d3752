"""Enrolment and renewal over real HTTPS: who gets a certificate, who does not, and what a crash leaves."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from coordinator.registrar.attestation import Attestation, AttestationPolicy, challenge_for
from coordinator.registrar.authority import DAY_S, Authority, create_authority, issue_identity
from coordinator.registrar.folder import CA_KEY_FILE, init_folder, read_log, revoke
from coordinator.registrar.server import RateLimit, Registrar, serving
from coordinator.registrar.tokens import make_tokens
from edge_sdk.clock import ManualClock, SystemClock
from edge_sdk.credentials import (
    CA_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    certificate_file,
    load_certificate,
    load_identity,
    private_key_file,
    save_identity,
    write_folder,
)
from edge_sdk.errors import ConfigError, IdentityError, TransportError
from edge_sdk.identity import RENEW_DOMAIN, Identity, create_request
from edge_sdk.protocol.policy import DevicePolicy
from edge_sdk.runtime import driver, enrolment
from edge_sdk.runtime.agent import DeviceAgent
from edge_sdk.runtime.blob_cache import BlobCache
from edge_sdk.runtime.device_store import DeviceStore
from edge_sdk.runtime.driver import run_devices
from edge_sdk.runtime.enrolment import (
    NEXT_KEY_FILE,
    REGISTRAR_FILE,
    Renewal,
    enrol,
    finish_renewal,
    is_due,
    renew,
    usable_identity,
)
from edge_sdk.signing import new_private_key, sign_raw
from tests.simulation.world import KnownLearner
from tests.unit.phones import STRONGBOX, Maker, pem

NOW = SystemClock().now()


class Served:
    """A registrar that serves from a thread of its own."""

    def __init__(self, folder: Path, authority: Authority | None = None) -> None:
        self.folder = folder / "registrar"
        if authority is None:
            self.authority = init_folder(self.folder, name="Test Registrar", now=NOW)
        else:
            self.authority = authority
            files = (
                private_key_file(CA_KEY_FILE, authority.private_key),
                certificate_file(CA_FILE, authority.certificate),
            )
            write_folder(self.folder, files)
        self.now = NOW
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
        self.url = f"https://localhost:{self.port}"

    def _run(self, tls: ssl.SSLContext) -> None:
        async def main() -> None:
            async with serving(self.registrar, "127.0.0.1", 0, tls) as self.port:
                self.ready.set()
                await self.stop.wait()

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
        "registrar.url",
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


def test_a_certificate_that_expired_while_the_device_was_off_is_renewed_at_the_start(
    served: Served, tmp_path: Path
) -> None:
    folder = tmp_path / "one"
    identity = served.enrol(folder, served.token())
    served.now = identity.not_after + 21 * DAY_S
    with pytest.raises(IdentityError, match="expired"):
        load_identity(folder, role="device", now=served.now)
    again = usable_identity(folder, now=served.now)
    assert again.id == identity.id
    assert again.not_after > served.now
    assert again.certificate_der == load_identity(folder, role="device", now=served.now).certificate_der
    # A good one is used as it is, without a word to anybody.
    assert usable_identity(folder, now=served.now + 1).certificate_der == again.certificate_der


def test_an_expired_certificate_and_no_registrar_names_the_clock(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    identity = served.enrol(folder, served.token())
    (folder / REGISTRAR_FILE).write_text("https://localhost:1")
    with pytest.raises(IdentityError, match="cannot reach the registrar") as caught:
        usable_identity(folder, now=identity.not_after + DAY_S)
    assert "check this machine's clock, which says" in caught.value.hint
    (folder / REGISTRAR_FILE).unlink()
    with pytest.raises(IdentityError, match="expired at") as caught:
        usable_identity(folder, now=identity.not_after + DAY_S)
    assert "edge device renew" in caught.value.hint


class Nowhere:
    """A transport to no broker."""

    def launch(self) -> None:
        pass

    def publish(self, topic: str, payload: bytes, *, expiry_s: float | None = None) -> bool:
        return False

    async def stop(self) -> None:
        pass


def test_a_running_device_renews_between_rounds_and_goes_on(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "MAX_WAIT_S", 0.01)  # its clock is moved by hand: what it waits for has come
    caplog.set_level(logging.INFO, "edge.device")
    folder = tmp_path / "one" / "identity"
    identity = served.enrol(folder, served.token())
    clock = ManualClock(NOW)
    renewal = Renewal(folder, served.url, lambda: 0.5)
    assert renewal.next_at > NOW + 0.66 * (identity.not_after - NOW)
    with DeviceStore(tmp_path / "one" / "device.sqlite") as store:
        agent = DeviceAgent(
            identity,
            {"testers": KnownLearner(0)},
            store,
            BlobCache(tmp_path / "one" / "blobs"),
            policy=DevicePolicy(),
            random_bytes=os.urandom,
        )

        def run_until(done: Callable[[], bool]) -> None:
            asyncio.run(
                run_devices(
                    [agent],
                    lambda agent, on_message, on_connected: Nowhere(),
                    stop=asyncio.Event(),
                    clock=clock,
                    done=done,
                    objections=dict,
                    renewals={identity.id: renewal},
                )
            )

        # The registrar is away when it is due: it is asked again, later and later.
        served.now = due_at = renewal.next_at
        clock.advance(due_at - clock.now())
        renewal._url = "https://localhost:1"
        run_until(lambda: renewal.next_at > due_at)
        assert agent._frames.identity is identity
        first_pause_s = renewal.next_at - clock.now()
        assert 200 < first_pause_s < 300
        clock.advance(first_pause_s)
        due_at = renewal.next_at
        run_until(lambda: renewal.next_at > due_at)
        assert renewal.next_at - clock.now() == pytest.approx(2 * first_pause_s)
        assert "cannot reach the registrar" in caplog.text
        # It is back.
        renewal._url = served.url
        clock.advance(2 * first_pause_s)
        run_until(lambda: agent._frames.identity is not identity)
    assert agent._environment.certificate == agent._frames.identity.certificate_der
    assert (
        load_identity(folder, role="device", now=clock.now()).certificate_der == agent._frames.identity.certificate_der
    )
    assert renewal.next_at > identity.not_after
    assert "has a new certificate" in caplog.text


@contextmanager
def tls_server(folder: Path) -> Iterator[int]:
    """Takes one connection, and shows the certificate of a folder."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / CERTIFICATE_FILE, folder / KEY_FILE)

    def shake(listener: socket.socket) -> None:
        with suppress(OSError), listener.accept()[0] as plain, context.wrap_socket(plain, server_side=True):
            pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=shake, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_a_registrar_out_of_its_time_puts_the_clock_in_doubt(served: Served, tmp_path: Path) -> None:
    """As a machine sees it whose clock is ahead: the registrar's own certificate has expired."""
    options = {"identity_id": "registrar", "hosts": ["localhost"], "lifetime_days": 1}
    own = issue_identity(served.authority, role="registrar", now=NOW - 9 * DAY_S, **options)  # type: ignore[arg-type]
    save_identity(tmp_path / "late", own)
    with (
        tls_server(tmp_path / "late") as port,
        pytest.raises(TransportError, match="or this machine's clock is wrong: it says") as caught,
    ):
        enrol(
            tmp_path / "one",
            f"https://localhost:{port}",
            token=served.token(),
            ca=served.authority.certificate,
            now=NOW,
        )
    assert "NTP" in caught.value.hint


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
    for url in ("http://localhost", "https://", "https://localhost:no", "https://[", "https://local\0host"):
        with pytest.raises(ConfigError, match="no registrar's URL"):
            enrol(tmp_path / "two", url, token=served.token(), ca=stranger.certificate, now=NOW)


def test_what_is_no_request_is_refused(served: Served) -> None:
    ca = served.authority.certificate
    for body in ({}, {"token": "x", "request": "y"}, {"token": "x" * 40_000, "request": "y"}):
        with pytest.raises(IdentityError, match="refused"):
            enrolment._post(served.url, "/v1/enrol", body, ca)
    with pytest.raises(IdentityError, match="not a certificate request"):
        enrolment._post(served.url, "/v1/renew", {"certificate": "", "request": "", "proof": "zz"}, ca)


def test_a_key_must_be_attested_where_the_registrar_asks_for_it(served: Served, tmp_path: Path) -> None:
    """At enrolment bound to the token, at renewal to the old certificate; what is refused does not spend the token."""
    maker, token = Maker(), served.token()
    served.registrar._attestation = AttestationPolicy(Attestation.REQUIRE, (maker.root,))
    ca = served.authority.certificate
    with pytest.raises(IdentityError, match="holds no attestation of its key"):
        served.enrol(tmp_path / "software", token)

    def ask(path: str, key: ec.EllipticCurvePrivateKey, attested: list[x509.Certificate], **body: str) -> bytes:
        request = create_request(key, "phone-1")
        body |= {"request": request.decode(), "attestation": pem(attested).decode()}
        if "certificate" in body:
            body["proof"] = sign_raw(first, RENEW_DOMAIN + request).hex()
        return str(enrolment._post(served.url, path, body, ca)["certificate"]).encode()

    first, second = new_private_key(), new_private_key()
    chain = maker.attest(first.public_key(), challenge_for(token.encode()))
    with pytest.raises(IdentityError, match="another key than the request"):
        ask("/v1/enrol", second, chain, token=token)
    with pytest.raises(IdentityError, match="for another enrolment"):
        ask("/v1/enrol", first, chain, token=served.token())
    old = ask("/v1/enrol", first, chain, token=token)
    assert ask("/v1/enrol", first, chain, token=token) == old
    again = maker.attest(second.public_key(), challenge_for(token.encode()))
    with pytest.raises(IdentityError, match="for another enrolment"):
        ask("/v1/renew", second, again, certificate=old.decode())
    der = x509.load_pem_x509_certificate(old).public_bytes(Encoding.DER)
    chain = maker.attest(second.public_key(), challenge_for(der), level=STRONGBOX)
    ask("/v1/renew", second, chain, certificate=old.decode())
    assert [line.attestation for line in read_log(served.folder)] == ["tee", "strongbox"]
    # A registrar that only records enrols the software's key too, and writes down what it lacks.
    served.registrar._attestation = AttestationPolicy(Attestation.RECORD, (maker.root,))
    served.enrol(tmp_path / "software", served.token())
    assert read_log(served.folder)[-1].attestation == "none: the request holds no attestation of its key"


def test_who_asks_too_often_waits() -> None:
    limit = RateLimit(tries=3, per_s=60.0)
    assert [limit.allows("a", 0.0) for _ in range(5)] == [True, True, True, False, False]
    assert limit.allows("b", 0.0)
    assert [limit.allows("a", 45.0) for _ in range(3)] == [True, True, False]


def _certificate(folder: Path) -> x509.Certificate:
    return load_certificate(folder / CERTIFICATE_FILE)
