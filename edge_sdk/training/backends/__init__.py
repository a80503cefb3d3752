"""What can run a bundle's graphs, by format. None of it is imported before a graph is opened on it."""

from __future__ import annotations

from edge_sdk.training.backends import executorch, litert, onnx, torchscript
from edge_sdk.training.backends.backend import Backend
from edge_sdk.training.manifest import Runtime

BACKENDS: dict[Runtime, Backend] = {
    "onnx": onnx.BACKEND,
    "torchscript": torchscript.BACKEND,
    "litert": litert.BACKEND,
    "executorch": executorch.BACKEND,
}
