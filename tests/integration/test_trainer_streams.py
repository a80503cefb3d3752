"""Training on stored examples: the same as on examples in memory, without having them there."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_sdk.clock import ManualClock
from edge_sdk.errors import StoreError, TrainingError
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.evaluation import evaluate
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.plan import TrainingPlan
from tests.integration.exported import exported, images, labels, rows, small, small_net

PLAN = TrainingPlan(epochs=2, batch_size=4, learning_rate=0.1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "examples.sqlite"


def private() -> Any:
    privacy = {"clip_norm": 1.0, "noise_multiplier": 1.0, "lot_size": 6}
    return exported(small_net(), torch.zeros(2, 1, 8, 8), labels(2), privacy="example:" + _text(privacy))


def _text(values: dict[str, float]) -> str:
    return ",".join(f"{name}={value}" for name, value in values.items())


def test_stored_examples_train_as_those_in_memory(path: Path) -> None:
    trainer, examples = BundleTrainer(small()), rows(*images(30))
    with ExampleStore.create_for(path, examples) as store:
        store.add_many(examples)
        stored, held = (
            trainer.train(small().checkpoint(), given, PLAN, seed=b"s") for given in (store.rows(), examples)
        )
        assert np.array_equal(stored.update, held.update)
        assert (stored.steps, stored.examples, stored.loss) == (held.steps, held.examples, held.loss)
        found, expected = (evaluate(small(), small().checkpoint(), given) for given in (store.rows(), examples))
        assert found == expected


def test_private_training_streams_lots_larger_than_a_batch(path: Path) -> None:
    artifact, examples = private(), rows(*images(30))
    entropy = bytes(range(32))

    def known(count: int) -> bytes:
        return (entropy * count)[:count]

    with ExampleStore.create_for(path, examples) as store:
        store.add_many(examples)
        stored, held = (
            BundleTrainer(artifact, entropy=known).train(artifact.checkpoint(), given, PLAN, seed=b"")
            for given in (store.rows(), examples)
        )
    assert np.array_equal(stored.update, held.update)
    assert stored.examples == held.examples


def test_memory_does_not_grow_with_the_store(path: Path) -> None:
    """A row of 264 bytes costs some tens in lists of rows and orders of them, and never itself."""
    trainer, peaks = BundleTrainer(small()), []
    plan = TrainingPlan(epochs=1, batch_size=4, learning_rate=0.1, max_steps=5)
    x, y = images(1000)
    few, many = 2_000, 20_000
    with ExampleStore.create_for(path, rows(x, y), max_rows=10**6) as store:
        for count in (few, many):
            while len(store) < count:
                store.add_many(rows(x, y))
            trainer.train(small().checkpoint(), store.rows(), plan, seed=b"s")
            tracemalloc.start()
            try:
                assert trainer.train(small().checkpoint(), store.rows(), plan, seed=b"s").steps == 5
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / (many - few) < 100


def test_rows_that_go_meanwhile_do_not_train(path: Path) -> None:
    """The app adds to a full store: what is driven out is left out of its batch, a batch of none is no step."""
    trainer, (x, y) = BundleTrainer(small()), images(40)
    with ExampleStore.create_for(path, rows(x, y), max_rows=20) as store:
        store.add_many(rows(x[:20], y[:20]))
        listed = store.rows()
        store.add_many(rows(x[20:35], y[20:35]))
        plan = TrainingPlan(epochs=1, batch_size=4, learning_rate=0.1)
        result = trainer.train(small().checkpoint(), listed, plan, seed=b"s")
        assert result.examples == 5
        assert 1 < result.steps <= 5
        store.add_many(rows(x[35:], y[35:]))
        with pytest.raises(TrainingError, match="all examples went"):
            trainer.train(small().checkpoint(), listed, plan, seed=b"s")


def test_examples_that_get_too_old_in_the_middle_do_not_train(path: Path) -> None:
    trainer, clock = BundleTrainer(small()), ManualClock(1e9)
    with ExampleStore.create_for(path, rows(*images(20)), ttl_days=1, clock=clock) as store:
        store.add_many(rows(*images(20)))
        asked = 0

        def time_passes() -> bool:
            nonlocal asked
            asked += 1
            if asked == 3:
                clock.advance(86_400)
            return False

        result = trainer.train(small().checkpoint(), store.rows(), PLAN, seed=b"s", should_stop=time_passes)
        assert (result.steps, result.examples, asked) == (2, 8, 10)


def test_erasing_ends_a_training(path: Path) -> None:
    trainer = BundleTrainer(small())
    with ExampleStore.create_for(path, rows(*images(20))) as store:
        store.add_many(rows(*images(20)))
        asked = 0

        def erased() -> bool:
            nonlocal asked
            asked += 1
            if asked == 2:
                store.erase()
            return False

        with pytest.raises(StoreError, match="were erased"):
            trainer.train(small().checkpoint(), store.rows(), PLAN, seed=b"s", should_stop=erased)


def test_stored_examples_of_other_fields_are_refused_before_a_step(path: Path) -> None:
    x, y = images(8)
    trainer = BundleTrainer(small())
    with ExampleStore.create_for(path, rows(x.astype(np.float64), y)) as store:
        with pytest.raises(TrainingError, match="there are no examples"):
            trainer.train(small().checkpoint(), store.rows(), PLAN, seed=b"")
        store.add_many(rows(x.astype(np.float64), y))
        with pytest.raises(TrainingError, match=r"x is float64\[0, 1, 8, 8\], the model takes float32"):
            trainer.train(small().checkpoint(), store.rows(), PLAN, seed=b"")
    wrong = y.copy()
    wrong[5] = 10
    with ExampleStore.create_for(path.with_name("labels.sqlite"), rows(x, y)) as store:
        store.add_many(rows(x, wrong))
        with pytest.raises(TrainingError, match=r"labels must lie in 0\.\.9"):
            trainer.train(small().checkpoint(), store.rows(), PLAN, seed=b"")
