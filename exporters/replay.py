"""Certify an exported step: replay it on the runtime that it is for against float64 autograd, step by step.

Every step starts from one shared state, so that float32 chaos cannot build up. A ReLU or a pooling window that lies on
its kink to the last digit may fall on the other side: such a step is tried again with other examples, since a wrong
operator fails always. Where PyTorch's own float32 falls there too, what a few units do is allowed for; what moves a
gradient as a whole is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ExportError, TrainingError
from edge_sdk.training.graphs import OpenGraph, run_named
from edge_sdk.training.manifest import BatchRange, Replay
from edge_sdk.training.steps import TrainingSteps
from exporters.drawing import Examples, Inputs, nearest_size
from exporters.private_step import PrivateStep
from exporters.reference import ANY_BATCH, Arrays, Autograd, Reference
from exporters.step import LOSS, NEXT, PROXIMAL, TARGET, Step

STEPS = 20

_BATCH_SIZES = (4, 1, 7, 16)
# The reference of a private step differentiates once for each example.
_PRIVATE_BATCH_SIZES = (4, 1, 7)
_ATTEMPTS = 4
_RATE_FACTORS = (1.0, 1.0, 1.0, 10.0, 1.0, 0.1)
"""Learning rates tried, as multiples of the default: it must be a true input."""
# How many times what is allowed a reference may move when its parameters do by a hair, and still be called smooth.
_JUMP = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Graphs:
    """The graphs of a bundle, open."""

    train: TrainingSteps
    evaluate: OpenGraph
    infer: OpenGraph
    gradient: OpenGraph | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """A step that passed: its inputs, what the runtime found, and how much each value was allowed to err."""

    inputs: Arrays
    found: Arrays
    allowed: Arrays

    @property
    def after(self) -> dict[str, npt.NDArray[Any]]:
        """The state it leads to."""
        return {name.removeprefix(NEXT): value for name, value in self.found.items() if name.startswith(NEXT)}


def certify(step: Step, graphs: Graphs, examples: Examples, *, learning_rate: float, batch: BatchRange) -> Replay:
    """Replay a step from the model's own parameters, from all zeros and on zero inputs, with batches of such sizes.

    Raises:
        ExportError: a step differs from float64 by more than its tolerance, or cannot run.
    """
    replayer = Replayer(step, graphs, examples)
    initial = {name: tensor.numpy() for name, tensor in step.initial_state().items()}
    wanted = _PRIVATE_BATCH_SIZES if isinstance(step, PrivateStep) else _BATCH_SIZES
    sizes = tuple(dict.fromkeys(nearest_size(size, batch) for size in wanted))
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
    return Replay(STEPS, sizes, replayer.reference.tolerance, round(replayer.worst, 4))


class Replayer:
    """Runs single steps on a runtime and in float64, and compares them."""

    def __init__(self, step: Step, graphs: Graphs, examples: Examples) -> None:
        self._step, self._graphs = step, graphs
        self.reference = Autograd(step)
        self._inputs = Inputs(self.reference.step, examples)
        self.worst = 0.0

    def compare(self, state: Arrays, batch: int, learning_rate: float, what: str) -> Compared:
        """Take one step both ways; `what` names it in the error.

        Raises:
            ExportError: the values differ by more than they may, on every attempt.
        """
        complaint = ""
        for attempt in range(_ATTEMPTS):
            inputs = self._inputs.draw(state, batch, learning_rate)
            trained, served = self.reference.trained(inputs, rounded=attempt > 0), self.reference.served(inputs)
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
                return Compared(inputs, found, trained.allowed)
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
            inputs = self._inputs.draw(zeros, batch, learning_rate)
            random = np.random.default_rng(0)
            near = {
                name: np.asarray(value + 1e-9 * random.standard_normal(value.shape), value.dtype)
                if name.startswith("parameter:")
                else value
                for name, value in inputs.items()
            }
            there, beside = (self.reference.trained(chosen, finite=False) for chosen in (inputs, near))
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
        inputs = self._inputs.draw(state, batch, learning_rate)
        inputs |= {name: np.zeros_like(inputs[name]) for name in self._step.arguments.names}
        self._check_finite(inputs, self.reference.trained(inputs, finite=False), "examples")

    def _check_finite(self, inputs: Arrays, reference: Reference, what: str) -> None:
        if not all(np.isfinite(value).all() for value in reference.expected.values()):
            return  # The model itself is undefined there.
        found = _run(self._graphs.train.run, inputs)
        finite = all(np.isfinite(value).all() for value in found.values())
        # In evaluation mode, since batch norms over equal values make much of how they were rounded.
        evaluated = _shares(_run(partial(run_named, self._graphs.evaluate), inputs), self.reference.served(inputs))
        wrong = any(share > 1.0 for share, name, _ in evaluated if name == LOSS)
        if not finite or wrong:
            raise ExportError(
                f"the exported graph does not match float64 autograd on {what} that are all zero",
                hint="please report the model, since the exporter gets one of its operators wrong",
            )


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


def _run(run: Callable[[Arrays], dict[str, npt.NDArray[Any]]], inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    try:
        return run(inputs)
    except TrainingError as error:
        raise ExportError(
            f"the exported graph cannot run a batch of {len(inputs[TARGET])}: {error}", hint=ANY_BATCH
        ) from error


def _shares(found: Arrays, reference: Reference) -> list[tuple[float, str, float]]:
    """For each value its largest error as a share of what is allowed, its name, and that error."""
    result = []
    for name, value in found.items():
        error = np.abs(value.astype(np.float64) - reference.expected[name])
        share = (error / reference.allowed[name]).max(initial=0.0)
        if name in reference.whole:
            share = max(share, np.linalg.norm(error) / np.linalg.norm(reference.whole[name]))
        result.append((float(np.nan_to_num(share, nan=np.inf)), name, float(error.max(initial=0.0))))
    return result
