"""Local training on any runtime: a loop around the steps of a bundle's graphs."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import TrainingError
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.layout import Vector
from edge_sdk.training.manifest import Runtime
from edge_sdk.training.parity import require_parity
from edge_sdk.training.plan import TrainingPlan, TrainingResult, step_seed
from edge_sdk.training.steps import open_steps
from edge_sdk.training.trainer import Examples, Places, Rows, TrainingInterrupted, checked


class BundleTrainer:
    """Trains the model of a verified bundle; implements the `Trainer` port.

    Making one checks that this runtime reproduces the bundle's certified steps, once per bundle and process.

    Args:
        artifact: the bundle.
        entropy: gives that many secret random bytes, for samples and noise of training that is private.
        threads: that a step computes on.

    Raises:
        ArtifactError: the signature was not checked, or the runtime is too old or cannot load the graph.
        TrainingError: the runtime computes other values than the bundle was certified with.
    """

    def __init__(
        self,
        artifact: Artifact,
        runtime: Runtime = "onnx",
        *,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
        threads: int = 1,
    ) -> None:
        self._artifact, self._runtime = artifact, runtime
        self._steps = open_steps(artifact, runtime, entropy, threads)
        require_parity(artifact, runtime, threads)

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
        """Train from `checkpoint` (1-D float32, layout order), which stays as it is; see `Trainer`.

        Optimizer slots start at zero.

        Raises:
            TrainingInterrupted: `should_stop` said so before a step.
            TrainingError: unusable checkpoint, examples, plan or correction, or a loss or update that is not finite.
        """
        layout = self._artifact.layout
        rows = checked(self._artifact.manifest, examples)
        count = len(rows)
        self._check_plan(plan, count)
        feeds = self._steps.state(layout.unflatten(checkpoint))
        feeds["learning_rate"] = np.array(plan.learning_rate, np.float32)
        if plan.proximal or correction is not None:
            feeds |= self._corrected(checkpoint, plan.proximal, correction)

        steps, seen, loss_sum = 0, 0, 0.0
        used = np.zeros(count, np.bool_)
        for chosen in self._steps.samples(plan, count, seed):
            if should_stop is not None and should_stop():
                raise TrainingInterrupted(f"training was stopped after {steps} steps", hint="it can start again later")
            drawn = _Drawn(rows, chosen, plan.batch_size)
            loss = self._steps.take(feeds, drawn, plan, step_seed(seed, steps))
            if loss is None:
                continue  # The app's newer examples drove these out meanwhile, or they became too old.
            if not math.isfinite(loss):
                raise _diverged(f"the loss of step {steps + 1} is {loss}", plan)
            found = drawn.found
            steps, seen, loss_sum = steps + 1, seen + len(found), loss_sum + loss * len(found)
            used[found] = True

        if not used.any() and not self._artifact.manifest.privacy:
            raise TrainingError("all examples went while they were to be trained on", hint="keep them for longer")
        update = layout.flatten(feeds) - checkpoint
        if not np.isfinite(update).all():
            raise _diverged("the update holds NaN or infinity", plan)
        return TrainingResult(update, steps, int(used.sum()), loss_sum / max(seen, 1))

    def _corrected(
        self, checkpoint: Vector, proximal: float, correction: Vector | None
    ) -> dict[str, npt.NDArray[np.float32]]:
        """What to feed so that proximal * (parameter - checkpoint) + correction is added to gradients."""
        if not self._artifact.manifest.graph("train").takes("proximal"):
            raise TrainingError(
                "a proximal term or a correction is asked for, which this bundle does not take",
                hint="export it with correction=True (edge export --correction)",
            )
        layout, strength = self._artifact.layout, np.float32(proximal)
        whole = -strength * checkpoint
        if correction is not None:
            layout.check(correction, "the correction")
            whole += correction
        tensors = layout.unflatten(whole)
        corrections = {
            f"correction:{entry.name}": tensors[entry.tensor] for entry in layout.entries if entry.role == "parameter"
        }
        return corrections | {"proximal": np.array(strength)}

    def _check_plan(self, plan: TrainingPlan, examples: int) -> None:
        smallest, largest = self._steps.smallest, self._artifact.manifest.format(self._runtime).batch.maximum
        if min(plan.batch_size, examples) < smallest:
            raise TrainingError(
                f"this bundle's {self._runtime} graphs take batches of {smallest} or more: batches of "
                f"{plan.batch_size} are asked for, and there are {examples} examples",
                hint="raise the task's batch size, or add examples to the store before training",
            )
        if plan.batch_size > largest:
            raise TrainingError(
                f"the plan asks for batches of {plan.batch_size}, this bundle's {self._runtime} graphs take up to "
                f"{largest}",
                hint="lower the task's batch size, or export with a larger batch_max or compiled_batch",
            )


class _Drawn:
    """One step's examples, read part by part; once they were, `found` are the places of those that were there."""

    def __init__(self, examples: Examples, chosen: Places, part: int) -> None:
        self._examples, self._chosen, self._part = examples, chosen, part
        self.found = chosen[:0]

    def __iter__(self) -> Iterator[dict[str, npt.NDArray[Any]]]:
        for start in range(0, len(self._chosen), self._part):
            found, rows = self._examples.take(self._chosen[start : start + self._part])
            self.found = np.concatenate([self.found, found])
            yield rows


def _diverged(what: str, plan: TrainingPlan) -> TrainingError:
    return TrainingError(f"training diverged: {what}", hint=f"use a learning rate below {plan.learning_rate:g}")
