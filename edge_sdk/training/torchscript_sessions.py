"""A bundle's graphs as TorchScript, run by torch where an app has it anyway. Nothing else here knows torch.

torch is no requirement of the SDK: it is imported by name when a TorchScript graph is opened, and only then.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ArtifactError, TrainingError
from edge_sdk.training.manifest import GraphSpec


@dataclass(frozen=True, slots=True, eq=False)
class TorchScriptGraph:
    """One graph ready to run, with the frozen parameters that it is always fed; as `OnnxGraph`."""

    spec: GraphSpec
    constants: Mapping[str, npt.NDArray[Any]] = field(repr=False)
    _torch: Any = field(repr=False)
    _function: Any = field(repr=False)

    def run(self, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Run with every input of the graph fed; give its outputs in the order of `spec.outputs`.

        Raises:
            TrainingError: torch refused the inputs or failed.
        """
        torch = self._torch
        try:
            with torch.inference_mode():
                inputs = [_tensor(torch, feeds[spec.name]) for spec in self.spec.inputs]
                return [np.ascontiguousarray(found.numpy()).reshape(found.shape) for found in self._function(inputs)]
        except (RuntimeError, TypeError, ValueError) as error:
            raise TrainingError(
                f"torch could not run the {self.spec.kind} graph: {error}",
                hint="check that the examples are like those the model was exported for",
            ) from error


def load_torchscript(content: bytes, spec: GraphSpec, constants: Mapping[str, npt.NDArray[Any]]) -> TorchScriptGraph:
    """Open a TorchScript graph.

    Raises:
        ArtifactError: torch is not installed, or cannot load the graph.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ArtifactError(
            "the runtime torchscript needs torch, which is not installed", hint="pip install torch, or use onnx"
        ) from error
    try:
        with warnings.catch_warnings():
            # Deprecated upstream; what is deployed still runs it. Which category says so depends on torch's release.
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.load")
            function = torch.jit.load(io.BytesIO(content), map_location="cpu")
    except RuntimeError as error:
        raise ArtifactError(
            f"torch {torch.__version__} cannot load the {spec.kind} graph: {error}",
            hint="update torch, or export the model again with the current exporter",
        ) from error
    return TorchScriptGraph(spec, constants, torch, function)


def torch_version() -> str:
    """The installed torch's version, or "none"."""
    try:
        return str(importlib.import_module("torch").__version__)
    except ImportError:
        return "none"


def _tensor(torch: Any, array: npt.NDArray[Any]) -> Any:
    # A parameter that is a view into a checkpoint may be read only, which torch warns of: it is never written.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
