"""Rules that combine the means of several cohorts so that a few poisoned cohorts cannot steer the result.

Under masks nobody sees a single update, so what can be compared are the means of cohorts that share no device. Median
and trimmed mean after Yin et al. 2018, "Byzantine-Robust Distributed Learning"; Krum after Blanchard et al. 2017,
"Machine Learning with Adversaries". Fewer than half of the cohorts may hold an attacker. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError

Vector = NDArray[np.float32]
Rule = Callable[[NDArray[np.float32]], Vector]
"""The means of all cohorts (cohorts x dimension) -> their combination."""


def median(groups: int) -> Rule:
    """Coordinate by coordinate the median."""
    return lambda means: np.median(means, axis=0).astype(np.float32)


def trimmed_mean(groups: int, *, trim: int = 1) -> Rule:
    """Coordinate by coordinate the mean of all but the `trim` largest and the `trim` smallest."""
    if not trim >= 1 or 2 * trim >= groups:
        raise ConfigError(f"of {groups} groups {trim} cannot be trimmed at each end", hint="give 2 * trim < groups")

    def combine(means: NDArray[np.float32]) -> Vector:
        mean: NDArray[np.float64] = np.sort(means, axis=0)[trim:-trim].mean(axis=0, dtype=np.float64)
        return mean.astype(np.float32)

    return combine


def krum(groups: int, *, faulty: int = 1) -> Rule:
    """The mean of those groups - faulty means that lie closest to their nearest neighbours (multi-Krum)."""
    if not faulty >= 1 or groups < 2 * faulty + 3:
        raise ConfigError(
            f"Krum over {groups} groups cannot withstand {faulty} faulty ones", hint="give 2 * faulty + 3 <= groups"
        )

    def combine(means: NDArray[np.float32]) -> Vector:
        wide = means.astype(np.float64)
        distances = ((wide[:, None] - wide[None]) ** 2).sum(axis=2)
        # Each mean's own zero distance comes first.
        scores = np.sort(distances, axis=1)[:, 1 : groups - faulty - 1].sum(axis=1)
        chosen = np.argsort(scores, kind="stable")[: groups - faulty]
        mean: NDArray[np.float64] = wide[np.sort(chosen)].mean(axis=0)
        return mean.astype(np.float32)

    return combine


RULES: Mapping[str, Callable[..., Rule]] = {"median": median, "trimmed_mean": trimmed_mean, "krum": krum}
