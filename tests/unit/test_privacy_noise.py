"""The samplers: their tables against 110-digit references, and their draws against the distributions."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_sdk.errors import PrivacyError
from edge_sdk.privacy import noise
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.secagg.suite import Stream, digest

SKELLAM, GAUSSIAN = Mechanism.SKELLAM, Mechanism.DISCRETE_GAUSSIAN
BOTH = pytest.mark.parametrize("mechanism", [SKELLAM, GAUSSIAN])
DIGITS = 110
PASSES_DEVIATIONS = 4.0


def stream(name: str) -> Stream:
    return Stream(digest(name.encode()))


def poisson_masses(mean: Decimal, count: int) -> list[Decimal]:
    masses = [(-mean).exp()]
    for value in range(1, count):
        masses.append(masses[-1] * mean / value)
    return masses


def masses_by_convolution(variance: int, half: int, terms: int) -> list[Decimal]:
    """P[0] ... P[half] as sums of products of Poisson masses, which share nothing with the recurrence."""
    poisson = poisson_masses(Decimal(variance) / 2, terms + half + 1)
    return [sum((poisson[m] * poisson[m + value] for m in range(terms)), Decimal(0)) for value in range(half + 1)]


def masses_by_recurrence(variance: int, half: int) -> list[Decimal]:
    """P[0] ... P[half] by a longer recurrence, normalised by e^v instead of by its own sum."""
    start = half + 12 * math.isqrt(variance) + 200
    above, current = Decimal(0), Decimal(1)
    weights = [current]
    for order in range(start, 0, -1):
        above, current = current, above + 2 * order * current / variance
        weights.append(current)
    weights.reverse()
    # exp(v) = I_0 + 2 (I_1 + I_2 + ...), by which the absolute scale is known without the table's own sum.
    scale = weights[0] + 2 * sum(weights[1:])
    return [weight / scale for weight in weights[: half + 1]]


def gaussian_masses(variance: int, half: int) -> list[Decimal]:
    """P[0] ... P[half], every weight from an exponential of its own."""
    start = half + 12 * math.isqrt(variance) + 200
    weights = [(-Decimal(value * value) / (2 * variance)).exp() for value in range(start)]
    scale = 2 * sum(weights) - weights[0]
    return [weight / scale for weight in weights[: half + 1]]


@pytest.mark.parametrize("variance", [1, 2, 7, 436, 90_000])
def test_a_gaussian_table_is_the_distribution_to_128_bits(variance: int) -> None:
    with localcontext() as context:
        context.prec = DIGITS
        table = noise.noise_table(GAUSSIAN, variance)
        check_entries(table, gaussian_masses(variance, table.half + 1))


@pytest.mark.parametrize(("variance", "terms"), [(1, 80), (7, 120), (100, 330)])
def test_the_table_is_the_distribution_to_128_bits(variance: int, terms: int) -> None:
    with localcontext() as context:
        context.prec = DIGITS
        table = noise.noise_table(SKELLAM, variance)
        check_entries(table, masses_by_convolution(variance, table.half + 1, terms))


def test_a_wide_table_is_the_distribution_to_128_bits() -> None:
    with localcontext() as context:
        context.prec = DIGITS
        table = noise.noise_table(SKELLAM, 90_000)
        masses = masses_by_recurrence(90_000, table.half + 1)
        # I_0(v) e^-v by its asymptotic series, 1/sqrt(2 pi v) (1 + 1/(8v) + 9/(128 v^2) + ...).
        v = 90_000.0
        leading = 1 / math.sqrt(2 * math.pi * v) * (1 + 1 / (8 * v) + 9 / (128 * v * v))
        assert float(masses[0]) == pytest.approx(leading, rel=1e-14)
        check_entries(table, masses)


def check_entries(table: noise.NoiseTable, masses: list[Decimal]) -> None:
    """Every entry is within 2^-127 of the distribution function, and the tail left out below 2^-139."""
    one = Decimal(2) ** 128
    tail = (1 - masses[0]) / 2 - sum(masses[1:-1])
    assert abs(tail) < Decimal(2) ** -139
    cumulative = tail
    for value, (high, low) in enumerate(zip(table.high.tolist(), table.low.tolist(), strict=True), -table.half):
        cumulative += masses[abs(value)]
        assert abs(cumulative * one - ((high << 64) | low)) < 2, value
    assert len(table.high) == 2 * table.half


@pytest.mark.parametrize("variance", [1, 2, 5, 20, 100, 1_000, 90_000, 16_000_000])
def test_the_tail_beyond_the_table_is_below_two_to_the_minus_139(variance: int) -> None:
    # Chernoff: P[X >= k] <= exp(-(k asinh(k/v) - sqrt(k^2 + v^2) + v)).
    k, v = noise.half_width(variance) + 1, float(variance)
    exponent = k * math.asinh(k / v) - (math.hypot(k, v) - v)
    assert 2 * math.exp(-exponent) < 2.0**-139
    # A geometric series over the tail of the discrete Gaussian; the masses' sum is at least 1 and sqrt(2 pi v) - 1.
    tail = math.exp(-k * k / (2 * v)) / -math.expm1(-k / v)
    assert 2 * tail / max(1, math.sqrt(2 * math.pi * v) - 1) < 2.0**-139


def test_the_draw_error_covers_rounding_and_tail() -> None:
    assert noise.draw_error(0) == 0.0
    assert noise.draw_error(90_000) == 4276 * 2.0**-128
    assert noise.draw_error(noise.MAXIMUM_VARIANCE) < 2.0**-110


@BOTH
@pytest.mark.parametrize("variance", [4, 436, 90_000])
def test_draws_follow_the_distribution(mechanism: Mechanism, variance: int) -> None:
    """Over twenty million draws: chi-square, mean, variance and fourth moment, within four standard errors."""
    half, draws, step = noise.half_width(variance), 20_000_000, 1_000_000
    table = noise.noise_table(mechanism, variance)
    entries = [0.0, *((table.high.astype(np.float64) + table.low * 2.0**-64) * 2.0**-64).tolist(), 1.0]
    counts = np.zeros(2 * half + 1, np.int64)
    source = stream(f"{mechanism} draws of variance {variance}")
    for _ in range(draws // step):
        counts += np.bincount(noise.sample(mechanism, variance, step, source) + half, minlength=2 * half + 1)
    check_fit(counts, np.diff(entries))

    values = np.arange(-half, half + 1, dtype=np.float64)
    second, fourth, eighth = (central_moment(mechanism, variance, power) for power in (2, 4, 8))
    for power, moment, square in ((1, 0, second), (2, second, fourth), (4, fourth, eighth)):
        found = float((values**power * counts).sum() / draws)
        assert abs(found - moment) < PASSES_DEVIATIONS * math.sqrt((square - moment**2) / draws), power


def central_moment(mechanism: Mechanism, v: int, power: int) -> int:
    """Of Skellam(0, v) from its cumulants, which are v for even orders; of N_Z(0, v) that of the Gaussian, v >= 4."""
    gaussian, rest = {2: (v, 0), 4: (3 * v**2, v), 8: (105 * v**4, 210 * v**3 + 63 * v**2 + v)}[power]
    return gaussian + rest if mechanism is SKELLAM else gaussian


@BOTH
@pytest.mark.parametrize("power", [2, 4, 8])
def test_the_tables_have_the_moments_that_draws_are_held_to(mechanism: Mechanism, power: int) -> None:
    table = noise.noise_table(mechanism, 100)
    pairs = zip(table.high.tolist(), table.low.tolist(), strict=True)
    entries = [0, *(high << 64 | low for high, low in pairs), 1 << 128]
    values = range(-table.half, table.half + 1)
    total = sum(
        (after - before) * value**power for before, after, value in zip(entries, entries[1:], values, strict=False)
    )
    assert total / (1 << 128) == pytest.approx(central_moment(mechanism, 100, power), rel=1e-12)


def check_fit(counts: NDArray[np.int64], chances: NDArray[np.float64]) -> None:
    """Pearson's chi-square over the values expected 20 times or more and the rest, by Wilson and Hilferty."""
    expected = chances * counts.sum()
    common = expected >= 20
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(observed) - 1
    deviation = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert abs(deviation) < PASSES_DEVIATIONS


