"""Builds an ONNX graph node by node, never the same node twice, and keeps only what its outputs need.

Knows ONNX and nothing of ATen or torch. Names of values are strings; shapes are known for what rules pass in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from exporters.graph import BatchSize, Dim, Shape, TensorType

OPSET = 18
IR_VERSION = 8
MINIMUM_ONNXRUNTIME = "1.19.2"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value of the ONNX graph, with the shape and dtype it has there."""

    name: str
    shape: Shape
    dtype: str


@dataclass(frozen=True, slots=True)
class _Node:
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, Any], ...]


class Builder:
    """Collects nodes and constants; `batch_source` is the input whose first dimension is the batch."""

    def __init__(self, inputs: Mapping[str, TensorType], batch_source: str) -> None:
        self.classes: dict[str, tuple[int, int]] = {}
        """Values that a loss takes for class indices: how many classes, and the label it ignores."""
        self._inputs = inputs
        self._batch_source = batch_source
        self._nodes: dict[tuple[Any, ...], _Node] = {}
        self._producers: dict[str, _Node] = {}
        self._shapes: dict[str, Shape] = {name: kind.shape for name, kind in inputs.items()}
        self._products: dict[str, bool] = {}
        self._constants: dict[str, npt.NDArray[Any]] = {}
        self._constant_names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, or find the equal one; "" stands for an input left out."""
        return self.op_many(operator, 1, *inputs, **attributes)[0]

    def op_many(self, operator: str, outputs: int, *inputs: str, **attributes: Any) -> tuple[str, ...]:
        """Add a node with several outputs, or find the equal one."""
        settled = tuple(
            sorted(
                (key, tuple(value) if isinstance(value, list | tuple) else value) for key, value in attributes.items()
            )
        )
        key = (operator, inputs, settled, outputs)
        node = self._nodes.get(key)
        if node is None:
            first = len(self._producers)
            node = _Node(operator, inputs, tuple(f"t{first + i}" for i in range(outputs)), settled)
            self._nodes[key] = node
            for name in node.outputs:
                self._producers[name] = node
        return node.outputs

    def constant(self, value: npt.NDArray[Any]) -> str:
        """Add a constant, or find the equal one."""
        key = (value.dtype.name, value.shape, value.tobytes())
        name = self._constant_names.get(key)
        if name is None:
            name = self._constant_names[key] = f"c{len(self._constants)}"
            self._constants[name] = np.array(value)
        return name

    def constant_value(self, name: str) -> npt.NDArray[Any] | None:
        """The constant of that name, if it is one."""
        return self._constants.get(name)

    def scalar(self, value: float, dtype: str) -> str:
        """A 0-D constant."""
        return self.constant(np.array(value, np.dtype(dtype)))

    def int64s(self, values: Iterable[int]) -> str:
        """A 1-D int64 constant."""
        return self.constant(np.array(list(values), np.int64))

    def size(self, dim: Dim, dtype: str) -> str:
        """A size as a 0-D value of that dtype."""
        if isinstance(dim, int):
            return self.scalar(dim, dtype)
        value = self.op("Squeeze", self._batch())
        if dtype != "int64":
            value = self.op("Cast", value, to=onnx_dtype(dtype))
        if dim.scale != 1:
            value = self.op("Mul", value, self.scalar(dim.scale, dtype))
        return self.op("Add", value, self.scalar(dim.offset, dtype)) if dim.offset else value

    def sizes(self, shape: Shape) -> str:
        """A shape as a 1-D int64 value."""
        if all(isinstance(dim, int) for dim in shape):
            return self.int64s(dim for dim in shape if isinstance(dim, int))
        parts = [self.int64s([dim]) if isinstance(dim, int) else self._batch_multiple(dim) for dim in shape]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def note(self, tensor: Tensor) -> None:
        """Remember a value's shape, so that reshaping it to that is nothing."""
        self._shapes.setdefault(tensor.name, tensor.shape)

    def reshape(self, name: str, shape: Shape) -> str:
        """Reshape; reshapes in a row become one, or none."""
        producer = self._producers.get(name)
        if producer is not None and producer.operator == "Reshape":
            name = producer.inputs[0]
        if self._shapes.get(name) == shape:
            return name
        symbolic = sum(isinstance(dim, BatchSize) for dim in shape)
        if symbolic == 1:
            target = self.int64s(dim if isinstance(dim, int) else -1 for dim in shape)
        else:
            target = self.sizes(shape)
        return self.op("Reshape", name, target)

    def transpose(self, name: str, order: Sequence[int]) -> str:
        """Permute dimensions; transposes in a row become one, or none."""
        producer = self._producers.get(name)
        if producer is not None and producer.operator == "Transpose":
            inner = dict(producer.attributes)["perm"]
            name, order = producer.inputs[0], [inner[axis] for axis in order]
        if list(order) == list(range(len(order))):
            return name
        return self.op("Transpose", name, perm=tuple(order))

    def transposed(self, name: str) -> tuple[str, bool]:
        """Look through a 2-D transpose: the matrix behind a value, and whether it is turned."""
        producer = self._producers.get(name)
        if producer is None or producer.operator != "Transpose" or dict(producer.attributes)["perm"] != (1, 0):
            return name, False
        return producer.inputs[0], True

    def inputs_of(self, name: str, operator: str) -> tuple[str, ...] | None:
        """What a value is computed from, if by that operator."""
        producer = self._producers.get(name)
        return producer.inputs if producer is not None and producer.operator == operator else None

    def attributes_of(self, name: str) -> dict[str, Any]:
        """The attributes of the node that makes a value; none of what is given."""
        return dict(self._producers[name].attributes) if name in self._producers else {}

    def shape_of(self, name: str) -> Shape | None:
        """A value's shape, if it was noted."""
        return self._shapes.get(name)

    def scattered(self, name: str, axis: int) -> tuple[str, str] | None:
        """Positions along an axis and values that were put into zeros to make a value, if it was made so."""
        producer = self._producers.get(name)
        if producer is None or producer.operator != "ScatterElements" or dict(producer.attributes) != {"axis": axis}:
            return None
        zeros, positions, values = producer.inputs
        expanded = self.inputs_of(zeros, "Expand")
        filling = None if expanded is None else self.constant_value(expanded[0])
        return None if filling is None or filling.any() else (positions, values)

    def origin(self, name: str) -> str:
        """The value that this one is merely another shape of."""
        producer = self._producers.get(name)
        while producer is not None and producer.operator in ("Reshape", "Transpose"):
            name = producer.inputs[0]
            producer = self._producers.get(name)
        return name

    def is_product(self, name: str) -> bool:
        """Whether a value is a matrix product or a convolution, or follows from some by sums, masks and moves alone."""
        found = self._products.get(name)
        if found is None:
            node = self._producers.get(name)
            found = self._products[name] = node is not None and self._gives_product(node)
        return found

    def _gives_product(self, node: _Node) -> bool:
        match node.operator:
            case "Conv" | "ConvTranspose" | "Gemm" | "MatMul":
                return True
            case "Add" | "Sub":
                return all(self.is_product(name) for name in node.inputs)
            case "Expand" | "MaxUnpool" | "Pad" | "Reshape" | "Resize" | "Slice" | "Transpose":
                return self.is_product(node.inputs[0])
            case "Mul":
                factor, other = sorted(node.inputs, key=self.is_product)
                steep = factor in self._constants or self.inputs_of(factor, "HardSigmoid") is not None
                return (steep or self.masked(node.outputs[0]) is not None) and self.is_product(other)
            case _:
                return False

    def masked(self, name: str) -> tuple[str, str] | None:
        """A condition and the values that a product keeps where it holds, if a value is such a product."""
        factors = self.inputs_of(name, "Mul")
        for factor, other in (factors, factors[::-1]) if factors is not None else ():
            cast = self.inputs_of(factor, "Cast")
            if cast is not None and self._producers[cast[0]].operator in ("And", "Equal"):
                return cast[0], other
        return None

    def expand(self, tensor: Tensor, shape: Shape) -> str:
        """Repeat a tensor along its dimensions of size one until it has that shape."""
        return tensor.name if tensor.shape == shape else self.op("Expand", tensor.name, self.sizes(shape))

    def cast(self, name: str, source: str, target: str) -> str:
        """Convert from one dtype to another."""
        return name if source == target else self.op("Cast", name, to=onnx_dtype(target))

    def model(self, outputs: Mapping[str, tuple[str, TensorType]], inputs: Sequence[str]) -> onnx.ModelProto:
        """Make the model that computes `outputs` (name -> value and type) from `inputs`, and no more.

        Nodes that no output needs are left out, and all names are given anew, in order.
        """
        needed = {value for value, _ in outputs.values()}
        nodes = []
        for node in reversed(self._nodes.values()):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                nodes.append(node)
        nodes.reverse()
        names: dict[str, str] = {"": ""} | {name: name for name in self._inputs}
        initializers: list[onnx.TensorProto] = []
        for value, array in self._constants.items():
            if value in needed:
                names[value] = f"c{len(initializers)}"
                initializers.append(numpy_helper.from_array(array, names[value]))
        for name, (value, _) in outputs.items():
            # A value that is an input, a constant or an output already is copied below instead.
            if value in self._producers and value not in names:
                names[value] = name
        for node in nodes:
            for value in node.outputs:
                names.setdefault(value, f"t{len(names)}")
        protos = [
            helper.make_node(
                node.operator,
                [names[value] for value in node.inputs],
                _outputs(node, names, needed),
                **dict(node.attributes),
            )
            for node in nodes
        ]
        protos += [
            helper.make_node("Identity", [names[value]], [name])
            for name, (value, _) in outputs.items()
            if names[value] != name
        ]
        for index, proto in enumerate(protos):
            # Some runtimes fuse nodes by name, and take nodes without one for the same.
            proto.name = f"n{index}"
        graph = helper.make_graph(
            protos,
            "graph",
            [_value_info(name, self._inputs[name]) for name in inputs],
            [_value_info(name, kind) for name, (_, kind) in outputs.items()],
            initializers,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="edge-sdk"
        )

    def reads(self, outputs: Iterable[str]) -> set[str]:
        """Names of the graph's inputs that some of these values depend on."""
        needed = set(outputs)
        for node in reversed(self._nodes.values()):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
        return needed.intersection(self._inputs)

    def _batch(self) -> str:
        return self.op("Shape", self._batch_source, start=0, end=1)

    def _batch_multiple(self, dim: BatchSize) -> str:
        value = self._batch()
        if dim.scale != 1:
            value = self.op("Mul", value, self.int64s([dim.scale]))
        return self.op("Add", value, self.int64s([dim.offset])) if dim.offset else value


def onnx_dtype(dtype: str) -> int:
    """The ONNX number of a numpy dtype name."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _outputs(node: _Node, names: Mapping[str, str], needed: set[str]) -> list[str]:
    """The names of a node's outputs; MaxPool is faster without the indices where nobody reads them.

    Other operators must have all of theirs: ONNX Runtime crashes in a Split without its first.
    """
    kept = node.outputs[:1] if node.operator == "MaxPool" and node.outputs[1] not in needed else node.outputs
    return [names[value] for value in kept]


def _value_info(name: str, kind: TensorType) -> onnx.ValueInfoProto:
    shape = [_dimension_name(dim) if isinstance(dim, BatchSize) else dim for dim in kind.shape]
    return helper.make_tensor_value_info(name, onnx_dtype(kind.dtype), shape)


def _dimension_name(dim: BatchSize) -> str:
    scaled = "batch" if dim.scale == 1 else f"{dim.scale}*batch"
    return f"{scaled}+{dim.offset}" if dim.offset else scaled
