"""Certify an exported step: replay it on the runtime that it is for against float64 autograd, step by step.

Every step starts from one shared state, so that float32 chaos cannot build up. What may differ is a gradient,
by a small part of its tensor's largest; the optimizer maps that allowance to parameters and slots. A ReLU or
a pooling window that lies on its kink to the last digit may fall on the other side: such a step is tried
again with other examples, since a wrong operator fails always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_sdk.errors import ExportError, TrainingError
from edge_sdk.training.graphs import OpenGraph, run_named
from edge_sdk.training.layout import Layout
from edge_sdk.training.manifest import BatchRange, ParitySpec, ParityStep, Replay
from edge_sdk.training.parity import ParityValues, encode_parity, parity_weights
from edge_sdk.training.plan import SEED_LIMIT
from edge_sdk.training.steps import TrainingSteps
from exporters.lowering import Labels
from exporters.optimizers import Stepped
from exporters.private_step import CLIP_NORM, WEIGHT, PrivateStep
from exporters.step import (
    GRADIENT,
    LEARNING_RATE,
    LOSS,
    MODEL_ERRORS,
    NEXT,
    OUTPUT,
    PROXIMAL,
    SEED,
    TARGET,
    Backward,
    Step,
    Tensors,
)
from exporters.wide import in_float64

Arrays = Mapping[str, npt.NDArray[Any]]

STEPS = 20
GRADIENT_TOLERANCE = 5e-5
"""Of the largest gradient in a tensor."""

_BATCH_SIZES = (4, 1, 7, 16)
# The reference of a private step differentiates once for each example.
_PRIVATE_BATCH_SIZES = (4, 1, 7)
_ATTEMPTS = 4
_RATE_FACTORS = (1.0, 1.0, 1.0, 10.0, 1.0, 0.1)
"""Learning rates tried, as multiples of the default: it must be a true input."""

# Of the largest gradient in the model: what is left of a gradient that is zero by cancellation.
_SHARED_TOLERANCE = 4e-6
_LOSS_TOLERANCE = 1e-5
_OUTPUT_TOLERANCE = 1e-4
_ROUNDING = 5e-7
_BUFFER_ROUNDING = 1e-6
# Of the error of PyTorch's own float32, and how many times the usual margins at most: then half a gradient.
_NOISE = 20.0
_NOISE_LIMIT = 0.5 / GRADIENT_TOLERANCE
# How many times what is allowed a reference may move when its parameters do by a hair, and still be called smooth.
_JUMP = 10.0
# Where training is private: how many examples count, and clip norms tried, as multiples of some gradient's norm.
_COUNTED = 0.8
_CLIP_FACTORS = (1.0, 0.3, 1.2, 100.0)
# How many labels are ignored ones, where the example has any.
_IGNORED = 0.1

_ANY_BATCH = (
    "let forward work for any number of examples, one too: avoid squeeze() without a dimension, and sizes written out"
)

_PARITY_BATCHES = (4, 1, 3)
_PARITY_SAMPLES = 1024
# Another processor rounds otherwise, and the parity vector's steps follow each other.
_DEVICE_SLACK = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Graphs:
    """The graphs of a bundle, open."""

    train: TrainingSteps
    evaluate: OpenGraph
    infer: OpenGraph
    gradient: OpenGraph | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Compared:
    """A step that passed: its inputs, what the runtime found, and how much each value was allowed to err."""

    inputs: Arrays
    found: Arrays
    allowed: Arrays

    @property
    def after(self) -> dict[str, npt.NDArray[Any]]:
        """The state it leads to."""
        return {name.removeprefix(NEXT): value for name, value in self.found.items() if name.startswith(NEXT)}


@dataclass(frozen=True, slots=True, eq=False)
class _Reference:
    """What float64 says a graph gives, and by how much each value may differ."""

    expected: Arrays
    allowed: Arrays


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


def certify(step: Step, graphs: Graphs, examples: Examples, *, learning_rate: float, batch: BatchRange) -> Replay:
    """Replay a step from the model's own parameters, from all zeros and on zero inputs, with batches of such sizes.

    Raises:
        ExportError: a step differs from float64 by more than its tolerance, or cannot run.
    """
    replayer = _Replayer(step, graphs, examples)
    initial = {name: tensor.numpy() for name, tensor in step.initial_state().items()}
    wanted = _PRIVATE_BATCH_SIZES if isinstance(step, PrivateStep) else _BATCH_SIZES
    sizes = tuple(dict.fromkeys(_near(size, batch) for size in wanted))
    state = initial | _corrections(initial)
    for index in range(STEPS - 2):
        factor = _RATE_FACTORS[index % len(_RATE_FACTORS)]
        compared = replayer.compare(state, sizes[index % len(sizes)], factor * learning_rate, f"step {index + 1}")
        if factor == 1.0:
            state |= compared.after
    # With all parameters at zero, most gradients are exactly zero: what divides by them shows.
    zeros = {name: value if name.startswith("buffer:") else np.zeros_like(value) for name, value in initial.items()}
    replayer.check_zero_parameters(zeros, sizes[0], learning_rate)
    replayer.check_zero_input(state, sizes[0], learning_rate)
    return Replay(STEPS, sizes, replayer.tolerance, round(replayer.worst, 4))


class _Replayer:
    """Runs single steps on a runtime and in float64, and compares them."""

    def __init__(self, step: Step, graphs: Graphs, examples: Examples) -> None:
        self._step, self._single = step.double(), step
        self._graphs = graphs
        self._examples = examples
        self.input_names = step.arguments.names
        self._seeds = np.random.default_rng(20260501)
        self.worst, self.slack = 0.0, 1.0

    @property
    def tolerance(self) -> float:
        """How much of the largest gradient of its tensor a gradient was allowed to err, at most."""
        return float(f"{self.slack * GRADIENT_TOLERANCE:.3g}")

    def compare(self, state: Arrays, batch: int, learning_rate: float, what: str) -> _Compared:
        """Take one step both ways; `what` names it in the error.

        Raises:
            ExportError: the values differ by more than they may, on every attempt.
        """
        complaint = ""
        for attempt in range(_ATTEMPTS):
            inputs = self._inputs(state, batch, learning_rate)
            trained, served = self._trained(inputs, rounded=attempt > 0), self._served(inputs)
            found = _run(self._graphs.train.run, inputs)
            compared = [
                *_shares(found, trained),
                *_shares(_run(partial(run_named, self._graphs.evaluate), inputs), served),
                *_shares(_run(partial(run_named, self._graphs.infer), inputs), served),
            ]
            if self._graphs.gradient is not None:
                compared += _shares(_run(partial(run_named, self._graphs.gradient), inputs), trained)
            worst = max(share for share, _, _ in compared)
            if worst <= 1.0:
                self.worst = max(self.worst, worst)
                return _Compared(inputs, found, trained.allowed)
            share, name, error = max(compared)
            complaint = (
                f"{what} (batch {batch}): {name.removeprefix(NEXT)} is off by {error:.2e}, "
                f"{share:.1f} times what is allowed"
            )
        raise ExportError(
            f"the exported graph does not match float64 autograd at {complaint}",
            hint="scale inputs to about 1 if they are large; if only batch 1 fails, avoid squeeze() without a "
            "dimension; otherwise please report the model, since the exporter gets one of its operators wrong",
        )

    def parity_settings(self, batch: int) -> dict[str, npt.NDArray[Any]]:
        """What a device feeds besides examples and state when it replays a parity step, where training is private."""
        if not isinstance(self._step, PrivateStep):
            return {}
        return {WEIGHT: parity_weights(batch), CLIP_NORM: np.array(self._step.privacy.clip_norm, np.float32)}

    def check_zero_parameters(self, zeros: Arrays, batch: int, learning_rate: float) -> None:
        """Take the step from parameters that are all zero.

        A model that is not smooth there (it divides by a norm, or picks the largest of equals) is only asked for the
        right loss and a finite step.

        Raises:
            ExportError: it is not the model's.
        """
        try:
            self.compare(zeros, batch, learning_rate, "the step from zero parameters")
        except ExportError:
            inputs = self._inputs(zeros, batch, learning_rate)
            random = np.random.default_rng(0)
            near = {
                name: np.asarray(value + 1e-9 * random.standard_normal(value.shape), value.dtype)
                if name.startswith("parameter:")
                else value
                for name, value in inputs.items()
            }
            there, beside = (self._trained(chosen, finite=False) for chosen in (inputs, near))
            jumps = any(not share <= _JUMP for share, _, _ in _shares(beside.expected, there))
            if not jumps:
                raise
            self._check_finite(inputs, there, "parameters")

    def check_zero_input(self, state: Arrays, batch: int, learning_rate: float) -> None:
        """On examples that are all zero, the loss must be right and the step finite.

        Equal activations tie everywhere then, and rounding decides which of them gets the gradient: so the
        parameters themselves are not compared.

        Raises:
            ExportError: they are not.
        """
        inputs = self._inputs(state, batch, learning_rate)
        inputs |= {name: np.zeros_like(inputs[name]) for name in self._step.arguments.names}
        self._check_finite(inputs, self._trained(inputs, finite=False), "examples")

    def _check_finite(self, inputs: Arrays, reference: _Reference, what: str) -> None:
        if not all(np.isfinite(value).all() for value in reference.expected.values()):
            return  # The model itself is undefined there.
        found = _run(self._graphs.train.run, inputs)
        finite = all(np.isfinite(value).all() for value in found.values())
        # In evaluation mode, since batch norms over equal values make much of how they were rounded.
        evaluated = _shares(_run(partial(run_named, self._graphs.evaluate), inputs), self._served(inputs))
        wrong = any(share > 1.0 for share, name, _ in evaluated if name == LOSS)
        if not finite or wrong:
            raise ExportError(
                f"the exported graph does not match float64 autograd on {what} that are all zero",
                hint="please report the model, since the exporter gets one of its operators wrong",
            )

    def _inputs(self, state: Arrays, batch: int, learning_rate: float) -> dict[str, npt.NDArray[Any]]:
        seed = np.array(self._seeds.integers(SEED_LIMIT), np.int64)
        rate = np.array(learning_rate, np.float32)
        inputs = {**state, **self._examples.draw(batch), LEARNING_RATE: rate, SEED: seed}
        if isinstance(self._step, PrivateStep):
            inputs = {**self._weighted(self._step, inputs), **state}
        return inputs

    def _weighted(self, step: PrivateStep, inputs: Arrays) -> Arrays:
        """With an example twice, some that do not count, and a clip norm that some of the gradients exceed."""
        batch = len(inputs[TARGET])
        fields = {name: inputs[name].copy() for name in (*self.input_names, TARGET)}
        for rows in fields.values():
            rows[batch // 2] = rows[0]
        weight = np.asarray(self._seeds.random(batch) < _COUNTED, np.float32)
        with _in_float64(inputs):
            norm = step.some_norm({name: _wide(value) for name, value in {**inputs, **fields}.items()})
        factor = _CLIP_FACTORS[int(self._seeds.integers(len(_CLIP_FACTORS)))]
        clip_norm = np.array(factor * norm if np.isfinite(norm) and norm else 1.0, np.float32)
        return {**inputs, **fields, WEIGHT: weight, CLIP_NORM: clip_norm}

    def _trained(self, inputs: Arrays, *, finite: bool = True, rounded: bool = False) -> _Reference:
        """What float64 says of a training step, and by how much each value may differ.

        With `rounded`, they may differ by a few times as much as PyTorch's own float32 does.
        """
        wide = {name: _wide(value) for name, value in inputs.items()}
        with _in_float64(inputs):
            gradients, loss, buffers = self._step.gradients(wide)
        if finite and not (torch.isfinite(loss) and all(torch.isfinite(g).all() for g in gradients)):
            raise ExportError(
                "the loss or a gradient of the example is not finite, even in float64",
                hint="pass example inputs and targets like the real ones, and check the model's initial values",
            )
        largest = [float(gradient.abs().max()) for gradient in gradients]
        margins = [GRADIENT_TOLERANCE * size + _SHARED_TOLERANCE * max(largest) + 1e-12 for size in largest]
        slack = self._rounding(inputs, gradients, margins) if rounded else 1.0
        margins = [slack * margin for margin in margins]
        middle = self._advanced(wide, gradients, buffers)
        above = self._advanced(wide, [g + margin for g, margin in zip(gradients, margins, strict=True)], buffers)
        below = self._advanced(wide, [g - margin for g, margin in zip(gradients, margins, strict=True)], buffers)
        expected, allowed = {LOSS: loss.numpy()}, {LOSS: slack * _loss_margin(loss)}
        if self._graphs.gradient is not None:
            for key, gradient, margin in zip(self._step.trainable, gradients, margins, strict=True):
                expected[GRADIENT + key], allowed[GRADIENT + key] = gradient.numpy(), np.array(margin)
        for name, value in middle.items():
            before = np.abs(inputs[name.removeprefix(NEXT)]).max(initial=0.0)
            move = np.abs(value - inputs[name.removeprefix(NEXT)]).max(initial=0.0)
            spread = np.maximum(np.abs(above[name] - value), np.abs(below[name] - value))
            expected[name] = value
            # A statistic may be zero by cancellation: what it is a mean of is about as large as a network's values are.
            rest = slack * _BUFFER_ROUNDING if name.startswith(f"{NEXT}buffer:") else 1e-12
            allowed[name] = spread + _ROUNDING * before + slack * GRADIENT_TOLERANCE * move + rest
        return _Reference(expected, allowed)

    def _rounding(self, inputs: Arrays, gradients: list[torch.Tensor], margins: list[float]) -> float:
        """How many times its margins a step may err, since PyTorch's own does in float32; at least once.

        In a deep network of ReLUs some lie on their kink in every batch, and a batch norm over few values blows
        rounding up. Where all of it is right, both are as wrong.
        """
        rough = self._in_float32(inputs).gradients
        errors = [float((g - single).abs().max()) for g, single in zip(gradients, rough, strict=True)]
        worst = max(error / margin for error, margin in zip(errors, margins, strict=True))
        slack = float(np.clip(np.nan_to_num(_NOISE * worst, nan=1.0), 1.0, _NOISE_LIMIT))
        self.slack = max(self.slack, slack)
        return slack

    def _in_float32(self, inputs: Arrays) -> Backward:
        return self._single.gradients({name: torch.from_numpy(np.array(value)) for name, value in inputs.items()})

    def _served(self, inputs: Arrays) -> _Reference:
        """What float64 says in evaluation mode."""
        with _in_float64(inputs):
            served = self._step.serve({name: _wide(value) for name, value in inputs.items()})
        margin = _OUTPUT_TOLERANCE * (1e-2 + float(served[OUTPUT].abs().max()))
        return _Reference(
            {name: value.numpy() for name, value in served.items()},
            {LOSS: _loss_margin(served[LOSS]), OUTPUT: np.array(margin)},
        )

    def _advanced(
        self, inputs: Tensors, gradients: list[torch.Tensor], buffers: Tensors
    ) -> dict[str, npt.NDArray[Any]]:
        stepped: Stepped = self._step.advance(inputs, gradients)
        return {name: tensor.numpy() for name, tensor in self._step.named(stepped, buffers).items()}


def make_parity(
    step: Step, graphs: Graphs, examples: Examples, *, learning_rate: float, layout: Layout, batch: BatchRange
) -> tuple[ParitySpec, bytes]:
    """Make the parity vector and its part, of batches of such sizes.

    Raises:
        ExportError: a step differs from float64 by more than its tolerance, or cannot run.
    """
    replayer = _Replayer(step, graphs, examples)
    initial = {name: tensor.numpy() for name, tensor in step.initial_state().items()}
    stride = -(-layout.size // _PARITY_SAMPLES)
    state, steps, values = dict(initial), [], []
    allowance = np.zeros(layout.size)
    # The device reads the rate as float64 from the manifest and feeds it as float32.
    for index, size in enumerate(_near(size, batch) for size in _PARITY_BATCHES):
        fixed = state | replayer.parity_settings(size)
        compared = replayer.compare(fixed, size, learning_rate, f"step {index + 1} of the parity vector")
        state |= compared.after
        names = [NEXT + entry.tensor for entry in layout.entries]
        expected = np.concatenate([compared.found[name].reshape(-1) for name in names])
        allowance += np.concatenate([compared.allowed[name].reshape(-1) for name in names])
        steps.append(
            ParityStep(
                size,
                learning_rate,
                int(compared.inputs[SEED]),
                float(compared.found[LOSS]),
                _DEVICE_SLACK * (index + 1) * float(compared.allowed[LOSS]),
            )
        )
        values.append(
            ParityValues(
                {name: compared.inputs[name] for name in (*replayer.input_names, TARGET)},
                expected[::stride].astype(np.float32),
                (_DEVICE_SLACK * allowance[::stride]).astype(np.float32),
            )
        )
    return ParitySpec(stride, tuple(steps)), encode_parity(values)


def _corrections(state: Arrays) -> dict[str, npt.NDArray[Any]]:
    """Corrections to try: those of a proximal term whose anchor is not quite the parameters."""
    random = np.random.default_rng(20190204)
    proximal = np.array(0.1, np.float32)
    found: dict[str, npt.NDArray[Any]] = {PROXIMAL: proximal} if PROXIMAL in state else {}
    for name, value in state.items():
        if name.startswith("correction:"):
            anchor = state[name.replace("correction:", "parameter:", 1)] + 0.1 * random.standard_normal(value.shape)
            found[name] = np.asarray(-proximal * anchor, np.float32)
    return found


def _near(size: int, batch: BatchRange) -> int:
    """The batch size nearest to a wanted one that the graphs take."""
    # Normalised over two or three examples, most of a gradient cancels, and what is left is rounding.
    least = 1 if batch.minimum == 1 else max(batch.minimum, 4)
    return min(max(size, least), batch.maximum)


def _run(run: Callable[[Arrays], dict[str, npt.NDArray[Any]]], inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    try:
        return run(inputs)
    except TrainingError as error:
        raise ExportError(
            f"the exported graph cannot run a batch of {len(inputs[TARGET])}: {error}", hint=_ANY_BATCH
        ) from error


def _shares(found: Arrays, reference: _Reference) -> list[tuple[float, str, float]]:
    """For each value its largest error as a share of what is allowed, its name, and that error."""
    result = []
    for name, value in found.items():
        error = np.abs(value.astype(np.float64) - reference.expected[name])
        share = float(np.nan_to_num((error / reference.allowed[name]).max(initial=0.0), nan=np.inf))
        result.append((share, name, float(error.max(initial=0.0))))
    return result


def _loss_margin(loss: torch.Tensor) -> npt.NDArray[Any]:
    return np.array(_LOSS_TOLERANCE * (1 + abs(float(loss))))


@contextmanager
def _in_float64(inputs: Arrays) -> Iterator[None]:
    """Compute in float64, and tell what the model itself raises on a batch of some size."""
    try:
        with in_float64():
            yield
    except MODEL_ERRORS as error:
        raise ExportError(
            f"the model or the loss fails on a batch of {len(inputs[TARGET])} in float64: {error}", hint=_ANY_BATCH
        ) from error


def _wide(value: npt.NDArray[Any]) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(value))
    return tensor.double() if tensor.dtype == torch.float32 else tensor
