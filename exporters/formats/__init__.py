"""Other formats than ONNX for the graphs of a bundle: the recorded ATen calls, written for other runtimes.

What compiles for batches of fixed size, or sets memory aside for the largest, gets the size that the export says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge_sdk.training.manifest import BatchRange, Runtime
from exporters.formats.executorch import to_executorch
from exporters.formats.litert import to_litert
from exporters.formats.torchscript import to_torchscript
from exporters.graph import Graph


@dataclass(frozen=True, slots=True)
class Format:
    """How to write one format.

    Attributes:
        write: turns a computation into its part's bytes; gets the name of the input whose first dimension is the
            batch, None where there is none, and the batches to take.
        batch: what it can take of the model's batches, when compiled for one size.
        tools: the packages that make and run it.
    """

    write: Callable[[Graph, str | None, BatchRange], bytes]
    batch: Callable[[BatchRange, int], BatchRange]
    tools: tuple[str, ...]


FORMATS: dict[Runtime, Format] = {
    "torchscript": Format(to_torchscript, lambda batch, size: batch, ("torch",)),
    "litert": Format(to_litert, lambda batch, size: BatchRange(size, size), ("litert-torch", "ai-edge-litert")),
    "executorch": Format(to_executorch, lambda batch, size: BatchRange(batch.minimum, size), ("executorch",)),
}
