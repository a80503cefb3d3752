"""How examples rest on the disk: sealed, capped, aged, held out; and what happens where key, file or disk fail."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import stat
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.clock import ManualClock
from edge_sdk.errors import StoreError
from edge_sdk.training.example_caps import Caps
from edge_sdk.training.example_key import KeyFile, KeyringKey, RowCipher
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.fields import f32, i64

SCHEMA = {"x": f32(4), "y": i64()}
DAY_S = 86_400.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "examples.sqlite"


def rows(count: int, start: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    y = np.arange(start, start + count)
    return {"x": np.repeat(y[:, None], 4, axis=1).astype(np.float32), "y": y}


def labels(store: ExampleStore) -> list[int]:
    found: list[int] = store.arrays()["y"].tolist()
    return found


def key_of(path: Path) -> Path:
    return path.with_name(path.name + ".key")


def sealed(path: Path) -> list[bytes]:
    """The rows as they stand in the database."""
    connection = sqlite3.connect(path)
    found = [blob for (blob,) in connection.execute("SELECT sealed FROM examples ORDER BY row")]
    connection.close()
    return found


def on_disk(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.glob(path.name + "*"))


# ---- sealed


def test_nothing_of_an_example_can_be_read_from_the_files(path: Path) -> None:
    told = np.frombuffer(b"what a user did ", np.float32)
    with ExampleStore(path, SCHEMA) as store:
        for _ in range(20):
            store.add(x=told, y=1)
        assert told.tobytes() not in on_disk(path)
    assert told.tobytes() not in on_disk(path)
    assert stat.S_IMODE(key_of(path).stat().st_mode) == 0o600
    assert len({blob[:12] for blob in sealed(path)}) == 20


def test_a_sealed_row_opens_only_as_itself() -> None:
    key = os.urandom(32)
    cipher = RowCipher.of(key, b"schema")
    blob = cipher.seal(7, b"row")
    assert cipher.open(7, blob) == b"row"
    assert cipher.open(8, blob) is None
    assert RowCipher.of(key, b"another").open(7, blob) is None
    assert RowCipher.of(os.urandom(32), b"schema").open(7, blob) is None
    for place in range(len(blob)):
        assert cipher.open(7, blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :]) is None
    assert cipher.open(7, b"") is None
    assert key.hex() not in repr(cipher)


def test_rows_that_changed_places_are_noticed(path: Path) -> None:
    with ExampleStore(path, SCHEMA) as store:
        store.add_many(rows(2))
        one, other = sealed(path)
        store._file.write(
            ("UPDATE examples SET sealed = ? WHERE row = 1", (other,)),
            ("UPDATE examples SET sealed = ? WHERE row = 2", (one,)),
        )
        with pytest.raises(StoreError, match=r"example \d of .* was damaged"):
            store.arrays()


def test_another_key_opens_nothing_and_changes_nothing(path: Path) -> None:
    with ExampleStore(path, SCHEMA) as store:
        store.add_many(rows(5))
    right, before = key_of(path).read_text(), sealed(path)
    key_of(path).write_text(os.urandom(32).hex())
    with pytest.raises(StoreError, match="sealed under another key than that in") as caught:
        ExampleStore(path, SCHEMA)
    assert "restore the key" in caught.value.hint
    key_of(path).unlink()
    with pytest.raises(StoreError, match=r"the key of the examples .* is missing") as caught:
        ExampleStore(path)
    assert "restore it" in caught.value.hint
    key_of(path).write_text("nonsense")
    key_of(path).chmod(0o600)
    with pytest.raises(StoreError, match="holds no key"):
        ExampleStore(path)
    key_of(path).write_text(right)
    key_of(path).chmod(0o644)
    with pytest.raises(StoreError, match="can be used by others"):
        ExampleStore(path)
    key_of(path).chmod(0o600)
    assert sealed(path) == before
    with ExampleStore(path) as store:
        assert labels(store) == [0, 1, 2, 3, 4]


def test_a_database_that_was_moved_away_keeps_its_key(path: Path) -> None:
    with ExampleStore(path, SCHEMA) as store:
        store.add_many(rows(3))
    aside = path.with_name("aside.sqlite")
    path.rename(aside)
    with ExampleStore(path, SCHEMA) as store:
        assert len(store) == 0
        store.add_many(rows(1))
    aside.rename(path)
    with ExampleStore(path) as store:
        assert labels(store) == [0, 1, 2]


def test_erasing_leaves_neither_key_nor_rows(path: Path) -> None:
    with ExampleStore(path, SCHEMA) as store:
        store.add_many(rows(50))
        key, before = key_of(path).read_bytes(), sealed(path)
        store.erase()
        assert len(store) == 0
        files = on_disk(path)
        assert key not in files
        assert not any(blob in files for blob in before)
        store.add_many(rows(2, start=90))
        assert labels(store) == [90, 91]
    with ExampleStore(path) as store:
        assert labels(store) == [90, 91]


def test_what_was_begun_with_erased_examples_ends(path: Path) -> None:
    """Also where another process erased them; its other users go on with the new key."""
    with ExampleStore(path, SCHEMA) as one, ExampleStore(path) as other:
        one.add_many(rows(5))
        listed = [store.rows() for store in (one, other)]
        one.erase()
        for taken in listed:
            with pytest.raises(StoreError, match="were erased"):
                taken.take(np.arange(2))
        other.add_many(rows(1, start=7))
        assert labels(one) == labels(other) == [7]


def test_erasing_that_a_power_cut_ended_is_completed(path: Path) -> None:
    store = ExampleStore(path, SCHEMA)
    store.add_many(rows(5))
    old = key_of(path).read_bytes()
    store._file.write(("DELETE FROM meta WHERE key = 'key'", ()))  # the first thing that `erase` does
    store.close()
    with ExampleStore(path) as store:
        assert len(store) == 0
    assert key_of(path).read_bytes() != old


def test_erasing_that_a_power_cut_tore_the_key_of_is_completed(path: Path) -> None:
    store = ExampleStore(path, SCHEMA)
    store.add_many(rows(5))
    store._file.write(("DELETE FROM meta WHERE key = 'key'", ()))
    store.close()
    key_of(path).write_text("0123")
    with ExampleStore(path) as store:
        assert len(store) == 0
        store.add_many(rows(2))
    with ExampleStore(path) as store:
        assert labels(store) == [0, 1]


def test_opening_a_store_writes_nothing(path: Path) -> None:
    """So that examples can be read where the disk is full."""
    with ExampleStore(path, SCHEMA, max_rows=50) as store:
        store.add_many(rows(5))
        with ExampleStore(path, max_rows=50) as other:
            assert other._file.connection.total_changes == 0
            assert labels(other) == [0, 1, 2, 3, 4]
            assert other._file.connection.total_changes == 0


def test_erasing_on_a_full_disk_erases_the_key(path: Path) -> None:
    with ExampleStore(path, SCHEMA) as store:
        store.add_many(rows(5))
        before = key_of(path).read_bytes()
        listed = store.rows()
        store._file.connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreError, match="cannot write"):
            store.erase()
        assert key_of(path).read_bytes() == b"0" * 64 + b"\n"
        with pytest.raises(StoreError, match="were erased"):
            listed.take(np.arange(1))
        with pytest.raises(StoreError, match="cannot write"):
            store.arrays()  # which tries to complete it
    # With room again it is completed: the rows are gone, and the app goes on under another key.
    with ExampleStore(path) as store:
        assert len(store) == 0
        store.add_many(rows(2))
        assert labels(store) == [0, 1]
    assert key_of(path).read_bytes() not in (before, b"0" * 64 + b"\n")
    with ExampleStore(path) as store:
        assert labels(store) == [0, 1]


class _Keyring(types.ModuleType):
    """The `keyring` package, as far as it is used."""

    def __init__(self) -> None:
        super().__init__("keyring")
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = self.none = self.broken = self.forgets = False
        self.errors = types.ModuleType("keyring.errors")
        self.failure = self.errors.KeyringError = type("KeyringError", (Exception,), {})  # type: ignore[attr-defined]
        self.fail = types.ModuleType("keyring.backends.fail")
        self.fail.Keyring = type("Keyring", (), {})  # type: ignore[attr-defined]

    def get_keyring(self) -> object:
        if self.broken:
            raise RuntimeError("no such backend")
        return self.fail.Keyring() if self.none else object()

    def get_password(self, service: str, name: str) -> str | None:
        if self.locked:
            raise self.failure("it is locked")
        return self.kept.get((service, name))

    def set_password(self, service: str, name: str, password: str) -> None:
        self.get_password(service, name)
        if not self.forgets:
            self.kept[service, name] = password

    def delete_password(self, service: str, name: str) -> None:
        del self.kept[service, name]


@pytest.fixture
def keyring(monkeypatch: pytest.MonkeyPatch) -> _Keyring:
    made = _Keyring()
    for module in (made, made.errors, made.fail, types.ModuleType("keyring.backends")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def test_the_key_may_be_kept_in_the_keyring(path: Path, keyring: _Keyring) -> None:
    with ExampleStore(path, SCHEMA, key="keyring") as store:
        store.add_many(rows(3))
        (first,) = keyring.kept.values()
    assert not key_of(path).exists()
    moved = path.parent / "elsewhere" / "examples.sqlite"
    moved.parent.mkdir()
    path.rename(moved)
    path = moved
    with ExampleStore(path) as store:  # where the key is, the store says itself
        assert labels(store) == [0, 1, 2]
        store.erase()
    (second,) = keyring.kept.values()
    assert second != first
    keyring.locked = True
    with pytest.raises(StoreError, match="it is locked") as caught:
        ExampleStore(path)
    assert "unlock" in caught.value.hint
    keyring.locked, keyring.none = False, True
    with pytest.raises(StoreError, match="has none that can be used"):
        ExampleStore(path)
    keyring.none = False
    keyring.broken = True
    with pytest.raises(StoreError, match="cannot be used: no such backend"):
        ExampleStore(path)
    keyring.broken = False
    ((_, name),) = keyring.kept
    KeyringKey(name).erase()
    KeyringKey(name).erase()
    with pytest.raises(StoreError, match="missing from the keyring's entry"):
        ExampleStore(path)


def test_a_keyring_that_keeps_nothing_gets_no_rows(path: Path, keyring: _Keyring) -> None:
    keyring.forgets = True
    with pytest.raises(StoreError, match="does not give back what it was given"):
        ExampleStore(path, SCHEMA, key="keyring")
    keyring.forgets = False
    with ExampleStore(path, SCHEMA, key="keyring") as store:
        store.add_many(rows(1))


def test_without_the_package_the_keyring_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(StoreError, match="keyring is not installed") as caught:
        ExampleStore(path, SCHEMA, key="keyring")
    assert "edge-sdk[keyring]" in caught.value.hint


def test_a_key_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    holder = KeyFile(tmp_path / "none" / "key")
    assert holder.load() is None
    holder.erase()
    with pytest.raises(StoreError, match="cannot write the examples' key"):
        holder.save(bytes(32))
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="cannot read the examples' key"):
        KeyFile(tmp_path / "folder").load()


# ---- capped


@pytest.mark.parametrize("numbers", [1, 100, 500, 1000, 5000])
def test_the_file_keeps_to_its_bytes(path: Path, numbers: int) -> None:
    cap = 400_000
    with ExampleStore(path, {"x": f32(numbers)}, max_rows=10**9, max_bytes=cap) as store:
        more = {"x": np.zeros((max(1, 10_000 // numbers), numbers), np.float32)}
        kept = -1
        while kept < len(store):
            kept = len(store)
            store.add_many(more)
        for _ in range(3):
            store.add_many(more)
        assert len(store) == kept
    assert path.stat().st_size <= cap + 8 * 4096  # what the database says of itself
    assert path.stat().st_size >= 0.5 * cap
    assert kept >= 0.4 * cap / (4 * numbers + 28 + 60)


def test_caps_may_change(path: Path) -> None:
    with ExampleStore(path, SCHEMA, max_rows=50) as store:
        store.add_many(rows(30))
        assert store.caps == Caps(max_rows=50)
    with ExampleStore(path, max_rows=10, ttl_days=3) as store:
        assert labels(store) == list(range(20, 30))
    with ExampleStore(path) as store:
        assert store.caps == Caps(max_rows=10, ttl_days=3)


@pytest.mark.parametrize(
    "caps",
    [
        {"max_rows": 0},
        {"max_bytes": 0},
        {"max_bytes": math.nan},
        {"max_bytes": 40},
        {"ttl_days": 0},
        {"holdout": 1},
        {"holdout": -0.1},
        {"holdout": math.nan},
    ],
)
def test_caps_out_of_range_make_no_store(path: Path, caps: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=f"{next(iter(caps))}=") as caught:
        ExampleStore(path, SCHEMA, **caps)
    assert caught.value.hint
    with pytest.raises(StoreError):
        ExampleStore(path)


# ---- aged


def test_rows_that_are_too_old_are_not_given_out_and_are_erased(path: Path) -> None:
    clock = ManualClock(1e9)
    with ExampleStore(path, SCHEMA, ttl_days=14, clock=clock) as store:
        store.add_many(rows(3))
        clock.advance(10 * DAY_S)
        store.add_many(rows(3, start=3))
        old, new = sealed(path)[:3], sealed(path)[3:]
        listed = store.rows()
        clock.advance(4 * DAY_S - 1)
        assert len(store) == 6
        clock.advance(1)
        # A training that began before does not see them any more either.
        places, found = listed.take(np.arange(6))
        assert (places.tolist(), found["y"].tolist()) == ([3, 4, 5], [3, 4, 5])
        assert len(store) == 3
        files = on_disk(path)
        assert not any(blob in files for blob in old)
        assert all(blob in files for blob in new)
        clock.advance(100 * DAY_S)
        assert store.arrays()["x"].shape == (0, 4)


def test_counting_works_where_nothing_can_be_erased(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock(1e9)
    with ExampleStore(path, SCHEMA, ttl_days=1, clock=clock) as store:
        store.add_many(rows(3))
        assert len(store) == 3
        clock.advance(2 * DAY_S)
        store._file.connection.execute("PRAGMA query_only = ON")
        assert len(store) == 0
    assert "stay on the disk, unused" in caplog.text


def test_counts_follow_other_processes_and_time(path: Path) -> None:
    clock = ManualClock(1e9)
    with ExampleStore(path, SCHEMA, ttl_days=2, clock=clock) as one, ExampleStore(path, clock=clock) as other:
        for _ in range(3):
            one.add(**{name: array[0] for name, array in rows(1).items()})
            assert len(one) == len(other)
            clock.advance(DAY_S)
        assert len(one) == len(other) == 1


# ---- held out


def test_what_is_held_out_stays_so_and_is_never_among_the_others(path: Path) -> None:
    with ExampleStore(path, SCHEMA, holdout=0.2) as store:
        store.add_many(rows(1000))
        held = store.rows(held_out=True).take(np.arange(store.count(held_out=True)))[1]["y"]
        assert 150 < len(held) < 250
        assert store.count(held_out=False) == 1000 - len(held)
    with ExampleStore(path, holdout=0) as store:
        trained = store.rows(held_out=False)
        again = trained.take(np.arange(len(trained)))[1]["y"]
        assert sorted([*held, *again]) == list(range(1000))
        store.add_many(rows(200, start=1000))
        assert store.count(held_out=True) == len(held)


def test_the_same_rows_are_held_out_everywhere(tmp_path: Path) -> None:
    found = []
    for name in ("one", "other"):
        with ExampleStore(tmp_path / name, SCHEMA, holdout=0.1) as store:
            store.add_many(rows(100))
            found.append(store.rows(held_out=True).take(np.arange(store.count(held_out=True)))[1]["y"].tolist())
    assert found[0] == found[1] != []


# ---- wrong


def test_values_that_nothing_can_be_trained_on_are_refused(path: Path) -> None:
    with ExampleStore(path, SCHEMA) as store:
        for wrong in (np.nan, np.inf):
            with pytest.raises(StoreError, match="x holds NaN or infinity"):
                store.add(x=np.full(4, wrong, np.float32), y=1)
        assert len(store) == 0


def test_a_full_disk_leaves_everything_as_it_was(path: Path) -> None:
    with ExampleStore(path, SCHEMA) as store:
        store.add_many(rows(3))
        ((pages,),) = store._file.read("PRAGMA page_count")
        store._file.read(f"PRAGMA max_page_count = {pages + 2}")
        for _ in range(3):
            with pytest.raises(StoreError, match="full") as caught:
                store.add_many(rows(5000))
            assert "free space" in caught.value.hint
            assert labels(store) == [0, 1, 2]
        store._file.read("PRAGMA max_page_count = 1000000")
        store.add_many(rows(2, start=3))
        assert labels(store) == [0, 1, 2, 3, 4]


def test_a_damaged_file_is_told_and_left_alone(path: Path) -> None:
    with ExampleStore(path, SCHEMA) as store:
        store.add_many(rows(2000))
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + os.urandom(len(whole) - 4096))
    with pytest.raises(StoreError) as caught, ExampleStore(path) as store:
        store.arrays()
    assert "move it away" in caught.value.hint
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError, match="not a database") as caught:
        ExampleStore(path, SCHEMA)
    assert "move it away" in caught.value.hint
    assert path.read_bytes() == b"not a database" * 1000
    path.write_bytes(whole)
    with ExampleStore(path) as store:
        assert len(store) == 2000


@pytest.mark.parametrize(("version", "hint"), [(1, "an earlier edge-sdk wrote it"), (99, "update edge-sdk")])
def test_a_store_of_another_version_is_left_alone(path: Path, version: int, hint: str) -> None:
    ExampleStore(path, SCHEMA).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (json.dumps({"version": version}),))
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match=f"schema version {version}") as caught:
        ExampleStore(path, SCHEMA)
    assert hint in caught.value.hint


def test_what_the_file_says_of_itself_may_be_damaged(path: Path) -> None:
    ExampleStore(path, SCHEMA).close()
    connection = sqlite3.connect(path)
    for key, value in (("caps", "[]"), ("schema", "null")):
        connection.execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))
        connection.commit()
        with pytest.raises(StoreError, match="cannot read the schema"):
            ExampleStore(path)
    connection.close()


def test_a_log_of_writes_that_a_power_cut_tore_gives_a_prefix(path: Path) -> None:
    """Whatever of SQLite's log reached the disk, the rows are the first so many."""
    torn = path.with_name("torn.sqlite")
    with ExampleStore(path, SCHEMA) as store:
        for number in range(12):
            store.add_many(rows(3, start=3 * number))
        log, database = path.with_name(path.name + "-wal").read_bytes(), path.read_bytes()
    key = key_of(path).read_text()
    lengths = set()
    for cut in np.linspace(0, len(log), 25, dtype=int):
        for old in torn.parent.glob("torn*"):
            old.unlink()
        torn.write_bytes(database)
        torn.with_name("torn.sqlite-wal").write_bytes(log[:cut])
        key_of(torn).write_text(key)
        key_of(torn).chmod(0o600)
        with ExampleStore(torn, SCHEMA) as store:
            found = labels(store)
            assert found == list(range(len(found)))
            assert len(found) % 3 == 0
            lengths.add(len(found))
    assert len(lengths) > 5
