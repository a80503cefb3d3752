"""Write a computation as TorchScript: the recorded ATen calls as they are, backward ones too, with no autograd.

The text of one function is printed from the graph and compiled, so nothing is traced again and the batch stays
dynamic. What runs it is any LibTorch: `torch.jit.load`, or the C++ and mobile runtimes.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from edge_sdk.errors import ExportError
from edge_sdk.training.manifest import BatchRange
from exporters import hashing
from exporters.graph import Argument, BatchSize, Call, DType, Graph, Ref

# Prims are for torch's own compilers, no TorchScript runtime has them. A recorded view fits the memory of the run that
# was recorded, of which the graph says nothing.
_TWINS = {
    **{f"prims.{name}.default": f"aten.{name}.Tensor" for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "prims.where.default": "aten.where.self",
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
}

_FUNCTIONS = f"""
def stirred(x: Tensor) -> Tensor:
    x = ((x ^ (x >> {hashing.SHIFTS[0]})) * {hashing.FACTORS[0]}) & {hashing.WORD}
    return ((x ^ (x >> {hashing.SHIFTS[1]})) * {hashing.FACTORS[1]}) & {hashing.WORD}

def keep(seed: Tensor, stride: int, size: List[int], bound: int) -> Tensor:
    mixed = stirred(seed)
    mixed = mixed ^ (mixed >> {hashing.SHIFTS[0]})
    count = 1
    for dim in size:
        count = count * dim
    x = stirred((torch.arange(count) * stride + mixed) & {hashing.WORD})
    return (torch.where(x < {2**31}, x, x - {2**32}) < bound).reshape(size)
"""


def to_torchscript(graph: Graph, batch_source: str | None, batch: BatchRange) -> bytes:
    """A TorchScript file whose `forward(inputs: List[Tensor]) -> List[Tensor]` computes the graph.

    Inputs and outputs stand in the graph's order; `batch_source` is the input whose first dimension is the batch, if
    there is one. Batches may have any size, whatever is asked for.

    Raises:
        ExportError: TorchScript has no such operator; it names the operator and where it is.
    """
    constants = list(graph.constants)
    lines = ["def forward(inputs: List[Tensor], constants: List[Tensor]) -> List[Tensor]:"]
    lines += [f"    {_name(ref)} = inputs[{index}]" for index, ref in enumerate(graph.inputs.values())]
    lines += [f"    {_name(ref)} = constants[{index}]" for index, ref in enumerate(constants)]
    if batch_source is not None:
        lines.append(f"    batch = {_name(graph.inputs[batch_source])}.size(0)")
    lines += [f"    {_statement(call)}" for call in graph.calls]
    lines.append(f"    return [{', '.join(_name(ref) for ref in graph.outputs.values())}]")
    try:
        unit = torch.jit.CompilationUnit("\n".join([_FUNCTIONS, *lines, ""]))
    except RuntimeError as error:
        raise ExportError(
            f"TorchScript does not take the graph: {error}",
            hint="leave torchscript out of the formats, and please report the model",
        ) from error
    tensors = [torch.from_numpy(graph.constants[ref]) for ref in constants]
    return bytes(_with_constants(unit.forward.graph, tensors).save_to_buffer())


def _with_constants(program: Any, tensors: list[torch.Tensor]) -> Any:
    """A function whose second argument, a list of tensors, is built in."""
    program = program.copy()
    torch._C._jit_pass_inline(program)
    _, table = program.inputs()
    for read in [use.user for use in table.uses()]:
        _, index = read.inputs()
        program.setInsertPoint(read)
        read.output().replaceAllUsesWith(program.insertConstant(tensors[index.toIValue()]))
        read.destroy()
    program.eraseInput(1)
    return torch._C._create_function_from_graph("forward", program)


def _statement(call: Call) -> str:
    match call.arguments:
        case {"seed": seed, "site": int(site), "size": size, "share": float(share)}:
            settings = (seed, hashing.stride(site), size, hashing.bound(share))
            return f"{_targets(call)} = keep({', '.join(_argument(value, 'int[]') for value in settings)})"
        case _:
            pass
    namespace, name, overload = _TWINS.get(call.operator, call.operator).split(".")
    if namespace != "aten":
        raise ExportError(
            f"{call.place}TorchScript has no operator {call.operator}",
            hint="leave torchscript out of the formats, or use another layer",
        )
    schema = getattr(getattr(torch.ops.aten, name), overload)._schema
    # A twin has the same arguments under other names.
    declared = {argument.name: argument for argument in schema.arguments}
    chosen = list(declared.values()) if call.operator in _TWINS else [declared[key] for key in call.arguments]
    written = [
        (f"{argument.name}=" if argument.kwarg_only else "") + _written(argument.name, value, str(argument.type))
        for argument, value in zip(chosen, call.arguments.values(), strict=True)
    ]
    # One name takes one result; names with commas take apart a tuple, or a list.
    many = len(schema.returns) > 1 or isinstance(schema.returns[0].type, torch.ListType)
    return f"{_targets(call)}{',' if many else ''} = torch.ops.aten.{name}({', '.join(written)})"


def _targets(call: Call) -> str:
    return ", ".join(_name(ref) if ref is not None else f"unused{index}" for index, ref in enumerate(call.outputs))


def _written(name: str, value: Argument, kind: str) -> str:
    """An argument; a number is a tensor where it is what the method is of, or would count as an integer else."""
    if (kind == "Tensor" and name == "self" and isinstance(value, int | float)) or (
        kind in ("Tensor", "number") and isinstance(value, bool)
    ):
        return f"torch.tensor({value!r})"
    return _argument(value, kind)


def _argument(value: Argument, kind: str) -> str:
    match value:
        case Ref():
            return _name(value)
        case DType():
            return f"torch.{value.name}"
        case BatchSize():
            size = f"(batch * {value.scale} + {value.offset})"
            return f"float{size}" if "float" in kind else size
        case tuple():
            items = ", ".join(_argument(item, kind) for item in value)
            # An empty list would be one of tensors.
            return f"[{items}]" if value else f"torch.jit.annotate({kind}, [])"
        case float() if not math.isfinite(value):
            return f'float("{value}")'
        case int() if "float" in kind and not isinstance(value, bool):
            return repr(float(value))
        case _:
            return repr(value)


def _name(ref: Ref) -> str:
    return f"t{ref.index}"
