"""TorchScript, run by torch where an app has it anyway.

torch is no requirement of the SDK: it is imported by name when a graph is opened, and only then.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.training.backends.backend import Backend, Run, release_of
from edge_sdk.training.manifest import GraphSpec


def _load(content: bytes, spec: GraphSpec, threads: int) -> Run:
    torch = importlib.import_module("torch")
    with warnings.catch_warnings():
        # Deprecated upstream; what is deployed still runs it. Which category says so depends on torch's release.
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.load")
        function = torch.jit.load(io.BytesIO(content), map_location="cpu")
    names = [tensor.name for tensor in spec.inputs]

    def run(feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        with torch.inference_mode():
            found = function([_tensor(torch, feeds[name]) for name in names])
            return [np.ascontiguousarray(tensor.numpy()).reshape(tensor.shape) for tensor in found]

    return run


def _tensor(torch: Any, array: npt.NDArray[Any]) -> Any:
    # A parameter that is a view into a checkpoint may be read only, which torch warns of: it is never written.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


BACKEND = Backend("torch", "torch", lambda: release_of("torch"), _load, lambda: (RuntimeError, TypeError, ValueError))
