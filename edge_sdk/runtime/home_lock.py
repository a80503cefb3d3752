"""One process at a time in a folder. The system lets go of the lock when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edge_sdk.errors import ConfigError, StoreError

LOCK_FILE: Final = "in-use.lock"


@contextmanager
def only_process_in(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, in a `with` block.

    Args:
        folder: an existing one; it gets a file `in-use.lock`, which stays.

    Raises:
        ConfigError: another process holds it.
        StoreError: the lock's file cannot be written.
    """
    path = folder / LOCK_FILE
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}",
            hint="check the disk's free space and the folder's permissions",
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{folder} is in use by another process", hint="stop that one first, or name another folder"
            ) from error
        yield
    finally:
        os.close(handle)
