"""A recorded computation as a torch module, for what compiles by way of torch.export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from edge_sdk.training.manifest import BatchRange
from exporters.formats.aten import run
from exporters.graph import Argument, BatchSize, DType, Graph, Ref, TensorType
from exporters.record import without_fused_kernels


class Program(torch.nn.Module):
    """A graph as a module: takes its inputs in order, and gives its outputs in order.

    `batch_source` is the input whose first dimension is the batch, if there is one.
    """

    def __init__(self, graph: Graph, batch_source: str | None) -> None:
        super().__init__()
        self._graph = graph
        self._batch_source = None if batch_source is None else list(graph.inputs).index(batch_source)
        for ref, array in graph.constants.items():
            self.register_buffer(f"c{ref.index}", torch.from_numpy(array))
        self.eval()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the graph, call by call."""
        graph = self._graph
        batch = 0 if self._batch_source is None else inputs[self._batch_source].shape[0]
        values = dict(zip(graph.inputs.values(), inputs, strict=True))
        values |= {ref: self.get_buffer(f"c{ref.index}") for ref in graph.constants}

        def resolved(argument: Argument) -> Any:
            match argument:
                case Ref():
                    return values[argument]
                case DType():
                    return getattr(torch, argument.name)
                case BatchSize():
                    return batch * argument.scale + argument.offset
                case tuple():
                    return [resolved(item) for item in argument]
                case _:
                    return argument

        for call in graph.calls:
            result = run(call.operator, {name: resolved(argument) for name, argument in call.arguments.items()})
            results = [result] if isinstance(result, torch.Tensor) else result
            values |= {ref: tensor for ref, tensor in zip(call.outputs, results, strict=True) if ref is not None}
        return tuple(values[ref] for ref in graph.outputs.values())

    def examples(self, batch: int) -> tuple[torch.Tensor, ...]:
        """Inputs of zeros, for a batch of that size."""
        return tuple(
            torch.zeros(
                [dim.scale * batch + dim.offset if isinstance(dim, BatchSize) else dim for dim in kind.shape],
                dtype=getattr(torch, kind.dtype),
            )
            for kind in self._kinds
        )

    def exported(self, batch: int, sizes: BatchRange | None = None) -> torch.export.ExportedProgram:
        """Export for batches of one size, or for all of a range with that size as the example."""
        dynamic: Any = None
        if sizes is not None and self._batch_source is not None and sizes.minimum < sizes.maximum:
            symbol = torch.export.Dim("batch", min=sizes.minimum, max=sizes.maximum)
            axes = ([axis for axis, dim in enumerate(kind.shape) if isinstance(dim, BatchSize)] for kind in self._kinds)
            dynamic = (tuple(dict.fromkeys(found, symbol) for found in axes),)
        return torch.export.export(self, self.examples(batch), dynamic_shapes=dynamic, strict=False)

    @property
    def _kinds(self) -> list[TensorType]:
        return [self._graph.types[ref] for ref in self._graph.inputs.values()]


@contextmanager
def quietly() -> Iterator[None]:
    """Compile with nothing said: what compilers have to say of themselves and of torch is not for who calls them.

    Torch is kept from choosing kernels by the size of the batch, as the export would hold for one kind of size only.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), without_fused_kernels(), torch.backends.nnpack.flags(enabled=False):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
