"""Numbers that exporters and runtimes get wrong in silence: tiny constants, large integers, 0-d tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_sdk.inference.predictor import Predictor
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.evaluation import evaluate
from edge_sdk.training.plan import TrainingPlan
from exporters.lowering import RULES, Lowered
from exporters.record import record
from tests.integration.exported import exported, trained_eagerly

PLAN = TrainingPlan(epochs=4, batch_size=4, learning_rate=0.01)


class _NearlyNothing(nn.Module):
    """Adds 1e-8 to what may be zero, and multiplies by what is nearly one, often."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.idle = nn.Linear(6, 3), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sqrt(self.linear(x).square() + 1e-8)
        for _ in range(20):
            y = y * 0.999991
        # No gradient at all, as of a unit that never fires.
        return y + (self.idle * 0.0)


def test_constants_near_zero_and_one_are_kept() -> None:
    """Graph optimizers drop `+ 1e-8` and `* 0.999991`: then Adam divides zero by zero, and decays do not decay."""
    torch.manual_seed(0)
    model, x, y = _NearlyNothing(), torch.randn(8, 6), torch.randn(8, 3)
    artifact = exported(model, x, y, F.mse_loss, "adam:weight_decay=1e-5")

    nothing = Predictor(artifact, np.zeros(24, np.float32)).predict(np.zeros((1, 6), np.float32))
    np.testing.assert_allclose(nothing, np.full((1, 3), 1e-4 * 0.999991**20), rtol=3e-6, atol=0)

    start = artifact.checkpoint()
    update = BundleTrainer(artifact).train(start, {"x": x.numpy(), "y": y.numpy()}, PLAN, seed=b"order").update

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, PLAN.learning_rate, weight_decay=1e-5)

    after, _ = trained_eagerly(model, F.mse_loss, make, x.numpy(), y.numpy(), PLAN, b"order")
    np.testing.assert_allclose(start + update, after, atol=2e-6)


class _Divided(nn.Module):
    """Divides integers that no float holds, and learns from the last digits."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = (
            torch.div(x, 7, rounding_mode="trunc"),
            torch.div(x, -7, rounding_mode="floor"),
            x // 1000003,
            torch.div(x, 1000003, rounding_mode="trunc"),
            torch.remainder(x, 97),
            torch.fmod(x, 97),
        )
        # 97 and not a power of two: every digit decides.
        return torch.as_tensor(self.linear(torch.cat([(part % 97).float() / 97 for part in parts], 1)))


def test_large_integers_are_divided_exactly() -> None:
    """By way of float64, as some exporters divide, anything above 2**53 is wrong."""
    torch.manual_seed(0)
    model, random = _Divided(), np.random.default_rng(1)
    x = torch.from_numpy(random.integers(-(2**62), 2**62, size=(64, 1)))
    artifact = exported(model, x, torch.randn(64, 2), F.mse_loss)
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(Predictor(artifact, artifact.checkpoint()).predict(x.numpy()), expected, atol=1e-5)


class _Scaled(nn.Module):
    """Two parameters without dimensions, and a target for each example that has none either."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 1)
        self.scale, self.shift = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor((self.linear(x) * self.scale.exp() + self.shift).squeeze(1))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_tensors_without_dimensions_keep_none(optimizer: str) -> None:
    """numpy's `ascontiguousarray` gives them one, which a graph then refuses or broadcasts."""
    torch.manual_seed(0)
    model, x, y = _Scaled(), torch.randn(8, 6), torch.randn(8)
    artifact = exported(model, x, y, F.mse_loss, optimizer)
    shapes = {entry.name: entry.shape for entry in artifact.layout.entries}
    assert shapes == {"scale": (), "shift": (), "linear.weight": (1, 6), "linear.bias": (1,)}
    train = artifact.manifest.graph("train")
    assert {tensor.shape for tensor in train.inputs if tensor.role == "learning_rate"} == {()}
    assert {tensor.shape for tensor in train.outputs if tensor.role == "loss"} == {()}

    start = artifact.checkpoint()
    result = BundleTrainer(artifact).train(start, {"x": x.numpy(), "y": y.numpy()}, PLAN, seed=b"order")

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
        return kind(parameters, PLAN.learning_rate)

    after, _ = trained_eagerly(model, F.mse_loss, make, x.numpy(), y.numpy(), PLAN, b"order")
    np.testing.assert_allclose(start + result.update, after, atol=1e-6)
    with torch.no_grad():
        expected = float(F.mse_loss(model(x), y))
    found = evaluate(artifact, (start + result.update).astype(np.float32), {"x": x.numpy(), "y": y.numpy()})
    assert found.loss == pytest.approx(expected, rel=1e-5)


class _Root(nn.Module):
    """Whose gradient is infinite where the activation lets nothing through."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.activation, self.last = nn.Linear(6, 16), activation, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.activation(self.first(x)).sqrt())
        return y


@pytest.mark.parametrize(
    ("activation", "operators"),
    [(nn.ReLU(), {"Greater", "Where"}), (nn.ReLU6(), {"And", "Less", "Where"}), (nn.Hardtanh(0.25, 2), {"And"})],
    ids=["relu", "relu6", "hardtanh"],
)
def test_infinite_gradients_are_masked(activation: nn.Module, operators: set[str]) -> None:
    """Infinity times a mask's zero is not zero, and the export would fail."""
    torch.manual_seed(0)
    artifact = exported(_Root(activation), torch.randn(8, 6), torch.arange(8) % 3)
    assert operators <= set(artifact.manifest.format("onnx").operators)


@pytest.mark.parametrize("bounds", [(0.0, math.inf), (0.0, 6.0), (-0.1, 0.3), (1e-20, 2e-3), (-3e6, 4.0)])
def test_masks_are_exact_at_their_bounds(bounds: tuple[float, float]) -> None:
    """A gradient passes between the bounds and not at them, down to the last digit of a float that is no denormal."""
    low, high = (np.float32(bound) for bound in bounds)
    near = [np.nextafter(bound, np.float32(way)) for bound in (low, high) for way in (-math.inf, math.inf) if bound]
    tiny = np.finfo(np.float32).tiny
    values = np.array([low, high, *near, 0, tiny, -tiny, 1e-30, -1e-30, 1, -1], np.float32)
    values = np.repeat(values[np.isfinite(values)], 2)[:, None]

    def gradient(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = inputs["x"].detach().requires_grad_()
        y = F.relu(x) if math.isinf(bounds[1]) else F.hardtanh(x, *bounds)
        return {"dx": torch.autograd.grad((y @ inputs["w"]).sum(), x)[0]}

    def tensors(batch: int) -> dict[str, Tensor]:
        return {"x": torch.from_numpy(np.resize(values, (batch, 1))), "w": torch.full((1, 1), 3.0)}

    graph = record(gradient, (tensors(4), tensors(7)), (4, 7), supported=RULES.keys(), model=nn.Identity())
    content = Lowered(graph, "x").model(("dx",), ("x", "w")).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    inputs = tensors(len(values))
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    np.testing.assert_array_equal(found, gradient(inputs)["dx"].numpy())