def test_sums_of_draws_follow_the_sum_of_the_variances() -> None:
    draws = 1_000_000
    total = sum(noise.sample(SKELLAM, v, draws, stream(f"part {v}")).astype(np.int64) for v in (30, 50, 20))
    values = np.asarray(total)
    chances = np.diff([0.0, *(noise.noise_table(SKELLAM, 100).high.astype(np.float64) * 2.0**-64).tolist(), 1.0])
    half = noise.half_width(100)
    check_fit(np.bincount(values + half, minlength=2 * half + 1), chances)


class FixedStream:
    """Hands out the bits of one 128-bit integer, to reach what chance does not."""

    def __init__(self, u: int) -> None:
        # The low 16 bits of the second word are read and not used.
        self._words = [u >> 112, (u >> 64 & (1 << 48) - 1) << 16 | 0xABCD, u & (1 << 64) - 1]

    def uint16(self, count: int) -> NDArray[np.uint16]:
        return np.array([self._words.pop(0)] * count, np.uint16)

    def uint64(self, count: int) -> NDArray[np.uint64]:
        return np.array([self._words.pop(0)] * count, np.uint64)


def draw_at(mechanism: Mechanism, variance: int, u: int) -> int:
    return int(noise.sample(mechanism, variance, 1, cast(Stream, FixedStream(u)))[0])


def entry(table: noise.NoiseTable, value: int) -> int:
    place = value + table.half
    return int(table.high[place]) << 64 | int(table.low[place])


@BOTH
@pytest.mark.parametrize("variance", [1, 436])
def test_a_draw_is_decided_by_the_last_of_its_128_bits(mechanism: Mechanism, variance: int) -> None:
    table = noise.noise_table(mechanism, variance)
    for value in (-2, -1, 0, 1, 5):
        edge = entry(table, value)
        assert draw_at(mechanism, variance, edge - 1) == value
        assert draw_at(mechanism, variance, edge) == value + 1


@BOTH
def test_the_ends_of_the_range_are_the_ends_of_the_table(mechanism: Mechanism) -> None:
    table = noise.noise_table(mechanism, 436)
    first = next(value for value in range(-table.half, 0) if entry(table, value) > 0)
    assert draw_at(mechanism, 436, 0) == first
    assert draw_at(mechanism, 436, (1 << 128) - 1) >= -first - 1


@pytest.mark.parametrize(("mechanism", "variance"), [(SKELLAM, 0), (GAUSSIAN, 0), (Mechanism.NONE, 100)])
def test_no_variance_is_no_noise_and_takes_nothing_from_the_stream(mechanism: Mechanism, variance: int) -> None:
    source = stream("untouched")
    assert not noise.sample(mechanism, variance, 5, source).any()
    assert source.bytes(4) == stream("untouched").bytes(4)


@pytest.mark.parametrize("variance", [-1, noise.MAXIMUM_VARIANCE + 1])
def test_a_variance_out_of_range_is_refused(variance: int) -> None:
    with pytest.raises(PrivacyError, match="variance"):
        noise.sample(SKELLAM, variance, 1, stream("any"))
