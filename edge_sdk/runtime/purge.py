"""Erases a device, or what its owner gave it: the identity first, so that what is left half erased can never act again.

The ledger goes with the identity and never before it: a device that kept its name and forgot what it spent could spend
it twice. Files that are not the SDK's stay and are named.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_sdk.credentials import KEY_FILE
from edge_sdk.errors import StoreError
from edge_sdk.logs import LOG_FOLDER
from edge_sdk.runtime.device_store import BEGUN_SUFFIX, DeviceStore
from edge_sdk.runtime.enrolment import NEXT_KEY_FILE
from edge_sdk.runtime.home import (
    BLOBS_FOLDER,
    DEVICE_FILE,
    EXAMPLES_FOLDER,
    IDENTITY_FOLDER,
    MODELS_FOLDER,
    PERSONAL_FOLDER,
    SIGNER_FILE,
    examples_files,
)
from edge_sdk.runtime.home_lock import LOCK_FILE
from edge_sdk.training.examples import ExampleStore

log = logging.getLogger("edge.device")

_SQLITE: Final = ("", "-wal", "-shm", "-journal", BEGUN_SUFFIX)

# In the order in which they go.
_OURS: Final = (
    IDENTITY_FOLDER,
    EXAMPLES_FOLDER,
    *(f"{DEVICE_FILE}{suffix}" for suffix in _SQLITE),
    BLOBS_FOLDER,
    "incoming",
    MODELS_FOLDER,
    PERSONAL_FOLDER,
    SIGNER_FILE,
    LOG_FOLDER,
    LOCK_FILE,
)


@dataclass(frozen=True, slots=True)
class Holding:
    """One thing in a device's folder that would be erased."""

    path: Path
    size_bytes: int


def holdings(home: Path) -> list[Holding]:
    """What `purge` would erase, in the order in which it would.

    Raises:
        StoreError: the folder cannot be read.
    """
    try:
        return [Holding(home / name, _size(home / name)) for name in _OURS if os.path.lexists(home / name)]
    except OSError as error:
        raise _failed(home, error) from error


def purge(home: Path) -> list[Path]:
    """Erase what is the SDK's in a device's folder, and the folder if nothing else is in it; returns what is left.

    Keys are overwritten before they are removed, that of the device and those that its examples are sealed under. That
    says nothing of copies that the file system or a flash disk keeps. May be called again after it failed.

    Raises:
        StoreError: something cannot be removed; the identity is the first to go.
    """
    try:
        for key in (home / IDENTITY_FOLDER / KEY_FILE, home / IDENTITY_FOLDER / NEXT_KEY_FILE):
            _overwrite(key)
        for path in examples_files(home):
            _forget_key(path)
        for name in _OURS:
            _remove(home / name)
        if not any(home.iterdir()) and not home.is_symlink():
            home.rmdir()
        return sorted(home.iterdir()) if home.exists() else []
    except OSError as error:
        raise _failed(home, error) from error


def withdraw(home: Path, store: DeviceStore) -> None:
    """Erase what the owner gave this device: examples, personal models, keys, the open round, and what it did when.

    What its releases came to stays in `store`, so that budgets hold after another consent; so do the record of consent
    and the installed global models, which say nothing of the owner. May be called again after it failed.

    Args:
        home: the device's folder.
        store: its own, open.

    Raises:
        StoreError: something cannot be removed; the identity is the first to go.
    """
    try:
        for key in (home / IDENTITY_FOLDER / KEY_FILE, home / IDENTITY_FOLDER / NEXT_KEY_FILE):
            _overwrite(key)
        _remove(home / IDENTITY_FOLDER)
        for path in examples_files(home):
            _forget_key(path)
        for name in (EXAMPLES_FOLDER, PERSONAL_FOLDER, BLOBS_FOLDER, "incoming", LOG_FOLDER):
            _remove(home / name)
    except OSError as error:
        raise _failed(home, error) from error
    store.strip()


def _forget_key(examples: Path) -> None:
    """Erase the key of a store of examples, wherever it is kept; one that is damaged goes as a file all the same."""
    if not examples.is_file():
        return
    try:
        with ExampleStore(examples) as store:
            store.erase()
    except StoreError as error:
        log.warning("%s: %s", examples, error)
    _overwrite(examples.with_name(f"{examples.name}.key"))


def _overwrite(path: Path) -> None:
    try:
        # Never through a link: what it leads to is not this device's.
        handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with os.fdopen(handle, "r+b", buffering=0) as file:
        file.write(bytes(os.fstat(file.fileno()).st_size))
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(_size(child) for child in path.iterdir())
    return path.lstat().st_size


def _failed(home: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{error.filename or home} cannot be erased: {error.strerror or error}",
        hint="check its permissions, and run it again: it goes on with what is left",
    )
