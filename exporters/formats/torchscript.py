"""Write a computation as TorchScript: the recorded ATen calls as they are, backward ones too, with no autograd.

The text of one function is printed from the graph and compiled, so nothing is traced again and the batch stays
dynamic. What runs it is any LibTorch: `torch.jit.load`, or the C++ and mobile runtimes.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from edge_sdk.errors import ExportError
from exporters.graph import Argument, BatchSize, Call, DType, Graph, Ref

# Prims are written in Python for the compilers of torch 2, so no TorchScript runtime has them. A recorded view fits
# the memory of the run that was recorded, which the graph says nothing of.
_TWINS = {
    **{f"prims.{name}.default": f"aten.{name}.Tensor" for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "prims.where.default": "aten.where.self",
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
}


def to_torchscript(graph: Graph, batch_source: str | None) -> bytes:
    """A TorchScript file whose `forward(inputs: List[Tensor]) -> List[Tensor]` computes the graph.

    Inputs and outputs stand in the graph's order; `batch_source` is the input whose first dimension is the batch, if
    there is one.

    Raises:
        ExportError: TorchScript cannot hold one of the operators; it names the operator and the module.
    """
    constants = list(graph.constants)
    lines = ["def forward(inputs: List[Tensor], constants: List[Tensor]) -> List[Tensor]:"]
    lines += [f"    {_name(ref)} = inputs[{index}]" for index, ref in enumerate(graph.inputs.values())]
    lines += [f"    {_name(ref)} = constants[{index}]" for index, ref in enumerate(constants)]
    if batch_source is not None:
        lines.append(f"    batch = {_name(graph.inputs[batch_source])}.size(0)")
    lines += [f"    {_statement(call)}" for call in graph.calls]
    lines.append(f"    return [{', '.join(_name(ref) for ref in graph.outputs.values())}]\n")
    try:
        function = torch.jit.CompilationUnit("\n".join(lines)).forward
    except RuntimeError as error:
        raise ExportError(
            f"TorchScript does not take the graph: {error}",
            hint="leave torchscript out of formats, and please report the model",
        ) from error
    tensors = [torch.from_numpy(graph.constants[ref]) for ref in constants]
    return bytes(_with_constants(function.graph, tensors).save_to_buffer())


def _with_constants(program: Any, tensors: list[torch.Tensor]) -> Any:
    """A function whose second argument, a list of tensors, is built in."""
    program = program.copy()
    _, table = program.inputs()
    for read in [use.user for use in table.uses()]:
        _, index = read.inputs()
        program.setInsertPoint(read)
        read.output().replaceAllUsesWith(program.insertConstant(tensors[index.toIValue()]))
        read.destroy()
    program.eraseInput(1)
    return torch._C._create_function_from_graph("forward", program)


def _operator(call: Call) -> Any:
    namespace, name, overload = _TWINS.get(call.operator, call.operator).split(".")
    operator = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    if not torch._C._jit_get_schemas_for_operator(f"{namespace}::{name}") or namespace != "aten":
        raise ExportError(
            f"{call.place}TorchScript has no operator {call.operator}",
            hint="leave torchscript out of formats, or use another layer",
        )
    return operator


def _statement(call: Call) -> str:
    operator = _operator(call)
    schema = operator._schema
    targets = [_name(ref) if ref is not None else f"unused{index}" for index, ref in enumerate(call.outputs)]
    # One name takes a result, names with commas take a tuple or a list apart.
    many = len(schema.returns) > 1 or isinstance(schema.returns[0].type, torch.ListType)
    declared = {argument.name: argument for argument in schema.arguments}
    named = (
        zip(schema.arguments, call.arguments.values(), strict=True)
        if call.operator in _TWINS
        else ((declared[name], value) for name, value in call.arguments.items())
    )
    written = [
        (f"{argument.name}=" if argument.kwarg_only else "") + _argument(value, str(argument.type))
        for argument, value in named
    ]
    namespace, name, _ = str(operator).split(".")
    return f"{', '.join(targets)}{',' if many else ''} = torch.ops.{namespace}.{name}({', '.join(written)})"


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
            return f"[{items}]" if value else f"annotate({kind.removeprefix('Optional[').removesuffix(']')}], [])"
        case float() if not math.isfinite(value):
            return f'float("{value}")'
        case int() if "float" in kind and not isinstance(value, bool):
            return repr(float(value))
        case _:
            return repr(value)


def _name(ref: Ref) -> str:
    return f"t{ref.index}"
