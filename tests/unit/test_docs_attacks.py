"""The tables of attacks and of checks in docs/ name tests, and code, that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"


def rows_of(text: str) -> list[str]:
    """The rows of a text's tables, without their heads."""
    lines = text.splitlines()
    return [line for line, before in zip(lines[1:], lines, strict=False) if line.startswith("| ") and before != ""]


def require_tests(row: str) -> None:
    named = re.findall(r"(test_\w+)::(test_\w+)", row)
    assert named, row
    for file, name in named:
        (path,) = TESTS.rglob(f"{file}.py")
        assert f"def {name}(" in path.read_text(encoding="utf-8"), (file, name)


def test_every_attack_is_played_where_the_table_says() -> None:
    text = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    rows = rows_of(text.split("## What an attacker tries")[1].split("\n## ")[0])
    assert len(rows) >= 15
    for row in rows:
        require_tests(row)


def test_every_check_is_held_where_the_table_says() -> None:
    rows = rows_of((ROOT / "docs" / "checks.md").read_text(encoding="utf-8").split("## Attacks on whole devices")[0])
    assert len(rows) >= 35
    for row in rows:
        require_tests(row)
        _, _, sections, code, _, _ = (cell.strip() for cell in row.split("|"))
        module, name = code.split(":")
        paths = [ROOT / package / f"{module}.py" for package in ("edge_sdk", "coordinator")]
        (path,) = (path for path in paths if path.is_file())
        assert f"def {name}(" in path.read_text(encoding="utf-8"), code
        headings = (ROOT / "edge_sdk/schema/PROTOCOL.md").read_text(encoding="utf-8")
        for section in sections.split(", "):
            assert re.search(rf"^##+ {re.escape(section)} ", headings, re.MULTILINE), section


def test_every_attack_on_whole_devices_was_played_against_the_clients_that_the_table_names() -> None:
    rows = rows_of((ROOT / "docs" / "checks.md").read_text(encoding="utf-8").split("## Attacks on whole devices")[1])
    (clients,) = re.findall(
        r"^CLIENTS.* = \((.*)\)$", (TESTS / "integration/wire.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    named = {}
    for row in rows:
        _, _, _, played, test, _ = (cell.strip() for cell in row.split("|"))
        require_tests(row)
        named[test.removeprefix("test_hostile_wire::")] = played
    tests = (TESTS / "integration/test_hostile_wire.py").read_text(encoding="utf-8")
    # Each of them runs against every client, by the fixture or by its own parameter.
    defined = re.findall(r"^def (test_\w+)\((?:stand: Stand|client: Client)", tests, re.MULTILINE)
    assert defined == re.findall(r"^def (test_\w+)", tests, re.MULTILINE)
    assert named == dict.fromkeys(defined, clients.replace('"', ""))
    assert "params=CLIENTS" in tests
    assert tests.count('("client", CLIENTS)') == tests.count("(client: Client, tmp_path")
