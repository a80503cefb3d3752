"""What a device pays: size on disk, start-up, an idle hour, memory and time of training, bytes of a round.

    python -m benchmarks.device [--only install,idle,training,budget,round,bytes] [--sizes 100k,1M,10M]
    python -m benchmarks.device --flower              # makes an environment with flwr and torch, and measures it too
    python -m benchmarks.device --flower-python PATH  # the same with one that is there

Figures of memory are of fresh processes. Flower's client runs as it does on a device (SuperNode and SuperExec) where it
is idle; its training is that of a ClientApp alone, called as Flower calls it, without those two. Both sides train the
same network from the same weights on the same examples, and what they end with is compared.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("install", "idle", "training", "budget", "round", "bytes")
HIDDEN = {"100k": (128,), "1M": (1_256,), "10M": (2_790, 2_790)}
FEATURES, CLASSES, BATCH, STEPS = 784, 10, 32, 20
IDLE_S = 60
RUNS = 3
BUDGET = 0.25
COHORT, ROUNDS = 20, 3
FEW = 4
_REPOSITORY = Path(__file__).resolve().parents[1]

# Sums what belongs to the named distributions and all that they need. Evaluates markers as pip would.
_CLOSURE = """
import json, os, re, sys
from importlib import metadata
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
normal = lambda name: re.sub("[-_.]+", "-", name).lower()
found, todo, size, cuda = {}, [(name, "") for name in sys.argv[1:]], 0, 0
while todo:
    name, extra = todo.pop()
    if (normal(name), extra) in found:
        continue
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        sys.exit(f"{name} is not installed")
    found[normal(name), extra] = True
    for line in package.requires or []:
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": extra}):
            todo += [(needed.name, other) for other in ("", *needed.extras)]
    if extra:
        continue
    for file in package.files or []:
        path = package.locate_file(file)
        if os.path.isfile(path) and not str(file).startswith(".."):
            size += os.path.getsize(path)
            if re.search("cu(da|dnn|blas|sparse|pti|fft|rand|solver)|nvidia|nccl|nvshmem|triton", str(file)):
                cuda += os.path.getsize(path)
names = sorted({name for name, _ in found})
print(json.dumps([len(names), size / 1e6, cuda / 1e6, names]))
"""

_DEVICE = """
import json, sys, time
from pathlib import Path
started = float(sys.argv[5])
from edge_sdk import EdgeClient
imported = time.time() - started
def high():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
client = EdgeClient(sys.argv[1])
ready, ready_cpu, ready_mb = time.time() - started, time.process_time(), high()
from edge_sdk.credentials import load_public_key
from edge_sdk.training.artifact import read_artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.plan import TrainingPlan
steps, batch = int(sys.argv[3]), int(sys.argv[4])
artifact = read_artifact(sys.argv[2], signer=load_public_key(Path(sys.argv[1]) / "signer.pub"))
trainer, rows = BundleTrainer(artifact), client.examples("digits").arrays()
times = []
def watch():
    times.append(time.process_time())
    return False
plan = TrainingPlan(epochs=steps, batch_size=batch, learning_rate=0.1, max_steps=steps)
result = trainer.train(artifact.checkpoint(), rows, plan, seed=bytes(32), should_stop=watch)
peak = high()
import numpy
numpy.save(sys.argv[2] + ".update.npy", result.update)
print(json.dumps({"imported_s": imported, "ready_s": ready, "ready_cpu_s": ready_cpu,
                  "ready_mb": ready_mb, "peak_mb": peak,
                  "step_ms": 1000 * (times[-1] - times[1]) / (len(times) - 2)}))
