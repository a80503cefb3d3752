"""What holds for every update: the norm is kept, the bound is held, and rotation is undone."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_sdk.privacy import noise, quantize, rotate
from edge_sdk.privacy.clip import clip
from edge_sdk.privacy.encode import EncodingParameters, encode
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.secagg import modular
from edge_sdk.secagg.suite import Stream

MECHANISMS = st.sampled_from([Mechanism.SKELLAM, Mechanism.DISCRETE_GAUSSIAN])
SEEDS = st.binary(min_size=32, max_size=32)
UPDATES = arrays.arrays(np.float32, st.integers(1, 300), elements=st.floats(-100, 100, width=32, allow_subnormal=False))


@given(UPDATES, st.floats(1e-3, 1e3))
def test_clipping_shortens_to_the_ball_and_keeps_the_direction(update: np.ndarray, norm: float) -> None:
    clipped, was_clipped = clip(update, norm)
    before, after = (float(np.linalg.norm(v.astype(np.float64))) for v in (update, clipped))
    assert after <= norm * (1 + 1e-6)
    assert was_clipped == (before > norm)
    if was_clipped:
        np.testing.assert_allclose(clipped, update * (norm / before), rtol=1e-5, atol=1e-30)
    else:
        np.testing.assert_array_equal(clipped, update)


@given(UPDATES, SEEDS)
def test_rotation_keeps_the_norm_and_is_undone(update: np.ndarray, ctx: bytes) -> None:
    wide = update.astype(np.float64)
    rotated = rotate.rotate(wide, ctx)
    assert len(rotated) == len(update)
    assert math.isclose(float(np.linalg.norm(rotated)), float(np.linalg.norm(wide)), rel_tol=1e-9, abs_tol=1e-9)
    np.testing.assert_allclose(rotate.unrotate(rotated, ctx), wide, atol=1e-9)
    narrow = rotate.unrotate(rotate.rotate(update, ctx), ctx)
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, update, atol=1e-5 * max(1.0, float(np.abs(update).max())) * 10)


@given(UPDATES, SEEDS, st.floats(0.5, 1000))
def test_a_rounded_vector_is_near_and_within_its_bound(update: np.ndarray, entropy: bytes, scale: float) -> None:
    clipped, _ = clip(update, 1.0)
    bound = quantize.rounded_norm_bound(1.0, scale, len(update))
    rounded = quantize.stochastic_round(clipped, scale, bound, entropy)
    assert int(np.dot(rounded.astype(np.int64), rounded)) <= bound**2
    assert (np.abs(rounded - clipped.astype(np.float64) * scale) < 1).all()


@settings(max_examples=50)
@given(UPDATES, SEEDS, st.integers(modular.MINIMUM_BITS, modular.MAXIMUM_BITS), st.integers(0, 5000), MECHANISMS)
def test_encoding_is_the_bounded_vector_plus_the_devices_noise(
    update: np.ndarray,
    entropy: bytes,
    bits: int,
    variance: int,
    mechanism: Mechanism,
) -> None:
    scale = 3.0
    bound = quantize.rounded_norm_bound(1.0, scale, len(update))
    silent = EncodingParameters(len(update), bits, 1.0, 0.0, scale, bound, mechanism, 0)
    noisy = EncodingParameters(len(update), bits, 1.0, 0.0, scale, bound, mechanism, variance)
    plain, masked = (encode(update, p, entropy, entropy) for p in (silent, noisy))
    assert plain.dtype == masked.dtype == modular.work_dtype(bits)
    assert len(plain) == len(masked) == silent.length
    if bound < 2 ** (bits - 1):
        assert float(np.linalg.norm(modular.centre(plain, bits))) <= bound
    added = modular.centre(masked.astype(np.int64) - plain, bits)
    assert np.abs(added).max() <= noise.half_width(variance)


@given(MECHANISMS, st.integers(1, 100_000), SEEDS, st.integers(0, 200))
def test_draws_stay_on_the_table(mechanism: Mechanism, variance: int, key: bytes, count: int) -> None:
    drawn = noise.sample(mechanism, variance, count, Stream(key))
    assert len(drawn) == count
    assert (np.abs(drawn) <= noise.half_width(variance)).all()
