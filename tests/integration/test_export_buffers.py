"""State in buffers: batch norm's running statistics are learned, averaged and served like parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edge_sdk.errors import ExportError, TrainingError
from edge_sdk.inference.predictor import Predictor
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.evaluation import evaluate
from edge_sdk.training.layout import Vector
from edge_sdk.training.plan import TrainingPlan, batches
from tests.integration.exported import exported, labels, rows

# 21 examples in batches of 5: the one that is left over is no batch for a batch norm.
PLAN = TrainingPlan(epochs=5, batch_size=5, learning_rate=0.05)
COUNT = 21


def _conv(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


class _Drifting(nn.Module):
    """Keeps a mean of what it saw by writing to a buffer, and a peak by replacing another."""

    mean: torch.Tensor
    peak: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 10)
        self.register_buffer("mean", torch.zeros(12))
        self.register_buffer("peak", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
            self.peak = 0.5 * self.peak + 0.5 * x.detach().abs().amax()
        return torch.as_tensor(self.head((x - self.mean) / self.peak))


def _partly_frozen() -> nn.Module:
    model = _conv(nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8, momentum=0.3))
    assert isinstance(model[1], nn.BatchNorm2d)
    model[1].running_var = torch.rand(8) + 0.5
    model[1].eval()
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "2d": (lambda: _conv(nn.BatchNorm2d(8)), (3, 6, 6), ["1.running_mean", "1.running_var"]),
    "1d": (
        lambda: nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16, affine=False), nn.Tanh(), nn.Linear(16, 10)),
        (12,),
        ["1.running_mean", "1.running_var"],
    ),
    "1d over time": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8, momentum=0.5), nn.Flatten(), nn.Linear(32, 10)),
        (3, 6),
        ["1.running_mean", "1.running_var"],
    ),
    "instance": (lambda: _conv(nn.InstanceNorm2d(8)), (3, 6, 6), []),
    "instance with affine": (lambda: _conv(nn.InstanceNorm2d(8, affine=True)), (3, 6, 6), []),
    "instance with statistics": (
        lambda: _conv(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
        (3, 6, 6),
        ["1.running_mean", "1.running_var"],
    ),
    "partly frozen": (_partly_frozen, (3, 6, 6), ["3.running_mean", "3.running_var"]),
    "without momentum": (lambda: _conv(nn.BatchNorm2d(8, momentum=0.0)), (3, 6, 6), []),
    "of one's own": (_Drifting, (12,), ["mean", "peak"]),
}


def _learned(artifact: Artifact, model: nn.Module) -> Vector:
    tensors = model.state_dict()
    return np.concatenate([tensors[entry.name].numpy().reshape(-1) for entry in artifact.layout.entries])


@pytest.mark.parametrize("name", CASES)
def test_state_follows_pytorch_for_twenty_steps(name: str) -> None:
    build, shape, buffers = CASES[name]
    torch.manual_seed(1)
    model, x, y = build(), 2 * torch.randn(COUNT, *shape) + 0.5, labels(COUNT)
    artifact = exported(model, x, y)
    assert [entry.name for entry in artifact.layout.entries if entry.role == "buffer"] == buffers
    checkpoint = artifact.checkpoint()
    assert np.array_equal(checkpoint, _learned(artifact, model))
    smallest = artifact.manifest.batch.minimum
    assert smallest == (2 if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()) else 1)

    result = BundleTrainer(artifact).train(checkpoint, rows(x, y), PLAN, seed=b"s")
    optimizer = torch.optim.SGD(model.parameters(), PLAN.learning_rate)
    steps = 0
    for chosen in batches(PLAN, COUNT, b"s", smallest):
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        steps += 1
    assert result.steps == steps >= 20
    after = checkpoint + result.update
    np.testing.assert_allclose(after, _learned(artifact, model), atol=2e-5)

    model.eval()
    with torch.no_grad():
        served = model(x)
    np.testing.assert_allclose(Predictor(artifact, after).predict(x.numpy()), served.numpy(), atol=2e-4)
    found = evaluate(artifact, after, rows(x, y))
    np.testing.assert_allclose(found.loss, float(F.cross_entropy(served, y)), rtol=1e-4)


def test_all_batch_norms_can_be_frozen() -> None:
    torch.manual_seed(1)
    model, x, y = _conv(nn.BatchNorm2d(8)), torch.randn(8, 3, 6, 6), labels(8)
    assert isinstance(model[1], nn.BatchNorm2d)
    model[1].running_mean, model[1].running_var = torch.randn(8), torch.rand(8) + 0.5
    artifact = exported(model, x, y, batch_norm="frozen")
    assert all(entry.role == "parameter" for entry in artifact.layout.entries)
    assert artifact.manifest.batch.minimum == 1
    model.eval()
    with torch.no_grad():
        expected = float(F.cross_entropy(model(x), y))
    plan = TrainingPlan(epochs=1, batch_size=8, learning_rate=0.1)
    result = BundleTrainer(artifact).train(artifact.checkpoint(), rows(x, y), plan, seed=b"")
    assert result.loss == pytest.approx(expected, rel=1e-5)


def test_a_model_in_evaluation_mode_is_trained_as_a_whole() -> None:
    torch.manual_seed(1)
    model = _conv(nn.BatchNorm2d(8)).eval()
    artifact = exported(model, torch.randn(8, 3, 6, 6), labels(8))
    assert artifact.layout.entries[-1].tensor == "buffer:1.running_var"
    assert not model[1].training


def test_training_normalises_by_the_batch() -> None:
    """Exporters are known to write batch norm as inference only, whose loss is another."""
    torch.manual_seed(1)
    model, x, y = _conv(nn.BatchNorm2d(8)), 5 * torch.randn(8, 3, 6, 6) + 3, labels(8)
    artifact = exported(model, x, y)
    plan = TrainingPlan(epochs=1, batch_size=8, learning_rate=0.1)
    result = BundleTrainer(artifact).train(artifact.checkpoint(), rows(x, y), plan, seed=b"")
    with torch.no_grad():
        served = float(F.cross_entropy(model.eval()(x), y))
        trained = float(F.cross_entropy(model.train()(x), y))
    assert abs(served - trained) > 0.1
    assert result.loss == pytest.approx(trained, rel=1e-4)


def test_norms_are_written_in_primitives() -> None:
    """The norms' own operators, with the outputs that training needs, fail on older runtimes or spoil their inputs."""
    torch.manual_seed(1)
    model = _conv(nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), nn.LayerNorm(6))
    artifact = exported(model, torch.randn(4, 3, 6, 6), labels(4))
    operators = artifact.manifest.format("onnx").operators
    assert [operator for operator in operators if "Normalization" in operator] == ["BatchNormalization"]
    nodes = onnx.load_from_string(artifact.part(artifact.manifest.graph("train").part())).graph.node
    scaling = [node for node in nodes if node.op_type == "BatchNormalization"]
    assert {(len(node.output), *(name.name for name in node.attribute)) for node in scaling} == {(1, "epsilon")}


