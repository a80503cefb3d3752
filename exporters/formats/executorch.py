"""Write a computation for ExecuTorch (.pte), with its portable kernels."""

from __future__ import annotations

import torch

from edge_sdk.errors import ExportError
from edge_sdk.training.manifest import BatchRange
from exporters.formats.program import Program, quietly
from exporters.formats.refusal import compiled
from exporters.graph import Graph


def to_executorch(graph: Graph, batch_source: str | None, batch: BatchRange) -> bytes:
    """An ExecuTorch program whose method `forward` takes the graph's inputs in order, and gives its outputs in order.

    Memory for the largest batch is set aside when it is loaded.

    Args:
        graph: the computation.
        batch_source: the input whose first dimension is the batch, if there is one.
        batch: the sizes of batches that it will take.

    Raises:
        ExportError: executorch is not installed, or it cannot carry an operator; it names it and where it is.
    """
    try:
        with quietly():
            from executorch.exir import EdgeCompileConfig, to_edge
            from executorch.runtime import Runtime
    except ImportError as error:
        raise ExportError(
            f"ExecuTorch is not installed: {error}",
            hint="pip install 'edge-sdk[export,executorch]', see docs/exporting.md",
        ) from error
    kernels = Runtime.get().operator_registry.operator_names

    def compile_graph(part: Graph) -> bytes:
        with quietly():
            exported = Program(part, batch_source).exported(_hint(batch), batch)
            # Its check of what may stand in a graph knows operators of inference only.
            edge = to_edge(exported, compile_config=EdgeCompileConfig(_check_ir_validity=False))
            program = edge.to_executorch()
        for node in program.exported_program().graph.nodes:
            kernel = node.target.name() if isinstance(node.target, torch._ops.OpOverload) else ""  # type: ignore[no-untyped-call]
            if kernel and kernel not in kernels:
                raise LookupError(f"it has no kernel for {kernel}")
        return bytes(program.buffer)

    return compiled("executorch", graph, batch.maximum, compile_graph)


def _hint(batch: BatchRange) -> int:
    """A size to trace with that nothing else in the model is likely to have."""
    return min(max(batch.minimum, 7), batch.maximum)
