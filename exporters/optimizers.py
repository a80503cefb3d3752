"""Local optimizers as pure functions of tensors, each the rule that torch.optim follows.

The learning rate is an input of every step; all other numbers are built into the graph. Slots and counters,
the optimizer's state, start at zero.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple, TypeAlias

import torch

from edge_sdk.errors import ExportError
from edge_sdk.training.manifest import Hyperparameter
from exporters.settings import read_specification

Tensors: TypeAlias = Sequence[torch.Tensor]


class Stepped(NamedTuple):
    """What a step gives: new parameters, slots (by slot, then by parameter) and counters."""

    parameters: list[torch.Tensor]
    slots: list[list[torch.Tensor]]
    counters: list[torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer(ABC):
    """What all optimizers share.

    Attributes:
        weight_decay: this multiple of the parameters is added to their gradients.
        max_gradient_norm: the norm of all gradients together is clipped to this, before anything else, as
            torch.nn.utils.clip_grad_norm_ does; None for no clipping.

    Raises:
        ExportError: a setting is out of its range.
    """

    weight_decay: float = 0.0
    max_gradient_norm: float | None = None

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        settings = (self.weight_decay, 1.0 if self.max_gradient_norm is None else self.max_gradient_norm)
        problem = self._problem()
        if not all(math.isfinite(number) for number in settings) or self.weight_decay < 0:
            problem = "weight_decay must not be negative"
        elif settings[1] <= 0:
            problem = "max_gradient_norm must be positive, or None"
        if problem:
            raise ExportError(f"the optimizer's settings are wrong: {problem}", hint=f"correct them: {self}")

    @property
    def slots(self) -> tuple[str, ...]:
        """State kept for every parameter, each of that parameter's shape."""
        return ()

    @property
    def counters(self) -> tuple[str, ...]:
        """State that is one number."""
        return ()

    @property
    @abstractmethod
    def default_learning_rate(self) -> float:
        """What plans start from where nobody says otherwise."""

    def step(
        self,
        parameters: Tensors,
        gradients: Tensors,
        slots: Sequence[Tensors],
        counters: Tensors,
        learning_rate: torch.Tensor,
    ) -> Stepped:
        """Take one step; changes nothing in place."""
        if self.max_gradient_norm is not None:
            gradients = _clipped(gradients, self.max_gradient_norm)
        parameters, gradients = self._decayed(parameters, gradients, learning_rate)
        return self._moved(parameters, gradients, slots, counters, learning_rate)

    def _decayed(self, parameters: Tensors, gradients: Tensors, learning_rate: torch.Tensor) -> tuple[Tensors, Tensors]:
        if self.weight_decay:
            gradients = [g + self.weight_decay * p for p, g in zip(parameters, gradients, strict=True)]
        return parameters, gradients

    @abstractmethod
    def _moved(
        self,
        parameters: Tensors,
        gradients: Tensors,
        slots: Sequence[Tensors],
        counters: Tensors,
        learning_rate: torch.Tensor,
    ) -> Stepped:
        """The rule itself, after clipping and weight decay."""

    @abstractmethod
    def _problem(self) -> str:
        """What is wrong with the settings; empty if nothing is."""


@dataclass(frozen=True, slots=True)
class Sgd(Optimizer):
    """Gradient descent: p - lr * g; with (Nesterov) momentum, v = momentum * v + (1 - dampening) * g, then p - lr * v.

    As in torch, the first step is not damped: v = g.
    """

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    kind: ClassVar[str] = "sgd"

    @property
    def slots(self) -> tuple[str, ...]:
        """The velocity, with momentum."""
        return ("velocity",) if self.momentum else ()

    @property
    def counters(self) -> tuple[str, ...]:
        """Whether there was a step already, with dampening."""
        return ("started",) if self.dampening else ()

    @property
    def default_learning_rate(self) -> float:
        """Momentum multiplies steps."""
        return 0.02 if self.momentum else 0.05

    def _problem(self) -> str:
        if not 0 <= self.momentum < 1:
            return "momentum must be at least 0 and below 1"
        if not 0 <= self.dampening <= 1:
            return "dampening must lie in 0..1"
        if self.nesterov and (self.dampening or not self.momentum):
            return "nesterov needs momentum, and no dampening"
        return "dampening needs momentum" if self.dampening and not self.momentum else ""

    def _moved(
        self,
        parameters: Tensors,
        gradients: Tensors,
        slots: Sequence[Tensors],
        counters: Tensors,
        learning_rate: torch.Tensor,
    ) -> Stepped:
        if not self.momentum:
            return Stepped([p - learning_rate * g for p, g in zip(parameters, gradients, strict=True)], [], [])
        pushes, started = gradients, []
        if self.dampening:
            share = 1 - self.dampening * counters[0]
            pushes, started = [share * g for g in gradients], [torch.ones_like(counters[0])]
        velocity = [self.momentum * v + g for v, g in zip(slots[0], pushes, strict=True)]
        moves = velocity
        if self.nesterov:
            moves = [g + self.momentum * v for g, v in zip(gradients, velocity, strict=True)]
        return Stepped([p - learning_rate * m for p, m in zip(parameters, moves, strict=True)], [velocity], started)


