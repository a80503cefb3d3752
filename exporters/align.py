"""Lay two recordings of one function, on batches of two sizes, over each other: what differs follows the batch.

Equal numbers are constants, others a multiple of the batch size plus an offset; a tensor that depends on no input
and is the same in both is a constant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest

import torch

from edge_sdk.errors import ExportError
from exporters.graph import Argument, BatchSize, Call, Dim, Graph, Ref, TensorType, live_calls

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
}


@dataclass(slots=True)
class Value:
    """A tensor seen while running, kept alive so that its identity stays its own, and what it then was."""

    tensor: torch.Tensor
    shape: tuple[int, ...]
    constant: torch.Tensor | None
    """Its values, where they depend on no input."""


@dataclass(slots=True)
class Recording:
    """One run: its values by number, its calls, and the numbers of its inputs and outputs."""

    values: list[Value] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    inputs: dict[str, Ref] = field(default_factory=dict)
    outputs: dict[str, Ref] = field(default_factory=dict)


def merge(one: Recording, two: Recording, sizes: tuple[int, int]) -> Graph:
    """Lay two runs over each other: equal numbers are constants, others follow the batch size.

    Raises:
        ExportError: they differ in more than sizes; it names the first operator that does.
    """
    for here, there in zip_longest(one.calls, two.calls):
        if here is None or there is None or here.operator != there.operator:
            found = [call for call in (here, there) if call is not None]
            raise _depends(f"{found[0].place}which operator runs ({' or '.join(call.operator for call in found)})")
    calls = tuple(
        Call(
            first.operator,
            {
                name: _merge_argument(first.arguments[name], second.arguments[name], sizes, first)
                for name in first.arguments
            },
            first.outputs,
            first.place,
        )
        for first, second in zip(one.calls, two.calls, strict=True)
    )
    makers = {ref: call for call in calls for ref in call.outputs}
    types, constants = {}, {}
    for index, (a, b) in enumerate(zip(one.values, two.values, strict=True)):
        maker = makers.get(Ref(index))
        if len(a.shape) != len(b.shape):
            raise _depends(f"{maker.place if maker else ''}the number of a tensor's dimensions")
        shape = tuple(_merge_size(m, n, sizes, maker) for m, n in zip(a.shape, b.shape, strict=True))
        types[Ref(index)] = TensorType(shape, DTYPE_NAMES[a.tensor.dtype])
        if a.constant is not None and b.constant is not None and _equal(a.constant, b.constant):
            constants[Ref(index)] = a.constant.detach().contiguous().numpy()
    kept = tuple(call for call in calls if any(ref and ref not in constants for ref in call.outputs))
    graph = Graph(one.inputs, one.outputs, constants, types, kept)
    return Graph(one.inputs, one.outputs, constants, types, live_calls(graph))


def _merge_argument(a: Argument, b: Argument, sizes: tuple[int, int], call: Call) -> Argument:
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        return tuple(_merge_argument(x, y, sizes, call) for x, y in zip(a, b, strict=True))
    if type(a) is type(b) and (a == b or (a != a and b != b)):  # NaN is not itself.
        return a
    if type(a) is int and type(b) is int:
        return _merge_size(a, b, sizes, call)
    if isinstance(a, float) and isinstance(b, float) and a.is_integer() and b.is_integer():
        return _merge_size(int(a), int(b), sizes, call)
    raise _depends(f"{call.place}an argument of {call.operator}")


def _merge_size(a: int, b: int, sizes: tuple[int, int], call: Call | None) -> Dim:
    if a == b:
        return a
    scale, rest = divmod(b - a, sizes[1] - sizes[0])
    if rest:
        raise _depends(f"{call.place}a size in {call.operator}" if call else "a size")
    return BatchSize(scale, a - scale * sizes[0])


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a, b))


def _depends(what: str) -> ExportError:
    return ExportError(
        f"{what} depends on the batch size in a way that a graph with a dynamic batch cannot follow",
        hint="let every example be computed in the same way, whatever the number of examples",
    )