"""


@dataclass(frozen=True, slots=True)
class Task:
    """One network with its data: a device's home, a signed bundle, and the same for Flower's side."""

    home: Path
    bundle: Path
    weights: Path
    examples: Path
    parameters: int


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--sizes", default="100k,1M,10M", help="of " + ", ".join(HIDDEN))
    parser.add_argument("--flower", action="store_true", help="make an environment with flwr and torch; gigabytes")
    parser.add_argument("--flower-python", metavar="PATH", help="the python of an environment with flwr and torch")
    options = parser.parse_args()
    parts, sizes = options.only.split(","), options.sizes.split(",")
    if (unknown := set(parts) - set(PARTS)) or (unknown := set(sizes) - set(HIDDEN)):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        flower = options.flower_python
        if options.flower and flower is None:
            flower = _environment(work / "flower", ["flwr", "torch"])
        if "install" in parts:
            install(work, flower)
        tasks = [_prepare(work / size, size) for size in sizes if {"idle", "training", "budget"} & set(parts)]
        if tasks and "training" in parts:
            training(tasks, flower)
        if tasks and "idle" in parts:
            idle(tasks[0], flower, work)
        if tasks and "budget" in parts:
            budget(tasks, flower)
        if "round" in parts:
            whole_round(sizes, work)
        if "bytes" in parts:
            transfer(sizes, work)


# ---- size


def install(work: Path, flower: str | None) -> None:
    """What `pip install` brings, in an environment that has nothing else."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", work / "wheel", _REPOSITORY], check=True
    )
    (wheel,) = (work / "wheel").iterdir()
    count, size, _, names = _closure(_environment(work / "device", [str(wheel)]), ["edge-sdk"])
    if "torch" in names:
        raise SystemExit("a device's install holds torch")
    print(
        f"\ninstalled              packages       MB   (wheel of edge-sdk itself {wheel.stat().st_size / 1e6:.2f} MB)"
    )
    print(f"  edge-sdk             {count:8d}{size:9.0f}   {', '.join(names)}")
    if flower is not None:
        theirs, all_mb, cuda_mb, _ = _closure(flower, ["flwr", "torch"])
        client_mb = _closure(flower, ["flwr"])[1]
        print(f"  flwr + torch         {theirs:8d}{all_mb:9.0f}   ratio {size / all_mb:.3f}")
        print(f"    without CUDA       {'':8s}{all_mb - cuda_mb:9.0f}   ratio {size / (all_mb - cuda_mb):.3f}")
        print(f"    flwr alone         {'':8s}{client_mb:9.0f}   ratio {size / client_mb:.2f}")


