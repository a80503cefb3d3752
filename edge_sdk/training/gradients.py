"""Gradients of a checkpoint on examples, for algorithms that take their own step. Runs the bundle's gradient graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ArtifactError, TrainingError
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.graphs import initial_feeds, open_graph, run_named
from edge_sdk.training.layout import Vector
from edge_sdk.training.manifest import Runtime
from edge_sdk.training.parity import require_parity
from edge_sdk.training.plan import step_seed
from edge_sdk.training.trainer import Rows, check_examples


@dataclass(frozen=True, slots=True, eq=False)
class Gradient:
    """What one backward pass gives.

    Attributes:
        vector: the loss's gradient, 1-D float32 in layout order; zero where the layout has buffers.
        loss: of the examples.
        buffers: by their names in graphs, as the forward pass leaves them.
    """

    vector: Vector = field(repr=False)
    loss: float
    buffers: Mapping[str, npt.NDArray[np.float32]] = field(repr=False)


class BundleGradients:
    """Differentiates the model of a verified bundle that was exported with its gradient graph.

    Making one checks that this runtime reproduces the bundle's certified steps, once per bundle and process.

    Raises:
        ArtifactError: the bundle has no gradient graph, its signature was not checked, or the runtime cannot load it.
        TrainingError: the runtime computes other values than the bundle was certified with.
    """

    def __init__(self, artifact: Artifact, runtime: Runtime = "onnx") -> None:
        if all(graph.kind != "gradient" for graph in artifact.manifest.graphs):
            raise ArtifactError(
                "this bundle has no gradient graph",
                hint="export it with gradient=True (edge export --gradient)",
            )
        self._artifact = artifact
        self._graph = open_graph(artifact, "gradient", runtime)
        self._batch = artifact.manifest.format(runtime).batch
        require_parity(artifact, runtime)

    def at(self, parameters: Vector, examples: Rows, *, seed: bytes = b"", step: int = 0) -> Gradient:
        """The gradient at `parameters` (1-D float32, layout order) on all the examples as one batch.

        What dropout leaves out is that of step number `step` of training with this `seed`.

        Raises:
            TrainingError: unusable parameters or examples, more or fewer of these than a step takes, or a gradient
                that is not finite.
        """
        manifest, layout = self._artifact.manifest, self._artifact.layout
        rows = check_examples(manifest, examples)
        count, bounds = len(rows[manifest.target.name]), self._batch
        if not bounds.minimum <= count <= bounds.maximum:
            raise TrainingError(
                f"{count} examples are no batch of this bundle, which takes {bounds.minimum} to {bounds.maximum}",
                hint="split the examples, or export with a larger batch_max or compiled_batch",
            )
        feeds = initial_feeds(self._graph, layout.unflatten(parameters)) | rows
        outputs = run_named(self._graph, feeds | {"seed": np.array(step_seed(seed, step), np.int64)})
        vector = np.zeros(layout.size, np.float32)
        for name, place in layout.unflatten(vector).items():
            if name.startswith("parameter:"):
                place[...] = outputs[f"gradient:{name.removeprefix('parameter:')}"]
        loss = float(outputs["loss"])
        if not (math.isfinite(loss) and np.isfinite(vector).all()):
            raise TrainingError("the loss or its gradient is not finite", hint="go back to parameters that were")
        buffers = {name.removeprefix("next:"): value for name, value in outputs.items() if name.startswith("next:")}
        return Gradient(vector, loss, buffers)
