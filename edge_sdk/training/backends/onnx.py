"""Stock ONNX Runtime, what every device has."""

from __future__ import annotations

from typing import Any

from edge_sdk.training.backends.backend import Backend, Run
from edge_sdk.training.manifest import GraphSpec


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _load(content: bytes, spec: GraphSpec, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # A step's memory planned as one block would come on top of what the first step took: twice as much, and no faster.
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # Its errors are raised here too, and printed by whoever catches them.
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()], [tensor.name for tensor in session.get_outputs()]
    said = [tensor.name for tensor in spec.inputs], [tensor.name for tensor in spec.outputs]
    if names != said:
        raise ValueError("its inputs and outputs are not those of the manifest")
    run: Any = session.run
    return lambda feeds: list(run(None, feeds))


def _failures() -> tuple[type[Exception], ...]:
    # They share no base but Exception.
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoModel,
        state.NotImplemented,
        state.RuntimeException,
        state.EPFail,
        RuntimeError,
        ValueError,
    )


BACKEND = Backend("ONNX Runtime", "onnxruntime", _version, _load, _failures, threads=True)
