"""Training plans and the order of examples."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from edge_sdk.errors import TrainingError
from edge_sdk.training.plan import TrainingPlan, batches


def test_every_epoch_is_a_fresh_shuffle_of_all_rows() -> None:
    plan = TrainingPlan(epochs=2, batch_size=4, learning_rate=0.1)
    chosen = list(batches(plan, 10, b"seed"))
    assert [len(rows) for rows in chosen] == [4, 4, 2, 4, 4, 2]
    first, second = np.concatenate(chosen[:3]), np.concatenate(chosen[3:])
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()


def test_the_seed_decides_the_order() -> None:
    plan = TrainingPlan(epochs=1, batch_size=100, learning_rate=0.1)

    def order(seed: bytes) -> list[int]:
        return [int(row) for row in next(batches(plan, 50, seed))]

    assert order(b"one") == order(b"one")
    assert order(b"one") != order(b"two")


def test_the_shuffle_is_the_documented_one() -> None:
    plan = TrainingPlan(epochs=2, batch_size=8, learning_rate=0.1)
    seed = bytes(range(32))
    for epoch, rows in enumerate(batches(plan, 8, seed)):
        keys = hashlib.shake_256(b"edge-sdk/shuffle/1" + bytes([epoch, 0, 0, 0]) + seed).digest(64)
        expected = sorted(range(8), key=lambda row: int.from_bytes(keys[8 * row : 8 * row + 8], "little"))
        assert rows.tolist() == expected


def test_max_steps_cuts_the_epochs() -> None:
    plan = TrainingPlan(epochs=5, batch_size=4, learning_rate=0.1, max_steps=4)
    assert [len(rows) for rows in batches(plan, 10, b"")] == [4, 4, 2, 4]


@pytest.mark.parametrize(
    ("epochs", "batch_size", "learning_rate", "max_steps"),
    [(0, 1, 0.1, None), (1, 0, 0.1, None), (1, 1, 0.0, None), (1, 1, -1.0, None), (1, 1, math.nan, 1), (1, 1, 0.1, 0)],
)
def test_a_plan_that_trains_nothing_is_refused(
    epochs: int, batch_size: int, learning_rate: float, max_steps: int | None
) -> None:
    with pytest.raises(TrainingError):
        TrainingPlan(epochs, batch_size, learning_rate, max_steps)


@pytest.mark.parametrize("proximal", [-0.1, math.nan, math.inf])
def test_a_proximal_term_that_pushes_away_is_refused(proximal: float) -> None:
    with pytest.raises(TrainingError, match="proximal"):
        TrainingPlan(1, 1, 0.1, proximal=proximal)
