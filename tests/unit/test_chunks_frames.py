"""Chunk frames, the stateless sender, and the receiver step by step."""

from __future__ import annotations

import hashlib
import struct
import zlib

import pytest

from edge_sdk.errors import LocalProtocolError, RemoteProtocolError
from edge_sdk.protocol import limits
from edge_sdk.protocol.chunks import (
    Assembly,
    Chunk,
    MemoryParts,
    blob_of,
    chunk_count,
    decode_chunk,
    encode_chunk,
    frames,
    slices,
)

CHUNK = limits.CHUNK_MIN_BYTES
BLOB = bytes(range(256)) * 40 + b"tail"
SHA = hashlib.sha256(BLOB).digest()
COUNT = 41


def assembly(*, window: int = 8, timeout_s: float = 5.0, sha256: bytes = SHA) -> Assembly:
    parts = MemoryParts(len(BLOB), CHUNK)
    return Assembly(sha256, len(BLOB), CHUNK, parts, window_bytes=window * CHUNK, timeout_s=timeout_s)


def frame(index: int, blob: bytes = BLOB, sha256: bytes = SHA) -> bytes:
    return next(frames(sha256, blob, CHUNK, [(index, 1)]))


def test_a_frame_is_laid_out_as_written() -> None:
    data = b"abc"
    assert encode_chunk(SHA, 7, data) == SHA[:12] + struct.pack("<II", 7, zlib.crc32(data)) + data
    assert decode_chunk(encode_chunk(SHA, 7, data)) == Chunk(SHA[:12], 7, data)
    assert blob_of(encode_chunk(SHA, 7, data)) == SHA[:12]


def test_a_default_chunk_fills_a_control_frame_exactly() -> None:
    data = bytes(limits.CHUNK_DEFAULT_BYTES)
    assert len(encode_chunk(SHA, 0, data)) == limits.CONTROL_FRAME_MAX_BYTES


@pytest.mark.parametrize("size", [0, 11, 19, 20, 21 + limits.CHUNK_MAX_BYTES])
def test_frames_of_impossible_length_are_refused(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match="out of bounds"):
        decode_chunk(bytes(size))


def test_a_flipped_bit_is_noticed() -> None:
    damaged = bytearray(frame(3))
    damaged[-1] ^= 1
    with pytest.raises(RemoteProtocolError, match="CRC-32"):
        decode_chunk(bytes(damaged))


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 1), (CHUNK, 1), (CHUNK + 1, 2), (10 * CHUNK, 10)])
def test_the_last_chunk_holds_the_rest(size: int, count: int) -> None:
    assert chunk_count(size, CHUNK) == count


@pytest.mark.parametrize(
    ("size", "chunk"),
    [
        (-1, CHUNK),
        (limits.BLOB_MAX_BYTES + 1, CHUNK),
        (1, CHUNK - 1),
        (1, limits.CHUNK_MAX_BYTES + 1),
        (1, 0),
    ],
)
def test_sizes_out_of_bounds_are_refused(size: int, chunk: int) -> None:
    with pytest.raises(RemoteProtocolError, match="outside"):
        chunk_count(size, chunk)


