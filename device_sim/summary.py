"""The end of a demo: comparisons, what left the devices, a device's prediction, the plot, and where everything is."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
import shutil
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from coordinator.service.tasks import RoundView, list_rounds
from coordinator.store.database import Database
from device_sim import job
from device_sim.baselines import BASELINES_FILE, Baselines, load_baselines
from device_sim.datasets import FederatedDataset
from device_sim.fleet import FleetFolders, device_ids, write_whole
from device_sim.plot import plot_rounds
from device_sim.screen import Screen
from device_sim.settings import DemoSettings
from edge_sdk.client import EdgeClient
from edge_sdk.errors import EdgeError

PLOT_FILE, REPORT_FILE, SENT_FILE = "demo.png", "report.json", "what-left-the-devices.csv"
_SHOWN = 3


def summarise(
    folders: FleetFolders, settings: DemoSettings, dataset: FederatedDataset, screen: Screen, *, seconds: float
) -> None:
    """Write the report's files and show the summary."""
    screen.close()
    database = Database.in_folder(folders.coordinator)
    rounds = list_rounds(database, job.TASK)
    database.close()
    baselines = load_baselines(folders.work / BASELINES_FILE)
    if baselines is None:
        raise EdgeError("the comparisons were not computed", hint=f"see {folders.logs / 'baselines.log'}")
    committed = [r for r in rounds if r.phase == "committed"]
    final = committed[-1]
    plot = folders.work / PLOT_FILE
    plot_rounds(plot, committed, baselines, devices=settings.devices, budget=settings.epsilon)
    noise = "no noise"
    if final.epsilon is not None and math.isfinite(final.epsilon):
        noise = f"epsilon {final.epsilon:.2f} at delta {job.DELTA:g}"
    say, heading = screen.say, partial(screen.say, style="bold")
    say()
    heading("Accuracy on held-out digits")
    for what, accuracy in (
        ("centralised training, all digits in one place", baselines.centralised[-1]),
        ("this federation without noise", baselines.noise_free[-1]),
        (f"this federation, {noise}", final.accuracy or 0.0),
    ):
        say(f"  {what:<52}{accuracy:6.1%}")

    sent = _write_sent(folders, settings)
    say()
    heading("What left a device, by its own ledger")
    say("  masked: uniformly random without the others' masks")
    for line in sent[:_SHOWN]:
        say(f"  {line}")
    say(f"  all of it: {folders.work / SENT_FILE}")

    say()
    heading("A device predicts with the model it has installed")
    for line in _prediction(folders, settings, dataset):
        say(f"  {line}")

    report = folders.work / REPORT_FILE
    _write_report(report, settings, rounds, baselines, seconds)
    abandoned = len(rounds) - len(committed)
    again = ", the others were abandoned and tried again" if abandoned else ""
    say()
    heading(f"{len(committed)} of {len(rounds)} rounds committed{again}; {seconds:.0f} s in all. Written:")
    for path in (plot, report, folders.bundle, folders.coordinator / "coordinator.sqlite", folders.logs):
        say(f"  {path}")
    say()
    heading("Next")
    for words in (
        ("run", "show", job.TASK, "--home", folders.coordinator),
        ("device", "status", "--home", folders.device(device_ids(1)[0])),
        ("inspect", folders.bundle, "--signer", folders.signer_public),
    ):
        say(f"  {command(*words)}")


def command(*words: str | Path) -> str:
    """An `edge` command line that can be pasted into this shell, whether or not its environment is activated."""
    edge = "edge"
    if shutil.which(edge) is None:
        beside = Path(sys.executable).with_name("edge")
        edge = os.path.relpath(beside) if beside.is_file() else f"{sys.executable} -m edge_sdk.cli"
    return f"{edge} {shlex.join(str(word) for word in words)}"


def _write_sent(folders: FleetFolders, settings: DemoSettings) -> list[str]:
    """Write what every device's ledger says, and return lines of the first device that took part."""
    shown: list[str] = []
    with (folders.work / SENT_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["device", "round", "masked_bytes", "sha256", "epsilon_so_far"])
        for device_id in device_ids(settings.devices):
            with EdgeClient(folders.device(device_id)) as client:
                lines = client.privacy.receipts()
            for p in lines:
                epsilon = "inf" if math.isinf(p.epsilon) else f"{p.epsilon:.3f}"
                writer.writerow([device_id, p.round_number, p.sent_bytes, p.sent_sha256.hex(), epsilon])
            if not shown:
                shown = [
                    f"{device_id} round {p.round_number}: {p.sent_bytes:,} bytes, "
                    f"sha256 {p.sent_sha256.hex()[:12]}..., "
                    + ("no noise" if math.isinf(p.epsilon) else f"epsilon {p.epsilon:.2f} so far")
                    for p in lines
                ]
    return shown


def _prediction(folders: FleetFolders, settings: DemoSettings, dataset: FederatedDataset) -> tuple[str, ...]:
    """A real prediction, through the public API, on digits that no device has seen."""
    x, y = dataset.test["x"], dataset.test["y"]
    for device_id in device_ids(settings.devices):
        with EdgeClient(folders.device(device_id)) as client:
            model = client.model(job.TASK)
            try:
                guessed = model.predict(x[:10]).argmax(axis=1)
            except EdgeError:
                continue
            version = model.version
        right = int((guessed == y[:10]).sum())
        return (
            f"{device_id}, model version {version}: {right} of 10 right",
            f"  it reads    {' '.join(str(label) for label in guessed)}",
            f"  written is  {' '.join(str(label) for label in y[:10])}",
        )
    return ("no device has installed a model",)


def _write_report(
    path: Path, settings: DemoSettings, rounds: list[RoundView], baselines: Baselines, seconds: float
) -> None:
    data = {
        "settings": asdict(settings),
        "seconds": round(seconds, 1),
        "centralised_accuracy": baselines.centralised[-1],
        "noise_free_accuracy": baselines.noise_free,
        "rounds": [asdict(r) for r in rounds],
    }
    write_whole(path, json.dumps(data, indent=1))
