"""Bundles whose training is private for each example: exported, trained on ONNX Runtime, and compared with PyTorch
that takes the same samples and the same noise but differentiates one example at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edge_sdk.errors import ArtifactError, ExportError, TrainingError
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.privacy.gaussian import noised
from edge_sdk.privacy.subsampled import poisson_sample
from edge_sdk.runtime.learner import Bundle, TrainingJob
from edge_sdk.secagg.suite import Stream
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.cli import describe
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.graphs import OpenGraph
from edge_sdk.training.learner import LocalLearner
from edge_sdk.training.manifest import GraphKind, Manifest, Runtime, TensorSpec, check_manifest
from edge_sdk.training.parity import replay_parity
from edge_sdk.training.plan import TrainingPlan
from edge_sdk.training.steps import CLIP_SLACK, SampledSteps, open_steps
from exporters.per_example import clipped_sum
from exporters.privacy import DpSgd
from tests.integration.exported import (
    SIGNER,
    Loss,
    exported,
    flat,
    images,
    known_entropy,
    labels,
    rows,
    small,
    small_net,
)
from tests.unit.cohort import planned

PRIVACY = DpSgd(clip_norm=0.7, noise_multiplier=0.5, lot_size=6)
PLAN = TrainingPlan(epochs=2, batch_size=4, learning_rate=0.05)
STEPS, RATE = 8, 0.3  # of that plan with twenty examples


def of_tokens(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean over all tokens, of which each example has as many."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.recurrent, self.head = nn.Embedding(9, 6), nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 9)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(self.recurrent(self.table(tokens))[0]))


class _Transformer(nn.Module):
    """With positions, and with dropout where asked for."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.table, self.positions = nn.Embedding(9, 8), nn.Parameter(torch.rand(5, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)
        self.head = nn.Linear(8, 9)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(self.layer(self.table(tokens) + self.positions)))


class _Adapted(nn.Module):
    """A frozen transformer layer with low-rank adapters around it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = _Transformer().requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.rand(8, 2)), nn.Parameter(torch.rand(2, 8))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.base.table(tokens)
        return torch.as_tensor(self.base.head(self.base.layer(x + x @ self.down @ self.up)))


class _TwoInputs(nn.Module):
    """A recommender: who and what, as numbers, and a feature."""

    def __init__(self) -> None:
        super().__init__()
        self.who, self.what, self.head = nn.Embedding(5, 4), nn.Embedding(7, 4), nn.Linear(9, 1)

    def forward(self, user: torch.Tensor, item: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(torch.cat([self.who(user), self.what(item), extra[:, None]], 1)))


@dataclass(frozen=True)
class Case:
    """A model, its inputs for so many examples, its targets and its loss."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[torch.Tensor, ...]]
    target: Callable[[int], torch.Tensor] = labels
    loss: Loss = F.cross_entropy
    optimizer: str = "sgd"


def _tokens(count: int) -> tuple[torch.Tensor, ...]:
    return (torch.randint(9, (count, 5)),)


def _next_tokens(count: int) -> torch.Tensor:
    return torch.randint(9, (count, 5))


CASES = {
    "mlp": Case(
        lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10)), lambda n: (torch.randn(n, 12),)
    ),
    "cnn": Case(small_net, lambda n: (torch.randn(n, 1, 8, 8),), optimizer="momentum"),
    "lstm": Case(_Recurrent, _tokens, _next_tokens, of_tokens),
    "transformer": Case(_Transformer, _tokens, _next_tokens, of_tokens),
    "adapters": Case(_Adapted, _tokens, _next_tokens, of_tokens, "adam"),
    "recommender, summed": Case(
        _TwoInputs,
        lambda n: (torch.randint(5, (n,)), torch.randint(7, (n,)), torch.randn(n)),
        lambda n: torch.rand(n, 1),
        lambda output, target: F.binary_cross_entropy_with_logits(output, target, reduction="sum"),
    ),
}


