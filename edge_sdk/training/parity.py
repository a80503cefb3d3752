"""The parity vector: a few training steps with known results, by which a device tests its runtime.

A device that computes other values than the exporter certified must not train: its updates would be noise to
the federation. Knows the bytes of the part and how to replay them; who made them is the exporter's business.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import TrainingError
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.graphs import runtime_name
from edge_sdk.training.layout import Vector
from edge_sdk.training.manifest import PARITY_PART, Manifest, Runtime, row_bytes
from edge_sdk.training.steps import TrainingSteps, open_steps
from edge_sdk.training.trainer import Rows

_certified: set[tuple[bytes, Runtime, int]] = set()
_lock = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class ParityValues:
    """The arrays of one step: its examples, and sampled parameters after it with their allowed errors."""

    examples: Rows = field(repr=False)
    expected: Vector = field(repr=False)
    allowed: Vector = field(repr=False)


@dataclass(frozen=True, slots=True)
class ParityReport:
    """How a replay went: `worst` is the largest error as a share of what was allowed, so at most 1 if `ok`."""

    steps: int
    worst: float

    @property
    def ok(self) -> bool:
        """Whether every value lay within its tolerance."""
        return self.worst <= 1.0


def encode_parity(steps: list[ParityValues]) -> bytes:
    """Write the parity part; the steps' examples are in the order of the manifest's inputs, then the target."""
    return b"".join(
        array.astype(array.dtype.newbyteorder("<")).tobytes()
        for step in steps
        for array in (*step.examples.values(), step.expected, step.allowed)
    )


def decode_parity(manifest: Manifest, content: bytes) -> Iterator[ParityValues]:
    """Read the parity part, whose size the manifest has been checked against."""
    sampled = -(-manifest.layout.size // manifest.parity.stride)
    offset = 0

    def take(dtype: str, shape: tuple[int, ...], size_bytes: int) -> npt.NDArray[Any]:
        nonlocal offset
        offset += size_bytes
        little = np.dtype(dtype).newbyteorder("<")
        return np.frombuffer(content[offset - size_bytes : offset], little).astype(dtype).reshape(shape)

    for step in manifest.parity.steps:
        examples = {
            spec.name: take(
                spec.dtype,
                (step.batch, *(dimension or 0 for dimension in spec.shape[1:])),
                step.batch * row_bytes(spec),
            )
            for spec in (*manifest.inputs, manifest.target)
        }
        expected, allowed = (take("float32", (sampled,), 4 * sampled) for _ in range(2))
        yield ParityValues(examples, expected, allowed)


def replay_parity(artifact: Artifact, runtime: Runtime = "onnx", threads: int = 1) -> ParityReport:
    """Run the bundle's parity vector on this device's runtime.

    Raises:
        ArtifactError: the signature was not checked, or the runtime is too old or cannot load the graph.
        TrainingError: the runtime cannot run it.
    """
    return _replay(artifact, open_steps(artifact, runtime, threads=threads))


def require_parity(artifact: Artifact, runtime: Runtime = "onnx", threads: int = 1) -> None:
    """Replay the parity vector once per bundle, process and number of threads, and refuse a runtime that fails it.

    Raises:
        TrainingError: this runtime's results differ from the certified ones.
    """
    with _lock:
        if (artifact.sha256, runtime, threads) in _certified:
            return
        report = replay_parity(artifact, runtime, threads)
        if not report.ok:
            raise TrainingError(
                f"{runtime_name(runtime)} computes other values than this bundle was certified with: "
                f"{report.worst:.1f} times the allowed error",
                hint="install another version of it; please report this processor and version",
            )
        _certified.add((artifact.sha256, runtime, threads))


def parity_weights(batch: int) -> npt.NDArray[np.float32]:
    """Weights of the examples of a parity step, where training is private: of several, the last counts nothing."""
    weights = np.ones(batch, np.float32)
    weights[1:][-1:] = 0
    return weights


def _replay(artifact: Artifact, training: TrainingSteps) -> ParityReport:
    manifest = artifact.manifest
    feeds = training.state(manifest.layout.unflatten(artifact.checkpoint()))
    worst = 0.0
    values = decode_parity(manifest, artifact.part(PARITY_PART))
    for step, arrays in zip(manifest.parity.steps, values, strict=True):
        feeds |= arrays.examples
        feeds["weight"] = parity_weights(step.batch)
        feeds["learning_rate"], feeds["seed"] = np.array(step.learning_rate, np.float32), np.array(step.seed, np.int64)
        outputs = training.run(feeds)
        training.feed_back(outputs, feeds)
        sampled = manifest.layout.flatten(feeds)[:: manifest.parity.stride].astype(np.float64)
        error = np.abs(sampled - arrays.expected) / arrays.allowed
        loss_error = abs(float(outputs["loss"]) - step.loss) / step.loss_tolerance
        # NaN anywhere must fail: nan_to_num makes it infinite.
        worst = max(worst, float(np.nan_to_num(max(error.max(), loss_error), nan=np.inf)))
    return ParityReport(len(manifest.parity.steps), worst)
