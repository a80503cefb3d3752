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
from edge_sdk.runtime.cli import _import_examples
from edge_sdk.training.example_caps import DEFAULT_MAX_ROWS
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.fields import Field, Schema, f32, i64, u8

SCHEMA: Schema = {"x": Field("float32", (2, 3)), "y": Field("int64")}


def rows(count: int, start: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Examples that can be told apart."""
    y = np.arange(start, start + count)
    return {"x": np.broadcast_to(y[:, None, None], (count, 2, 3)).astype(np.float32), "y": y}


def test_what_goes_in_comes_out_in_order(tmp_path: Path) -> None:
    with ExampleStore(tmp_path / "examples.sqlite", SCHEMA) as store:
        given = rows(3)
        store.add(x=given["x"][0], y=0)
        store.add(x=given["x"][1], y=given["y"][1])
        store.add_many({name: array[2:] for name, array in given.items()})
        assert len(store) == 3
        found = store.arrays()
    assert list(found) == ["x", "y"]
    assert np.array_equal(found["x"], given["x"])
    assert np.array_equal(found["y"], given["y"])
    assert found["x"].dtype == np.float32
    assert found["y"].dtype == np.int64


def test_an_empty_store_gives_empty_arrays(tmp_path: Path) -> None:
    with ExampleStore(tmp_path / "examples.sqlite", SCHEMA) as store:
        found = store.arrays()
    assert (found["x"].shape, found["y"].shape) == ((0, 2, 3), (0,))


def test_it_survives_closing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "examples.sqlite"
    with ExampleStore(path, SCHEMA, max_rows=7) as store:
        store.add_many(rows(5))
    with ExampleStore(path) as store:
        assert store.schema == SCHEMA
        assert store.caps.max_rows == 7
        assert store.arrays()["y"].tolist() == [0, 1, 2, 3, 4]


def test_the_oldest_go_beyond_the_cap(tmp_path: Path) -> None:
    with ExampleStore(tmp_path / "examples.sqlite", SCHEMA, max_rows=4) as store:
        store.add_many(rows(3))
        store.add_many(rows(3, start=3))
        assert store.arrays()["y"].tolist() == [2, 3, 4, 5]
        store.add_many(rows(10, start=10))
        assert store.arrays()["y"].tolist() == [16, 17, 18, 19]


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "examples.sqlite"
    with ExampleStore(path, SCHEMA) as store:
        store.add_many(rows(3))
        for file in tmp_path.iterdir():  # The write-ahead log holds examples too.
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_clearing_leaves_nothing(tmp_path: Path) -> None:
    with ExampleStore(tmp_path / "examples.sqlite", SCHEMA) as store:
        store.add_many(rows(3))
        store.erase()
        assert len(store) == 0


def test_examples_of_another_kind_are_refused_and_none_is_kept(tmp_path: Path) -> None:
    x, y = rows(3)["x"], rows(3)["y"]
    with ExampleStore(tmp_path / "examples.sqlite", SCHEMA) as store:
        with pytest.raises(StoreError, match="x is float64"):
            store.add_many({"x": x.astype(np.float64), "y": y})
        with pytest.raises(StoreError, match=r"x is float32\[6\] a row"):
            store.add_many({"x": x.reshape(3, 6), "y": y})
        with pytest.raises(StoreError, match="y is float32"):
            store.add_many({"x": x, "y": y.astype(np.float32)})
        with pytest.raises(StoreError, match="y is float64"):
            store.add(x=x[0], y=1.5)
        with pytest.raises(StoreError, match="y is one value, not rows"):
            store.add_many({"x": x, "y": y[0]})
        ragged: Any = [[1], [2, 3]]
        with pytest.raises(StoreError, match="x is no array of numbers"):
            store.add_many({"x": ragged, "y": y})
        with pytest.raises(StoreError, match="different numbers of rows: 3 of x, 2 of y"):
            store.add_many({"x": x, "y": y[:2]})
        with pytest.raises(StoreError, match="has the fields x, y; given are x"):
            store.add(x=x[0])
        with pytest.raises(StoreError, match="given are x, y, z"):
            store.add(x=x[0], y=1, z=2)
        assert len(store) == 0


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "examples.sqlite"
    ExampleStore(path, SCHEMA).close()
    with pytest.raises(StoreError, match="holds examples of") as caught:
        ExampleStore(path, {"x": Field("float32", (2, 4)), "y": Field("int64")})
    assert "another file" in caught.value.hint


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there are no examples at"):
        ExampleStore(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_bytes(b"this is text, not a database" * 100)
    with pytest.raises(StoreError, match="cannot open the examples"):
        ExampleStore(tmp_path / "text.sqlite")


def test_threads_may_add_at_once(tmp_path: Path) -> None:
    with ExampleStore(tmp_path / "examples.sqlite", SCHEMA) as store:

        def add(start: int) -> None:
            for _ in range(20):
                store.add_many(rows(2, start))

        threads = [threading.Thread(target=add, args=(10 * number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store) == 160


def test_a_file_of_examples_is_taken_whole(tmp_path: Path) -> None:
    """However many rows a store keeps otherwise."""
    source, target = tmp_path / "examples.npz", tmp_path / "examples.sqlite"
    made = rows(DEFAULT_MAX_ROWS + 500)
    np.savez(source, x=made["x"], y=made["y"])
    _import_examples(source, target)
    with ExampleStore(target) as store:
        assert len(store) == DEFAULT_MAX_ROWS + 500
        assert store.arrays()["y"][0] == 0


def test_a_long_write_keeps_nobody_from_counting(tmp_path: Path) -> None:
    """The agent asks in its loop, which must turn."""
    with ExampleStore(tmp_path / "examples.sqlite", SCHEMA) as store:
        store.add_many(rows(3))
        assert len(store) == 3
        found: list[int] = []
        with store._file.transaction():
            asking = threading.Thread(target=lambda: found.append(len(store)))
            asking.start()
            asking.join(60)
            assert found == [3]
        store.add_many(rows(1))
        assert len(store) == 4


def test_fields_of_any_names_and_types(tmp_path: Path) -> None:
    path = tmp_path / "examples.sqlite"
    schema = {
        "batch.tokens": Field("int32", (3,)),
        "batch.mask": Field("bool", (3,)),
        "id": Field("int64"),
        "y": Field("float32"),
    }
    example: dict[str, Any] = {"batch.tokens": np.arange(3, dtype=np.int32), "batch.mask": [True, False, True]}
    with ExampleStore(path, schema) as store:
        store.add(id=7, y=0.5, **example)
    with ExampleStore(path) as store:
        assert store.schema == schema
        found = store.arrays()
    assert {name: array.tolist() for name, array in found.items()} == {
        "batch.tokens": [[0, 1, 2]],
        "batch.mask": [[True, False, True]],
        "id": [7],
        "y": [0.5],
    }
    assert found["batch.mask"].dtype == np.bool_


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({}, "no fields"),
        ({"x": Field("int64"), "X": Field("int64")}, "two of one name"),
        ({'x" BLOB, "z': Field("int64")}, "cannot be called"),
        ({"": Field("int64")}, "cannot be called"),
        ({"x": Field("str")}, "cannot be of the type 'str'"),
        ({"x": Field("object")}, "cannot be of the type 'object'"),
    ],
)
def test_impossible_schemas_are_refused(schema: Schema, words: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=words):
        ExampleStore(tmp_path / "examples.sqlite", schema)


def test_plain_numbers_and_lists_take_the_fields_types(tmp_path: Path) -> None:
    schema = {"x": f32(3), "pixels": u8(2), "level": Field("int8"), "y": i64()}
    with ExampleStore(tmp_path / "examples.sqlite", schema) as store:
        store.add(x=[0.1, 2, -3.5], pixels=[0, 255], level=-128, y=np.int32(7))
        found = store.arrays()
        assert np.array_equal(found["x"], np.array([[0.1, 2, -3.5]], np.float32))
        assert {name: array.tolist() for name, array in found.items() if name != "x"} == {
            "pixels": [[0, 255]],
            "level": [-128],
            "y": [7],
        }


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"level": 300}, "level holds 300 to 300, which int8 cannot"),
        ({"pixels": [-1, 4]}, "pixels holds -1 to 4, which uint8 cannot"),
        ({"x": [1e300, 0, 0]}, "x holds NaN or infinity"),
        ({"x": [[1.0], [2.0, 3.0]]}, "x is no array of numbers"),
        ({"x": "text"}, r"x is str\w*\[\] a row"),
        ({"y": None}, r"y is object\[\] a row"),
        ({"y": 1.5}, r"y is float64\[\] a row"),
        ({"x": np.zeros(3)}, r"x is float64\[3\] a row"),
        ({"x": [0.5, 0.5]}, r"x is float32\[2\] a row"),
        ({"x": np.ma.array([1, 2, 3], np.float32, mask=[False, True, False])}, "x holds masked values"),
        ({"pixels": np.ma.masked_greater([3, 200], 2)}, "pixels holds masked values"),
    ],
)
def test_values_that_a_field_cannot_hold_are_named(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    schema = {"x": f32(3), "pixels": u8(2), "level": Field("int8"), "y": i64()}
    good: dict[str, Any] = {"x": [0, 0, 0], "pixels": [1, 2], "level": 1, "y": 1}
    with ExampleStore(tmp_path / "examples.sqlite", schema) as store:
        with pytest.raises(StoreError, match=words) as caught:
            store.add(**good | wrong)
        assert caught.value.hint
        assert len(store) == 0


def test_a_place_for_keys_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="'cloud'"):
        ExampleStore(tmp_path / "taps.sqlite", {"x": f32(2)}, key="cloud")  # type: ignore[arg-type]