def trained_eagerly(case: Case, model: nn.Module, x: tuple[torch.Tensor, ...], y: torch.Tensor) -> npt.NDArray[Any]:
    """Differentially private SGD with a loop over the sample's examples."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    momentum = 0.9 if case.optimizer == "momentum" else 0.0
    optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, PLAN.learning_rate, momentum)
    if case.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, PLAN.learning_rate)
    entropy = known_entropy()
    samples = Stream(entropy(32))
    for _ in range(STEPS):
        total = np.zeros(sum(parameter.numel() for parameter in parameters))
        for row in poisson_sample(len(y), RATE, samples):
            value = case.loss(model(*(field[row : row + 1] for field in x)), y[row : row + 1])
            found = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters)]).double().numpy()
            total += found * min(1.0, PRIVACY.clip_norm / float(np.linalg.norm(found)))
        private = noised(total, PRIVACY.clip_norm * (1 + CLIP_SLACK), PRIVACY.noise_multiplier, Stream(entropy(32)))
        rest = torch.from_numpy(private / PRIVACY.lot_size).float()
        for parameter in parameters:
            part, rest = rest[: parameter.numel()], rest[parameter.numel() :]
            parameter.grad = part.reshape(parameter.shape)
        optimizer.step()
    return flat(model)


@pytest.mark.parametrize("name", CASES)
def test_a_model_trains_as_with_a_loop_over_examples(name: str) -> None:
    """Samples are larger than the plan's batch size at times, and are put together from several runs then."""
    case = CASES[name]
    torch.manual_seed(2)
    model, x, y = case.build(), case.inputs(20), case.target(20)
    artifact = exported(model, x, y, case.loss, case.optimizer, privacy=PRIVACY)
    assert artifact.manifest.format("onnx").replay.worst < 0.5
    assert artifact.manifest.privacy == PRIVACY.promise
    assert replay_parity(artifact).ok
    checkpoint = artifact.checkpoint()
    fields = (*artifact.manifest.inputs, artifact.manifest.target)
    examples = {spec.name: field.numpy() for spec, field in zip(fields, (*x, y), strict=True)}
    result = BundleTrainer(artifact, entropy=known_entropy()).train(checkpoint, examples, PLAN, seed=b"")
    after = trained_eagerly(case, model.train(), x, y)
    moved = float(np.abs(after - checkpoint).max())
    np.testing.assert_allclose(checkpoint + result.update, after, atol=2e-6 + 2e-4 * moved)
    assert result.steps == STEPS


@lru_cache
def private() -> Artifact:
    """`small_net`, private, once for all tests."""
    return exported(small_net(), torch.randn(8, 1, 8, 8), labels(8), privacy=PRIVACY)


def test_how_many_run_at_once_changes_nothing_but_rounding() -> None:
    checkpoint, examples = private().checkpoint(), rows(*images(20))
    one, two = (
        BundleTrainer(private(), entropy=known_entropy()).train(
            checkpoint, examples, replace(PLAN, batch_size=size), seed=b""
        )
        for size in (1, 64)
    )
    np.testing.assert_allclose(one.update, two.update, atol=1e-6)
    assert (one.steps, one.examples) == (two.steps, two.examples)
    assert one.loss == pytest.approx(two.loss, rel=1e-5)


def test_every_training_draws_its_own_samples_and_noise() -> None:
    checkpoint, examples = private().checkpoint(), rows(*images(20))
    one, two = (BundleTrainer(private()).train(checkpoint, examples, PLAN, seed=b"same") for _ in range(2))
    deviation = PRIVACY.noise_multiplier * PRIVACY.clip_norm / PRIVACY.lot_size * PLAN.learning_rate
    # The difference of two noises of eight steps each; gradients only add to it.
    assert float((one.update - two.update).std()) > 0.8 * deviation * np.sqrt(2 * STEPS)


