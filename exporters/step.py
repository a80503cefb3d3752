"""A model's training step and its evaluation as functions of named tensors, and their float64 reference.

    train: parameters, buffers, frozen parameters, slots, inputs, y, learning rate, seed, proximal, corrections
           -> next parameters, buffers, slots; loss
    serve: parameters, buffers, frozen parameters, inputs, y -> loss, output

A step runs the model in training mode, serving in evaluation mode. Tensors are named as in manifests:
"parameter:fc.weight", "buffer:bn.running_mean", "slot:velocity:fc.weight", "slot:mean_correction", "x" or what
`arguments` calls the inputs, "y", "learning_rate", "seed"; what becomes an input of the next step has "next:" before
it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch.func import functional_call

from edge_sdk.errors import ExportError
from edge_sdk.training.manifest import GraphKind
from exporters.arguments import Arguments
from exporters.optimizers import Optimizer, Stepped
from exporters.randomness import Seeded

Tensors = Mapping[str, torch.Tensor]

# What a model's own code raises when it cannot compute; torch has no narrower types.
MODEL_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)
Loss = Callable[[torch.Tensor, torch.Tensor], Any]

TARGET, LEARNING_RATE, SEED, PROXIMAL = "y", "learning_rate", "seed", "proximal"
LOSS, OUTPUT = "loss", "output"
NEXT, GRADIENT = "next:", "gradient:"


class Forward(NamedTuple):
    """What a model gives: loss, output, and the buffers (by `state_dict` name) as the forward pass leaves them."""

    loss: torch.Tensor
    output: torch.Tensor
    buffers: dict[str, torch.Tensor]


class Backward(NamedTuple):
    """Gradients of the trainable parameters in order, the loss, and the buffers after the forward pass."""

    gradients: list[torch.Tensor]
    loss: torch.Tensor
    buffers: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A model, its loss and its optimizer, ready to be traced or run.

    `changing` names the buffers that the model's forward pass changes in training: they are state, as parameters are.
    `arguments` says how forward is called with the inputs. With `corrected`, the optimizer is given gradient +
    proximal * parameter + correction, the latter two being inputs. `quantised` has int8 numbers and the scales of rows
    for frozen parameters that graphs are given so; in the model they are floats.
    """

    model: torch.nn.Module
    loss: Loss
    optimizer: Optimizer
    changing: tuple[str, ...] = ()
    arguments: Arguments = field(default_factory=Arguments)
    corrected: bool = False
    quantised: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @property
    def trainable(self) -> dict[str, torch.Tensor]:
        """Parameters that are trained, by `state_dict` name."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def frozen(self) -> dict[str, torch.Tensor]:
        """Parameters that are not."""
        return {name: p.detach() for name, p in self.model.named_parameters() if not p.requires_grad}

    @property
    def learned(self) -> dict[str, torch.Tensor]:
        """What training changes and the update holds, by its name in graphs: trained parameters, then buffers."""
        buffers = dict(self.model.named_buffers())
        return {f"parameter:{name}": tensor for name, tensor in self.trainable.items()} | {
            f"buffer:{name}": buffers[name] for name in self.changing
        }

    @property
    def stored(self) -> dict[str, torch.Tensor]:
        """What is frozen as graphs are given it, by name there."""
        tensors = {}
        for name, tensor in self.frozen.items():
            if name in self.quantised:
                tensors[f"quantised:{name}"], tensors[f"scale:{name}"] = self.quantised[name]
            else:
                tensors[f"frozen:{name}"] = tensor
        return tensors

    def initial_state(self) -> dict[str, torch.Tensor]:
        """Everything as the model has it; slots and corrections at zero."""
        trainable = self.trainable
        state = {name: tensor.clone() for name, tensor in self.learned.items()}
        state |= {f"frozen:{name}": tensor.clone() for name, tensor in self.frozen.items()}
        state |= self.stored
        state |= {
            f"slot:{slot}:{name}": torch.zeros_like(tensor)
            for slot in self.optimizer.slots
            for name, tensor in trainable.items()
        }
        state |= {f"slot:{counter}": torch.zeros(()) for counter in self.optimizer.counters}
        if self.corrected:
            state |= {f"correction:{name}": torch.zeros_like(tensor) for name, tensor in trainable.items()}
            state[PROXIMAL] = torch.zeros(())
        return state

    def training(self) -> dict[GraphKind, Callable[[Tensors], dict[str, torch.Tensor]]]:
        """What a training step runs, in order, by the kind of graph it becomes."""
        return {"train": self.train}

    def beside(self, batch: int) -> dict[str, torch.Tensor]:
        """What a step of so many examples is fed besides them and its state; some values to trace with."""
        return {LEARNING_RATE: torch.tensor(0.1), SEED: torch.tensor(1)}

    def double(self) -> Step:
        """The same step in float64, on a copy."""
        return replace(self, model=copy.deepcopy(self.model).double())

    def forward(self, inputs: Tensors) -> Forward:
        """Run the model and its loss; no input is changed. With a seed among the inputs, dropout follows it.

        Raises:
            ExportError: the output or the loss is not one tensor.
        """
        tensors = {name: inputs[f"parameter:{name}"] for name in self.trainable}
        tensors |= {name: inputs[f"frozen:{name}"] for name in self.frozen}
        tensors |= {name: inputs[f"buffer:{name}"].clone() for name in self.changing}
        # Leaves the buffers in `tensors` as the model leaves its own, whether it writes to them or replaces them.
        with Seeded(inputs[SEED]) if SEED in inputs else nullcontext():
            output: Any = functional_call(self.model, tensors, *self.arguments.fill(inputs))
        if not isinstance(output, torch.Tensor):
            raise ExportError(
                f"the model gives a {type(output).__name__}, not a tensor",
                hint="wrap it in a module that returns one tensor",
            )
        loss: Any = self.loss(output, inputs[TARGET])
        if not isinstance(loss, torch.Tensor) or loss.ndim != 0:
            raise ExportError(
                "the loss is not a scalar tensor",
                hint="reduce it over the batch, for example with reduction='mean'",
            )
        return Forward(loss, output, {name: tensors[name].detach() for name in self.changing})

    def watched(self, inputs: Tensors) -> tuple[dict[str, torch.Tensor], Forward]:
        """Trainable parameters as leaves of autograd's graph, and what the forward pass makes of them.

        Raises:
            ExportError: no parameter acts on the loss.
        """
        leaves = {name: inputs[f"parameter:{name}"].detach().requires_grad_() for name in self.trainable}
        forward = self.forward({**inputs, **{f"parameter:{name}": leaf for name, leaf in leaves.items()}})
        if not forward.loss.requires_grad:
            self.require_used(())
        return leaves, forward

    def require_used(self, names: Container[str]) -> None:
        """Raise an ExportError unless these are all trainable parameters."""
        idle = [name for name in self.trainable if name not in names]
        if idle:
            raise ExportError(
                f"the loss does not depend on {', '.join(idle)}",
                hint="remove these parameters, or freeze them with requires_grad_(False)",
            )

    def gradients(self, inputs: Tensors) -> Backward:
        """Run the model and differentiate its loss.

        Raises:
            ExportError: some parameter does not act on the loss.
        """
        with torch.enable_grad():
            leaves, (loss, _, buffers) = self.watched(inputs)
            found: tuple[torch.Tensor | None, ...] = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        by_name = {name: gradient for name, gradient in zip(leaves, found, strict=True) if gradient is not None}
        self.require_used(by_name)
        return Backward([gradient.to_dense() for gradient in by_name.values()], loss.detach(), buffers)

    def advance(self, inputs: Tensors, gradients: list[torch.Tensor]) -> Stepped:
        """Let the optimizer take its step with these gradients, corrected if the step is to be."""
        names, optimizer = list(self.trainable), self.optimizer
        parameters = [inputs[f"parameter:{name}"] for name in names]
        if self.corrected:
            corrections = [inputs[f"correction:{name}"] for name in names]
            # What is added first are the two terms that cancel where a parameter is its anchor.
            gradients = [
                gradient + (inputs[PROXIMAL] * parameter + correction)
                for gradient, parameter, correction in zip(gradients, parameters, corrections, strict=True)
            ]
        return optimizer.step(
            parameters,
            gradients,
            [[inputs[f"slot:{slot}:{name}"] for name in names] for slot in optimizer.slots],
            [inputs[f"slot:{counter}"] for counter in optimizer.counters],
            inputs[LEARNING_RATE],
        )

    def named(self, stepped: Stepped, buffers: Tensors) -> dict[str, torch.Tensor]:
        """Name what a step gave as the outputs that feed the next."""
        names, optimizer = list(self.trainable), self.optimizer
        result = {f"{NEXT}parameter:{name}": p for name, p in zip(names, stepped.parameters, strict=True)}
        result |= {f"{NEXT}buffer:{name}": tensor for name, tensor in buffers.items()}
        for slot, tensors in zip(optimizer.slots, stepped.slots, strict=True):
            result |= {f"{NEXT}slot:{slot}:{name}": t for name, t in zip(names, tensors, strict=True)}
        for counter, tensor in zip(optimizer.counters, stepped.counters, strict=True):
            result[f"{NEXT}slot:{counter}"] = tensor
        return result

    def train(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        """One whole training step, in the modes that the model's modules have."""
        gradients, loss, buffers = self.gradients(inputs)
        return self.named(self.advance(inputs, gradients), buffers) | {LOSS: loss}

    def differentiate(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        """Gradients, buffers and loss, for algorithms that take their own step."""
        gradients, loss, buffers = self.gradients(inputs)
        named = {GRADIENT + name: gradient for name, gradient in zip(self.trainable, gradients, strict=True)}
        return named | {f"{NEXT}buffer:{name}": tensor for name, tensor in buffers.items()} | {LOSS: loss}

    def serve(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        """Loss and output of the model in evaluation mode."""
        with torch.no_grad(), evaluating(self.model):
            loss, output, _ = self.forward({name: tensor for name, tensor in inputs.items() if name != SEED})
        return {LOSS: loss, OUTPUT: output}


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and back into its own after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
