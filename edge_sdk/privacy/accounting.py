"""A small Renyi-DP accountant for distributed integer noise: by it a device checks a plan and keeps its own ledger.

Independent of any library, so that it also cross-checks the coordinator's accountant. Add-or-remove-one
device is the neighbouring relation. Skellam: Agarwal, Kairouz and Liu 2021, "The Skellam Mechanism for
Differentially Private Federated Learning", for integer orders. Discrete Gaussian: Kairouz, Liu and Steinke 2021, "The
Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation", proposition 14. Conversion to
epsilon and delta: Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import PrivacyError
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.privacy.quantize import l1_bound

ORDERS = (*range(2, 257), *range(288, 1025, 32), 2048, 4096, 8192)
"""The Renyi orders looked at; the theorem holds for integers."""

_ROUNDING = 1e-9  # so that a tenth of 70 is 7


@dataclass(frozen=True, slots=True)
class Release:
    """One sum of integer vectors plus noise.

    Attributes:
        mechanism: of the noise.
        norm_bound: D2, the most one device moves the sum in the 2-norm.
        length: coordinates of the sum.
        device_variance: of the noise that each device added, per coordinate.
        honest: devices whose noise is unknown to any attacker.
    """

    mechanism: Mechanism
    norm_bound: float
    length: int
    device_variance: int
    honest: int

    @property
    def l1_bound(self) -> float:
        """D1, the most one device moves the sum in the 1-norm."""
        return l1_bound(self.norm_bound, self.length)

    @property
    def variance(self) -> int:
        """Of the noise that is counted on, per coordinate; 0 where there is none."""
        return 0 if self.mechanism is Mechanism.NONE else self.device_variance * self.honest


def honest_reports(reports: int, roster: int, corrupt_share: float) -> int:
    """Return reports - floor(corrupt_share * roster), at least 1: the devices of a sum whose noise is counted on.

    The colluders are a share of the roster, and a coordinator can see to it that all of them are in the smallest sum
    while honest devices drop out.
    """
    return max(1, reports - math.floor(corrupt_share * roster + _ROUNDING))


def rdp_epsilon(releases: Iterable[Release], delta: float) -> float:
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


def renyi_divergences(release: Release) -> NDArray[np.float64]:
    """Return the bound on the Renyi divergence at each of ORDERS.

    Raises:
        PrivacyError: the release is without noise or without a bound.
    """
    square, mu = release.norm_bound**2, release.variance
    if not (mu > 0 and math.isfinite(square) and release.length > 0):
        raise PrivacyError(
            f"a release with variance {mu} and norm bound {release.norm_bound} has no epsilon",
            hint="turn noise on",
        )
    orders = np.array(ORDERS, np.float64)
    if release.mechanism is Mechanism.DISCRETE_GAUSSIAN:
        gap = sum_divergence(release.device_variance, release.honest) * release.length
        return np.asarray(orders * square / (2.0 * mu) + gap, np.float64)
    return orders * square / (2.0 * mu) + _skellam_correction(orders, square, release.l1_bound, mu)


def sum_divergence(device_variance: int, devices: int) -> float:
    """Return tau, the max divergence of a sum of discrete Gaussians from the discrete Gaussian of its variance.

    tau = 10 sum_{k=1}^{n-1} exp(-2 pi^2 v k/(k+1)), of one coordinate, v at least 1/4.
    """
    k = np.arange(1, devices, dtype=np.float64)
    return float(10 * np.exp(-2 * math.pi**2 * device_variance * k / (k + 1)).sum())


def _skellam_correction(orders: NDArray[np.float64], square: float, l1: float, mu: int) -> NDArray[np.float64]:
    """Return min(((2 alpha - 1) D2^2 + 6 D1)/(4 mu^2), 3 D1/(2 mu)).

    Where 6 D1 < D2^2, a D2^2 in the first bound is rounded up to 6 D1, as zCDP accountants must.
    """
    first = (2 * orders * square + max(0.0, 6 * l1 - square)) / (4.0 * mu * mu)
    return np.asarray(np.minimum(first, 3 * l1 / (2.0 * mu)), np.float64)
