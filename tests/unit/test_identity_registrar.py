"""The registrar: what it issues, to whom, and what its folder remembers."""

from __future__ import annotations

import json
import os
import stat
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.registrar.authority import (
    DAY_S,
    Authority,
    create_authority,
    issue,
    issue_identity,
    read_request,
)
from coordinator.registrar.folder import (
    CA_KEY_FILE,
    LOG_FILE,
    init_folder,
    issue_logged,
    open_folder,
    read_log,
)
from edge_sdk.credentials import CA_FILE, certificate_file
from edge_sdk.errors import IdentityError
from edge_sdk.identity import Role, create_request
from edge_sdk.signing import key_id, new_private_key


def request(key: ec.EllipticCurvePrivateKey, *names: str) -> x509.CertificateSigningRequest:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())


def purposes(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_the_registrar_signs_itself_for_ten_years(authority: Authority, now: float) -> None:
    certificate = authority.certificate
    certificate.verify_directly_issued_by(certificate)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert certificate.not_valid_after_utc.timestamp() == now + 3653 * DAY_S


@pytest.mark.parametrize("name", ["", "n" * 65])
def test_a_registrar_needs_a_name(name: str, now: float) -> None:
    with pytest.raises(IdentityError, match="1 to 64 characters"):
        create_authority(name, now=now)


def test_serial_numbers_differ(authority: Authority, now: float) -> None:
    key = new_private_key().public_key()
    serials = {issue(authority, key, identity_id="a", role="device", now=now).serial_number for _ in range(20)}
    assert len(serials) == 20


@pytest.mark.parametrize(
    ("role", "hosts", "expected"),
    [
        ("device", (), {ExtendedKeyUsageOID.CLIENT_AUTH}),
        ("coordinator", (), {ExtendedKeyUsageOID.CLIENT_AUTH}),
        ("coordinator", ("x",), {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}),
        ("broker", ("x",), {ExtendedKeyUsageOID.SERVER_AUTH}),
    ],
)
def test_what_a_certificate_is_for(
    authority: Authority,
    now: float,
    role: Role,
    hosts: tuple[str, ...],
    expected: set[x509.ObjectIdentifier],
) -> None:
    key = new_private_key().public_key()
    certificate = issue(authority, key, identity_id="party", role=role, now=now, hosts=hosts)
    assert purposes(certificate) == expected
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign


def test_a_brokers_hosts_are_names_and_addresses(authority: Authority, now: float) -> None:
    hosts = ["broker.example", "127.0.0.1", "::1"]
    key = new_private_key().public_key()
    certificate = issue(authority, key, identity_id="broker", role="broker", now=now, hosts=hosts)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("127.0.0.1"), ip_address("::1")]


def test_an_unwritable_host_is_refused(authority: Authority, now: float) -> None:
    with pytest.raises(IdentityError, match="neither a DNS name nor an IP address"):
        issue_identity(authority, identity_id="broker", role="broker", now=now, hosts=["bröker"])


@pytest.mark.parametrize("days", [0, -1, 3654, 10**6])
def test_lifetimes_are_bounded_by_the_registrars_own(authority: Authority, now: float, days: int) -> None:
    with pytest.raises(IdentityError, match=f"cannot be valid for {days} days"):
        issue_identity(authority, identity_id="dev-1", role="device", now=now, lifetime_days=days)


def test_only_p256_keys_are_certified(authority: Authority, now: float) -> None:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    with pytest.raises(IdentityError, match="secp384r1, not P-256"):
        issue(authority, key, identity_id="dev-1", role="device", now=now)


def test_a_request_is_read_as_pem_and_der() -> None:
    key = new_private_key()
    pem = create_request(key, "dev-1")
    der = x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER)
    for data in (pem, der):
        read = read_request(data)
        assert (read.id, read.public_key) == ("dev-1", key.public_key())


def test_a_request_for_somebody_elses_key_is_refused() -> None:
    key, other = new_private_key(), new_private_key()
    forged = bytearray(request(key, "dev-1").public_bytes(serialization.Encoding.DER))
    point = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    mine, theirs = key.public_key().public_bytes(*point), other.public_key().public_bytes(*point)
    at = forged.index(mine)
    forged[at : at + len(mine)] = theirs
    with pytest.raises(IdentityError, match="not signed by the key it asks for"):
        read_request(bytes(forged))


def test_requests_that_are_refused() -> None:
    p384 = ec.generate_private_key(ec.SECP384R1())
    cases = {
        "over the limit": bytes(8193),
        "not a certificate request": b"nonsense",
        "not a certificate request: ": b"-----BEGIN CERTIFICATE REQUEST-----\n",
        "0 common names": request(new_private_key()).public_bytes(serialization.Encoding.DER),
        "2 common names": request(new_private_key(), "a", "b").public_bytes(serialization.Encoding.DER),
        "cannot be an id": request(new_private_key(), "A b").public_bytes(serialization.Encoding.DER),
        "not for a P-256 key": request(p384, "a").public_bytes(serialization.Encoding.DER),
    }
    for problem, data in cases.items():
        with pytest.raises(IdentityError, match=problem):
            read_request(data)


