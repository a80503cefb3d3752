"""A training step on ONNX Runtime in Java, as on a phone, against Python: the same bundles, one thread.

    python -m benchmarks.java_step [MODEL ...]

Each is a process of its own with the whole trainer of its language: batches are drawn, checked, and trained on. Both
take turns; a ratio is the median of the rounds' ratios. Memory is the growth of the resident set from an open training
graph to its peak in 20 steps. Needs a JDK and Maven. Linux only.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from edge_sdk.signing import new_private_key, public_key_to_pem
from edge_sdk.training.parity import decode_parity
from exporters import export
from exporters.examples.zoo import ZOO
from tests.integration.jvm import classpath

MODELS = ("mlp", "lenet", "lstm", "gpt")
BATCHES = (8, 32)
ROUNDS = 9
ROUND_S = 0.4
WARM_UP_S = 6.0
"""Until the JVM has compiled what runs often."""

_PYTHON = """
import sys, time
from pathlib import Path
import numpy as np
from edge_sdk.credentials import load_public_key
from edge_sdk.training.artifact import read_artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.graphs import open_graph
from edge_sdk.training.plan import TrainingPlan
def status(name):
    return int(open("/proc/self/status").read().split(name)[1].split()[0]) * 1024
bundle, signer, examples, batch = sys.argv[1:]
artifact = read_artifact(bundle, signer=load_public_key(Path(signer)))
rows, checkpoint = dict(np.load(examples)), artifact.checkpoint()
def train(steps):
    plan = TrainingPlan(epochs=steps, batch_size=int(batch), learning_rate=1e-4, max_steps=steps)
    trainer.train(checkpoint, rows, plan, seed=bytes(32))
open_graph(artifact, "train")
before = status("VmRSS:")
open("/proc/self/clear_refs", "w").write("5")
trainer = BundleTrainer(artifact)
train(20)
print(status("VmHWM:") - before, flush=True)
for line in sys.stdin:
    begin = time.thread_time()
    train(int(line))
    print((time.thread_time() - begin) / int(line), flush=True)
"""


class _Side:
    """A process that trains as many steps as it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._input, self._output = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
        self.growth_bytes = int(float(self._line()))

    def step_s(self, steps: int) -> float:
        """CPU seconds of each of so many steps."""
        self._input.write(f"{steps}\n")
        self._input.flush()
        return float(self._line())

    def _line(self) -> str:
        line = self._output.readline()
        if not line:
            raise SystemExit("a process that trains ended; what it said is above")
        return line


def main() -> None:
    """Measure and print."""
    if shutil.which("java") is None:
        raise SystemExit("java_step: a JDK and Maven are needed: make setup installs them where it may")
    print("| model, batch | Python ms | Java / Python, CPU time | Python MB | Java MB |")
    print("|---" * 5 + "|")
    for name in sys.argv[1:] or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            for batch in BATCHES:
                words = _files(name, batch, Path(folder))
                with _started([sys.executable, "-c", _PYTHON, *words]) as python, _started(_java(words)) as java:
                    ms, ratio = _measure(python, java)
                grown = f"{python.growth_bytes / 1e6:.0f} | {java.growth_bytes / 1e6:.0f}"
                print(f"| {name}, {batch} | {ms:.2f} | {ratio:.2f} | {grown} |", flush=True)


def _measure(python: _Side, java: _Side) -> tuple[float, float]:
    """Python's step in milliseconds, and Java's over it."""
    steps = max(5, int(ROUND_S / python.step_s(20)))
    for _ in range(int(WARM_UP_S / ROUND_S)):
        java.step_s(steps)
    pairs = [(python.step_s(steps), java.step_s(steps)) for _ in range(ROUNDS)]
    return 1e3 * statistics.median(own for own, _ in pairs), statistics.median(b / a for a, b in pairs)


def _java(words: list[str]) -> list[str]:
    return ["java", "-Xmx256m", "-XX:+UseSerialGC", "-cp", classpath(), "edge.StepTimesKt", *words]


@contextmanager
def _started(command: list[str]) -> Iterator[_Side]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _Side(process)
        finally:
            process.kill()


def _files(name: str, batch: int, folder: Path) -> list[str]:
    """A bundle, its signer and two batches of examples: what both processes are told."""
    bundle, pem, rows = folder / "model.edge", folder / "signer.pub", folder / f"{batch}.npz"
    spec, key = ZOO[name](), new_private_key()
    artifact = export(
        spec.model,
        spec.loss,
        example_inputs=spec.example_inputs,
        example_target=spec.example_target,
        path=bundle,
        signer=key,
        learning_rate=spec.learning_rate,
    )
    pem.write_bytes(public_key_to_pem(key.public_key()))
    known = next(decode_parity(artifact.manifest, artifact.part("parity"))).examples
    fields: dict[str, Any] = {name: np.resize(given, (2 * batch, *given.shape[1:])) for name, given in known.items()}
    np.savez(rows, **fields)
    return [str(bundle), str(pem), str(rows), str(batch)]


if __name__ == "__main__":
    main()
