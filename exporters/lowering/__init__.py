"""Lower a traced computation to ONNX: one rule for each ATen operator, backward operators included.

The gradients that autograd recorded are lowered as they are, each as a closed formula in standard ONNX
operators, so the graph is small and runs on any stock ONNX Runtime. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from edge_sdk.errors import ExportError
from exporters.graph import Graph, Ref, TensorType
from exporters.lowering import (
    activations,
    convolution,
    elementwise,
    functions,
    indexing,
    linear,
    losses,
    normalization,
    pooling,
    positions,
    randomness,
    reductions,
    resampling,
    shapes,
)
from exporters.lowering.builder import Builder, Tensor
from exporters.lowering.site import Rule, Site

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **functions.RULES,
    **activations.RULES,
    **shapes.RULES,
    **positions.RULES,
    **indexing.RULES,
    **resampling.RULES,
    **reductions.RULES,
    **linear.RULES,
    **convolution.RULES,
    **pooling.RULES,
    **normalization.RULES,
    **losses.RULES,
    **randomness.RULES,
}
"""Every operator that can stand in a graph."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What a loss said of its target: class indices below `classes`; `ignored` marks rows left out."""

    classes: int
    ignored: int


class Lowered:
    """A computation in ONNX, from which models for some of its outputs are cut."""

    def __init__(self, graph: Graph, batch_source: str) -> None:
        """Lower every call.

        Args:
            graph: the computation.
            batch_source: the input whose first dimension is the batch.

        Raises:
            ExportError: a call has no rule, or its rule does not know its settings.
        """
        self._graph = graph
        self._builder = Builder({name: graph.types[ref] for name, ref in graph.inputs.items()}, batch_source)
        self._values: dict[Ref, Tensor] = {}
        for ref, array in graph.constants.items():
            self._values[ref] = Tensor(self._builder.constant(array), array.shape, array.dtype.name)
        for name, ref in graph.inputs.items():
            kind = graph.types[ref]
            self._values[ref] = Tensor(self._input(name), kind.shape, kind.dtype)
        for call in graph.calls:
            rule = RULES.get(call.operator)
            if rule is None:
                raise ExportError(
                    f"{call.place}operator {call.operator} cannot be exported yet",
                    hint="use another layer or activation, or add a rule for it in exporters/lowering",
                )
            results = rule(Site(self._builder, call, self._values, graph.types))
            results = results if isinstance(results, tuple) else (results,)
            for ref_or_none, result in zip(call.outputs, results, strict=True):
                if ref_or_none is not None and result is not None and ref_or_none not in self._values:
                    self._values[ref_or_none] = self._settle(ref_or_none, result)
                    self._builder.note(self._values[ref_or_none])

    def labels(self, target: str) -> Labels | None:
        """What the loss said of the input named `target`, if that holds class indices."""
        found = self._builder.classes.get(target)
        return None if found is None else Labels(*found)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The computation's inputs, in order."""
        return tuple(self._graph.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The computation's outputs, in order."""
        return tuple(self._graph.outputs)

    def input_type(self, name: str) -> TensorType:
        """The type of one of the computation's inputs."""
        return self._graph.types[self._graph.inputs[name]]

    def output_type(self, name: str) -> TensorType:
        """The type of one of the computation's outputs."""
        return self._graph.types[self._graph.outputs[name]]

    def inputs_of(self, outputs: tuple[str, ...]) -> tuple[str, ...]:
        """The inputs that some of the outputs depend on, in the computation's order."""
        values = [self._output(name) for name in outputs]
        read = self._builder.reads(values)
        return tuple(name for name in self._graph.inputs if name in read)

    def model(self, outputs: tuple[str, ...], inputs: tuple[str, ...]) -> onnx.ModelProto:
        """The ONNX model that computes these outputs from these inputs."""
        return self._builder.model({name: (self._output(name), self.output_type(name)) for name in outputs}, inputs)

    def _input(self, name: str) -> str:
        """An input; what is frozen in 8 bits is computed from its numbers and the scales of its rows."""
        numbers = name.replace("frozen:", "quantised:", 1)
        if not name.startswith("frozen:") or numbers not in self._graph.inputs:
            return name
        return self._builder.op("DequantizeLinear", numbers, name.replace("frozen:", "scale:", 1), axis=0)

    def _output(self, name: str) -> str:
        ref = self._graph.outputs[name]
        return self._builder.expand(self._values[ref], self._graph.types[ref].shape)

    def _settle(self, ref: Ref, result: str | Tensor) -> Tensor:
        if isinstance(result, Tensor):
            return result
        kind = self._graph.types[ref]
        return Tensor(result, kind.shape, kind.dtype)
