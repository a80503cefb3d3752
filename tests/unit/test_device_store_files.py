"""The device's file: what it keeps, what it erases, and that a failing disk leaves nothing half-written."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_sdk.errors import StoreError
from edge_sdk.privacy.accounting import Release
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.privacy.subsampled import Sampling
from edge_sdk.protocol.messages import BlobRef, Digest
from edge_sdk.protocol.policy import Spending
from edge_sdk.runtime.blob_cache import KEPT, BlobCache
from edge_sdk.runtime.device_store import DeviceStore, JournalEntry, Participation
from edge_sdk.secagg import suite

RELEASE = Release(Mechanism.SKELLAM, 60.5, 25, 300, 40)
SECRET = b"a very secret update" * 200


def entry(position: int = 0, payload: bytes = b"payload") -> JournalEntry:
    return JournalEntry(position, 1.5, "trained", payload, b"entropy")


def participation(number: int = 1, task: str = "task") -> Participation:
    return Participation(bytes([number]) * 16, task, number, float(number), 1.25, 1e-5, 64, bytes(32), RELEASE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "device.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[DeviceStore]:
    with DeviceStore(path) as opened:
        yield opened


# ---- what it keeps


def test_everything_is_there_after_a_restart(path: Path) -> None:
    with DeviceStore(path) as store:
        store.put("key", "value")
        store.append(entry(0))
        store.append(entry(1), participation(), durable=False)
        store.end_round(b"r" * 16, 2.5, committed=True, detail="committed")
        store.append(entry(0, b"next"))
    with DeviceStore(path) as store:
        assert store.get("key") == "value"
        assert store.get("other") is None
        assert store.journal() == [entry(0, b"next")]
        assert store.participations() == [participation()]
        assert store.has_ended(b"r" * 16)
        assert not store.has_ended(b"s" * 16)


def test_a_round_that_got_its_masked_input_counts_as_ended(store: DeviceStore) -> None:
    store.append(entry(), participation(7))
    assert store.has_ended(bytes([7]) * 16)


def test_the_ledger_is_by_round_and_task(store: DeviceStore) -> None:
    for position, made in enumerate((participation(1), participation(2), participation(3, "other"), participation(1))):
        store.append(entry(position), made)
    other = replace(participation(4, "other"), release=replace(RELEASE, device_variance=0))
    store.append(entry(9), other)
    assert [p.round_number for p in store.participations()] == [1, 2, 3, 4]
    assert [p.round_number for p in store.participations("task")] == [1, 2]
    expected = ((replace(RELEASE, device_variance=0), 1), (RELEASE, 3))
    assert store.spending("task") == Spending(2, expected)
    assert store.spending("nothing") == Spending(0, expected)


def test_nobody_else_can_read_it(path: Path, store: DeviceStore) -> None:
    store.append(entry())
    assert {file.name: file.stat().st_mode & 0o077 for file in path.parent.iterdir()} == dict.fromkeys(
        ("device.sqlite", "device.sqlite.begun", "device.sqlite-wal", "device.sqlite-shm"), 0
    )


def test_reprs_hide_what_is_secret() -> None:
    assert repr(entry()) == "JournalEntry(position=0, at=1.5, kind='trained')"


# ---- what it erases


def test_a_round_that_ended_leaves_no_trace_of_its_secrets(path: Path, store: DeviceStore) -> None:
    """Neither in the file nor in SQLite's log of writes: keys and updates of past rounds cannot be stolen later."""
    entropy = os.urandom(32)
    for position in range(5):
        store.append(replace(entry(position, SECRET), entropy=entropy), durable=position % 2 == 0)
    assert any(SECRET[:40] in file.read_bytes() for file in path.parent.iterdir())
    store.end_round(b"r" * 16, 2.5, committed=True, detail="")
    for file in path.parent.iterdir():
        assert SECRET[:40] not in file.read_bytes()
        assert entropy not in file.read_bytes()


