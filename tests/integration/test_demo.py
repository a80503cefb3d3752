"""The main job in a short form: real processes, real dropouts, a killed process and a killed coordinator."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

SHORT = ["--devices", "20", "--rounds", "3"]
LIMIT_S = 120


def demo(work: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edge_sdk.cli", "demo", "--work", str(work), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def rounds_of(work: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((work / "report.json").read_text())["rounds"]
    return found


def left_behind(work: Path) -> list[psutil.Process]:
    """Processes whose command line names the work folder, and that do not end within 5 seconds."""
    found = [p for p in psutil.process_iter(["cmdline"]) if any(str(work) in part for part in p.info["cmdline"] or ())]
    _, alive = psutil.wait_procs(found, timeout=5)
    return list(alive)


def test_a_short_demo_survives_its_kills_and_reports(tmp_path: Path) -> None:
    work = tmp_path / "demo"
    with demo(work, *SHORT) as process:
        out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, out
    assert "devices was killed, and started again" in out
    assert "the coordinator was killed" in out
    rounds = rounds_of(work)
    assert [r["number"] for r in rounds if r["phase"] == "committed"] == [1, 2, 3]
    assert all(0 < float(str(r["epsilon"])) <= 8.0 for r in rounds if r["phase"] == "committed")
    assert (work / "demo.png").read_bytes().startswith(b"\x89PNG")
    with (work / "what-left-the-devices.csv").open() as file:
        sent = list(csv.DictReader(file))
    # Every report in a sum is in some device's own ledger, and nothing left twice for one round.
    assert len(sent) >= sum(int(str(r["reported"])) for r in rounds)
    assert len({(row["device"], row["round"], row["sha256"]) for row in sent}) == len(sent)
    assert not left_behind(work)


@pytest.mark.parametrize(
    ("said", "number"),
    [("exporting", signal.SIGTERM), ("noise: epsilon", signal.SIGKILL), ("noise: epsilon", signal.SIGHUP)],
    ids=["told to stop while preparing", "killed while running", "its terminal closed"],
)
def test_a_demo_that_ends_takes_all_of_its_processes_along(tmp_path: Path, said: str, number: signal.Signals) -> None:
    work = tmp_path / "demo"
    with demo(work, *SHORT) as process:
        assert process.stdout is not None
        for text in process.stdout:
            if said in text:
                process.send_signal(number)
                break
        rest = process.communicate(timeout=30)[0]
    assert process.returncode == (-number if number == signal.SIGKILL else 130), rest
    assert not left_behind(work)


def test_ctrl_c_stops_everything_and_resume_goes_on(tmp_path: Path) -> None:
    work = tmp_path / "demo"
    with demo(work, *SHORT, "--no-kills") as process:
        assert process.stdout is not None
        for text in process.stdout:
            if "round 1 of 3" in text:
                process.send_signal(signal.SIGINT)
                break
        rest = process.communicate(timeout=30)[0]
    assert process.returncode == 130, rest
    assert "--resume" in rest
    assert not left_behind(work)

    with demo(work, "--resume") as process:
        out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, out
    assert [r["number"] for r in rounds_of(work) if r["phase"] == "committed"] == [1, 2, 3]
    assert not left_behind(work)
