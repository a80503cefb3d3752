"""The port behind which local training happens. Knows no runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import TrainingError
from edge_sdk.training.layout import Vector
from edge_sdk.training.manifest import Manifest, TensorSpec
from edge_sdk.training.plan import TrainingPlan, TrainingResult

Rows: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""Examples by field, inputs and target "y"; the first dimension of each array is the rows, which belong together."""


Places: TypeAlias = npt.NDArray[np.int64]
"""Which examples: places counted from 0, 1-D."""


class Examples(Protocol):
    """Examples that are read when they are asked for, so that no more are in memory than are at work."""

    def __len__(self) -> int:
        """How many there are, or were when they were listed."""
        ...

    def take(self, places: Places) -> tuple[Places, dict[str, npt.NDArray[Any]]]:
        """The examples at these places, in this order. Those that are gone are left out, and so are their places.

        Raises:
            StoreError: they cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class InMemory:
    """Examples that are in memory anyway."""

    rows: Rows = field(repr=False)

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def take(self, places: Places) -> tuple[Places, dict[str, npt.NDArray[Any]]]:
        """See `Examples`: all are there."""
        return places, {name: array[places] for name, array in self.rows.items()}


def everything(examples: Examples) -> dict[str, npt.NDArray[Any]]:
    """All examples in memory."""
    return examples.take(np.arange(len(examples)))[1]


class TrainingInterrupted(TrainingError):
    """Training was asked to stop before it was done; nothing of it is used."""


class Trainer(Protocol):
    """Trains a model on this device's examples."""

    def train(
        self,
        checkpoint: Vector,
        examples: Rows | Examples,
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


def checked(manifest: Manifest, examples: Rows | Examples) -> Examples:
    """Examples of the fields that the model takes: those in memory are checked now, others when they are taken.

    Raises:
        TrainingError: see `check_examples`; taking them raises it too.
    """
    if isinstance(examples, Mapping):
        return InMemory(check_examples(manifest, examples))
    found = _Checked(manifest, examples)
    if len(examples) == 0:
        raise _none_at_all()
    found.take(np.arange(0))  # tells the fields
    return found


def check_examples(manifest: Manifest, examples: Rows) -> dict[str, npt.NDArray[Any]]:
    """Check examples against what the model takes; give the fields that it takes back as contiguous arrays.

    Raises:
        TrainingError: no examples, a field missing, wrong dtype or shape, lengths that differ, values that are not
            finite, or a label outside the classes.
    """
    found = _check(manifest, examples)
    if len(found[manifest.target.name]) == 0:
        raise _none_at_all()
    return found


@dataclass(frozen=True, slots=True)
class _Checked:
    manifest: Manifest
    examples: Examples

    def __len__(self) -> int:
        return len(self.examples)

    def take(self, places: Places) -> tuple[Places, dict[str, npt.NDArray[Any]]]:
        found, rows = self.examples.take(places)
        return found, _check(self.manifest, rows)


def _check(manifest: Manifest, examples: Rows) -> dict[str, npt.NDArray[Any]]:
    target = manifest.target
    found = check_inputs((*manifest.inputs, target), examples)
    count = len(found[target.name])
    for name, rows in found.items():
        if len(rows) != count:
            raise TrainingError(
                f"{len(rows)} rows of {name} but {count} of {target.name}", hint="give every example its target"
            )
    if manifest.classes is not None:
        labels = found[target.name]
        labels = labels if manifest.ignored_label is None else labels[labels != manifest.ignored_label]
        if labels.size and (labels.min() < 0 or labels.max() >= manifest.classes):
            raise TrainingError(
                f"labels must lie in 0..{manifest.classes - 1}, here are {labels.min()}..{labels.max()}",
                hint="map labels to class indices as in the model's training data",
            )
    return found


def _none_at_all() -> TrainingError:
    return TrainingError("there are no examples", hint="add examples to the store before training")


def check_inputs(specs: Sequence[TensorSpec], rows: Rows) -> dict[str, npt.NDArray[Any]]:
    """Check the fields that the specs name, and give them back contiguous; others are left out.

    Raises:
        TrainingError: a field is missing, has the wrong dtype or shape, or values that are not finite.
    """
    missing = [spec.name for spec in specs if spec.name not in rows]
    if missing:
        raise TrainingError(
            f"the model takes {', '.join(spec.name for spec in specs)}; {', '.join(missing)} is not among the fields "
            f"{', '.join(rows) or '(none)'}",
            hint="name the fields as the model was exported with them: see `edge inspect`",
        )
    return {spec.name: _check_rows(spec, rows[spec.name]) for spec in specs}


def _check_rows(spec: TensorSpec, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Check an array of rows against a batched tensor; give it back contiguous."""
    if rows.dtype != np.dtype(spec.dtype) or rows.ndim == 0 or rows.shape[1:] != spec.shape[1:]:
        wanted = ", ".join(["batch", *(str(dimension) for dimension in spec.shape[1:])])
        raise TrainingError(
            f"{spec.name} is {rows.dtype}{list(rows.shape)}, the model takes {spec.dtype}[{wanted}]",
            hint="prepare examples as the model was exported to take them",
        )
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise TrainingError(f"{spec.name} holds NaN or infinity", hint="drop or repair those examples")
    return np.ascontiguousarray(rows)
