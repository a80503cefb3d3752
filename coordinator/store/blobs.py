"""A folder of files named by the SHA-256 of their content: bundles, checkpoints, optimizer states.

A blob is written whole or not at all, before the transaction that names it; one that no row names is harmless.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from edge_sdk.errors import StoreError
from edge_sdk.protocol.messages import BlobRef, Digest
from edge_sdk.runtime.spool import Spool


class Blobs:
    """Content-addressed files under one folder.

    Attributes:
        spool: of vectors on their way in, in `incoming` beside the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.spool = Spool(folder.with_name("incoming"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot create {folder}: {error.strerror}", hint="name a folder that this user may write"
            ) from error

    def put(self, data: bytes) -> BlobRef:
        """Store bytes durably; storing the same twice is storing it once."""
        digest = Digest(hashlib.sha256(data).digest())
        path = self._path(digest)
        if not path.exists():
            try:
                self._write(path, data)
            except OSError as error:
                raise StoreError(
                    f"cannot write {path}: {error.strerror}",
                    hint="free some disk space or check the permissions",
                ) from error
        return BlobRef(digest, len(data))

    def get(self, digest: Digest) -> bytes:
        """Bytes by their digest, verified.

        Raises:
            StoreError: missing or damaged.
        """
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}", hint="restore the work folder") from error
        if hashlib.sha256(data).digest() != digest:
            raise StoreError(f"{path} is damaged", hint="restore the work folder from a backup")
        return data

    def _path(self, digest: Digest) -> Path:
        return self._folder / digest.hex()

    def _write(self, path: Path, data: bytes) -> None:
        handle, name = tempfile.mkstemp(dir=self._folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
            _sync_folder(self._folder)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def _sync_folder(folder: Path) -> None:
    """A file's new name is as durable as its content only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
