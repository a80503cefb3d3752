"""Secure aggregation at scale: a device's and the coordinator's work in one round, against Flower's SecAgg+ and limits.

    python -m benchmarks secagg                      # 1,000 devices, a million parameters, 10% lost
    python -m benchmarks.secagg --devices 10000 --dimension 100000 --bits 0 --no-flower

One whole round each: real sessions (benchmarks.secagg_devices) and the real coordinator with its store, every frame
signed and checked. Some devices vanish after share_keys, the costliest moment. A few devices have a process of their
own, so that nothing they compute was computed by another one before; their medians are "a device".
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import tempfile
import time
import venv
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.secagg_devices import Devices, Sent, Setting
from coordinator.config import Encoding, Privacy, TaskConfig, Training
from coordinator.privacy.calibration import calibrate
from coordinator.rounds.agreement import agreement
from coordinator.rounds.states import Abandoned, Pacing, Releasing, phase
from coordinator.service import release as releasing
from coordinator.service.engine import Coordinator, Publication
from coordinator.service.release import ReleaseFailed
from coordinator.service.tasks import create_task, list_rounds
from coordinator.service.workers import ProcessWorkers
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from device_sim.fleet import FleetFolders, device_ids, make_authorities, split_over
from edge_sdk.credentials import load_identity
from edge_sdk.privacy import noise
from edge_sdk.protocol import codec, topics
from edge_sdk.protocol.messages import BlobRef, Consistency, Digest, ShareDelivery
from edge_sdk.secagg import modular
from edge_sdk.secagg.quorum import QuorumParameters
from edge_sdk.secagg.suite import Stream

T = TypeVar("T")

SOLITARY = 5
"""Devices with a process of their own."""

AT_ONCE = 16
"""Devices that are handed messages together; no more than the coordinator pulls from at once."""

LOST = 0.1
FLOWER = "flwr==1.41.0"
FOLDER = Path("work/benchmarks")


@dataclass(frozen=True, slots=True)
class Case:
    """One round to measure."""

    devices: int
    dimension: int
    bits: int
    corrupt_share: float = 0.1
    dropout_share: float = 0.1
    consistency: Consistency = Consistency.THRESHOLD

    @property
    def agreed(self) -> QuorumParameters:
        """The graph, and the committee."""
        return agreement(self.consistency, self.devices, self.corrupt_share, self.dropout_share)

    def task(self) -> TaskConfig:
        """The task; its noise is that of epsilon 8 over ten rounds, in a modulus of so many bits."""
        floor = int(0.8 * self.devices)
        privacy = Privacy(8.0, 1e-6, 1.0, 10, self.corrupt_share, self.dropout_share, consistency=self.consistency)
        plan = calibrate(
            clip_norm=1.0,
            dimension=self.dimension,
            min_reports=floor,
            max_devices=self.devices,
            rounds=privacy.participation_cap,
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            corrupt_share=privacy.corrupt_share,
            bits=self.bits or None,
        )
        encoding = Encoding(
            plan.mechanism, plan.bits, plan.clip_bit, plan.scale, plan.norm_bound, plan.device_variance,
            plan.noise_multiplier, plan.epsilon,
        )  # fmt: skip
        return TaskConfig(
            task="task",
            population="benchmark",
            bundle=BlobRef(Digest(bytes(32)), 0),
            dimension=self.dimension,
            rounds=1,
            goal_count=self.devices,
            min_check_ins=floor,
            min_reports=floor,
            training=Training(epochs=1, batch_size=8, max_steps=10, learning_rate=0.1),
            privacy=privacy,
            encoding=encoding,
            pacing=Pacing(),
            server_optimizer="fedavg:learning_rate=1",
            signer="",
        )


@dataclass(slots=True)
class Measured:
    """What a round took.

    Attributes:
        device_s: CPU of a device by the message that it answered, and "encode", medians.
        uplink: bytes that a device sends.
        server_s: CPU of the coordinator's process by the phase that it was in, and of the release.
        unmask_s: of the release the unmasking: wall, and CPU of all processes.
        memory_mb: peak of the coordinator's process, and of a worker.
    """

    config: TaskConfig
    device_s: dict[str, float] = field(default_factory=dict)
    uplink: float = 0.0
    server_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    unmask_s: tuple[float, float] = (0.0, 0.0)
    memory_mb: tuple[float, float] = (0.0, 0.0)


class Round:
    """Drives a coordinator and its devices through one round."""

    def __init__(self, case: Case, folder: Path, processes: int) -> None:
        self.case = case
        self.now = time.time()
        self.folders = FleetFolders(folder)
        make_authorities(self.folders, self.now)
        self.ids = device_ids(case.devices)
        solitary, others = self.ids[:SOLITARY], self.ids[SOLITARY:]
        lost = frozenset(others[:: int(1 / LOST)][: int(LOST * case.devices)])
        self.expected = case.devices - len(lost)
        setting = Setting(self.folders.registrar, self.now, case.dimension, lost)
        self.devices = Devices(setting, [*((name,) for name in solitary), *split_over(others, processes)])
        self.measured = Measured(case.task())
        self.uplink: Counter[str] = Counter()
        home = self.folders.coordinator
        self.database = Database.in_folder(home)
        blobs = Blobs(home / "blobs")
        create_task(self.database, blobs, self.measured.config, b"a bundle", bytes(4 * case.dimension), self.now)
        identity = load_identity(home / "identity", role="coordinator", now=self.now)
        self.coordinator = Coordinator(self.database, blobs, identity, ca=identity.ca, random_bytes=os.urandom)

    def run(self, workers: ProcessWorkers) -> Measured:
        """The whole round."""
        with self.devices:
            self.pump(self.serve(lambda: self.coordinator.start(self.now)))
            runner = self.coordinator._runners["task"]
            while not isinstance(runner.state, Releasing):
                if runner.state is None or isinstance(runner.state, Abandoned):
                    raise SystemExit(f"the round was abandoned: {list_rounds(self.database, 'task')[-1]}")
                due = self.coordinator.next_deadline()
                self.now = max(self.now, due or self.now)
                self.pump(self.serve(lambda: self.coordinator.tick(self.now)))
            self.release(workers)
            by_device = [self.devices.cpu_s(number)[self.ids[number]] for number in range(SOLITARY)]
        stages = {stage for one in by_device for stage in one}
        self.measured.device_s = {s: statistics.median(one.get(s, 0.0) for one in by_device) for s in sorted(stages)}
        self.measured.uplink = statistics.median(self.uplink[name] for name in self.ids[:SOLITARY])
        (view,) = list_rounds(self.database, "task")
        if (view.phase, view.reported) != ("committed", self.expected):
            raise SystemExit(f"the round did not end well: {view}")
        return self.measured

    def serve(self, work: Callable[[], T], name: str = "") -> T:
        """Let the coordinator work, and count its time to the phase that it was in."""
        state = self.coordinator._runners["task"].state if self.coordinator._runners else None
        name = name or (phase(state) if state is not None else "selection")
        start = time.process_time()
        result = work()
        self.measured.server_s[name] += time.process_time() - start
        return result

    def pump(self, publications: Sequence[Publication]) -> None:
        """Carry messages to and fro until nobody has anything to say."""
        for messages in self._by_groups(publications):
            answers = self.devices.hear(messages)
            for start in range(0, len(answers), 256):
                batch = answers[start : start + 256]
                self._count(batch)
                self.pump(self.serve(lambda batch=batch: self.coordinator.receive(batch, self.now)))  # type: ignore[misc]

    def _by_groups(self, publications: Sequence[Publication]) -> Iterator[list[tuple[str, str, bytes]]]:
        by_device: dict[str, list[tuple[str, str, bytes]]] = defaultdict(list)
        for publication in publications:
            match topics.parse(publication.topic):
                case topics.TaskTopic():
                    names: Sequence[str] = self.ids
                case topics.ControlDown(device_id) | topics.ChunkDown(device_id):
                    names = (device_id,)
                case _:
                    names = ()
            for name in names:
                by_device[name].append((name, publication.topic, publication.payload))
        # Vectors are large: few devices at a time hold theirs. Other messages are small.
        kinds = {codec.KINDS.get(p.payload[3]) for p in publications if p.payload[:2] == b"EF"}
        together = AT_ONCE if ShareDelivery in kinds else 256
        every = list(by_device)
        for start in range(0, len(every), together):
            yield [message for name in every[start : start + together] for message in by_device[name]]

    def _count(self, batch: Sequence[Sent]) -> None:
        for topic, payload in batch:
            parsed = topics.parse(topic)
            if isinstance(parsed, topics.ControlUp | topics.ChunkUp):
                self.uplink[parsed.device_id] += len(payload)

    def release(self, workers: ProcessWorkers) -> None:
        """Take the masks off, decode, step and commit, as the service does."""
        (job,) = self.coordinator.take_jobs()
        devices = {child.pid for child in multiprocessing.active_children()}
        list(workers.each(abs, range(8 * workers.count)))  # started before, as in a coordinator that is not new
        processes = {child.pid for child in multiprocessing.active_children()} - devices
        unmask = releasing.unmask

        def timed(*arguments: Any) -> tuple[modular.Words, frozenset[int]]:
            pool = [psutil.Process(child.pid) for child in multiprocessing.active_children() if child.pid in processes]
            before = sum(_cpu_s(process) for process in pool)
            wall, own = time.perf_counter(), time.process_time()
            found = unmask(*arguments)
            wall_s, own_s = time.perf_counter() - wall, time.process_time() - own
            self.measured.unmask_s = (wall_s, own_s + sum(_cpu_s(process) for process in pool) - before)
            largest = max((process.memory_info().rss for process in pool), default=0)
            self.measured.memory_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, largest / 2**20)
            return found

        setattr(releasing, "unmask", timed)  # noqa: B010  # a function of a module, typed as constant
        try:
            result = self.serve(lambda: releasing.release(job, workers), "release")
        finally:
            setattr(releasing, "unmask", unmask)  # noqa: B010
        if isinstance(result, ReleaseFailed):
            raise SystemExit(f"nothing was released: {result}")
        self.pump(self.serve(lambda: self.coordinator.finished(result, self.now)))


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


# ---- peers and limits


def plain_sum_s(case: Case, vectors: int) -> float:
    """CPU seconds to add up so many vectors that nobody masked."""
    vector = np.ones(case.dimension, modular.work_dtype(case.bits))
    total = np.zeros_like(vector)
    start = time.process_time()
    for _ in range(vectors):
        np.add(total, vector, out=total)
    return time.process_time() - start


def limits_s(case: Case, masks: int) -> tuple[float, float]:
    """CPU seconds to copy so many vectors, and to encrypt as many bytes with AES-128-CTR."""
    vector = np.ones(case.dimension, modular.work_dtype(case.bits))
    target = np.empty_like(vector)
    sample = min(masks, 500)
    start = time.process_time()
    for _ in range(sample):
        np.copyto(target, vector)
    copied = time.process_time() - start
    zeros, output = bytes(1 << 18), memoryview(bytearray(1 << 18))
    produce = Cipher(algorithms.AES(bytes(16)), modes.CTR(bytes(16))).encryptor().update_into
    start = time.process_time()
    for _ in range(sample * vector.nbytes // len(zeros)):
        produce(zeros, output)
    return copied * masks / sample, (time.process_time() - start) * masks / sample


def skellam_s(case: Case, variance: int) -> float:
    """CPU seconds to draw a device's noise, the table made before."""
    times = []
    for number in range(7):
        start = time.process_time()
        noise.sample(noise.Mechanism.SKELLAM, variance, case.dimension, Stream(bytes([number]) * 32))
        times.append(time.process_time() - start)
    return statistics.median(times)


