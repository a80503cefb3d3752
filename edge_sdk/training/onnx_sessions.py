"""A bundle's graphs, opened on stock ONNX Runtime: one session per graph and process, single-threaded.

The only importer of onnxruntime; the import is lazy. Sessions are shared by all users of a bundle in a
process, which is safe since running one does not change it.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ArtifactError, TrainingError
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.manifest import GraphKind, GraphSpec, Requirements
from edge_sdk.training.torchscript_sessions import load_torchscript, torch_version

_CACHED_GRAPHS = 32

Runtime = Literal["onnx", "torchscript"]
"""What runs a bundle's graphs: ONNX Runtime, or torch where it is installed and the bundle has TorchScript."""

_cache: OrderedDict[tuple[bytes, GraphKind, Runtime], OpenGraph] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class OnnxGraph:
    """One graph ready to run, with the frozen parameters that it is always fed."""

    spec: GraphSpec
    constants: Mapping[str, npt.NDArray[Any]] = field(repr=False)
    _session: Any = field(repr=False)

    def run(self, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Run with every input of the graph fed; give its outputs in the order of `spec.outputs`.

        Raises:
            TrainingError: the runtime refused the inputs or failed.
        """
        try:
            outputs: list[npt.NDArray[Any]] = self._session.run(None, feeds)
        except _runtime_errors() as error:
            raise TrainingError(
                f"ONNX Runtime could not run the {self.spec.kind} graph: {error}",
                hint="check that the examples are like those the model was exported for",
            ) from error
        return outputs


class OpenGraph(Protocol):
    """One graph ready to run, on whichever runtime, with the frozen parameters that it is always fed."""

    @property
    def spec(self) -> GraphSpec:
        """What the manifest says of it."""
        ...

    @property
    def constants(self) -> Mapping[str, npt.NDArray[Any]]:
        """What it is always fed, by name."""
        ...

    def run(self, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Run with every input fed; give the outputs in the order of `spec.outputs`.

        Raises:
            TrainingError: the runtime refused the inputs or failed.
        """
        ...


def initial_feeds(graph: OpenGraph, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """What to feed besides examples and rate: those of `tensors` that it takes, what is frozen, the rest zero."""
    feeds: dict[str, npt.NDArray[Any]] = {**graph.constants}
    for tensor in graph.spec.inputs:
        if tensor.name in tensors:
            feeds[tensor.name] = tensors[tensor.name]
        elif tensor.role in ("slot", "proximal", "correction"):
            feeds[tensor.name] = np.zeros([dimension or 0 for dimension in tensor.shape], tensor.dtype)
    return feeds


def run_named(graph: OpenGraph, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Run with those of the feeds that the graph takes; give its outputs by name.

    Raises:
        TrainingError: the runtime refused the inputs or failed.
    """
    outputs = graph.run({spec.name: feeds[spec.name] for spec in graph.spec.inputs})
    return {spec.name: value for spec, value in zip(graph.spec.outputs, outputs, strict=True)}


def open_graph(artifact: Artifact, kind: GraphKind, runtime: Runtime = "onnx") -> OpenGraph:
    """Open a graph of a bundle, or give the one that this process has open.

    Raises:
        ArtifactError: the signature was not checked, the runtime is too old, or it cannot load the graph.
    """
    artifact.require_verified()
    key = (artifact.sha256, kind, runtime)
    with _lock:
        graph = _cache.get(key)
        if graph is None:
            graph = _cache[key] = _load(artifact, kind, runtime)
            if len(_cache) > _CACHED_GRAPHS:
                _cache.popitem(last=False)
        else:
            _cache.move_to_end(key)
    return graph


def _load(artifact: Artifact, kind: GraphKind, runtime: Runtime) -> OpenGraph:
    spec = artifact.manifest.graph(kind)
    names = {tensor.name for tensor in spec.inputs if tensor.role == "frozen"}
    constants = {name: tensor for name, tensor in artifact.frozen().items() if name in names}
    if runtime == "torchscript":
        return load_torchscript(artifact.part(graph_part(spec, runtime)), spec, constants)
    check_runtime(artifact.manifest.requirements)
    return OnnxGraph(spec, constants, _session(artifact.part(spec.part), spec))


def graph_part(spec: GraphSpec, runtime: Runtime) -> str:
    """The part that holds a graph for a runtime."""
    return spec.part if runtime == "onnx" else f"{spec.kind}.ts"


def runtime_name(runtime: Runtime) -> str:
    """The runtime with its version, such as "onnxruntime 1.31.1"."""
    return f"onnxruntime {runtime_version()}" if runtime == "onnx" else f"torch {torch_version()}"


def load_model(content: bytes, spec: GraphSpec, constants: Mapping[str, npt.NDArray[Any]]) -> OnnxGraph:
    """Open an ONNX model that is in no bundle yet; exporters certify it this way.

    Raises:
        ArtifactError: the runtime cannot load it.
    """
    return OnnxGraph(spec, constants, _session(content, spec))


def check_runtime(requirements: Requirements) -> None:
    """Refuse a bundle that needs a newer ONNX Runtime than the one installed.

    Raises:
        ArtifactError: it names both versions.
    """
    installed = runtime_version()
    if _version(installed) < _version(requirements.onnxruntime):
        raise ArtifactError(
            f"the bundle needs ONNX Runtime {requirements.onnxruntime}, this device has {installed}",
            hint=f"install onnxruntime>={requirements.onnxruntime}",
        )


def runtime_version() -> str:
    """The installed ONNX Runtime's version."""
    import onnxruntime

    return str(onnxruntime.__version__)


def _session(content: bytes, spec: GraphSpec) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # A step's memory planned as one block would come on top of what the first step took: twice as much, and no faster.
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # Its errors are raised here too, and printed by whoever catches them.
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except _runtime_errors() as error:
        raise ArtifactError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load the {spec.kind} graph: {error}",
            hint="update onnxruntime, or export the model again with the current exporter",
        ) from error
    names = [tensor.name for tensor in session.get_inputs()], [tensor.name for tensor in session.get_outputs()]
    said = [tensor.name for tensor in spec.inputs], [tensor.name for tensor in spec.outputs]
    if names != said:
        raise ArtifactError(
            f"the {spec.kind} graph's inputs and outputs are not those of the manifest",
            hint="export the model again",
        )
    return session


def _runtime_errors() -> tuple[type[Exception], ...]:
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


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])
