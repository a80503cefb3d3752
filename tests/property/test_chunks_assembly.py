"""Whatever the network loses, repeats or reorders, the right bytes arrive, and never others."""

from __future__ import annotations

import hashlib
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import RemoteProtocolError
from edge_sdk.protocol.chunks import Assembly, MemoryParts, chunk_count, decode_chunk, encode_chunk, frames
from edge_sdk.protocol.limits import CHUNK_MIN_BYTES

CHUNK = CHUNK_MIN_BYTES

blobs = st.integers(0, 40 * CHUNK).flatmap(
    lambda size: st.integers(0, 255).map(lambda seed: bytes((seed + 7 * i) % 256 for i in range(size)))
)


@given(
    blob=blobs,
    window=st.integers(1, 12),
    fates=st.lists(st.sampled_from("dddlrx2"), max_size=400),
    already=st.sets(st.integers(0, 39)),
    breaks=st.sets(st.integers(0, 200)),
)
def test_any_pattern_of_loss_repetition_and_reordering_ends_in_the_right_bytes(
    blob: bytes, window: int, fates: list[str], already: set[int], breaks: set[int]
) -> None:
    """Fates: d delivered, l lost, r delayed behind the rest, x damaged, 2 twice; those left go well."""
    sha256 = hashlib.sha256(blob).digest()
    count = chunk_count(len(blob), CHUNK)
    parts = MemoryParts(len(blob), CHUNK)
    for index in already:
        if index < count:
            parts.write(index, index * CHUNK, blob[index * CHUNK : (index + 1) * CHUNK])
    receiver = Assembly(sha256, len(blob), CHUNK, parts, window_bytes=window * CHUNK, timeout_s=1.0)
    line: deque[bytes] = deque()
    late: list[bytes] = []
    remaining = iter(fates)
    now = 0.0
    for turn in range(3_000):
        if receiver.complete:
            break
        if turn in breaks:
            receiver.connection_lost()
        ranges = receiver.requests(now)
        line.extend(frames(sha256, blob, CHUNK, ranges))
        if not line:
            line.extend(late)
            late.clear()
        if not line:
            deadline = receiver.next_deadline
            assert deadline is not None
            assert deadline >= now or ranges == ()
            now = max(now, deadline)
            continue
        frame = line.popleft()
        match next(remaining, "d"):
            case "l":
                continue
            case "r":
                late.append(frame)
                continue
            case "x":
                damaged = bytearray(frame)
                damaged[-1] ^= 0x40
                try:
                    receiver.receive(bytes(damaged), now)
                except RemoteProtocolError:
                    continue
                raise AssertionError("a damaged chunk was taken")
            case "2":
                receiver.receive(frame, now)
                assert not receiver.receive(frame, now)
            case _:
                receiver.receive(frame, now)
    assert receiver.complete
    assert receiver.finish() == blob


@given(
    size=st.integers(0, 60 * CHUNK),
    window=st.integers(1, 20),
    steps=st.lists(st.integers(0, 59), max_size=120),
    clock=st.lists(st.floats(0, 3), max_size=120),
)
def test_no_more_than_a_window_is_ever_outstanding(
    size: int, window: int, steps: list[int], clock: list[float]
) -> None:
    blob = bytes(size)
    sha256 = hashlib.sha256(blob).digest()
    receiver = Assembly(sha256, size, CHUNK, MemoryParts(size, CHUNK), window_bytes=window * CHUNK, timeout_s=10_000.0)
    asked: set[int] = set()
    came: set[int] = set()
    now = 0.0
    times = iter(clock)
    for step in [-1, *steps]:
        if 0 <= step < chunk_count(size, CHUNK):
            receiver.receive(next(frames(sha256, blob, CHUNK, [(step, 1)])), now)
            came.add(step)
        for first, length in receiver.requests(now):
            asked.update(range(first, first + length))
        # Chunks counted as lost are asked for again, so `asked` bounds what is outstanding from above.
        assert len(asked - came) <= window
        now += next(times, 0.0)


@given(st.binary(max_size=400))
def test_no_bytes_crash_the_decoder(data: bytes) -> None:
    try:
        chunk = decode_chunk(data)
    except RemoteProtocolError:
        return
    assert encode_chunk(chunk.digest, chunk.index, chunk.data) == data


@given(data=st.binary(min_size=1, max_size=300), index=st.integers(0, 2**32 - 1), cut=st.integers(0, 320))
def test_a_truncated_or_extended_frame_is_refused(data: bytes, index: int, cut: int) -> None:
    frame = encode_chunk(bytes(32), index, data)
    for damaged in (frame[: min(cut, len(frame) - 1)], frame + b"\1"):
        try:
            chunk = decode_chunk(damaged)
        except RemoteProtocolError:
            continue
        # A CRC-32 may agree by chance; then the data are other bytes under the blob's own hash.
        assert chunk.data != data
