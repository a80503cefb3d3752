"""A training step in two halves with room for noise between them, and its float64 reference.

    clip:  parameters, frozen parameters, inputs, y, weight, clip norm, seed -> sums of clipped gradients; loss
    train: parameters, slots, gradients, learning rate -> next parameters and slots

What `train` is given is the sum with noise, over the lot size. The reference knows nothing of book-keeping: it
differentiates the loss of one example after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from edge_sdk.training.manifest import ExamplePrivacy, GraphKind
from exporters.per_example import clipped_sum
from exporters.step import GRADIENT, LOSS, TARGET, Backward, Step, Tensors

WEIGHT, CLIP_NORM = "weight", "clip_norm"


@dataclass(frozen=True, slots=True, eq=False)
class PrivateStep(Step):
    """A step that clips the gradient of each example.

    `mean` says that the loss is the mean over examples, else it is their sum; `seeded`, whether some dropout is at
    work.
    """

    privacy: ExamplePrivacy = field(kw_only=True)
    mean: bool = field(kw_only=True)
    seeded: bool = field(kw_only=True)

    def training(self) -> dict[GraphKind, Callable[[Tensors], dict[str, torch.Tensor]]]:
        """Both halves."""
        return {"clip": self.clip, "train": self.train}

    def beside(self, batch: int) -> dict[str, torch.Tensor]:
        """What `clip` and `train` are fed."""
        gradients = {GRADIENT + name: torch.zeros_like(tensor) for name, tensor in self.trainable.items()}
        return Step.beside(self, batch) | {WEIGHT: torch.ones(batch), CLIP_NORM: torch.tensor(1.0)} | gradients

    def clip(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        """The first half."""
        with torch.enable_grad():
            leaves, forward = self.watched(inputs)
            sums = clipped_sum(forward.loss, leaves, weight=inputs[WEIGHT], clip_norm=inputs[CLIP_NORM], mean=self.mean)
        self.require_used(sums)
        return {GRADIENT + name: sums[name] for name in leaves} | {LOSS: forward.loss.detach()}

    def train(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        """The second half."""
        return self.named(self.advance(inputs, [inputs[GRADIENT + name] for name in self.trainable]), {})

    def gradients(self, inputs: Tensors) -> Backward:
        """What `train` is to be given when there is no noise, from gradients of single examples."""
        alone = self.alone(inputs)
        factors = inputs[WEIGHT] * torch.clamp(inputs[CLIP_NORM] / _norms(alone), max=1.0)
        sums = [torch.tensordot(factors, gradients, 1) for gradients in alone]
        with torch.no_grad():
            loss = self.forward(inputs).loss
        return Backward([total / self.privacy.lot_size for total in sums], loss, {})

    def some_norm(self, inputs: Tensors) -> float:
        """The norm of the first example's gradient."""
        return float(_norms([gradient[None] for gradient in self._of_one(inputs, 0)]))

    def alone(self, inputs: Tensors) -> list[torch.Tensor]:
        """For each parameter the gradients of all examples' own losses, [batch, ...]."""
        found = [self._of_one(inputs, row) for row in range(len(inputs[TARGET]))]
        return [torch.stack(gradients) for gradients in zip(*found, strict=True)]

    def _of_one(self, inputs: Tensors, row: int) -> list[torch.Tensor]:
        examples = {name: inputs[name] for name in (*self.arguments.names, TARGET)}
        if not self.seeded:
            only = {name: rows[row : row + 1] for name, rows in examples.items()}
            return Step.gradients(self, {**inputs, **only}).gradients
        # What dropout leaves out depends on the place in the batch: so the others give way to copies of this one.
        copies = {
            name: rows[row : row + 1].repeat(len(rows), *[1] * (rows.ndim - 1)) for name, rows in examples.items()
        }
        with torch.enable_grad():
            leaves, forward = self.watched({**inputs, **copies})
            loss = self.loss(forward.output[row : row + 1], inputs[TARGET][row : row + 1])
            return list(torch.autograd.grad(loss, list(leaves.values())))


def _norms(alone: list[torch.Tensor]) -> torch.Tensor:
    return torch.sqrt(torch.stack([gradients.flatten(1).square().sum(1) for gradients in alone]).sum(0))
