"""Models of many kinds: exported, trained on stock ONNX Runtime, and compared with PyTorch itself.

Every export already replays 20 steps against float64 autograd, so that these tests mostly ask that it passes;
then both sides train freely on the same batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.evaluation import evaluate
from edge_sdk.training.plan import TrainingPlan
from tests.integration.exported import exported, flat, labels, rows, small, trained_eagerly

PLAN = TrainingPlan(epochs=2, batch_size=5, learning_rate=0.02)


@dataclass(frozen=True)
class Case:
    """A model, the shape of one input, and what it is trained with."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy
    target: Callable[[int], torch.Tensor] = labels
    optimizer: str = "sgd"


def _after_conv(*layers: nn.Module, features: int, channels: int = 4) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), *layers, nn.Flatten(), nn.Linear(features, 10))


def _between(*layers: nn.Module, width: int = 24) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(12, 24), *layers, nn.Linear(width, 10))


def _real(*shape: int) -> Callable[[int], torch.Tensor]:
    return lambda count: torch.randn(count, *shape)


def _shares(count: int) -> torch.Tensor:
    return torch.rand(count, 10)


class _Wide(nn.Module):
    """Residual connections, concatenation, slices and a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 12), nn.Linear(12, 12)
        self.head = nn.Linear(28, 10)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + F.relu(self.one(x)) * self.scale
        y = y + torch.tanh(self.two(y))
        return torch.as_tensor(self.head(torch.cat([y, x, y[:, 2:6].clamp(-1, 1)], dim=1)))


class _Tied(nn.Module):
    """One weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12, bias=False)
        self.second = nn.Linear(12, 12, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(self.second(torch.tanh(self.first(x)))))


class _Buffered(nn.Module):
    """A buffer that stays as it is."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-1, 1, 12))
        self.head = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(F.softplus((x - self.mean) / (self.mean.abs() + 1))))


class _Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent, self.head = recurrent, nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(self.recurrent(x)[0][:, -1]))


class _Equals(nn.Module):
    """Pools windows in which several numbers are the largest, of which only the first has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.plane, self.head = nn.Parameter(torch.zeros(2, 6, 6)), nn.Linear(18, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(F.max_pool2d(x.round() + self.plane, 2).flatten(1)))


