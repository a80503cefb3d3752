"""Clip an update to a ball. Knows nothing of what is done with it next."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import TrainingError

_BLOCK = 1 << 13  # below the length at which BLAS starts threads for a dot product


def clip(update: NDArray[np.float32], clip_norm: float) -> tuple[NDArray[np.float32], bool]:
    """Return update * min(1, clip_norm / ||update||_2) and whether it was scaled down.

    The result is a new 1-D vector, or the update itself where nothing was to be done.

    Raises:
        TrainingError: the update holds an infinity or a NaN.
    """
    square = 0.0
    for start in range(0, len(update), _BLOCK):
        block = update[start : start + _BLOCK].astype(np.float64)
        square += float(np.dot(block, block))
    norm = math.sqrt(square) if math.isfinite(square) else math.inf
    if not math.isfinite(norm):
        raise TrainingError("the update holds values that are not finite", hint="lower the learning rate")
    if norm <= clip_norm:
        return update, False
    return update * np.float32(clip_norm / norm), True
