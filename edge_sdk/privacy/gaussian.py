"""Discrete Gaussian noise wide enough for a fine grid, and sums of real numbers made private with it.

A table for a deviation of 450,000 would not fit a cache. Draws of a small one are joined instead: with X and Y discrete
Gaussian, k X + Y is one again but for a relative error of about exp(-2 pi^2 t^2), 1/t^2 = 1/var(X) + k^2/var(Y), since
the sum over the integers of a Gaussian that wide hardly depends on where it is centred (Poisson summation; Micciancio
and Walter 2017, "Gaussian Sampling over the Integers"). The scales below keep t^2 above 4.58, the error below 2^-127.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import PrivacyError
from edge_sdk.privacy.noise import Mechanism, sample
from edge_sdk.secagg.suite import Stream

_VARIANCE = 128**2
_SCALES = (1, 59, 3528)

DEVIATION = math.sqrt(_VARIANCE * sum(scale * scale for scale in _SCALES))
"""Standard deviation of a wide draw, about 451,600."""

_LARGEST = 1 << 52
_BLOCK = 1 << 15  # so that what is worked on stays in the cache


def sample_wide(count: int, stream: Stream) -> NDArray[np.int64]:
    """Return `count` draws of the discrete Gaussian of deviation `DEVIATION`: three of the small one for each."""
    total = np.zeros(count, np.int64)
    for scale in _SCALES:
        total += np.multiply(sample(Mechanism.DISCRETE_GAUSSIAN, _VARIANCE, count, stream), scale, dtype=np.int64)
    return total


def noised(
    total: NDArray[np.float64], sensitivity: float, noise_multiplier: float, stream: Stream
) -> NDArray[np.float64]:
    """Return `total` rounded to a grid, plus discrete Gaussian noise on it.

    The grid's step s is chosen so that the deviation is exactly noise_multiplier * (sensitivity + s * sqrt(length)),
    which counts in that rounding may move neighbouring totals apart by one step in each coordinate. What is released
    is an integer times the step, whatever the total was: its last bits tell nothing (Mironov 2012).

    Args:
        total: 1-D, finite.
        sensitivity: the most that one example moves the total, in the 2-norm.
        noise_multiplier: positive.
        stream: secret, and used for nothing else.

    Raises:
        PrivacyError: the multiplier is not positive, or too large for a grid this fine; or the total is too large.
    """
    if not (noise_multiplier > 0 and sensitivity > 0 and math.isfinite(sensitivity)):
        raise PrivacyError(f"noise multiplier {noise_multiplier} and sensitivity {sensitivity} must be positive")
    steps = DEVIATION / noise_multiplier - math.sqrt(len(total))
    if steps < math.sqrt(len(total)):
        raise PrivacyError(
            f"a noise multiplier of {noise_multiplier:g} is too large for {len(total)} coordinates",
            hint="train fewer parameters, or use less noise",
        )
    step = sensitivity / steps
    # Also false for NaN.
    if not max(abs(total.max(initial=0.0)), abs(total.min(initial=0.0))) / step < _LARGEST:
        raise PrivacyError("a total is too large, or not finite", hint="lower the learning rate")
    found = np.empty(len(total))
    for start in range(0, len(total), _BLOCK):
        block = slice(start, start + _BLOCK)
        # Integers, though of floating type: sums of integers below 2^53 are exact.
        integers = np.rint(total[block] / step)
        integers += sample_wide(len(integers), stream)
        np.multiply(integers, step, out=found[block])
    return found