def test_a_sample_may_be_empty() -> None:
    """Its step is noise alone, and the training's loss is that of the others."""
    examples = rows(*images(2))
    plan = TrainingPlan(epochs=40, batch_size=4, learning_rate=0.05)
    artifact = exported(small_net(), torch.randn(8, 1, 8, 8), labels(8), privacy="example:lot_size=1")
    sizes = [len(sample) for sample in open_steps(artifact, entropy=known_entropy()).samples(plan, 2, b"")]
    assert len(sizes) == 80
    assert sizes.count(0) > 5
    result = BundleTrainer(artifact, entropy=known_entropy()).train(artifact.checkpoint(), examples, plan, seed=b"")
    assert result.steps == 80
    assert np.isfinite(result.update).all()
    assert 0 < result.loss < 10
    nothing = BundleTrainer(artifact, entropy=lambda count: b"\7" * count)
    first = open_steps(artifact, entropy=lambda count: b"\7" * count).samples(replace(plan, max_steps=1), 2, b"")
    if not len(next(first)):
        assert nothing.train(artifact.checkpoint(), examples, replace(plan, max_steps=1), seed=b"").loss == 0.0


def test_steps_are_capped_and_a_sample_of_all_needs_no_chance() -> None:
    few = rows(*images(3))
    result = BundleTrainer(private()).train(private().checkpoint(), few, replace(PLAN, max_steps=1), seed=b"")
    assert (result.steps, result.examples) == (1, 3)


