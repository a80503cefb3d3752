"""What a device must not forget, in one SQLite file: the open round's journal, the rounds it left, its own ledger.

The journal holds each accepted event of the open round with the entropy of its step, so that a restart folds to the
same secrets and never to others; when the round ends it is erased from the file and from SQLite's log of writes. Ids of
rounds that ended stay, so that no round is joined twice. Foreign exceptions end here as StoreError.
"""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import astuple, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edge_sdk.errors import StoreError
from edge_sdk.privacy.accounting import Release
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.privacy.subsampled import Sampling
from edge_sdk.protocol.policy import Spending
from edge_sdk.sqlite_file import SqliteFile, Statement

SCHEMA_VERSION = 3

BEGUN_SUFFIX = ".begun"
"""Of an empty file beside the store, which says that there is one."""

_TRAFFIC_DAYS = 31
_DAMAGED = "the file is damaged: restore it from a backup; a new one forgets what this device already spent"

_TABLES = (
    """CREATE TABLE IF NOT EXISTS journal (
    position INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL,
    payload BLOB NOT NULL, entropy BLOB NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS ended (
    rid BLOB PRIMARY KEY, at REAL NOT NULL, committed INTEGER NOT NULL, detail TEXT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS ledger (
    rid BLOB PRIMARY KEY, task TEXT NOT NULL, round_number INTEGER NOT NULL, at REAL NOT NULL,
    epsilon REAL NOT NULL, delta REAL NOT NULL, sent_bytes INTEGER NOT NULL, sent_sha256 BLOB NOT NULL,
    mechanism INTEGER NOT NULL, norm_bound REAL NOT NULL, length INTEGER NOT NULL,
    device_variance INTEGER NOT NULL, honest INTEGER NOT NULL, purpose TEXT NOT NULL DEFAULT '')""",
    """CREATE TABLE IF NOT EXISTS example_ledger (
    rid BLOB PRIMARY KEY, noise_multiplier REAL NOT NULL, rate REAL NOT NULL, steps INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS traffic (
    day INTEGER PRIMARY KEY, received_bytes INTEGER NOT NULL, sent_bytes INTEGER NOT NULL)""",
)
_UPGRADES: dict[str, tuple[str, ...]] = {
    "1": ("ALTER TABLE ledger ADD COLUMN purpose TEXT NOT NULL DEFAULT ''",),
    "2": (),  # and the ledgers' digest
}
"""What makes a file of a version one of the next, beside the tables that it lacks."""

_LEDGERS = ("SELECT * FROM ledger ORDER BY rid", "SELECT * FROM example_ledger ORDER BY rid")
_DIGEST = "ledger_sha256"
"""Of all that was spent. SQLite notices pages that are torn, and not numbers in them that were changed."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One accepted event of the open round."""

    position: int
    at: float
    kind: str
    payload: bytes = field(repr=False)
    entropy: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Participation:
    """One masked input that left this device, and what the task has cost by then.

    Attributes:
        rid, task, round_number: which round.
        at: seconds since the epoch.
        epsilon, delta: spent on the task up to and with this participation, by the device's own accounting.
        sent_bytes, sent_sha256: the masked vector, which says nothing of the update.
        release: the noised sum that the update may have gone into.
        purpose: what the owner had agreed to then; empty where nobody was asked.
    """

    rid: bytes
    task: str
    round_number: int
    at: float
    epsilon: float
    delta: float
    sent_bytes: int
    sent_sha256: bytes
    release: Release
    purpose: str = ""


