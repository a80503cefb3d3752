"""Draws what a step is tried on: batches like the example, and whatever else its graphs are fed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.training.manifest import BatchRange
from edge_sdk.training.plan import SEED_LIMIT
from exporters.lowering import Labels
from exporters.private_step import CLIP_NORM, WEIGHT, PrivateStep
from exporters.reference import Arrays, float64_of, widened
from exporters.step import LEARNING_RATE, SEED, TARGET, Step

# Where training is private: how many examples count, and clip norms tried, as multiples of some gradient's norm.
_COUNTED = 0.8
_CLIP_FACTORS = (1.0, 0.3, 1.2, 100.0)
# How many labels are ignored ones, where the example has any.
_IGNORED = 0.1


class Examples:
    """Draws batches like the example: its rows in any order, inputs shaken if they are floats.

    Args:
        arrays: inputs and target by name.
        labels: what the loss says of the target, if that is class indices.
    """

    def __init__(self, arrays: Arrays, labels: Labels | None) -> None:
        self._arrays, self._labels = arrays, labels
        self._random = np.random.default_rng(20190204)

    def draw(self, batch: int) -> dict[str, npt.NDArray[Any]]:
        """A batch of that size; another one each time."""
        rows = self._random.integers(len(self._arrays[TARGET]), size=batch)
        drawn = {name: array[rows] for name, array in self._arrays.items()}
        for name, array in drawn.items():
            if name != TARGET and array.dtype.kind == "f":
                scale = 0.1 * (float(self._arrays[name].std()) or 1.0)
                drawn[name] = np.asarray(array + scale * self._random.standard_normal(array.shape), array.dtype)
        if self._labels is not None:
            drawn[TARGET] = self._drawn_labels(drawn[TARGET], self._labels)
        return drawn

    def _drawn_labels(self, target: npt.NDArray[Any], labels: Labels) -> npt.NDArray[Any]:
        """Any labels of the target's shape, not all of them ignored."""
        drawn = self._random.integers(labels.classes, size=target.shape).astype(target.dtype)
        if labels.ignored in self._arrays[TARGET]:
            drawn[self._random.random(target.shape) < _IGNORED] = labels.ignored
        # A loss that is left no label to average over is not a number.
        first = (0,) * drawn.ndim
        drawn[first] = (labels.ignored + 1) % labels.classes if drawn[first] == labels.ignored else drawn[first]
        return drawn


class Inputs:
    """Draws all that a step is fed: state that is given, examples, seeds, and what private steps take.

    Args:
        step: in float64.
        examples: draws batches.
    """

    def __init__(self, step: Step, examples: Examples) -> None:
        self._step, self._examples = step, examples
        self._seeds = np.random.default_rng(20260501)

    def draw(self, state: Arrays, batch: int, learning_rate: float) -> dict[str, npt.NDArray[Any]]:
        """Inputs of a step from that state, with another batch and seed each time."""
        seed = np.array(self._seeds.integers(SEED_LIMIT), np.int64)
        rate = np.array(learning_rate, np.float32)
        inputs = {**state, **self._examples.draw(batch), LEARNING_RATE: rate, SEED: seed}
        if isinstance(self._step, PrivateStep):
            inputs = {**self._weighted(self._step, inputs), **state}
        return inputs

    def _weighted(self, step: PrivateStep, inputs: Arrays) -> Arrays:
        """With an example twice, some that do not count, and a clip norm that some of the gradients exceed."""
        batch = len(inputs[TARGET])
        fields = {name: inputs[name].copy() for name in (*step.arguments.names, TARGET)}
        for rows in fields.values():
            rows[batch // 2] = rows[0]
        weight = np.asarray(self._seeds.random(batch) < _COUNTED, np.float32)
        with float64_of(inputs):
            norm = step.some_norm({name: widened(value) for name, value in {**inputs, **fields}.items()})
        factor = _CLIP_FACTORS[int(self._seeds.integers(len(_CLIP_FACTORS)))]
        clip_norm = np.array(factor * norm if np.isfinite(norm) and norm else 1.0, np.float32)
        return {**inputs, **fields, WEIGHT: weight, CLIP_NORM: clip_norm}


def nearest_size(size: int, batch: BatchRange) -> int:
    """The batch size nearest to a wanted one that the graphs take."""
    # Normalised over two or three examples, most of a gradient cancels, and what is left is rounding.
    least = 1 if batch.minimum == 1 else max(batch.minimum, 4)
    return min(max(size, least), batch.maximum)
