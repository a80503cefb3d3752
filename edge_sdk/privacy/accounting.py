"""A small Renyi-DP accountant for Skellam releases: by it a device checks a plan and keeps its own ledger.

Independent of any library, so that it also cross-checks the coordinator's accountant. Add-or-remove-one
device is the neighbouring relation. Formulas: Agarwal, Kairouz and Liu 2021, "The Skellam Mechanism for
Differentially Private Federated Learning", for integer orders; conversion to epsilon and delta: Canonne,
Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import PrivacyError
from edge_sdk.privacy.quantize import l1_bound
from edge_sdk.privacy.rotate import padded_length

ORDERS = (*range(2, 257), *range(288, 1025, 32), 2048, 4096, 8192)
"""The Renyi orders looked at; the theorem holds for integers."""

_ROUNDING = 1e-9  # so that a tenth of 70 is 7


@dataclass(frozen=True, slots=True)
class SkellamRelease:
    """One sum of integer vectors plus Skellam noise.

    Attributes:
        norm_bound: D2, the most one device moves the sum in the 2-norm.
        l1_bound: D1, the same in the 1-norm.
        variance: of the noise in the sum that is unknown to any attacker, per coordinate.
    """

    norm_bound: float
    l1_bound: float
    variance: int

    @classmethod
    def of_rounded(cls, *, norm_bound: float, dimension: int, variance: int) -> SkellamRelease:
        """Return the release of rounded, rotated updates of `dimension` coordinates before padding."""
        return cls(norm_bound, l1_bound(norm_bound, padded_length(dimension)), variance)


def honest_reports(reports: int, roster: int, corrupt_share: float) -> int:
    """Return reports - floor(corrupt_share * roster), at least 1: the devices of a sum whose noise is counted on.

    The colluders are a share of the roster, and a coordinator can see to it that all of them are in the smallest sum
    while honest devices drop out.
    """
    return max(1, reports - math.floor(corrupt_share * roster + _ROUNDING))


def rdp_epsilon(releases: Iterable[SkellamRelease], delta: float) -> float:
    """Return the least epsilon for which all releases together are (epsilon, delta)-DP; 0 for none.

    Raises:
        PrivacyError: delta is not in (0, 1), or a release is without noise or without a bound.
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"a delta of {delta} is not between 0 and 1")
    counts = Counter(releases)
    if not counts:
        return 0.0
    total = np.zeros(len(ORDERS))
    for release, count in counts.items():
        total += count * renyi_divergences(release)
    return epsilon_of(total, delta)


def epsilon_of(divergences: NDArray[np.float64], delta: float) -> float:
    """Return the least epsilon that Renyi divergences at each of ORDERS give at delta."""
    orders = np.array(ORDERS, np.float64)
    epsilons = divergences + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return max(0.0, float(epsilons.min()))


def renyi_divergences(release: SkellamRelease) -> NDArray[np.float64]:
    """Return the bound on the Renyi divergence at each of ORDERS.

    alpha D2^2/(2 mu) + min(((2 alpha - 1) D2^2 + 6 D1)/(4 mu^2), 3 D1/(2 mu)), mu the variance; where
    6 D1 < D2^2, a D2^2 in the first bound is rounded up to 6 D1, as zCDP accountants must.
    """
    square, mu = release.norm_bound**2, release.variance
    if not (mu > 0 and math.isfinite(square) and math.isfinite(release.l1_bound)):
        raise PrivacyError(
            f"a release with variance {mu} and norm bound {release.norm_bound} has no epsilon",
            hint="turn noise on",
        )
    orders = np.array(ORDERS, np.float64)
    constant = max(0.0, 6 * release.l1_bound - square)
    correction = (2 * orders * square + constant) / (4.0 * mu * mu)
    divergences: NDArray[np.float64] = orders * square / (2.0 * mu) + np.minimum(
        correction, 3 * release.l1_bound / (2.0 * mu)
    )
    return divergences
