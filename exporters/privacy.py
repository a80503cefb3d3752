"""Differentially private SGD as an export's setting, and which models it would be wrong for."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields
from typing import Any

import torch

from edge_sdk.errors import ExportError
from edge_sdk.training.manifest import ExamplePrivacy
from exporters.lowering import Labels
from exporters.prepare import find_reduction
from exporters.private_step import PrivateStep
from exporters.settings import read_specification
from exporters.step import SEED, TARGET, Step, Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class DpSgd:
    """Differentially private SGD (Abadi et al. 2016) that hides each example of a device.

    Attributes:
        clip_norm: the gradient of each example is clipped to this.
        noise_multiplier: deviation of the noise in a sum of gradients, over `clip_norm`.
        lot_size: examples in a step on average, by which sums are divided.

    Raises:
        ExportError: one of them is not a positive number.
    """

    clip_norm: float = 1.0
    noise_multiplier: float = 1.0
    lot_size: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ExportError(f"privacy cannot have {field.name}={value}", hint="give a positive number")

    @property
    def promise(self) -> ExamplePrivacy:
        """What the bundle says of it."""
        return ExamplePrivacy("example", "poisson", self.clip_norm, self.noise_multiplier, self.lot_size)


def find_privacy(privacy: str | DpSgd | None) -> DpSgd | None:
    """The settings of a specification such as "example" or "example:clip_norm=0.5,lot_size=32", or those given.

    Raises:
        ExportError: an unknown name or setting, or a value that it cannot have.
    """
    return read_specification(privacy, {"example": DpSgd()}, "privacy") if isinstance(privacy, str) else privacy


def make_private(step: Step, privacy: DpSgd, examples: Tensors) -> PrivateStep:
    """The step in two halves, if gradients of single examples mean something for this model.

    Raises:
        ExportError: it says why they do not.
    """
    if step.changing:
        owner, _, buffer = step.changing[0].rpartition(".")
        kind = type(step.model.get_submodule(owner)).__name__
        raise ExportError(
            f"{owner or 'the model'} ({kind}) keeps {buffer} of all examples, which no noise hides",
            hint="use GroupNorm or LayerNorm, or batch_norm='frozen', for training that is private for each example",
        )
    if len(examples[TARGET]) < 2:
        raise ExportError("one example does not show how the loss joins examples", hint="pass two or more")
    reduction = find_reduction(step, examples)
    if reduction == "batch":
        raise ExportError(
            "the loss is neither the mean nor the sum of the losses of single examples, or these depend on each other",
            hint="let an example's output and loss depend on that example alone. Cross-entropy's mean does not, with "
            "class weights or labels to ignore: use reduction='sum', or average over each example, then over all",
        )
    plain: dict[str, Any] = {field.name: getattr(step, field.name) for field in fields(step)}
    return PrivateStep(**plain, privacy=privacy.promise, mean=reduction == "mean", seeded=_is_seeded(step, examples))


def label_to_ignore(step: Step, labels: Labels, examples: Tensors) -> int | None:
    """The label that the loss ignores, if losses stay those of single examples where it occurs, else None.

    Raises:
        ExportError: they do not, and the label is one of the classes, so that no device could refuse it.
    """
    target = examples[TARGET].clone()
    target.view(-1)[: max(1, target[0].numel() // 2)] = labels.ignored
    if find_reduction(step, {**examples, TARGET: target}) != "batch":
        return labels.ignored
    if 0 <= labels.ignored < labels.classes:
        raise ExportError(
            f"the loss averages over the labels that are not {labels.ignored}, which ties examples together",
            hint="use reduction='sum', or average over each example, then over all",
        )
    return None


def batch_sizes(step: Step, examples: Tensors) -> tuple[int, int]:
    """Two batch sizes to trace with that cannot be taken for any other dimension."""
    tensors = [*examples.values(), *step.model.parameters(), *step.model.buffers()]
    sizes = {size + more for tensor in tensors for size in tensor.shape for more in (0, 1)}
    sizes -= {len(examples[TARGET]), len(examples[TARGET]) + 1}
    free = (size for size in itertools.count(11, 2) if size not in sizes)
    return next(free), next(free)


def _is_seeded(step: Step, examples: Tensors) -> bool:
    """Whether the forward pass depends on the seed."""
    state = {**step.initial_state(), **examples}
    with torch.no_grad():
        outputs = [step.forward({**state, SEED: torch.tensor(seed)}).output for seed in (1, 2, 3)]
    return any(not torch.equal(outputs[0], output) for output in outputs[1:])
