"""Adaptive clipping: the clip norm follows a quantile of the updates' norms, which no device tells.

Each device says in one more coordinate whether its update was within the clip norm; the noised mean of these gives the
share that was (Andrew, Thakkar, McMahan and Ramaswamy 2021, "Differentially Private Learning with Adaptive
Clipping"). Scale and the coordinate's size follow the clip norm, so that integers, noise and cost of a round stay what
they were calibrated to. Knows no rounds and no store.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_FURTHEST = 2.0**20
"""A clip norm that moved so far from where it began says that training went wrong; it stays there."""

BIT_NOISE_SHARE = 0.05
"""sigma_b, the noise on how many of the smallest sum were within the clip norm, over that sum; the paper's choice."""

LARGEST_SHARE = 0.3
"""No larger part of what a device sends: noise on the update grows by 5% at most."""


@dataclass(frozen=True, slots=True)
class AdaptiveClipping:
    """How the clip norm moves.

    Attributes:
        quantile: the share of updates that shall be within it.
        learning_rate: by what the logarithm of the norm moves, per unit that the share is off.
    """

    quantile: float
    learning_rate: float = 0.2

    def next_norm(self, clip_norm: float, within: float, *, start: float) -> float:
        """Return the next round's clip norm.

        Args:
            clip_norm: this round's.
            within: the share of updates within it, as estimated; noise may put it outside of 0 to 1.
            start: the first round's.
        """
        moved = clip_norm * math.exp(-self.learning_rate * (min(max(within, 0.0), 1.0) - self.quantile))
        return min(max(moved, start / _FURTHEST), start * _FURTHEST)


def bit_share(multiplier: float, min_reports: int) -> float:
    """Return the coordinate's part in the norm of what a device sends, where one noise covers it and the update.

    With z the noise that is counted on, over that norm, the coordinate alone has the multiplier 2 sigma_b = z / share,
    and the update z / sqrt(1 - share^2) = (z^-2 - (2 sigma_b)^-2)^(-1/2).

    Args:
        multiplier: all noise in the smallest sum, over that norm; 0 without noise.
        min_reports: devices in the smallest sum.
    """
    return min(multiplier / (2 * BIT_NOISE_SHARE * min_reports), LARGEST_SHARE) if multiplier else LARGEST_SHARE
