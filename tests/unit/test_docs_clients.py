"""Whoever writes another client is told of every golden file."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("document", ["docs/clients.md", "edge_sdk/schema/PROTOCOL.md"])
def test_every_golden_file_is_named(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    names = sorted(path.name for path in (ROOT / "tests" / "vectors").glob("*.json"))
    assert names
    assert [name for name in names if f"`{name}`" not in text] == []
