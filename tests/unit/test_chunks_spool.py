"""A transfer on disk: it resumes after a restart, trusts nothing it finds, and says when the disk is full."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_sdk.errors import RemoteProtocolError, StoreError
from edge_sdk.protocol.chunks import Assembly, frames
from edge_sdk.protocol.limits import CHUNK_MIN_BYTES
from edge_sdk.runtime.spool import FileParts

CHUNK = CHUNK_MIN_BYTES
BLOB = bytes(range(256)) * 20 + b"tail"
SHA = hashlib.sha256(BLOB).digest()
COUNT = 21


def transfer(parts: FileParts, indices: range) -> Assembly:
    receiver = Assembly(SHA, len(BLOB), CHUNK, parts, window_bytes=64 * CHUNK)
    for frame in frames(SHA, BLOB, CHUNK, [(index, 1) for index in indices]):
        receiver.receive(frame, 0.0)
    return receiver


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Make the system refuse to write past `size_bytes` of any file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_transfer_resumes_after_a_restart(tmp_path: Path) -> None:
    with FileParts(tmp_path / "spool", SHA, len(BLOB), CHUNK) as parts:
        assert transfer(parts, range(3, 9)).requests(0.0) == ((0, 3), (9, COUNT - 9))

    with FileParts(tmp_path / "spool", SHA, len(BLOB), CHUNK) as parts:
        receiver = Assembly(SHA, len(BLOB), CHUNK, parts, window_bytes=64 * CHUNK)
        ranges = receiver.requests(0.0)
        assert ranges == ((0, 3), (9, COUNT - 9))
        for frame in frames(SHA, BLOB, CHUNK, ranges):
            receiver.receive(frame, 0.0)
        assert receiver.finish() == BLOB
        parts.keep(tmp_path / "spool" / "done")

    assert (tmp_path / "spool" / "done").read_bytes() == BLOB
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["done"]


def test_chunks_damaged_on_disk_are_fetched_again(tmp_path: Path) -> None:
    with FileParts(tmp_path, SHA, len(BLOB), CHUNK) as parts:
        transfer(parts, range(COUNT))
    part = tmp_path / f"{SHA.hex()}.part"
    data = bytearray(part.read_bytes())
    data[5 * CHUNK] ^= 1
    data[-1] ^= 1
    part.write_bytes(data)

    with FileParts(tmp_path, SHA, len(BLOB), CHUNK) as parts:
        assert transfer(parts, range(0)).requests(0.0) == ((5, 1), (COUNT - 1, 1))


@pytest.mark.parametrize("size", [0, 5, 20, 60])
def test_a_torn_record_begins_anew(tmp_path: Path, size: int) -> None:
    with FileParts(tmp_path, SHA, len(BLOB), CHUNK) as parts:
        transfer(parts, range(COUNT))
    record = tmp_path / f"{SHA.hex()}.have"
    record.write_bytes(record.read_bytes()[:size])

    with FileParts(tmp_path, SHA, len(BLOB), CHUNK) as parts:
        assert parts.have() == bytes(3)
        assert transfer(parts, range(COUNT)).finish() == BLOB


def test_a_truncated_part_is_fetched_again(tmp_path: Path) -> None:
    with FileParts(tmp_path, SHA, len(BLOB), CHUNK) as parts:
        transfer(parts, range(COUNT))
    part = tmp_path / f"{SHA.hex()}.part"
    part.write_bytes(part.read_bytes()[: 10 * CHUNK])

    with FileParts(tmp_path, SHA, len(BLOB), CHUNK) as parts:
        assert transfer(parts, range(10, COUNT)).finish() == BLOB


def test_another_chunk_size_begins_anew(tmp_path: Path) -> None:
    with FileParts(tmp_path, SHA, len(BLOB), CHUNK) as parts:
        transfer(parts, range(COUNT))
    with FileParts(tmp_path, SHA, len(BLOB), 2 * CHUNK) as parts:
        assert parts.have() == bytes(2)


def test_a_wrong_blob_is_dropped_for_good(tmp_path: Path) -> None:
    wrong = hashlib.sha256(b"another").digest()
    with FileParts(tmp_path, wrong, len(BLOB), CHUNK) as parts:
        receiver = Assembly(wrong, len(BLOB), CHUNK, parts)
        for frame in frames(wrong, BLOB, CHUNK, [(0, COUNT)]):
            receiver.receive(frame, 0.0)
        with pytest.raises(RemoteProtocolError, match="dropped"):
            receiver.finish()
        assert parts.have() == bytes(3)
    with FileParts(tmp_path, wrong, len(BLOB), CHUNK) as parts:
        assert parts.have() == bytes(3)
        parts.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_met_before_anything_is_fetched(tmp_path: Path) -> None:
    with file_size_limit(len(BLOB) - 1), pytest.raises(StoreError) as caught:
        FileParts(tmp_path, SHA, len(BLOB), CHUNK)
    assert "disk" in caught.value.hint


def test_a_disk_that_fills_on_the_way_loses_no_chunk_it_promised(tmp_path: Path) -> None:
    with FileParts(tmp_path, SHA, len(BLOB), CHUNK) as parts:
        receiver = transfer(parts, range(4))
        with file_size_limit(4 * CHUNK), pytest.raises(StoreError):
            receiver.receive(next(frames(SHA, BLOB, CHUNK, [(4, 1)])), 0.0)
        assert receiver.have[0] == 0b1111
        assert receiver.receive(next(frames(SHA, BLOB, CHUNK, [(4, 1)])), 0.0)
    with FileParts(tmp_path, SHA, len(BLOB), CHUNK) as parts:
        assert parts.have()[0] == 0b11111


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file"):
        FileParts(tmp_path / "file", SHA, len(BLOB), CHUNK)


def test_an_empty_blob_is_kept_too(tmp_path: Path) -> None:
    sha256 = hashlib.sha256(b"").digest()
    with FileParts(tmp_path, sha256, 0, CHUNK) as parts:
        assert Assembly(sha256, 0, CHUNK, parts).finish() == b""
        parts.keep(tmp_path / "done")
    assert (tmp_path / "done").read_bytes() == b""
