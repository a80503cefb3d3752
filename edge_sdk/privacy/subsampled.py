"""Poisson sampling of examples, and what noisy sums over such samples cost: differentially private SGD on one device.

Each example is in a step's sample with the same chance, independently of all others; neighbouring data sets differ by
one example that is there or not. Renyi divergences of integer orders: Mironov, Talwar and Zhang 2019, "Renyi
Differential Privacy of the Sampled Gaussian Mechanism", section 3.3. Their formula holds, without a remainder, for
the discrete Gaussian added to integers too: it needs that shifting the noise by a value of the query only relabels it,
and sums over all integers, like integrals over the reals, do not change by that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import PrivacyError
from edge_sdk.privacy.accounting import ORDERS, epsilon_of
from edge_sdk.secagg.suite import Stream

_WORDS = 1 << 64
_AT_ONCE = 1 << 16
"""Places for which words are in memory together."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Noisy sums over Poisson samples of a device's examples, as an accountant needs to know them.

    Attributes:
        noise_multiplier: standard deviation of the noise over the largest norm of one example's part of a sum.
        rate: chance of each example to be in a step's sample.
        steps: sums released.
    """

    noise_multiplier: float
    rate: float
    steps: int


def poisson_sample(count: int, rate: float, stream: Stream) -> NDArray[np.int64]:
    """Return the ascending places, of `count`, that are drawn independently with chance `rate`.

    Takes eight bytes of the stream for each place. The chance is `rate` rounded down to a multiple of 2^-64.

    Raises:
        PrivacyError: the rate is not in (0, 1].
    """
    _check_rate(rate)
    limit = math.floor(math.ldexp(rate, 64))
    if limit == _WORDS:
        stream.bytes(8 * count)
        return np.arange(count)
    drawn = [
        start + np.flatnonzero(stream.uint64(min(_AT_ONCE, count - start)) < np.uint64(limit))
        for start in range(0, count, _AT_ONCE)
    ]
    return np.concatenate(drawn) if drawn else np.arange(0)


def sampled_epsilon(samplings: Iterable[Sampling], delta: float) -> float:
    """Return the least epsilon for which all these sums together are (epsilon, delta)-DP for each example; 0 for none.

    Args:
        samplings: of the same examples.
        delta: in (0, 1).

    Raises:
        PrivacyError: an argument is out of its range.
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"a delta of {delta} is not between 0 and 1")
    total = np.zeros(len(ORDERS))
    for one in samplings:
        if one.steps < 0:
            raise PrivacyError(f"{one.steps} steps cannot be counted")
        total += one.steps * sampled_divergences(one.noise_multiplier, one.rate)
    return epsilon_of(total, delta) if total.any() else 0.0


def sampled_divergences(noise_multiplier: float, rate: float) -> NDArray[np.float64]:
    """Return the Renyi divergence of one noisy sum at each of `accounting.ORDERS`.

    log(sum_{k=0}^{a} binomial(a, k) (1-q)^(a-k) q^k exp((k^2 - k) / (2 z^2))) / (a - 1) for order a. The sum is one
    more than that with exp(...) - 1, whose terms are all positive: so nothing cancels, however small q is.

    Raises:
        PrivacyError: the rate is not in (0, 1], or there is no noise.
    """
    _check_rate(rate)
    if not (noise_multiplier > 0 and math.isfinite(noise_multiplier)):
        raise PrivacyError(f"a noise multiplier of {noise_multiplier} has no epsilon", hint="choose a positive one")
    inverse = 1 / (2 * noise_multiplier**2)
    if rate == 1:
        return np.array(ORDERS, np.float64) * inverse
    k = np.arange(max(ORDERS) + 1, dtype=np.float64)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(k[1:]))])
    exponents = (k * k - k)[2:] * inverse
    shared = k[2:] * math.log(rate) + exponents + np.log(-np.expm1(-exponents)) - log_factorials[2:]
    divergences = np.empty(len(ORDERS))
    for place, order in enumerate(ORDERS):
        rest = np.arange(order - 2, -1, -1)
        logs = shared[: order - 1] + rest * math.log1p(-rate) - log_factorials[rest] + log_factorials[order]
        divergences[place] = np.logaddexp(0.0, np.logaddexp.reduce(logs)) / (order - 1)
    return divergences


def _check_rate(rate: float) -> None:
    if not 0 < rate <= 1:
        raise PrivacyError(f"a sampling rate of {rate} is not in (0, 1]", hint="sample some examples, or all")
