"""Sampling and its price: against dp-accounting, the formula summed with exact integers, and the laws of chance."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent, pld, rdp

from edge_sdk.errors import PrivacyError
from edge_sdk.privacy.accounting import ORDERS
from edge_sdk.privacy.subsampled import Sampling, poisson_sample, sampled_divergences, sampled_epsilon
from edge_sdk.secagg.suite import Stream, digest

CASES = [(1.0, 0.01, 1000), (2.0, 0.05, 500), (0.8, 0.2, 30), (1.0, 1.0, 10), (5.0, 1e-4, 10**6)]


@pytest.mark.parametrize(("noise_multiplier", "rate", "steps"), CASES)
def test_epsilon_agrees_with_dp_accounting(noise_multiplier: float, rate: float, steps: int) -> None:
    event = SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise_multiplier)), steps)
    accountant = rdp.RdpAccountant(orders=list(ORDERS)).compose(event)
    found = sampled_epsilon([Sampling(noise_multiplier, rate, steps)], 1e-5)
    assert found == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-8)


@pytest.mark.parametrize(("noise_multiplier", "rate", "steps"), CASES[:4])
def test_epsilon_is_above_the_tight_one_and_not_by_much(noise_multiplier: float, rate: float, steps: int) -> None:
    event = SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise_multiplier)), steps)
    tight = pld.PLDAccountant(value_discretization_interval=1e-3).compose(event).get_epsilon(1e-5)
    assert tight < sampled_epsilon([Sampling(noise_multiplier, rate, steps)], 1e-5) < 1.25 * tight


@pytest.mark.parametrize(("noise_multiplier", "rate"), [(1.0, 0.01), (0.5, 0.3), (4.0, 1e-6)])
def test_divergences_are_those_of_the_exact_sum(noise_multiplier: float, rate: float) -> None:
    found = dict(zip(ORDERS, sampled_divergences(noise_multiplier, rate), strict=True))
    with localcontext() as context:
        context.prec = 60
        q, inverse = Decimal(rate), 1 / (2 * Decimal(noise_multiplier) ** 2)
        for order in (2, 3, 17, 100):
            terms = [
                math.comb(order, k) * (1 - q) ** (order - k) * q**k * ((k * k - k) * inverse).exp()
                for k in range(order + 1)
            ]
            total = sum(terms, Decimal(0))
            assert found[order] == pytest.approx(float(total.ln()) / (order - 1), rel=1e-11)


def test_no_step_costs_nothing_and_more_of_anything_costs_more() -> None:
    assert sampled_epsilon([Sampling(1.0, 0.1, 0)], 1e-5) == 0.0
    base = sampled_epsilon([Sampling(1.0, 0.1, 10)], 1e-5)
    assert base < sampled_epsilon([Sampling(1.0, 0.1, 11)], 1e-5)
    assert base < sampled_epsilon([Sampling(1.0, 0.11, 10)], 1e-5)
    assert base < sampled_epsilon([Sampling(0.99, 0.1, 10)], 1e-5)
    assert base < sampled_epsilon([Sampling(1.0, 0.1, 10)], 1e-6)


@pytest.mark.parametrize(
    ("noise_multiplier", "rate", "steps", "delta"),
    [
        (0.0, 0.1, 1, 1e-5),
        (math.inf, 0.1, 1, 1e-5),
        (math.nan, 0.1, 1, 1e-5),
        (1.0, 0.0, 1, 1e-5),
        (1.0, 1.5, 1, 1e-5),
        (1.0, math.nan, 1, 1e-5),
        (1.0, 0.1, -1, 1e-5),
        (1.0, 0.1, 1, 0.0),
        (1.0, 0.1, 1, 1.0),
    ],
)
def test_nonsense_has_no_epsilon(noise_multiplier: float, rate: float, steps: int, delta: float) -> None:
    with pytest.raises(PrivacyError):
        sampled_epsilon([Sampling(noise_multiplier, rate, steps)], delta)


def test_samples_are_of_every_size_with_the_right_chance() -> None:
    """Sizes are binomial, places equally likely: means and variances within five standard errors."""
    stream = Stream(digest(b"sizes"))
    samples = [poisson_sample(40, 0.1, stream) for _ in range(4000)]
    sizes = np.array([len(sample) for sample in samples])
    assert sizes.mean() == pytest.approx(4, abs=5 * math.sqrt(3.6 / 4000))
    assert sizes.var() == pytest.approx(3.6, abs=5 * 3.6 * math.sqrt(2 / 4000))
    assert sizes.min() == 0
    often = np.bincount(np.concatenate(samples), minlength=40)
    assert np.abs(often - 400).max() < 5 * math.sqrt(360)


def test_a_sample_follows_the_stream_word_by_word() -> None:
    words = Stream(bytes(32)).uint64(50)
    found = poisson_sample(50, 0.25, Stream(bytes(32)))
    assert found.tolist() == [place for place, word in enumerate(words.tolist()) if word < 2**62]
    assert poisson_sample(5, 1.0, Stream(bytes(32))).tolist() == [0, 1, 2, 3, 4]
    assert poisson_sample(0, 0.5, Stream(bytes(32))).tolist() == []
    with pytest.raises(PrivacyError):
        poisson_sample(5, 0.0, Stream(bytes(32)))
