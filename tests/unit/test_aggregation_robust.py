"""Robust combination of cohorts' means: what poisoned ones can do, and how it fits the server optimizers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.aggregation.robust import RULES
from coordinator.aggregation.server_optimizers import server_optimizer
from edge_sdk.errors import ConfigError

DIMENSION = 6


@pytest.mark.parametrize(
    ("name", "groups", "options", "faulty"),
    [("median", 5, {}, 2), ("trimmed_mean", 5, {"trim": 2}, 2), ("krum", 7, {"faulty": 2}, 2)],
)
@given(poison=st.floats(-1e9, 1e9, width=32), seed=st.integers(0, 1000))
def test_a_minority_of_poisoned_means_does_not_leave_the_honest_ones(
    name: str, groups: int, options: dict[str, int], faulty: int, poison: float, seed: int
) -> None:
    honest = np.random.default_rng(seed).normal(size=(groups - faulty, DIMENSION)).astype(np.float32)
    bad = np.full((faulty, DIMENSION), poison, np.float32)
    found = RULES[name](groups, **options)(np.concatenate([bad[:1], honest, bad[1:]]))
    spread = honest.max(axis=0) - honest.min(axis=0)
    # Krum takes whole vectors: one that hides among the honest is as far away as they are from each other.
    slack = 2 * np.linalg.norm(spread) if name == "krum" else 1e-5
    assert (found >= honest.min(axis=0) - slack).all()
    assert (found <= honest.max(axis=0) + slack).all()


def test_without_poison_trimmed_mean_and_krum_are_near_the_mean() -> None:
    means = np.random.default_rng(1).normal(5, 0.1, size=(9, 2000)).astype(np.float32)
    for name, options in (("trimmed_mean", {"trim": 2}), ("krum", {"faulty": 3}), ("median", {})):
        assert np.abs(RULES[name](9, **options)(means).mean() - 5) < 0.01


def test_the_model_rests_until_the_group_is_whole() -> None:
    optimizer = server_optimizer("median:groups=3>fedavgm:learning_rate=1,momentum=0.5")
    plain = server_optimizer("fedavgm:learning_rate=1,momentum=0.5")
    parameters = expected = np.zeros(DIMENSION, np.float32)
    state, own = optimizer.init(parameters), plain.init(parameters)
    means = np.random.default_rng(2).normal(size=(9, DIMENSION)).astype(np.float32)
    for step, mean in enumerate(means, start=1):
        # What a restart reads back is what was.
        state = optimizer.load(optimizer.dump(state), DIMENSION)
        parameters, state = optimizer.apply(parameters, mean, state)
        if step % 3 == 0:
            expected, own = plain.apply(expected, np.median(means[step - 3 : step], axis=0).astype(np.float32), own)
        assert np.array_equal(parameters, expected)
        assert optimizer.completes(step) == (step % 3 == 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mode:groups=5>fedavg", "unknown robust rule 'mode'"),
        ("median>fedavg", "combines 0 groups"),
        ("median:groups=2>fedavg", "combines 2 groups"),
        ("median:groups=500>fedavg", "combines 500 groups"),
        ("median:groups=x>fedavg", "cannot be read"),
        ("median:groups=5,trim=1>fedavg", "cannot be read"),
        ("trimmed_mean:groups=4,trim=2>fedavg", "cannot be trimmed"),
        ("krum:groups=6,faulty=2>fedavg", "cannot withstand"),
        ("median:groups=3>median:groups=3>fedavg", "combines twice"),
        ("median:groups=3>sgd", "unknown server optimizer 'sgd'"),
    ],
)
def test_a_rule_that_cannot_be_is_told(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        server_optimizer(text)
