"""Training on the device: what is refused, what is shared, and that the runtime is tested before it is trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge_sdk.errors import ArtifactError, TrainingError
from edge_sdk.training.artifact import parse_artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.evaluation import evaluate
from edge_sdk.training.graphs import open_graph
from edge_sdk.training.manifest import Feedback, Manifest
from edge_sdk.training.parity import replay_parity, require_parity
from edge_sdk.training.plan import TrainingPlan
from edge_sdk.training.trainer import Trainer, TrainingInterrupted
from tests.integration.exported import SIGNER, images, repacked, rows, small

PLAN = TrainingPlan(epochs=2, batch_size=4, learning_rate=0.1)

Rows = np.ndarray[Any, Any]


def test_it_learns() -> None:
    artifact = small()
    trainer: Trainer = BundleTrainer(artifact)
    x, y = images(10)
    checkpoint = artifact.checkpoint()
    kept = checkpoint.copy()
    plan = TrainingPlan(epochs=60, batch_size=10, learning_rate=0.2)
    result = trainer.train(checkpoint, rows(x, y), plan, seed=b"s")
    assert np.array_equal(checkpoint, kept)
    before, after = (evaluate(artifact, c, rows(x, y)) for c in (checkpoint, checkpoint + result.update))
    assert after.loss < 0.5 * before.loss
    assert after.accuracy is not None
    assert after.accuracy > 0.9
    assert (result.steps, result.examples, after.examples) == (60, 10, 10)
    assert result.update.dtype == np.float32
    assert result.update.shape == (artifact.layout.size,)


def test_training_is_repeatable_and_follows_the_seed() -> None:
    trainer, checkpoint, examples = BundleTrainer(small()), small().checkpoint(), rows(*images(10))
    one, two, other = (trainer.train(checkpoint, examples, PLAN, seed=seed).update for seed in (b"a", b"a", b"b"))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_slots_start_anew_each_time() -> None:
    trainer, checkpoint, examples = BundleTrainer(small()), small().checkpoint(), rows(*images(10))
    first = trainer.train(checkpoint, examples, PLAN, seed=b"a").update
    trainer.train(checkpoint + first, examples, PLAN, seed=b"b")
    assert np.array_equal(trainer.train(checkpoint, examples, PLAN, seed=b"a").update, first)


def test_max_steps_counts_the_examples_that_took_part() -> None:
    plan = TrainingPlan(epochs=9, batch_size=4, learning_rate=0.1, max_steps=2)
    result = BundleTrainer(small()).train(small().checkpoint(), rows(*images(10)), plan, seed=b"")
    assert (result.steps, result.examples) == (2, 8)


def test_it_stops_when_asked() -> None:
    asked: list[bool] = []

    def should_stop() -> bool:
        asked.append(True)
        return len(asked) > 3

    with pytest.raises(TrainingInterrupted, match="stopped after 3 steps"):
        BundleTrainer(small()).train(small().checkpoint(), rows(*images(10)), PLAN, seed=b"", should_stop=should_stop)


def test_divergence_is_an_error() -> None:
    plan = TrainingPlan(epochs=5, batch_size=4, learning_rate=1e30)
    with pytest.raises(TrainingError, match="training diverged") as caught:
        BundleTrainer(small()).train(small().checkpoint(), rows(*images(10)), plan, seed=b"")
    assert "learning rate below 1e+30" in caught.value.hint


def test_an_update_that_is_not_finite_is_an_error() -> None:
    """The one step's loss is still finite; what it leads to is not."""
    plan = TrainingPlan(epochs=1, batch_size=10, learning_rate=3e38)
    x, y = images(10)
    with pytest.raises(TrainingError, match="the update holds NaN or infinity"):
        BundleTrainer(small()).train(small().checkpoint(), rows(x * 1e3, y), plan, seed=b"")


