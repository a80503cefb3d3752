"""Stochastic rounding to integers of bounded norm, without a bias and without a floating-point coin.

Knows nothing of clipping or noise. Cited formulas: Kairouz, Liu and Steinke 2021, "The Distributed Discrete
Gaussian Mechanism for Federated Learning with Secure Aggregation", section 4.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import TrainingError
from edge_sdk.secagg.suite import Stream

_TRIES = 200
_COIN_BITS = 32
_BLOCK = 1 << 14


def rounded_norm_bound(clip_norm: float, scale: float, length: int) -> float:
    """Return D2, which a rounded vector exceeds with probability at most e^-1/2 and is redrawn then.

    D2^2 = min((sC)^2 + d/4 + sC + sqrt(d)/2, (sC + sqrt(d))^2) for d = `length` coordinates.
    """
    scaled, root = clip_norm * scale, math.sqrt(length)
    return math.sqrt(min(scaled**2 + length / 4 + scaled + root / 2, (scaled + root) ** 2))


def l1_bound(norm_bound: float, length: int) -> float:
    """Return D1, the largest 1-norm of an integer vector of 2-norm at most `norm_bound`."""
    return norm_bound * min(math.sqrt(length), norm_bound)


def stochastic_round(
    values: NDArray[np.floating[Any]], scale: float, norm_bound: float, entropy: bytes
) -> NDArray[np.int32]:
    """Return scale * values, each rounded up with probability its fraction, else down.

    The fraction, in float64, is compared as a 32-bit integer with 32 bits of the entropy's stream. The
    whole vector is drawn again, from the same stream, until its squared norm is at most norm_bound^2.

    Args:
        values: 1-D, finite, every |scale * value| below 2^31.
        entropy: 32 bytes of this use alone.

    Raises:
        TrainingError: two hundred draws were too long, so that the values cannot have been clipped.
    """
    rounded = np.empty(len(values), np.int32)
    limit = math.floor(norm_bound * norm_bound)
    stream = Stream(entropy)
    for _ in range(_TRIES):
        square = 0
        for start in range(0, len(values), _BLOCK):
            block = slice(start, start + _BLOCK)
            square += _round_block(values[block], scale, stream, rounded[block])
        if square <= limit:
            return rounded
    raise TrainingError(
        f"no rounding of the update has a norm below {norm_bound:g}",
        hint="the plan's norm bound does not fit its clip norm, scale and dimension",
    )


def _round_block(values: NDArray[np.floating[Any]], scale: float, stream: Stream, output: NDArray[np.int32]) -> int:
    """Round one block that stays in the cache, and return the sum of its squares."""
    scaled = values.astype(np.float64) * scale
    floors = np.floor(scaled)
    # A tiny negative value has a fraction that rounds to one, which 32 bits do not hold.
    chances = np.ldexp(scaled - floors, _COIN_BITS).astype(np.uint64)
    integers = floors.astype(np.int64)
    integers += stream.uint32(len(integers)) < chances
    output[:] = integers
    return int(np.dot(integers, integers))
