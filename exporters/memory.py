"""How much memory a training step takes, told from its graph: which tensors live at the same time.

Nodes are walked in the order in which ONNX Runtime runs them. What a node makes lives from there to the last node that
reads it, outputs to the end; reshapes share the memory of what they reshape. Sizes are those of ONNX's own shape
inference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, shape_inference

from edge_sdk.training.manifest import GraphSpec, Memory, TensorSpec

# Batches whose peaks are looked at: what is there anyhow, and a line through usual and large ones.
_LEAST, _USUAL, _LARGE = 1, 32, 1024

_SHARING = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")

# What ONNX Runtime takes for each byte that lives, as its arena has gaps, and before the first one. Measured on the
# models of benchmarks/step_memory.
_RUNTIME_FACTOR = 1.4
_RUNTIME_BYTES = 4 << 20


def estimate_memory(graphs: Sequence[tuple[onnx.ModelProto, GraphSpec]]) -> Memory:
    """The memory that training adds to a process which has opened its graphs and holds checkpoint and examples.

    Args:
        graphs: those that a step runs one after the other, each with what the manifest says of it. Each has an arena of
            its own, so their peaks add up.
    """
    inputs = [(tensor, {feedback.input for feedback in spec.feedback}) for _, spec in graphs for tensor in spec.inputs]
    # A step reads the state of the one before and makes the next; what else it is given is there once.
    held = sum(2 * _bytes(tensor, 0) for tensor, state in inputs if tensor.name in state)
    held += sum(_bytes(tensor, 0) for tensor, _ in inputs if tensor.role in ("correction", "gradient"))
    rows = sum(_bytes(tensor, 1) for tensor, _ in inputs if tensor.role in ("input", "target"))
    least, usual, large = (
        _RUNTIME_FACTOR * sum(_peak(model, batch) for model, _ in graphs) for batch in (_LEAST, _USUAL, _LARGE)
    )
    slope = (large - usual) / (_LARGE - _USUAL)
    held += _RUNTIME_BYTES
    return Memory(
        least_bytes=held + math.ceil(least),
        fixed_bytes=held + math.ceil(usual - slope * _USUAL),
        example_bytes=rows + math.ceil(slope),
    )


def _peak(model: onnx.ModelProto, batch: int) -> int:
    """The most bytes of results that live at the same time in a step on that many examples."""
    nodes, sizes = list(model.graph.node), _sizes(model, batch)
    outputs = {output.name for output in model.graph.output}
    owners: dict[str, str] = {}
    for node in nodes:
        if node.op_type in _SHARING and node.output[0] not in outputs:
            owners[node.output[0]] = owners.get(node.input[0], node.input[0])
    order = _run_order(nodes)
    last = {owners.get(name, name): index for index, node in enumerate(order) for name in (*node.output, *node.input)}
    last |= dict.fromkeys((owners.get(name, name) for name in outputs), len(order))
    live = peak = 0
    for index, node in enumerate(order):
        made = {name: sizes[name] for name in node.output if name and name not in owners}
        live += sum(made.values())
        peak = max(peak, live)
        touched = {owners.get(name, name) for name in (*node.input, *node.output)}
        live -= sum(sizes.get(name, 0) for name in touched if last[name] == index)
    return peak


def _run_order(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The order in which ONNX Runtime runs nodes: a search from the last result back, what was made last first."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needed = [sorted({makers[name] for name in node.input if name in makers}) for node in nodes]
    read = {maker for makers_of_one in needed for maker in makers_of_one}
    stack = [(index, False) for index in range(len(nodes)) if index not in read]
    seen: set[int] = set()
    order = []
    while stack:
        index, ready = stack.pop()
        if ready:
            order.append(nodes[index])
        elif index not in seen:
            seen.add(index)
            stack.append((index, True))
            stack += ((maker, False) for maker in needed[index] if maker not in seen)
    return order


def _sizes(model: onnx.ModelProto, batch: int) -> dict[str, int]:
    """Bytes of every node's results."""
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    for value in (*sized.graph.input, *sized.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == "batch":
                dimension.dim_value = batch
    for node in sized.graph.node:
        if node.op_type == "MaxUnpool":
            del node.input[2:]  # The size it is given is computed, which inference cannot follow.
    inferred = shape_inference.infer_shapes(sized, data_prop=True)
    sizes = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        kind = value.type.tensor_type
        if kind.elem_type and kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            itemsize = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
            sizes[value.name] = itemsize * math.prod(dimension.dim_value for dimension in kind.shape.dim)
    for node in inferred.graph.node:
        # Where inference gives up, a result is taken to be as large as what it is made of.
        for name in node.output:
            sizes.setdefault(name, max((sizes.get(source, 0) for source in node.input), default=0))
    return sizes


def _bytes(spec: TensorSpec, batch: int) -> int:
    return math.prod(batch if dim is None else dim for dim in spec.shape) * np.dtype(spec.dtype).itemsize