CASES = {
    "mlp": Case(_between(nn.ReLU()), (12,)),
    "mlp in place": Case(_between(nn.ReLU(inplace=True)), (12,)),
    "gelu": Case(_between(nn.GELU()), (12,)),
    "gelu tanh": Case(_between(nn.GELU(approximate="tanh")), (12,)),
    "tanh": Case(_between(nn.Tanh()), (12,)),
    "sigmoid": Case(_between(nn.Sigmoid()), (12,)),
    "silu": Case(_between(nn.SiLU()), (12,)),
    "elu": Case(_between(nn.ELU()), (12,)),
    "leaky relu": Case(_between(nn.LeakyReLU(0.2)), (12,)),
    "hardswish": Case(_between(nn.Hardswish()), (12,)),
    "softmax": Case(_between(nn.Softmax(-1)), (12,)),
    "layer norm": Case(_between(nn.LayerNorm(24), nn.ReLU()), (12,), optimizer="momentum"),
    "layer norm without affine": Case(_between(nn.LayerNorm(24, elementwise_affine=False)), (12,)),
    "layer norm over planes": Case(_after_conv(nn.LayerNorm((8, 6, 6)), nn.ReLU(), features=288), (4, 6, 6)),
    "rms norm": Case(_between(nn.RMSNorm(24)), (12,)),
    "group norm": Case(_after_conv(nn.GroupNorm(4, 8), nn.ReLU(), features=288), (4, 6, 6), optimizer="momentum"),
    "group norm of long rows": Case(
        lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)), (4, 24, 24)
    ),
    "instance norm of long rows": Case(
        lambda: nn.Sequential(
            nn.InstanceNorm2d(4, affine=True), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)
        ),
        (4, 24, 24),
    ),
    "group norm without affine": Case(_after_conv(nn.GroupNorm(2, 8, affine=False), features=288), (4, 6, 6)),
    "max pool": Case(_after_conv(nn.ReLU(), nn.MaxPool2d(2), features=72), (4, 6, 6)),
    "max pool of equals": Case(_Equals, (2, 6, 6)),
    "max pool before relu": Case(_after_conv(nn.MaxPool2d(2), nn.ReLU(), features=72), (4, 6, 6)),
    "max pool with a rest": Case(_after_conv(nn.MaxPool2d(2), features=72), (4, 7, 7)),
    "max pool overlapping": Case(_after_conv(nn.MaxPool2d(3, 2, 1), features=72), (4, 6, 6)),
    "max pool rounded up": Case(_after_conv(nn.MaxPool2d(3, 2, ceil_mode=True), features=72), (4, 6, 6)),
    "max pool dilated": Case(_after_conv(nn.MaxPool2d(2, 2, dilation=2), features=32), (4, 6, 6)),
    "average pool": Case(_after_conv(nn.AvgPool2d(2), features=72), (4, 6, 6)),
    "average pool with a rest": Case(_after_conv(nn.AvgPool2d(2), features=72), (4, 7, 7)),
    "average pool overlapping": Case(_after_conv(nn.AvgPool2d(3, 2, 1), features=72), (4, 6, 6)),
    "adaptive pool to one": Case(_after_conv(nn.AdaptiveAvgPool2d(1), features=8), (4, 6, 6)),
    "adaptive pool": Case(_after_conv(nn.AdaptiveAvgPool2d(3), features=72), (4, 6, 6)),
    "adaptive pool uneven": Case(_after_conv(nn.AdaptiveAvgPool2d((4, 5)), features=160), (4, 6, 6)),
    "conv1d": Case(
        lambda: nn.Sequential(nn.Conv1d(3, 6, 3, 2, 1), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 10)),
        (3, 8),
    ),
    "depthwise separable": Case(
        lambda: nn.Sequential(
            nn.Conv2d(4, 4, 3, 2, 1, groups=4), nn.Conv2d(4, 8, 1), nn.SiLU(), nn.Flatten(), nn.Linear(72, 10)
        ),
        (4, 6, 6),
    ),
    "residual": Case(_Wide, (12,)),
    "tied": Case(_Tied, (12,)),
    "buffered": Case(_Buffered, (12,)),
    "embedding": Case(
        lambda: nn.Sequential(nn.Embedding(20, 6, padding_idx=0), nn.Flatten(), nn.Linear(30, 10)),
        (5,),
    ),
    "lstm": Case(lambda: _Last(nn.LSTM(6, 8, batch_first=True)), (4, 6)),
    "gru": Case(lambda: _Last(nn.GRU(6, 8, batch_first=True)), (4, 6)),
    "attention": Case(
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), nn.Flatten(), nn.Linear(32, 10)
        ),
        (4, 8),
    ),
    "mse": Case(lambda: nn.Linear(12, 3), (12,), F.mse_loss, _real(3)),
    "mse summed": Case(lambda: nn.Linear(12, 3), (12,), lambda o, y: F.mse_loss(o, y, reduction="sum"), _real(3)),
    "smooth l1": Case(lambda: nn.Linear(12, 3), (12,), F.smooth_l1_loss, _real(3)),
    "huber": Case(lambda: nn.Linear(12, 3), (12,), lambda o, y: F.huber_loss(o, y, delta=0.7), _real(3)),
    "l1": Case(lambda: nn.Linear(12, 3), (12,), F.l1_loss, _real(3)),
    "nll": Case(_between(nn.ReLU()), (12,), lambda o, y: F.nll_loss(F.log_softmax(o, 1), y)),
    "cross entropy summed": Case(_between(nn.ReLU()), (12,), lambda o, y: F.cross_entropy(o, y, reduction="sum")),
    "cross entropy smoothed": Case(_between(nn.ReLU()), (12,), lambda o, y: F.cross_entropy(o, y, label_smoothing=0.1)),
    "cross entropy ignoring": Case(_between(nn.ReLU()), (12,), lambda o, y: F.cross_entropy(o, y, ignore_index=3)),
    "cross entropy of shares": Case(_between(nn.ReLU()), (12,), F.cross_entropy, _shares),
    "cross entropy a pixel": Case(
        lambda: nn.Conv2d(4, 5, 1), (4, 3, 3), target=lambda count: torch.arange(count * 9).reshape(count, 3, 3) % 5
    ),
    "bce with logits": Case(_between(nn.ReLU()), (12,), F.binary_cross_entropy_with_logits, _shares),
    "two losses": Case(_between(nn.ReLU()), (12,), lambda o, y: 2 * F.cross_entropy(o, y) + 0.01 * (o * o).mean()),
}


