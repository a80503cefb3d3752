"""Write a computation for ExecuTorch (.pte), with its portable kernels."""

from __future__ import annotations

import warnings

import torch

from edge_sdk.errors import ExportError
from edge_sdk.training.manifest import BatchRange
from exporters.formats.program import Program, any_batch, place_of
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
        from executorch.exir import EdgeCompileConfig, to_edge
        from executorch.runtime import Runtime
    except ImportError as error:
        raise ExportError(
            f"ExecuTorch is not installed: {error}", hint="pip install edge-sdk[executorch], see docs/exporting.md"
        ) from error
    program = Program(graph, batch_source)
    # What the compiler has to say of itself and of torch is not for who calls it.
    with warnings.catch_warnings(), any_batch():
        warnings.simplefilter("ignore")
        exported = program.exported(_hint(batch), batch)
        try:
            # Its check of what may stand in a graph knows operators of inference only.
            edge = to_edge(exported, compile_config=EdgeCompileConfig(_check_ir_validity=False))
            compiled = edge.to_executorch()
        # It raises whatever its passes happen to meet.
        except Exception as error:
            raise ExportError(
                f"ExecuTorch cannot carry the graph: {error}",
                hint="leave executorch out of the formats, and please report the model",
            ) from error
    kernels = Runtime.get().operator_registry.operator_names
    for node in compiled.exported_program().graph.nodes:
        kernel = node.target.name() if isinstance(node.target, torch._ops.OpOverload) else ""  # type: ignore[no-untyped-call]
        if kernel and kernel not in kernels:
            name = ".".join(kernel.replace("::", ".").split(".")[:2])
            raise ExportError(
                f"{place_of(exported, name)}ExecuTorch has no kernel for {name}",
                hint="leave executorch out of the formats, or use another layer",
            )
    return bytes(compiled.buffer)


def _hint(batch: BatchRange) -> int:
    """A size to trace with that nothing else in the model is likely to have."""
    return min(max(batch.minimum, 7), batch.maximum)