class DeviceStore:
    """The device's file.

    Args:
        path: created with mode 0600 where missing.

    Raises:
        StoreError: it cannot be opened, is gone or empty though it was there, or another version of the SDK wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = SqliteFile(path, "the device's store", if_damaged=_DAMAGED)
        self._read, self._write = self._file.read, self._file.write
        try:
            self._prepare()
        except StoreError:
            self._file.close()
            raise

    def _prepare(self) -> None:
        self._file.require_whole()
        found = self.get("schema")
        while found in _UPGRADES:
            newer = str(int(found) + 1)
            steps = (*_TABLES, *_UPGRADES[found])
            self._spend(*((step, ()) for step in steps), ("INSERT OR REPLACE INTO meta VALUES ('schema', ?)", (newer,)))
            found = newer
        if found is not None and found != str(SCHEMA_VERSION):
            raise StoreError(
                f"{self._path} has schema {found}; this version of edge-sdk reads {SCHEMA_VERSION}",
                hint="update edge-sdk, or let the device begin anew in another folder",
            )
        if found is None:
            require_ledger(self._path)
            begun = ("INSERT INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
            self._spend(*((table, ()) for table in _TABLES), begun)
        self._require_ledgers()
        self._mark()

    def _spend(self, *statements: Statement, durable: bool = True) -> None:
        """Write what changes the ledgers."""
        with self._file.transaction(durable=durable) as connection:
            for sql, values in statements:
                connection.execute(sql, values)
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_DIGEST, _digest(connection)))

    def _require_ledgers(self) -> None:
        with self._file.snapshot() as connection:
            kept = connection.execute("SELECT value FROM meta WHERE key = ?", (_DIGEST,)).fetchone()
            if kept != (_digest(connection),):
                raise self._file.failed("use", ValueError("it is damaged: the ledger is not as it was written"))

    def _mark(self) -> None:
        marker = _marker(self._path)
        try:
            if not marker.exists():
                marker.touch(mode=0o600)
        except OSError as error:
            raise self._file.failed("open", error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # ---- small facts

    def get(self, key: str) -> str | None:
        """A stored text, or None."""
        return self._file.fact(key)

    def drop(self, key: str) -> None:
        """Forget a stored text."""
        self._write(("DELETE FROM meta WHERE key = ?", (key,)), durable=True)

    def facts(self, prefix: str) -> dict[str, str]:
        """The stored texts whose keys begin so, by the rest of their keys."""
        rows = self._read("SELECT key, value FROM meta WHERE substr(key, 1, ?) = ? ORDER BY key", len(prefix), prefix)
        return {str(key)[len(prefix) :]: str(value) for key, value in rows}

    def number(self, key: str) -> int:
        """A stored number; 0 where there is none.

        Raises:
            StoreError: what is stored is no number.
        """
        text = self.get(key)
        try:
            return int(text or 0)
        except ValueError as error:
            raise _unreadable(key, text) from error

    def content(self, key: str) -> bytes | None:
        """Bytes stored as hexadecimal, or None.

        Raises:
            StoreError: what is stored is not hexadecimal.
        """
        text = self.get(key)
        try:
            return None if text is None else bytes.fromhex(text)
        except ValueError as error:
            raise _unreadable(key, text) from error

    def put(self, key: str, value: str, *, durable: bool = False) -> None:
        """Store a text; `durable` if it must outlive a power cut, and not only this process."""
        self._write(("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value)), durable=durable)

    # ---- the open round

    def append(self, entry: JournalEntry, participation: Participation | None = None, *, durable: bool = True) -> None:
        """Keep an event before its effects are carried out, with what it cost if it cost something.

        Args:
            entry: the event.
            participation: for the ledger, in the same transaction.
            durable: it must outlive a power cut, and not only this process.
        """
        statements: list[Statement] = [
            (
                "INSERT INTO journal VALUES (?, ?, ?, ?, ?)",
                (entry.position, entry.at, entry.kind, entry.payload, entry.entropy),
            )
        ]
        if participation is not None:
            p = participation
            values = (p.rid, p.task, p.round_number, p.at, p.epsilon, p.delta, p.sent_bytes, p.sent_sha256)
            statements.append(
                (
                    "INSERT OR IGNORE INTO ledger VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                    (*values, *astuple(p.release), p.purpose),
                )
            )
            self._spend(*statements, durable=durable)
        else:
            self._write(*statements, durable=durable)

    def journal(self) -> list[JournalEntry]:
        """The open round's events in order; empty where no round is open."""
        rows = self._read("SELECT position, at, kind, payload, entropy FROM journal ORDER BY position")
        return [JournalEntry(*row) for row in rows]

    def end_round(self, rid: bytes, at: float, *, committed: bool, detail: str) -> None:
        """Burn the round's id and erase its journal, secrets and update included."""
        self._write(
            ("INSERT OR IGNORE INTO ended VALUES (?, ?, ?, ?)", (rid, at, int(committed), detail)),
            ("DELETE FROM journal", ()),
        )
        self._file.forget_deleted()

    def has_ended(self, rid: bytes) -> bool:
        """Whether this device already left that round, or gave it what it gives once."""
        return bool(self._read("SELECT 1 FROM ended WHERE rid = ? UNION SELECT 1 FROM ledger WHERE rid = ?", rid, rid))

    # ---- the ledger

    def participations(self, task: str | None = None) -> list[Participation]:
        """What this device took part in, oldest first."""
        rows = self._read("SELECT * FROM ledger WHERE ? IS NULL OR task = ? ORDER BY at, rowid", task, task)
        return [Participation(*row[:8], self._release(row[8:13]), row[13]) for row in rows]  # type: ignore[call-arg]

    def outcomes(self) -> dict[bytes, str]:
        """How each round that ended did, in words, by its id."""
        return dict(self._read("SELECT rid, detail FROM ended"))

    def spending(self, task: str) -> Spending:
        """How often this device took part in a task, and all that left it for any."""
        rows = self._read(
            "SELECT mechanism, norm_bound, length, device_variance, honest, count(*) FROM ledger "
            "GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5"
        )
        count = self._read("SELECT count(*) FROM ledger WHERE task = ?", task)[0][0]
        return Spending(count, tuple((self._release(row[:-1]), row[-1]) for row in rows))

    def count_examples(self, rid: bytes, sampling: Sampling) -> None:
        """Keep what a round's training releases of each example, before anything of it can leave.

        A training that ended and was lost with its process is replaced by the one that was made instead.
        """
        values = (rid, sampling.noise_multiplier, sampling.rate, sampling.steps)
        self._spend(("INSERT OR REPLACE INTO example_ledger VALUES (?, ?, ?, ?)", values))

    def samplings(self) -> tuple[Sampling, ...]:
        """What was released of the device's examples by training with noise for each, whatever the task."""
        rows = self._read("SELECT noise_multiplier, rate, sum(steps) FROM example_ledger GROUP BY 1, 2 ORDER BY 1, 2")
        return tuple(Sampling(*row) for row in rows)

    def strip(self) -> None:
        """Erase all that tells what this device did when, and its open round.

        Of the ledger stays what each task was given and what that cost, without round, time, size, digest or purpose:
        budgets are of a device's whole life. What was heard and served of models stays too.
        """
        self._spend(
            ("DELETE FROM journal", ()),
            ("DELETE FROM ended", ()),
            ("DELETE FROM traffic", ()),
            (
                "UPDATE ledger SET rid = randomblob(16), round_number = 0, at = 0, sent_bytes = 0, sent_sha256 = x'', "
                "purpose = ''",
                (),
            ),
            ("UPDATE example_ledger SET rid = randomblob(16)", ()),
            ("DELETE FROM meta WHERE substr(key, 1, 5) IN ('coord', 'task/', 'blobs')", ()),
        )
        self._file.forget_deleted()

    def _release(self, values: tuple[Any, ...]) -> Release:
        mechanism, *rest = values
        try:
            return Release(Mechanism(mechanism), *rest)
        except ValueError as error:
            raise self._file.failed("read", ValueError(f"it is damaged: {error}")) from error

    # ---- traffic

    def count_traffic(self, day: int, received_bytes: int, sent_bytes: int) -> None:
        """Add to what was received and sent on a day, counted from the epoch; days long past are forgotten."""
        self._write(
            (
                "INSERT INTO traffic VALUES (?, ?, ?) ON CONFLICT (day) DO UPDATE SET "
                "received_bytes = received_bytes + excluded.received_bytes, "
                "sent_bytes = sent_bytes + excluded.sent_bytes",
                (day, received_bytes, sent_bytes),
            ),
            ("DELETE FROM traffic WHERE day < ?", (day - _TRAFFIC_DAYS,)),
        )

    def traffic(self, day: int) -> tuple[int, int]:
        """Bytes received and sent on a day."""
        rows = self._read("SELECT received_bytes, sent_bytes FROM traffic WHERE day = ?", day)
        return (int(rows[0][0]), int(rows[0][1])) if rows else (0, 0)


def _digest(connection: sqlite3.Connection) -> str:
    digest = hashlib.sha256()
    for sql in _LEDGERS:
        for row in connection.execute(sql):
            digest.update(repr(row).encode())
    return digest.hexdigest()


def require_ledger(path: Path) -> None:
    """Refuse to begin a store anew where there was one: it would forget what its device spent.

    Raises:
        StoreError: there was one.
    """
    if _marker(path).exists():
        raise StoreError(
            f"{path} has gone or was emptied, and with it the record of what this device spent",
            hint="restore it from a backup; without one: edge device purge, and enrol anew as another device",
        )


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}{BEGUN_SUFFIX}")


def _unreadable(key: str, text: str | None) -> StoreError:
    return StoreError(
        f"{key} in the device's store cannot be read: {text!r:.80}",
        hint="the file is damaged: restore it from a backup; a new one would forget what was already spent",
    )
