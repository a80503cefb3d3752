"""A blob on its way in, on disk: a transfer that was interrupted resumes after a restart.

`NAME.part` holds the blob's bytes in place; `NAME.have` holds, for each chunk, a flag and the CRC-32 of its
data. Nothing is forced to disk on the way: when a transfer is taken up again, every chunk is checked against
its CRC, so that a crash or a power cut costs chunks and never correctness. Durable is the finished blob
(see `keep`).
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Final, Self

from edge_sdk.errors import StoreError
from edge_sdk.protocol.chunks import MemoryParts, chunk_count

_HEAD: Final = struct.Struct("<8sQI")
_MAGIC: Final = b"EDGEPART"
_ENTRY: Final = struct.Struct("<II")
KEPT: Final = 64
_HINT: Final = "check the disk's free space and the folder's permissions; the transfer resumes where it stopped"


class FileParts:
    """Keeps the chunks of one blob in two files (a `PartStore`). Close it, or use it in a `with` block.

    Args:
        folder: where the files go; made if missing.
        sha256: the blob's name.
        size_bytes: its size.
        chunk_bytes: data bytes in a chunk; a transfer begun with others begins anew.

    Raises:
        StoreError: the files cannot be used, or the disk has no room for the blob.
    """

    __slots__ = ("_chunk_bytes", "_count", "_data", "_have", "_part", "_record", "_sidecar", "_size_bytes")

    def __init__(self, folder: Path, sha256: bytes, size_bytes: int, chunk_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._chunk_bytes = chunk_bytes
        self._count = chunk_count(size_bytes, chunk_bytes)
        self._part = folder / f"{sha256.hex()}.part"
        self._sidecar = folder / f"{sha256.hex()}.have"
        self._data = self._record = -1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._data = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._record = os.open(self._sidecar, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._have = self._resume()
        except OSError as error:
            self.close()
            raise self._failed(error) from error

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self.close()

    def have(self) -> bytes:
        """Return the bitmap of chunks held."""
        return bytes(self._have)

    def write(self, index: int, offset: int, data: bytes) -> None:
        """Keep the data of chunk `index`, which begins at byte `offset` of the blob.

        Raises:
            StoreError: it cannot be written; the chunk counts as not held.
        """
        try:
            _write_all(self._data, data, offset)
            entry = _ENTRY.pack(1, zlib.crc32(data))
            _write_all(self._record, entry, _HEAD.size + index * _ENTRY.size)
        except OSError as error:
            raise self._failed(error) from error
        self._have[index >> 3] |= 1 << (index & 7)

    def read_all(self) -> bytes:
        """Return the whole blob.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            return _read(self._data, self._size_bytes, 0)
        except OSError as error:
            raise self._failed(error) from error

    def drop(self) -> None:
        """Forget all chunks.

        Raises:
            StoreError: the record of them cannot be reset.
        """
        try:
            self._reset()
        except OSError as error:
            raise self._failed(error) from error
        self._have = bytearray(len(self._have))

    def keep(self, path: Path) -> None:
        """Move the blob, complete and checked, to `path` in the same file system, durably and at once.

        Raises:
            StoreError: that failed; the transfer is as it was.
        """
        try:
            os.ftruncate(self._data, self._size_bytes)
            os.fsync(self._data)
            self._part.replace(path)
            _sync_folder(path.parent)
            self._sidecar.unlink(missing_ok=True)
        except OSError as error:
            raise self._failed(error) from error
        self.close()

    def remove(self) -> None:
        """Give the transfer up and remove its files."""
        self.close()
        self._part.unlink(missing_ok=True)
        self._sidecar.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files; they stay for the next time. May be called again."""
        for descriptor in (self._data, self._record):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._record = -1

    def _resume(self) -> bytearray:
        have = bytearray((self._count + 7) // 8)
        head = _HEAD.pack(_MAGIC, self._size_bytes, self._chunk_bytes)
        record = _read(self._record, _HEAD.size + self._count * _ENTRY.size, 0)
        if record[: _HEAD.size] != head or len(record) < _HEAD.size + self._count * _ENTRY.size:
            self._reset()
            return have
        for index, (flag, crc) in enumerate(_ENTRY.iter_unpack(record[_HEAD.size :])):
            offset = index * self._chunk_bytes
            size_bytes = min(self._chunk_bytes, self._size_bytes - offset)
            if flag and zlib.crc32(_read(self._data, size_bytes, offset)) == crc:
                have[index >> 3] |= 1 << (index & 7)
        return have

    def _reset(self) -> None:
        # The head last: a record half made begins anew.
        os.ftruncate(self._record, 0)
        os.ftruncate(self._record, _HEAD.size + self._count * _ENTRY.size)
        # A full disk is met here, before anything was fetched, where the system can set room aside.
        if self._size_bytes and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._data, 0, self._size_bytes)
        os.ftruncate(self._data, self._size_bytes)
        _write_all(self._record, _HEAD.pack(_MAGIC, self._size_bytes, self._chunk_bytes), 0)

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(f"cannot use {self._part}: {error.strerror}", hint=_HINT)


class Spool:
    """A folder of transfers on their way in.

    Args:
        folder: made with the first transfer that needs it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def parts(self, sha256: bytes, size_bytes: int, chunk_bytes: int) -> MemoryParts | FileParts:
        """Where the chunks of a blob go: to disk where there is more than one to lose.

        Of other transfers those not touched for longest are given up, so that the folder stays small.

        Raises:
            StoreError: the files cannot be used, or the disk has no room for the blob.
        """
        if size_bytes <= chunk_bytes:
            return MemoryParts(size_bytes, chunk_bytes)
        found = FileParts(self._folder, sha256, size_bytes, chunk_bytes)
        records = sorted(self._folder.glob("*.have"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for old in records[KEPT:]:
            old.with_suffix(".part").unlink(missing_ok=True)
            old.unlink(missing_ok=True)
        return found


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def _read(descriptor: int, size_bytes: int, offset: int) -> bytes:
    """Read up to `size_bytes`, fewer only at the end of the file."""
    parts = []
    while size_bytes > 0:
        part = os.pread(descriptor, min(size_bytes, 1 << 24), offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        size_bytes -= len(part)
    return b"".join(parts)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
