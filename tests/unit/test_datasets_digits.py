"""Digits and how they are dealt: nothing lost, nothing twice, the same every time, and skewed as asked."""

from __future__ import annotations

import numpy as np
import pytest

from device_sim.datasets import CLASSES, EXAMPLES_EACH, FEWEST_EXAMPLES, deal, digits, federated_digits
from edge_sdk.errors import ConfigError


def test_a_fifth_of_every_class_is_held_out() -> None:
    train, test = digits(seed=0)
    x, y, test_x, test_y = train["x"], train["y"], test["x"], test["y"]
    assert (len(x), len(test_x)) == (1438, 359)
    assert x.dtype == np.float32
    assert y.dtype == np.int64
    assert x.shape[1:] == test_x.shape[1:] == (1, 8, 8)
    assert (x.min(), x.max()) == (-1.5, 1.5)
    shares = np.bincount(test_y, minlength=CLASSES) / np.bincount(np.concatenate([y, test_y]), minlength=CLASSES)
    assert np.all(np.abs(shares - 0.2) < 0.01)


def test_the_seed_decides_everything() -> None:
    first, again, other = (federated_digits(20, seed=seed) for seed in (4, 4, 5))
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first.shards, again.shards, strict=True))
    assert not np.array_equal(first.test["x"], other.test["x"])


@pytest.mark.parametrize("devices", [1, 2, 40, 200, 205])
def test_every_row_is_dealt_once(devices: int) -> None:
    labels = digits()[0]["y"]
    parts = deal(labels, devices, alpha=0.7, seed=0)
    assert len(parts) == devices
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert min(map(len, parts)) >= FEWEST_EXAMPLES


def test_a_fleet_that_is_too_large_shares_rows() -> None:
    labels = digits()[0]["y"]
    parts = deal(labels, 600, alpha=0.7, seed=0)
    sizes = [len(part) for part in parts]
    assert min(sizes) >= FEWEST_EXAMPLES
    assert sum(sizes) == 600 * EXAMPLES_EACH
    dealt = np.concatenate(parts)
    assert len(np.unique(dealt)) < len(dealt)


def test_alpha_decides_how_many_classes_a_device_sees() -> None:
    labels = digits()[0]["y"]

    def classes_seen(alpha: float) -> float:
        return float(np.mean([len(set(labels[part])) for part in deal(labels, 100, alpha=alpha, seed=1)]))

    assert classes_seen(0.05) < 3.5 < classes_seen(0.7) < 6.5 < classes_seen(100.0)


def test_two_hundred_devices_fit_one_batch_each() -> None:
    # The job's batch of 32 is one full batch a device: an epoch is one step.
    for seed in range(5):
        assert max(len(shard["y"]) for shard in federated_digits(200, seed=seed).shards) <= 32


@pytest.mark.parametrize(("devices", "alpha"), [(0, 0.7), (5, 0.0), (5, float("nan"))])
def test_an_impossible_deal_is_refused(devices: int, alpha: float) -> None:
    with pytest.raises(ConfigError, match="cannot deal"):
        deal(np.zeros(100, np.int64), devices, alpha=alpha, seed=0)
