"""Write a computation for LiteRT (.tflite), for batches of one size."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from edge_sdk.errors import ExportError
from edge_sdk.training.manifest import BatchRange
from exporters.formats.program import Program, quietly
from exporters.formats.refusal import compiled
from exporters.graph import Graph


def to_litert(graph: Graph, batch_source: str | None, batch: BatchRange) -> bytes:
    """A LiteRT model with one signature: inputs args_0, args_1, ..., outputs output_0, output_1, ... in order.

    Integers of 64 bits become such of 32.

    Args:
        graph: the computation.
        batch_source: the input whose first dimension is the batch, if there is one.
        batch: its largest size is the only one that the model will take.

    Raises:
        ExportError: litert-torch is not installed, or LiteRT cannot carry an operator; it names it and where it is.
    """
    # Its converter and what that imports tell their progress otherwise.
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with quietly():
            import litert_torch
    except ImportError as error:
        raise ExportError(
            f"LiteRT's converter is not installed: {error}",
            hint="pip install 'edge-sdk[export-litert]', see docs/exporting.md",
        ) from error

    def compile_graph(part: Graph) -> bytes:
        program = Program(part, batch_source)
        with quietly(), TemporaryDirectory() as folder:
            path = Path(folder, "model.tflite")
            litert_torch.convert(program, program.examples(batch.maximum)).export(str(path))
            return path.read_bytes()

    return compiled("litert", graph, batch.maximum, compile_graph)
