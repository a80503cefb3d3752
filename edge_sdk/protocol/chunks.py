"""Blobs in chunks: the frames, the stateless sender, and the receiver that asks for what it lacks.

Pure: no clock, socket or file. The receiver drives, as with HTTP Range. It sends a signed `Pull` that names
a blob by its SHA-256, and ranges of chunks; the sender answers each pull with exactly those chunks and
remembers nothing. Chunks themselves are not signed: the blob's hash stood in a signed frame, and nothing of a
blob is used before the whole of it matched.

A chunk frame is 20 bytes of header, then data:

    0  12  first bytes of the blob's SHA-256
    12  4  index, u32 little-endian
    16  4  CRC-32 of the data, u32 little-endian

Every chunk holds `chunk_bytes` of data but the last, which holds the rest.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from edge_sdk.errors import LocalProtocolError, RemoteProtocolError
from edge_sdk.protocol.limits import (
    BLOB_MAX_BYTES,
    CHUNK_DIGEST_BYTES,
    CHUNK_HEADER_BYTES,
    CHUNK_MAX_BYTES,
    CHUNK_MIN_BYTES,
    CHUNK_TIMEOUT_S,
    PULL_CHUNKS_MAX,
    PULL_RANGES_MAX,
    WINDOW_DEFAULT_BYTES,
    WINDOW_MAX_BYTES,
)

Range: TypeAlias = tuple[int, int]
"""(first chunk, how many)."""

_HEADER = struct.Struct(f"<{CHUNK_DIGEST_BYTES}sII")
_SHA256_BYTES = 32
_BACKOFF_MAX = 3


@dataclass(frozen=True, slots=True)
class Chunk:
    """One decoded chunk: the first 12 bytes of its blob's SHA-256, its index, its data."""

    digest: bytes
    index: int
    data: bytes


class PartStore(Protocol):
    """Where a receiver keeps the chunks of one blob; what it holds may outlive the process."""

    def have(self) -> bytes:
        """Return the bitmap of chunks held: chunk i is bit i % 8 of byte i // 8."""
        ...

    def write(self, index: int, offset: int, data: bytes) -> None:
        """Keep the data of chunk `index`, which begins at byte `offset` of the blob."""
        ...

    def read_all(self) -> bytes:
        """Return the whole blob."""
        ...

    def drop(self) -> None:
        """Forget all chunks."""
        ...

    def close(self) -> None:
        """Let go of the chunks; where they outlive the process they stay for the next time."""
        ...

    def remove(self) -> None:
        """Give the transfer up, or be done with it: nothing of it stays."""
        ...


