"""The port behind which local training happens. Knows no runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import TrainingError
from edge_sdk.training.layout import Vector
from edge_sdk.training.manifest import Manifest, TensorSpec
from edge_sdk.training.plan import TrainingPlan, TrainingResult

Batch: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""Examples as two arrays (x, y) whose rows belong together."""


class TrainingInterrupted(TrainingError):
    """Training was asked to stop before it was done; nothing of it is used."""


class Trainer(Protocol):
    """Trains a model on this device's examples."""

    def train(
        self,
        checkpoint: Vector,
        examples: Batch,
        plan: TrainingPlan,
        *,
        seed: bytes,
        correction: Vector | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> TrainingResult:
        """Train from `checkpoint` (1-D float32, layout order), which stays as it is.

        `seed` decides the order of the examples and what dropout leaves out. `correction` (as the checkpoint; its
        buffers do not count) is added to the gradients of every step: c - c_i in SCAFFOLD, -h_i in FedDyn with the
        plan's `proximal` as alpha. `should_stop` is asked before every step.

        Raises:
            TrainingInterrupted: `should_stop` said so.
            TrainingError: unusable checkpoint, examples, plan or correction, or a loss or update that is not finite.
        """
        ...


def check_examples(manifest: Manifest, examples: Batch) -> Batch:
    """Check (x, y) against what the model takes; give them back as contiguous arrays.

    Raises:
        TrainingError: no examples, wrong dtype or shape, lengths that differ, values that are not finite, or a
            label outside the classes.
    """
    x, y = examples
    x, y = check_rows(manifest.input, x), check_rows(manifest.target, y)
    if len(x) != len(y):
        raise TrainingError(f"{len(x)} rows of x but {len(y)} of y", hint="give every example its target")
    if len(x) == 0:
        raise TrainingError("there are no examples", hint="add examples to the store before training")
    if manifest.classes is not None:
        labels = y if manifest.ignored_label is None else y[y != manifest.ignored_label]
        if labels.size and (labels.min() < 0 or labels.max() >= manifest.classes):
            raise TrainingError(
                f"labels must lie in 0..{manifest.classes - 1}, here are {labels.min()}..{labels.max()}",
                hint="map labels to class indices as in the model's training data",
            )
    return x, y


def check_rows(spec: TensorSpec, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Check an array of rows against a batched tensor; give it back contiguous.

    Raises:
        TrainingError: wrong dtype or shape, or values that are not finite.
    """
    if rows.dtype != np.dtype(spec.dtype) or rows.ndim == 0 or rows.shape[1:] != spec.shape[1:]:
        wanted = ", ".join(["batch", *(str(dimension) for dimension in spec.shape[1:])])
        raise TrainingError(
            f"{spec.name} is {rows.dtype}{list(rows.shape)}, the model takes {spec.dtype}[{wanted}]",
            hint="prepare examples as the model was exported to take them",
        )
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise TrainingError(f"{spec.name} holds NaN or infinity", hint="drop or repair those examples")
    return np.ascontiguousarray(rows)
