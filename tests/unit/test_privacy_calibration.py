"""Calibration: the promise holds, the modulus is the smallest that serves, and it is large enough."""

from __future__ import annotations

import math

import numpy as np
import pytest

from coordinator.privacy.calibration import QUANTISATION_COST, PrivacyPlan, calibrate, gaussian_multiplier
from coordinator.privacy.modulus import OVERFLOW_CHANCE, overflow_chance, signal_variance
from edge_sdk.errors import PrivacyError
from edge_sdk.privacy import quantize
from edge_sdk.privacy.accounting import Release, rdp_epsilon, sum_divergence
from edge_sdk.privacy.encode import HEADROOM, decode, encode
from edge_sdk.privacy.noise import MAXIMUM_VARIANCE, Mechanism, sample
from edge_sdk.privacy.rotate import rotate
from edge_sdk.secagg import modular
from edge_sdk.secagg.suite import Stream, digest

BOTH = pytest.mark.parametrize("mechanism", [Mechanism.SKELLAM, Mechanism.DISCRETE_GAUSSIAN])


def plan(
    *,
    clip_norm: float = 1.0,
    dimension: int = 1800,
    min_reports: int = 140,
    max_devices: int = 200,
    rounds: int = 10,
    epsilon: float = 10.0,
    delta: float = 1e-5,
    corrupt_share: float = 0.05,
    mechanism: Mechanism = Mechanism.SKELLAM,
    local_noise: bool = False,
    bits: int | None = None,
) -> PrivacyPlan:
    return calibrate(
        clip_norm=clip_norm,
        dimension=dimension,
        min_reports=min_reports,
        max_devices=max_devices,
        rounds=rounds,
        epsilon=epsilon,
        delta=delta,
        corrupt_share=corrupt_share,
        mechanism=mechanism,
        local_noise=local_noise,
        bits=bits,
    )


@BOTH
@pytest.mark.parametrize("epsilon", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("dimension", [10, 1800, 1 << 20])
def test_the_promise_is_kept_and_little_is_given_away(dimension: int, epsilon: float, mechanism: Mechanism) -> None:
    found = plan(dimension=dimension, epsilon=epsilon, mechanism=mechanism)
    assert found.mechanism is mechanism
    assert found.honest_reports == 130
    assert found.variance == found.device_variance * found.honest_reports
    assert found.norm_bound == quantize.rounded_norm_bound(1.0, found.scale, dimension)
    release = Release(found.mechanism, found.norm_bound, dimension, found.device_variance, found.honest_reports)
    spent = rdp_epsilon([release] * 10, 1e-5)
    assert found.epsilon == pytest.approx(spent, rel=1e-6)
    assert 0.9 * epsilon < spent < epsilon
    assert found.noise_multiplier == pytest.approx(math.sqrt(found.variance) / found.scale)


@BOTH
def test_noise_is_near_that_of_the_gaussian_mechanism(mechanism: Mechanism) -> None:
    least = gaussian_multiplier(rounds=10, epsilon=8.0, delta=1e-6)
    assert 2.18 < least < 2.2
    for count, bits in ((1_000, 17), (10_000, 19)):
        found = plan(
            dimension=1 << 20,
            min_reports=count * 7 // 10,
            max_devices=count,
            epsilon=8,
            delta=1e-6,
            corrupt_share=0,
            mechanism=mechanism,
        )
        assert found.bits == bits
        assert least < found.noise_multiplier < least * (1 + QUANTISATION_COST)


def test_one_bit_less_than_chosen_costs_more_than_allowed() -> None:
    chosen = plan()
    narrower = plan(bits=chosen.bits - 1)
    wider = plan(bits=24)
    assert narrower.noise_multiplier > chosen.noise_multiplier > 0
    assert narrower.noise_multiplier / wider.noise_multiplier > 1 + QUANTISATION_COST / 2
    assert wider.noise_multiplier <= chosen.noise_multiplier


def test_local_noise_is_what_a_device_alone_needs() -> None:
    """The same noise as for a sum of one, whoever else reports, in a modulus that holds the noise of all."""
    local, shared = plan(local_noise=True), plan()
    assert (local.honest_reports, shared.honest_reports) == (1, 130)
    assert local.device_variance == local.variance
    assert local.noise_multiplier == pytest.approx(shared.noise_multiplier, rel=QUANTISATION_COST)
    release = Release(local.mechanism, local.norm_bound, 1800, local.device_variance, 1)
    assert rdp_epsilon([release] * 10, 1e-5) == pytest.approx(10.0, rel=1e-4)
    assert local.bits > shared.bits
    alone = plan(min_reports=1, max_devices=1, corrupt_share=0.0, bits=local.bits)
    assert alone.noise_multiplier == pytest.approx(local.noise_multiplier, rel=QUANTISATION_COST)


def test_the_clip_norm_only_changes_the_unit() -> None:
    small, large = plan(clip_norm=0.5), plan(clip_norm=2.0)
    assert small.scale * 0.5 == pytest.approx(large.scale * 2.0)
    assert (small.bits, small.device_variance) == (large.bits, large.device_variance)


def test_a_wide_modulus_does_not_ask_for_endless_tables() -> None:
    found = plan(min_reports=1, max_devices=2, dimension=1 << 20, bits=32, epsilon=1.0)
    assert found.device_variance <= MAXIMUM_VARIANCE


def test_discrete_gaussians_are_never_so_coarse_that_their_sum_is_another() -> None:
    """With many devices each adds little; below a variance of about two what the sum lacks would cost more."""
    found = plan(
        dimension=1 << 20,
        min_reports=60_000,
        max_devices=60_000,
        corrupt_share=0.0,
        mechanism=Mechanism.DISCRETE_GAUSSIAN,
    )
    assert found.device_variance >= 2
    assert sum_divergence(found.device_variance, 60_000) * (1 << 20) < 0.1
    assert found.noise_multiplier < 1.02 * gaussian_multiplier(rounds=10, epsilon=10.0, delta=1e-5)


def test_noise_off_is_asked_for_by_an_infinite_epsilon() -> None:
    found = plan(epsilon=math.inf)
    assert (found.mechanism, found.device_variance) == (Mechanism.NONE, 0)
    assert (found.noise_multiplier, found.epsilon) == (0.0, math.inf)
    assert found.scale / math.sqrt(1800) == 32
    assert plan(epsilon=math.inf, max_devices=1_000_000).bits == 30
    assert plan(epsilon=math.inf, bits=16).scale < found.scale
    with pytest.raises(PrivacyError, match="no modulus"):
        plan(epsilon=math.inf, max_devices=10**8, dimension=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dimension": 0}, {"min_reports": 0}, {"min_reports": 201}, {"rounds": 0}, {"clip_norm": 0.0},
        {"clip_norm": math.nan}, {"delta": 0.0}, {"delta": 1.0}, {"corrupt_share": 1.0}, {"epsilon": 0.0},
        {"epsilon": math.nan}, {"epsilon": 1e-5}, {"bits": 8}, {"bits": 40}, {"epsilon": 200.0},
        {"max_devices": 1 << 60},
    ],
)  # fmt: skip
def test_what_cannot_be_promised_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(PrivacyError):
        plan(**wrong)  # type: ignore[arg-type]


