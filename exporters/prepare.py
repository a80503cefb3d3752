"""What is checked before a model is traced: its examples, its parameters, and what its forward pass does."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from edge_sdk.errors import ExportError
from edge_sdk.training.manifest import Reduction
from exporters.align import DTYPE_NAMES
from exporters.arguments import Arguments, ExampleInputs, read_arguments
from exporters.freezing import FrozenStorage, Patterns, freeze_all_but, quantise
from exporters.optimizers import Optimizer
from exporters.step import (
    LEARNING_RATE,
    LOSS,
    MODEL_ERRORS,
    OUTPUT,
    PROXIMAL,
    SEED,
    TARGET,
    Loss,
    Step,
    Tensors,
    evaluating,
)
from exporters.wide import in_float64

BatchNormMode = Literal["train", "frozen"]
"""Whether batch norms normalise by each batch and keep running statistics, or by the statistics they have."""


def prepare_examples(
    model: torch.nn.Module, inputs: ExampleInputs, target: torch.Tensor
) -> tuple[Arguments, dict[str, torch.Tensor]]:
    """Check the examples, name them, and give them back on the CPU with how forward is called with them.

    Raises:
        ExportError: it says what is wrong with them.
    """
    arguments, tensors = read_arguments(model, inputs)
    if reserved := sorted({TARGET, LEARNING_RATE, SEED, PROXIMAL, LOSS, OUTPUT}.intersection(tensors)):
        raise ExportError(
            f"an input of the model is called {reserved[0]!r}, which has a meaning of its own",
            hint="rename forward's parameter",
        )
    if not tensors:
        raise ExportError("there are no example inputs", hint="pass what forward takes, a batch of examples")
    if not isinstance(target, torch.Tensor):
        raise ExportError(
            f"the example target is a {type(target).__name__}, not a tensor",
            hint="join several targets into one tensor, which the loss takes apart",
        )
    examples = {name: tensor.detach().cpu().contiguous() for name, tensor in {**tensors, TARGET: target}.items()}
    for name, tensor in examples.items():
        what = "target" if name == TARGET else f"input {name}"
        if tensor.dtype not in DTYPE_NAMES or tensor.dtype == torch.float64:
            raise ExportError(
                f"the example {what} has dtype {tensor.dtype}",
                hint="use float32 (.float()) or an integer type: devices store examples in that type",
            )
        if tensor.ndim == 0 or len(tensor) == 0:
            raise ExportError(f"the example {what} is empty or has no batch dimension", hint="pass a batch")
    for name, tensor in examples.items():
        if len(tensor) != len(target):
            raise ExportError(
                f"{len(tensor)} examples in {name}, but {len(target)} targets",
                hint="let every input have the batch as its first dimension, and give each example a target",
            )
    return arguments, examples


def prepare_step(
    model: torch.nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    arguments: Arguments,
    examples: Tensors,
    *,
    batch_norm: BatchNormMode = "train",
    trainable: Patterns | None = None,
    frozen: FrozenStorage = "float32",
) -> Step:
    """Make the step of a copy of the model, and run it on the example to see that it works.

    Raises:
        ExportError: it does not, or the model is one that cannot be exported.
    """
    copied = _copied(model)
    _set_modes(copied, batch_norm)
    if trainable is not None:
        freeze_all_but(copied, trainable)
    if not any(parameter.requires_grad for parameter in copied.parameters()):
        raise ExportError("the model has no trainable parameter", hint="let some parameter require a gradient")
    _check_modules(copied)
    quantised = quantise(copied) if frozen == "int8" else {}
    step = Step(copied, loss, optimizer, arguments=arguments, quantised=quantised)
    named = {**step.initial_state(), **examples, LEARNING_RATE: torch.tensor(0.0), SEED: torch.tensor(0)}
    try:
        changing = _changed_buffers(step, named)
        with evaluating(copied):
            changing_still = _changed_buffers(step, named)
    except MODEL_ERRORS as error:
        raise ExportError(
            f"the model or the loss fails on the example: {error}",
            hint="check that loss(model(example_input), example_target) works",
        ) from error
    if changing_still:
        raise ExportError(
            f"the model changes {', '.join(changing_still)} in evaluation mode too",
            hint="change buffers only while self.training",
        )
    buffers = dict(copied.named_buffers())
    for name, after in changing.items():
        if after.dtype != torch.float32 or after.shape != buffers[name].shape:
            raise ExportError(
                f"the model makes its buffer {name} {after.dtype}{list(after.shape)} in its forward pass",
                hint="keep such state in float32 and in one shape, so that it can be federated",
            )
    return replace(step, changing=tuple(changing))


def find_reduction(step: Step, examples: Tensors) -> Reduction:
    """Find out how the loss joins examples, in evaluation mode."""
    rows = torch.arange(min(4, len(examples[TARGET])))
    reference = step.double()
    state = reference.initial_state()

    def measure(chosen: torch.Tensor) -> float:
        drawn = {name: tensor[chosen] for name, tensor in examples.items()}
        wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in drawn.items()}
        with in_float64():
            return float(reference.serve({**state, **wide})[LOSS])

    whole, single = measure(rows), [measure(row[None]) for row in rows]
    if np.isclose(whole, np.mean(single), rtol=1e-9):
        return "mean"
    return "sum" if np.isclose(whole, np.sum(single), rtol=1e-9) else "batch"


def _copied(model: torch.nn.Module) -> torch.nn.Module:
    try:
        copied = copy.deepcopy(model).cpu()
    except (RuntimeError, TypeError) as error:
        raise ExportError(
            f"the model cannot be copied: {error}", hint="pass a plain module: no hooks, graphs or handles in it"
        ) from error
    for name, parameter in copied.named_parameters():
        if parameter.dtype != torch.float32:
            raise ExportError(
                f"parameter {name} is {parameter.dtype}", hint="export the model in float32: model.float()"
            )
    return copied


def _set_modes(model: torch.nn.Module, batch_norm: BatchNormMode) -> None:
    """Leave modules in evaluation mode that are so in a model which is in training mode."""
    if not model.training:
        model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._NormBase):
            # It counts batches, for an average that is refused below; nothing else reads it.
            module.num_batches_tracked = None
        if batch_norm == "frozen" and isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()


def _check_modules(model: torch.nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.nn.modules.batchnorm._NormBase):
            if module.track_running_stats and module.training and module.momentum is None:
                raise ExportError(
                    f"{where} averages over all batches that it ever saw, which devices cannot do together",
                    hint="give it a momentum, such as 0.1",
                )
            if not module.track_running_stats and isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                raise ExportError(
                    f"{where} predicts for an example by what else is in its batch",
                    hint="let it keep running statistics (track_running_stats=True), or use GroupNorm",
                )


def _changed_buffers(step: Step, inputs: Tensors) -> dict[str, torch.Tensor]:
    """What the forward pass makes of the buffers that it changes, in whatever modes the modules are."""
    before = {name: buffer.clone() for name, buffer in step.model.named_buffers()}
    watched = replace(step, changing=tuple(before))
    with torch.no_grad():
        after = watched.forward({**inputs, **{f"buffer:{name}": buffer for name, buffer in before.items()}}).buffers
    return {name: after[name] for name, buffer in before.items() if not torch.equal(buffer, after[name])}
