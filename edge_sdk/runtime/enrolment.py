"""A device's side of enrolment: a key that never leaves it, a request, and the certificate that comes back."""

from __future__ import annotations

import http.client
import json
import logging
import os
import secrets
import ssl
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from edge_sdk.credentials import (
    CA_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    NewFile,
    certificate_files,
    load_ca,
    load_certificate,
    load_identity,
    load_private_key,
    private_key_file,
    replace_file,
    write_file,
)
from edge_sdk.errors import ConfigError, EdgeError, IdentityError, TransportError
from edge_sdk.identity import (
    RENEW_DOMAIN,
    UNREADABLE,
    Identity,
    certificate_id,
    create_request,
    make_identity,
    utc_text,
)
from edge_sdk.runtime.dial import CLOCK_HINT, clock_doubt
from edge_sdk.signing import new_private_key, sign_raw

log = logging.getLogger("edge.device")

RENEW_AFTER: Final = 2 / 3
"""Share of a certificate's life after which it is renewed."""

HTTPS_PORT: Final = 443
_TIMEOUT_S: Final = 30.0
_ANSWER_MAX_BYTES: Final = 64 << 10
NEXT_KEY_FILE: Final = "next.key"
REGISTRAR_FILE: Final = "registrar.url"
"""Where the certificate came from, and is renewed."""

_SPREAD: Final = 0.1
_RETRY_MIN_S: Final = 300.0
_RETRY_MAX_S: Final = 6 * 3600.0


