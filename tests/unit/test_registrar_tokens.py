"""Enrolment tokens on the registrar's disk: a batch at once, one certificate each, and failures in words."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.registrar.tokens import TOKENS_FILE, make_tokens, redeem
from edge_sdk.errors import IdentityError, TrainingError


def spend(folder: Path, token: str, key: str = "aa", *, gives: bytes = b"certificate", now: float = 50.0) -> bytes:
    return redeem(folder, token, identity_id="d1", key_sha256=key, now=now, issue=lambda: gives)


def test_a_token_gives_one_certificate_to_one_key(tmp_path: Path) -> None:
    first, second = make_tokens(tmp_path, 2, expires_at=100.0)
    assert spend(tmp_path, first) == b"certificate"
    assert spend(tmp_path, first, gives=b"another") == b"certificate"  # its answer was lost
    for token, key, now in ((first, "bb", 50.0), (second, "aa", 100.5), ("guessed", "aa", 50.0)):
        with pytest.raises(IdentityError, match="unknown, expired, already used, or for another id"):
            spend(tmp_path, token, key, now=now)
    assert spend(tmp_path, second, "bb") == b"certificate"


def test_only_hashes_are_kept_and_for_the_owner_only(tmp_path: Path) -> None:
    (token,) = make_tokens(tmp_path, 1, expires_at=100.0)
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.encode() not in held
    assert stat.S_IMODE((tmp_path / TOKENS_FILE).stat().st_mode) == 0o600


def test_a_token_is_not_spent_by_a_certificate_that_was_not_made(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise TrainingError("no")

    (token,) = make_tokens(tmp_path, 1, expires_at=100.0)
    with pytest.raises(TrainingError):
        redeem(tmp_path, token, identity_id="d1", key_sha256="aa", now=50.0, issue=fail)
    assert spend(tmp_path, token, "bb") == b"certificate"


def test_a_batch_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    make_tokens(tmp_path, 1, expires_at=100.0)
    with closing(sqlite3.connect(tmp_path / TOKENS_FILE)) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON tokens WHEN (SELECT count(*) FROM tokens) >= 3 "
            "BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
        )
        with pytest.raises(IdentityError, match=r"cannot write the enrolment tokens .*: database or disk is full"):
            make_tokens(tmp_path, 5, expires_at=100.0)
        assert connection.execute("SELECT count(*) FROM tokens").fetchone() == (1,)


def test_a_damaged_file_is_said_with_what_is_lost(tmp_path: Path) -> None:
    (tmp_path / TOKENS_FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(IdentityError, match="cannot open the enrolment tokens") as caught:
        spend(tmp_path, "any")
    assert "make new tokens" in caught.value.hint
