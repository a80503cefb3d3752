"""The graphs of a bundle, cut from traces: what the manifest says of each, and its bytes in every format."""

from __future__ import annotations

from collections.abc import Iterable

from edge_sdk.errors import ExportError
from edge_sdk.training.manifest import BatchRange, Feedback, GraphKind, GraphSpec, Role, TensorSpec
from exporters.formats import Format
from exporters.graph import BatchSize, Graph, TensorType, dequantised, subgraph
from exporters.lowering import Lowered
from exporters.private_step import CLIP_NORM, WEIGHT
from exporters.step import LEARNING_RATE, LOSS, NEXT, OUTPUT, PROXIMAL, SEED, TARGET, Step


def cut_onnx(lowered: Lowered, step: Step, kind: GraphKind) -> tuple[GraphSpec, bytes, set[str]]:
    """One graph of the bundle: what the manifest says of it, its bytes, and the operators it uses."""
    state = [key for key in step.initial_state() if key.partition(":")[0] in ("parameter", "buffer", "slot")]
    outputs = (OUTPUT,) if kind == "infer" else lowered.outputs
    read = lowered.inputs_of(outputs)
    if LOSS in outputs or kind == "infer":
        _check_read(step, kind, read)
    inputs = tuple(key for key in lowered.inputs if key in read or (kind == "train" and key in state))
    proto = lowered.model(outputs, inputs)
    feedback = tuple(Feedback(NEXT + key, key) for key in state) if kind == "train" else ()
    spec = GraphSpec(
        kind,
        tuple(_tensor_spec(key, lowered.input_type(key), step) for key in inputs),
        tuple(_tensor_spec(key, lowered.output_type(key), step) for key in outputs),
        feedback,
    )
    return spec, proto.SerializeToString(deterministic=True), {node.op_type for node in proto.graph.node}


def write_as(form: Format, traced: Graph, spec: GraphSpec, step: Step, batch: BatchRange) -> bytes:
    """The same graph in another format: its batch is that of the first input it reads."""
    names = [tensor.name for tensor in spec.inputs]
    source = next((name for name in (*step.arguments.names, TARGET) if name in names), None)
    graph = subgraph(dequantised(traced), names, [tensor.name for tensor in spec.outputs])
    return form.write(graph, source, batch)


def operators_of(graphs: Iterable[Graph]) -> tuple[str, ...]:
    """The ATen operators of some graphs."""
    return tuple(sorted({call.operator for graph in graphs for call in graph.calls}))


def _check_read(step: Step, kind: GraphKind, read: tuple[str, ...]) -> None:
    """Refuse a graph that computes its outputs without some of the examples' fields."""
    unread = [name for name in step.arguments.names if name not in read] if kind in step.training() else []
    unread += [TARGET] if kind != "infer" and TARGET not in read else []
    if unread or not set(step.arguments.names).intersection(read):
        missing = "the target" if unread == [TARGET] else f"input {(unread or step.arguments.names)[0]}"
        raise ExportError(
            f"the {'loss' if kind != 'infer' else 'output'} does not depend on {missing}",
            hint="check the model's forward and the loss, and leave out inputs that are not used",
        )


def _tensor_spec(name: str, kind: TensorType, step: Step) -> TensorSpec:
    roles: dict[str, Role] = {
        "parameter": "parameter",
        "buffer": "buffer",
        "frozen": "frozen",
        "quantised": "frozen",
        "scale": "frozen",
        "slot": "slot",
        "correction": "correction",
        PROXIMAL: "proximal",
        "gradient": "gradient",
        WEIGHT: "weight",
        CLIP_NORM: "clip_norm",
        TARGET: "target",
        LEARNING_RATE: "learning_rate",
        SEED: "seed",
        LOSS: "loss",
        OUTPUT: "output",
    }
    role = "input" if name in step.arguments.names else roles[name.removeprefix(NEXT).split(":")[0]]
    batch = BatchSize(1, 0)
    if any(isinstance(dim, BatchSize) and (dim != batch or axis) for axis, dim in enumerate(kind.shape)):
        raise ExportError(
            f"the model's {name} does not have the batch as its first dimension, and only there",
            hint="let the model give one row for each example",
        )
    return TensorSpec(name, role, kind.dtype, tuple(dim if isinstance(dim, int) else None for dim in kind.shape))