@BOTH
@pytest.mark.parametrize("where", ["everywhere", "in one coordinate"])
def test_nothing_wraps_at_the_chosen_maximum(mechanism: Mechanism, where: str) -> None:
    """All devices send the same clipped update: the largest sum that the modulus must hold."""
    devices, dimension = 60, 700
    found = plan(dimension=dimension, min_reports=40, max_devices=devices, epsilon=6.0, mechanism=mechanism)
    parameters = found.parameters(dimension, 1.0)
    update = np.eye(1, dimension, 600, dtype=np.float32)[0]
    if where == "everywhere":
        update = np.random.default_rng(1).normal(size=dimension).astype(np.float32)
        update /= np.linalg.norm(update)
    for round_number in range(10):
        ctx = digest(b"round", bytes([round_number]))
        exact = np.zeros(parameters.length, np.int64)
        total = np.zeros(parameters.length, modular.work_dtype(found.bits))
        for device in range(devices):
            encoded = encode(update, parameters, ctx, digest(ctx, bytes([device])))
            exact += modular.centre(encoded, found.bits)
            total += encoded
        np.testing.assert_array_equal(modular.centre(total, found.bits), exact)
        mean = decode(modular.reduce(total, found.bits), parameters, ctx, devices).mean
        # The mean is the update plus noise of variance device_variance / (devices scale^2) a coordinate.
        spread = math.sqrt((found.device_variance + 0.25) * dimension / devices) / found.scale
        assert float(np.linalg.norm(mean - update)) < 1.3 * spread


@BOTH
def test_a_wrap_is_less_likely_than_one_round_in_a_million(mechanism: Mechanism) -> None:
    for dimension, devices, bits in ((10, 3, None), (1800, 200, None), (1 << 20, 1_000, None), (1_000_000, 60_000, 20)):
        found = plan(
            dimension=dimension,
            min_reports=devices,
            max_devices=devices,
            bits=bits,
            corrupt_share=0.0,
            mechanism=mechanism,
        )
        for fewer, holds in ((0, True), (1, False)):
            chance = overflow_chance(
                bits=found.bits - fewer,
                signal=found.scale**2 * signal_variance(1.0, dimension, devices),
                length=dimension,
                devices=devices,
                mechanism=mechanism,
                device_variance=found.device_variance,
            )
            assert (chance < OVERFLOW_CHANCE) is holds


@BOTH
def test_the_chance_of_a_wrap_bounds_how_often_it_is_seen(mechanism: Mechanism) -> None:
    """A modulus two bits too small for three devices, over thousands of rounds."""
    devices, dimension, variance, scale = 3, 24, 40, 10.0
    length_one = np.full(dimension, 1 / math.sqrt(dimension))
    seen = {6: 0, 7: 0}
    rounds = 2_000
    for number in range(rounds):
        ctx = digest(b"%d" % number)
        total = np.rint(devices * scale * rotate(length_one, ctx)).astype(np.int64)
        total += sample(mechanism, devices * variance, dimension, Stream(ctx))
        for bits in seen:
            seen[bits] += bool(np.abs(total).max() > HEADROOM * 2 ** (bits - 1))
    chances = {
        bits: overflow_chance(
            bits=bits,
            signal=scale**2 * signal_variance(1.0, dimension, devices),
            length=dimension,
            devices=devices,
            mechanism=mechanism,
            device_variance=variance,
        )
        for bits in seen
    }
    assert 0.02 < seen[6] / rounds < chances[6] <= 1
    assert seen[7] / rounds <= chances[7] < 0.02
