"""A personal model: the global model's parameters, fine-tuned on this device, and how they did against the global ones.

It is bound to the global model that it was tuned from and is of no use with another. It never leaves the device. Files
only; what tunes and compares is `training.learner`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ArtifactError, StoreError
from edge_sdk.training.layout import Vector, encode_vector

log = logging.getLogger("edge.device")

MIN_EXAMPLES: Final = 20
"""Held-out examples below which nothing is concluded."""
STANDARD_ERRORS: Final = 2.0
"""By so many standard errors of the mean must the personal model be better, which chance alone does in one of forty."""

_STATE_FILE: Final = "personal.json"
_CHECKPOINT_FILE: Final = "personal.checkpoint"


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a personal model did against the global one that it was tuned from, on held-out examples of this device.

    Attributes:
        base_sha256: of the global checkpoint, in hexadecimal.
        sha256: of the personal one; empty where tuning failed.
        trained_on: examples that it was tuned on.
        examples: held-out examples that both were measured on.
        global_loss, personal_loss: means over these.
        gain: the mean of what each example's loss fell by; its standard error is `noise`.
    """

    base_sha256: str
    sha256: str
    trained_on: int
    examples: int
    global_loss: float
    personal_loss: float
    gain: float
    noise: float

    @property
    def wins(self) -> bool:
        """Whether the personal model is better by more than noise."""
        return self.sha256 != "" and self.examples >= MIN_EXAMPLES and self.gain > STANDARD_ERRORS * self.noise


def compared(
    global_losses: NDArray[np.float64], personal_losses: NDArray[np.float64]
) -> tuple[int, float, float, float, float]:
    """Compare two models' losses example by example.

    Args:
        global_losses, personal_losses: of the same examples, in the same order. Those without a global loss, such as
            sequences of ignored labels only, do not count.

    Returns:
        How many counted, both mean losses, the mean gain and its standard error. A personal loss that is not finite
        makes the gain minus infinity.
    """
    counts = np.isfinite(global_losses)
    before, after = global_losses[counts], personal_losses[counts]
    if len(before) < 2:
        return len(before), 0.0, 0.0, 0.0, 0.0
    gains = before - after
    if not np.isfinite(gains).all():
        return len(before), float(before.mean()), math.inf, -math.inf, 0.0
    noise = float(gains.std(ddof=1)) / math.sqrt(len(gains))
    return len(gains), float(before.mean()), float(after.mean()), float(gains.mean()), noise


class PersonalModel:
    """One population's personal model on this device.

    Args:
        folder: created where missing, for its owner only.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def comparison(self) -> Comparison | None:
        """The newest comparison; None where there is none, or it cannot be read: then the model is tuned anew."""
        path = self._folder / _STATE_FILE
        try:
            return Comparison(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, TypeError, ValueError) as error:
            log.warning("%s cannot be read: %s", path, error)
            return None

    def checkpoint(self, comparison: Comparison) -> bytes:
        """The parameters that were compared, float32 little-endian in layout order.

        Raises:
            StoreError, ArtifactError: they cannot be read, or were damaged or replaced since.
        """
        path = self._folder / _CHECKPOINT_FILE
        try:
            data = path.read_bytes()
        except OSError as error:
            raise self._failed(error) from error
        if hashlib.sha256(data).hexdigest() != comparison.sha256:
            raise ArtifactError(f"{path} was damaged", hint="the global model serves; the model is tuned anew")
        return data

    def keep(self, comparison: Comparison, checkpoint: Vector | None) -> None:
        """Keep a comparison, and the parameters if they won; those before go.

        Raises:
            StoreError: they cannot be written.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if checkpoint is not None and comparison.wins:
                self._replace(_CHECKPOINT_FILE, encode_vector(checkpoint))
            self._replace(_STATE_FILE, json.dumps(asdict(comparison)).encode())
            if not comparison.wins:
                (self._folder / _CHECKPOINT_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise self._failed(error) from error

    def _replace(self, name: str, data: bytes) -> None:
        part = self._folder / f"{name}.part"
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        part.replace(self._folder / name)

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(
            f"cannot use the personal model in {self._folder}: {error.strerror or error}",
            hint="check the disk's free space and the folder's permissions",
        )
