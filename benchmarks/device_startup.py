"""What a device costs before and while it trains: start-up time and peak memory with a 100k-parameter model.

    python -m benchmarks.device_startup

A fresh process opens a device's folder, whence it can collect and predict; joins a population, up to where it would
connect; and trains once. Its peer is a fresh process that imports torch and takes the same steps in eager mode, as a
client does that embeds the training framework; what such a client needs to take part comes on top of that. Medians of
interleaved runs; memory is the process's peak resident set. PYTHONDONTWRITEBYTECODE is ignored: an installed SDK is
compiled.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

RUNS = 5
EXAMPLES, FEATURES, HIDDEN, CLASSES = 64, 784, 128, 10
STEPS = 20

_DEVICE = """
import json, sys, time
from pathlib import Path
from edge_sdk import EdgeClient
from edge_sdk.credentials import load_public_key
client = EdgeClient(sys.argv[1])
opened = time.time()
client.join("bench", examples=client.examples("digits"))
import edge_sdk.runtime.driver
client.make_agent()
joined = time.time()
from edge_sdk.training.artifact import read_artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.plan import TrainingPlan
artifact = read_artifact(sys.argv[2], signer=load_public_key(Path(sys.argv[1]) / "signer.pub"))
plan = TrainingPlan(epochs=100, batch_size=32, learning_rate=0.1, max_steps=int(sys.argv[3]))
trainer = BundleTrainer(artifact)
trainer.train(artifact.checkpoint(), client.examples("digits").arrays(), plan, seed=bytes(32))
status = open('/proc/self/status').read()
print(json.dumps([opened, joined, time.time(), int(status.split('VmHWM:')[1].split()[0])]))
"""

_TORCH = """
import json, sys, time
import numpy, torch
torch.set_num_threads(1)
opened = time.time()
model = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
x, y = torch.rand(32, 784), torch.arange(32) % 10
for _ in range(int(sys.argv[3])):
    gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients):
            parameter -= 0.1 * gradient
status = open('/proc/self/status').read()
print(json.dumps([opened, opened, time.time(), int(status.split('VmHWM:')[1].split()[0])]))
"""


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        home, bundle = _prepare(Path(folder))
        rows: dict[str, list[list[float]]] = {"device": [], "torch": []}
        for _ in range(RUNS):
            for name, program in (("device", _DEVICE), ("torch", _TORCH)):
                rows[name].append(_run(program, [str(home), str(bundle), str(STEPS)]))
    print(f"{FEATURES * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES:,} parameters, {STEPS} steps of batch 32")
    print(f"medians of {RUNS} fresh processes        ready s    joined s   trained s     peak MB")
    found = {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in rows.items()}
    for name, label in (("device", "edge-sdk device"), ("torch", "eager PyTorch (peer)")):
        *seconds, peak = found[name]
        print(f"  {label:30s}{''.join(f'{value:12.2f}' for value in seconds)}{peak:12.0f}")
    ratios = [d / t for d, t in zip(found["device"], found["torch"], strict=True)]
    print(f"  {'ratio':30s}{''.join(f'{ratio:12.2f}' for ratio in ratios)}")


def _run(program: str, arguments: Sequence[str]) -> list[float]:
    """Seconds until ready, joined and trained, and peak MB, of a fresh process."""
    start = time.time()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True, env=environment
    )
    *moments, peak_kib = json.loads(done.stdout)
    return [moment - start for moment in moments] + [peak_kib / 1024]


def _prepare(work: Path) -> tuple[Path, Path]:
    import torch

    from device_sim.fleet import FleetFolders, make_authorities, make_devices
    from exporters import export

    folders = FleetFolders(work)
    make_authorities(folders, time.time())
    draw = np.random.default_rng(0)
    x = draw.random((EXAMPLES, FEATURES), np.float32)
    make_devices(folders, {"bench": {"x": x, "y": np.arange(EXAMPLES) % CLASSES}}, time.time())
    model = torch.nn.Sequential(torch.nn.Linear(FEATURES, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, CLASSES))
    export(
        model,
        torch.nn.functional.cross_entropy,
        example_inputs=(torch.rand(8, FEATURES),),
        example_target=torch.arange(8) % CLASSES,
        path=folders.bundle,
        signer=folders.signer_key,
        name="bench",
    )
    return folders.device("bench"), folders.bundle


if __name__ == "__main__":
    main()
