"""A budget's threads, time and memory, on a real bundle and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edge_sdk import Budget
from edge_sdk.errors import BudgetExceeded, ConfigError
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.protocol.messages import Plan
from edge_sdk.runtime.learner import Bundle, TrainingJob
from edge_sdk.training import graphs
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.graphs import open_graph
from edge_sdk.training.learner import LocalLearner
from edge_sdk.training.plan import TrainingPlan
from edge_sdk.training.trainer import TrainingInterrupted
from tests.integration.exported import SIGNER, images, rows, small
from tests.unit.cohort import PLAN

ROUND: Plan = replace(PLAN, epochs=3, batch_size=4, learning_rate=0.1, max_steps=1000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ExampleStore]:
    with ExampleStore.create_for(tmp_path / "examples.sqlite", rows(*images(20))) as made:
        made.add_many(rows(*images(20)))
        yield made


def learner(store: ExampleStore, folder: Path, **options: Any) -> LocalLearner:
    key = SIGNER.public_key()
    return LocalLearner(key, store, InstalledModels(folder / "models", signer=key), **options)


def job() -> TrainingJob:
    artifact = small()
    parts = {bytes.fromhex(part.sha256): artifact.part(part.name) for part in artifact.manifest.parts}
    bundle = Bundle(artifact.head, lambda part: parts[part.sha256])
    return TrainingJob(ROUND, bundle, artifact.checkpoint().astype("<f4").tobytes(), bytes(32), "main")


def test_a_training_is_paced_and_comes_to_the_same(store: ExampleStore, tmp_path: Path) -> None:
    free, paced = (
        learner(store, tmp_path, budget=budget).train(job()).values for budget in (None, Budget(cpu_share=0.5))
    )
    assert free == paced


def test_a_training_that_lasts_too_long_ends_with_the_budgets_error(store: ExampleStore, tmp_path: Path) -> None:
    with pytest.raises(BudgetExceeded, match="this device allows a round"):
        learner(store, tmp_path, budget=Budget(wall_s=1e-9)).train(job())


def test_memory_is_what_the_bundle_predicts_of_the_batches_it_gets(store: ExampleStore, tmp_path: Path) -> None:
    predicted = small().manifest.predicted_bytes
    made = learner(store, tmp_path)
    assert made.memory_bytes(small().head, ROUND) == predicted(4)
    assert made.memory_bytes(small().head, replace(ROUND, batch_size=1000)) == predicted(20)


def test_sessions_compute_on_as_many_threads_as_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    session = onnxruntime.InferenceSession

    def opened(content: bytes, options: Any, **others: Any) -> Any:
        told.append((options.intra_op_num_threads, options.inter_op_num_threads))
        return session(content, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    one, many = (open_graph(small(), "train", "onnx", threads) for threads in (3, 4))
    assert one is not many
    assert told == [(3, 1), (4, 1)]


def test_a_large_models_graphs_are_closed_after_training_and_a_small_ones_stay(
    store: ExampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = learner(store, tmp_path)
    first = made.train(job()).values
    before = open_graph(small(), "train")
    infer = open_graph(small(), "infer")
    assert made.train(job()).values == first
    assert open_graph(small(), "train") is before
    monkeypatch.setattr(graphs, "_LARGE_BYTES", 0)
    assert made.train(job()).values == first
    assert open_graph(small(), "train") is not before
    assert open_graph(small(), "infer") is infer, "what predicts stays open"
    # Also where training ends badly; and whoever still has it open goes on.
    before = open_graph(small(), "train")
    with pytest.raises(TrainingInterrupted):
        made.train(job(), should_stop=lambda: True)
    assert open_graph(small(), "train") is not before
    assert made.train(job()).values == first


def test_two_threads_train_to_what_one_does(store: ExampleStore) -> None:
    plan = TrainingPlan(epochs=2, batch_size=4, learning_rate=0.1)
    one, two = (
        BundleTrainer(small(), threads=threads).train(small().checkpoint(), store.rows(), plan, seed=b"s").update
        for threads in (1, 2)
    )
    assert np.allclose(one, two, atol=1e-5)


def test_a_runtime_that_cannot_be_kept_to_threads_says_so(store: ExampleStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torchscript cannot be kept to 2 threads") as caught:
        learner(store, tmp_path, runtime="torchscript", budget=Budget(threads=2))
    assert "onnx" in caught.value.hint
