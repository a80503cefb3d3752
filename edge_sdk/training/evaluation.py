"""Measure a checkpoint on examples, without training. Runs the bundle's evaluation graph."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import TrainingError
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.graphs import initial_feeds, open_graph
from edge_sdk.training.layout import Vector
from edge_sdk.training.trainer import Examples, Rows, checked

_BATCH = 256


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A checkpoint's mean loss, share of right labels (None where targets are not class indices), examples."""

    loss: float
    accuracy: float | None
    examples: int


def evaluate(artifact: Artifact, checkpoint: Vector, examples: Rows | Examples) -> Evaluation:
    """Evaluate a checkpoint (1-D float32, layout order) on examples.

    The loss is the mean over examples; where the model's loss is a sum, the sum over examples.

    Raises:
        ArtifactError: the signature was not checked, or the runtime is too old or cannot load the graph.
        TrainingError: unusable checkpoint or examples, or a loss that is not finite.
    """
    manifest = artifact.manifest
    labels = manifest.classes is not None and len(manifest.output.shape) == 2 and len(manifest.target.shape) == 1

    loss, right, known_labels, count = 0.0, 0, 0, 0
    for measured in _measure(artifact, checkpoint, examples, min(_BATCH, manifest.batch.maximum)):
        loss += measured.loss * (1 if manifest.loss.reduction == "sum" else measured.examples)
        count += measured.examples
        if labels:
            known = measured.targets != manifest.ignored_label
            right += int((measured.output.argmax(-1) == measured.targets)[known].sum())
            known_labels += int(known.sum())
    if manifest.loss.reduction != "sum":
        loss /= max(count, 1)
    if not math.isfinite(loss):
        raise TrainingError(f"the evaluation loss is {loss}", hint="roll back to the last good checkpoint")
    return Evaluation(loss, right / known_labels if known_labels else None, count)


def example_losses(artifact: Artifact, checkpoint: Vector, examples: Rows | Examples) -> NDArray[np.float64]:
    """Each example's own loss under a checkpoint, 1-D, in their order; it need not be finite.

    The graph runs once for each: what a comparison of two checkpoints needs, example by example.

    Raises:
        ArtifactError, TrainingError: see `evaluate`.
    """
    return np.array([measured.loss for measured in _measure(artifact, checkpoint, examples, 1)], np.float64)


@dataclass(frozen=True, slots=True)
class _Measured:
    loss: float
    output: NDArray[Any]
    targets: NDArray[Any]
    examples: int


def _measure(artifact: Artifact, checkpoint: Vector, examples: Rows | Examples, batch: int) -> Iterator[_Measured]:
    """Run the evaluation graph on one batch after the other; examples that went meanwhile are left out."""
    graph = open_graph(artifact, "evaluate")
    rows = checked(artifact.manifest, examples)
    feeds = initial_feeds(graph, artifact.layout.unflatten(checkpoint))
    fields = [tensor.name for tensor in graph.spec.inputs if tensor.role in ("input", "target")]
    places = {tensor.role: index for index, tensor in enumerate(graph.spec.outputs)}
    for start in range(0, len(rows), batch):
        found, fed = rows.take(np.arange(start, min(start + batch, len(rows))))
        if len(found):
            outputs = graph.run(feeds | {name: fed[name] for name in fields})
            targets = fed[artifact.manifest.target.name]
            yield _Measured(float(outputs[places["loss"]]), outputs[places["output"]], targets, len(found))
