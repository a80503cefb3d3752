"""Blobs a device has fetched, as files named by their SHA-256; those last used are kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from edge_sdk.errors import StoreError
from edge_sdk.protocol.messages import BlobRef, Digest
from edge_sdk.runtime.spool import Spool

KEPT = 64
"""More blobs than this are never here; a bundle has about five parts."""


class BlobCache:
    """A folder of verified blobs.

    Args:
        folder: created where missing; what is on its way in waits beside it, in `incoming`.

    Attributes:
        spool: of blobs on their way in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.spool = Spool(folder.with_name("incoming"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _failed(folder, error) from error

    def has(self, reference: BlobRef) -> bool:
        """Whether the blob is here whole. Asking counts as using it."""
        path = self._path(reference.sha256)
        try:
            os.utime(path)
            return path.stat().st_size == reference.size_bytes
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _failed(path, error) from error

    def get(self, digest: Digest) -> bytes:
        """A blob, verified again: a disk can change its mind.

        Raises:
            StoreError: missing or damaged; a damaged one is removed so that it is fetched anew.
        """
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _failed(path, error) from error
        if hashlib.sha256(data).digest() != digest:
            path.unlink(missing_ok=True)
            raise StoreError(f"{path} was damaged and has been removed", hint="it will be fetched again")
        return data

    def put(self, data: bytes) -> None:
        """Keep a blob, whole or not at all; of the others those not used for longest go."""
        path = self._path(Digest(hashlib.sha256(data).digest()))
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                # Not synced: a blob that a power cut damages is noticed when it is read, and fetched again.
                file.write(data)
            part.replace(path)
            others = sorted(self._folder.iterdir(), key=lambda p: p.stat().st_mtime_ns, reverse=True)
            for old in others[KEPT:]:
                old.unlink(missing_ok=True)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise _failed(path, error) from error

    def retain(self, digests: Collection[Digest]) -> None:
        """Forget every other blob: what a device needs is its newest bundle and checkpoint."""
        names = {digest.hex() for digest in digests}
        try:
            for path in self._folder.iterdir():
                if path.name not in names:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise _failed(self._folder, error) from error

    def _path(self, digest: Digest) -> Path:
        return self._folder / digest.hex()


def _failed(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"cannot use {path}: {error.strerror}",
        hint="check the disk's free space and the folder's permissions",
    )
