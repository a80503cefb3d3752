"""What float64 autograd says that a graph gives, and by how much each value may differ.

What may differ is a gradient, by a small part of its tensor's largest; the optimizer maps that allowance to parameters
and slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_sdk.errors import ExportError
from exporters.optimizers import Stepped
from exporters.step import GRADIENT, LOSS, MODEL_ERRORS, NEXT, OUTPUT, TARGET, Backward, Step, Tensors
from exporters.wide import in_float64

Arrays = Mapping[str, npt.NDArray[Any]]

ANY_BATCH = (
    "let forward work for any number of examples, one too: avoid squeeze() without a dimension, and sizes written out"
)

GRADIENT_TOLERANCE = 5e-5
"""Of the largest gradient in a tensor."""

# Of the largest gradient in the model: what is left of a gradient that is zero by cancellation.
_SHARED_TOLERANCE = 4e-6
_LOSS_TOLERANCE = 1e-5
_OUTPUT_TOLERANCE = 1e-4
_ROUNDING = 5e-7
_BUFFER_ROUNDING = 1e-6
# Of the error of PyTorch's own float32, and how many times the usual margins at most: then half a gradient.
_NOISE = 20.0
_NOISE_LIMIT = 0.5 / GRADIENT_TOLERANCE


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What float64 says a graph gives, and by how much each value may differ."""

    expected: Arrays
    allowed: Arrays


class Autograd:
    """The float64 reference of one step.

    Attributes:
        step: in float64.
    """

    def __init__(self, step: Step) -> None:
        self.step, self._single = step.double(), step
        self._slack = 1.0

    @property
    def tolerance(self) -> float:
        """How much of the largest gradient of its tensor a gradient was allowed to err, at most."""
        return float(f"{self._slack * GRADIENT_TOLERANCE:.3g}")

    def trained(self, inputs: Arrays, *, finite: bool = True, rounded: bool = False) -> Reference:
        """What float64 says of a training step, and by how much each value may differ.

        With `rounded`, they may differ by a few times as much as PyTorch's own float32 does.
        """
        wide = {name: widened(value) for name, value in inputs.items()}
        with float64_of(inputs):
            gradients, loss, buffers = self.step.gradients(wide)
        if finite and not (torch.isfinite(loss) and all(torch.isfinite(g).all() for g in gradients)):
            raise ExportError(
                "the loss or a gradient of the example is not finite, even in float64",
                hint="pass example inputs and targets like the real ones, and check the model's initial values",
            )
        largest = [float(gradient.abs().max()) for gradient in gradients]
        margins = [GRADIENT_TOLERANCE * size + _SHARED_TOLERANCE * max(largest) + 1e-12 for size in largest]
        slack = self._rounding(inputs, gradients, margins) if rounded else 1.0
        margins = [slack * margin for margin in margins]
        middle = self._advanced(wide, gradients, buffers)
        above = self._advanced(wide, [g + margin for g, margin in zip(gradients, margins, strict=True)], buffers)
        below = self._advanced(wide, [g - margin for g, margin in zip(gradients, margins, strict=True)], buffers)
        expected, allowed = {LOSS: loss.numpy()}, {LOSS: slack * _loss_margin(loss)}
        for key, gradient, margin in zip(self.step.trainable, gradients, margins, strict=True):
            expected[GRADIENT + key], allowed[GRADIENT + key] = gradient.numpy(), np.array(margin)
        for name, value in middle.items():
            before = np.abs(inputs[name.removeprefix(NEXT)]).max(initial=0.0)
            move = np.abs(value - inputs[name.removeprefix(NEXT)]).max(initial=0.0)
            spread = np.maximum(np.abs(above[name] - value), np.abs(below[name] - value))
            expected[name] = value
            # A statistic may be zero by cancellation: what it is a mean of is about as large as a network's values are.
            rest = slack * _BUFFER_ROUNDING if name.startswith(f"{NEXT}buffer:") else 1e-12
            allowed[name] = spread + _ROUNDING * before + slack * GRADIENT_TOLERANCE * move + rest
        return Reference(expected, allowed)

    def served(self, inputs: Arrays) -> Reference:
        """What float64 says in evaluation mode."""
        with float64_of(inputs):
            served = self.step.serve({name: widened(value) for name, value in inputs.items()})
        margin = _OUTPUT_TOLERANCE * (1e-2 + float(served[OUTPUT].abs().max()))
        return Reference(
            {name: value.numpy() for name, value in served.items()},
            {LOSS: _loss_margin(served[LOSS]), OUTPUT: np.array(margin)},
        )

    def _rounding(self, inputs: Arrays, gradients: list[torch.Tensor], margins: list[float]) -> float:
        """How many times its margins a step may err, since PyTorch's own does in float32; at least once.

        In a deep network of ReLUs some lie on their kink in every batch, and a batch norm over few values blows
        rounding up. Where all of it is right, both are as wrong.
        """
        rough = self._in_float32(inputs).gradients
        errors = [float((g - single).abs().max()) for g, single in zip(gradients, rough, strict=True)]
        worst = max(error / margin for error, margin in zip(errors, margins, strict=True))
        slack = float(np.clip(np.nan_to_num(_NOISE * worst, nan=1.0), 1.0, _NOISE_LIMIT))
        self._slack = max(self._slack, slack)
        return slack

    def _in_float32(self, inputs: Arrays) -> Backward:
        return self._single.gradients({name: torch.from_numpy(np.array(value)) for name, value in inputs.items()})

    def _advanced(
        self, inputs: Tensors, gradients: list[torch.Tensor], buffers: Tensors
    ) -> dict[str, npt.NDArray[Any]]:
        stepped: Stepped = self.step.advance(inputs, gradients)
        return {name: tensor.numpy() for name, tensor in self.step.named(stepped, buffers).items()}


def _loss_margin(loss: torch.Tensor) -> npt.NDArray[Any]:
    return np.array(_LOSS_TOLERANCE * (1 + abs(float(loss))))


@contextmanager
def float64_of(inputs: Arrays) -> Iterator[None]:
    """Compute in float64, and tell what the model itself raises on a batch of some size."""
    try:
        with in_float64():
            yield
    except MODEL_ERRORS as error:
        raise ExportError(
            f"the model or the loss fails on a batch of {len(inputs[TARGET])} in float64: {error}", hint=ANY_BATCH
        ) from error


def widened(value: npt.NDArray[Any]) -> torch.Tensor:
    """An array as a tensor, in float64 if it is one of floats."""
    tensor = torch.from_numpy(np.array(value))
    return tensor.double() if tensor.dtype == torch.float32 else tensor
