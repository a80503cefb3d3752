"""Predictions from a bundle's inference graph and a checkpoint, on the stock ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import TrainingError
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.layout import Vector
from edge_sdk.training.onnx_sessions import open_graph
from edge_sdk.training.trainer import check_rows


class Predictor:
    """A model, ready to predict.

    Args:
        artifact: the verified bundle.
        checkpoint: 1-D float32 in layout order.

    Raises:
        ArtifactError: the bundle's signature was not checked, or this runtime cannot load its graph.
        TrainingError: the checkpoint is not one of this model's.
    """

    def __init__(self, artifact: Artifact, checkpoint: Vector) -> None:
        self._graph = open_graph(artifact, "infer")
        self._input = next(tensor for tensor in self._graph.spec.inputs if tensor.role == "input")
        self._state = self._graph.state(artifact.layout.unflatten(checkpoint))

    def predict(self, x: NDArray[Any]) -> NDArray[Any]:
        """The model's output for a batch, the first dimension being the rows.

        Raises:
            TrainingError: `x` is not what the model takes, or the output is not finite.
        """
        output = self._graph.run({**self._state, self._input.name: check_rows(self._input, x)})[0]
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise TrainingError("the model's output is not finite", hint="roll back to the last good model")
        return output
