"""Android key attestation: what a phone's hardware says of the key that it made, and whether to believe it.

A chain of certificates, leaf first. The leaf is of the key, and holds a description of it that the hardware wrote; the
last is by one of the maker's roots, which the operator gives. Knows no network: which chains were revoked is not asked.
Source: source.android.com, "Key and ID attestation".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec

from edge_sdk.errors import ConfigError, IdentityError
from edge_sdk.identity import UNREADABLE

DESCRIPTION: Final = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.1.17")
CHAIN_MAX: Final = 8
_DOMAIN: Final = b"edge-sdk/attest/1\0"
_HINT: Final = "enrol from a phone whose Keystore attests keys, with a new token, or have the operator allow others"


class Attestation(StrEnum):
    """What a registrar does with attestations."""

    OFF = "off"
    """It asks for none and looks at none."""
    RECORD = "record"
    """It writes down what each device's says, and enrols whoever has a token."""
    REQUIRE = "require"
    """It enrols keys only that hardware made for this very enrolment."""


class SecurityLevel(StrEnum):
    """Where a key lives, as its description says."""

    SOFTWARE = "software"
    TEE = "tee"
    STRONGBOX = "strongbox"


_LEVELS: Final = (SecurityLevel.SOFTWARE, SecurityLevel.TEE, SecurityLevel.STRONGBOX)


@asn1.sequence
class _KeyDescription:
    attestation_version: int
    attestation_level: asn1.TLV
    keymaster_version: int
    keymaster_level: asn1.TLV
    challenge: bytes
    unique_id: bytes
    software_enforced: asn1.TLV
    hardware_enforced: asn1.TLV


@dataclass(frozen=True, slots=True)
class AttestationPolicy:
    """What a registrar asks of devices' keys.

    Args:
        mode: see there.
        roots: the makers' certificates under which chains must end.

    Raises:
        ConfigError: attestations are to be looked at, and there is no root to believe them by.
    """

    mode: Attestation = Attestation.OFF
    roots: tuple[x509.Certificate, ...] = ()

    def __post_init__(self) -> None:
        if self.mode is not Attestation.OFF and not self.roots:
            raise ConfigError(
                f"attestation {self.mode} needs the roots that chains must end in",
                hint="pass --attestation-roots with the makers' root certificates, PEM, in one file",
            )

    def judge(self, chain: bytes, public_key: ec.EllipticCurvePublicKey, secret: bytes, now: float) -> str:
        """What to write down of a request's attestation; empty where nobody looks.

        Args:
            chain: PEM certificates, leaf first; empty where the request has none.
            public_key: that the request asks a certificate for.
            secret: what the challenge is bound to, see `challenge_for`.
            now: seconds since the epoch.

        Raises:
            IdentityError: it is required, and not good.
        """
        if self.mode is Attestation.OFF:
            return ""
        try:
            level = verify_chain(chain, public_key, challenge_for(secret), self.roots, now)
            if self.mode is Attestation.REQUIRE and level is SecurityLevel.SOFTWARE:
                raise IdentityError("the attestation says that software keeps the key, not hardware", hint=_HINT)
        except IdentityError as error:
            if self.mode is Attestation.REQUIRE:
                raise
            return f"none: {error}"
        return str(level)


def read_roots(path: Path) -> tuple[x509.Certificate, ...]:
    """The certificates in a file, PEM.

    Raises:
        ConfigError: it cannot be read, or holds none.
    """
    try:
        return tuple(x509.load_pem_x509_certificates(path.read_bytes()))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}", hint="check --attestation-roots") from error
    except UNREADABLE as error:
        raise ConfigError(
            f"{path} holds no certificates: {error}", hint="it must be PEM, one after the other"
        ) from error


def challenge_for(secret: bytes) -> bytes:
    """What a phone asks its hardware to put into the attestation, so that it is of this enrolment and no other.

    Args:
        secret: the enrolment token's bytes; for a renewal the old certificate, DER.
    """
    return hashlib.sha256(_DOMAIN + secret).digest()