def _environment(folder: Path, packages: Sequence[str]) -> str:
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def _closure(python: str, names: Sequence[str]) -> tuple[int, float, float, list[str]]:
    """Number of packages, MB of them all, MB of CUDA among those, and their names."""
    done = subprocess.run([python, "-c", _CLOSURE, *names], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    count, size, cuda, found = json.loads(done.stdout)
    return count, size, cuda, found


# ---- start-up, memory, steps


def training(tasks: Sequence[Task], flower: str | None) -> None:
    """Fresh processes that open, and take the same steps."""
    print(f"\n{STEPS} steps of batch {BATCH}, one thread, medians of {RUNS} fresh processes")
    print("  parameters                import s  ready s  ready CPU s  ready MB  peak MB  CPU ms a step")
    for task in tasks:
        rows: dict[str, list[dict[str, float]]] = {"edge-sdk": [], "flower": []}
        for _ in range(RUNS):
            rows["edge-sdk"].append(_device(task))
            if flower is not None:
                rows["flower"].append(_flower(flower, task))
        medians = {
            name: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for name, runs in rows.items() if runs
        }
        for name, found in medians.items():
            print(
                f"  {task.parameters:10,d} {name:14s}{found['imported_s']:9.2f}{found['ready_s']:9.2f}"
                f"{found['ready_cpu_s']:13.2f}{found['ready_mb']:10.0f}{found['peak_mb']:9.0f}{found['step_ms']:15.2f}",
                flush=True,
            )
        if flower is not None:
            ours, theirs = medians["edge-sdk"], medians["flower"]
            ratio = {name: value / theirs[name] for name, value in ours.items()}
            print(
                f"  {'':10s} {'ratio':14s}{ratio['imported_s']:9.2f}{ratio['ready_s']:9.2f}{ratio['ready_cpu_s']:13.2f}"
                f"{ratio['ready_mb']:10.2f}{ratio['peak_mb']:9.2f}{ratio['step_ms']:15.2f}"
                f"   weights differ by at most {_difference(task):.1e}",
                flush=True,
            )


def _device(task: Task, prefix: Sequence[str] = ()) -> dict[str, float]:
    arguments = [str(task.home), str(task.bundle), str(STEPS), str(BATCH)]
    return _measured([*prefix, sys.executable, "-c", _DEVICE, *arguments])


def _flower(python: str, task: Task, prefix: Sequence[str] = ()) -> dict[str, float]:
    script = str(Path(__file__).with_name("flower_device.py"))
    return _measured([*prefix, python, script, str(task.weights), str(task.examples), str(STEPS), str(BATCH)])


def _measured(command: Sequence[str]) -> dict[str, float]:
    one_thread = {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(
        [*command, repr(time.time())], capture_output=True, text=True, env={**os.environ, **one_thread}, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _difference(task: Task) -> float:
    """How far the two sides' trained parameters are apart, at most."""
    before, after = np.load(task.weights), np.load(str(task.weights).replace(".npz", ".flower.npz"))
    theirs = np.concatenate([(after[name] - before[name]).ravel() for name in before.files])
    return float(np.abs(theirs - np.load(f"{task.bundle}.update.npy")).max())


def budget(tasks: Sequence[Task], flower: str | None) -> None:
    """The same under a quarter of a core, as the operating system would hold a service to it."""
    group = Path("/sys/fs/cgroup/cpu") / f"edge-bench-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text(str(int(100_000 * BUDGET)))
    except OSError as error:
        print(f"\nsteps under a CPU budget: not measured, no CPU group can be made here ({error.strerror})")
        return
    join = ["/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    print(f"\nwith {BUDGET:.0%} of a core: seconds from the start of a process to its end, {STEPS} steps")
    try:
        for task in tasks:
            start = time.time()
            _device(task, join)
            line = f"  {task.parameters:10,d} edge-sdk {time.time() - start:7.1f}"
            if flower is not None:
                start = time.time()
                _flower(flower, task, join)
                line += f"   flower {time.time() - start:7.1f}"
            print(line, flush=True)
    finally:
        group.rmdir()


# ---- an idle hour


def idle(task: Task, flower: str | None, work: Path) -> None:
    """A connected device to which nothing comes: one minute is measured, an hour is sixty of it."""
    from coordinator.service.broker import start_broker
    from device_sim.fleet import EXAMPLES

    print(f"\nidle, connected; {IDLE_S} s measured, an hour is {3600 // IDLE_S} times that")
    with start_broker(work / "mqtt") as broker, ExitStack() as stack:
        command = [sys.executable, "-m", "edge_sdk.cli", "device", "run", "--home", str(task.home)]
        command += ["--broker", str(broker.url), "--population", EXAMPLES, "--only-when", "charging,unmetered,idle"]
        sides = {"edge-sdk": [stack.enter_context(_process(command))]}
        if flower is not None:
            scripts = Path(flower).parent
            env = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "FLWR_HOME": str(work / "flwr")}
            env["FLWR_TELEMETRY_ENABLED"] = "0"
            address = ["--insecure", "--host", "127.0.0.1", "--port", "39017"]
            stack.enter_context(_process([str(scripts / "flower-superlink"), *address], env))
            time.sleep(10)
            node = [str(scripts / "flower-supernode"), "--insecure", "--superlink", "127.0.0.1:39017"]
            sides["flower"] = [stack.enter_context(_process(node, env))]
        time.sleep(20)
        for name, processes in sides.items():
            # Read once, they begin together.
            sides[name] = [p for root in processes for p in _family(root)]
        before = {name: sum(map(_cpu_s, pids)) for name, pids in sides.items()}
        time.sleep(IDLE_S)
        print("                 processes      MB   CPU s an hour")
        for name, pids in sides.items():
            hourly = (sum(map(_cpu_s, pids)) - before[name]) * 3600 / IDLE_S
            memory = sum(map(_proportional_mb, pids))
            print(f"  {name:14s}{len(pids):10d}{memory:9.0f}{hourly:12.1f}", flush=True)


@contextmanager
def _process(command: Sequence[str], env: dict[str, str] | None = None) -> Iterator[int]:
    running = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, start_new_session=True
    )
    try:
        yield running.pid
        if running.poll() is not None:
            raise SystemExit(f"{command[0]} ended by itself")
    finally:
        running.terminate()
        running.wait()


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


def _cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process, in nanoseconds' resolution, and of the children that it waited for."""
    own = sum(int(p.read_text().split()[0]) for p in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return own + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def _proportional_mb(pid: int) -> float:
    """Resident memory of a process, pages that it shares with others divided among them."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("\nPss:")[1].split()[0]) / 1024


# ---- a whole round


def whole_round(sizes: Sequence[str], work: Path) -> None:
    """Devices as they run in the field: processes, through secure aggregation and noise, to the next model."""
    from device_sim.fleet import EXAMPLES, FleetFolders, device_ids, make_authorities, make_devices
    from edge_sdk.cli import main as edge

    print(f"\na whole round of {FEW} device processes, secure aggregation and noise, {STEPS} steps of batch {BATCH}")
    print("  parameters   peak MB of a device", flush=True)
    for size in sizes:
        folders, port = FleetFolders(work / f"round-{size}"), _free_port()
        make_authorities(folders, time.time())
        make_devices(folders, dict.fromkeys(device_ids(FEW), _examples()), time.time())
        parameters = sum(value.numel() for value in _export(folders, size).parameters())
        create = f"run create {EXAMPLES} --home {folders.coordinator} --bundle {folders.bundle} --epsilon 8 --rounds 1"
        create += f" --signer {folders.signer_public} --devices {FEW} --min-reports {FEW - 1} --batch-size {BATCH}"
        with redirect_stdout(io.StringIO()):
            if edge([*create.split(), "--epochs", str(STEPS)]):
                raise SystemExit("the run cannot be made")
        program = [sys.executable, "-m", "edge_sdk.cli"]
        serve = [*program, "coordinator", "serve", "--home", str(folders.coordinator), "--port", str(port)]
        options = ["--broker", f"mqtt://127.0.0.1:{port}", "--population", EXAMPLES, "--min-reports", str(FEW - 1)]
        options += ["--epsilon", "any", "--consent", "measuring", "--until-done"]
        with _process([*serve, "--workers", "1"]), ExitStack() as stack:
            devices = [
                stack.enter_context(_device_process([*program, "device", "run", "--home", str(home), *options]))
                for home in map(folders.device, device_ids(FEW))
            ]
            highest = dict.fromkeys(devices, 0.0)
            while any(device.poll() is None for device in devices):
                for device in devices:
                    # Looked at again and again: what a process had at its end is gone with it.
                    with suppress(OSError, IndexError):
                        status = Path(f"/proc/{device.pid}/status").read_text()
                        highest[device] = int(status.split("VmHWM:")[1].split()[0]) / 1024
                time.sleep(0.03)
            if any(device.returncode for device in devices):
                raise SystemExit("a device failed")
        print(f"  {parameters:10,d}{statistics.median(highest.values()):22.0f}", flush=True)


@contextmanager
def _device_process(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# ---- bytes of a round


def transfer(sizes: Sequence[str], work: Path) -> None:
    """What crosses a device's connection in a round, once it has the bundle: rounds after the first."""
    print(f"\nbytes of a round and device, {COHORT} devices, secure aggregation and noise, over MQTT 5")
    print("  parameters       up      down   up / 16 bits a coordinate   down / float32 model")
    for size in sizes:
        if size == "10M":
            continue  # Twenty devices of this size in one process take more memory than most machines have.
        totals = [_traffic(work / f"bytes-{size}-{rounds}", size, rounds) for rounds in (1, ROUNDS)]
        dimension = totals[0][2]
        up, down = ((totals[1][i] - totals[0][i]) / (ROUNDS - 1) / COHORT for i in (0, 1))
        print(
            f"  {dimension:10,d}{up:10,.0f}{down:10,.0f}{up / (2 * dimension):20.2f}{down / (4 * dimension):23.2f}",
            flush=True,
        )


def _traffic(work: Path, size: str, rounds: int) -> tuple[int, int, int]:
    """Bytes up and down of all devices in a run, and the number of parameters."""
    from coordinator.service.broker import start_broker
    from coordinator.service.driver import serve
    from coordinator.service.engine import Coordinator
    from coordinator.service.tasks import create_task, list_tasks
    from coordinator.store.blobs import Blobs
    from coordinator.store.database import Database
    from device_sim import job
    from device_sim.fleet import EXAMPLES, FleetFolders, device_ids, make_authorities, make_devices
    from edge_sdk.client import EdgeClient
    from edge_sdk.credentials import load_identity, load_public_key
    from edge_sdk.protocol.messages import TaskState
    from edge_sdk.protocol.policy import DevicePolicy
    from edge_sdk.runtime.driver import mqtt, run_devices
    from edge_sdk.signing import public_key_to_pem
    from edge_sdk.training.artifact import read_artifact

    folders = FleetFolders(work)
    make_authorities(folders, time.time())
    make_devices(folders, dict.fromkeys(device_ids(COHORT), _examples()), time.time())
    _export(folders, size)
    signer = load_public_key(folders.signer_public)
    artifact = read_artifact(folders.bundle, signer=signer)
    config = job.digits_task(
        devices=COHORT,
        rounds=rounds,
        epsilon=8.0,
        dropout_share=0.1,
        dimension=artifact.layout.size,
        signer_pem=public_key_to_pem(signer).decode(),
        evaluation=folders.evaluation,
    )
    database, blobs = Database.in_folder(folders.coordinator), Blobs(folders.coordinator / "blobs")
    patient = replace(
        config.pacing, selection_timeout_s=900, advertise_timeout_s=900, share_timeout_s=900,
        report_timeout_s=900, unmask_timeout_s=900, quiet_s=900,
    )  # fmt: skip
    config = replace(config, evaluation="", pacing=patient)
    checkpoint = artifact.checkpoint().astype("<f4").tobytes()
    create_task(database, blobs, config, artifact.head, checkpoint, time.time(), parts=artifact.parts.values())
    identity = load_identity(folders.coordinator / "identity", role="coordinator", now=time.time())
    coordinator = Coordinator(database, blobs, identity, ca=identity.ca, random_bytes=os.urandom)
    policy = DevicePolicy(min_reports=job.min_reports(COHORT), epsilon_at_most=math.inf)
    clients = [EdgeClient(folders.device(d), policy=policy) for d in device_ids(COHORT)]
    for client in clients:
        client.join(config.population, examples=client.examples(EXAMPLES))
        client.consent.grant(purpose="a benchmark", text_version="1")
    agents = [client.make_agent() for client in clients]
    transports: list[Any] = []

    async def run() -> None:
        stop = asyncio.Event()
        make = mqtt(broker.url)

        def kept(*arguments: Any) -> Any:
            transports.append(make(*arguments))
            return transports[-1]

        devices = asyncio.create_task(run_devices(agents, kept, stop=stop))
        server = asyncio.create_task(serve(coordinator, broker.url, "coordinator", stop=stop))
        while any(agent.memberships[config.population].installed_version <= rounds for agent in agents):
            done, _ = await asyncio.wait((devices, server), timeout=0.2)
            for task in done:
                task.result()
        stop.set()
        await asyncio.gather(devices, server)

    with start_broker(work / "mqtt") as broker:
        asyncio.run(run())
    if list_tasks(database)[0].state is not TaskState.COMPLETE:
        raise SystemExit("the run did not end")
    for client in clients:
        client.close()
    database.close()
    traffic = [transport.traffic for transport in transports]
    return sum(t.bytes_up for t in traffic), sum(t.bytes_down for t in traffic), artifact.layout.size


# ---- the task


def _examples() -> dict[str, np.ndarray[Any, Any]]:
    draw = np.random.default_rng(0)
    return {"x": draw.random((BATCH, FEATURES), np.float32), "y": np.arange(BATCH) % CLASSES}


def _export(folders: Any, size: str) -> Any:
    import torch

    from exporters import export

    widths = (FEATURES, *HIDDEN[size], CLASSES)
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [torch.nn.Linear(wide, narrow), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    export(
        model,
        torch.nn.functional.cross_entropy,
        example_inputs=(torch.rand(8, FEATURES),),
        example_target=torch.arange(8) % CLASSES,
        path=folders.bundle,
        signer=folders.signer_key,
        name="bench",
    )
    return model


def _prepare(work: Path, size: str) -> Task:
    from device_sim.fleet import FleetFolders, make_authorities, make_devices

    folders = FleetFolders(work)
    make_authorities(folders, time.time())
    # As many examples as a batch: both sides see all of them in every step, whatever their order.
    make_devices(folders, {"bench": _examples()}, time.time())
    state = {name: value.detach().numpy() for name, value in _export(folders, size).state_dict().items()}
    np.savez(work / "weights.npz", allow_pickle=False, **state)
    np.savez(work / "examples.npz", allow_pickle=False, **_examples())
    parameters = sum(value.size for value in state.values())
    return Task(folders.device("bench"), folders.bundle, work / "weights.npz", work / "examples.npz", parameters)


if __name__ == "__main__":
    main()
