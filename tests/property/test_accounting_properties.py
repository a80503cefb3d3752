"""Accounting, held to account: two accountants against each other, and the theorems against sums over all outcomes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coordinator.privacy import accountant
from coordinator.privacy.ledger import ReleaseEvent
from edge_sdk.privacy.accounting import ORDERS, Release, rdp_epsilon, renyi_divergences
from edge_sdk.privacy.noise import Mechanism, noise_table

AGREEMENT = 1e-9
LOGARITHMS = st.floats(0, 1)


def spread(share: float, lowest: float, highest: float) -> float:
    """A value in the range, evenly by its logarithm."""
    return lowest * float((highest / lowest) ** share)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([Mechanism.SKELLAM, Mechanism.DISCRETE_GAUSSIAN]),
    st.tuples(LOGARITHMS, LOGARITHMS, LOGARITHMS, LOGARITHMS),
    st.integers(1, 500),
    st.floats(0.05, 50),
)
def test_both_accountants_agree_on_any_run(
    mechanism: Mechanism, shares: tuple[float, float, float, float], rounds: int, multiplier: float
) -> None:
    """Over models of 1 to 2^27 parameters, cohorts up to 65,535, noise from far too little to plenty, and any delta."""
    length, honest, variance, delta = (
        round(spread(shares[0], 1, 1 << 27)),
        round(spread(shares[1], 1, 65_535)),
        round(spread(shares[2], 1, 1 << 28)),
        spread(shares[3], 1e-12, 0.1),
    )
    release = Release(mechanism, math.sqrt(variance * honest) / multiplier, length, variance, honest)
    theirs = accountant.epsilon([ReleaseEvent.of(release, honest)] * rounds, delta)
    # Where next to nothing is lost, theirs is zero by another argument.
    assert rdp_epsilon([release] * rounds, delta) == pytest.approx(theirs, rel=AGREEMENT, abs=1e-9)


def log_masses(mechanism: Mechanism, variance: int) -> NDArray[np.float64]:
    """The logarithms of the table's masses, values ascending; those below 2^-64, of its 2^-128, are left out."""
    table = noise_table(mechanism, variance)
    pairs = zip(table.high.tolist(), table.low.tolist(), strict=True)
    entries = [0, *(high << 64 | low for high, low in pairs), 1 << 128]
    masses = [after - before for before, after in itertools.pairwise(entries)]
    kept = [mass for mass in masses if mass > 1 << 64]
    return np.array([math.log(mass) - 128 * math.log(2) for mass in kept])


def divergence(masses: NDArray[np.float64], shift: int, order: int) -> float:
    """Renyi's, of a noise shifted from the same noise, from below: over those outcomes that both have a mass for."""
    terms = order * masses[:-shift] + (1 - order) * masses[shift:]
    top = float(terms.max())
    return (top + math.log(float(np.exp(terms - top).sum()))) / (order - 1)


@pytest.mark.parametrize("shift", [1, 2, 5])
@pytest.mark.parametrize("variance", [2, 10, 100, 1_000])
def test_skellam_never_costs_more_than_its_theorem_says(variance: int, shift: int) -> None:
    masses = log_masses(Mechanism.SKELLAM, variance)
    bounds = renyi_divergences(Release(Mechanism.SKELLAM, float(shift), 1, variance, 1))
    for order in (2, 3, 5, 8):
        found, bound = divergence(masses, shift, order), float(bounds[ORDERS.index(order)])
        assert found <= bound * (1 + 1e-9)
        # Tight where there is noise enough: a theorem misread would be seen.
        if variance >= 100 * shift:
            assert found > 0.9 * bound


@pytest.mark.parametrize("shift", [1, 2])
@pytest.mark.parametrize(("variance", "devices"), [(1, 1), (1, 2), (1, 5), (2, 3), (10, 4)])
def test_sums_of_discrete_gaussians_never_cost_more_than_their_theorem_says(
    variance: int, devices: int, shift: int
) -> None:
    one = np.exp(log_masses(Mechanism.DISCRETE_GAUSSIAN, variance))
    total = np.ones(1)
    for _ in range(devices):
        total = np.convolve(total, one)
    masses = np.log(total[total > 1e-30])
    bounds = renyi_divergences(Release(Mechanism.DISCRETE_GAUSSIAN, float(shift), 1, variance, devices))
    for order in (2, 3, 5):
        found, bound = divergence(masses, shift, order), float(bounds[ORDERS.index(order)])
        assert 0.9 * bound < found <= bound * (1 + 1e-9)
