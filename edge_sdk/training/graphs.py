"""A bundle's graphs, open: each once for a bundle, a runtime and a process, and shared by all who use it."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ArtifactError, ConfigError, TrainingError
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.backends import BACKENDS
from edge_sdk.training.backends.backend import Backend, Run
from edge_sdk.training.manifest import FormatSpec, GraphKind, GraphSpec, Runtime

_CACHED_GRAPHS = 32
_LARGE_BYTES = 16 << 20

_cache: OrderedDict[tuple[bytes, GraphKind, Runtime, int], OpenGraph] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class OpenGraph:
    """One graph ready to run, with the frozen parameters that it is always fed."""

    spec: GraphSpec
    constants: Mapping[str, npt.NDArray[Any]] = field(repr=False)
    _backend: Backend = field(repr=False)
    _run: Run = field(repr=False)

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Run with every input fed; give the outputs in the order of `spec.outputs`.

        Raises:
            TrainingError: the runtime refused the inputs or failed.
        """
        try:
            return self._run(feeds)
        except self._backend.failures() as error:
            raise TrainingError(
                f"{self._backend.title} could not run the {self.spec.kind} graph: {error}",
                hint="check that the examples are like those the model was exported for",
            ) from error


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


def open_graph(artifact: Artifact, kind: GraphKind, runtime: Runtime = "onnx", threads: int = 1) -> OpenGraph:
    """Open a graph of a bundle, or give the one that this process has open.

    Raises:
        ArtifactError: the signature was not checked, the bundle lacks the runtime's format, or the runtime is missing,
            too old, or cannot load the graph.
    """
    artifact.require_verified()
    key = (artifact.sha256, kind, runtime, threads)
    with _lock:
        graph = _cache.get(key)
        if graph is None:
            graph = _cache[key] = _open(artifact, kind, runtime, threads)
            if len(_cache) > _CACHED_GRAPHS:
                _cache.popitem(last=False)
        else:
            _cache.move_to_end(key)
    return graph


def close_large(artifact: Artifact) -> None:
    """Close the training graphs of a large model until they are needed again; whoever still runs one is not disturbed.

    An open graph keeps the memory of a step, several times the parameters; to open it again takes less than a step.
    """
    if 4 * artifact.layout.size < _LARGE_BYTES:
        return
    with _lock:
        for key in [key for key in _cache if key[0] == artifact.sha256 and key[1] != "infer"]:
            del _cache[key]


def _open(artifact: Artifact, kind: GraphKind, runtime: Runtime, threads: int) -> OpenGraph:
    check_runtime(artifact.manifest.format(runtime))
    spec = artifact.manifest.graph(kind)
    names = {tensor.name for tensor in spec.inputs if tensor.role == "frozen"}
    constants = {name: tensor for name, tensor in artifact.frozen().items() if name in names}
    return load_graph(runtime, artifact.part(spec.part(runtime)), spec, constants, threads)


def load_graph(
    runtime: Runtime, content: bytes, spec: GraphSpec, constants: Mapping[str, npt.NDArray[Any]], threads: int = 1
) -> OpenGraph:
    """Open a graph that may be in no bundle yet; exporters certify it this way.

    Raises:
        ArtifactError: the runtime is missing, or cannot load it.
    """
    backend, version = BACKENDS[runtime], installed_version(runtime)
    try:
        return OpenGraph(spec, constants, backend, backend.load(content, spec, threads))
    except backend.failures() as error:
        raise ArtifactError(
            f"{backend.title} {version} cannot load the {spec.kind} graph: {error}",
            hint=f"update {backend.package}, or export the model again with the current exporter",
        ) from error


def check_threads(runtime: Runtime, threads: int) -> None:
    """Refuse a number of threads that the runtime cannot be kept to.

    Raises:
        ConfigError: it names those that can.
    """
    if threads != 1 and not BACKENDS[runtime].threads:
        able = ", ".join(name for name, backend in BACKENDS.items() if backend.threads)
        raise ConfigError(f"{runtime} cannot be kept to {threads} threads", hint=f"leave threads out, or use {able}")


def check_runtime(needed: FormatSpec) -> None:
    """Refuse a format whose runtime is missing or older than the bundle needs.

    Raises:
        ArtifactError: it names both versions.
    """
    backend, installed = BACKENDS[needed.name], installed_version(needed.name)
    if _numbers(installed) < _numbers(needed.oldest):
        raise ArtifactError(
            f"the bundle needs {backend.title} {needed.oldest}, this device has {installed}",
            hint=f"install {backend.package}>={needed.oldest}",
        )


def installed_version(runtime: Runtime) -> str:
    """The installed runtime's version.

    Raises:
        ArtifactError: there is none.
    """
    backend = BACKENDS[runtime]
    try:
        return backend.version()
    except ImportError as error:
        raise ArtifactError(
            f"the runtime {runtime} needs {backend.package}, which is not installed",
            hint=f"pip install {backend.package}, or use onnx",
        ) from error


def runtime_name(runtime: Runtime) -> str:
    """The runtime with its version, such as "onnxruntime 1.31.1".

    Raises:
        ArtifactError: it is not installed.
    """
    return f"{BACKENDS[runtime].package} {installed_version(runtime)}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
