"""Measure a checkpoint on examples, without training. Runs the bundle's evaluation graph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

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
    graph = open_graph(artifact, "evaluate")
    rows = checked(manifest, examples)
    feeds = initial_feeds(graph, artifact.layout.unflatten(checkpoint))
    fields = [tensor.name for tensor in graph.spec.inputs if tensor.role in ("input", "target")]
    places = {tensor.role: index for index, tensor in enumerate(graph.spec.outputs)}
    labels = manifest.classes is not None and len(manifest.output.shape) == 2 and len(manifest.target.shape) == 1

    loss, right, known_labels, count = 0.0, 0, 0, 0
    batch = min(_BATCH, manifest.batch.maximum)
    for start in range(0, len(rows), batch):
        found, fed = rows.take(np.arange(start, min(start + batch, len(rows))))
        if not len(found):
            continue
        outputs = graph.run(feeds | {name: fed[name] for name in fields})
        loss += float(outputs[places["loss"]]) * (1 if manifest.loss.reduction == "sum" else len(found))
        count += len(found)
        if labels:
            targets = fed[manifest.target.name]
            known = targets != manifest.ignored_label
            right += int((outputs[places["output"]].argmax(-1) == targets)[known].sum())
            known_labels += int(known.sum())
    if manifest.loss.reduction != "sum":
        loss /= max(count, 1)
    if not math.isfinite(loss):
        raise TrainingError(f"the evaluation loss is {loss}", hint="roll back to the last good checkpoint")
    return Evaluation(loss, right / known_labels if known_labels else None, count)