class _Dishonest:
    """A clip graph whose sums are as long as it likes."""

    def __init__(self, honest: OpenGraph, factor: float) -> None:
        self.honest, self.factor, self.spec = honest, np.float32(factor), honest.spec

    def run(self, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        with np.errstate(invalid="ignore"):
            return [value * self.factor for value in self.honest.run(feeds)]


@pytest.mark.parametrize("factor", [1.01, 1e6, np.nan, np.inf])
def test_gradients_that_are_too_long_or_no_numbers_never_reach_the_optimizer(factor: float) -> None:
    """One example at a time, the device sees for itself that it was clipped."""
    steps = open_steps(private())
    assert isinstance(steps, SampledSteps)
    x, y = images(1)
    x *= 100  # So that the gradient is clipped.
    feeds = steps.state(private().layout.unflatten(private().checkpoint()))
    feeds["learning_rate"] = np.array(0.1, np.float32)
    before = feeds["parameter:4.weight"]
    loss = steps.take(dict(feeds), [rows(x, y)], PLAN, 1)
    assert loss is not None
    assert loss > 0
    broken: Any = _Dishonest(steps.clip, factor)
    with pytest.raises(TrainingError, match="clipped gradients"):
        replace(steps, clip=broken).take(feeds, [rows(x, y)], PLAN, 1)
    assert feeds["parameter:4.weight"] is before


def test_a_noise_that_cannot_be_made_is_told() -> None:
    steps = open_steps(private())
    assert isinstance(steps, SampledSteps)
    loud = replace(steps, privacy=replace(steps.privacy, noise_multiplier=1e5))
    feeds = steps.state(private().layout.unflatten(private().checkpoint()))
    with pytest.raises(TrainingError, match="cannot be given noise"):
        loud.take({**feeds, "learning_rate": np.array(0.1, np.float32)}, [rows(*images(1))], PLAN, 1)


def test_dropout_is_certified_with_each_example_among_copies_of_itself() -> None:
    torch.manual_seed(4)
    x, y = _tokens(8), _next_tokens(8)
    artifact = exported(_Transformer(0.3), x, y, of_tokens, privacy="example")
    assert artifact.manifest.format("onnx").replay.worst < 0.5
    assert artifact.manifest.graph("clip").takes("seed")
    assert replay_parity(artifact).ok


@pytest.mark.parametrize("extra", [{"frozen": "int8"}, {"formats": ("onnx", "torchscript")}])
def test_other_settings_go_together_with_privacy(extra: dict[str, Any]) -> None:
    """Corrections, gradient clipping, frozen parameters (in 8 bits), and every runtime."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 10))
    settings = {"correction": True, "trainable": "2.*", "privacy": "example", **extra}
    artifact = exported(model, torch.randn(8, 12), labels(8), optimizer="adam:max_gradient_norm=1", **settings)
    x, plan, checkpoint = torch.randn(9, 12), replace(PLAN, proximal=0.1), artifact.checkpoint()
    one, *others = (
        BundleTrainer(artifact, runtime, entropy=known_entropy())
        .train(checkpoint, rows(x, labels(9)), plan, seed=b"", correction=np.ones_like(checkpoint))
        .update
        for runtime in get_args(Runtime)
        if runtime in [known.name for known in artifact.manifest.formats]
    )
    assert one.shape == (650,)
    assert float(np.abs(one).max()) > 0.05
    for other in others:
        np.testing.assert_allclose(other, one, atol=1e-4)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(self.table(tokens)))


class _Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Parameter(torch.rand(12)), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(x * torch.sigmoid(self.gate)))


class _Centred(nn.Module):
    """Ties examples together, but only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return torch.as_tensor(self.head(x - x.mean(0) if self.training else x))


def _normed() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


def _weighing(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, target, torch.linspace(0.5, 2, 10))


def _contrasting(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output @ output.t(), torch.arange(len(output))) + 0 * target.sum()


def _ignoring(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=3)


def _padded(count: int) -> torch.Tensor:
    target = torch.randint(9, (count, 5))
    target[0, 2:] = -100
    return target


def _numbers(count: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(count, 12),)


@pytest.mark.parametrize(
    ("case", "complaint"),
    [
        (Case(_normed, _numbers), r"1 \(BatchNorm1d\) keeps running_mean of all examples"),
        (Case(_Recurrent, _tokens, _padded, of_tokens), "neither the mean nor the sum"),
        (Case(lambda: nn.Linear(12, 10), _numbers, loss=_weighing), "neither the mean nor the sum"),
        (Case(lambda: nn.Linear(12, 10), _numbers, loss=_contrasting), "neither the mean nor the sum"),
        (Case(_Recurrent, _tokens, lambda n: _next_tokens(n) % 3, _ignoring), "labels that are not 3"),
        (Case(_Tied, _tokens, _next_tokens, of_tokens), "parameter table.weight is tied"),
        (Case(_Gated, _numbers), "parameter gate: its use in Sigmoid"),
        (Case(_Centred, _numbers), "does not match float64 autograd"),
    ],
)
def test_models_for_which_it_would_be_wrong_are_refused(case: Case, complaint: str) -> None:
    torch.manual_seed(6)
    with pytest.raises(ExportError, match=complaint) as caught:
        exported(case.build(), case.inputs(8), case.target(8), case.loss, privacy="example")
    assert caught.value.hint


def test_one_example_does_not_show_what_the_loss_is() -> None:
    with pytest.raises(ExportError, match="one example"):
        exported(small_net(), torch.randn(1, 1, 8, 8), labels(1), privacy="example")


@pytest.mark.parametrize(
    "privacy", ["examples", "example:norm=1", "example:clip_norm=0", "example:lot_size=1.5", "example:lot_size=nan"]
)
def test_settings_that_make_no_sense_are_refused(privacy: str) -> None:
    with pytest.raises(ExportError, match="privacy"):
        exported(small_net(), torch.randn(8, 1, 8, 8), labels(8), privacy=privacy)


def test_labels_to_ignore_are_taken_only_where_they_tie_no_examples_together() -> None:
    """Cross-entropy's mean leaves them out for all examples at once; an own mean over examples does not."""
    assert private().manifest.ignored_label is None
    x, y = images(4)
    y[1] = -100
    with pytest.raises(TrainingError, match="labels must lie in"):
        BundleTrainer(private()).train(private().checkpoint(), rows(x, y), PLAN, seed=b"")

    def of_rows(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        losses = F.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="none")
        return losses.reshape(target.shape).sum(1).mean()

    torch.manual_seed(7)
    artifact = exported(_Recurrent(), _tokens(8), _padded(8), of_rows, privacy="example")
    assert artifact.manifest.ignored_label == -100


@pytest.mark.parametrize("broken", ["not clipped", "clipped twice", "unweighted", "a parameter apart"])
def test_a_wrong_sum_is_never_certified(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(loss: torch.Tensor, leaves: Any, *, weight: torch.Tensor, clip_norm: Any, mean: bool) -> Any:
        match broken:
            case "not clipped":
                return clipped_sum(loss, leaves, weight=weight, clip_norm=clip_norm * 1e6, mean=mean)
            case "clipped twice":
                return clipped_sum(loss, leaves, weight=weight, clip_norm=clip_norm / 2, mean=mean)
            case "unweighted":
                return clipped_sum(loss, leaves, weight=torch.ones_like(weight), clip_norm=clip_norm, mean=mean)
            case _:
                found: dict[str, torch.Tensor] = {}
                for name, leaf in leaves.items():
                    found |= clipped_sum(loss, {name: leaf}, weight=weight, clip_norm=clip_norm, mean=mean)
                return found

    monkeypatch.setattr("exporters.private_step.clipped_sum", wrong)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10))
    with pytest.raises(ExportError, match="does not match float64 autograd"):
        exported(model, torch.randn(8, 12), labels(8), privacy="example")


