"""Adaptive clipping: the clip norm finds the quantile that was asked for, under noise and at the planned cost."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from coordinator.aggregation.accumulator import ModularSum
from coordinator.privacy.calibration import PrivacyPlan, calibrate
from coordinator.privacy.clipping import BIT_NOISE_SHARE, LARGEST_SHARE, AdaptiveClipping, bit_share
from edge_sdk.privacy.accounting import Release, rdp_epsilon
from edge_sdk.privacy.encode import decode, encode
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.secagg.suite import digest

BOTH = pytest.mark.parametrize("mechanism", [Mechanism.SKELLAM, Mechanism.DISCRETE_GAUSSIAN])


def plan(
    devices: int, *, adaptive: bool, epsilon: float = 8.0, mechanism: Mechanism = Mechanism.SKELLAM
) -> PrivacyPlan:
    return calibrate(
        clip_norm=4.0,
        dimension=50,
        min_reports=devices,
        max_devices=devices,
        rounds=40,
        epsilon=epsilon,
        delta=1e-5,
        corrupt_share=0.0,
        mechanism=mechanism,
        adaptive_clipping=adaptive,
        bits=24,
    )


@pytest.mark.parametrize(
    ("within", "expected"), [(1.0, 0.9048), (0.5, 1.0), (0.0, 1.1052), (7.0, 0.9048), (-3.0, 1.1052)]
)
def test_the_norm_moves_by_what_the_share_is_off_and_no_further(within: float, expected: float) -> None:
    assert AdaptiveClipping(0.5).next_norm(2.0, within, start=1.0) == pytest.approx(2 * expected, rel=1e-4)


def test_the_norm_stays_where_numbers_can_be_computed_with() -> None:
    clipping, norm = AdaptiveClipping(0.5, learning_rate=50.0), 3.0
    for _ in range(100):
        norm = clipping.next_norm(norm, 1.0, start=3.0)
    assert norm == 3.0 / 2**20
    for _ in range(100):
        norm = clipping.next_norm(norm, 0.0, start=3.0)
    assert norm == 3.0 * 2**20


@pytest.mark.parametrize("devices", [20, 100, 1_000])
def test_the_updates_noise_is_what_the_bit_leaves_of_the_budget(devices: int) -> None:
    """z_update = (z^-2 - (2 sigma_b)^-2)^(-1/2), as the paper splits it."""
    without, found = plan(devices, adaptive=False), plan(devices, adaptive=True)
    z = without.noise_multiplier
    # The noise in the smallest sum, over the change that one device's bit makes to it.
    sigma_b = math.sqrt(found.variance) / (2 * found.clip_bit * found.scale)
    assert found.noise_multiplier == pytest.approx((z**-2 - (2 * sigma_b) ** -2) ** -0.5, rel=2e-3)
    assert z < found.noise_multiplier < 1.05 * z
    assert sigma_b >= BIT_NOISE_SHARE * devices * 0.999
    if devices == 1_000:
        assert sigma_b == pytest.approx(BIT_NOISE_SHARE * devices, rel=1e-3)
        assert found.noise_multiplier < 1.01 * z


def test_the_bit_is_within_the_norm_that_is_accounted() -> None:
    found = plan(100, adaptive=True)
    parameters = found.parameters(50, 4.0)
    assert parameters.length == 51
    assert parameters.norm * found.scale <= found.norm_bound
    release = Release(found.mechanism, found.norm_bound, 51, found.device_variance, found.honest_reports)
    assert 7.9 < rdp_epsilon([release] * 40, 1e-5) < 8.0
    assert found.epsilon == pytest.approx(rdp_epsilon([release] * 40, 1e-5), rel=1e-6)


def test_without_noise_the_bit_is_exact() -> None:
    found = plan(20, adaptive=True, epsilon=math.inf)
    assert found.clip_bit > 0
    assert found.device_variance == 0
    assert bit_share(0.0, 20) == LARGEST_SHARE


@BOTH
@pytest.mark.parametrize(("quantile", "start"), [(0.5, 30.0), (0.8, 0.05)])
def test_the_clip_norm_converges_to_the_quantile(mechanism: Mechanism, quantile: float, start: float) -> None:
    """Through encoding, noise, sum and decoding, from far above and far below; the norms of updates are log-normal."""
    devices, dimension, rounds = 100, 50, 160
    found = plan(devices, adaptive=True, mechanism=mechanism)
    first = replace(found.parameters(dimension, 4.0))
    draws = np.random.default_rng(11)
    clipping, norm, told = AdaptiveClipping(quantile), start, []
    for number in range(rounds):
        parameters = replace(
            first, clip_norm=norm, clip_bit=first.clip_bit * norm / 4.0, scale=first.scale * 4.0 / norm
        )
        ctx = digest(b"%d" % number)
        total = ModularSum.empty(parameters.length, parameters.bits)
        for device in range(devices):
            update = draws.normal(size=dimension)
            update *= draws.lognormal(0.0, 0.5) / np.linalg.norm(update)
            total = total.plus(encode(update.astype(np.float32), parameters, ctx, digest(ctx, b"%d" % device)))
        decoded = decode(total.total(), parameters, ctx, devices)
        assert decoded.within is not None
        told.append(norm)
        norm = clipping.next_norm(norm, decoded.within, start=start)
    settled = np.array(told[-60:])
    shares = np.array([math.erf(math.log(c) / 0.5 / math.sqrt(2)) / 2 + 0.5 for c in settled])
    assert abs(float(shares.mean()) - quantile) < 0.03
    assert np.abs(shares - quantile).max() < 0.15


def test_the_share_within_comes_back_from_the_sum() -> None:
    parameters = plan(20, adaptive=True, epsilon=math.inf).parameters(50, 4.0)
    ctx = digest(b"ctx")
    total = ModularSum.empty(51, parameters.bits)
    for device in range(8):
        update = np.zeros(50, np.float32)
        # Three are longer than the clip norm; one is just as long.
        update[device] = (1.0, 3.0, 4.0, 5.0, 6.0, 9.0, 0.0, 2.0)[device]
        total = total.plus(encode(update, parameters, ctx, digest(b"%d" % device)))
    decoded = decode(total.total(), parameters, ctx, 8)
    assert decoded.within == pytest.approx(5 / 8, abs=0.02)
    assert decoded.mean.shape == (50,)
    np.testing.assert_allclose(decoded.mean[:8], np.array([1, 3, 4, 4, 4, 4, 0, 2]) / 8, atol=0.02)
