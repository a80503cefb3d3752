"""The key under which a device's examples rest, where it is kept, and how a row is sealed with it.

Whoever has the key reads the rows; once it is erased nobody does. Knows no database.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol, get_args

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edge_sdk.errors import StoreError

KEY_BYTES: Final = 32
ERASED: Final = bytes(KEY_BYTES)
"""Stands for a key that was erased where the store could not take note. No damage writes it: it is kept as text."""
NONCE_BYTES: Final = 12
SEAL_BYTES: Final = NONCE_BYTES + 16
"""How much longer a sealed row is: its nonce and its tag."""

KeyPlace = Literal["file", "keyring"]
"""Where a key is kept: a file that only the owner reads, or the operating system's keyring."""

_SERVICE: Final = "edge-sdk examples"


class KeyHolder(Protocol):
    """Keeps one key."""

    def load(self) -> bytes | None:
        """The key, or None where there is none.

        Raises:
            StoreError: it cannot be read, or others can read it.
        """
        ...

    def save(self, key: bytes) -> None:
        """Keep this key, durably, and overwrite the one before.

        Raises:
            StoreError: that failed.
        """
        ...

    def erase(self) -> None:
        """Overwrite and forget the key. Needs no room on the disk.

        Raises:
            StoreError: that failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key in a file of mode 0600, as hexadecimal."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def load(self) -> bytes | None:
        """See `KeyHolder`."""
        try:
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read(4 * KEY_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed("read", error) from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise StoreError(
                f"the examples' key {self.path} can be used by others (mode {stat.S_IMODE(mode):04o})",
                hint=f"chmod 600 {self.path}; if others had access to this machine, erase the examples",
            )
        return _parsed(text.decode("ascii", "replace"), str(self.path))

    def save(self, key: bytes) -> None:
        """See `KeyHolder`."""
        # An old key is overwritten in place, since a new file would leave its blocks on the disk; a first one appears
        # whole or not at all.
        first = not self.path.exists()
        path = self.path.with_name(self.path.name + ".new") if first else self.path
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, key.hex().encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if first:
                path.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._failed("write", error) from error

    def erase(self) -> None:
        """See `KeyHolder`."""
        if not self.path.exists():
            return
        self.save(bytes(KEY_BYTES))
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise self._failed("erase", error) from error

    def _failed(self, what: str, error: OSError) -> StoreError:
        return StoreError(
            f"cannot {what} the examples' key {self.path}: {error.strerror or error}",
            hint="check the disk's free space and the folder's permissions",
        )


@dataclass(frozen=True, slots=True)
class KeyringKey:
    """A key in the operating system's keyring, by the `keyring` package. `name` tells it from other stores' keys."""

    name: str

    def __str__(self) -> str:
        return f"the keyring's entry {self.name!r}"

    def load(self) -> bytes | None:
        """See `KeyHolder`."""
        keyring, failures = _keyring()
        try:
            text = keyring.get_password(_SERVICE, self.name)
        except failures as error:
            raise self._failed("read", error) from error
        return None if text is None else _parsed(text, str(self))

    def save(self, key: bytes) -> None:
        """See `KeyHolder`."""
        keyring, failures = _keyring()
        try:
            keyring.set_password(_SERVICE, self.name, key.hex())
            kept = keyring.get_password(_SERVICE, self.name)
        except failures as error:
            raise self._failed("write", error) from error
        if kept != key.hex():  # such as the backend that keeps nothing
            raise self._failed("write", RuntimeError("it does not give back what it was given"))

    def erase(self) -> None:
        """See `KeyHolder`."""
        keyring, failures = _keyring()
        try:
            if keyring.get_password(_SERVICE, self.name) is not None:
                keyring.delete_password(_SERVICE, self.name)
        except failures as error:
            raise self._failed("erase", error) from error

    def _failed(self, what: str, error: Exception) -> StoreError:
        return StoreError(
            f"cannot {what} the examples' key {self.name!r} in the keyring: {error}",
            hint='unlock the keyring, or keep the key of a new store in a file: key="file"',
        )


def new_key_name(place: KeyPlace) -> str:
    """The keyring's entry for a new store's key, or nothing where it is a file. It stays when the folder moves.

    Raises:
        StoreError: there is no such place.
    """
    if place not in get_args(KeyPlace):
        raise StoreError(f"examples' keys are not kept in {place!r:.80}", hint='choose key="file" or key="keyring"')
    return secrets.token_hex(8) if place == "keyring" else ""


def key_holder(name: str, path: Path) -> KeyHolder:
    """Who keeps the key of the examples at `path`, by its name in the keyring if it has one."""
    return KeyringKey(name) if name else KeyFile(path.with_name(path.name + ".key"))


@dataclass(frozen=True, slots=True)
class RowCipher:
    """Seals rows with AES-256-GCM: a random nonce, then the ciphertext, which only opens as the same row.

    Nonces are random, not counted: a database that a power cut set back would count them again. One key is good for
    2^32 rows, after which two nonces are alike with a chance of 2^-32 or more.

    Attributes:
        check: tells keys apart and says nothing of them.
    """

    check: str
    _context: bytes = field(repr=False)
    _aead: AESGCM = field(repr=False)

    @staticmethod
    def of(key: bytes, context: bytes) -> RowCipher:
        """The cipher of a key, for rows of which `context` is true: they open under no other."""
        digest = hashes.Hash(hashes.SHA256())
        digest.update(b"edge-sdk/example-key/1" + key)
        return RowCipher(digest.finalize().hex(), context, AESGCM(key))

    def seal(self, row: int, plain: bytes) -> bytes:
        """Seal the row of that number."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, self._bound_to(row))

    def open(self, row: int, sealed: bytes) -> bytes | None:
        """The plain row, or None where it is not what was sealed as this row under this key."""
        try:
            return self._aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._bound_to(row))
        except (InvalidTag, ValueError):
            return None

    def _bound_to(self, row: int) -> bytes:
        return self._context + row.to_bytes(8, "little")


def _parsed(text: str, place: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise StoreError(
            f"{place} holds no key of examples", hint="restore it from a backup: without it the examples are lost"
        )
    return key


def _keyring() -> tuple[Any, tuple[type[Exception], ...]]:
    """The `keyring` package and its errors, if there is a keyring behind it."""
    try:
        import keyring
        from keyring.backends.fail import Keyring as Unusable
        from keyring.errors import KeyringError
    except ImportError as error:
        raise StoreError(
            "the examples' key is to be kept in the keyring, but the package keyring is not installed",
            hint='pip install "edge-sdk[keyring]", or keep the key of a new store in a file: key="file"',
        ) from error
    try:
        usable = not isinstance(keyring.get_keyring(), Unusable)
    except (KeyringError, RuntimeError, OSError) as error:
        raise StoreError(
            f"the examples' key is to be kept in the keyring, which cannot be used: {error}",
            hint='correct keyring\'s configuration, or keep the key of a new store in a file: key="file"',
        ) from error
    if not usable:
        raise StoreError(
            "the examples' key is to be kept in the keyring, but this system has none that can be used",
            hint='start one, such as gnome-keyring, or keep the key of a new store in a file: key="file"',
        )
    return keyring, (KeyringError, RuntimeError, OSError)