def _changed(rows: Rows, place: int, value: float) -> Rows:
    rows = rows.copy()
    rows.reshape(-1)[place] = value
    return rows


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x, y: (x[:0], y[:0]), "there are no examples"),
        (lambda x, y: (x, y[:5]), "10 rows of x but 5 of y"),
        (lambda x, y: (x.astype(np.float64), y), r"x is float64\[10, 1, 8, 8\], the model takes float32\[batch"),
        (lambda x, y: (x[:, 0], y), "x is float32"),
        (lambda x, y: (x, y.astype(np.int32)), "y is int32"),
        (lambda x, y: (x, y[:, None]), "y is int64"),
        (lambda x, y: (_changed(x, 5, np.nan), y), "x holds NaN"),
        (lambda x, y: (_changed(x, 5, np.inf), y), "x holds NaN or infinity"),
        (lambda x, y: (x, _changed(y, 5, 10)), r"labels must lie in 0\.\.9"),
        (lambda x, y: (x, _changed(y, 5, -1)), r"labels must lie in 0\.\.9, here are -1"),
    ],
)
def test_bad_examples_are_refused(spoil: Callable[[Rows, Rows], tuple[Rows, Rows]], words: str) -> None:
    examples = rows(*spoil(*images(10)))
    with pytest.raises(TrainingError, match=words) as caught:
        BundleTrainer(small()).train(small().checkpoint(), examples, PLAN, seed=b"")
    assert caught.value.hint
    with pytest.raises(TrainingError, match=words):
        evaluate(small(), small().checkpoint(), examples)


def test_ignored_labels_are_allowed_and_count_for_nothing() -> None:
    x, y = images(10)
    result = BundleTrainer(small()).train(small().checkpoint(), rows(x, _changed(y, 5, -100)), PLAN, seed=b"")
    assert result.steps == 6
    kept = np.delete(np.arange(10), 5)
    every, some = evaluate(small(), small().checkpoint(), rows(x, _changed(y, 5, -100))), rows(x[kept], y[kept])
    assert every.accuracy == evaluate(small(), small().checkpoint(), some).accuracy


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda v: v[:-1], "elements, this model has"),
        (lambda v: v.astype(np.float64), "not 1-D float32"),
        (lambda v: _changed(v, 3, np.nan), "NaN"),
        (lambda v: np.zeros(0, np.float32), "0 elements"),
    ],
)
def test_bad_checkpoints_are_refused(spoil: Callable[[Rows], Rows], words: str) -> None:
    checkpoint = spoil(small().checkpoint())
    with pytest.raises(TrainingError, match=words):
        BundleTrainer(small()).train(checkpoint, rows(*images(10)), PLAN, seed=b"")
    with pytest.raises(TrainingError, match=words):
        evaluate(small(), checkpoint, rows(*images(10)))


def test_a_batch_beyond_the_bundle_is_refused() -> None:
    plan = TrainingPlan(epochs=1, batch_size=2000, learning_rate=0.1)
    with pytest.raises(TrainingError, match="batches of 2000, this bundle's onnx graphs take up to 1024"):
        BundleTrainer(small()).train(small().checkpoint(), rows(*images(10)), plan, seed=b"")


def test_rows_that_do_not_lie_together_are_taken() -> None:
    x, y = images(20)
    trainer, checkpoint = BundleTrainer(small()), small().checkpoint()
    apart = trainer.train(checkpoint, rows(x[::2], y[::2]), PLAN, seed=b"")
    together = trainer.train(checkpoint, rows(x[::2].copy(), y[::2].copy()), PLAN, seed=b"")
    assert np.array_equal(apart.update, together.update)


def test_evaluation_in_pieces_is_evaluation_at_once() -> None:
    x, y = images(600)
    whole = evaluate(small(), small().checkpoint(), rows(x, y))
    pieces = [evaluate(small(), small().checkpoint(), rows(x[i : i + 100], y[i : i + 100])) for i in range(0, 600, 100)]
    assert whole.loss == pytest.approx(np.mean([piece.loss for piece in pieces]), rel=1e-6)
    assert whole.accuracy == pytest.approx(np.mean([piece.accuracy or 0.0 for piece in pieces]))


