"""The registrar over HTTPS: enrolment with a one-time token, and renewal by who holds the old key.

    POST /v1/enrol   {"token": ..., "request": PEM}                       -> {"certificate": PEM}
    POST /v1/renew   {"certificate": PEM, "request": PEM, "proof": hex}   -> {"certificate": PEM}

A request carries a public key only: private keys never travel. `proof` is the old key's signature, raw r||s, over
b"edge-sdk/renew/1\\0" and the request's PEM bytes. A phone adds "attestation", PEM certificates, leaf first: what its
hardware says of the key (`attestation`). Refusals are {"error": ..., "hint": ...} with 400, 403 or 429.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from coordinator.registrar.attestation import AttestationPolicy
from coordinator.registrar.authority import DEFAULT_LIFETIME_DAYS, Authority, Request, read_request
from coordinator.registrar.folder import issue_logged, revoked_ids
from coordinator.registrar.tokens import redeem
from edge_sdk.errors import IdentityError
from edge_sdk.identity import RENEW_DOMAIN, UNREADABLE, verify_certificate
from edge_sdk.signing import key_id, verify_raw

log = logging.getLogger("edge.registrar")

BODY_MAX_BYTES: Final = 32 << 10
_TRIES, _TRIES_S = 10, 60.0
_REMEMBERED = 10_000
_HINT = "see the registrar's documentation"


class RateLimit:
    """So many tries in so many seconds for each address; the oldest addresses are forgotten.

    Args:
        tries, per_s: the limit.
    """

    def __init__(self, tries: int = _TRIES, per_s: float = _TRIES_S) -> None:
        self._tries, self._per_s = tries, per_s
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, address: str, now: float) -> bool:
        """Whether one more try is within the limit; it is counted."""
        left, since = self._left.pop(address, (float(self._tries), now))
        left = min(float(self._tries), left + (now - since) * self._tries / self._per_s)
        self._left[address] = (max(0.0, left - 1.0), now)
        while len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)
        return left >= 1.0


class Registrar:
    """Enrols and renews devices.

    Args:
        folder: the registrar's.
        authority: its certificate and key.
        now: tells the time, seconds since the epoch.
        lifetime_days: of the certificates it issues.
        attestation: what it asks of the keys.
    """

    def __init__(
        self,
        folder: Path,
        authority: Authority,
        now: Callable[[], float],
        *,
        lifetime_days: int = DEFAULT_LIFETIME_DAYS,
        attestation: AttestationPolicy | None = None,
    ) -> None:
        self._attestation = attestation or AttestationPolicy()
        self._folder, self._authority, self._now = folder, authority, now
        self._lifetime_days = lifetime_days
        self._limit = RateLimit()
        # Issuing reads and appends one log.
        self._lock = asyncio.Lock()

    def application(self) -> web.Application:
        """The HTTP application."""
        application = web.Application(client_max_size=BODY_MAX_BYTES)
        application.router.add_post("/v1/enrol", self._handler(self._enrol))
        application.router.add_post("/v1/renew", self._handler(self._renew))
        return application

    def _handler(self, work: Callable[[dict[str, Any]], bytes]) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            address = request.remote or "?"
            if not self._limit.allows(address, self._now()):
                log.warning("%s asks too often", address)
                return _refusal(429, "too many tries", "wait a minute")
            try:
                body = json.loads(await request.read())
                if not isinstance(body, dict):
                    raise TypeError("not an object")
                async with self._lock:
                    pem = await asyncio.to_thread(work, body)
            except web.HTTPRequestEntityTooLarge:
                return _refusal(400, f"a request is at most {BODY_MAX_BYTES} bytes", _HINT)
            except (KeyError, TypeError, ValueError) as error:
                return _refusal(400, f"the request cannot be read: {error}", _HINT)
            except IdentityError as error:
                log.info("refused %s: %s", address, error)
                return _refusal(403, str(error), error.hint or _HINT)
            return web.json_response({"certificate": pem.decode()})

        return handle

    def _enrol(self, body: dict[str, Any]) -> bytes:
        token, pem = str(body["token"]), str(body["request"]).encode()
        asked, now = read_request(pem), self._now()
        if asked.id in revoked_ids(self._folder):
            raise _revoked(asked.id)
        return redeem(
            self._folder,
            token,
            identity_id=asked.id,
            key_sha256=key_id(asked.public_key).hex(),
            now=now,
            # A refused attestation does not spend the token.
            issue=lambda: self._issue(asked, body, token.encode(), now, replace=False),
        )

    def _renew(self, body: dict[str, Any]) -> bytes:
        pem = str(body["request"]).encode()
        asked, now = read_request(pem), self._now()
        old = _certificate(str(body["certificate"]).encode())
        # Expired ones are renewed too: a device may have been off for long, and its key is still its own.
        peer = verify_certificate(
            old.public_bytes(serialization.Encoding.DER),
            self._authority.certificate,
            "device",
            min(now, old.not_valid_after_utc.timestamp()),
        )
        if not verify_raw(peer.public_key, bytes.fromhex(str(body["proof"])), RENEW_DOMAIN + pem):
            raise IdentityError("the request is not signed by the certificate's key", hint="sign it with the old key")
        if peer.id != asked.id:
            raise IdentityError(f"the request is for {asked.id!r}, the certificate of {peer.id!r}")
        if peer.id in revoked_ids(self._folder):
            raise _revoked(peer.id)
        return self._issue(asked, body, old.public_bytes(serialization.Encoding.DER), now, replace=True)

    def _issue(self, asked: Request, body: dict[str, Any], secret: bytes, now: float, *, replace: bool) -> bytes:
        attested = self._attestation.judge(str(body.get("attestation", "")).encode(), asked.public_key, secret, now)
        certificate = issue_logged(
            self._folder,
            self._authority,
            asked.public_key,
            identity_id=asked.id,
            role="device",
            now=now,
            lifetime_days=self._lifetime_days,
            replace=replace,
            attestation=attested,
        )
        words = f", its key attested: {attested}" if attested else ""
        log.info("issued to %s until %s%s", asked.id, certificate.not_valid_after_utc.date(), words)
        return certificate.public_bytes(serialization.Encoding.PEM)


@asynccontextmanager
async def serving(registrar: Registrar, host: str, port: int, tls: ssl.SSLContext) -> AsyncIterator[int]:
    """Serve in the `with` block, on the port that it gives: the one asked for, or a free one where that is 0.

    Raises:
        OSError: the port cannot be used.
    """
    runner = web.AppRunner(registrar.application(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _refusal(status: int, error: str, hint: str) -> web.Response:
    return web.json_response({"error": error, "hint": hint}, status=status)


def _revoked(identity_id: str) -> IdentityError:
    return IdentityError(f"{identity_id!r} was revoked", hint="ask the fleet's operator")


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except UNREADABLE as error:
        raise IdentityError(f"the certificate cannot be read: {error}") from error
