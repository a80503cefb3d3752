"""ExecuTorch by its Python runtime, which hands tensors over by way of torch."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.training.backends.backend import Backend, Run, release_of
from edge_sdk.training.manifest import GraphSpec


def _load(content: bytes, spec: GraphSpec, threads: int) -> Run:
    torch, module = importlib.import_module("torch"), importlib.import_module("executorch.runtime")
    program = module.Runtime.get().load_program(content)
    program.load_method("forward")
    names = [tensor.name for tensor in spec.inputs]
    lock = threading.Lock()

    def run(feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        # Copies: it computes in place here and there, and its results lie in memory that the next run uses.
        inputs = [torch.from_numpy(np.array(feeds[name], order="C")) for name in names]
        with lock:
            # Of the program, which keeps the method and the bytes that it runs from; a method alone keeps neither.
            found = program.load_method("forward").execute(inputs)
            return [np.array(tensor.numpy()) for tensor in found]

    return run


BACKEND = Backend(
    "ExecuTorch", "executorch", lambda: release_of("executorch"), _load, lambda: (RuntimeError, TypeError, ValueError)
)