def test_an_overflowing_evaluation_is_an_error() -> None:
    x, y = images(4)
    with pytest.raises(TrainingError, match="evaluation loss is"):
        evaluate(small(), np.full(small().layout.size, 3e38, np.float32), rows(x, y))


def test_a_process_opens_each_graph_once() -> None:
    again = parse_artifact(small().to_bytes(), signer=SIGNER.public_key())
    assert open_graph(again, "train") is open_graph(small(), "train")
    assert open_graph(again, "infer") is not open_graph(again, "train")


def test_the_runtime_reproduces_the_parity_vector() -> None:
    report = replay_parity(small())
    assert report.ok
    assert report.steps == 3
    assert report.worst < 0.5


@pytest.mark.parametrize("place", ["loss", "parameters", "nan"])
def test_a_runtime_that_computes_otherwise_is_refused(place: str) -> None:
    """Seen from the runtime: the bundle expects other values than it finds."""

    def other_loss(manifest: Manifest) -> Manifest:
        first, *others = manifest.parity.steps
        return replace(
            manifest, parity=replace(manifest.parity, steps=(replace(first, loss=first.loss + 0.1), *others))
        )

    if place == "loss":
        artifact = repacked(other_loss)
    else:
        part = bytearray(small().part("parity"))
        # The last sampled parameter of the last step; its allowed errors follow.
        end = len(part) - 4 * -(-small().layout.size // small().manifest.parity.stride)
        part[end - 4 : end] = np.array(np.nan if place == "nan" else 9.0, "<f4").tobytes()
        artifact = repacked(lambda manifest: manifest, parity=bytes(part))
    assert not replay_parity(artifact).ok
    with pytest.raises(TrainingError, match="computes other values than this bundle was certified with"):
        BundleTrainer(artifact)
    with pytest.raises(TrainingError, match="computes other values"):
        require_parity(artifact)


def test_nothing_runs_from_a_bundle_that_was_not_verified() -> None:
    unverified = replace(small(), verified=False)
    for use in (BundleTrainer, replay_parity, lambda a: evaluate(a, a.checkpoint(), rows(*images(4)))):
        with pytest.raises(ArtifactError, match="without checking its signature"):
            use(unverified)


def test_a_bundle_for_a_newer_runtime_is_refused() -> None:
    def newer(manifest: Manifest) -> Manifest:
        return replace(manifest, formats=(replace(manifest.format("onnx"), oldest="99.1"),))

    with pytest.raises(ArtifactError, match=r"needs ONNX Runtime 99\.1, this device has") as caught:
        BundleTrainer(repacked(newer))
    assert "onnxruntime>=99.1" in caught.value.hint


def test_a_graph_that_is_none_is_refused() -> None:
    with pytest.raises(ArtifactError, match="cannot load the train graph"):
        BundleTrainer(repacked(lambda manifest: manifest, **{"train.onnx": b"not ONNX"}))


def test_a_graph_that_is_not_the_manifests_is_refused() -> None:
    with pytest.raises(ArtifactError, match="not those of the manifest"):
        BundleTrainer(repacked(lambda manifest: manifest, **{"train.onnx": small().part("infer.onnx")}))


def test_feedback_goes_where_the_manifest_says() -> None:
    """Twice the same parameter fed back is a contradiction, whoever signs it."""

    def crossed(manifest: Manifest) -> Manifest:
        train, *others = manifest.graphs
        first, *rest = train.feedback
        doubled = (first, *rest[:-1], Feedback(first.output, first.input))
        return replace(manifest, graphs=(replace(train, feedback=doubled), *others))

    with pytest.raises(ArtifactError, match="feed back every parameter, buffer and slot once"):
        repacked(crossed)