@dataclass(frozen=True, slots=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), with weight decay added to the gradient, or decoupled (AdamW).

    The bias corrections 1 - beta**t are counters that follow c <- beta * c + (1 - beta) from zero: computing
    them from t would lose most digits of the second in float32.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    decoupled: bool = False
    amsgrad: bool = False

    kind: ClassVar[str] = "adam"

    @property
    def slots(self) -> tuple[str, ...]:
        """Running means of the gradient and of its square, and with amsgrad the largest of the latter."""
        return ("mean", "variance", "largest_variance") if self.amsgrad else ("mean", "variance")

    @property
    def counters(self) -> tuple[str, ...]:
        """What the means' start at zero is corrected by."""
        return ("mean_correction", "variance_correction")

    @property
    def default_learning_rate(self) -> float:
        """The paper's."""
        return 1e-3

    def _problem(self) -> str:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            return "betas must be at least 0 and below 1"
        return _no_epsilon(self.epsilon)

    def _decayed(self, parameters: Tensors, gradients: Tensors, learning_rate: torch.Tensor) -> tuple[Tensors, Tensors]:
        if not (self.decoupled and self.weight_decay):
            # Not super(): a class with slots is made anew by its decorator, which super() does not know of.
            return Optimizer._decayed(self, parameters, gradients, learning_rate)
        shrink = 1 - learning_rate * self.weight_decay
        return [p * shrink for p in parameters], gradients

    def _moved(
        self,
        parameters: Tensors,
        gradients: Tensors,
        slots: Sequence[Tensors],
        counters: Tensors,
        learning_rate: torch.Tensor,
    ) -> Stepped:
        rest1, rest2 = 1 - self.beta1, 1 - self.beta2
        means = [self.beta1 * m + rest1 * g for m, g in zip(slots[0], gradients, strict=True)]
        variances = [self.beta2 * v + rest2 * (g * g) for v, g in zip(slots[1], gradients, strict=True)]
        state = [means, variances]
        if self.amsgrad:
            state.append([torch.maximum(most, v) for most, v in zip(slots[2], variances, strict=True)])
        correction1, correction2 = self.beta1 * counters[0] + rest1, self.beta2 * counters[1] + rest2
        rate, root = learning_rate / correction1, torch.sqrt(correction2)
        stepped = [
            p - rate * m / (torch.sqrt(v) / root + self.epsilon)
            for p, m, v in zip(parameters, means, state[-1], strict=True)
        ]
        return Stepped(stepped, state, [correction1, correction2])


