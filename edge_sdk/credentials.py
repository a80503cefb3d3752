"""Keys and certificates as files: what a device, a coordinator or a broker keeps in its identity folder.

    identity.key    the private key, PKCS#8 PEM, readable by its owner only
    identity.crt    its certificate, PEM
    registrar.crt   the pinned registrar's certificate, PEM

The same three files serve mutual TLS. Folders are written whole or not at all, and never over another. What
the files must say is decided in `edge_sdk.identity`.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge_sdk.errors import IdentityError
from edge_sdk.identity import UNREADABLE, Identity, Role, make_identity
from edge_sdk.signing import private_key_from_pem, private_key_to_pem, public_key_from_pem

KEY_FILE: Final = "identity.key"
CERTIFICATE_FILE: Final = "identity.crt"
CA_FILE: Final = "registrar.crt"
REQUEST_FILE: Final = "identity.csr"

_PEM_MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be written: its name in the folder, its content, and whether others may read it."""

    name: str
    content: bytes = field(repr=False)
    secret: bool = False


def load_identity(folder: Path, *, role: Role, now: float) -> Identity:
    """Read and check an identity folder.

    Args:
        folder: where `identity.key`, `identity.crt` and `registrar.crt` are.
        role: what its owner is going to be.
        now: seconds since the epoch.

    Raises:
        IdentityError: a file is missing or unreadable, the key may be read by others, key and certificate do
            not belong together, or the certificate is expired, not yet valid, of another registrar, or for
            another role.
    """
    private_key = load_private_key(folder / KEY_FILE)
    certificate = load_certificate(folder / CERTIFICATE_FILE)
    ca = load_ca(folder / CA_FILE)
    try:
        return make_identity(private_key, certificate, ca, role=role, now=now)
    except IdentityError as error:
        raise IdentityError(f"identity in {folder}: {error}", hint=error.hint) from error


def save_identity(folder: Path, identity: Identity) -> None:
    """Write an identity folder, all of it or nothing.

    Raises:
        IdentityError: `folder` exists and is not empty, or cannot be written.
    """
    certificate = x509.load_der_x509_certificate(identity.certificate_der)
    write_folder(
        folder,
        [private_key_file(KEY_FILE, identity.private_key), *certificate_files(certificate, identity.ca)],
    )


def certificate_files(certificate: x509.Certificate, ca: x509.Certificate) -> tuple[NewFile, NewFile]:
    """Return the public two thirds of an identity folder."""
    return certificate_file(CERTIFICATE_FILE, certificate), certificate_file(CA_FILE, ca)


def private_key_file(name: str, key: ec.EllipticCurvePrivateKey) -> NewFile:
    """Return a private key as a file that only its owner can read."""
    return NewFile(name, private_key_to_pem(key), secret=True)


def certificate_file(name: str, certificate: x509.Certificate) -> NewFile:
    """Return a certificate as a PEM file."""
    return NewFile(name, certificate.public_bytes(serialization.Encoding.PEM))


def load_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a P-256 private key that nobody but its owner can read.

    Raises:
        IdentityError: missing, unreadable, open to group or others, or not an unencrypted P-256 key.
    """
    pem, mode = _read(path)
    key = private_key_from_pem(pem, source=str(path))
    # Second: of a public key that was named by mistake, that it is open is not what is wrong.
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise IdentityError(
            f"the private key {path} can be used by others (mode {stat.S_IMODE(mode):04o})",
            hint=f"chmod 600 {path}, and replace the key if others had access to this machine",
        )
    return key


def load_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a P-256 public key.

    Raises:
        IdentityError: missing, unreadable, or not a P-256 public key.
    """
    return public_key_from_pem(_read(path)[0], source=str(path))


def load_certificate(path: Path) -> x509.Certificate:
    """Read one PEM certificate, without any judgement of it.

    Raises:
        IdentityError: missing, unreadable, or not a certificate.
    """
    try:
        certificate = x509.load_pem_x509_certificate(_read(path)[0])
        certificate.not_valid_before_utc, certificate.not_valid_after_utc  # noqa: B018 - read when they are asked for
        return certificate
    except UNREADABLE as error:
        raise IdentityError(
            f"{path} is not a PEM certificate: {error}", hint="it begins with BEGIN CERTIFICATE"
        ) from error


def load_ca(path: Path) -> x509.Certificate:
    """Read the registrar's certificate, which is to be trusted.

    Raises:
        IdentityError: missing, unreadable, not a certificate, or not a CA's.
    """
    certificate = load_certificate(path)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        constraints = None
    if constraints is None or not constraints.ca:
        raise IdentityError(
            f"{path} is not a registrar's certificate but one of a leaf",
            hint="use the registrar.crt that edge registrar init made",
        )
    return certificate


def write_folder(folder: Path, files: Sequence[NewFile]) -> None:
    """Make a folder (mode 0700) with these files in it, in one step.

    Raises:
        IdentityError: `folder` exists and is not empty, or cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # mkdtemp makes it for its owner only. The rename succeeds over nothing or an empty folder only.
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            for file in files:
                _write(staging / file.name, file)
            staging.rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        if folder.exists():
            raise IdentityError(f"{folder} exists already", hint="name a folder that does not exist yet") from error
        raise IdentityError(
            f"cannot write {folder}: {error.strerror or error}",
            hint="check the disk's free space, the path and its permissions",
        ) from error


def write_file(folder: Path, file: NewFile) -> None:
    """Write one file, whole or not at all; it may not exist yet.

    Raises:
        IdentityError: it exists, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / file.name, file)
    except FileExistsError as error:
        raise IdentityError(
            f"{folder / file.name} exists already", hint="name a file that does not exist yet"
        ) from error
    except OSError as error:
        raise IdentityError(
            f"cannot write {folder / file.name}: {error.strerror or error}",
            hint="check the disk's free space, the path and its permissions",
        ) from error


def replace_file(folder: Path, file: NewFile) -> None:
    """Write one file over whatever has its name, in one step.

    Raises:
        IdentityError: it cannot be written.
    """
    staging = folder / f".{file.name}.{os.getpid()}"
    try:
        staging.unlink(missing_ok=True)
        _write(staging, file)
        staging.replace(folder / file.name)
    except OSError as error:
        raise IdentityError(
            f"cannot write {folder / file.name}: {error.strerror or error}",
            hint="check the disk's free space, the path and its permissions",
        ) from error


def _write(path: Path, file: NewFile) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if file.secret else 0o644)
    with os.fdopen(handle, "wb") as stream:
        stream.write(file.content)
        stream.flush()
        os.fsync(stream.fileno())


def _read(path: Path) -> tuple[bytes, int]:
    """Return a small file's content and its mode, both of the very file that was opened."""
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            content = stream.read(_PEM_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise IdentityError(
            f"{path} is missing",
            hint="check the path; edge registrar makes identities, edge signer the keys that sign models",
        ) from error
    except OSError as error:
        raise IdentityError(
            f"cannot read {path}: {error.strerror or error}", hint="check the path and its permissions"
        ) from error
    if len(content) > _PEM_MAX_BYTES:
        raise IdentityError(f"{path} is too large to be a key or a certificate", hint="check the path")
    return content, mode
