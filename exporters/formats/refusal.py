"""Compile a computation and run it once; say which call cannot be carried, as compilers speak of their passes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ExportError
from edge_sdk.training.backends import BACKENDS
from edge_sdk.training.manifest import GraphSpec, Role, Runtime, TensorSpec
from exporters.graph import Call, Graph, Ref, references, subgraph


def compiled(runtime: Runtime, graph: Graph, batch: int, compile_graph: Callable[[Graph], bytes]) -> bytes:
    """What a compiler makes of a graph, and its runtime can run.

    Args:
        runtime: what it is for.
        graph: the computation.
        batch: the largest number of examples that it is compiled for.
        compile_graph: compiles it, or a part of it.

    Raises:
        ExportError: it cannot; the message names the operator and where it is.
    """
    title = BACKENDS[runtime].title

    def tried(part: Graph) -> bytes:
        content = compile_graph(part)
        spec, zeros = _on_zeros(part, batch)
        BACKENDS[runtime].load(content, spec, 1)(zeros)
        return content

    try:
        return tried(graph)
    # Compilers raise whatever their passes happen to meet.
    except Exception as whole:
        call, error = _first_refused(graph, tried, whole)
        what = f"{call.place}{title} cannot carry {call.operator}" if call else f"{title} cannot carry the graph"
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        # They begin with the line of our code that they were at.
        said = re.sub(r"^.*\berror: ", "", said).strip()
        raise ExportError(
            f"{what}: {said}", hint=f"leave {runtime} out of the formats, or use another layer"
        ) from whole


def _first_refused(graph: Graph, tried: Callable[[Graph], bytes], whole: Exception) -> tuple[Call | None, Exception]:
    """The last call of the shortest beginning that fails, with its error; no call where only the whole fails."""
    good, bad, last, found = 0, len(graph.calls) + 1, None, whole
    while bad - good > 1:
        # The longest first: where that works, no call is to blame.
        middle = (good + bad) // 2 if last else len(graph.calls)
        try:
            tried(_beginning(graph, middle))
        except Exception as error:
            bad, last, found = middle, graph.calls[middle - 1], error
        else:
            good = middle
    return last, found


def _on_zeros(graph: Graph, batch: int) -> tuple[GraphSpec, dict[str, npt.NDArray[Any]]]:
    """What a runtime must know of a graph, and inputs to try it on."""

    def spec(name: str, ref: Ref, role: Role) -> TensorSpec:
        kind = graph.types[ref]
        return TensorSpec(name, role, kind.dtype, tuple(d if isinstance(d, int) else None for d in kind.shape))

    inputs = tuple(spec(name, ref, "input") for name, ref in graph.inputs.items())
    outputs = tuple(spec(name, ref, "output") for name, ref in graph.outputs.items())
    zeros = {
        tensor.name: np.zeros([batch if dim is None else dim for dim in tensor.shape], tensor.dtype)
        for tensor in inputs
    }
    return GraphSpec("train", inputs, outputs, ()), zeros


def _beginning(graph: Graph, count: int) -> Graph:
    """A computation's first calls, whose outputs are all that they leave unread."""
    calls = graph.calls[:count]
    read = {ref for call in calls for argument in call.arguments.values() for ref in references(argument)}
    unread = [ref for call in calls for ref in call.outputs if ref is not None and ref not in read]
    outputs = {f"t{ref.index}": ref for ref in unread}
    return subgraph(Graph(graph.inputs, outputs, graph.constants, graph.types, calls), graph.inputs, outputs)
