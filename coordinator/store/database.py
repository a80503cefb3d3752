"""The database as one function: run this in a transaction.

Knows nothing of rounds. Foreign exceptions end here as StoreError with a remedy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from coordinator.store.tables import SCHEMA_VERSION, meta, metadata
from edge_sdk.errors import StoreError

T = TypeVar("T")

_ATTEMPTS = 5
_BACKOFF_S = 0.05


class Database:
    """A connection pool and `run_tx`.

    Args:
        url: an SQLAlchemy URL.

    Raises:
        StoreError: it cannot be opened or created, or was written by another schema version.
    """

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url)
        # Without its password, if it has one.
        self._name = self._engine.url.database or self._engine.url.render_as_string()
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _configure_sqlite)
        self.run_tx("open", _create)

    @staticmethod
    def in_folder(folder: Path) -> Database:
        """The default: an SQLite file in a work folder."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot create {folder}: {error.strerror}", hint="name a folder that this user may write"
            ) from error
        return Database(f"sqlite:///{folder / 'coordinator.sqlite'}")

    def run_tx(self, name: str, work: Callable[[sa.Connection], T], *, retryable: bool = True) -> T:
        """Run `work` in one transaction: all of it is durable when this returns, or none of it happened.

        Args:
            name: what is being done, for the error.
            work: reads and writes through the connection; called again from the start after a conflict.
            retryable: whether a conflict with another writer is worth another attempt.

        Raises:
            StoreError: the database cannot do it.
        """
        for attempt in range(_ATTEMPTS):
            try:
                with self._engine.begin() as connection:
                    return work(connection)
            except OperationalError as error:
                if not retryable or attempt + 1 == _ATTEMPTS or not _is_conflict(error):
                    raise self._failed(name, error) from error
                time.sleep(_BACKOFF_S * 2**attempt)
            except SQLAlchemyError as error:
                raise self._failed(name, error) from error
        raise AssertionError("unreachable")

    def _failed(self, name: str, error: SQLAlchemyError) -> StoreError:
        cause = str(getattr(error, "orig", None) or error)
        return StoreError(f"the store {self._name} could not {name}: {cause}", hint=_remedy(cause))

    def close(self) -> None:
        """Give back all connections."""
        self._engine.dispose()


def _configure_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _create(connection: sa.Connection) -> None:
    meta.create(connection, checkfirst=True)
    found = connection.execute(sa.select(meta.c.value).where(meta.c.key == "schema")).scalar()
    if found is None:
        connection.execute(meta.insert().values(key="schema", value=str(SCHEMA_VERSION)))
    elif found != str(SCHEMA_VERSION):
        raise StoreError(
            f"the coordinator's store has schema {found}; this version of edge-sdk reads {SCHEMA_VERSION}",
            hint="use the version that wrote it, or another work folder",
        )
    metadata.create_all(connection)  # also tables that an older release of the same schema did not have


def _is_conflict(error: DBAPIError) -> bool:
    text = str(error.orig).lower()
    return "locked" in text or "serialize" in text or "deadlock" in text


def _remedy(cause: str) -> str:
    if "readonly" in cause or "read-only" in cause:
        return "make the work folder writable or name another one"
    if "full" in cause:
        return "free some disk space; the coordinator resumes where it stopped"
    if "unable to open" in cause:
        return "check that the work folder exists and that this user may write it"
    if "not a database" in cause or "malformed" in cause:
        return "the file is damaged: restore the work folder from a backup, or name another one"
    if "locked" in cause:
        return "another process holds it for long: stop that one, or try again"
    return "check the disk; once it works again the coordinator resumes where it stopped"
