"""What a device is fetching: blobs for its cache, and frames of the coordinator's that are too large for one message.

Knows chunks, not why they are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edge_sdk.errors import RemoteProtocolError
from edge_sdk.protocol import chunks
from edge_sdk.protocol.limits import CHUNK_DEFAULT_BYTES, CHUNK_DIGEST_BYTES
from edge_sdk.protocol.messages import BlobRef, Digest, Pull
from edge_sdk.runtime.spool import Spool


@dataclass(frozen=True, slots=True)
class Download:
    """One blob on its way; `is_frame` where it is a frame of the coordinator's."""

    assembly: chunks.Assembly
    parts: chunks.PartStore
    is_frame: bool


class Downloads:
    """Blobs on their way in.

    Args:
        spool: keeps what came of blobs over restarts; frames are kept in memory.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._open: dict[bytes, Download] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._open

    @property
    def missing_bytes(self) -> int:
        """What is still to come of all of them."""
        return sum(download.assembly.missing_bytes for download in self._open.values())

    def want(self, blob: BlobRef) -> None:
        """Begin to fetch a blob, or go on with it.

        Raises:
            RemoteProtocolError: what came of it before is not what was promised; it was dropped.
            StoreError: there is no room.
        """
        if blob.sha256 not in self._open:
            parts = self._spool.parts(blob.sha256, blob.size_bytes, CHUNK_DEFAULT_BYTES)
            self._add(blob, parts, is_frame=False)

    def want_frame(self, blob: BlobRef) -> None:
        """Begin to fetch a frame. One at a time: what a device lacks is the newest, and its memory is bounded."""
        for digest in [d for d, download in self._open.items() if download.is_frame and d != blob.sha256]:
            del self._open[digest]
        if blob.sha256 not in self._open:
            self._add(blob, chunks.MemoryParts(blob.size_bytes, CHUNK_DEFAULT_BYTES), is_frame=True)

    def _add(self, blob: BlobRef, parts: chunks.PartStore, *, is_frame: bool) -> None:
        assembly = chunks.Assembly(blob.sha256, blob.size_bytes, CHUNK_DEFAULT_BYTES, parts)
        self._open[blob.sha256] = Download(assembly, parts, is_frame)

    def whole(self) -> list[Download]:
        """Those of which everything is here."""
        return [download for download in self._open.values() if download.assembly.complete]

    def receive(self, payload: bytes, now: float) -> Download | None:
        """Take in a chunk; the download that it completes.

        Raises:
            RemoteProtocolError: it was not asked for, or is not what was.
        """
        digest = chunks.blob_of(payload)
        download = next((d for d in self._open.values() if d.assembly.sha256.startswith(digest)), None)
        if download is None or len(digest) < CHUNK_DIGEST_BYTES:
            raise RemoteProtocolError("a chunk that was not asked for")
        download.assembly.receive(payload, now)
        return download if download.assembly.complete else None

    def finish(self, download: Download) -> bytes:
        """A complete download's bytes, checked; it is one no longer.

        Raises:
            RemoteProtocolError: they are not what was promised; it begins anew.
        """
        data = download.assembly.finish()
        del self._open[download.assembly.sha256]
        download.parts.remove()
        return data

    def requests(self, now: float) -> Iterator[Pull]:
        """What to ask for now."""
        for download in self._open.values():
            ranges = download.assembly.requests(now)
            if ranges:
                firsts = tuple(first for first, _ in ranges)
                counts = tuple(count for _, count in ranges)
                yield Pull(Digest(download.assembly.sha256), CHUNK_DEFAULT_BYTES, firsts, counts)

    def deadlines(self) -> Iterator[float | None]:
        """When each next needs `requests`."""
        return (download.assembly.next_deadline for download in self._open.values())

    def connection_lost(self) -> None:
        """What was asked for may never come."""
        for download in self._open.values():
            download.assembly.connection_lost()

    def close(self) -> None:
        """Stop; what came of blobs stays in the spool."""
        for download in self._open.values():
            download.parts.close()
        self._open.clear()
