"""The optimizers' rules are torch.optim's, and so is what the exported graphs do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edge_sdk.errors import ExportError
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.plan import TrainingPlan
from exporters.optimizers import OPTIMIZERS, Adagrad, Adam, Optimizer, RmsProp, Sgd, find_optimizer
from tests.integration.exported import exported, labels, rows, trained_eagerly

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
RATE = 0.01

CASES: dict[str, tuple[Optimizer, Make]] = {
    "sgd": (Sgd(), lambda p: torch.optim.SGD(p, RATE)),
    "sgd decayed": (Sgd(weight_decay=0.1), lambda p: torch.optim.SGD(p, RATE, weight_decay=0.1)),
    "momentum": (Sgd(momentum=0.9), lambda p: torch.optim.SGD(p, RATE, momentum=0.9)),
    "dampened": (
        Sgd(0.8, dampening=0.3, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, RATE, momentum=0.8, dampening=0.3, weight_decay=0.1),
    ),
    "nesterov": (
        Sgd(0.8, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, RATE, momentum=0.8, weight_decay=0.1, nesterov=True),
    ),
    "adam": (Adam(), lambda p: torch.optim.Adam(p, RATE)),
    "adam decayed": (
        Adam(0.8, 0.99, 1e-6, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, RATE, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
    ),
    "adam amsgrad": (
        Adam(0.8, 0.9, amsgrad=True),
        lambda p: torch.optim.Adam(p, RATE, betas=(0.8, 0.9), amsgrad=True),
    ),
    "adamw": (OPTIMIZERS["adamw"], lambda p: torch.optim.AdamW(p, RATE, weight_decay=0.01)),
    "adagrad": (Adagrad(), lambda p: torch.optim.Adagrad(p, RATE)),
    "adagrad with all settings": (
        Adagrad(0.1, initial_sum=0.2, epsilon=1e-6, weight_decay=0.1),
        lambda p: torch.optim.Adagrad(p, RATE, 0.1, 0.1, initial_accumulator_value=0.2, eps=1e-6),
    ),
    "rmsprop": (RmsProp(), lambda p: torch.optim.RMSprop(p, RATE)),
    "rmsprop with momentum": (
        RmsProp(0.9, momentum=0.8, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, RATE, 0.9, momentum=0.8, weight_decay=0.1),
    ),
    "rmsprop centered": (
        RmsProp(0.9, momentum=0.5, centered=True, epsilon=1e-6),
        lambda p: torch.optim.RMSprop(p, RATE, 0.9, eps=1e-6, momentum=0.5, centered=True),
    ),
}


def stepped(
    optimizer: Optimizer, start: list[torch.Tensor], gradients: Iterable[list[torch.Tensor]]
) -> Iterator[list[torch.Tensor]]:
    """The parameters after each step."""
    parameters = start
    slots = [[torch.zeros_like(tensor) for tensor in start] for _ in optimizer.slots]
    counters = [torch.zeros((), dtype=start[0].dtype) for _ in optimizer.counters]
    rate = torch.tensor(RATE, dtype=start[0].dtype)
    for gradient in gradients:
        parameters, slots, counters = optimizer.step(parameters, gradient, slots, counters, rate)
        yield parameters


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_torch(name: str, clipped: bool) -> None:
    """In float64, over 30 steps, gradients of zero and of very different size among them."""
    optimizer, make = CASES[name]
    optimizer = replace(optimizer, max_gradient_norm=0.5 if clipped else None)
    torch.manual_seed(0)
    start = [torch.randn(4, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    leaves = [nn.Parameter(tensor.clone()) for tensor in start]
    other = make(leaves)
    drawn = [[torch.randn_like(tensor) * 10.0 ** (step % 7 - 4) for tensor in start] for step in range(30)]
    for _, second in drawn:
        second[0] = 0.0
    for gradients, parameters in zip(drawn, stepped(optimizer, start, drawn), strict=True):
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient.clone()
        if clipped:
            nn.utils.clip_grad_norm_(leaves, 0.5)
        other.step()
        for leaf, parameter in zip(leaves, parameters, strict=True):
            torch.testing.assert_close(parameter, leaf.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradients_that_stay_the_same_stay_finite(name: str) -> None:
    """Zero, one or tiny in every step: what a running variance rounds to is divided by (in float32, as on devices)."""
    optimizer, _ = CASES[name]
    same = [torch.tensor([0.0, 1.0, 0.1, 1e-30, 1e-12])]
    for tried in (optimizer, replace(optimizer, max_gradient_norm=1.0)):
        *_, last = stepped(tried, [torch.ones(5)], [same] * 200)
        assert bool(torch.isfinite(last[0]).all())
    *_, last = stepped(replace(optimizer, weight_decay=0.0), [torch.ones(5)], [[torch.zeros(5)]] * 3)
    assert torch.equal(last[0], torch.ones(5))


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_exported_steps_follow_torch_for_twenty(name: str, clipped: bool) -> None:
    optimizer, make = CASES[name]
    most = 0.2 if clipped else None
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10))
    x, y = torch.randn(20, 12), labels(20)
    artifact = exported(model, x, y, optimizer=replace(optimizer, max_gradient_norm=most))
    plan = TrainingPlan(epochs=4, batch_size=4, learning_rate=RATE)
    result = BundleTrainer(artifact).train(artifact.checkpoint(), rows(x, y), plan, seed=b"s")
    after, _ = trained_eagerly(model, F.cross_entropy, make, x.numpy(), y.numpy(), plan, b"s", max_gradient_norm=most)
    moved = float(np.abs(after - artifact.checkpoint()).max())
    np.testing.assert_allclose(artifact.checkpoint() + result.update, after, atol=1e-6 + 1e-4 * moved)


def test_a_parameter_that_is_one_number_is_clipped_with_the_others() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(12, 10), nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.linear(x) * self.scale)

    torch.manual_seed(4)
    exported(Scaled(), torch.randn(8, 12), labels(8), optimizer="adam:max_gradient_norm=0.1")


def test_the_manifest_names_slots_and_constants() -> None:
    torch.manual_seed(4)
    artifact = exported(nn.Linear(12, 10), torch.randn(4, 12), labels(4), optimizer=Adam(beta1=0.8), learning_rate=0.5)
    optimizer = artifact.manifest.optimizer
    assert optimizer.kind == "adam"
    assert optimizer.default_learning_rate == 0.5
    assert {item.name: item.value for item in optimizer.hyperparameters} == {
        "weight_decay": 0.0,
        "beta1": 0.8,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "decoupled": 0.0,
        "amsgrad": 0.0,
    }
    assert optimizer.slots == (
        "slot:mean:weight",
        "slot:mean:bias",
        "slot:variance:weight",
        "slot:variance:bias",
        "slot:mean_correction",
        "slot:variance_correction",
    )


@pytest.mark.parametrize(
    ("specification", "optimizer"),
    [
        ("momentum", Sgd(momentum=0.9)),
        ("nesterov:weight_decay=1e-4", Sgd(0.9, nesterov=True, weight_decay=1e-4)),
        ("adam:beta2=0.99,amsgrad=true,max_gradient_norm=1", Adam(beta2=0.99, amsgrad=True, max_gradient_norm=1.0)),
        ("adamw:weight_decay=0.1", Adam(weight_decay=0.1, decoupled=True)),
        ("rmsprop:centered=true", RmsProp(centered=True)),
    ],
)
def test_an_optimizer_is_named_with_its_settings(specification: str, optimizer: Optimizer) -> None:
    assert find_optimizer(specification) == optimizer
    assert find_optimizer(optimizer) is optimizer


@pytest.mark.parametrize(
    "specification", ["adam:beta3=0.9", "adam:beta2", "adam:beta2=high", "adam:amsgrad=1", "adam:,", "sgd:slots=1"]
)
def test_a_setting_that_an_optimizer_cannot_have_is_refused(specification: str) -> None:
    with pytest.raises(ExportError, match="cannot have") as caught:
        find_optimizer(specification)
    assert "weight_decay=0.0" in str(caught.value.hint)
