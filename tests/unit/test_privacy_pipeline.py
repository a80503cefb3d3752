"""From an update to masked integers and back: what each step keeps, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_sdk.errors import RemoteProtocolError
from edge_sdk.privacy import quantize, rotate
from edge_sdk.privacy.encode import EncodingParameters, decode, encode
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.secagg import modular
from edge_sdk.secagg.suite import digest

CTX = digest(b"ctx")


def normal(seed: int, length: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=length).astype(np.float32)


def parameters(
    dimension: int, *, bits: int = 20, scale: float = 500.0, device_variance: int = 0, clip_bit: float = 0.0
) -> EncodingParameters:
    bound = quantize.rounded_norm_bound(math.hypot(1.0, clip_bit), scale, dimension + 1)
    return EncodingParameters(dimension, bits, 1.0, clip_bit, scale, bound, Mechanism.SKELLAM, device_variance)


@pytest.mark.parametrize("length", [1, 2, 32, 64, 128, 2048, 8192, 1 << 15])
def test_the_transform_is_sylvesters_matrix(length: int) -> None:
    values = normal(length, length).astype(np.float64)
    slow = values.copy()
    half = 1
    while half < length:
        pairs = slow.reshape(-1, 2, half)
        slow = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
        half *= 2
    np.testing.assert_allclose(rotate.hadamard(values), slow, atol=1e-9)


def test_rotation_spreads_a_single_coordinate_evenly() -> None:
    update = np.zeros(1024, np.float32)
    update[17] = 32.0
    np.testing.assert_array_equal(np.abs(rotate.rotate(update, CTX)), np.ones(1024))


@pytest.mark.parametrize("length", [700, 1000, 1024, 1025, 1500, 2047])
def test_every_coordinate_is_as_small_as_its_block_allows(length: int) -> None:
    """Over many rounds' signs no coordinate's mean square exceeds norm^2 / m, wherever the update's mass lies."""
    block, rounds = rotate.block_length(length), 400
    limit = (1 + 6 * math.sqrt(2 / rounds)) / block
    for place in (0, length - block, length // 2, block - 1, length - 1):
        update = np.zeros(length)
        update[place] = 1.0
        squares = np.mean([rotate.rotate(update, digest(b"%d" % name)) ** 2 for name in range(rounds)], axis=0)
        assert squares.max() < limit
        assert squares.sum() == pytest.approx(1.0)


def test_an_update_along_the_transform_itself_is_spread_too() -> None:
    """Without signs of their own the second block would gather again what the first had spread."""
    length = 1536
    first = np.zeros(length)
    first[:1024] = rotate.hadamard(np.eye(1, 1024, 600)[0]) / 32
    for name in range(20):
        assert np.abs(rotate.rotate(first, digest(b"%d" % name))).max() < 6 / 32


def test_rotations_of_two_rounds_differ() -> None:
    update = normal(0, 64)
    assert not np.allclose(rotate.rotate(update, CTX), rotate.rotate(update, digest(b"another")))


def test_rounding_has_no_bias_and_keeps_the_variance_of_a_coin() -> None:
    values = np.full(200_000, 0.3, np.float32)
    rounded = quantize.stochastic_round(values, 1.0, 1e6, digest(b"coins"))
    assert set(np.unique(rounded)) == {0, 1}
    deviation = math.sqrt(0.3 * 0.7 / len(values))
    assert abs(float(rounded.mean()) - 0.3) < 4 * deviation


def test_rounding_is_drawn_again_until_it_is_short_enough() -> None:
    # Half of 64 coordinates round up on average; one draw in ten has no more than 26 of them.
    values, bound = np.full(64, 0.5, np.float32), 5.1
    lengths = [
        int(np.dot(rounded, rounded))
        for name in range(50)
        for rounded in [quantize.stochastic_round(values, 1.0, bound, digest(bytes([name])))]
    ]
    assert max(lengths) == 26
    first_draws = [int(quantize.stochastic_round(values, 1.0, 1e6, digest(bytes([name]))).sum()) for name in range(50)]
    assert max(first_draws) > 26


def test_blocks_do_not_change_the_rounding() -> None:
    values = normal(5, 50_000)
    whole = quantize.stochastic_round(values, 3.0, 1e6, digest(b"blocks"))
    start = quantize.stochastic_round(values[:40_000], 3.0, 1e6, digest(b"blocks"))
    np.testing.assert_array_equal(whole[:40_000], start)


@pytest.mark.parametrize("bits", [13, 16, 17, 20, 32])
def test_the_mean_comes_back_from_the_sum(bits: int) -> None:
    dimension, devices = 300, 5
    chosen = parameters(dimension, bits=bits, scale=200.0)
    updates = [normal(seed, dimension) * np.float32(0.02) for seed in range(devices)]
    total = np.zeros(chosen.length, modular.work_dtype(bits))
    for number, update in enumerate(updates):
        total += encode(update, chosen, CTX, digest(bytes([number])))
    mean = decode(modular.reduce(total, bits), chosen, CTX, devices).mean
    assert mean.dtype == np.float32
    # A rounding error is below one step a coordinate, and the rotation keeps the norm of all of them.
    error = float(np.linalg.norm(mean - np.mean(updates, axis=0)))
    assert error < math.sqrt(chosen.length / devices) / chosen.scale


def test_a_long_update_is_clipped_before_it_is_encoded() -> None:
    chosen = parameters(100, scale=1000.0)
    update = normal(3, 100) * np.float32(50.0)
    mean = decode(encode(update, chosen, CTX, digest(b"e")), chosen, CTX, 1).mean
    assert float(np.linalg.norm(mean)) == pytest.approx(1.0, abs=0.02)
    assert float(np.dot(mean, update)) > 0.99 * float(np.linalg.norm(update))


def test_the_noise_has_the_variance_of_the_plan() -> None:
    chosen = parameters(1 << 14, bits=24, device_variance=400)
    silent = parameters(1 << 14, bits=24)
    update = normal(4, 1 << 14)
    noise = modular.centre(encode(update, chosen, CTX, digest(b"e")) - encode(update, silent, CTX, digest(b"e")), 24)
    assert float(noise.var()) == pytest.approx(400, rel=5 * math.sqrt(2 / len(noise)))


def test_the_same_entropy_gives_the_same_vector_and_another_gives_another() -> None:
    chosen = parameters(50, device_variance=100)
    update = normal(6, 50)
    first = encode(update, chosen, CTX, digest(b"a"))
    np.testing.assert_array_equal(first, encode(update, chosen, CTX, digest(b"a")))
    assert not np.array_equal(first, encode(update, chosen, CTX, digest(b"b")))


def test_a_sum_that_wrapped_is_refused() -> None:
    chosen = parameters(8, bits=10, scale=100.0)
    update = np.full(8, 1.0, np.float32)
    total = np.zeros(8, np.uint16)
    for number in range(6):
        # Six aligned updates put about 6 * 100 steps on one coordinate; 10 bits hold 512.
        total += encode(rotate.unrotate(rotate.hadamard(update), CTX), chosen, CTX, digest(bytes([number])))
    with pytest.raises(RemoteProtocolError, match="fills the modulus"):
        decode(np.array([500, *[0] * 7], np.uint16), chosen, CTX, 6)


def test_a_sum_whose_masks_did_not_cancel_is_refused() -> None:
    chosen = parameters(1800, bits=13)
    garbage = np.zeros(chosen.length, np.uint16)
    modular.add_mask(garbage, digest(b"a mask that stayed"), 1)
    with pytest.raises(RemoteProtocolError, match="fills the modulus"):
        decode(modular.reduce(garbage, 13), chosen, CTX, 10)