def flower(case: Case, degree: int, threshold: int) -> dict[str, float] | None:
    """What Flower's own functions take for the same round, in an environment of its own, made on demand."""
    home = FOLDER / "flower"
    python = home / "bin" / "python"
    try:
        if not python.exists():
            venv.create(home, with_pip=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", FLOWER], check=True)
        command = [str(python), str(Path(__file__).with_name("flower_side.py"))]
        command += [str(case.devices), str(case.dimension), str(degree), str(threshold), str(LOST)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"  Flower was not measured: {error}")
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---- what is printed


def measure(case: Case) -> Measured:
    """One round of a case."""
    with tempfile.TemporaryDirectory() as folder, ProcessWorkers() as workers:
        return Round(case, Path(folder), max(1, (os.cpu_count() or 1))).run(workers)


def report(case: Case, measured: Measured, peer: bool) -> None:
    """Print a round's figures."""
    agreed = case.agreed
    case = replace(case, bits=measured.config.encoding.bits)
    survivors = case.devices - int(LOST * case.devices)
    masks = survivors + int(LOST * case.devices) * round(agreed.graph.degree * (1 - LOST))
    print(
        f"{case.devices:,} devices, {case.dimension:,} parameters at {case.bits} bits, "
        f"{LOST:.0%} lost after share_keys; by {case.consistency.name.lower()}: "
        f"k {agreed.graph.degree}, t {agreed.graph.threshold}, m {agreed.committee}, q {agreed.quorum}"
    )
    stages = measured.device_s
    total = sum(seconds for stage, seconds in stages.items() if stage != "encode")
    print(f"  device, CPU ms a round       {total * 1e3:9.1f}    of it encoding {stages['encode'] * 1e3:.1f}")
    for stage, seconds in stages.items():
        if stage != "encode":
            print(f"    answering {stage:17s}  {seconds * 1e3:9.1f}")
    print(f"  device, uplink MB            {measured.uplink / 1e6:9.3f}")
    wall_s, cpu_s = measured.unmask_s
    print(f"  server, unmasking s          {wall_s:9.2f}    CPU {cpu_s:.2f} for {masks:,} masks")
    for name, seconds in measured.server_s.items():
        print(f"    CPU s, {name:20s}  {seconds:9.2f}")
    print(f"  server, peak MB              {measured.memory_mb[0]:9.0f}    a worker {measured.memory_mb[1]:.0f}")
    copied, encrypted = limits_s(case, masks)
    print(f"  limits, CPU s                {copied:9.2f}    memcpy of all masks; AES-CTR of them {encrypted:.2f}")
    print(f"  summing in clear, CPU s      {plain_sum_s(case, survivors):9.2f}")
    drawn = skellam_s(case, measured.config.encoding.device_variance)
    print(f"  Skellam draws, CPU ms        {drawn * 1e3:9.1f}")
    found = flower(case, agreed.graph.degree, agreed.graph.threshold) if peer else None
    if found is not None:
        for name, theirs, ours in (
            ("device, CPU ms", found["device_s"] * 1e3, total * 1e3),
            ("device, uplink MB", found["uplink"] / 1e6, measured.uplink / 1e6),
            ("server, CPU s", found["server_s"], cpu_s),
        ):
            print(f"  {FLOWER}: {name:18s} {theirs:9.3f}    {theirs / ours:.1f} times", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000, help="(default: %(default)s)")
    parser.add_argument("--dimension", type=int, default=1_000_000, help="(default: %(default)s)")
    parser.add_argument(
        "--bits", type=int, default=16, help="of the modulus; 0 for what calibration picks (%(default)s)"
    )
    parser.add_argument("--corrupt-share", type=float, default=0.1, help="(default: %(default)s)")
    parser.add_argument("--dropout-share", type=float, default=0.1, help="that is planned for (default: %(default)s)")
    parser.add_argument("--consistency", choices=("threshold", "quorum"), default="threshold")
    parser.add_argument("--no-flower", action="store_true", help="leave the peer out")
    given = parser.parse_args()
    consistency = Consistency[given.consistency.upper()]
    case = Case(given.devices, given.dimension, given.bits, given.corrupt_share, given.dropout_share, consistency)
    report(case, measure(case), peer=not given.no_flower)


if __name__ == "__main__":
    main()
