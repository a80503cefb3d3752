"""The table of attacks in docs/privacy.md names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent.parent


def test_every_attack_is_played_where_the_table_says() -> None:
    text = (TESTS.parent / "docs" / "privacy.md").read_text(encoding="utf-8")
    table = text.split("## What an attacker tries")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "played in" not in line]
    assert len(rows) >= 15
    for row in rows:
        named = re.findall(r"(test_\w+)::(test_\w+)", row)
        assert named, row
        for file, name in named:
            (path,) = TESTS.rglob(f"{file}.py")
            assert f"def {name}(" in path.read_text(encoding="utf-8"), (file, name)
