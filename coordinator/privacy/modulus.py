"""How large a modulus must be, so that no coordinate of the largest sum is likely to leave it.

The largest sum is that of all devices sending the same update of the full clip norm. Its rotated coordinates are
sub-Gaussian over the round's signs (edge_sdk.privacy.rotate), rounding errors are bounded and independent, and
the noise has a moment generating function: Chernoff's bound over their sum, and a union bound over coordinates. A
sum that does leave the modulus is most likely seen at its edge and refused (edge_sdk.privacy.encode.decode).
"""

from __future__ import annotations

import math

from edge_sdk.privacy.encode import HEADROOM
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.privacy.rotate import block_length

OVERFLOW_CHANCE = 2.0**-20
"""Of any coordinate of a round's largest sum; as often as a round may fail for too few shares."""


def deviations(length: int) -> float:
    """Return k_s: half the modulus is this many standard deviations of a coordinate of the largest sum.

    Aims at half of OVERFLOW_CHANCE for Gaussian tails: the rest is for noise that is rounded up or has heavier tails.
    """
    return math.sqrt(2 * math.log(2 * length / (OVERFLOW_CHANCE / 2))) / HEADROOM


def signal_variance(clip_norm: float, length: int, devices: int) -> float:
    """Return the variance proxy of a coordinate of the sum of the same update from all devices, unscaled."""
    return (clip_norm * devices) ** 2 / block_length(length)


def overflow_chance(
    *, bits: int, signal: float, length: int, devices: int, mechanism: Mechanism, device_variance: int
) -> float:
    """Return a bound on the chance that any coordinate of the largest sum comes too near the edge of the modulus.

    Args:
        signal: the variance proxy of the sum without rounding and noise, in integer steps.
    """
    edge = HEADROOM * 2.0 ** (bits - 1)
    known = signal + devices / 4
    noise = devices * device_variance if mechanism is not Mechanism.NONE else 0
    # Any t gives a bound; this one is the best for Gaussian tails, and good enough where the edge is far away.
    t = min(1.0, edge / (known + noise))
    # Of Skellam and of the discrete Gaussian, which is sub-Gaussian.
    growth = math.cosh(t) - 1 if mechanism is Mechanism.SKELLAM else t * t / 2
    exponent = -t * edge + t * t * known / 2 + noise * growth
    return min(1.0, math.exp(min(0.0, math.log(2 * length) + exponent)))
