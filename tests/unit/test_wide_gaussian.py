"""The wide discrete Gaussian: how close joined draws come to it, how they are spread, and what is done with them."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest

from edge_sdk.errors import PrivacyError
from edge_sdk.privacy import gaussian
from edge_sdk.privacy.gaussian import DEVIATION, noised, sample_wide
from edge_sdk.secagg.suite import Stream, digest


def test_joined_draws_are_a_discrete_gaussian_to_2_to_the_minus_128() -> None:
    """A joined draw is Gaussian but for a factor: a sum over the integers of a Gaussian about some centre.

    How that sum depends on the centre is the whole error; it is largest between the centres 0 and 1/2.
    """
    variance = gaussian._VARIANCE
    with localcontext() as context:
        context.prec = 80
        joined = Decimal(variance)
        for scale in gaussian._SCALES[1:]:
            spread = 1 / (Decimal(1) / variance + Decimal(scale * scale) / joined)
            sums = [
                sum((-((x + centre) ** 2) / (2 * spread)).exp() for x in range(-60, 61))
                for centre in (Decimal(0), Decimal("0.5"), Decimal("0.25"))
            ]
            assert (max(sums) - min(sums)) / sums[2] < Decimal(2) ** -127
            joined += scale * scale * variance
        assert float(joined.sqrt()) == pytest.approx(DEVIATION, rel=1e-15)


def test_draws_are_spread_as_they_should_be() -> None:
    """Moments, and shares within some deviations, of 400,000 draws: within five standard errors."""
    count = 400_000
    scaled = sample_wide(count, Stream(digest(b"wide"))) / DEVIATION
    assert abs(scaled.mean()) < 5 / math.sqrt(count)
    assert scaled.var() == pytest.approx(1, abs=5 * math.sqrt(2 / count))
    assert (scaled**4).mean() == pytest.approx(3, abs=5 * math.sqrt(96 / count))
    for low, high in itertools.pairwise((-4.0, -2.5, -1.0, -0.3, 0.0, 0.2, 1.5, 3.0)):
        share = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
        found = float(((low < scaled) & (scaled <= high)).mean())
        assert found == pytest.approx(share, abs=5 * math.sqrt(share / count))


def test_all_residues_are_drawn_alike() -> None:
    """No scale shows: modulo either of them draws are uniform (chi-square within five deviations)."""
    draws = sample_wide(200_000, Stream(digest(b"residues")))
    for scale in (2, *gaussian._SCALES[1:]):
        often = np.bincount(draws % scale, minlength=scale)
        expected = len(draws) / scale
        chi_square = float(((often - expected) ** 2 / expected).sum())
        assert abs(chi_square - (scale - 1)) < 5 * math.sqrt(2 * (scale - 1))


@pytest.mark.parametrize(("sensitivity", "noise_multiplier"), [(1.0, 1.0), (0.01, 3.0), (30.0, 0.4)])
def test_noise_has_the_deviation_that_was_asked_for(sensitivity: float, noise_multiplier: float) -> None:
    total = np.linspace(-50, 50, 100_000)
    found = noised(total, sensitivity, noise_multiplier, Stream(digest(b"noise"))) - total
    # Rounding may move neighbouring totals apart by one step in each coordinate, and is paid for.
    step = sensitivity / (DEVIATION / noise_multiplier - math.sqrt(len(total)))
    deviation = noise_multiplier * (sensitivity + step * math.sqrt(len(total)))
    assert deviation == pytest.approx(step * DEVIATION, rel=1e-12)
    assert deviation < 1.003 * noise_multiplier * sensitivity
    assert float(found.std()) == pytest.approx(deviation, rel=5 / math.sqrt(2 * len(total)))


def test_what_is_released_lies_on_a_grid_whatever_the_total() -> None:
    """Two totals that differ in their last bits give values of the same grid, and most often the same values."""
    total = np.linspace(-1, 1, 1001)
    one, two = (noised(t, 1.0, 1.0, Stream(bytes(32))) for t in (total, np.nextafter(total, 2.0)))
    step = 1.0 / (DEVIATION - math.sqrt(1001))
    for value in (one, two):
        assert np.array_equal(value, np.rint(value / step) * step)
    assert (one != two).sum() < 3


@pytest.mark.parametrize(
    ("total", "sensitivity", "noise_multiplier"),
    [
        (np.zeros(3), 1.0, 0.0),
        (np.zeros(3), 1.0, math.nan),
        (np.zeros(3), 0.0, 1.0),
        (np.zeros(3), math.inf, 1.0),
        (np.zeros(10_000), 1.0, 3000.0),
        (np.array([math.nan]), 1.0, 1.0),
        (np.array([math.inf]), 1.0, 1.0),
        (np.array([1e12]), 1.0, 1.0),
    ],
)
def test_what_cannot_be_made_private_is_refused(total: object, sensitivity: float, noise_multiplier: float) -> None:
    with pytest.raises(PrivacyError):
        noised(np.asarray(total, np.float64), sensitivity, noise_multiplier, Stream(bytes(32)))
