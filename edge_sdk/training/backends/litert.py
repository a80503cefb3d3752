"""LiteRT (TensorFlow Lite), single-threaded, by its interpreter's signature. It takes batches of one size."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.training.backends.backend import Backend, Run, release_of
from edge_sdk.training.manifest import GraphSpec

_PACKAGE = "ai-edge-litert"


def _load(content: bytes, spec: GraphSpec, threads: int) -> Run:
    module = importlib.import_module("ai_edge_litert.interpreter")
    runner = module.Interpreter(model_content=content, num_threads=threads).get_signature_runner()
    details = runner.get_input_details()
    if len(details) != len(spec.inputs) or len(runner.get_output_details()) != len(spec.outputs):
        raise ValueError("its inputs and outputs are not those of the manifest")
    wanted = [(tensor.name, f"args_{index}", details[f"args_{index}"]) for index, tensor in enumerate(spec.inputs)]
    lock = threading.Lock()

    def run(feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        named = {}
        for name, key, detail in wanted:
            # It would change its own shapes to those it gets, and compute nonsense.
            if feeds[name].shape != tuple(detail["shape"]):
                raise ValueError(f"{name} is {list(feeds[name].shape)}, it takes {detail['shape'].tolist()}")
            # It has no integers of 64 bits.
            named[key] = np.ascontiguousarray(feeds[name], detail["dtype"]).reshape(feeds[name].shape)
        with lock:
            found = runner(**named)
        return [np.asarray(found[f"output_{index}"], tensor.dtype) for index, tensor in enumerate(spec.outputs)]

    return run


BACKEND = Backend(
    "LiteRT", _PACKAGE, lambda: release_of(_PACKAGE), _load, lambda: (RuntimeError, TypeError, ValueError), threads=True
)
