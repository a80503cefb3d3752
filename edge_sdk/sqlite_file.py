"""One SQLite file of a device or a registrar: how it is opened, read and written, and what its failures are called.

Knows no table but `meta`, in which each file keeps small facts about itself. sqlite3's exceptions end here.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from edge_sdk.errors import StoreError

Statement: TypeAlias = tuple[str, tuple[object, ...]]

FAILURES = (sqlite3.Error, UnicodeDecodeError)
"""What SQLite's module raises, the second over the names of a damaged file."""

_PRAGMAS = ("busy_timeout=10000", "journal_mode=WAL", "secure_delete=ON")
_META = "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)"


class SqliteFile:
    """An open file. Threads and processes may share it; transactions wait for each other.

    Args:
        path: created with mode 0600 where missing, as is its folder.
        what: how errors call it, such as "the device's store".
        if_damaged: the hint where the file is no longer a database.

    Attributes:
        connection: for statements inside `transaction`.

    Raises:
        StoreError: it cannot be opened.
    """

    def __init__(self, path: Path, what: str, *, if_damaged: str) -> None:
        self._path = path
        self._what = what
        self._if_damaged = if_damaged
        self._lock = threading.RLock()
        self._durable: bool | None = None  # how the connection syncs now
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600, exist_ok=True)
            self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except (OSError, *FAILURES) as error:
            raise self.failed("open", error) from error
        try:
            for pragma in _PRAGMAS:
                self.connection.execute(f"PRAGMA {pragma}")
            self.connection.execute(_META)
        except FAILURES as error:
            self.close()
            raise self.failed("open", error) from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self.connection.close()

    @property
    def busy(self) -> bool:
        """Whether another thread is in a transaction, which may take a while."""
        free = self._lock.acquire(blocking=False)
        if free:
            self._lock.release()
        return not free

    def fact(self, key: str) -> str | None:
        """A small fact of the file, or None.

        Raises:
            StoreError: it cannot be read.
        """
        rows = self.read("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    def read(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows of a query.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            with self._lock:
                return self.connection.execute(sql, values).fetchall()
        except FAILURES as error:
            raise self.failed("read", error) from error

    def each(self, sql: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """The rows of a query one by one, for what would not fit into memory; other threads wait for the last.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            with self._lock:
                yield from self.connection.execute(sql, values)
        except FAILURES as error:
            raise self.failed("read", error) from error

    def write(self, *statements: Statement, durable: bool = False) -> None:
        """Carry all statements out in one transaction, or none of them; see `transaction`.

        Raises:
            StoreError: it cannot be written.
        """
        with self.transaction(durable=durable) as connection:
            for sql, values in statements:
                connection.execute(sql, values)

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Everything in the `with` block happens, or nothing of it.

        What was written outlives this process in any case, and a power cut if `durable`: without the sync a power cut
        may undo the last transactions, but never tear or reorder them.

        Raises:
            StoreError: it cannot be written.
        """
        # A transaction is one thread's at a time.
        with self._lock:
            try:
                if durable != self._durable:
                    self.connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                    self._durable = durable
                self.connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self.connection
                    self.connection.execute("COMMIT")
                except BaseException:
                    if self.connection.in_transaction:
                        self.connection.execute("ROLLBACK")
                    raise
            except FAILURES as error:
                raise self.failed("write", error) from error

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Queries in the `with` block see the file as it is at one moment.

        Raises:
            StoreError: it cannot be read.
        """
        with self._lock:
            try:
                self.connection.execute("BEGIN")
                try:
                    yield self.connection
                finally:
                    self.connection.execute("COMMIT")
            except FAILURES as error:
                raise self.failed("read", error) from error

    def forget_deleted(self) -> None:
        """Take what was deleted out of the log of writes too, where it still stands.

        Raises:
            StoreError: it cannot be written.
        """
        self.read("PRAGMA wal_checkpoint(TRUNCATE)")

    def require_whole(self) -> None:
        """Read all of the file, and see that it is one.

        Raises:
            StoreError: it is damaged.
        """
        ((told,),) = self.read("PRAGMA integrity_check(1)")
        if told != "ok":
            raise self.failed("use", ValueError(f"it is damaged: {told}"))

    def failed(self, what: str, error: Exception) -> StoreError:
        """The error to raise where something failed: "cannot WHAT ..."."""
        text = str(error)
        if is_damage(text):
            hint = self._if_damaged
        elif "locked" in text:
            hint = "another process has been writing to it for long: end that one"
        else:
            hint = "check the disk's free space and the folder's permissions; what it held is as it was"
        return StoreError(f"cannot {what} {self._what} {self._path}: {error}", hint=hint)


def is_damage(text: str) -> bool:
    """Whether an error's text says that the file is no longer what it was; a full disk says so of no file."""
    return any(word in text for word in ("not a database", "malformed", "decode", "is damaged"))