# ---- what goes wrong


def test_an_event_and_its_cost_are_kept_together_or_not_at_all(store: DeviceStore) -> None:
    store.append(entry(0))
    with pytest.raises(StoreError):
        store.append(entry(0), participation())
    assert store.participations() == []
    store.append(entry(1), participation())
    assert len(store.journal()) == 2


def test_a_full_disk_leaves_everything_as_it_was(path: Path, store: DeviceStore) -> None:
    store.append(entry(0))
    (pages,) = store._file.connection.execute("PRAGMA page_count").fetchone()
    store._file.connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    for _ in range(3):
        with pytest.raises(StoreError, match="full") as caught:
            store.append(entry(1, bytes(1 << 20)), participation())
        assert "free space" in caught.value.hint
        assert str(path) in str(caught.value)
    assert store.journal() == [entry(0)]
    assert store.participations() == []
    store._file.connection.execute("PRAGMA max_page_count = 1000000")
    store.append(entry(1, bytes(1 << 20)), participation())
    assert len(store.journal()) == 2


def test_a_read_only_store_says_what_to_do(store: DeviceStore) -> None:
    store._file.connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="readonly") as caught:
        store.append(entry())
    assert "permissions" in caught.value.hint
    assert store.journal() == []


@pytest.mark.parametrize("home", ["a file", "nowhere"])
def test_a_place_that_cannot_be_used_says_so(tmp_path: Path, home: str) -> None:
    (tmp_path / "a file").write_text("")
    place = tmp_path / "a file" if home == "a file" else Path("/proc/nowhere")
    with pytest.raises(StoreError) as caught:
        DeviceStore(place / "device.sqlite")
    assert caught.value.hint


def test_a_folder_or_a_foreign_file_is_no_store(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.sqlite"
    foreign.write_bytes(b"something else" * 1000)
    for place in (foreign, tmp_path):
        with pytest.raises(StoreError):
            DeviceStore(place)
    assert foreign.read_bytes() == b"something else" * 1000


def test_a_store_of_another_version_is_left_alone(path: Path) -> None:
    DeviceStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = '99'")
    for table in ("ledger", "example_ledger", "traffic"):
        connection.execute(f"DROP TABLE {table}")
    connection.commit()
    with pytest.raises(StoreError, match="schema 99") as caught:
        DeviceStore(path)
    assert "update edge-sdk" in caught.value.hint
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {"meta", "journal", "ended"}
    connection.close()


@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_a_ledger_that_is_gone_is_not_begun_anew(path: Path, how: str) -> None:
    with DeviceStore(path) as store:
        store.append(entry(0), participation())
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes(b"")
    for _ in range(2):  # the first try leaves nothing that the second would take for a store
        with pytest.raises(StoreError, match="the record of what this device spent") as refused:
            DeviceStore(path)
        assert "restore it from a backup" in refused.value.hint


@pytest.mark.parametrize("what", ["ledger", "example_ledger", "meta", "traffic"])
def test_a_store_damaged_anywhere_is_told(path: Path, what: str) -> None:
    with DeviceStore(path) as store:
        store.append(entry(0), participation())
        store.count_examples(b"r" * 16, Sampling(1.0, 0.5, 3))
        store.end_round(b"r" * 16, 2.5, committed=True, detail="committed")
        page, size = _page_of(path, what)
    whole = path.read_bytes()
    for damage in (bytes(size), b"\xc9" * size, bytes(64), b"\xc9" * 64):
        at = page * size + size - len(damage)  # rows lie at the end of a page
        path.write_bytes(whole[:at] + damage + whole[at + len(damage) :])
        hint, kept = "", list[Participation]()
        try:
            with DeviceStore(path) as store:
                kept = store.participations()
        except StoreError as error:
            hint = error.hint
        # Of the other tables a few numbers may be lost, but nothing that was spent.
        ledgers = what in ("ledger", "example_ledger")
        assert "restore it from a backup" in hint or (not ledgers and kept == [participation()])
    path.write_bytes(whole)
    with DeviceStore(path) as store:
        assert store.participations() == [participation()]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE ledger SET honest = 4000",
        "DELETE FROM ledger",
        "UPDATE example_ledger SET steps = 1",
        "DELETE FROM meta",
    ],
)
def test_a_ledger_that_says_something_else_is_not_believed(path: Path, change: str) -> None:
    with DeviceStore(path) as store:
        store.append(entry(0), participation())
        store.count_examples(b"r" * 16, Sampling(1.0, 0.5, 3))
    connection = sqlite3.connect(path)
    connection.execute(change)
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match=r"not as it was written|has gone or was emptied"):
        DeviceStore(path)


