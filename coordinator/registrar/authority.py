"""Issuing certificates: the registrar's authority as plain functions.

Makes the self-signed CA certificate and the leaf certificates that `edge_sdk.identity` accepts. Knows no
files, no clock and no log: those are in `coordinator.registrar.folder`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge_sdk.errors import IdentityError
from edge_sdk.identity import UNREADABLE, Identity, Role, check_id, make_identity
from edge_sdk.signing import new_private_key

DAY_S: Final = 86_400.0
CA_LIFETIME_DAYS: Final = 3653
DEFAULT_LIFETIME_DAYS: Final = 90
# Certificates begin a day early, so that a device whose clock is up to a day slow can use its own.
CLOCK_SKEW_S: Final = DAY_S
REQUEST_MAX_BYTES: Final = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Authority:
    """The registrar's certificate and its key."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """What a certificate request asks for, its own signature checked."""

    id: str
    public_key: ec.EllipticCurvePublicKey


def create_authority(name: str, *, now: float) -> Authority:
    """Make a registrar: a new key and a CA certificate for ten years.

    Args:
        name: its common name, 1 to 64 characters.
        now: seconds since the epoch.

    Raises:
        IdentityError: the name is empty or too long.
    """
    if not 1 <= len(name) <= 64:
        raise IdentityError(f"a registrar's name has 1 to 64 characters, not {len(name)}", hint="pass --name")
    key = new_private_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_datetime(now - CLOCK_SKEW_S))
        .not_valid_after(_datetime(now + CA_LIFETIME_DAYS * DAY_S))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def issue(
    authority: Authority,
    public_key: ec.EllipticCurvePublicKey,
    *,
    identity_id: str,
    role: Role,
    now: float,
    lifetime_days: int = DEFAULT_LIFETIME_DAYS,
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    """Issue a leaf certificate.

    Args:
        authority: who issues it.
        public_key: the P-256 key of the party, proven to be its own.
        identity_id: the party's id.
        role: what the party is.
        now: seconds since the epoch.
        lifetime_days: how long it is valid.
        hosts: DNS names and IP addresses under which the party is reached as a TLS server.

    Raises:
        IdentityError: the id, the key, the lifetime or a host is not acceptable.
    """
    if not isinstance(public_key.curve, ec.SECP256R1):
        raise IdentityError(
            f"the key of {identity_id!r} is on {public_key.curve.name}, not P-256", hint="make a P-256 key"
        )
    not_after = now + lifetime_days * DAY_S
    if lifetime_days < 1 or not_after > authority.certificate.not_valid_after_utc.timestamp():
        raise IdentityError(
            f"a certificate cannot be valid for {lifetime_days} days",
            hint="ask for at least one day and not beyond the registrar's own certificate "
            f"({authority.certificate.not_valid_after_utc:%Y-%m-%d})",
        )
    # The id stands in CN, where a broker looks for the user's name.
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, check_id(identity_id)),
        ]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_datetime(now - CLOCK_SKEW_S))
        .not_valid_after(_datetime(not_after))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_purposes(role, hosts)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.private_key.public_key()),
            critical=False,
        )
    )
    if hosts:
        names = x509.SubjectAlternativeName([_host_name(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(authority.private_key, hashes.SHA256())


def issue_identity(
    authority: Authority,
    *,
    identity_id: str,
    role: Role,
    now: float,
    lifetime_days: int = DEFAULT_LIFETIME_DAYS,
    hosts: Sequence[str] = (),
) -> Identity:
    """Make a new key and issue its certificate: for simulations, and for machines set up by the registrar.

    Raises:
        IdentityError: as `issue`.
    """
    key = new_private_key()
    certificate = issue(
        authority,
        key.public_key(),
        identity_id=identity_id,
        role=role,
        now=now,
        lifetime_days=lifetime_days,
        hosts=hosts,
    )
    return make_identity(key, certificate, authority.certificate, role=role, now=now)


def read_request(data: bytes) -> Request:
    """Read a PKCS#10 request (PEM or DER) and check that its sender holds the key.

    Only the id and the key are taken from it. The role is the registrar's decision, never the request's.

    Raises:
        IdentityError: too large, not a request, its signature is wrong, no proper id, or not a P-256 key.
    """
    if len(data) > REQUEST_MAX_BYTES:
        raise IdentityError(f"a certificate request of {len(data)} bytes is over the limit of {REQUEST_MAX_BYTES}")
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        request = x509.load_pem_x509_csr(data) if pem else x509.load_der_x509_csr(data)
        signed = request.is_signature_valid
        public_key = request.public_key()
        names = [str(value.value) for value in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except UNREADABLE as error:
        raise IdentityError(
            f"this is not a certificate request: {error}", hint="make one with: edge registrar request"
        ) from error
    if not signed:
        raise IdentityError(
            "the certificate request is not signed by the key it asks for", hint="make the request anew"
        )
    if len(names) != 1:
        raise IdentityError(
            f"the certificate request has {len(names)} common names, not one", hint="put the id in CN, once"
        )
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP256R1):
        raise IdentityError("the certificate request is not for a P-256 key", hint="make an EC P-256 key")
    return Request(check_id(names[0]), public_key)


def _purposes(role: Role, hosts: Sequence[str]) -> list[x509.ObjectIdentifier]:
    if role in ("broker", "registrar"):
        return [ExtendedKeyUsageOID.SERVER_AUTH]
    if hosts:
        return [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    return [ExtendedKeyUsageOID.CLIENT_AUTH]


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise IdentityError(
            f"{host!r} is neither a DNS name nor an IP address",
            hint="write international names in their xn-- form",
        ) from error


def _key_usage(*, certificates: bool) -> x509.KeyUsage:
    """What the key may do: sign certificates (the registrar's), or sign everything else (a leaf's)."""
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _datetime(seconds: float) -> datetime:
    # X.509 holds whole seconds.
    return datetime.fromtimestamp(int(seconds), UTC)