@dataclass(frozen=True, slots=True)
class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011): s = s + g * g, then p - lr * g / (sqrt(s) + epsilon).

    `learning_rate_decay` divides the rate of step t = 0, 1, .. by 1 + t * decay. What the sum begins with,
    `initial_sum`, is built into the graph: the slot itself starts at zero.
    """

    learning_rate_decay: float = 0.0
    initial_sum: float = 0.0
    epsilon: float = 1e-10

    kind: ClassVar[str] = "adagrad"

    @property
    def slots(self) -> tuple[str, ...]:
        """The sum of the squares, without what it begins with."""
        return ("sum",)

    @property
    def counters(self) -> tuple[str, ...]:
        """Steps taken, where the rate decays."""
        return ("steps",) if self.learning_rate_decay else ()

    @property
    def default_learning_rate(self) -> float:
        """The first step moves every parameter by the rate."""
        return 1e-2

    def _problem(self) -> str:
        if not (self.learning_rate_decay >= 0 and math.isfinite(self.learning_rate_decay)):
            return "learning_rate_decay must not be negative"
        if not (self.initial_sum >= 0 and math.isfinite(self.initial_sum)):
            return "initial_sum must not be negative"
        return _no_epsilon(self.epsilon)

    def _moved(
        self,
        parameters: Tensors,
        gradients: Tensors,
        slots: Sequence[Tensors],
        counters: Tensors,
        learning_rate: torch.Tensor,
    ) -> Stepped:
        steps: list[torch.Tensor] = []
        if self.learning_rate_decay:
            learning_rate = learning_rate / (1 + self.learning_rate_decay * counters[0])
            steps = [counters[0] + 1]
        sums = [s + g * g for s, g in zip(slots[0], gradients, strict=True)]
        wholes = [s + self.initial_sum for s in sums] if self.initial_sum else sums
        stepped = [
            p - learning_rate * g / (torch.sqrt(s) + self.epsilon)
            for p, g, s in zip(parameters, gradients, wholes, strict=True)
        ]
        return Stepped(stepped, [sums], steps)


@dataclass(frozen=True, slots=True)
class RmsProp(Optimizer):
    """RMSprop (Hinton 2012): v = alpha * v + (1 - alpha) * g * g, then p - lr * g / (sqrt(v) + epsilon).

    `centered` divides by the deviation from the running mean (Graves 2013). That variance is followed as such,
    v = alpha * (v + (1 - alpha) * (g - m)**2) with the mean m before the step: the difference of mean square
    and squared mean, which is the same, may round to below zero.
    """

    alpha: float = 0.99
    momentum: float = 0.0
    centered: bool = False
    epsilon: float = 1e-8

    kind: ClassVar[str] = "rmsprop"

    @property
    def slots(self) -> tuple[str, ...]:
        """The variance, around zero unless centered; the mean it is around; the velocity, with momentum."""
        return "variance", *(("mean",) if self.centered else ()), *(("velocity",) if self.momentum else ())

    @property
    def default_learning_rate(self) -> float:
        """A tenth of what torch has: the first step moves every parameter by ten times the rate."""
        return 1e-3

    def _problem(self) -> str:
        if not (0 <= self.alpha < 1 and 0 <= self.momentum < 1):
            return "alpha and momentum must be at least 0 and below 1"
        return _no_epsilon(self.epsilon)

    def _moved(
        self,
        parameters: Tensors,
        gradients: Tensors,
        slots: Sequence[Tensors],
        counters: Tensors,
        learning_rate: torch.Tensor,
    ) -> Stepped:
        alpha, rest = self.alpha, 1 - self.alpha
        if self.centered:
            apart = [g - m for g, m in zip(gradients, slots[1], strict=True)]
            variances = [alpha * (v + rest * (d * d)) for v, d in zip(slots[0], apart, strict=True)]
            state = [variances, [m + rest * d for m, d in zip(slots[1], apart, strict=True)]]
        else:
            variances = [alpha * v + rest * (g * g) for v, g in zip(slots[0], gradients, strict=True)]
            state = [variances]
        moves = [g / (torch.sqrt(v) + self.epsilon) for g, v in zip(gradients, variances, strict=True)]
        if self.momentum:
            moves = [self.momentum * v + move for v, move in zip(slots[-1], moves, strict=True)]
            state.append(moves)
        return Stepped([p - learning_rate * move for p, move in zip(parameters, moves, strict=True)], state, [])


def _clipped(gradients: Tensors, most: float) -> Tensors:
    """Scale gradients so that their norm together is at most `most`."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    scale = torch.clamp(most / (norm + 1e-6), max=1.0)
    return [g * scale for g in gradients]


def _no_epsilon(epsilon: float) -> str:
    return "" if epsilon > 0 and math.isfinite(epsilon) else "epsilon must be positive"


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Sgd(),
    "momentum": Sgd(momentum=0.9),
    "nesterov": Sgd(momentum=0.9, nesterov=True),
    "adam": Adam(),
    "adamw": Adam(weight_decay=0.01, decoupled=True),
    "adagrad": Adagrad(),
    "rmsprop": RmsProp(),
}


def find_optimizer(optimizer: str | Optimizer) -> Optimizer:
    """The optimizer of a specification such as "adam" or "adam:beta2=0.99,amsgrad=true", or the one given.

    Raises:
        ExportError: an unknown name, an unknown setting, or a value that it cannot have.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    return read_specification(optimizer, OPTIMIZERS, "optimizer")


def hyperparameters(optimizer: Optimizer) -> tuple[Hyperparameter, ...]:
    """The numbers that are built into the graph, for the manifest; a flag counts as 0 or 1, None is left out."""
    values = {field.name: getattr(optimizer, field.name) for field in fields(optimizer)}
    return tuple(Hyperparameter(name, float(value)) for name, value in values.items() if value is not None)