def test_a_variance_that_noise_made_negative_counts_as_zero() -> None:
    torch.manual_seed(1)
    model, x = _conv(nn.BatchNorm2d(8)), torch.randn(8, 3, 6, 6)
    artifact = exported(model, x, labels(8))
    negative, zero = artifact.checkpoint(), artifact.checkpoint()
    negative[-8:], zero[-8:] = -0.3, 0.0
    found = Predictor(artifact, negative).predict(x.numpy())
    assert np.isfinite(found).all()
    assert np.array_equal(found, Predictor(artifact, zero).predict(x.numpy()))


def test_one_example_is_no_batch() -> None:
    torch.manual_seed(1)
    x, y = torch.randn(8, 3, 6, 6), labels(8)
    artifact = exported(_conv(nn.BatchNorm2d(8)), x, y)
    trainer, checkpoint = BundleTrainer(artifact), artifact.checkpoint()
    with pytest.raises(TrainingError, match=r"batches of 2 or more.*there are 1 examples"):
        trainer.train(checkpoint, rows(x[:1], y[:1]), PLAN, seed=b"")
    with pytest.raises(TrainingError, match="batches of 1 are asked for"):
        trainer.train(checkpoint, rows(x, y), TrainingPlan(1, 1, 0.1), seed=b"")
    with pytest.raises(ExportError, match="batch_max is 1"):
        exported(_conv(nn.BatchNorm2d(8)), x, y, batch_max=1)
    assert Predictor(artifact, checkpoint).predict(x[:1].numpy()).shape == (1, 10)
