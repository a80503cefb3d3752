"""Write a computation for LiteRT (.tflite), for batches of one size."""

from __future__ import annotations

import logging
import os
import re
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

from edge_sdk.errors import ExportError
from edge_sdk.training.manifest import BatchRange
from exporters.formats.program import Program, any_batch, place_of
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
    # Its converter tells its progress otherwise.
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    try:
        import litert_torch
    except ImportError as error:
        raise ExportError(
            f"LiteRT's converter is not installed: {error}", hint="pip install edge-sdk[litert], see docs/exporting.md"
        ) from error
    program = Program(graph, batch_source)
    # What the converter has to say of itself and of torch is not for who calls it.
    with warnings.catch_warnings(), any_batch(), TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        path = Path(folder, "model.tflite")
        try:
            litert_torch.convert(program, program.examples(batch.maximum)).export(str(path))
        # It raises whatever its passes happen to meet.
        except Exception as error:
            raise _refusal(program, batch.maximum, str(error)) from error
        return path.read_bytes()


def _refusal(program: Program, batch: int, message: str) -> ExportError:
    operator = re.search(r"\b(?:aten|prims)\.\w+", message) or re.search(r"\btf\.\w+", message)
    name = operator.group() if operator else "one of its operators"
    logging.getLogger(__name__).debug("LiteRT's converter: %s", message)
    return ExportError(
        f"{place_of(program.exported(batch), name)}LiteRT cannot carry {name}: {message.strip().splitlines()[0]}",
        hint="leave litert out of the formats, or use another layer",
    )
