"""Predictions from a bundle's inference graph and a checkpoint, on the stock ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import TrainingError
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.graphs import initial_feeds, open_graph
from edge_sdk.training.layout import Vector
from edge_sdk.training.trainer import Rows, check_inputs


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
        self._inputs = [tensor for tensor in self._graph.spec.inputs if tensor.role == "input"]
        self._state = initial_feeds(self._graph, artifact.layout.unflatten(checkpoint))

    def predict(self, inputs: NDArray[Any] | Rows | None = None, /, **named: NDArray[Any]) -> NDArray[Any]:
        """The model's output for a batch, the first dimension of each input being the rows.

        Args:
            inputs: an array for a model of one input, else arrays by name.
            named: arrays by name, instead.

        Raises:
            TrainingError: the inputs are not what the model takes, or the output is not finite.
        """
        rows = {**named, **(inputs if isinstance(inputs, Mapping) else {})}
        if inputs is not None and not isinstance(inputs, Mapping):
            if len(self._inputs) != 1:
                names = ", ".join(spec.name for spec in self._inputs)
                raise TrainingError(f"the model takes several inputs: {names}", hint="pass them by name")
            rows = {self._inputs[0].name: inputs}
        rows = check_inputs(self._inputs, rows)
        if len({len(array) for array in rows.values()}) > 1:
            counts = ", ".join(f"{len(array)} of {name}" for name, array in rows.items())
            raise TrainingError(
                f"the inputs have different numbers of rows: {counts}", hint="pass a row for each example"
            )
        output = self._graph.run({**self._state, **rows})[0]
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise TrainingError("the model's output is not finite", hint="roll back to the last good model")
        return output
