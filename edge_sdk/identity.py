"""Who is who: X.509 identities issued by a registrar, and the check of everybody else's certificate.

A registrar (a certificate authority of its own, apart from the coordinator) issues one leaf certificate to
each device, coordinator and broker: P-256 key, common name = id, organisational unit = role. Certificates
travel in signed frames and rosters, so the check here is made for bytes from outside: bounded, authenticated
by the registrar's signature, and only then read. Pure: files are in `edge_sdk.credentials`, issuing is in
`coordinator.registrar`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Literal, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from edge_sdk.errors import IdentityError
from edge_sdk.signing import sign_raw

Role: TypeAlias = Literal["device", "coordinator", "broker", "registrar"]
ROLES: Final[tuple[Role, ...]] = ("device", "coordinator", "broker", "registrar")

ID_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
CERTIFICATE_MAX_BYTES: Final = 2048

RENEW_DOMAIN: Final = b"edge-sdk/renew/1\0"
"""What the old key signs a request for a new certificate with."""

# What reading a foreign certificate or request can raise; the last is a warning, where warnings are errors.
UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    CryptographyDeprecationWarning,
)

_SIGNATURE: Final = ec.ECDSA(hashes.SHA256())

_UNDERSTOOD_EXTENSIONS: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
)


@dataclass(frozen=True, slots=True)
class VerifiedPeer:
    """A peer whose certificate the registrar signed and that is valid now.

    Args:
        id: the certificate's common name.
        public_key: its P-256 key.
        not_after: seconds since the epoch until which the certificate is valid.
    """

    id: str
    public_key: ec.EllipticCurvePublicKey
    not_after: float


@dataclass(frozen=True, slots=True, eq=False)
class Identity:
    """This party's own key and certificate, and the registrar it trusts. Make one with `make_identity`.

    Args:
        id: the certificate's common name.
        role: the certificate's organisational unit.
        private_key: the P-256 key that belongs to the certificate.
        certificate_der: the certificate, as it goes into messages.
        ca: the registrar's certificate, which peers are checked against.
        not_after: seconds since the epoch until which the certificate is valid.
    """

    id: str
    role: Role
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate_der: bytes = field(repr=False)
    ca: x509.Certificate = field(repr=False)
    not_after: float

    def sign(self, message: bytes) -> bytes:
        """Return the raw 64-byte signature r||s of `message`; the same bytes each time (RFC 6979)."""
        return sign_raw(self.private_key, message)


@dataclass(frozen=True, slots=True)
class _Leaf:
    """What an authentic certificate says, before the questions that depend on the asker."""

    id: str
    roles: tuple[str, ...]
    public_key: ec.EllipticCurvePublicKey
    not_before: float
    not_after: float


def check_id(value: str) -> str:
    """Return `value` if it may be an id: 1 to 63 of a-z, 0-9 and `-`, not beginning with `-`.

    Raises:
        IdentityError: it may not.
    """
    if ID_PATTERN.fullmatch(value) is None:
        raise IdentityError(
            f"{value[:80]!r} cannot be an id",
            hint="use 1 to 63 of the characters a-z, 0-9 and '-', beginning with a letter or a digit",
        )
    return value


def make_identity(
    private_key: ec.EllipticCurvePrivateKey,
    certificate: x509.Certificate,
    ca: x509.Certificate,
    *,
    role: Role,
    now: float,
) -> Identity:
    """Put an identity together from its parts, checked as a peer would check it.

    Raises:
        IdentityError: key and certificate do not belong together, or what `verify_certificate` raises.
    """
    der = certificate.public_bytes(serialization.Encoding.DER)
    peer = verify_certificate(der, ca, role, now)
    if peer.public_key != private_key.public_key():
        raise IdentityError(
            f"the private key does not belong to the certificate of {peer.id!r}",
            hint="put the key beside the certificate that was issued for it, or have a new one issued",
        )
    return Identity(peer.id, role, private_key, der, ca, peer.not_after)


def verify_certificate(der: bytes, ca: x509.Certificate, role: Role, now: float) -> VerifiedPeer:
    """Check that the registrar vouches for a peer in a role, now.

    What the signature covers is remembered for the last few thousand; role and time are asked anew.

    Args:
        der: the peer's certificate as it came in.
        ca: the registrar's certificate; trusted as it is.
        role: what the peer must be.
        now: seconds since the epoch.

    Raises:
        IdentityError: too large, not a certificate, not issued by this registrar, a CA certificate, without a
            proper id or P-256 key, for another role, expired, or not yet valid.
    """
    if len(der) > CERTIFICATE_MAX_BYTES:
        raise IdentityError(
            f"a certificate of {len(der)} bytes is over the limit of {CERTIFICATE_MAX_BYTES}",
            hint="have a certificate issued with fewer host names",
        )
    leaf = _authentic(der, ca)
    if leaf.roles != (role,):
        raise IdentityError(
            f"the certificate of {leaf.id!r} is for the role {'+'.join(leaf.roles) or '(none)'}, not {role}",
            hint=f"have one issued with: edge registrar issue --role {role}",
        )
    if now > leaf.not_after:
        raise IdentityError(
            f"the certificate of {leaf.id!r} expired at {utc_text(leaf.not_after)}",
            hint=(
                "renew it with: edge device renew, or have one issued with: edge registrar issue; "
                f"or check this machine's clock, which says {utc_text(now)}"
            ),
        )
    if now < leaf.not_before:
        raise IdentityError(
            f"the certificate of {leaf.id!r} is not valid before {utc_text(leaf.not_before)}",
            hint=f"check this machine's clock, which says {utc_text(now)}",
        )
    return VerifiedPeer(leaf.id, leaf.public_key, leaf.not_after)


def create_request(private_key: ec.EllipticCurvePrivateKey, identity_id: str) -> bytes:
    """Make the PKCS#10 request (PEM) with which the key's holder asks the registrar for a certificate.

    Raises:
        IdentityError: `identity_id` cannot be an id.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, check_id(identity_id))])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(private_key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def certificate_id(certificate: x509.Certificate) -> str:
    """Return the id that a certificate names. Whether it is to be believed is not asked here.

    Raises:
        IdentityError: it is not one of a device, coordinator or broker.
    """
    try:
        return _read(certificate).id
    except UNREADABLE as error:
        raise IdentityError(f"a certificate cannot be read: {error}", hint="restore it from a backup") from error


@lru_cache(maxsize=4096)
def _authentic(der: bytes, ca: x509.Certificate) -> _Leaf:
    """Authenticate a certificate, then read it. A failure raises and is not remembered."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        # As `verify_directly_issued_by` does, without decoding the registrar's key once for each peer.
        if certificate.issuer != ca.subject:
            raise IdentityError(
                f"a certificate was issued by {certificate.issuer.rfc4514_string()!r}, "
                f"not by the registrar {ca.subject.rfc4514_string()!r}",
                hint="both ends must use certificates of the same registrar",
            )
        if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
            raise IdentityError("a certificate is not signed with ECDSA and SHA-256")
        _authority_key(ca).verify(certificate.signature, certificate.tbs_certificate_bytes, _SIGNATURE)
        return _read(certificate)
    except InvalidSignature as error:
        raise IdentityError(
            f"a certificate does not bear the signature of the registrar {ca.subject.rfc4514_string()!r}",
            hint="both ends must use certificates of the same registrar",
        ) from error
    except UNREADABLE as error:
        raise IdentityError(
            f"a certificate cannot be read: {error}",
            hint="both ends must use certificates of the same registrar",
        ) from error


@lru_cache(maxsize=16)
def _authority_key(ca: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = ca.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise IdentityError(
            f"the registrar {ca.subject.rfc4514_string()!r} has no elliptic-curve key",
            hint="use the certificate that edge registrar init made",
        )
    return key


def _read(certificate: x509.Certificate) -> _Leaf:
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD_EXTENSIONS:
            raise IdentityError(f"a certificate has the unknown critical extension {extension.oid.dotted_string}")
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as error:
        raise IdentityError("a certificate does not say whether it is a CA's") from error
    if constraints.ca:
        raise IdentityError("a CA certificate stands where a leaf certificate belongs")
    subject = certificate.subject
    names = _values(subject, NameOID.COMMON_NAME)
    if len(names) != 1:
        raise IdentityError(f"a certificate has {len(names)} common names, not one")
    public_key = certificate.public_key()
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP256R1):
        raise IdentityError(f"the certificate of {names[0]!r} is not for a P-256 key")
    return _Leaf(
        id=check_id(names[0]),
        roles=_values(subject, NameOID.ORGANIZATIONAL_UNIT_NAME),
        public_key=public_key,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )


def _values(name: x509.Name, oid: x509.ObjectIdentifier) -> tuple[str, ...]:
    return tuple(str(attribute.value) for attribute in name.get_attributes_for_oid(oid))


def utc_text(seconds: float) -> str:
    """Return a time as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
