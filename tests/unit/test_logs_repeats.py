"""The log of a command: what is said again and again is said once."""

from __future__ import annotations

import logging

from edge_sdk.logs import REPEAT_AFTER_S, unrepeated


def record(text: str, at: float) -> logging.LogRecord:
    made = logging.LogRecord("edge.device", logging.INFO, "", 0, "%s", (text,), None)
    made.created = at
    return made


def test_a_line_is_said_again_only_after_a_while() -> None:
    fresh = unrepeated()
    assert fresh(record("refused", 100.0))
    assert not fresh(record("refused", 101.0))
    assert fresh(record("left round 1", 101.0))
    assert not fresh(record("refused", 99.0 + REPEAT_AFTER_S))
    assert fresh(record("refused", 100.0 + REPEAT_AFTER_S))


def test_what_is_remembered_is_bounded() -> None:
    fresh = unrepeated()
    for number in range(10_000):
        assert fresh(record(f"refused {number}", 100.0))
    assert fresh(record("refused 0", 100.0))
