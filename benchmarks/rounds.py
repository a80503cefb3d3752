"""What a whole round costs: 40, 200 and 1,000 real devices, in memory and over a broker.

    python -m benchmarks.rounds [--sizes 40,200,1000]

The digits job with noise, every device with its own identity, stores and trainer. In memory, all of them and the
coordinator share one process and virtual time, so the figure is pure work. Over the broker, devices and coordinator are
one process on one event loop, and the figure is the wall time between a round's opening and its end. The limit beside
them is what the round's X25519 exchanges and signature checks alone would take, measured in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from coordinator.service.broker import start_broker
from coordinator.service.driver import serve
from coordinator.service.engine import Coordinator
from coordinator.service.tasks import create_task, list_rounds, list_tasks
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from device_sim import job
from device_sim.datasets import federated_digits
from device_sim.fleet import EXAMPLES, FleetFolders, device_ids, make_authorities, make_devices
from device_sim.virtual import VirtualFleet
from edge_sdk.client import EdgeClient
from edge_sdk.credentials import load_identity, load_public_key
from edge_sdk.protocol.messages import TaskState
from edge_sdk.protocol.policy import DevicePolicy
from edge_sdk.protocol.session import Waiting
from edge_sdk.runtime.agent import DeviceAgent, Pace
from edge_sdk.runtime.driver import mqtt, run_devices
from edge_sdk.secagg import graph
from edge_sdk.secagg.keys import KeyPair, agree
from edge_sdk.signing import new_private_key, public_key_to_pem, sign_raw, verify_raw
from edge_sdk.training.artifact import Artifact, read_artifact

ROUNDS = 3
ROUNDS_OF_MANY, MANY = 1, 500
DROPOUT_SHARE = 0.15


class Fleet:
    """A prepared fleet of one size, to run twice.

    Args:
        work: an empty folder.
        devices: how many.
        artifact: the bundle, signed by the folder's signer.
    """

    def __init__(self, folders: FleetFolders, devices: int, artifact: Artifact) -> None:
        self.folders, self.devices, self.artifact = folders, devices, artifact
        self.rounds = ROUNDS if devices < MANY else ROUNDS_OF_MANY
        dataset = federated_digits(devices)
        make_devices(folders, dict(zip(device_ids(devices), dataset.shards, strict=True)), time.time())

    def coordinator(self, name: str) -> Callable[[], Coordinator]:
        """Make a store with a task of its own, and what opens a coordinator over it."""
        home = self.folders.work / name
        config = job.digits_task(
            devices=self.devices,
            rounds=self.rounds,
            epsilon=8.0,
            dropout_share=DROPOUT_SHARE,
            dimension=self.artifact.layout.size,
            signer_pem=public_key_to_pem(load_public_key(self.folders.signer_public)).decode(),
            evaluation=self.folders.evaluation,
        )
        # A process of a thousand devices needs longer than the demo's do; nobody drops out here, so no stage waits.
        patient = replace(
            config.pacing, selection_timeout_s=900, advertise_timeout_s=900, share_timeout_s=900,
            report_timeout_s=900, unmask_timeout_s=900, quiet_s=900,
        )  # fmt: skip
        config = replace(config, evaluation="", task=name, population=name, pacing=patient)
        database, blobs = Database.in_folder(home), Blobs(home / "blobs")
        checkpoint = self.artifact.checkpoint().astype("<f4").tobytes()
        parts = self.artifact.parts.values()
        create_task(database, blobs, config, self.artifact.head, checkpoint, time.time(), parts=parts)
        identity = load_identity(self.folders.coordinator / "identity", role="coordinator", now=time.time())
        return lambda: Coordinator(database, blobs, identity, ca=identity.ca, random_bytes=os.urandom)

    def agents(self, name: str) -> list[DeviceAgent]:
        """Open every device."""
        policy = DevicePolicy(min_reports=job.min_reports(self.devices), epsilon_at_most=math.inf)
        clients = [
            EdgeClient(self.folders.device(d), policy=policy, pace=Pace(600.0)) for d in device_ids(self.devices)
        ]
        for client in clients:
            client.join(name, examples=client.examples(EXAMPLES))
            client.consent.grant(purpose="a benchmark", text_version="1")
        return [client.make_agent() for client in clients]

    def in_memory_s(self) -> float:
        """Seconds of work for one round."""
        make, agents = self.coordinator("memory"), self.agents("memory")
        fleet = VirtualFleet(make, [_constantly(agent) for agent in agents], seed=0, start_at=time.time())

        def over() -> bool:
            return fleet.coordinator.idle and all(isinstance(agent.state, Waiting) for agent in agents)

        start = time.perf_counter()
        if not fleet.run(until=over):
            raise SystemExit("the fleet came to a standstill")
        return (time.perf_counter() - start) / self.rounds

    def over_broker_s(self) -> tuple[float, str]:
        """Median seconds of a round, and the broker's kind."""

        make = self.coordinator("broker")
        database = Database.in_folder(self.folders.work / "broker")

        async def run() -> None:
            stop, coordinator = asyncio.Event(), make()
            devices = asyncio.create_task(run_devices(self.agents("broker"), mqtt(broker.url), stop=stop))
            server = asyncio.create_task(serve(coordinator, broker.url, "coordinator", stop=stop))
            while list_tasks(database)[0].state is TaskState.OPEN:
                done, _ = await asyncio.wait((devices, server), timeout=0.5)
                for task in done:
                    task.result()
            stop.set()
            await asyncio.gather(devices, server)

        with start_broker(self.folders.work / "mqtt") as broker:
            asyncio.run(run())
            kind = broker.kind
        rounds = list_rounds(database, "broker")
        return statistics.median(r.closed_at - r.opened_at for r in rounds if r.closed_at is not None), kind


