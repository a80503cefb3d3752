"""The app's examples on the device: one SQLite file with a fixed schema, capped by rows.

Examples never leave this file but for training on the device. The schema (dtype and shape of x and y) is fixed when the
store is made and checked on every add. Foreign exceptions end here as StoreError.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError, StoreError

SCHEMA_VERSION = 1
DEFAULT_MAX_ROWS = 10_000

_NUMBERS = "biuf"
_NPZ = "give an .npz file with arrays x and y of numbers, a row for each example"

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS examples (id INTEGER PRIMARY KEY AUTOINCREMENT, x BLOB NOT NULL, y BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Field:
    """One side of an example: the dtype's name, such as "float32", and the shape of one row."""

    dtype: str
    shape: tuple[int, ...]

    @staticmethod
    def of_rows(rows: NDArray[Any]) -> Field:
        """The field that these rows have, the first dimension being the rows."""
        return Field(rows.dtype.name, tuple(rows.shape[1:]))


@dataclass(frozen=True, slots=True)
class ExampleSchema:
    """What an example looks like."""

    x: Field
    y: Field


class ExampleStore:
    """A file of examples. Make one with `create`, `create_for` or `open`.

    Args:
        path: the file, mode 0600.
        schema: None reads the file's.
        max_rows: adding to a full store drops the oldest; None keeps the file's.

    Raises:
        StoreError: it cannot be opened, or holds another schema.
    """

    def __init__(self, path: Path, schema: ExampleSchema | None, max_rows: int | None = None) -> None:
        if schema is not None:
            _check_dtypes(schema)
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON", "busy_timeout=5000"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.executescript(_TABLES)
            stored = self._connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        except (OSError, sqlite3.Error) as error:
            raise self._failed("open", error) from error
        if stored is None:
            if schema is None:
                raise StoreError(f"{path} holds no examples' schema", hint="create the store before opening it")
            self.schema, self.max_rows = schema, max_rows or DEFAULT_MAX_ROWS
            self._write(("INSERT INTO meta VALUES ('schema', ?)", [(self._schema_text(),)]))
            return
        self.schema, kept = self._read_schema(str(stored[0]))
        self.max_rows = max_rows or kept
        if schema is not None and schema != self.schema:
            raise StoreError(
                f"{path} holds examples of {_words(self.schema)}, not of {_words(schema)}",
                hint="use another file for other examples",
            )

    @classmethod
    def create(cls, path: Path, schema: ExampleSchema, *, max_rows: int = DEFAULT_MAX_ROWS) -> Self:
        """Make a store, or open one with the same schema."""
        return cls(path, schema, max_rows)

    @classmethod
    def create_for(cls, path: Path, x: NDArray[Any], y: NDArray[Any], *, max_rows: int = DEFAULT_MAX_ROWS) -> Self:
        """Make a store for rows like these, without adding them."""
        return cls(path, ExampleSchema(Field.of_rows(x), Field.of_rows(y)), max_rows)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an existing store.

        Raises:
            StoreError: there is none.
        """
        if not path.is_file():
            raise StoreError(f"there are no examples at {path}", hint="create the store first")
        return cls(path, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return int(self._read("SELECT count(*) FROM examples")[0][0])

    def add(self, *, x: NDArray[Any], y: NDArray[Any] | float | int) -> None:
        """Add one example.

        Raises:
            StoreError: it does not fit the schema, or cannot be written.
        """
        self.add_many(np.asarray(x)[np.newaxis], np.asarray(y, self.schema.y.dtype)[np.newaxis])

    def add_many(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        """Add examples, all or none; the oldest beyond `max_rows` go.

        Raises:
            StoreError: they do not fit the schema, or cannot be written.
        """
        if len(x) != len(y):
            raise StoreError(f"{len(x)} inputs came with {len(y)} targets", hint="give one target for each input")
        rows = list(zip(_rows("x", x, self.schema.x), _rows("y", y, self.schema.y), strict=True))
        self._write(
            ("INSERT INTO examples (x, y) VALUES (?, ?)", rows),
            (
                "DELETE FROM examples WHERE id <= (SELECT id FROM examples ORDER BY id DESC LIMIT 1 OFFSET ?)",
                [(self.max_rows,)],
            ),
        )

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """All examples, oldest first: (x, y), the first dimension being the rows."""
        rows = self._read("SELECT x, y FROM examples ORDER BY id")
        return _array([r[0] for r in rows], self.schema.x), _array([r[1] for r in rows], self.schema.y)

    def clear(self) -> None:
        """Erase all examples; their pages are overwritten."""
        self._write(("DELETE FROM examples", [()]))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _schema_text(self) -> str:
        fields = {
            name: {"dtype": f.dtype, "shape": f.shape} for name, f in (("x", self.schema.x), ("y", self.schema.y))
        }
        return json.dumps({"version": SCHEMA_VERSION, "max_rows": self.max_rows, **fields})

    def _read_schema(self, text: str) -> tuple[ExampleSchema, int]:
        try:
            data = json.loads(text)
            if data["version"] != SCHEMA_VERSION:
                raise StoreError(
                    f"{self._path} has schema version {data['version']}; this SDK reads {SCHEMA_VERSION}",
                    hint="update edge-sdk",
                )
            x, y = (Field(data[name]["dtype"], tuple(data[name]["shape"])) for name in ("x", "y"))
            return ExampleSchema(x, y), int(data["max_rows"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._failed("read the schema of", error) from error

    def _read(self, sql: str) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._connection.execute(sql).fetchall()
        except sqlite3.Error as error:
            raise self._failed("read", error) from error

    def _write(self, *statements: tuple[str, list[tuple[Any, ...]]]) -> None:
        # The app adds examples in its own threads; a transaction is one thread's at a time.
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    for sql, rows in statements:
                        self._connection.executemany(sql, rows)
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._failed("write", error) from error

    def _failed(self, what: str, error: Exception) -> StoreError:
        return StoreError(
            f"cannot {what} the examples at {self._path}: {error}",
            hint="check the disk's free space and the file's permissions",
        )


def read_examples(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read examples from an .npz file: arrays x and y with a row for each example.

    Raises:
        ConfigError: it cannot be read, lacks one of them, or they are not rows of finite numbers.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise ValueError("it holds one array without a name")
            arrays = {name: np.asarray(loaded[name]) for name in ("x", "y")}
    except OSError as error:
        raise ConfigError(f"cannot read examples from {path}: {error.strerror or error}", hint=_NPZ) from error
    except KeyError as error:
        raise ConfigError(f"{path} lacks an array x or y", hint=_NPZ) from error
    except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path} is not an .npz file of numbers", hint=_NPZ) from error
    x, y = arrays["x"], arrays["y"]
    if x.ndim == 0 or y.ndim == 0 or not 0 < len(x) == len(y):
        raise ConfigError(f"{path} holds x of shape {x.shape} and y of shape {y.shape}", hint=_NPZ)
    for name, rows in arrays.items():
        if rows.dtype.kind not in _NUMBERS:
            raise ConfigError(f"{name} in {path} holds {rows.dtype}, not numbers", hint=_NPZ)
        if rows.dtype.kind == "f" and not np.all(np.isfinite(rows)):
            raise ConfigError(f"{name} in {path} holds NaN or infinity", hint="leave such examples out")
    return x, y


def _words(schema: ExampleSchema) -> str:
    return " and ".join(
        f"{name} {field.dtype}{list(field.shape)}" for name, field in (("x", schema.x), ("y", schema.y))
    )


def _check_dtypes(schema: ExampleSchema) -> None:
    for name, field in (("x", schema.x), ("y", schema.y)):
        try:
            dtype = np.dtype(field.dtype)
        except TypeError:
            dtype = None
        if dtype is None or dtype.name != field.dtype or dtype.kind not in _NUMBERS:
            raise StoreError(
                f"{name} cannot be of the type {field.dtype!r}", hint='name a type of numbers, such as "float32"'
            )


def _rows(name: str, rows: NDArray[Any], field: Field) -> list[bytes]:
    if rows.dtype.name != field.dtype or tuple(rows.shape[1:]) != field.shape:
        raise StoreError(
            f"{name} is {rows.dtype.name}{list(rows.shape[1:])} a row; "
            f"the store holds {field.dtype}{list(field.shape)}",
            hint="convert the examples, or use another store",
        )
    return [np.ascontiguousarray(row).tobytes() for row in rows]


def _array(rows: list[bytes], field: Field) -> NDArray[Any]:
    try:
        return np.frombuffer(b"".join(rows), field.dtype).reshape(len(rows), *field.shape).copy()
    except ValueError as error:
        raise StoreError(
            f"an example is not {field.dtype}{list(field.shape)}: the store is damaged",
            hint="restore it from a backup, or clear it and add the examples again",
        ) from error