def test_the_sender_answers_in_the_order_asked() -> None:
    cut = list(slices(BLOB, CHUNK, [(40, 1), (0, 2)]))
    assert [index for index, _ in cut] == [40, 0, 1]
    assert bytes(cut[0][1]) == b"tail"
    assert bytes(cut[2][1]) == BLOB[CHUNK : 2 * CHUNK]


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 0)],
        [(0, -1)],
        [(-1, 1)],
        [(COUNT, 1)],
        [(0, COUNT + 1)],
        [(0, 1)] * (limits.PULL_RANGES_MAX + 1),
    ],
)
def test_malformed_pulls_are_refused_before_anything_is_sent(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(RemoteProtocolError, match="a pull"):
        slices(BLOB, CHUNK, ranges)


@pytest.mark.parametrize(
    ("chunk_bytes", "most"),
    [
        (limits.CHUNK_MIN_BYTES, limits.PULL_CHUNKS_MAX),
        (limits.CHUNK_MAX_BYTES, limits.WINDOW_MAX_BYTES // limits.CHUNK_MAX_BYTES),
    ],
)
def test_a_small_pull_cannot_make_the_sender_send_without_end(chunk_bytes: int, most: int) -> None:
    blob = memoryview(bytes(limits.WINDOW_MAX_BYTES))
    assert sum(1 for _ in slices(blob, chunk_bytes, [(0, most)])) == most
    with pytest.raises(RemoteProtocolError, match="at once"):
        slices(blob, chunk_bytes, [(0, most), (0, 1)])


def test_the_receiver_asks_for_a_window_and_then_for_the_next_half() -> None:
    receiver = assembly(window=8)
    assert receiver.requests(0.0) == ((0, 8),)
    assert receiver.requests(0.0) == ()
    for index in range(3):
        assert receiver.receive(frame(index), 0.1)
        assert receiver.requests(0.1) == ()
    assert receiver.receive(frame(3), 0.1)
    assert receiver.requests(0.1) == ((8, 4),)


def test_the_end_is_asked_for_at_once() -> None:
    receiver = assembly(window=40)
    assert receiver.requests(0.0) == ((0, 40),)
    assert receiver.receive(frame(0), 0.1)
    assert receiver.requests(0.1) == ((40, 1),)


def test_silence_asks_again_later_and_later() -> None:
    receiver = assembly(window=8, timeout_s=5.0)
    assert receiver.next_deadline == 0.0
    receiver.requests(10.0)
    now, gaps = 10.0, []
    for _ in range(6):
        deadline = receiver.next_deadline
        assert deadline is not None
        assert receiver.requests(deadline - 0.01) == ()
        assert receiver.requests(deadline) == ((0, 8),)
        gaps.append(deadline - now)
        now = deadline
    assert gaps == [5.0, 10.0, 20.0, 40.0, 40.0, 40.0]
    assert receiver.receive(frame(0), now)
    assert receiver.next_deadline == now + 5.0


def test_chunks_skipped_over_are_asked_for_without_waiting_for_the_timeout() -> None:
    receiver = assembly(window=8)
    receiver.requests(0.0)
    for index in range(1, 5):
        receiver.receive(frame(index), 0.0)
    assert receiver.requests(0.0) == ((8, 4),)
    for index in range(5, 9):
        receiver.receive(frame(index), 0.0)
    # Chunk 0 came neither with its own pull nor before the next one's; one pull of leeway remains.
    assert receiver.requests(0.0) == ((12, 4),)
    receiver.receive(frame(12), 0.0)
    receiver.receive(frame(9), 0.0)
    receiver.receive(frame(10), 0.0)
    assert receiver.requests(0.0) == ((0, 1), (16, 3))


def test_a_lost_connection_asks_again_at_once() -> None:
    receiver = assembly(window=8)
    receiver.requests(0.0)
    receiver.receive(frame(2), 0.0)
    receiver.connection_lost()
    assert receiver.requests(0.0) == ((0, 2), (3, 6))


def test_duplicates_and_chunks_not_asked_for_do_no_harm() -> None:
    receiver = assembly(window=8)
    assert receiver.receive(frame(30), 0.0)
    assert not receiver.receive(frame(30), 0.0)
    assert receiver.have[30 >> 3] == 1 << (30 & 7)


def test_chunks_that_cannot_be_are_refused_and_change_nothing() -> None:
    receiver = assembly()
    other = hashlib.sha256(b"other").digest()
    with pytest.raises(RemoteProtocolError, match="came for"):
        receiver.receive(frame(0, sha256=other), 0.0)
    with pytest.raises(RemoteProtocolError, match="do not fit"):
        receiver.receive(encode_chunk(SHA, COUNT, bytes(CHUNK)), 0.0)
    with pytest.raises(RemoteProtocolError, match="do not fit"):
        receiver.receive(encode_chunk(SHA, 2**32 - 1, b"x"), 0.0)
    with pytest.raises(RemoteProtocolError, match="do not fit"):
        receiver.receive(encode_chunk(SHA, 0, bytes(CHUNK - 1)), 0.0)
    with pytest.raises(RemoteProtocolError, match="do not fit"):
        receiver.receive(encode_chunk(SHA, COUNT - 1, bytes(CHUNK)), 0.0)
    assert receiver.have == bytes(6)


def test_the_whole_is_checked_and_a_wrong_one_dropped() -> None:
    receiver = assembly(window=64)
    receiver.requests(0.0)
    with pytest.raises(LocalProtocolError, match="41 chunks are missing"):
        receiver.finish()
    forged = bytes(CHUNK)
    receiver.receive(encode_chunk(SHA, 0, forged), 0.0)
    for index in range(1, COUNT):
        receiver.receive(frame(index), 0.0)
    assert receiver.complete
    assert receiver.next_deadline is None
    with pytest.raises(RemoteProtocolError, match=SHA.hex()):
        receiver.finish()
    assert not receiver.complete
    assert receiver.requests(1.0) == ((0, COUNT),)
    for index in range(COUNT):
        receiver.receive(frame(index), 1.0)
    assert receiver.finish() == BLOB


def test_an_empty_blob_needs_no_chunk() -> None:
    receiver = Assembly(hashlib.sha256(b"").digest(), 0, CHUNK, MemoryParts(0, CHUNK))
    assert receiver.complete
    assert receiver.requests(0.0) == ()
    assert receiver.finish() == b""


def test_a_store_of_another_blob_is_a_bug_here() -> None:
    with pytest.raises(LocalProtocolError, match="another blob"):
        Assembly(SHA, len(BLOB), CHUNK, MemoryParts(CHUNK, CHUNK))


def test_a_name_that_is_no_sha256_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="no SHA-256"):
        Assembly(b"short", 1, CHUNK, MemoryParts(1, CHUNK))


def test_a_shattered_blob_is_pulled_in_bounded_pieces() -> None:
    # Every other chunk is here: more ranges than one pull may have.
    size = CHUNK * 4 * limits.PULL_RANGES_MAX
    blob = bytes(size)
    sha256 = hashlib.sha256(blob).digest()
    parts = MemoryParts(size, CHUNK)
    for index in range(0, size // CHUNK, 2):
        parts.write(index, index * CHUNK, bytes(CHUNK))
    receiver = Assembly(sha256, size, CHUNK, parts, window_bytes=limits.WINDOW_MAX_BYTES)
    ranges = receiver.requests(0.0)
    assert len(ranges) == limits.PULL_RANGES_MAX
    for data in frames(sha256, blob, CHUNK, ranges):
        receiver.receive(data, 0.0)
    for data in frames(sha256, blob, CHUNK, receiver.requests(0.0)):
        receiver.receive(data, 0.0)
    assert receiver.finish() == blob
