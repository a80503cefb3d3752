"""ONNX Runtime's own training API (its last release, 1.19.2) as a peer, in an environment and a process of its own."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edge_sdk.training.artifact import Artifact
from edge_sdk.training.graphs import open_graph

PACKAGES = (
    "onnxruntime-training-cpu==1.19.2",
    "onnx==1.16.2",
    "numpy<2",
    "protobuf<5",
    "cerberus",
    "h5py",
    "torch==2.4.1",
)

# Runs in the other environment: makes the artifacts, then takes as many steps as each line of its input says.
_WORKER = """
import sys, time
from pathlib import Path
import numpy as np, onnx, onnxruntime
from onnxruntime.training import artifacts
from onnxruntime.training.api import CheckpointState, Module, Optimizer
folder, loss, rate = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
model, batch = onnx.load(folder / "forward.onnx"), np.load(folder / "batch.npz")
trained = [str(name) for name in batch["trained"]]
held = [tensor.name for tensor in model.graph.initializer if ":" in tensor.name and tensor.name not in trained]
artifacts.generate_artifacts(model, requires_grad=trained, frozen_params=held, loss=artifacts.LossType[loss],
                             optimizer=artifacts.OptimType.SGD, artifact_directory=str(folder))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
state = CheckpointState.load_checkpoint(str(folder / "checkpoint"))
module = Module(str(folder / "training_model.onnx"), state, session_options=options)
optimizer = Optimizer(str(folder / "optimizer_model.onnx"), module)
optimizer.set_learning_rate(rate)
module.train()
def step():
    module(batch["x"], batch["y"]); optimizer.step(); module.lazy_reset_grad()
step(); step()
print("ready", flush=True)
for line in sys.stdin:
    start = time.process_time()
    for _ in range(int(line)): step()
    print((time.process_time() - start) / int(line), flush=True)
"""


def official_python(work: Path) -> Path | None:
    """The interpreter of an environment with those packages, made if it is not there; None where it cannot be."""
    home = work / "onnxruntime-training"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        print(f"making {home} ...", flush=True)
        venv.create(home, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *PACKAGES]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"ORT training left out: its packages cannot be installed on Python {sys.version.split()[0]}:")
            print("  " + (done.stderr.strip().splitlines() or ["pip failed"])[-1])
            return None
        (home / "complete").touch()
    return python


class OfficialTraining:
    """A process that trains a bundle's model with the official API.

    Raises:
        RuntimeError: it cannot; says why in one line.
    """

    def __init__(
        self,
        python: Path,
        artifact: Artifact,
        x: np.ndarray[Any, Any],
        y: np.ndarray[Any, Any],
        learning_rate: float,
        folder: Path,
    ) -> None:
        losses = {"cross_entropy": "CrossEntropyLoss", "token_cross_entropy": "CrossEntropyLoss", "mse_loss": "MSELoss"}
        loss = losses.get(artifact.manifest.loss.name)
        if loss is None:
            raise RuntimeError(f"has no loss for {artifact.manifest.loss.name}")
        onnx.save(_with_parameters(artifact), folder / "forward.onnx")
        trained = [name for name in artifact.layout.unflatten(artifact.checkpoint()) if name.startswith("parameter:")]
        np.savez(folder / "batch.npz", x=x, y=y, trained=trained)
        log = folder / "worker.log"
        with log.open("w") as errors:  # A pipe that nobody reads would fill up: it logs each thing it does.
            self._process = subprocess.Popen(
                [str(python), "-c", _WORKER, str(folder), loss, str(learning_rate)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        # The libraries print to the same stream before it is ready.
        for line in self._lines():
            if line.strip() == "ready":
                return
        self._close()
        raise RuntimeError((log.read_text().strip().splitlines() or ["ended without a word"])[-1][:100])

    def __enter__(self) -> OfficialTraining:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def step_s(self, count: int = 10) -> float:
        """Seconds of CPU time of a step."""
        if self._process.stdin is None:
            raise RuntimeError("the process has no input")
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return float(next(self._lines()))

    def _lines(self) -> Iterator[str]:
        return iter(()) if self._process.stdout is None else iter(self._process.stdout.readline, "")

    def _close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _with_parameters(artifact: Artifact) -> onnx.ModelProto:
    """The inference graph with the parameters inside."""
    graph = open_graph(artifact, "infer")
    model = onnx.load_from_string(artifact.part(graph.spec.part()))
    values = {**artifact.layout.unflatten(artifact.checkpoint()), **graph.constants}
    kept = [one for one in model.graph.input if one.name not in values]
    for one in model.graph.input:
        if one.name in values:
            model.graph.initializer.append(numpy_helper.from_array(np.array(values[one.name]), one.name))
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model