class MemoryParts:
    """Keeps chunks in memory, allocated with the first of them.

    Args:
        size_bytes: the blob's size.
        chunk_bytes: data bytes in a chunk.
    """

    __slots__ = ("_data", "_have", "_size_bytes")

    def __init__(self, size_bytes: int, chunk_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._data = bytearray()
        self._have = bytearray(_bitmap_bytes(chunk_count(size_bytes, chunk_bytes)))

    def have(self) -> bytes:
        """Return the bitmap of chunks held."""
        return bytes(self._have)

    def write(self, index: int, offset: int, data: bytes) -> None:
        """Keep the data of chunk `index`, which begins at byte `offset` of the blob."""
        if not self._data:
            self._data = bytearray(self._size_bytes)
        self._data[offset : offset + len(data)] = data
        self._have[index >> 3] |= 1 << (index & 7)

    def read_all(self) -> bytes:
        """Return the whole blob."""
        return bytes(self._data)

    def drop(self) -> None:
        """Forget all chunks."""
        self._data = bytearray()
        self._have = bytearray(len(self._have))

    def close(self) -> None:
        """Forget all chunks."""
        self.drop()

    def remove(self) -> None:
        """Forget all chunks."""
        self.drop()


def chunk_count(size_bytes: int, chunk_bytes: int) -> int:
    """Return how many chunks a blob has.

    Raises:
        RemoteProtocolError: a size out of bounds; sizes come from the other side.
    """
    if not CHUNK_MIN_BYTES <= chunk_bytes <= CHUNK_MAX_BYTES:
        raise RemoteProtocolError(f"chunks of {chunk_bytes} bytes are outside {CHUNK_MIN_BYTES} to {CHUNK_MAX_BYTES}")
    if not 0 <= size_bytes <= BLOB_MAX_BYTES:
        raise RemoteProtocolError(f"a blob of {size_bytes} bytes is outside 0 to {BLOB_MAX_BYTES}")
    return -(-size_bytes // chunk_bytes)


def encode_chunk(sha256: bytes, index: int, data: bytes | memoryview) -> bytes:
    """Write one chunk frame of the blob named `sha256`."""
    return _HEADER.pack(sha256[:CHUNK_DIGEST_BYTES], index, zlib.crc32(data)) + data


def decode_chunk(frame: bytes) -> Chunk:
    """Read one chunk frame.

    Raises:
        RemoteProtocolError: too short, too long, or its CRC-32 is wrong.
    """
    if not CHUNK_HEADER_BYTES < len(frame) <= CHUNK_HEADER_BYTES + CHUNK_MAX_BYTES:
        raise RemoteProtocolError(f"a chunk frame of {len(frame)} bytes is out of bounds")
    digest, index, crc = _HEADER.unpack_from(frame)
    data = frame[CHUNK_HEADER_BYTES:]
    if zlib.crc32(data) != crc:
        raise RemoteProtocolError(f"chunk {index} of blob {digest.hex()} is corrupt: its CRC-32 is wrong")
    return Chunk(digest, index, data)


def blob_of(frame: bytes) -> bytes:
    """Return the 12 digest bytes that tell which blob a chunk frame belongs to, without reading the rest."""
    return frame[:CHUNK_DIGEST_BYTES]


def slices(data: bytes | memoryview, chunk_bytes: int, ranges: Sequence[Range]) -> Iterator[tuple[int, memoryview]]:
    """Cut the chunks that a pull asks for.

    All of the pull is checked before the first chunk comes out.

    Yields:
        (index, data), in the order asked; the data are views into `data`.

    Raises:
        RemoteProtocolError: the pull is malformed, or asks for more than one may at once.
    """
    count = chunk_count(len(data), chunk_bytes)
    if len(ranges) > PULL_RANGES_MAX:
        raise RemoteProtocolError(f"a pull of {len(ranges)} ranges is over the limit of {PULL_RANGES_MAX}")
    asked = 0
    for first, length in ranges:
        if first < 0 or length < 1 or first + length > count:
            raise RemoteProtocolError(f"a pull asks for chunks {first} to {first + length - 1} of {count}")
        asked += length
    if asked > _most_chunks(WINDOW_MAX_BYTES, chunk_bytes):
        raise RemoteProtocolError(f"a pull asks for {asked} chunks of {chunk_bytes} bytes at once")
    view = memoryview(data)
    return (
        (index, view[index * chunk_bytes : (index + 1) * chunk_bytes])
        for first, length in ranges
        for index in range(first, first + length)
    )


def frames(sha256: bytes, data: bytes | memoryview, chunk_bytes: int, ranges: Sequence[Range]) -> Iterator[bytes]:
    """Answer a pull of the blob `data`, named `sha256`, with its chunk frames, in the order asked.

    Raises:
        RemoteProtocolError: as for `slices`.
    """
    return (encode_chunk(sha256, index, part) for index, part in slices(data, chunk_bytes, ranges))


class Assembly:
    """Receives one blob: what to ask for now, what came, and whether the whole is what was promised.

    Asks for up to a window ahead, and for more once half of that window came, so that the link stays full and
    pulls stay few. A chunk counts as lost when chunks asked for two pulls later came before it, or when
    nothing at all came for `timeout_s` (doubling up to eightfold while the silence lasts, as the other side
    may be away).

    Args:
        sha256: the blob's name, 32 bytes, from a signed frame.
        size_bytes: its size, from the same frame.
        chunk_bytes: data bytes in a chunk.
        store: keeps the chunks; those that it already has are not asked for.
        window_bytes: how much to ask for ahead.
        timeout_s: how long without progress counts as loss.

    Raises:
        RemoteProtocolError: a size out of bounds.
    """

    __slots__ = (
        "_chunk_bytes",
        "_count",
        "_cursor",
        "_have",
        "_missing",
        "_newest_answered",
        "_outstanding",
        "_pull",
        "_sha256",
        "_silences",
        "_size_bytes",
        "_store",
        "_timeout_s",
        "_waiting_since",
        "_window",
    )

    def __init__(
        self,
        sha256: bytes,
        size_bytes: int,
        chunk_bytes: int,
        store: PartStore,
        *,
        window_bytes: int = WINDOW_DEFAULT_BYTES,
        timeout_s: float = CHUNK_TIMEOUT_S,
    ) -> None:
        if len(sha256) != _SHA256_BYTES:
            raise RemoteProtocolError(f"a blob name of {len(sha256)} bytes is no SHA-256")
        self._count = chunk_count(size_bytes, chunk_bytes)
        self._sha256 = sha256
        self._size_bytes = size_bytes
        self._chunk_bytes = chunk_bytes
        self._store = store
        self._window = _most_chunks(min(window_bytes, WINDOW_MAX_BYTES), chunk_bytes)
        self._timeout_s = timeout_s
        self._have = bytearray(store.have())
        if len(self._have) != _bitmap_bytes(self._count):
            raise LocalProtocolError(f"the part store holds another blob than {sha256.hex()}")
        self._missing = self._count - sum(byte.bit_count() for byte in self._have)
        self._outstanding: dict[int, int] = {}  # chunk asked for and not yet here: the pull that asked for it
        self._cursor = 0  # every chunk below is here or outstanding
        self._pull = 0
        self._newest_answered = 0
        self._waiting_since = 0.0
        self._silences = 0

    @property
    def sha256(self) -> bytes:
        """The blob's name."""
        return self._sha256

    @property
    def chunk_bytes(self) -> int:
        """Data bytes in a chunk."""
        return self._chunk_bytes

    @property
    def have(self) -> bytes:
        """The bitmap of chunks held: chunk i is bit i % 8 of byte i // 8."""
        return bytes(self._have)

    @property
    def complete(self) -> bool:
        """Whether every chunk is here; only `finish` tells whether they are the right ones."""
        return self._missing == 0

    @property
    def missing_bytes(self) -> int:
        """About how much is still to come: whole chunks."""
        return min(self._size_bytes, self._missing * self._chunk_bytes)

    @property
    def next_deadline(self) -> float | None:
        """When to call `requests` again if nothing comes (the past: at once), or None when complete."""
        if self.complete:
            return None
        if not self._outstanding:
            return self._waiting_since
        return self._waiting_since + self._patience_s()

    def requests(self, now: float) -> tuple[Range, ...]:
        """Return the ranges to pull now, and count them as asked for; empty while there is nothing to ask.

        Call it at the start, after each chunk, and at `next_deadline`.
        """
        if self._outstanding and now >= self._waiting_since + self._patience_s():
            self._lose(list(self._outstanding))
            self._silences += 1
        wanted = self._missing - len(self._outstanding)
        room = self._window - len(self._outstanding)
        # A pull for every chunk would cost a signature each; half a window ahead keeps the link busy.
        if wanted == 0 or (room < wanted and 2 * room < self._window):
            return ()
        self._pull += 1
        self._waiting_since = now
        return self._take(min(wanted, room))

    def receive(self, frame: bytes, now: float) -> bool:
        """Take in a chunk frame, in any order, asked for or not.

        Returns:
            Whether it was new.

        Raises:
            RemoteProtocolError: malformed, of another blob, or no chunk of this one. Nothing is changed.
            StoreError: it could not be kept. Nothing is changed.
        """
        chunk = decode_chunk(frame)
        if chunk.digest != self._sha256[:CHUNK_DIGEST_BYTES]:
            raise RemoteProtocolError(f"a chunk of blob {chunk.digest.hex()} came for {self._sha256.hex()}")
        offset = chunk.index * self._chunk_bytes
        expected_bytes = min(self._chunk_bytes, self._size_bytes - offset)
        if chunk.index >= self._count or len(chunk.data) != expected_bytes:
            raise RemoteProtocolError(
                f"{len(chunk.data)} bytes as chunk {chunk.index} do not fit a blob of {self._size_bytes} "
                f"bytes in chunks of {self._chunk_bytes}"
            )
        if self._holds(chunk.index):
            return False
        self._store.write(chunk.index, offset, chunk.data)
        self._have[chunk.index >> 3] |= 1 << (chunk.index & 7)
        self._missing -= 1
        self._waiting_since = now
        self._silences = 0
        self._answered(self._outstanding.pop(chunk.index, 0))
        return True

    def connection_lost(self) -> None:
        """Count all that was asked for as lost, so that the next `requests` asks again at once."""
        self._lose(list(self._outstanding))

    def finish(self) -> bytes:
        """Check the whole blob's SHA-256 and return the blob.

        Raises:
            LocalProtocolError: chunks are missing yet.
            RemoteProtocolError: the hash differs. Everything is dropped; the assembly would begin anew.
        """
        if not self.complete:
            raise LocalProtocolError(f"blob {self._sha256.hex()} is not complete: {self._missing} chunks are missing")
        blob = self._store.read_all()
        if hashlib.sha256(blob).digest() != self._sha256:
            self._store.drop()
            self._have = bytearray(len(self._have))
            self._missing = self._count
            self._outstanding.clear()
            self._cursor = 0
            raise RemoteProtocolError(
                f"blob {self._sha256.hex()} came whole, but its SHA-256 differs: all of it was dropped"
            )
        return blob

    def _patience_s(self) -> float:
        return self._timeout_s * float(1 << min(self._silences, _BACKOFF_MAX))

    def _holds(self, index: int) -> bool:
        return bool(self._have[index >> 3] >> (index & 7) & 1)

    def _lose(self, indices: list[int]) -> None:
        for index in indices:
            del self._outstanding[index]
            self._cursor = min(self._cursor, index)

    def _answered(self, pull: int) -> None:
        # Pulls and chunks keep their order on a healthy path; one pull of leeway, as brokers may reorder.
        if pull > self._newest_answered:
            self._newest_answered = pull
            self._lose([index for index, asked in self._outstanding.items() if asked < pull - 1])

    def _take(self, number: int) -> tuple[Range, ...]:
        ranges: list[Range] = []
        index = self._cursor
        while number > 0:
            if not self._holds(index) and index not in self._outstanding:
                if ranges and sum(ranges[-1]) == index:
                    ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
                elif len(ranges) < PULL_RANGES_MAX:
                    ranges.append((index, 1))
                else:
                    break
                self._outstanding[index] = self._pull
                number -= 1
            index += 1
        self._cursor = index
        return tuple(ranges)


def _most_chunks(window_bytes: int, chunk_bytes: int) -> int:
    return max(1, min(window_bytes // chunk_bytes, PULL_CHUNKS_MAX))


def _bitmap_bytes(count: int) -> int:
    return (count + 7) // 8
