"""What the exporter covers, as small models: the tables of `covered_*` are trained in a test and listed in the docs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.integration.exported import Loss

Maker = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Covered:
    """A model, how its examples are made, and its loss; without targets, it learns random numbers."""

    build: Callable[[], nn.Module]
    inputs: Maker
    targets: Maker | None = None
    loss: Loss = F.mse_loss


class Applied(nn.Module):
    """A linear layer, bounded so that nothing grows, in the shape that a function or layer is then applied to."""

    def __init__(self, shape: tuple[int, ...], layer: nn.Module | None, apply: Callable[..., Any] | None) -> None:
        super().__init__()
        self.linear, self.layer = nn.Linear(6, math.prod(shape)), layer
        self._shape, self._use = shape, apply

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (1.5 * torch.tanh(self.linear(x))).view(-1, *self._shape)
        if self._use is None:
            return torch.as_tensor(self.layer(y) if self.layer is not None else y)
        return torch.as_tensor(self._use(y) if self.layer is None else self._use(self.layer, y))


class Using(nn.Module):
    """A layer, used on the model's input in some way."""

    def __init__(self, layer: nn.Module, use: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.layer, self._use = layer, use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self._use(self.layer, x))


def real(*shape: int) -> Maker:
    """Normal numbers."""
    return lambda count: torch.randn(count, *shape)


def function(shape: tuple[int, ...], apply: Callable[[torch.Tensor], Any]) -> Covered:
    """A function of a batch of tensors of that shape."""
    return Covered(lambda: Applied(shape, None, apply), real(6))


def layer(
    shape: tuple[int, ...], make: Callable[[], nn.Module], use: Callable[[Any, torch.Tensor], Any] | None = None
) -> Covered:
    """A layer that takes a batch of tensors of that shape, by itself or as it is used."""
    return Covered(lambda: Applied(shape, make(), use), real(6))


def loss(apply: Loss, targets: Maker, shape: tuple[int, ...] = (5,)) -> Covered:
    """A loss of outputs of that shape."""
    return Covered(lambda: Applied(shape, None, None), real(6), targets, apply)


def examples(case: Covered, count: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A case's model, so many inputs, and their targets; the same every time."""
    torch.manual_seed(4)
    model, x = case.build(), case.inputs(count)
    if case.targets is not None:
        return model, x, case.targets(count)
    with torch.no_grad():
        return model, x, torch.randn(model(x).shape)


def listed(tables: dict[str, dict[str, Covered]]) -> str:
    """The tables as one in Markdown: a case is named for what it covers, then ": " and what is particular of it."""
    rows = ["| subject | covered |", "|---|---|"]
    for subject, cases in tables.items():
        kinds: dict[str, list[str]] = {}
        for name in cases:
            base, _, detail = name.partition(": ")
            kinds.setdefault(base, []).extend([detail] if detail else [])
        texts = [f"`{base}`" + (f" ({'; '.join(details)})" if details else "") for base, details in kinds.items()]
        rows.append(f"| {subject} | {', '.join(texts)} |")
    return "\n".join(rows)
