"""What `edge export` asks of a module's `build()`: a model with all that exporting it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from exporters.arguments import ExampleInputs


@dataclass(frozen=True, slots=True, eq=False)
class ModelSpec:
    """A model to export.

    Attributes:
        model: its present parameters become the bundle's first checkpoint.
        loss: takes (output, target) of a batch, gives a scalar.
        example_inputs: examples, first dimension the batch: one tensor, a tuple of forward's arguments, or a dict of
            its keyword arguments.
        example_target: their targets, one tensor of the same first dimension.
        name: names the model, as in "digits".
        version: names this export of it.
        learning_rate: what plans start from; the optimizer's usual one by default.
        batch_max: the largest batch a step may get.
    """

    model: torch.nn.Module
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    example_inputs: ExampleInputs
    example_target: torch.Tensor
    name: str
    version: str = "1"
    learning_rate: float | None = None
    batch_max: int = 1024
