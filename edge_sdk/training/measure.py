"""What training a bundle costs on this machine: time a step by batch size, time to be ready, memory."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edge_sdk.training.artifact import Artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.manifest import PARITY_PART, Runtime
from edge_sdk.training.parity import decode_parity
from edge_sdk.training.plan import TrainingPlan
from edge_sdk.training.trainer import Rows

_REPEATS = 5


@dataclass(frozen=True, slots=True)
class StepTime:
    """Medians over several runs of `steps` steps: milliseconds a step, and examples a second."""

    batch: int
    steps: int
    step_ms: float

    @property
    def examples_per_s(self) -> float:
        """How many examples a second are trained on."""
        return self.batch / self.step_ms * 1000.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What training took here.

    Attributes:
        ready_s: from the bundle's bytes to a trainer that reproduced its parity vector.
        steps: by batch size.
        peak_bytes: the process's largest resident size; it holds the interpreter and the runtime too.
    """

    ready_s: float
    steps: tuple[StepTime, ...]
    peak_bytes: int


def measure(artifact: Artifact, batches: Sequence[int], steps: int, runtime: Runtime = "onnx") -> Measured:
    """Train on the parity vector's examples, repeated, and tell what it took.

    Raises:
        ArtifactError, TrainingError: the bundle cannot be trained here.
    """
    began = time.perf_counter()
    trainer = BundleTrainer(artifact, runtime)
    ready_s = time.perf_counter() - began
    return Measured(ready_s, tuple(_step_times(artifact, trainer, batches, steps)), _peak_bytes())


def _step_times(artifact: Artifact, trainer: BundleTrainer, batches: Sequence[int], steps: int) -> Iterator[StepTime]:
    checkpoint, known = artifact.checkpoint(), _examples(artifact)
    rate = artifact.manifest.optimizer.default_learning_rate
    for batch in batches:
        size = batch * steps
        examples = {name: np.resize(rows, (size, *rows.shape[1:])) for name, rows in known.items()}
        plan = TrainingPlan(epochs=1, batch_size=batch, learning_rate=rate * 1e-3, max_steps=steps)
        trainer.train(checkpoint, examples, plan, seed=bytes(32))  # memory is allocated, code is warm
        taken = []
        for repeat in range(_REPEATS):
            began = time.perf_counter()
            trainer.train(checkpoint, examples, plan, seed=bytes([repeat]) * 32)
            taken.append(time.perf_counter() - began)
        yield StepTime(batch, steps, statistics.median(taken) / steps * 1000.0)


def _examples(artifact: Artifact) -> Rows:
    """All examples of the parity vector."""
    known = [values.examples for values in decode_parity(artifact.manifest, artifact.part(PARITY_PART))]
    return {name: np.concatenate([rows[name] for rows in known]) for name in known[0]}


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