def verify_chain(
    pem: bytes,
    public_key: ec.EllipticCurvePublicKey,
    challenge: bytes,
    roots: Sequence[x509.Certificate],
    now: float,
) -> SecurityLevel:
    """Where the key lives, by a chain that is to be believed.

    Args:
        pem: the chain, leaf first, with or without its root.
        public_key: that the leaf must be of.
        challenge: that the description must hold.
        roots: which the chain must end in, or be issued by.
        now: seconds since the epoch.

    Raises:
        IdentityError: the request has no chain, or it is not good; the message says why.
    """
    chain = _read_chain(pem)
    _require_issued(chain, roots, now)
    leaf = chain[0]
    if leaf.public_key() != public_key:
        raise IdentityError("the attestation is of another key than the request", hint=_HINT)
    found = _description(leaf)
    if found is None:
        raise IdentityError("the attestation's first certificate describes no key", hint=_HINT)
    # Who can sign with an attested key can write a description of another: only the hardware's own counts.
    if any(_has_description(other) for other in chain[1:]):
        raise IdentityError("the attestation describes more than one key", hint=_HINT)
    if found.challenge != challenge:
        raise IdentityError("the attestation was made for another enrolment: its challenge is another", hint=_HINT)
    return min((_level(found.attestation_level), _level(found.keymaster_level)), key=_LEVELS.index)


def _read_chain(pem: bytes) -> list[x509.Certificate]:
    if not pem.strip():
        raise IdentityError("the request holds no attestation of its key", hint=_HINT)
    try:
        chain = x509.load_pem_x509_certificates(pem)
    except UNREADABLE as error:
        raise IdentityError(f"the attestation cannot be read: {error}", hint=_HINT) from error
    if len(chain) > CHAIN_MAX:
        raise IdentityError(f"an attestation of {len(chain)} certificates is over the limit of {CHAIN_MAX}", hint=_HINT)
    return chain


def _require_issued(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: float) -> None:
    try:
        for child, parent in pairwise(chain):
            child.verify_directly_issued_by(parent)
        last = chain[-1]
        keys = [root.public_key() for root in roots]
        by_root = [root for root in roots if root.subject == last.issuer]
        if last.public_key() in keys:
            issuers = list(chain[1:])
        else:
            if not by_root:
                raise IdentityError("the attestation does not end in a root that this registrar believes", hint=_HINT)
            last.verify_directly_issued_by(by_root[0])
            issuers = [*chain[1:], by_root[0]]
        if len(chain) == 1 and last.public_key() in keys:
            raise IdentityError("the attestation is a root's certificate, and of no key of a device", hint=_HINT)
        for issuer in issuers:
            constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
            if not constraints.ca:
                raise IdentityError("the attestation goes through a certificate that may issue none", hint=_HINT)
            when = datetime.fromtimestamp(now, UTC)
            if not issuer.not_valid_before_utc <= when <= issuer.not_valid_after_utc:
                name = issuer.subject.rfc4514_string()[:200]
                raise IdentityError(f"the attestation goes through a certificate out of its time: {name}", hint=_HINT)
    except x509.ExtensionNotFound as error:
        raise IdentityError("the attestation goes through a certificate that may issue none", hint=_HINT) from error
    except (InvalidSignature, *UNREADABLE) as error:
        raise IdentityError("the attestation's certificates do not bear each other's signatures", hint=_HINT) from error


def _has_description(certificate: x509.Certificate) -> bool:
    return any(extension.oid == DESCRIPTION for extension in certificate.extensions)


def _description(certificate: x509.Certificate) -> _KeyDescription | None:
    try:
        found = certificate.extensions.get_extension_for_oid(DESCRIPTION).value
    except x509.ExtensionNotFound:
        return None
    except UNREADABLE as error:
        raise IdentityError(f"the attestation's extensions cannot be read: {error}", hint=_HINT) from error
    if not isinstance(found, x509.UnrecognizedExtension):
        return None
    try:
        return asn1.decode_der(_KeyDescription, found.value)
    except ValueError as error:
        raise IdentityError(f"the attestation's description cannot be read: {error}", hint=_HINT) from error


def _level(value: asn1.TLV) -> SecurityLevel:
    data = bytes(value.data)
    if bytes(value.tag_bytes) != b"\x0a" or len(data) != 1 or data[0] >= len(_LEVELS):
        raise IdentityError("the attestation names a security level that is not known", hint=_HINT)
    return _LEVELS[data[0]]
