"""Say which call of a computation a compiler cannot carry: its own errors speak of its passes."""

from __future__ import annotations

import re
from collections.abc import Callable

from edge_sdk.errors import ExportError
from edge_sdk.training.manifest import Runtime
from exporters.graph import Call, Graph, references, subgraph


def compiled(title: str, runtime: Runtime, graph: Graph, compile_graph: Callable[[Graph], bytes]) -> bytes:
    """What a compiler makes of a graph.

    Args:
        title: how people call the format.
        runtime: how an export calls it.
        graph: the computation.
        compile_graph: compiles it, or a part of it.

    Raises:
        ExportError: it cannot; the message names the operator and where it is.
    """
    try:
        return compile_graph(graph)
    # Compilers raise whatever their passes happen to meet.
    except Exception as error:
        call = _first_refused(graph, compile_graph)
        what = f"{call.place}{title} cannot carry {call.operator}" if call else f"{title} cannot carry the graph"
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        # They begin with the line of our code that they were at.
        said = re.sub(r"^.*\berror: ", "", said).strip()
        raise ExportError(
            f"{what}: {said}", hint=f"leave {runtime} out of the formats, or use another layer"
        ) from error


def _first_refused(graph: Graph, compile_graph: Callable[[Graph], bytes]) -> Call | None:
    """The last call of the shortest beginning that does not compile; None where only the whole does not."""

    def compiles(count: int) -> bool:
        try:
            compile_graph(_beginning(graph, count))
        except Exception:
            return False
        return True

    good, bad = 0, len(graph.calls)
    if compiles(bad):
        return None
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if compiles(middle) else (good, middle)
    return graph.calls[bad - 1]


def _beginning(graph: Graph, count: int) -> Graph:
    """A computation's first calls, whose outputs are all that they leave unread."""
    calls = graph.calls[:count]
    read = {ref for call in calls for argument in call.arguments.values() for ref in references(argument)}
    unread = [ref for call in calls for ref in call.outputs if ref is not None and ref not in read]
    outputs = {f"t{ref.index}": ref for ref in unread}
    return subgraph(Graph(graph.inputs, outputs, graph.constants, graph.types, calls), graph.inputs, outputs)
