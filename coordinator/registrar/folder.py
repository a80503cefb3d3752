"""The registrar's folder: its key, its certificate, and the log of what it issued.

    registrar.key   the CA key, readable by its owner only
    registrar.crt   the CA certificate: the file that everybody else pins
    registrar.crl   what was revoked, for brokers; revoked.json the same by id
    tokens.sqlite   one-time enrolment tokens, hashed
    issued.jsonl    one line for each certificate issued, only ever appended to

A certificate is logged, durably, before anybody gets it.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.registrar.authority import DAY_S, Authority, create_authority, issue
from edge_sdk.credentials import (
    CA_FILE,
    NewFile,
    certificate_file,
    load_ca,
    load_private_key,
    private_key_file,
    replace_file,
    write_folder,
)
from edge_sdk.errors import IdentityError
from edge_sdk.identity import Role
from edge_sdk.signing import key_id

CA_KEY_FILE: Final = "registrar.key"
LOG_FILE: Final = "issued.jsonl"
REVOKED_FILE: Final = "revoked.json"
CRL_FILE: Final = "registrar.crl"

_CRL_LIFETIME_S: Final = 30 * DAY_S


@dataclass(frozen=True, slots=True)
class Issued:
    """One line of the log.

    Args:
        id: whom the certificate names.
        role: what it says they are.
        key_sha256: hex SHA-256 of the public key (SubjectPublicKeyInfo).
        serial: the certificate's serial number in hex.
        issued_at: seconds since the epoch.
        not_after: seconds since the epoch.
        attestation: what its key's attestation said; empty where nobody looked.
    """

    id: str
    role: str
    key_sha256: str
    serial: str
    issued_at: float
    not_after: float
    attestation: str = ""


def init_folder(folder: Path, *, name: str, now: float) -> Authority:
    """Make a registrar in a new folder.

    Raises:
        IdentityError: the folder exists and is not empty, cannot be written, or the name is unusable.
    """
    authority = create_authority(name, now=now)
    files = [
        private_key_file(CA_KEY_FILE, authority.private_key),
        certificate_file(CA_FILE, authority.certificate),
    ]
    write_folder(folder, files)
    return authority


def open_folder(folder: Path) -> Authority:
    """Read a registrar's certificate and key.

    Raises:
        IdentityError: a file is missing, unreadable or open to others, or key and certificate do not
            belong together.
    """
    key = load_private_key(folder / CA_KEY_FILE)
    certificate = load_ca(folder / CA_FILE)
    if certificate.public_key() != key.public_key():
        raise IdentityError(
            f"{CA_KEY_FILE} and {CA_FILE} in {folder} do not belong together",
            hint="restore both from one backup",
        )
    return Authority(certificate, key)


def issue_logged(
    folder: Path,
    authority: Authority,
    public_key: ec.EllipticCurvePublicKey,
    *,
    identity_id: str,
    role: Role,
    now: float,
    lifetime_days: int,
    hosts: Sequence[str] = (),
    replace: bool = False,
    attestation: str = "",
) -> x509.Certificate:
    """Issue a certificate and log it.

    An id belongs to one key and one role. A certificate for an id whose valid one has another key or role
    would let somebody pass for that party, so it is refused unless `replace` says that this is meant. The
    same key may be renewed.

    Raises:
        IdentityError: the id is taken, the log cannot be read or written, or what `issue` raises.
    """
    fingerprint = key_id(public_key).hex()
    for line in read_log(folder):
        other = line.role != role or line.key_sha256 != fingerprint
        if line.id == identity_id and line.not_after > now and other and not replace:
            raise IdentityError(
                f"{identity_id!r} has a valid certificate with another key or role: {line.role}, serial {line.serial}",
                hint="choose another id, or pass --replace if that key is lost",
            )
    certificate = issue(
        authority,
        public_key,
        identity_id=identity_id,
        role=role,
        now=now,
        lifetime_days=lifetime_days,
        hosts=hosts,
    )
    serial = f"{certificate.serial_number:x}"
    not_after = certificate.not_valid_after_utc.timestamp()
    _append(folder / LOG_FILE, Issued(identity_id, role, fingerprint, serial, now, not_after, attestation))
    return certificate


def read_log(folder: Path) -> list[Issued]:
    """Return what was issued, oldest first.

    Raises:
        IdentityError: the log cannot be read or a line of it is damaged.
    """
    path = folder / LOG_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityError(f"cannot read {path}: {error}", hint="check the file and its permissions") from error
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def revoke(folder: Path, authority: Authority, identity_id: str, now: float) -> Path:
    """Revoke every certificate of an id: it is renewed no more, and brokers that read the list refuse it.

    Returns:
        The certificate revocation list, written anew.

    Raises:
        IdentityError: no certificate was issued to the id, or the list cannot be written.
    """
    issued = [line for line in read_log(folder) if line.id == identity_id]
    if not issued:
        raise IdentityError(f"nothing was issued to {identity_id!r}", hint="edge registrar list shows all ids")
    revoked = {**_revoked(folder), identity_id: now}
    replace_file(folder, NewFile(REVOKED_FILE, json.dumps(revoked, sort_keys=True).encode(), secret=True))
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(datetime.fromtimestamp(now, UTC))
        .next_update(datetime.fromtimestamp(now + _CRL_LIFETIME_S, UTC))
    )
    for line in read_log(folder):
        if line.id in revoked and line.not_after > now:
            entry = x509.RevokedCertificateBuilder().serial_number(int(line.serial, 16))
            when = datetime.fromtimestamp(revoked[line.id], UTC)
            builder = builder.add_revoked_certificate(entry.revocation_date(when).build())
    content = builder.sign(authority.private_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    replace_file(folder, NewFile(CRL_FILE, content))
    return folder / CRL_FILE


def revoked_ids(folder: Path) -> frozenset[str]:
    """Every id that was revoked."""
    return frozenset(_revoked(folder))


def _revoked(folder: Path) -> dict[str, float]:
    path = folder / REVOKED_FILE
    try:
        return {str(name): float(when) for name, when in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise IdentityError(f"{path} cannot be read: {error}", hint="restore it from a backup") from error


def _parse(path: Path, number: int, line: str) -> Issued:
    try:
        row = json.loads(line)
        return Issued(
            id=str(row["id"]),
            role=str(row["role"]),
            key_sha256=str(row["key_sha256"]),
            serial=str(row["serial"]),
            issued_at=float(row["issued_at"]),
            not_after=float(row["not_after"]),
            attestation=str(row.get("attestation", "")),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise IdentityError(
            f"line {number} of {path} is damaged: {error}", hint="restore the log from a backup"
        ) from error


def _append(path: Path, line: Issued) -> None:
    data = json.dumps(asdict(line), sort_keys=True).encode() + b"\n"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            end = os.fstat(handle).st_size
            try:
                if os.write(handle, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            except OSError:
                # Half a line would make the whole log unreadable.
                os.ftruncate(handle, end)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        raise IdentityError(
            f"cannot write {path}: {error.strerror or error}", hint="check the disk's free space and its permissions"
        ) from error
