"""What float64 autograd says that a graph gives, and by how much each value may differ.

What may differ is a gradient, by a small part of its tensor's largest; the optimizer maps that allowance to parameters
and slots. Where float32 puts units on the other side of their kink, single gradients are far off and tensors as a whole
are not: there single ones may differ by more, and all of a tensor's together by little.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
# By how much of itself (root of mean square) a tensor's gradient may differ then: the runtime's units on their kink are
# not PyTorch's, so a little is always allowed. They moved it by up to 2% in a MobileNetV2 with batch norms and random
# weights; a term that is missing moves it by a tenth and more.
_WHOLE_LEAST, _WHOLE_LIMIT = 0.01, 0.05
# Of the largest such root in the model: what tensors are measured by whose gradient is smaller than that.
_WHOLE_FLOOR = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What float64 says a graph gives, and by how much each number may differ.

    All differences in a tensor together, in Euclidean length, may not exceed what it has in `whole`, if anything.
    """

    expected: Arrays
    allowed: Arrays
    whole: Arrays = field(default_factory=dict)


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

        With `rounded`, single numbers may differ by a few times as much as PyTorch's own float32 does.
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
        slack, bounds = self._rounding(inputs, gradients, margins) if rounded else (1.0, margins)
        found = self._allowing(wide, Backward(gradients, loss, buffers), [slack * m for m in margins], slack)
        if slack == 1.0:
            return found
        whole = self._allowing(wide, Backward(gradients, loss, buffers), bounds, 1.0).allowed
        gradual = {name: value for name, value in whole.items() if name != LOSS and "buffer:" not in name}
        return replace(found, whole=gradual)

    def _allowing(self, inputs: Tensors, backward: Backward, margins: list[float], slack: float) -> Reference:
        """Let gradients differ by these margins, and what else is rounded by so many times as usual."""
        gradients, loss, buffers = backward
        middle = self._advanced(inputs, gradients, buffers)
        above = self._advanced(inputs, [g + margin for g, margin in zip(gradients, margins, strict=True)], buffers)
        below = self._advanced(inputs, [g - margin for g, margin in zip(gradients, margins, strict=True)], buffers)
        expected, allowed = {LOSS: loss.numpy()}, {LOSS: slack * _loss_margin(loss)}
        for key, gradient, margin in zip(self.step.trainable, gradients, margins, strict=True):
            expected[GRADIENT + key], allowed[GRADIENT + key] = gradient.numpy(), np.full(gradient.shape, margin)
        for name, value in middle.items():
            start = inputs[name.removeprefix(NEXT)].numpy()
            before, move = np.abs(start).max(initial=0.0), np.abs(value - start).max(initial=0.0)
            reach = np.maximum(np.abs(above[name] - value), np.abs(below[name] - value))
            expected[name] = value
            # A statistic may be zero by cancellation: what it is a mean of is about as large as a network's values are.
            rest = slack * _BUFFER_ROUNDING if name.startswith(f"{NEXT}buffer:") else 1e-12
            allowed[name] = reach + _ROUNDING * before + slack * GRADIENT_TOLERANCE * move + rest
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

    def _rounding(
        self, inputs: Arrays, gradients: list[torch.Tensor], margins: list[float]
    ) -> tuple[float, list[float]]:
        """How many times its margins a number may err, since PyTorch's own do in float32, and at least once.

        And by how much the numbers of each gradient together, in the root of their mean square.

        In a deep network of ReLUs some lie on their kink in every batch, and a batch norm over few values blows
        rounding up. Where all of it is right, both are as wrong.
        """
        rough = self._in_float32(inputs).gradients
        errors = [g - single for g, single in zip(gradients, rough, strict=True)]
        worst = max(float(error.abs().max()) / margin for error, margin in zip(errors, margins, strict=True))
        slack = _times(worst, 1.0, _NOISE_LIMIT)
        self._slack = max(self._slack, slack)
        sizes = [_root_mean_square(gradient) for gradient in gradients]
        sizes = [size + _WHOLE_FLOOR * max(sizes) + 1e-12 for size in sizes]
        wrong = max(_root_mean_square(error) / size for error, size in zip(errors, sizes, strict=True))
        part = _times(wrong, _WHOLE_LEAST, _WHOLE_LIMIT)
        return slack, [part * size + margin for size, margin in zip(sizes, margins, strict=True)]

    def _in_float32(self, inputs: Arrays) -> Backward:
        return self._single.gradients({name: torch.from_numpy(np.array(value)) for name, value in inputs.items()})

    def _advanced(
        self, inputs: Tensors, gradients: list[torch.Tensor], buffers: Tensors
    ) -> dict[str, npt.NDArray[Any]]:
        stepped: Stepped = self.step.advance(inputs, gradients)
        return {name: tensor.numpy() for name, tensor in self.step.named(stepped, buffers).items()}


def _times(noise: float, least: float, most: float) -> float:
    """A few times what PyTorch errs by, within limits; the least where that is no number."""
    return float(np.clip(np.nan_to_num(_NOISE * noise, nan=least), least, most))


def _root_mean_square(tensor: torch.Tensor) -> float:
    return float(tensor.square().mean().sqrt())


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