def _constantly(agent: DeviceAgent) -> Callable[[], DeviceAgent]:
    return lambda: agent


def primitives_s(devices: int) -> float:
    """What the exchanges and the checks of a round's advertisements take, and nothing else."""
    degree = graph.parameters(devices, 0.05, DROPOUT_SHARE).degree
    mine, other = KeyPair.from_private(os.urandom(32)), KeyPair.from_private(os.urandom(32))
    key = new_private_key()
    signature = sign_raw(key, b"message")
    start = time.perf_counter()
    for _ in range(200):
        agree(mine.private, other.public)
    exchange_s = (time.perf_counter() - start) / 200
    start = time.perf_counter()
    for _ in range(200):
        verify_raw(key.public_key(), signature, b"message")
    verify_s = (time.perf_counter() - start) / 200
    return devices * degree * (2 * exchange_s + verify_s)


def main() -> None:
    """Measure and print."""
    from exporters import export
    from exporters.examples.digits import build

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="40,200,1000", help="numbers of devices (default: %(default)s)")
    sizes = [int(size) for size in parser.parse_args().sizes.split(",")]
    spec = build()
    print(f"seconds a round, {ROUNDS} rounds each ({ROUNDS_OF_MANY} from {MANY} devices on); one process, so one core")
    print("  devices   in memory   over a broker   primitives alone   in memory / primitives")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            folders = FleetFolders(Path(folder))
            make_authorities(folders, time.time())
            export(
                spec.model,
                spec.loss,
                example_inputs=spec.example_inputs,
                example_target=spec.example_target,
                path=folders.bundle,
                signer=folders.signer_key,
                name=spec.name,
            )
            artifact = read_artifact(folders.bundle, signer=load_public_key(folders.signer_public))
            fleet = Fleet(folders, size, artifact)
            limit = primitives_s(size)
            memory = fleet.in_memory_s()
            broker, kind = fleet.over_broker_s()
        print(f"  {size:7d}{memory:12.2f}{broker:10.2f} {kind:10s}{limit:14.2f}{memory / limit:20.1f}", flush=True)


if __name__ == "__main__":
    main()