def _page_of(path: Path, table: str) -> tuple[int, int]:
    """Where a table's rows lie, as a page's number from 0, and the size of a page."""
    connection = sqlite3.connect(path)
    try:
        ((root,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchall()
        ((size,),) = connection.execute("PRAGMA page_size").fetchall()
    finally:
        connection.close()
    return int(root) - 1, int(size)


def test_a_store_that_was_closed_raises_what_it_promises(path: Path) -> None:
    store = DeviceStore(path)
    store.close()
    for action in (
        lambda: store.get("x"),
        lambda: store.put("x", "y"),
        store.journal,
        lambda: store.append(entry()),
        lambda: store.has_ended(b""),
        store.participations,
        lambda: store.spending("task"),
        lambda: store.end_round(b"", 0.0, committed=False, detail=""),
    ):
        with pytest.raises(StoreError):
            action()


# ---- blobs


def reference(data: bytes) -> BlobRef:
    return BlobRef(Digest(suite.digest(data)), len(data))


def test_blobs_come_back_as_they_went(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "blobs")
    assert not cache.has(reference(b"data"))
    cache.put(b"data")
    assert cache.has(reference(b"data"))
    assert not cache.has(replace(reference(b"data"), size_bytes=5))
    assert BlobCache(tmp_path / "blobs").get(reference(b"data").sha256) == b"data"


def test_what_is_in_use_stays_however_much_comes(tmp_path: Path) -> None:
    """Each round brings a checkpoint; the bundle came with the first and is needed in all."""
    cache = BlobCache(tmp_path)
    cache.put(b"bundle")
    for number in range(3 * KEPT):
        assert cache.has(reference(b"bundle"))
        cache.put(b"checkpoint %d" % number)
        assert cache.get(reference(b"bundle").sha256) == b"bundle"
    assert len(list(tmp_path.iterdir())) == KEPT


def test_a_damaged_blob_is_removed_so_that_it_comes_again(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    cache.put(b"data")
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"dada")
    with pytest.raises(StoreError, match="damaged"):
        cache.get(reference(b"data").sha256)
    assert not cache.has(reference(b"data"))
    with pytest.raises(StoreError):
        cache.get(reference(b"data").sha256)


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StoreError) as caught:
        BlobCache(file / "blobs")
    assert caught.value.hint
    cache = BlobCache(tmp_path / "blobs")
    (tmp_path / "blobs").rmdir()
    with pytest.raises(StoreError):
        cache.put(b"data")


def test_numbers_and_bytes_that_were_damaged_are_told(tmp_path: Path) -> None:
    with DeviceStore(tmp_path / "device.sqlite") as store:
        assert (store.number("installed_version"), store.content("coordinator")) == (0, None)
        store.put("installed_version", "7")
        store.put("coordinator", "00ff")
        assert (store.number("installed_version"), store.content("coordinator")) == (7, b"\0\xff")
        store.put("installed_version", "seven")
        store.put("coordinator", "zz")
        with pytest.raises(StoreError, match="installed_version in the device's store cannot be read: 'seven'"):
            store.number("installed_version")
        with pytest.raises(StoreError, match="coordinator in the device's store cannot be read: 'zz'"):
            store.content("coordinator")
