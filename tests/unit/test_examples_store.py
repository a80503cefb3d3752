"""The device's example store."""

from __future__ import annotations

import sqlite3
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.errors import StoreError
from edge_sdk.training.examples import ExampleSchema, ExampleStore, Field

SCHEMA = ExampleSchema(Field("float32", (2, 3)), Field("int64", ()))


def rows(count: int, start: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Examples that can be told apart."""
    y = np.arange(start, start + count)
    return np.broadcast_to(y[:, None, None], (count, 2, 3)).astype(np.float32), y


def test_what_goes_in_comes_out_in_order(tmp_path: Path) -> None:
    with ExampleStore.create(tmp_path / "examples.sqlite", SCHEMA) as store:
        x, y = rows(3)
        store.add(x=x[0], y=0)
        store.add(x=x[1], y=y[1])
        store.add_many(x[2:], y[2:])
        assert len(store) == 3
        found_x, found_y = store.arrays()
    assert np.array_equal(found_x, x)
    assert np.array_equal(found_y, y)
    assert found_x.dtype == np.float32
    assert found_y.dtype == np.int64


def test_an_empty_store_gives_empty_arrays(tmp_path: Path) -> None:
    with ExampleStore.create(tmp_path / "examples.sqlite", SCHEMA) as store:
        x, y = store.arrays()
    assert (x.shape, y.shape) == ((0, 2, 3), (0,))


def test_it_survives_closing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "examples.sqlite"
    with ExampleStore.create(path, SCHEMA, max_rows=7) as store:
        store.add_many(*rows(5))
    with ExampleStore.open(path) as store:
        assert store.schema == SCHEMA
        assert store.max_rows == 7
        assert store.arrays()[1].tolist() == [0, 1, 2, 3, 4]


def test_the_oldest_go_beyond_the_cap(tmp_path: Path) -> None:
    with ExampleStore.create(tmp_path / "examples.sqlite", SCHEMA, max_rows=4) as store:
        store.add_many(*rows(3))
        store.add_many(*rows(3, start=3))
        assert store.arrays()[1].tolist() == [2, 3, 4, 5]
        store.add_many(*rows(10, start=10))
        assert store.arrays()[1].tolist() == [16, 17, 18, 19]


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "examples.sqlite"
    with ExampleStore.create(path, SCHEMA) as store:
        store.add_many(*rows(3))
        for file in tmp_path.iterdir():  # The write-ahead log holds examples too.
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_clearing_leaves_nothing(tmp_path: Path) -> None:
    with ExampleStore.create(tmp_path / "examples.sqlite", SCHEMA) as store:
        store.add_many(*rows(3))
        store.clear()
        assert len(store) == 0


def test_examples_of_another_kind_are_refused_and_none_is_kept(tmp_path: Path) -> None:
    x, y = rows(3)
    with ExampleStore.create(tmp_path / "examples.sqlite", SCHEMA) as store:
        with pytest.raises(StoreError, match="x is float64"):
            store.add_many(x.astype(np.float64), y)
        with pytest.raises(StoreError, match=r"x is float32\[6\] a row"):
            store.add_many(x.reshape(3, 6), y)
        with pytest.raises(StoreError, match="y is float32"):
            store.add_many(x, y.astype(np.float32))
        with pytest.raises(StoreError, match="3 inputs came with 2 targets"):
            store.add_many(x, y[:2])
        assert len(store) == 0


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "examples.sqlite"
    ExampleStore.create(path, SCHEMA).close()
    with pytest.raises(StoreError, match="holds examples of") as caught:
        ExampleStore.create(path, ExampleSchema(Field("float32", (2, 4)), Field("int64", ())))
    assert "another file" in caught.value.hint


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there are no examples at"):
        ExampleStore.open(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_bytes(b"this is text, not a database" * 100)
    with pytest.raises(StoreError, match="cannot open the examples"):
        ExampleStore.open(tmp_path / "text.sqlite")


def test_threads_may_add_at_once(tmp_path: Path) -> None:
    with ExampleStore.create(tmp_path / "examples.sqlite", SCHEMA) as store:

        def add(start: int) -> None:
            for _ in range(20):
                store.add_many(*rows(2, start))

        threads = [threading.Thread(target=add, args=(10 * number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store) == 160