def enrol(folder: Path, url: str, *, token: str, ca: x509.Certificate, now: float, identity_id: str = "") -> Identity:
    """Get a device's first certificate; may be called again with the same token after a failure.

    Args:
        folder: the identity folder to make.
        url: the registrar's, https://host[:port].
        token: from the fleet's operator, good for one device.
        ca: the registrar's certificate, pinned; the server must have one by it.
        now: seconds since the epoch.
        identity_id: the id to ask for; a random one by default.

    Raises:
        ConfigError: the URL is not https.
        IdentityError: the device has an identity, or the registrar refuses.
        TransportError: the registrar cannot be reached.
    """
    if (folder / CERTIFICATE_FILE).exists():
        raise IdentityError(f"{folder} holds an identity already", hint="renew it, or name another folder")
    # The key is kept before it is asked for: an answer that is lost can be asked for again.
    if not (folder / KEY_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(folder, private_key_file(KEY_FILE, new_private_key()))
        write_file(folder, NewFile(_ID_FILE, (identity_id or f"d{secrets.token_hex(8)}").encode()))
    key = load_private_key(folder / KEY_FILE)
    name = identity_id or (folder / _ID_FILE).read_text(encoding="ascii")
    request = create_request(key, name)
    answer = _post(url, "/v1/enrol", {"token": token, "request": request.decode()}, ca)
    certificate = _certificate(answer)
    identity = make_identity(key, certificate, ca, role="device", now=now)
    for file in (*certificate_files(certificate, ca), NewFile(REGISTRAR_FILE, url.encode())):
        replace_file(folder, file)
    (folder / _ID_FILE).unlink(missing_ok=True)
    return identity


def is_due(certificate: x509.Certificate, now: float) -> bool:
    """Whether it is time to renew a certificate."""
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return now >= begin + RENEW_AFTER * (end - begin)


def renew(folder: Path, url: str, *, now: float) -> Identity:
    """Get a new certificate for a new key; the old ones are replaced once both are here.

    Raises:
        ConfigError, IdentityError, TransportError: as `enrol`; the old identity stays.
    """
    ca, old = load_ca(folder / CA_FILE), load_certificate(folder / CERTIFICATE_FILE)
    old_key, name = load_private_key(folder / KEY_FILE), certificate_id(old)
    if not (folder / NEXT_KEY_FILE).exists():
        write_file(folder, private_key_file(NEXT_KEY_FILE, new_private_key()))
    key = load_private_key(folder / NEXT_KEY_FILE)
    request = create_request(key, name)
    body = {
        "certificate": old.public_bytes(serialization.Encoding.PEM).decode(),
        "request": request.decode(),
        "proof": sign_raw(old_key, RENEW_DOMAIN + request).hex(),
    }
    certificate = _certificate(_post(url, "/v1/renew", body, ca))
    identity = make_identity(key, certificate, ca, role="device", now=now)
    # A crash between certificate and key leaves a pair that `finish_renewal` can tell and mend.
    replace_file(folder, certificate_files(certificate, ca)[0])
    finish_renewal(folder)
    replace_file(folder, NewFile(REGISTRAR_FILE, url.encode()))
    return identity


def registrar_url(folder: Path) -> str:
    """The registrar that this identity was enrolled at; empty where an operator put the identity here.

    Raises:
        IdentityError: the file that names it cannot be read.
    """
    path = folder / REGISTRAR_FILE
    try:
        url = path.read_text(encoding="utf-8").strip() if path.exists() else ""
        if url:
            _address(url)
        return url
    except (OSError, ValueError, ConfigError) as error:
        raise IdentityError(f"cannot read {path}: {error}", hint="write the registrar's https:// URL in it") from error


def usable_identity(folder: Path, *, now: float) -> Identity:
    """A device's identity, as `load_identity` reads it; one that expired while the device was off is renewed first.

    Raises:
        IdentityError: as `load_identity`, or it has expired and cannot be renewed.
    """
    if not (folder / CERTIFICATE_FILE).exists():
        raise IdentityError(
            f"this device has no identity: {folder / CERTIFICATE_FILE} is missing",
            hint="enrol it, with a token of the fleet's operator: EdgeClient(enrol_token=...) or edge device enrol",
        )
    finish_renewal(folder)
    certificate, url = load_certificate(folder / CERTIFICATE_FILE), registrar_url(folder)
    if not url or now <= certificate.not_valid_after_utc.timestamp():
        return load_identity(folder, role="device", now=now)
    try:
        return renew(folder, url, now=now)
    except (ConfigError, TransportError) as error:
        raise IdentityError(
            f"the certificate of {certificate_id(certificate)!r} has expired, and is not renewed: {error}",
            hint=f"{error.hint}; and check this machine's clock, which says {utc_text(now)}",
        ) from error


class Renewal:
    """Keeps a running device's certificate from expiring.

    Devices that were enrolled in one hour are not renewed in one hour, and a registrar that does not answer is asked
    again after five minutes, then after longer and longer, up to six hours.

    Args:
        folder: the identity folder.
        url: the registrar's.
        random: draws from 0 to 1; the operating system's by default.

    Attributes:
        next_at: when `attempt` is next worth a call, seconds since the epoch.

    Raises:
        IdentityError: the folder's certificate cannot be read.
    """

    def __init__(self, folder: Path, url: str, random: Callable[[], float] | None = None) -> None:
        self._folder, self._url = folder, url
        self._random = random or secrets.SystemRandom().random
        self._failures = 0
        self.next_at = self._due_at()

    def attempt(self, now: float) -> Identity | None:
        """Renew; None where that failed, which is logged and will be tried again. It may take half a minute."""
        try:
            identity = renew(self._folder, self._url, now=now)
        except EdgeError as error:
            pause_s = min(_RETRY_MAX_S, _RETRY_MIN_S * 2.0**self._failures) * (0.5 + self._random() / 2)
            self._failures = min(self._failures + 1, 30)
            self.next_at = now + pause_s
            again = f"tried again in {pause_s / 60:.0f} min"
            log.warning("the certificate is not renewed: %s (%s); %s", error, error.hint, again)
            return None
        self._failures = 0
        self.next_at = self._due_at()
        log.info("%s has a new certificate, valid until %s", identity.id, utc_text(identity.not_after))
        return identity

    def _due_at(self) -> float:
        certificate = load_certificate(self._folder / CERTIFICATE_FILE)
        begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        return begin + (RENEW_AFTER + _SPREAD * self._random()) * (end - begin)


def finish_renewal(folder: Path) -> None:
    """Put the new key in place where a renewal was cut off after its certificate came."""
    path = folder / NEXT_KEY_FILE
    if not path.exists():
        return
    certificate = load_certificate(folder / CERTIFICATE_FILE)
    if load_private_key(path).public_key() == certificate.public_key():
        os.replace(path, folder / KEY_FILE)


_ID_FILE = "requested.id"


def _certificate(answer: dict[str, Any]) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(str(answer["certificate"]).encode())
    except (KeyError, *UNREADABLE) as error:
        raise IdentityError(f"the registrar's answer holds no certificate: {error!r}") from error


def _address(url: str) -> tuple[str, int]:
    """Host and port of a registrar's URL.

    Raises:
        ConfigError: it is none.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.hostname and url.isprintable() and parts.scheme == "https" and parts.path in ("", "/"):
            return parts.hostname, parts.port or HTTPS_PORT
    except ValueError:
        pass  # a port that is no number, an address that does not end
    raise ConfigError(f"{url!r:.200} is no registrar's URL", hint="write https://host or https://host:port")


def _post(url: str, path: str, body: dict[str, str], ca: x509.Certificate) -> dict[str, Any]:
    """One JSON object for another, over TLS with the pinned registrar's certificate."""
    host, port = _address(url)
    context = ssl.create_default_context(cadata=ca.public_bytes(serialization.Encoding.PEM).decode())
    connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read(_ANSWER_MAX_BYTES + 1)
        answer = json.loads(content) if len(content) <= _ANSWER_MAX_BYTES else None
        if not isinstance(answer, dict):
            raise ValueError("not a registrar's answer")
    except ssl.SSLCertVerificationError as error:
        clock = clock_doubt(error)
        raise TransportError(
            f"the registrar at {url} does not prove who it is: {clock or error.verify_message}",
            hint=CLOCK_HINT if clock else "check the URL and the registrar's certificate",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise TransportError(f"cannot reach the registrar at {url}: {error}", hint="check URL and network") from error
    except ValueError as error:
        raise TransportError(f"what answers at {url} is no registrar: {error}", hint="check the URL") from error
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        hint = str(answer.get("hint", ""))[:500]
        raise IdentityError(f"the registrar refused: {str(answer.get('error', response.status))[:500]}", hint=hint)
    return answer
