"""One-time tokens for enrolment: whoever shows one gets one certificate.

Only a token's SHA-256 is kept, with what it gave: a device that lost the answer asks again with the same key and gets
the same certificate; another key gets nothing.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from edge_sdk.errors import IdentityError, StoreError
from edge_sdk.sqlite_file import SqliteFile

TOKENS_FILE: Final = "tokens.sqlite"
_TOKEN_BYTES: Final = 24
_IF_DAMAGED: Final = f"move {TOKENS_FILE} away and make new tokens: those that were handed out are lost"

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS tokens (
    sha256 BLOB PRIMARY KEY, id TEXT NOT NULL, expires_at REAL NOT NULL, key_sha256 TEXT, certificate BLOB
)
"""


def make_tokens(folder: Path, count: int, *, expires_at: float, identity_id: str = "") -> list[str]:
    """Make tokens, for any id or for one.

    Raises:
        IdentityError: they cannot be written.
    """
    tokens = [secrets.token_urlsafe(_TOKEN_BYTES) for _ in range(count)]
    insert = "INSERT INTO tokens (sha256, id, expires_at) VALUES (?, ?, ?)"
    with _writing(folder) as connection:
        connection.executemany(insert, [(_digest(token), identity_id, expires_at) for token in tokens])
    return tokens


def redeem(
    folder: Path, token: str, *, identity_id: str, key_sha256: str, now: float, issue: Callable[[], bytes]
) -> bytes:
    """Spend a token: what `issue` gives, or what it gave when the same key spent it before.

    Args:
        folder: the registrar's.
        token: as the device shows it.
        identity_id: the id asked for.
        key_sha256: of the key asked for, hexadecimal.
        now: seconds since the epoch.
        issue: makes the certificate; the token is spent only if it does.

    Raises:
        IdentityError: the token is unknown, expired, spent by another key, or for another id; or the tokens cannot be
            read or written.
    """
    with _writing(folder) as connection:
        row = connection.execute(
            "SELECT id, expires_at, key_sha256, certificate FROM tokens WHERE sha256 = ?", (_digest(token),)
        ).fetchone()
        # One answer for all of these: whoever guesses learns nothing.
        refused = IdentityError(
            "the enrolment token is unknown, expired, already used, or for another id",
            hint="ask the fleet's operator for a new one",
        )
        if row is None:
            raise refused
        bound_id, expires_at, spent_by, certificate = row
        if spent_by == key_sha256:
            return bytes(certificate)
        if spent_by is not None or now > expires_at or bound_id not in ("", identity_id):
            raise refused
        made = issue()
        connection.execute(
            "UPDATE tokens SET key_sha256 = ?, certificate = ? WHERE sha256 = ?", (key_sha256, made, _digest(token))
        )
        return made


@contextmanager
def _writing(folder: Path) -> Iterator[sqlite3.Connection]:
    """One durable transaction on the tokens.

    Raises:
        IdentityError: they cannot be opened or written.
    """
    try:
        file = SqliteFile(folder / TOKENS_FILE, "the enrolment tokens", if_damaged=_IF_DAMAGED)
        with closing(file), file.transaction(durable=True) as connection:
            connection.execute(_TABLE)
            yield connection
    except StoreError as error:
        raise IdentityError(str(error), hint=error.hint) from error


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
