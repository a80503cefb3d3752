"""A round's instructions to local training, and what came of it. Knows no runtime."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import TrainingError
from edge_sdk.training.layout import Vector

SEED_LIMIT = 1 << 31
"""Seeds of steps lie below."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How a device trains: passes over its examples, batch size, learning rate, and a cap on steps.

    `proximal` is FedProx's mu: mu / 2 times the squared distance to the checkpoint is added to what is minimised.

    Raises:
        TrainingError: a count below one, a learning rate that is not finite and positive, or a proximal that is
            negative or not finite.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    max_steps: int | None = None
    proximal: float = 0.0

    def __post_init__(self) -> None:
        counts = (self.epochs, self.batch_size, 1 if self.max_steps is None else self.max_steps)
        if min(counts) < 1:
            raise TrainingError(
                f"a training plan needs at least one epoch, one example a batch and one step: {self}",
                hint="correct the task's training settings",
            )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise TrainingError(
                f"learning rate {self.learning_rate} is not a positive number",
                hint="correct the task's training settings",
            )
        if not (math.isfinite(self.proximal) and self.proximal >= 0):
            raise TrainingError(
                f"proximal {self.proximal} is negative or not a number", hint="correct the task's training settings"
            )


@dataclass(frozen=True, slots=True, eq=False)
class TrainingResult:
    """What local training changed.

    Attributes:
        update: trained minus initial parameters, 1-D float32 in layout order.
        steps: optimizer steps taken.
        examples: distinct examples that took part in at least one step.
        loss: mean training loss over the steps, weighted by batch size.
    """

    update: Vector = field(repr=False)
    steps: int
    examples: int
    loss: float


def batches(plan: TrainingPlan, examples: int, seed: bytes, smallest: int = 1) -> Iterator[npt.NDArray[np.int64]]:
    """Choose the row indices of each step: a fresh shuffle every epoch.

    The last batch of an epoch may be short; below `smallest` it is left out.

    The shuffle orders rows by 8-byte little-endian keys, ties by row, read from
    SHAKE-256(b"edge-sdk/shuffle/1" || epoch as u32 little-endian || seed), so any language can repeat it.
    """
    steps = 0
    for epoch in range(plan.epochs):
        message = b"edge-sdk/shuffle/1" + epoch.to_bytes(4, "little") + seed
        keys = np.frombuffer(hashlib.shake_256(message).digest(8 * examples), "<u8")
        order = np.argsort(keys, kind="stable")
        for start in range(0, examples, plan.batch_size):
            rows = order[start : start + plan.batch_size]
            if len(rows) < smallest:
                break
            if plan.max_steps is not None and steps >= plan.max_steps:
                return
            steps += 1
            yield rows


def step_seed(seed: bytes, step: int) -> int:
    """The seed of one step's randomness, steps counting from zero: below 2**31.

    The first 4 bytes, little-endian and without the highest bit, of SHAKE-256(b"edge-sdk/step/1" || step as u32
    little-endian || seed).
    """
    digest = hashlib.shake_256(b"edge-sdk/step/1" + step.to_bytes(4, "little") + seed).digest(4)
    return int.from_bytes(digest, "little") % SEED_LIMIT
