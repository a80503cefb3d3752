"""A traced computation as plain values: ATen calls on numbered tensors, whose batch size is a symbol.

What `record` makes and `lowering` reads. Knows neither torch nor ONNX.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class BatchSize:
    """A number that depends on the batch: scale * batch + offset."""

    scale: int
    offset: int


Dim: TypeAlias = int | BatchSize
Shape: TypeAlias = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor, by its number."""

    index: int


@dataclass(frozen=True, slots=True)
class DType:
    """An element type as an argument, by its numpy name."""

    name: str


Argument: TypeAlias = Ref | DType | BatchSize | int | float | bool | str | tuple["Argument", ...] | None


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor's shape and its element type's numpy name."""

    shape: Shape
    dtype: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where an operator comes from: the model's module, as in "1 (Conv2d)", and the line of code; or empty."""

    module: str
    source: str

    def __str__(self) -> str:
        """The beginning of a message, as in "in 1 (Conv2d), net.py:12 `y = self.conv(x)`: "."""
        known = [text for text in (self.module, self.source) if text]
        return f"in {', '.join(known)}: " if known else ""


@dataclass(frozen=True, slots=True)
class Call:
    """One ATen operator: its full name, every argument by its schema name, its results, and where it is.

    An output is None where the operator gave none (a gradient that was not asked for).
    """

    operator: str
    arguments: Mapping[str, Argument]
    outputs: tuple[Ref | None, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole computation: named inputs and outputs, constants, and calls in order."""

    inputs: Mapping[str, Ref]
    outputs: Mapping[str, Ref]
    constants: Mapping[Ref, npt.NDArray[Any]]
    types: Mapping[Ref, TensorType]
    calls: tuple[Call, ...]


def references(argument: Argument) -> Iterator[Ref]:
    """Every tensor in an argument."""
    if isinstance(argument, Ref):
        yield argument
    elif isinstance(argument, tuple):
        for item in argument:
            yield from references(item)


def live_calls(graph: Graph) -> tuple[Call, ...]:
    """The calls that some output needs, in order."""
    needed = set(graph.outputs.values())
    kept = []
    for call in reversed(graph.calls):
        if needed.intersection(call.outputs):
            needed.update(ref for argument in call.arguments.values() for ref in references(argument))
            kept.append(call)
    return tuple(reversed(kept))


def subgraph(graph: Graph, inputs: Iterable[str], outputs: Iterable[str]) -> Graph:
    """The part of a computation that gives these outputs, with these inputs and the constants that it reads."""
    part = Graph(
        {name: graph.inputs[name] for name in inputs},
        {name: graph.outputs[name] for name in outputs},
        graph.constants,
        graph.types,
        graph.calls,
    )
    calls = live_calls(part)
    read = {ref for call in calls for argument in call.arguments.values() for ref in references(argument)}
    read.update(part.outputs.values())
    constants = {ref: array for ref, array in graph.constants.items() if ref in read}
    return Graph(part.inputs, part.outputs, constants, graph.types, calls)


def dequantised(graph: Graph) -> Graph:
    """With what is frozen in 8 bits computed from its numbers and the scales of its rows, where these are inputs."""
    types, inputs, calls = dict(graph.types), dict(graph.inputs), []

    def call(operator: str, kind: TensorType, **arguments: Argument) -> Ref:
        ref = Ref(len(types))
        types[ref] = kind
        calls.append(Call(operator, arguments, (ref,), Place("", "")))
        return ref

    for name, numbers in graph.inputs.items():
        if not name.startswith("quantised:"):
            continue
        key = name.removeprefix("quantised:")
        kind, scale = types[inputs[f"frozen:{key}"]], inputs[f"scale:{key}"]
        column = (*kind.shape[:1], *[1] * (len(kind.shape) - 1))
        scales = call("aten.view.default", TensorType(column, kind.dtype), self=scale, size=column)
        values = call("aten._to_copy.default", kind, self=numbers, dtype=DType(kind.dtype))
        product = {"self": values, "other": scales}
        calls.append(Call("aten.mul.Tensor", product, (inputs.pop(f"frozen:{key}"),), Place("", "")))
    return Graph(inputs, graph.outputs, graph.constants, types, (*calls, *graph.calls))
