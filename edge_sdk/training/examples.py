"""The app's examples on the device: one SQLite file with a fixed schema, capped by rows.

Examples never leave this file but for training on the device. An example has named fields, inputs and the target "y";
the schema (dtype and shape of each) is fixed when the store is made and checked on every add. Foreign exceptions end
here as StoreError.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_sdk.errors import ConfigError, StoreError
from edge_sdk.training.fields import NUMBERS, Field, Schema, check_schema, in_words
from edge_sdk.training.trainer import Rows

SCHEMA_VERSION = 1
DEFAULT_MAX_ROWS = 10_000

_NPZ = "give an .npz file with arrays y and x, or what the model calls its inputs, a row for each example"

_META = "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)"


class ExampleStore:
    """A file of examples. Make one with `create`, `create_for` or `open`.

    Args:
        path: the file, mode 0600.
        schema: None reads the file's.
        max_rows: adding to a full store drops the oldest; None keeps the file's.

    Raises:
        StoreError: it cannot be opened, or holds another schema.
    """

    def __init__(self, path: Path, schema: Schema | None, max_rows: int | None = None) -> None:
        if schema is not None:
            check_schema(schema)
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON", "busy_timeout=5000"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.execute(_META)
            stored = self._connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        except (OSError, sqlite3.Error) as error:
            raise self._failed("open", error) from error
        if stored is None:
            if schema is None:
                raise StoreError(f"{path} holds no examples' schema", hint="create the store before opening it")
            self.schema, self.max_rows = dict(schema), max_rows or DEFAULT_MAX_ROWS
            columns = "".join(f", {_quoted(name)} BLOB NOT NULL" for name in self.schema)
            self._write(
                (f'CREATE TABLE examples ("#" INTEGER PRIMARY KEY AUTOINCREMENT{columns})', [()]),
                ("INSERT INTO meta VALUES ('schema', ?)", [(self._schema_text(),)]),
            )
            return
        self.schema, kept = self._read_schema(str(stored[0]))
        self.max_rows = max_rows or kept
        if schema is not None and dict(schema) != self.schema:
            raise StoreError(
                f"{path} holds examples of {in_words(self.schema)}, not of {in_words(schema)}",
                hint="use another file for other examples",
            )

    @classmethod
    def create(cls, path: Path, schema: Schema, *, max_rows: int = DEFAULT_MAX_ROWS) -> Self:
        """Make a store, or open one with the same schema."""
        return cls(path, schema, max_rows)

    @classmethod
    def create_for(cls, path: Path, rows: Rows, *, max_rows: int = DEFAULT_MAX_ROWS) -> Self:
        """Make a store for rows like these, without adding them."""
        return cls(path, {name: Field.of_rows(array) for name, array in rows.items()}, max_rows)

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

    def add(self, **fields: ArrayLike) -> None:
        """Add one example.

        Raises:
            StoreError: it does not fit the schema, or cannot be written.
        """
        self._check_names(fields)
        self.add_many({name: _one(name, value, self.schema[name])[np.newaxis] for name, value in fields.items()})

    def add_many(self, rows: Rows) -> None:
        """Add examples, all or none; the oldest beyond `max_rows` go.

        Raises:
            StoreError: they do not fit the schema, or cannot be written.
        """
        self._check_names(rows)
        if len({len(array) for array in rows.values()}) > 1:
            counts = ", ".join(f"{len(rows[name])} of {name}" for name in self.schema)
            raise StoreError(
                f"the fields have different numbers of rows: {counts}", hint="give each example all fields"
            )
        columns = [_rows(name, rows[name], field) for name, field in self.schema.items()]
        places = ", ".join("?" for _ in columns)
        self._write(
            (f"INSERT INTO examples ({self._columns()}) VALUES ({places})", list(zip(*columns, strict=True))),  # noqa: S608 - names are checked
            (
                'DELETE FROM examples WHERE "#" <= (SELECT "#" FROM examples ORDER BY "#" DESC LIMIT 1 OFFSET ?)',
                [(self.max_rows,)],
            ),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All examples, oldest first, by field; the first dimension is the rows."""
        rows = self._read(f'SELECT {self._columns()} FROM examples ORDER BY "#"')  # noqa: S608 - names are checked
        return {
            name: _array([row[index] for row in rows], field) for index, (name, field) in enumerate(self.schema.items())
        }

    def clear(self) -> None:
        """Erase all examples; their pages are overwritten."""
        self._write(("DELETE FROM examples", [()]))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _columns(self) -> str:
        return ", ".join(_quoted(name) for name in self.schema)

    def _check_names(self, fields: Mapping[str, Any]) -> None:
        if set(fields) != set(self.schema):
            raise StoreError(
                f"an example has the fields {', '.join(self.schema)}; given are {', '.join(fields) or 'none'}",
                hint="give every field by its name",
            )

    def _schema_text(self) -> str:
        fields = {name: asdict(field) for name, field in self.schema.items()}
        return json.dumps({"version": SCHEMA_VERSION, "max_rows": self.max_rows, "fields": fields})

    def _read_schema(self, text: str) -> tuple[dict[str, Field], int]:
        try:
            data = json.loads(text)
            if data["version"] != SCHEMA_VERSION:
                raise StoreError(
                    f"{self._path} has schema version {data['version']}; this SDK reads {SCHEMA_VERSION}",
                    hint="update edge-sdk",
                )
            fields = {name: Field(field["dtype"], tuple(field["shape"])) for name, field in data["fields"].items()}
            check_schema(fields)
            return fields, int(data["max_rows"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
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


def read_examples(path: Path) -> dict[str, NDArray[Any]]:
    """Read examples from an .npz file: an array for each field, the target called y, with a row for each example.

    Raises:
        ConfigError: it cannot be read, lacks y or an input, or they are not rows of finite numbers.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise ValueError("it holds one array without a name")
            arrays = {str(name): np.asarray(array) for name, array in loaded.items()}
    except OSError as error:
        raise ConfigError(f"cannot read examples from {path}: {error.strerror or error}", hint=_NPZ) from error
    except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path} is not an .npz file of numbers", hint=_NPZ) from error
    if "y" not in arrays or len(arrays) < 2:
        raise ConfigError(f"{path} lacks an array x or y: it holds {', '.join(arrays) or 'none'}", hint=_NPZ)
    lengths = {len(rows) if rows.ndim else 0 for rows in arrays.values()}
    if len(lengths) > 1 or 0 in lengths:
        shapes = ", ".join(f"{name} of shape {rows.shape}" for name, rows in arrays.items())
        raise ConfigError(f"{path} holds {shapes}", hint=_NPZ)
    for name, rows in arrays.items():
        if rows.dtype.kind not in NUMBERS:
            raise ConfigError(f"{name} in {path} holds {rows.dtype}, not numbers", hint=_NPZ)
        if rows.dtype.kind == "f" and not np.all(np.isfinite(rows)):
            raise ConfigError(f"{name} in {path} holds NaN or infinity", hint="leave such examples out")
    return arrays


def _quoted(name: str) -> str:
    return f'"{name}"'


def _one(name: str, value: ArrayLike, field: Field) -> NDArray[Any]:
    """One value of a field; single numbers are converted where nothing is lost in kind."""
    array = np.asarray(value)
    if field.shape == () == array.shape and np.can_cast(array.dtype, field.dtype, "same_kind"):
        return array.astype(field.dtype)
    return array


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
