"""A federation of separate processes, as in the README, of which some are killed in the middle of a round."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from coordinator.service.tasks import RoundView, list_rounds
from coordinator.store.database import Database
from device_sim.fleet import FleetFolders, device_ids
from device_sim.host import HostSettings
from device_sim.script import Vanish
from edge_sdk.cli import main
from tests.integration.commands import Command, until
from tests.shared import free_port

DEVICES = device_ids(5)
ROUNDS = 2


@pytest.fixture
def folders(tmp_path: Path) -> FleetFolders:
    """A prepared fleet of five, and a bundle."""
    made = FleetFolders(tmp_path / "hand")
    assert main(["sim", "prepare", "--devices", str(len(DEVICES)), "--work", str(made.work)]) == 0
    assert main(["export", "--signer", str(made.signer_key), "--out", str(made.bundle)]) == 0
    return made


def create_run(folders: FleetFolders, options: str) -> None:
    """Make a run without noise; none of its stages closes early where one device of five is missing."""
    signed = f"--bundle {folders.bundle} --signer {folders.signer_public}"
    create = f"run create digits --home {folders.coordinator} {signed} --min-reports 3 --epsilon off {options}"
    assert main(create.split()) == 0


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def coordinator(folders: FleetFolders, port: int) -> Command:
    return Command("coordinator", "serve", "--home", folders.coordinator, "--port", str(port))


def device(folders: FleetFolders, device_id: str, port: int) -> Command:
    options = (
        "--broker",
        f"mqtt://127.0.0.1:{port}",
        "--population",
        "digits",
        "--min-reports",
        "3",
        "--consent",
        "digits",
    )
    return Command("device", "run", "--home", folders.device(device_id), *options, "--epsilon", "any", "--until-done")


def vanishing(folders: FleetFolders, device_id: str, port: int) -> Command:
    """A device that takes part in the first round up to its keys, and then neither sends nor hears."""
    settings = HostSettings(
        homes=(str(folders.device(device_id)),),
        broker=f"mqtt://127.0.0.1:{port}",
        population="digits",
        min_reports=3,
        epsilon_at_most=float("inf"),
        resend_s=3.0,
        faults=(Vanish(device_id, 1, "advertise_keys"),),
    )
    path = folders.work / "vanishing.json"
    path.write_text(settings.to_json(), encoding="utf-8")
    return Command(path, module="device_sim.host")


def test_who_is_killed_in_a_round_resumes_it(folders: FleetFolders, running: ExitStack) -> None:
    create_run(folders, f"--devices 5 --rounds {ROUNDS} --evaluation {folders.evaluation}")
    database = Database.in_folder(folders.coordinator)
    running.callback(database.close)

    def newest() -> RoundView:
        return list_rounds(database, "digits")[-1]

    port = free_port()
    serving = running.enter_context(coordinator(folders, port))
    assert f"127.0.0.1:{port}" in serving.wait_for("Ctrl-C stops it")
    steady = {name: running.enter_context(device(folders, name, port)) for name in DEVICES[:4]}
    lost = running.enter_context(vanishing(folders, DEVICES[4], port))
    # The round stands still there: a fifth of the keys is missing.
    until(lambda: bool(list_rounds(database, "digits")) and newest().advertised == 4)
    opened_at = newest().opened_at

    # A folder is one process's at a time.
    for second in (coordinator(folders, free_port()), device(folders, DEVICES[0], port)):
        with second:
            assert second.finish() == 2
            assert "is in use by another process" in second.said[0]
    assert main(["device", "status", "--home", str(folders.device(DEVICES[0]))]) == 0

    # Killed: the coordinator with its broker, a device, and the one that vanished. Asked to stop: two more.
    serving.kill()
    steady[DEVICES[0]].kill()
    lost.kill()
    for name, number in ((DEVICES[1], signal.SIGINT), (DEVICES[2], signal.SIGTERM)):
        steady[name].send(number)
        assert steady[name].finish(30) == 0
        assert not any("Traceback" in line for line in steady[name].said)
    serving = running.enter_context(coordinator(folders, port))
    back = [running.enter_context(device(folders, name, port)) for name in (*DEVICES[:3], DEVICES[4])]

    for command in (*back, steady[DEVICES[3]]):
        assert command.finish() == 0
        assert f"model version {ROUNDS + 1}" in "\n".join(command.said)
    serving.wait_for("digits is complete")
    rounds = list_rounds(database, "digits")
    assert [(view.number, view.phase, view.reported) for view in rounds] == [(1, "committed", 5), (2, "committed", 5)]
    assert rounds[0].opened_at == opened_at
    serving.send(signal.SIGINT)
    assert serving.finish(30) == 0
    assert not any("Traceback" in line for line in serving.said)


def test_who_declines_says_why_and_is_counted(
    folders: FleetFolders, running: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    create_run(folders, f"--devices 5 --rounds {ROUNDS} --evaluation {folders.evaluation}")
    port = free_port()
    serving = running.enter_context(coordinator(folders, port))
    serving.wait_for("Ctrl-C stops it")
    database = Database.in_folder(folders.coordinator)
    until(lambda: bool(list_rounds(database, "digits")))
    assert main(["run", "show", "digits", "--home", str(folders.coordinator)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"      begins with 5 devices, or at \d\d:\d\d:\d\d UTC with 3 or more", shown[-1])
    assert main(["signer", "init", "--out", str(folders.work / "other")]) == 0
    shutil.copy(folders.work / "other" / "signer.pub", folders.device(DEVICES[3]) / "signer.pub")
    mistrusts = running.enter_context(device(folders, DEVICES[3], port))
    options = ("--broker", f"mqtt://127.0.0.1:{port}", "--population", "digits", "--consent", "digits")
    strict = running.enter_context(Command("device", "run", "--home", folders.device(DEVICES[4]), *options))
    steady = [running.enter_context(device(folders, name, port)) for name in DEVICES[:3]]
    # Those who decline say so, and the operator sees how many did, and for what reason.
    assert "this device asks for 20" in strict.wait_for("left round 1")
    assert "not by the pinned signer" in mistrusts.wait_for("left round 1")
    for command in steady:
        assert command.finish() == 0
    for command in (mistrusts, strict):
        command.send(signal.SIGINT)
        assert command.finish(30) == 0
        assert command.said[-1] == "  nothing left this device"

    capsys.readouterr()
    assert main(["run", "show", "digits", "--home", str(folders.coordinator)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    assert "      declined: bundle_invalid 1, cohort_too_small 1" in shown
    assert main(["run", "list", "--home", str(folders.coordinator)]) == 0
    assert f"digits: complete (all rounds are committed), {ROUNDS} of {ROUNDS} rounds" in capsys.readouterr().out


def test_ctrl_c_does_not_wait_for_training(folders: FleetFolders, running: ExitStack) -> None:
    create_run(folders, "--devices 3 --epochs 1000000 --max-steps 1000000000 --learning-rate 0.0001")
    database = Database.in_folder(folders.coordinator)
    running.callback(database.close)
    port = free_port()
    serving = running.enter_context(coordinator(folders, port))
    training = [running.enter_context(device(folders, name, port)) for name in DEVICES[:3]]
    until(lambda: [view.phase for view in list_rounds(database, "digits")] == ["reporting"])
    for command in (*training, serving):
        command.send(signal.SIGINT)
        assert command.finish(5) == 0
    # Who stops does not decline: the round is there to go on with.
    (view,) = list_rounds(database, "digits")
    assert (view.phase, view.shared, view.declined) == ("reporting", 3, {})
