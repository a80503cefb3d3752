"""The optimizers' rules are torch.optim's, and so is what the exported graphs do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edge_sdk.training.onnx_trainer import OnnxTrainer
from edge_sdk.training.plan import TrainingPlan
from exporters.optimizers import OPTIMIZERS, Adam, Momentum, Optimizer, Sgd, find_optimizer
from tests.integration.exported import exported, labels, trained_eagerly

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
RATE = 0.01

CASES: dict[str, tuple[Optimizer, Make]] = {
    "sgd": (Sgd(), lambda p: torch.optim.SGD(p, RATE)),
    "sgd decayed": (Sgd(weight_decay=0.1), lambda p: torch.optim.SGD(p, RATE, weight_decay=0.1)),
    "momentum": (Momentum(), lambda p: torch.optim.SGD(p, RATE, momentum=0.9)),
    "nesterov": (
        Momentum(0.8, weight_decay=0.1, nesterov=True),
        lambda p: torch.optim.SGD(p, RATE, momentum=0.8, weight_decay=0.1, nesterov=True),
    ),
    "adam": (Adam(), lambda p: torch.optim.Adam(p, RATE)),
    "adam decayed": (
        Adam(0.8, 0.99, 1e-6, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, RATE, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
    ),
    "adamw": (OPTIMIZERS["adamw"], lambda p: torch.optim.AdamW(p, RATE, weight_decay=0.01)),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_torch(name: str) -> None:
    """In float64, over 30 steps, gradients of zero and of very different size among them."""
    optimizer, make = CASES[name]
    torch.manual_seed(0)
    start = [torch.randn(4, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    leaves = [nn.Parameter(tensor.clone()) for tensor in start]
    other = make(leaves)
    parameters = [tensor.clone() for tensor in start]
    slots = [[torch.zeros_like(tensor) for tensor in start] for _ in optimizer.slots]
    counters = [torch.zeros((), dtype=torch.float64) for _ in optimizer.counters]
    for step in range(30):
        gradients = [torch.randn_like(tensor) * 10.0 ** (step % 7 - 4) for tensor in start]
        gradients[1][0] = 0.0
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient.clone()
        other.step()
        stepped = optimizer.step(parameters, gradients, slots, counters, torch.tensor(RATE, dtype=torch.float64))
        parameters, slots, counters = stepped.parameters, stepped.slots, stepped.counters
        for leaf, parameter in zip(leaves, parameters, strict=True):
            torch.testing.assert_close(parameter, leaf.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_exported_steps_follow_torch_for_an_epoch(name: str) -> None:
    optimizer, make = CASES[name]
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10))
    x, y = torch.randn(20, 12), labels(20)
    artifact = exported(model, x, y, optimizer=optimizer)
    plan = TrainingPlan(epochs=3, batch_size=4, learning_rate=RATE)
    result = OnnxTrainer(artifact).train(artifact.checkpoint(), (x.numpy(), y.numpy()), plan, seed=b"s")
    after, _ = trained_eagerly(model, F.cross_entropy, make, x.numpy(), y.numpy(), plan, b"s")
    moved = float(np.abs(after - artifact.checkpoint()).max())
    np.testing.assert_allclose(artifact.checkpoint() + result.update, after, atol=1e-6 + 1e-4 * moved)


def test_the_manifest_names_slots_and_constants() -> None:
    torch.manual_seed(4)
    artifact = exported(nn.Linear(12, 10), torch.randn(4, 12), labels(4), optimizer=Adam(beta1=0.8), learning_rate=0.5)
    optimizer = artifact.manifest.optimizer
    assert optimizer.kind == "adam"
    assert optimizer.default_learning_rate == 0.5
    assert {item.name: item.value for item in optimizer.hyperparameters} == {
        "beta1": 0.8,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0.0,
        "decoupled": 0.0,
    }
    assert optimizer.slots == (
        "slot:mean:weight",
        "slot:mean:bias",
        "slot:variance:weight",
        "slot:variance:bias",
        "slot:mean_correction",
        "slot:variance_correction",
    )


def test_an_optimizer_may_be_given_or_named() -> None:
    assert find_optimizer("momentum") == Momentum()
    assert find_optimizer(Sgd(0.5)) == Sgd(0.5)