def _examples(case: Case, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(next(case.build().modules()), nn.Sequential) and len(case.shape) == 1 and case.shape == (5,):
        return torch.randint(0, 20, (count, 5)), case.target(count)
    return torch.randn(count, *case.shape), case.target(count)


@pytest.mark.parametrize("name", CASES)
def test_a_model_trains_as_in_pytorch(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(3)
    model = case.build()
    x, y = _examples(case, 12)
    before = copy.deepcopy(model.state_dict())
    artifact = exported(model, x, y, case.loss, case.optimizer)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert (
        artifact.manifest.format("onnx").replay.worst < 0.5
    )  # Far from the tolerance, so that rounding never decides.

    checkpoint = artifact.checkpoint()
    assert np.array_equal(checkpoint, flat(model))
    result = BundleTrainer(artifact).train(checkpoint, rows(x, y), PLAN, seed=b"order")

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        momentum = 0.9 if case.optimizer == "momentum" else 0.0
        return torch.optim.SGD(parameters, PLAN.learning_rate, momentum=momentum)

    after, losses = trained_eagerly(model, case.loss, make, x.numpy(), y.numpy(), PLAN, b"order")
    moved = float(np.abs(after - checkpoint).max())
    assert moved > 0
    np.testing.assert_allclose(checkpoint + result.update, after, atol=2e-6 + 2e-4 * moved)
    assert result.loss == pytest.approx(sum(losses) / 24, rel=1e-4, abs=1e-6)
    assert (result.steps, result.examples) == (6, 12)

    with torch.no_grad():
        expected = float(case.loss(model(x), y))
    measured = evaluate(artifact, after, rows(x, y))
    assert measured.loss == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 50])
def test_any_batch_size_runs(batch: int) -> None:
    artifact = small()
    random = np.random.default_rng(batch)
    x, y = random.standard_normal((batch, 1, 8, 8)).astype(np.float32), random.integers(10, size=batch)
    plan = TrainingPlan(epochs=1, batch_size=batch, learning_rate=0.1)
    result = BundleTrainer(artifact).train(artifact.checkpoint(), rows(x, y), plan, seed=b"")
    assert result.steps == 1
    assert float(np.abs(result.update).max()) > 0


def test_what_the_manifest_says() -> None:
    manifest = small().manifest
    assert (manifest.name, manifest.version) == ("small", "1")
    assert [(entry.name, entry.shape) for entry in manifest.layout.entries] == [
        ("0.weight", (4, 1, 3, 3)),
        ("0.bias", (4,)),
        ("4.weight", (10, 64)),
        ("4.bias", (10,)),
    ]
    assert manifest.inputs[0].shape == (None, 1, 8, 8)
    assert (manifest.classes, manifest.ignored_label) == (10, -100)
    assert (manifest.loss.name, manifest.loss.reduction) == ("cross_entropy", "mean")
    assert manifest.optimizer.kind == "sgd"
    assert "Conv" in manifest.format("onnx").operators
    assert {tool.name for tool in manifest.tools} == {"edge-sdk", "onnx", "onnxruntime", "torch"}
    train = manifest.graph("train")
    assert [tensor.role for tensor in train.inputs] == ["parameter"] * 4 + ["input", "target", "learning_rate"]
    assert [tensor.role for tensor in manifest.graph("infer").inputs] == ["parameter"] * 4 + ["input"]


def test_graphs_hold_nothing_of_the_machine_that_made_them() -> None:
    artifact = small()
    for name in ("train.onnx", "evaluate.onnx", "infer.onnx"):
        content = artifact.part(name)
        assert str(Path.cwd()).encode() not in content
        assert b".py" not in content
        assert len(content) < 5000


def test_the_same_model_gives_the_same_bundle() -> None:
    torch.manual_seed(2)
    model, x = nn.Linear(12, 10), torch.randn(4, 12)
    assert exported(model, x, labels(4)).to_bytes() == exported(model, x, labels(4)).to_bytes()


def test_reductions_are_found_out() -> None:
    x, y = torch.randn(6, 12), torch.randn(6, 3)

    def reduction(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> str:
        return exported(nn.Linear(12, 3), x, y, loss).manifest.loss.reduction

    assert reduction(F.mse_loss) == "mean"
    assert reduction(lambda o, t: F.mse_loss(o, t, reduction="sum")) == "sum"
    assert reduction(lambda o, t: ((o - o.mean(0)) * t).pow(2).mean()) == "batch"


@pytest.mark.parametrize(("optimizer", "joined"), [("sgd", True), ("sgd:momentum=0.9", False), ("adam", False)])
def test_large_layers_take_the_faster_way(optimizer: str, joined: bool) -> None:
    """Products with the weight in front, and plain gradient descent within the product that is the gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 160), nn.ReLU(), nn.Linear(160, 10))
    artifact = exported(model, torch.randn(8, 128), labels(8), optimizer=optimizer)
    nodes = onnx.load_from_string(artifact.part(artifact.manifest.graph("train").part())).graph.node
    products = [node for node in nodes if node.op_type == "Gemm"]
    assert [node.input[0] for node in products if node.input[0].startswith("parameter:")] == ["parameter:0.weight"]
    stepping = [node.output[0] for node in products if any(a.name == "alpha" and a.f == -1 for a in node.attribute)]
    assert sorted(stepping) == (["next:parameter:0.weight", "next:parameter:2.weight"] if joined else [])
