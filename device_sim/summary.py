"""The end of a demo: comparisons, what left the devices, a device's prediction, the plot, and where everything is."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.service.tasks import RoundView, list_rounds
from coordinator.store.database import Database
from device_sim import job
from device_sim.baselines import BASELINES_FILE, Baselines, load_baselines
from device_sim.datasets import FederatedDataset
from device_sim.fleet import FleetFolders, device_ids
from device_sim.plot import plot_rounds
from device_sim.screen import Screen
from edge_sdk.client import EdgeClient
from edge_sdk.errors import EdgeError

if TYPE_CHECKING:
    from device_sim.demo import DemoSettings

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
    show = screen.console.print

    plot = folders.work / PLOT_FILE
    plot_rounds(plot, committed, baselines, devices=settings.devices, budget=settings.epsilon)
    private = final.accuracy or 0.0
    show()
    show("[bold]Accuracy on held-out digits[/bold]")
    show(f"  centralised training, all digits in one place   {baselines.centralised[-1]:6.1%}")
    show(f"  this federation without noise                   {baselines.noise_free[-1]:6.1%}")
    noise = "no noise" if final.epsilon is None or math.isinf(final.epsilon) else f"epsilon {final.epsilon:.2f}"
    show(f"  this federation, {noise:13s} (delta {job.DELTA:g})     {private:6.1%}")

    sent = _write_sent(folders, settings)
    show()
    show("[bold]What left a device[/bold], by its own ledger (masked: uniformly random without the others' masks)")
    for line in sent[:_SHOWN]:
        show(f"  {line}", highlight=False)
    show(f"  all of it: {folders.work / SENT_FILE}")

    show()
    show("[bold]A device predicts with the model it has installed[/bold]")
    show(f"  {_prediction(folders, settings, dataset)}", highlight=False)

    report = folders.work / REPORT_FILE
    _write_report(report, settings, rounds, baselines, seconds)
    abandoned = len(rounds) - len(committed)
    again = f", {abandoned} abandoned and tried again" if abandoned else ""
    show()
    show(f"{len(committed)} rounds committed{again}; {seconds:.0f} s in all. Written:")
    for path in (plot, report, folders.bundle, folders.coordinator / "coordinator.sqlite", folders.logs):
        show(f"  {path}", highlight=False)
    show("Next:")
    work = folders.work
    show(f"  edge run show {job.TASK} --home {folders.coordinator}", highlight=False)
    show(f"  edge device status --home {folders.device(device_ids(1)[0])}", highlight=False)
    show(f"  edge inspect {folders.bundle} --signer {work / 'signer' / 'signer.pub'}", highlight=False)


def _write_sent(folders: FleetFolders, settings: DemoSettings) -> list[str]:
    """Write what every device's ledger says, and return lines of the first device that took part."""
    shown: list[str] = []
    with (folders.work / SENT_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["device", "round", "masked_bytes", "sha256", "epsilon_so_far"])
        for device_id in device_ids(settings.devices):
            with EdgeClient(folders.device(device_id), population=job.TASK) as client:
                lines = client.participations()
            for p in lines:
                epsilon = "inf" if math.isinf(p.epsilon) else f"{p.epsilon:.3f}"
                writer.writerow([device_id, p.round_number, p.sent_bytes, p.sent_sha256.hex(), epsilon])
            if not shown:
                shown = [
                    f"{device_id} round {p.round_number}: {p.sent_bytes} masked bytes, sha256 "
                    f"{p.sent_sha256.hex()[:24]}..., epsilon {p.epsilon:.2f} so far"
                    for p in lines
                ]
    return shown


def _prediction(folders: FleetFolders, settings: DemoSettings, dataset: FederatedDataset) -> str:
    """A real prediction, through the public API, on digits that no device has seen."""
    x, y = dataset.test
    for device_id in device_ids(settings.devices):
        with EdgeClient(folders.device(device_id), population=job.TASK) as client:
            try:
                guessed = client.predict(x[:10]).argmax(axis=1)
            except EdgeError:
                continue
            version = client.agent.installed_version
        right = int((guessed == y[:10]).sum())
        digits = " ".join(str(label) for label in guessed)
        truth = " ".join(str(label) for label in y[:10])
        return f"{device_id}, model version {version}: reads {digits} where {truth} is written ({right} of 10)"
    return "no device has installed a model"


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
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")
