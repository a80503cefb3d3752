"""Whom `edge_sdk.identity` lets pass, and why not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from coordinator.registrar.authority import DAY_S, Authority, create_authority, issue, issue_identity
from edge_sdk.errors import IdentityError
from edge_sdk.identity import (
    CERTIFICATE_MAX_BYTES,
    ROLES,
    Role,
    check_id,
    create_request,
    make_identity,
    verify_certificate,
)
from edge_sdk.signing import new_private_key, verify_raw


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


LEAF = x509.BasicConstraints(ca=False, path_length=None)
SHA256 = hashes.SHA256()
CRITICAL = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


def signed(
    authority: Authority,
    now: float,
    *,
    names: tuple[str, ...] = ("dev-1",),
    roles: tuple[str, ...] = ("device",),
    public_key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | None = None,
    extensions: tuple[x509.ExtensionType, ...] = (LEAF,),
    algorithm: hashes.SHA256 | hashes.SHA384 = SHA256,
) -> bytes:
    """A certificate that the registrar's key signed but `issue` would not have made."""
    attributes = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role) for role in roles]
    attributes += [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(authority.certificate.subject)
        .public_key(public_key or new_private_key().public_key())
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(now - 1, UTC))
        .not_valid_after(datetime.fromtimestamp(now + 1, UTC))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return der(builder.sign(authority.private_key, algorithm))


@pytest.mark.parametrize("role", ROLES)
def test_an_issued_certificate_is_verified(authority: Authority, now: float, role: Role) -> None:
    identity = issue_identity(authority, identity_id="party-1", role=role, now=now)

    peer = verify_certificate(identity.certificate_der, authority.certificate, role, now)

    assert peer.id == identity.id == "party-1"
    assert peer.public_key == identity.private_key.public_key()
    assert peer.not_after == identity.not_after == now + 90 * DAY_S
    assert verify_raw(peer.public_key, identity.sign(b"message"), b"message")
    assert identity.sign(b"message") == identity.sign(b"message")


def test_certificates_are_small_enough_for_rosters(authority: Authority, now: float) -> None:
    identity = issue_identity(authority, identity_id="d" * 63, role="device", now=now)
    assert len(identity.certificate_der) < 512


@pytest.mark.parametrize("role", ["coordinator", "broker"])
def test_wrong_role(authority: Authority, now: float, role: Role) -> None:
    identity = issue_identity(authority, identity_id="dev-1", role="device", now=now)
    with pytest.raises(IdentityError, match=f"role device, not {role}") as caught:
        verify_certificate(identity.certificate_der, authority.certificate, role, now)
    assert "edge registrar issue" in caught.value.hint


def test_validity_is_asked_anew_although_the_certificate_is_remembered(authority: Authority, now: float) -> None:
    identity = issue_identity(authority, identity_id="dev-1", role="device", now=now, lifetime_days=1)

    def verify(when: float) -> str:
        return verify_certificate(identity.certificate_der, authority.certificate, "device", when).id

    assert verify(now) == verify(now - DAY_S) == verify(now + DAY_S) == "dev-1"
    with pytest.raises(IdentityError, match="expired at 2027-01-16T08:00:00"):
        verify(now + DAY_S + 0.5)
    with pytest.raises(IdentityError, match="not valid before") as caught:
        verify(now - DAY_S - 0.5)
    assert "clock" in caught.value.hint


def test_another_registrar_is_not_trusted(authority: Authority, now: float) -> None:
    identity = issue_identity(authority, identity_id="dev-1", role="device", now=now)
    stranger = create_authority("another registrar", now=now)
    namesake = create_authority("test registrar", now=now)

    with pytest.raises(IdentityError, match="not by the registrar 'CN=another registrar'"):
        verify_certificate(identity.certificate_der, stranger.certificate, "device", now)
    with pytest.raises(IdentityError, match="does not bear the signature"):
        verify_certificate(identity.certificate_der, namesake.certificate, "device", now)


def test_the_registrar_cannot_pass_as_a_device(authority: Authority, now: float) -> None:
    with pytest.raises(IdentityError, match="CA certificate"):
        verify_certificate(der(authority.certificate), authority.certificate, "device", now)


