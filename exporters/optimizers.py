"""Local optimizers as pure functions of tensors, each the rule that torch.optim follows.

The learning rate is an input of every step; all other numbers are built into the graph. Slots and counters,
the optimizer's state, start at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple, TypeAlias

import torch

from edge_sdk.errors import ExportError
from edge_sdk.training.manifest import Hyperparameter

Tensors: TypeAlias = Sequence[torch.Tensor]


class Stepped(NamedTuple):
    """What a step gives: new parameters, slots (by slot, then by parameter) and counters."""

    parameters: list[torch.Tensor]
    slots: list[list[torch.Tensor]]
    counters: list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Sgd:
    """Plain gradient descent: p - lr * g."""

    weight_decay: float = 0.0

    kind: ClassVar[str] = "sgd"
    slots: ClassVar[tuple[str, ...]] = ()
    """State kept for every parameter, each of that parameter's shape."""
    counters: ClassVar[tuple[str, ...]] = ()
    """State that is one number."""
    default_learning_rate: ClassVar[float] = 0.05

    def __post_init__(self) -> None:
        _check(self.weight_decay >= 0, "weight_decay must not be negative")

    def step(
        self,
        parameters: Tensors,
        gradients: Tensors,
        slots: Sequence[Tensors],
        counters: Tensors,
        learning_rate: torch.Tensor,
    ) -> Stepped:
        """Take one step; changes nothing in place."""
        gradients = _decayed(parameters, gradients, self.weight_decay)
        return Stepped([p - learning_rate * g for p, g in zip(parameters, gradients, strict=True)], [], [])


@dataclass(frozen=True, slots=True)
class Momentum:
    """Gradient descent with (Nesterov) momentum: v = momentum * v + g, then p - lr * v."""

    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False

    kind: ClassVar[str] = "momentum"
    slots: ClassVar[tuple[str, ...]] = ("velocity",)
    counters: ClassVar[tuple[str, ...]] = ()
    default_learning_rate: ClassVar[float] = 0.02

    def __post_init__(self) -> None:
        _check(0 <= self.momentum < 1, "momentum must be at least 0 and below 1")
        _check(self.weight_decay >= 0, "weight_decay must not be negative")

    def step(
        self,
        parameters: Tensors,
        gradients: Tensors,
        slots: Sequence[Tensors],
        counters: Tensors,
        learning_rate: torch.Tensor,
    ) -> Stepped:
        """Take one step; changes nothing in place."""
        gradients = _decayed(parameters, gradients, self.weight_decay)
        velocity = [self.momentum * v + g for v, g in zip(slots[0], gradients, strict=True)]
        moves = velocity
        if self.nesterov:
            moves = [g + self.momentum * v for g, v in zip(gradients, velocity, strict=True)]
        stepped = [p - learning_rate * move for p, move in zip(parameters, moves, strict=True)]
        return Stepped(stepped, [velocity], [])


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam (Kingma and Ba 2015), with weight decay added to the gradient, or decoupled (AdamW).

    The bias corrections 1 - beta**t are counters that follow c <- beta * c + (1 - beta) from zero: computing
    them from t would lose most digits of the second in float32.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    kind: ClassVar[str] = "adam"
    slots: ClassVar[tuple[str, ...]] = ("mean", "variance")
    counters: ClassVar[tuple[str, ...]] = ("mean_correction", "variance_correction")
    default_learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        _check(0 <= self.beta1 < 1 and 0 <= self.beta2 < 1, "betas must be at least 0 and below 1")
        _check(self.epsilon > 0, "epsilon must be positive")
        _check(self.weight_decay >= 0, "weight_decay must not be negative")

    def step(
        self,
        parameters: Tensors,
        gradients: Tensors,
        slots: Sequence[Tensors],
        counters: Tensors,
        learning_rate: torch.Tensor,
    ) -> Stepped:
        """Take one step; changes nothing in place."""
        if self.decoupled and self.weight_decay:
            shrink = 1 - learning_rate * self.weight_decay
            parameters = [p * shrink for p in parameters]
        else:
            gradients = _decayed(parameters, gradients, self.weight_decay)
        rest1, rest2 = 1 - self.beta1, 1 - self.beta2
        means = [self.beta1 * m + rest1 * g for m, g in zip(slots[0], gradients, strict=True)]
        variances = [self.beta2 * v + rest2 * (g * g) for v, g in zip(slots[1], gradients, strict=True)]
        correction1, correction2 = self.beta1 * counters[0] + rest1, self.beta2 * counters[1] + rest2
        rate, root = learning_rate / correction1, torch.sqrt(correction2)
        stepped = [
            p - rate * m / (torch.sqrt(v) / root + self.epsilon)
            for p, m, v in zip(parameters, means, variances, strict=True)
        ]
        return Stepped(stepped, [means, variances], [correction1, correction2])


def _decayed(parameters: Tensors, gradients: Tensors, weight_decay: float) -> Tensors:
    if not weight_decay:
        return gradients
    return [g + weight_decay * p for p, g in zip(parameters, gradients, strict=True)]


def _check(holds: bool, why: str) -> None:
    if not holds:
        raise ExportError(f"the optimizer's settings are wrong: {why}", hint="correct the optimizer's settings")


Optimizer: TypeAlias = Sgd | Momentum | Adam

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Sgd(),
    "momentum": Momentum(),
    "adam": Adam(),
    "adamw": Adam(weight_decay=0.01, decoupled=True),
}


def find_optimizer(optimizer: str | Optimizer) -> Optimizer:
    """The optimizer of that name, or the one given.

    Raises:
        ExportError: no optimizer has that name.
    """
    if not isinstance(optimizer, str):
        return optimizer
    found = OPTIMIZERS.get(optimizer)
    if found is None:
        raise ExportError(f"there is no optimizer {optimizer!r}", hint=f"use one of {', '.join(sorted(OPTIMIZERS))}")
    return found


def hyperparameters(optimizer: Optimizer) -> tuple[Hyperparameter, ...]:
    """The numbers that are built into the graph, for the manifest; a flag counts as 0 or 1."""
    return tuple(Hyperparameter(field.name, float(getattr(optimizer, field.name))) for field in fields(optimizer))