@pytest.fixture
def folder(tmp_path: Path, now: float) -> Path:
    init_folder(tmp_path / "registrar", name="r", now=now)
    return tmp_path / "registrar"


def issue_to(
    folder: Path,
    identity_id: str,
    now: float,
    *,
    key: ec.EllipticCurvePrivateKey | None = None,
    role: Role = "device",
    replace: bool = False,
) -> x509.Certificate:
    return issue_logged(
        folder,
        open_folder(folder),
        (key or new_private_key()).public_key(),
        identity_id=identity_id,
        role=role,
        now=now,
        lifetime_days=1,
        replace=replace,
    )


def test_a_registrars_folder_is_read_back(folder: Path) -> None:
    authority = open_folder(folder)
    assert authority.certificate.public_key() == authority.private_key.public_key()
    assert stat.S_IMODE((folder / CA_KEY_FILE).stat().st_mode) == 0o600
    assert read_log(folder) == []


def test_a_registrar_is_never_overwritten(folder: Path, now: float) -> None:
    with pytest.raises(IdentityError, match="exists already"):
        init_folder(folder, name="r", now=now)


def test_a_mixed_up_folder_is_refused(folder: Path, authority: Authority) -> None:
    (folder / CA_FILE).write_bytes(certificate_file(CA_FILE, authority.certificate).content)
    with pytest.raises(IdentityError, match="do not belong together"):
        open_folder(folder)


def test_what_is_issued_is_logged_in_order(folder: Path, now: float) -> None:
    key = new_private_key()
    first = issue_to(folder, "dev-1", now, key=key)
    second = issue_to(folder, "coordinator", now + 1, role="coordinator")

    lines = read_log(folder)

    assert [(line.id, line.role, line.issued_at) for line in lines] == [
        ("dev-1", "device", now),
        ("coordinator", "coordinator", now + 1),
    ]
    assert [int(line.serial, 16) for line in lines] == [first.serial_number, second.serial_number]
    assert lines[0].key_sha256 == key_id(key.public_key()).hex()
    assert lines[0].not_after == now + DAY_S


def test_an_id_belongs_to_one_key_and_role_while_its_certificate_is_valid(folder: Path, now: float) -> None:
    key = new_private_key()
    issue_to(folder, "dev-1", now, key=key)
    issue_to(folder, "dev-1", now + 1, key=key)

    with pytest.raises(IdentityError, match="another key or role: device") as caught:
        issue_to(folder, "dev-1", now + 2)
    assert "--replace" in caught.value.hint
    with pytest.raises(IdentityError, match="another key or role"):
        issue_to(folder, "dev-1", now + 2, key=key, role="coordinator")
    assert len(read_log(folder)) == 2, "what is refused is not logged"

    issue_to(folder, "dev-1", now + 2, replace=True)
    issue_to(folder, "dev-2", now)
    issue_to(folder, "dev-2", now + 2 * DAY_S)


@pytest.mark.parametrize("line", ["", "{}", "[]", "null", "nonsense", '{"id": "a"}'])
def test_a_damaged_log_is_not_passed_over(folder: Path, now: float, line: str) -> None:
    issue_to(folder, "dev-1", now)
    with (folder / LOG_FILE).open("a") as log:
        log.write(line + "\n")
    with pytest.raises(IdentityError, match=r"line 2 of .* is damaged"):
        issue_to(folder, "dev-2", now)


def test_an_unreadable_log_is_an_identity_error(folder: Path, now: float) -> None:
    (folder / LOG_FILE).mkdir()
    with pytest.raises(IdentityError, match="cannot read"):
        read_log(folder)


def test_log_lines_are_json_objects(folder: Path, now: float) -> None:
    issue_to(folder, "dev-1", now)
    (line,) = (folder / LOG_FILE).read_text().splitlines()
    assert set(json.loads(line)) == {"id", "role", "key_sha256", "serial", "issued_at", "not_after", "attestation"}


def test_a_disk_that_fills_up_leaves_no_half_line_in_the_log(
    tmp_path: Path, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "registrar"
    authority = init_folder(folder, name="ours", now=now)

    def give(identity_id: str) -> None:
        key = new_private_key().public_key()
        issue_logged(folder, authority, key, identity_id=identity_id, role="device", now=now, lifetime_days=9)

    give("first")
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda handle, data: write(handle, data[:20]))
        with pytest.raises(IdentityError, match="No space left"):
            give("second")
    give("third")
    assert [line.id for line in read_log(folder)] == ["first", "third"]