def _changed(manifest: Manifest, kind: GraphKind, **changes: Any) -> Manifest:
    graphs = tuple(replace(graph, **changes) if graph.kind == kind else graph for graph in manifest.graphs)
    return replace(manifest, graphs=graphs)


def _without(specs: tuple[TensorSpec, ...], role: str) -> tuple[TensorSpec, ...]:
    return tuple(spec for spec in specs if spec.role != role)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: replace(m, privacy=None), "a clip graph if it is private"),
        (lambda m: replace(m, privacy=replace(m.privacy, clip_norm=0.0)), "not positive"),
        (lambda m: replace(m, privacy=replace(m.privacy, noise_multiplier=-1.0)), "not positive"),
        (lambda m: replace(m, privacy=replace(m.privacy, lot_size=0)), "not positive"),
        (
            lambda m: _changed(m, "clip", inputs=_without(m.graph("clip").inputs, "weight")),
            "does not weight and clip",
        ),
        (
            lambda m: _changed(m, "clip", outputs=_without(m.graph("clip").outputs, "gradient")),
            "does not give a gradient",
        ),
        (
            lambda m: _changed(m, "train", inputs=(*m.graph("train").inputs, *m.inputs)),
            "takes examples",
        ),
        (
            lambda m: _changed(m, "train", inputs=_without(m.graph("train").inputs, "gradient")),
            "does not take the gradients",
        ),
        (
            lambda m: _changed(m, "infer", inputs=(*m.graph("infer").inputs, m.graph("clip").inputs[-1])),
            "takes weights",
        ),
    ],
)
def test_a_manifest_that_leaves_examples_another_way_out_is_refused(
    change: Callable[[Any], Manifest], words: str
) -> None:
    with pytest.raises(ArtifactError, match=words):
        check_manifest(change(private().manifest))


def test_the_learner_trains_a_private_bundle(tmp_path: Path) -> None:
    """It asks for the clip graph too, and draws new noise for the same job."""
    artifact, checkpoint, examples = private(), private().checkpoint(), rows(*images(20))
    with ExampleStore.create_for(tmp_path / "examples.sqlite", examples) as store:
        store.add_many(examples)
        learner = LocalLearner(SIGNER.public_key(), store, InstalledModels(tmp_path, signer=SIGNER.public_key()))
        contents = {hashlib.sha256(content).digest(): content for content in artifact.parts.values()}
        bundle = Bundle(artifact.head, lambda part: contents[part.sha256])
        assert learner.check(bundle, checkpoint.tobytes()) == artifact.layout.size
        job = TrainingJob(
            planned(epochs=2, batch_size=4, dimension=checkpoint.size), bundle, checkpoint.tobytes(), b"", "main"
        )
        one, two = (np.frombuffer(learner.train(job).values, "<f4") for _ in range(2))
    assert np.isfinite(one).all()
    assert not np.array_equal(one, two)


def test_inspect_tells_what_it_costs() -> None:
    lines = dict(describe(private()))
    assert "clipped to 0.7, noise multiplier 0.5, Poisson samples of 6" in lines["privacy"]
    assert "with 120 examples" in lines["epsilon"]
    assert "privacy" not in dict(describe(small()))
