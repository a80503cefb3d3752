"""The app's examples on the device: one SQLite file with a fixed schema, encrypted, capped by rows, bytes and age.

Examples never leave this file but for training on the device. An example has named fields, inputs and the target "y";
the schema (dtype and shape of each) is fixed when the store is made and checked on every add. Each row is sealed on its
own, as one blob of all its fields, under a key that is kept beside the file or in the system's keyring: without the key
nothing of a row can be read, so that erasing it erases them all. Foreign exceptions end here as StoreError.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_sdk.clock import Clock, SystemClock
from edge_sdk.errors import StoreError
from edge_sdk.sqlite_file import SqliteFile
from edge_sdk.training.example_caps import Caps
from edge_sdk.training.example_key import ERASED, KEY_BYTES, SEAL_BYTES, KeyPlace, RowCipher, key_holder, new_key_name
from edge_sdk.training.example_packing import Packing
from edge_sdk.training.fields import Field, Schema, check_schema, in_words
from edge_sdk.training.trainer import Places, Rows, everything

log = logging.getLogger("edge.device")

SCHEMA_VERSION: Final = 2

_FORGET_EVERY_S: Final = 3_600.0
"""How often the log of writes is cleared of rows that went, which costs a sync."""
_AT_ONCE: Final = 500
"""Rows asked for in one query."""

_DAMAGED: Final = (
    "the file is damaged: move it away to begin anew, or restore it with its key from a backup; nothing was changed"
)

# The oldest of each part are found, counted and listed by the index alone.
_TABLES: Final = (
    "CREATE TABLE examples (row INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, held_out INTEGER NOT NULL, "
    "sealed BLOB NOT NULL)",
    "CREATE INDEX by_age ON examples (held_out, at)",
)
_COUNT: Final = "SELECT held_out, count(*), min(at) FROM examples WHERE held_out IN (0, 1) AND at > ? GROUP BY held_out"
_LIST: Final = "SELECT row FROM examples WHERE held_out = ? ORDER BY at, row"


class ExampleStore:
    """A file of examples, which threads and processes may share. Names a file that is there, or makes one.

    Args:
        path: the file, mode 0600. Its key is in `PATH.key`, unless it is in the keyring.
        schema: None reads the file's.
        max_rows, max_bytes, ttl_days, holdout: see `Caps`; None keeps the file's. They may change, and so may the
            share held out, which is decided for each row when it is added.
        key: where a new store's key is kept; one that is there stays where it is.
        clock: tells how old rows are.

    Raises:
        StoreError: it cannot be opened, holds another schema, or its key is missing or another.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema | None = None,
        *,
        max_rows: int | None = None,
        max_bytes: float | None = None,
        ttl_days: float | None = None,
        holdout: float | None = None,
        key: KeyPlace = "file",
        clock: Clock | None = None,
    ) -> None:
        if schema is None and not path.is_file():
            raise StoreError(f"there are no examples at {path}", hint="create the store first, with a schema")
        if schema is not None:
            check_schema(schema)
        self.path = path
        self._clock = clock or SystemClock()
        self._cipher: RowCipher | None = None
        self._forgotten_at = -math.inf
        self._counted = _Counted()
        asked = {"max_rows": max_rows, "max_bytes": max_bytes, "ttl_days": ttl_days, "holdout": holdout}
        given = {name: value for name, value in asked.items() if value is not None}
        Caps(**given)  # type: ignore[arg-type]  # refused before a file is made
        self._file = SqliteFile(path, "the examples at", if_damaged=_DAMAGED)
        try:
            with self._file.transaction() as connection:
                self._open(connection, schema, given, key)
                self._expire(connection)
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def create_for(cls, path: Path, rows: Rows, **options: Any) -> Self:
        """Make a store for rows like these, without adding them; `options` as in the constructor."""
        return cls(path, {name: Field.of_rows(array) for name, array in rows.items()}, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return self.count()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # ---- adding and erasing

    def add(self, **fields: ArrayLike) -> None:
        """Add one example.

        Raises:
            StoreError: it does not fit the schema, is not finite, or cannot be written.
        """
        self.add_many(self._packing.one(fields))

    def add_many(self, rows: Rows) -> None:
        """Add examples, all or none; the oldest beyond the caps go.

        What was added outlives this process, however it ends. A power cut may take the last examples along: a sync for
        each would cost milliseconds and wear the flash, for rows that the next few taps replace.

        Raises:
            StoreError: they do not fit the schema, are not finite, or cannot be written.
        """
        packed = self._packing.pack(rows, self._cap)
        with self._file.transaction() as connection:
            cipher, at = self._current(connection), self._clock.now()
            last = self._last(connection)
            # Rows are numbered without a gap: those numbered so much lower are beyond the cap, however many are left.
            # They go first, so that the new ones take their pages.
            if (gone := last + len(packed) - self._cap) > 0:
                connection.execute("DELETE FROM examples WHERE row <= ?", (gone,))
            self._expire(connection)
            connection.executemany(
                "INSERT INTO examples VALUES (?, ?, ?, ?)",
                (
                    (row, at, self.caps.holds_out(row), cipher.seal(row, plain.tobytes()))
                    for row, plain in enumerate(packed, last + 1)
                ),
            )
        self._forget()

    def expire(self) -> None:
        """Erase rows that are too old now; opening, adding, counting and selecting do so too.

        Raises:
            StoreError: they cannot be erased. They are not given out in any case.
        """
        with self._file.transaction() as connection:
            self._expire(connection)
        self._forget()

    def erase(self) -> None:
        """Erase all examples, and the key they were sealed with first; the store is empty then, under a new key.

        A training that goes on meanwhile, in whichever process, ends without a result. However this ends, a power cut
        included, the next to open or use the store completes it.

        Raises:
            StoreError: the file cannot be written. The key was erased all the same, and no row can be read any more.
        """
        try:
            # A store whose key is not named begins anew.
            self._file.write(("DELETE FROM meta WHERE key = 'key'", ()), durable=True)
        except StoreError:
            self._cipher = None
            self._holder.save(ERASED)  # needs no room, and tells the next to open it
            raise
        with self._file.transaction(durable=True) as connection:
            self._current(connection)
        self._file.forget_deleted()

    # ---- reading

    def count(self, *, held_out: bool | None = None) -> int:
        """How many rows there are: those to train on, those held out, or None for all.

        Costs next to nothing, since the agent asks all the time: what was counted last holds until anything is written,
        and while another thread writes.
        """
        if self._file.busy and self._counted.seen is not None:
            return self._counted.of(held_out)
        if self._clock.now() >= self._counted.until:
            try:
                self.expire()
            except StoreError as error:
                log.warning("%s; expired examples stay on the disk, unused", error)
        return self._count().of(held_out)

    def rows(self, *, held_out: bool | None = None, newest: int | None = None) -> StoredRows:
        """The rows there are now, oldest first, none of them in memory.

        Args:
            held_out: only those to train on, only those held out, or None for all.
            newest: that many at most.

        Raises:
            StoreError: they cannot be listed.
        """
        with self._file.transaction() as connection:
            cipher = self._current(connection)
            self._expire(connection)
        self._forget()
        # Not in the transaction: other processes may add meanwhile.
        parts = (0, 1) if held_out is None else (int(held_out),)
        found = [np.fromiter((row for (row,) in self._file.each(_LIST, part)), np.int64) for part in parts]
        numbers = np.sort(np.concatenate(found))
        return StoredRows(self, numbers if newest is None else numbers[-newest:], cipher)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All examples, oldest first, by field; the first dimension is the rows. They are all in memory then."""
        return everything(self.rows())

    def take(self, numbers: NDArray[np.int64], cipher: RowCipher) -> tuple[NDArray[np.bool_], dict[str, NDArray[Any]]]:
        """Rows by their numbers, in this order: which are still there, and the fields of those.

        Raises:
            StoreError: the examples were erased since, or a row is damaged.
        """
        if self._cipher is None or self._file.fact("key") != cipher.check:
            raise StoreError(f"the examples at {self.path} were erased", hint="what was begun with them ends here")
        asked: list[int] = numbers.tolist()
        plain: dict[int, bytes] = {}
        for start in range(0, len(asked), _AT_ONCE):
            some = asked[start : start + _AT_ONCE]
            sql = f"SELECT row, sealed FROM examples WHERE row IN ({','.join('?' * len(some))}) AND at > ?"  # noqa: S608 - question marks
            for row, sealed in self._file.read(sql, *some, self._oldest):
                plain[row] = self._opened(row, sealed, cipher)
        there = [row in plain for row in asked]
        return np.array(there, np.bool_), self._packing.unpack(plain[row] for row in asked if row in plain)

    def _opened(self, row: int, sealed: bytes, cipher: RowCipher) -> bytes:
        opened = cipher.open(row, sealed)
        if opened is None or len(opened) != self._packing.size_bytes:
            raise StoreError(f"example {row} of {self.path} was damaged on the disk", hint=_DAMAGED)
        return opened

    def _count(self) -> _Counted:
        """The cached count, or a new one where anything was written since, by whichever process."""
        ((version,),) = self._file.read("PRAGMA data_version")
        seen = (int(version), self._file.connection.total_changes)
        if seen != self._counted.seen or self._clock.now() >= self._counted.until:
            rows = self._file.read(_COUNT, self._oldest)
            counts = {part: count for part, count, _ in rows}
            oldest = min((at for _, _, at in rows), default=math.inf)
            self._counted = _Counted(seen, (counts.get(0, 0), counts.get(1, 0)), oldest + self.caps.ttl_s)
        return self._counted

    # ---- the file

    def _open(
        self, connection: sqlite3.Connection, schema: Schema | None, given: Mapping[str, Any], key: KeyPlace
    ) -> None:
        """Read what the file says of itself, or write it."""
        found = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        before = dict(found)
        if "schema" not in found:
            if schema is None:
                raise StoreError(f"{self.path} holds no examples' schema", hint="create the store before opening it")
            self.schema, self.caps = dict(schema), Caps(**given)
            found |= {"schema": self._schema_text(), "key_name": new_key_name(key)}
            for table in _TABLES:
                connection.execute(table)
        else:
            self.schema, self.caps = self._read_schema(found)
            self.caps = replace(self.caps, **given)
        if schema is not None and dict(schema) != self.schema:
            raise StoreError(
                f"{self.path} holds examples of {in_words(self.schema)}, not of {in_words(schema)}",
                hint="use another file, or another name, for other examples",
            )
        self._packing = Packing(self.schema)
        self._cap = self.caps.rows_of(self._packing.size_bytes + SEAL_BYTES)
        self._context = hashlib.sha256(found["schema"].encode()).digest()
        self._holder = key_holder(found.get("key_name", ""), self.path)
        found["caps"] = json.dumps(asdict(self.caps))
        if "key" not in found and not self._last(connection) and (left := self._holder.load()) is not None:
            # Of a database that was moved away, whose rows its owner may still want to read.
            found["key"] = RowCipher.of(left, self._context).check
        connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", found.items() - before.items())
        self._current(connection)
        connection.execute("DELETE FROM examples WHERE row <= ?", (self._last(connection) - self._cap,))

    def _current(self, connection: sqlite3.Connection) -> RowCipher:
        """The cipher of the key that the file names; where it names none, all rows go and a new key begins."""
        found = connection.execute("SELECT value FROM meta WHERE key = 'key'").fetchone()
        if self._cipher is not None and found == (self._cipher.check,):
            return self._cipher
        if found is not None and self._holder.load() == ERASED:
            # Noted now, and before there is another key: with one that the store does not name it would be unreadable.
            for sql in ("DELETE FROM examples", "DELETE FROM meta WHERE key = 'key'", "COMMIT", "BEGIN IMMEDIATE"):
                connection.execute(sql)
            found = None
        if found is None:
            key = secrets.token_bytes(KEY_BYTES)
            self._holder.save(key)  # over the old one, before anything else
            cipher = RowCipher.of(key, self._context)
            connection.execute("DELETE FROM examples")
            connection.execute("INSERT INTO meta VALUES ('key', ?)", (cipher.check,))
        else:
            cipher = self._load(str(found[0]))
        self._cipher = cipher
        return cipher

    def _load(self, check: str) -> RowCipher:
        key = self._holder.load()
        if key is None:
            raise StoreError(
                f"the key of the examples at {self.path} is missing from {self._holder}",
                hint=f"restore it; without it nobody can read them: remove {self.path} to begin anew",
            )
        cipher = RowCipher.of(key, self._context)
        if cipher.check != check:
            raise StoreError(
                f"the examples at {self.path} were sealed under another key than that in {self._holder}",
                hint=f"restore the key that belongs to them, or remove {self.path} to begin anew; nothing was changed",
            )
        return cipher

    def _expire(self, connection: sqlite3.Connection) -> None:
        if math.isfinite(self.caps.ttl_days):
            connection.execute("DELETE FROM examples WHERE held_out IN (0, 1) AND at <= ?", (self._oldest,))

    def _forget(self) -> None:
        """Every now and then, take rows that went out of the log of writes."""
        if self._clock.now() >= self._forgotten_at + _FORGET_EVERY_S:
            self._forgotten_at = self._clock.now()
            self._file.forget_deleted()

    @property
    def _oldest(self) -> float:
        """Rows of this time and before are too old."""
        return self._clock.now() - self.caps.ttl_s

    def _last(self, connection: sqlite3.Connection) -> int:
        """The number of the newest row that ever was."""
        found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'examples'").fetchone()
        return int(found[0]) if found else 0

    def _schema_text(self) -> str:
        fields = {name: asdict(field) for name, field in self.schema.items()}
        return json.dumps({"version": SCHEMA_VERSION, "fields": fields})

    def _read_schema(self, found: Mapping[str, str]) -> tuple[dict[str, Field], Caps]:
        try:
            data = json.loads(found["schema"])
            if data["version"] != SCHEMA_VERSION:
                raise StoreError(
                    f"{self.path} has schema version {data['version']}; this SDK reads {SCHEMA_VERSION}",
                    hint="update edge-sdk"
                    if data["version"] > SCHEMA_VERSION
                    else "an earlier edge-sdk wrote it, unencrypted: move it away, and add its examples anew",
                )
            fields = {name: Field(field["dtype"], tuple(field["shape"])) for name, field in data["fields"].items()}
            check_schema(fields)
            return fields, Caps(**json.loads(found["caps"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._file.failed("read the schema of", error) from error


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StoredRows:
    """Rows of a store as they were at one moment: their numbers, and the key they are under. See `Examples`."""

    _store: ExampleStore
    _numbers: NDArray[np.int64]
    _cipher: RowCipher

    def __len__(self) -> int:
        return len(self._numbers)

    def take(self, places: Places) -> tuple[Places, dict[str, NDArray[Any]]]:
        """Those of the rows at these places that are still there, and not too old by now."""
        there, rows = self._store.take(self._numbers[places], self._cipher)
        return places[there], rows


@dataclass(frozen=True, slots=True)
class _Counted:
    """Rows to train on and held out, when the file was last seen to change, and until when none gets too old."""

    seen: tuple[int, int] | None = None
    parts: tuple[int, int] = (0, 0)
    until: float = math.inf

    def of(self, held_out: bool | None) -> int:
        return sum(self.parts) if held_out is None else self.parts[held_out]
