"""What storing frozen weights in 8 bits does to a model's predictions."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from edge_sdk.inference.predictor import Predictor
from edge_sdk.training.artifact import Artifact
from exporters.arguments import ExampleInputs, read_arguments


@dataclass(frozen=True, slots=True)
class RoundingEffect:
    """A bundle's predictions for some examples, against those of the model that it was made from.

    Attributes:
        difference: the largest of an output, as a share of the largest output.
        agreeing: how many classifications stay the same, of `classified`: one an example, or one a token; none where
            the target is no class.
    """

    difference: float
    agreeing: int
    classified: int

    def __str__(self) -> str:
        """As part of a message."""
        classes = f"; {self.agreeing:,} of {self.classified:,} classes stay the same" if self.classified else ""
        return f"outputs move by at most {self.difference:.2%} of the largest{classes}"


def rounding_effect(model: torch.nn.Module, example_inputs: ExampleInputs, artifact: Artifact) -> RoundingEffect:
    """Predict the examples with the model and with its bundle.

    Raises:
        ExportError: the inputs are not those of the model.
    """
    arguments, tensors = read_arguments(model, example_inputs)
    exact_model = copy.deepcopy(model).cpu().eval()
    args, kwargs = arguments.fill({name: tensor.detach().cpu() for name, tensor in tensors.items()})
    with torch.no_grad():
        exact = exact_model(*args, **kwargs).numpy()
    inputs = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    found = Predictor(artifact, artifact.checkpoint()).predict(inputs)
    largest = max(float(np.abs(exact).max()), float(np.finfo(np.float32).tiny))
    difference = float(np.abs(found - exact).max()) / largest
    # Classes lie along the second axis, or the last one where the loss takes tokens apart.
    classes = artifact.manifest.classes
    axis = next((axis for axis in (1, exact.ndim - 1) if 0 < axis < exact.ndim and exact.shape[axis] == classes), None)
    if axis is None:
        return RoundingEffect(difference, 0, 0)
    same = exact.argmax(axis) == found.argmax(axis)
    return RoundingEffect(difference, int(same.sum()), same.size)
