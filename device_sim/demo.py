"""`edge demo`: the main job end to end, with real parts, on one machine, while things go wrong.

Registrar, signer, broker, coordinator and devices are separate processes or folders, as in the field; this module
prepares them, watches the coordinator's store, kills what the script says, and shows what happened. It decides nothing
of a round. What it draws from the seed is data, split, fleet and faults; secrets, masks and noise are always random.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np

from coordinator.service.broker import start_broker
from coordinator.service.tasks import RoundView, create_task, list_rounds, list_tasks
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from device_sim import job
from device_sim.baselines import BASELINES_FILE
from device_sim.datasets import FederatedDataset, federated_digits
from device_sim.faults import draw_vanishings
from device_sim.fleet import (
    FleetFolders,
    device_ids,
    fresh_work_folder,
    make_authorities,
    make_devices,
    split_over,
    write_whole,
)
from device_sim.host import HostSettings
from device_sim.processes import Child, stop_all, wait_for
from device_sim.screen import Screen
from device_sim.settings import MARKER, DemoSettings
from edge_sdk.credentials import load_public_key
from edge_sdk.errors import EdgeError
from edge_sdk.protocol.messages import TaskState
from edge_sdk.runtime.home_lock import only_process_in
from edge_sdk.signing import public_key_to_pem
from edge_sdk.training.artifact import read_artifact

KILL_DEVICES_IN_ROUND = 3
KILL_COORDINATOR_IN_ROUND = 5
_POLL_S = 0.1
_INSTALL_TIMEOUT_S = 20.0
_BASELINES_TIMEOUT_S = 120.0


class Demo:
    """One run of the demo in its work folder.

    Args:
        settings: what to do.
        work: the folder.
        screen: where to show it.
    """

    def __init__(self, settings: DemoSettings, work: Path, screen: Screen) -> None:
        self.settings = settings
        self.folders = FleetFolders(work)
        self._screen = screen
        self._children: list[Child] = []
        self._hosts: list[Child] = []
        self._coordinator: Child | None = None
        self._baselines: Child | None = None
        self._started_at = time.monotonic()
        self._kills_done: set[str] = set()
        self._baselines_begun = False

    def run(self, *, resume: bool) -> None:
        """Prepare, run all rounds, and report.

        Raises:
            EdgeError: something failed that the demo does not cause on purpose; all processes are stopped.
        """
        work = self.folders.work
        with ExitStack() as stack:
            if resume:
                stack.enter_context(only_process_in(work))
            else:
                stack.enter_context(fresh_work_folder(work, MARKER, self._marker(prepared=False)))
            stack.callback(lambda: stop_all(self._children))
            dataset = federated_digits(self.settings.devices, seed=self.settings.seed)
            url = self._start_broker(stack)
            if not resume:
                self._prepare(dataset)
            self._start_processes(url)
            self._watch()
            self._screen.note("every device fetches and installs the final model")
            if not wait_for(self._hosts, timeout_s=_INSTALL_TIMEOUT_S):
                self._screen.note("some devices are still without it; they would fetch it later")
            self._finish_baselines()
            stop_all(self._children)
            self._report(dataset)

    # ---- preparing

    def _marker(self, *, prepared: bool) -> str:
        return json.dumps({**asdict(self.settings), "prepared": prepared})

    def _start_broker(self, stack: ExitStack) -> str:
        if self.settings.broker != "embedded":
            return self.settings.broker
        broker = start_broker(self.folders.work / "broker")
        stack.callback(broker.stop)
        self._screen.note(f"broker: {broker.kind} on {broker.url}")
        return str(broker.url)

    def _prepare(self, dataset: FederatedDataset) -> None:
        now = time.time()
        make_authorities(self.folders, now)
        self._screen.note("exporting the PyTorch model to a signed bundle, beside making the devices")
        export = Child(
            "export",
            "edge_sdk.cli",
            [
                "export",
                job.MODEL,
                "--optimizer",
                "sgd",
                "--signer",
                str(self.folders.signer_key),
                "--out",
                str(self.folders.bundle),
            ],
            self.folders.logs,
        )
        self._children.append(export)
        export.start()
        shards = dict(zip(device_ids(self.settings.devices), dataset.shards, strict=True))
        make_devices(self.folders, shards, now)
        np.savez(self.folders.evaluation, allow_pickle=False, **dataset.test)
        wait_for([export], timeout_s=300.0)
        export.require_success()
        self._create_task()
        write_whole(self.folders.work / MARKER, self._marker(prepared=True))

    def _create_task(self) -> None:
        signer = load_public_key(self.folders.signer_public)
        artifact = read_artifact(self.folders.bundle, signer=signer)
        checkpoint = artifact.checkpoint()
        config = job.digits_task(
            devices=self.settings.devices,
            rounds=self.settings.rounds,
            epsilon=self.settings.epsilon,
            # A little more than is drawn; the devices of a killed process come back in time to resume. Where everybody
            # is everybody's neighbour a third may go at no cost, and two of twenty are more than a tenth.
            dropout_share=self.settings.dropout + (0.02 if self.settings.devices >= 50 else 0.2),
            dimension=checkpoint.size,
            signer_pem=public_key_to_pem(signer).decode(),
            evaluation=self.folders.evaluation,
        )
        database = Database.in_folder(self.folders.coordinator)
        blobs = Blobs(self.folders.coordinator / "blobs")
        start, parts = checkpoint.astype("<f4").tobytes(), artifact.parts.values()
        create_task(database, blobs, config, artifact.head, start, time.time(), parts=parts)
        database.close()
        self._screen.task(config, artifact.size_bytes)

    # ---- running

    def _start_processes(self, url: str) -> None:
        logs = self.folders.logs
        logs.mkdir(parents=True, exist_ok=True)
        self._coordinator = Child(
            "coordinator",
            "edge_sdk.cli",
            ["coordinator", "serve", "--home", str(self.folders.coordinator), "--broker", url],
            logs,
        )
        ids = device_ids(self.settings.devices)
        faults = draw_vanishings(ids, self.settings.rounds, self.settings.dropout, self.settings.seed)
        for number, part in enumerate(split_over(ids, self.settings.processes)):
            settings = HostSettings(
                homes=tuple(str(self.folders.device(device_id)) for device_id in part),
                broker=url,
                population=job.TASK,
                min_reports=job.min_reports(self.settings.devices),
                epsilon_at_most=self.settings.epsilon,
                resend_s=3.0,
                faults=tuple(fault for fault in faults if fault.device_id in part),
            )
            path = logs / f"devices-{number}.json"
            path.write_text(settings.to_json(), encoding="utf-8")
            self._hosts.append(Child(f"devices-{number}", "device_sim.host", [str(path)], logs))
        self._baselines = Child(
            "baselines",
            "device_sim.baselines",
            [str(self.folders.work / MARKER)],
            logs,
            niceness=10,
        )
        self._children += [self._coordinator, *self._hosts, self._baselines]
        for child in (self._coordinator, *self._hosts):
            child.start()

    def _watch(self) -> None:
        """Show the rounds as they come, and kill on cue, until the task ends."""
        database = Database.in_folder(self.folders.coordinator)
        try:
            while True:
                rounds = list_rounds(database, job.TASK)
                task = list_tasks(database)[0]
                self._screen.rounds(rounds, self.settings.rounds)
                if task.state is not TaskState.OPEN:
                    break
                self._on_cue(rounds)
                self._require_alive()
                time.sleep(_POLL_S)
        finally:
            database.close()
        if task.state is not TaskState.COMPLETE:
            raise EdgeError(f"the task was paused: {task.reason}", hint=f"see the logs in {self.folders.logs}")

    def _on_cue(self, rounds: list[RoundView]) -> None:
        if not rounds:
            return
        current = rounds[-1]
        if current.number >= 2:
            self._start_baselines()
        if not self.settings.kills:
            return
        total = self.settings.rounds
        if _on(current, min(KILL_DEVICES_IN_ROUND, max(1, total // 2))):
            host = self._hosts[-1]
            carried = len(list(split_over(device_ids(self.settings.devices), self.settings.processes))[-1])
            self._kill_once("devices", host, f"round {current.number}: a process with {carried} devices was killed")
        if self._coordinator is not None and _on(current, min(KILL_COORDINATOR_IN_ROUND, max(1, total - 1))):
            text = f"round {current.number}: the coordinator was killed with {current.reported} reports in"
            self._kill_once("coordinator", self._coordinator, text)

    def _kill_once(self, what: str, child: Child, text: str) -> None:
        if what in self._kills_done:
            return
        self._kills_done.add(what)
        child.kill()
        child.start()
        self._screen.note(f"{text}, and started again")

    def _start_baselines(self) -> None:
        # A demo that goes on may have them from before.
        if self._baselines is not None and not self._baselines_begun:
            self._baselines_begun = True
            if not (self.folders.work / BASELINES_FILE).is_file():
                self._baselines.start()

    def _finish_baselines(self) -> None:
        self._start_baselines()
        if self._baselines is not None and self._baselines.running:
            self._screen.note("the two comparisons finish")
            wait_for([self._baselines], timeout_s=_BASELINES_TIMEOUT_S)
        if self._baselines is not None:
            self._baselines.require_success()

    def _require_alive(self) -> None:
        for child in (self._coordinator, *self._hosts):
            if child is not None and not child.running:
                child.require_success()

    # ---- reporting

    def _report(self, dataset: FederatedDataset) -> None:
        from device_sim.summary import summarise

        summarise(self.folders, self.settings, dataset, self._screen, seconds=time.monotonic() - self._started_at)


def _on(current: RoundView, number: int) -> bool:
    """Whether it is time for the kill of this round: in the middle of it, or of a later one if that was missed."""
    if current.number == number:
        return current.phase == "reporting" and current.reported >= 1
    return current.number > number and current.phase in ("configuration", "reporting", "unmasking")
