"""The document on accounting holds the tables that calibration and accounting give today."""

from __future__ import annotations

from pathlib import Path

from benchmarks.epsilon_tables import BEGIN, END, tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "accounting.md"


def test_the_document_holds_the_tables_of_today() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    found = text.partition(BEGIN)[2].partition(END)[0]
    assert found.strip() == tables(), "python -m benchmarks.epsilon_tables --write docs/accounting.md"