def test_a_registrar_without_an_elliptic_curve_key_is_refused(authority: Authority, now: float) -> None:
    identity = issue_identity(authority, identity_id="dev-1", role="device", now=now)
    key = ed25519.Ed25519PrivateKey.generate()
    name = authority.certificate.subject
    ca = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(now, UTC))
        .not_valid_after(datetime.fromtimestamp(now + 1, UTC))
        .sign(key, None)
    )
    with pytest.raises(IdentityError, match="no elliptic-curve key"):
        verify_certificate(identity.certificate_der, ca, "device", now)


def test_certificates_the_registrar_should_not_have_signed(authority: Authority, now: float) -> None:
    p384 = ec.generate_private_key(ec.SECP384R1()).public_key()
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    cases = {
        "does not say whether it is a CA": signed(authority, now, extensions=()),
        "unknown critical extension 1.2.3.4": signed(authority, now, extensions=(LEAF, CRITICAL)),
        "CA certificate": signed(authority, now, extensions=(x509.BasicConstraints(True, 0),)),
        "not for a P-256 key": signed(authority, now, public_key=p384),
        "'dev-1' is not for a P-256 key": signed(authority, now, public_key=other),
        "has 0 common names": signed(authority, now, names=()),
        "has 2 common names": signed(authority, now, names=("dev-1", "dev-2")),
        "'Dev_1' cannot be an id": signed(authority, now, names=("Dev_1",)),
        "role \\(none\\), not device": signed(authority, now, roles=()),
        "role device\\+coordinator, not device": signed(authority, now, roles=("device", "coordinator")),
        "not signed with ECDSA and SHA-256": signed(authority, now, algorithm=hashes.SHA384()),
    }
    assert verify_certificate(signed(authority, now), authority.certificate, "device", now).id == "dev-1"
    for problem, certificate in cases.items():
        with pytest.raises(IdentityError, match=problem):
            verify_certificate(certificate, authority.certificate, "device", now)


def test_size_is_checked_before_anything_is_read(authority: Authority, now: float) -> None:
    with pytest.raises(IdentityError, match="2049 bytes is over the limit of 2048"):
        verify_certificate(bytes(CERTIFICATE_MAX_BYTES + 1), authority.certificate, "device", now)


@given(junk=st.binary(max_size=600))
def test_junk_is_an_identity_error(authority: Authority, now: float, junk: bytes) -> None:
    with pytest.raises(IdentityError):
        verify_certificate(junk, authority.certificate, "device", now)


@given(position=st.integers(0, 1023), change=st.integers(1, 255))
def test_a_changed_certificate_is_an_identity_error(
    authority: Authority, now: float, position: int, change: int
) -> None:
    changed = bytearray(signed(authority, now))
    changed[position % len(changed)] ^= change
    with pytest.raises(IdentityError):
        verify_certificate(bytes(changed), authority.certificate, "device", now)


def test_a_key_must_belong_to_its_certificate(authority: Authority, now: float) -> None:
    certificate = issue(authority, new_private_key().public_key(), identity_id="dev-1", role="device", now=now)
    with pytest.raises(IdentityError, match="does not belong to the certificate of 'dev-1'"):
        make_identity(new_private_key(), certificate, authority.certificate, role="device", now=now)


def test_repr_hides_the_key(authority: Authority, now: float) -> None:
    identity = issue_identity(authority, identity_id="dev-1", role="device", now=now)
    assert repr(identity) == f"Identity(id='dev-1', role='device', not_after={identity.not_after})"
    assert "private_key" not in repr(authority)


@pytest.mark.parametrize("value", ["a", "0", "dev-1", "a" * 63])
def test_ids(value: str) -> None:
    assert check_id(value) == value


@pytest.mark.parametrize("value", ["", "-a", "A", "a_b", "a/b", "a+", "é", "a\n", "a" * 64])
def test_what_cannot_be_an_id(value: str) -> None:
    with pytest.raises(IdentityError, match="cannot be an id"):
        check_id(value)
    with pytest.raises(IdentityError, match="cannot be an id"):
        create_request(new_private_key(), value)
