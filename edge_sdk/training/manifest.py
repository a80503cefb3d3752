"""What a bundle says of itself: frozen records, and their canonical JSON.

Canonical JSON has sorted keys, no spaces and UTF-8, so one manifest has one encoding. The records are checked
for sense here; bytes, hashes and signatures are `artifact`'s business.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from edge_sdk.errors import ArtifactError
from edge_sdk.training.layout import Layout

Role = Literal[
    "parameter",
    "buffer",
    "frozen",
    "slot",
    "input",
    "target",
    "learning_rate",
    "seed",
    "proximal",
    "correction",
    "weight",
    "clip_norm",
    "gradient",
    "loss",
    "output",
]
"""What a graph's tensor is for. A slot is optimizer state; it starts at zero. A seed is another for every step.

The optimizer is given gradient + proximal * parameter + correction, where a training graph has these inputs.
"""

_STATE = ("parameter", "buffer", "slot")

GraphKind = Literal["train", "clip", "gradient", "evaluate", "infer"]
Runtime = Literal["onnx", "torchscript", "litert", "executorch"]
"""What runs graphs, and so the format that they are written in."""

_SUFFIXES: dict[Runtime, str] = {"onnx": "onnx", "torchscript": "ts", "litert": "tflite", "executorch": "pte"}

Reduction = Literal["mean", "sum", "batch"]

DTYPES = ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")

CHECKPOINT_PART = "checkpoint"
FROZEN_PART = "frozen"
PARITY_PART = "parity"

_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph; a dimension of None is the batch."""

    name: str
    role: Role
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Feedback:
    """After a step, output `output` becomes input `input`."""

    output: str
    input: str


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One graph: its tensors in order, whatever the format."""

    kind: GraphKind
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    feedback: tuple[Feedback, ...]

    def part(self, runtime: Runtime = "onnx") -> str:
        """The name of the part that holds it for a runtime."""
        return f"{self.kind}.{_SUFFIXES[runtime]}"

    def takes(self, role: Role) -> bool:
        """Whether some input has that role."""
        return any(tensor.role == role for tensor in self.inputs)


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """A constant of the optimizer that is built into the training graph."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """The local optimizer: its kind, its constants, the names of its slots and a learning rate to start from."""

    kind: str
    hyperparameters: tuple[Hyperparameter, ...]
    slots: tuple[str, ...]
    default_learning_rate: float


@dataclass(frozen=True, slots=True)
class LossSpec:
    """The loss: its name, and how it joins examples ("batch": neither their mean nor their sum)."""

    name: str
    reduction: Reduction


@dataclass(frozen=True, slots=True)
class ExamplePrivacy:
    """The promise that training hides each example of a device, from whoever gets the update.

    Each example is in a step's sample with the same chance, `lot_size` of them on average; its gradient is clipped to
    `clip_norm`; the sum gets Gaussian noise of deviation noise_multiplier * clip_norm, and is divided by `lot_size`
    whatever the sample's size.
    """

    unit: Literal["example"]
    sampling: Literal["poisson"]
    clip_norm: float
    noise_multiplier: float
    lot_size: int


@dataclass(frozen=True, slots=True)
class BatchRange:
    """How many examples a step takes."""

    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What training takes on ONNX Runtime, beside the opened graph, the checkpoint and the examples.

    The larger of `least_bytes` and `fixed_bytes` + `example_bytes` for each example of a batch.
    """

    least_bytes: int
    fixed_bytes: int
    example_bytes: int


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that made the bundle, and its version."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Replay:
    """How the training graph was certified: steps compared with float64 autograd, and the tolerance met.

    `gradient_tolerance` is relative to the largest gradient of each tensor; `worst` is the largest error seen,
    as a share of what was allowed.
    """

    steps: int
    batch_sizes: tuple[int, ...]
    gradient_tolerance: float
    worst: float


@dataclass(frozen=True, slots=True)
class FormatSpec:
    """The graphs in one format: what runs them, and how they were certified.

    Attributes:
        name: the format.
        oldest: the oldest release of its runtime that runs them.
        opset: of ONNX, else None; as is `ir_version`.
        operators: all that they use; ONNX's, in other formats ATen's that they were made from.
        batch: how many examples they take at once.
        replay: their certificate.
    """

    name: Runtime
    oldest: str
    opset: int | None
    ir_version: int | None
    operators: tuple[str, ...]
    batch: BatchRange
    replay: Replay


@dataclass(frozen=True, slots=True)
class ParityStep:
    """One step of the parity vector: its batch size, learning rate, seed and expected loss."""

    batch: int
    learning_rate: float
    seed: int
    loss: float
    loss_tolerance: float


@dataclass(frozen=True, slots=True)
class ParitySpec:
    """The parity vector: steps run one after another from the bundle's checkpoint, with zero slots.

    The part holds for each step the inputs in order, the target, then every `stride`-th parameter expected after it,
    then as many allowed absolute errors, all little-endian and the latter two float32.
    """

    stride: int
    steps: tuple[ParityStep, ...]


@dataclass(frozen=True, slots=True)
class PartSpec:
    """Where a part lies: `offset` counts from the first 64-byte boundary after the manifest."""

    name: str
    offset: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about a bundle but its parts' bytes.

    `inputs` and `target` are the fields of an example. `layout` orders what is learned, trainable parameters and then
    buffers, by their `state_dict` names. `frozen` has what is not, in the order of its part, which holds their bytes
    little-endian: "frozen:NAME", or 8-bit "quantised:NAME" with "scale:NAME" for each row. `classes` is the number of
    labels where the target is a class index, else None; `ignored_label` is the target value that such a loss leaves
    out.
    """

    name: str
    version: str
    layout: Layout
    frozen: tuple[TensorSpec, ...]
    inputs: tuple[TensorSpec, ...]
    target: TensorSpec
    output: TensorSpec
    classes: int | None
    ignored_label: int | None
    loss: LossSpec
    optimizer: OptimizerSpec
    privacy: ExamplePrivacy | None
    batch: BatchRange
    graphs: tuple[GraphSpec, ...]
    memory: Memory
    formats: tuple[FormatSpec, ...]
    tools: tuple[Tool, ...]
    parity: ParitySpec
    parts: tuple[PartSpec, ...]

    def graph(self, kind: GraphKind) -> GraphSpec:
        """The graph of a kind; a checked manifest has one of each."""
        return next(graph for graph in self.graphs if graph.kind == kind)

    def format(self, runtime: Runtime) -> FormatSpec:
        """The graphs in the format of a runtime; every bundle has ONNX.

        Raises:
            ArtifactError: the bundle has no such format.
        """
        for known in self.formats:
            if known.name == runtime:
                return known
        raise ArtifactError(
            f"the bundle has no {runtime}, but {', '.join(known.name for known in self.formats)}",
            hint="export it with that format too, or use another runtime",
        )

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """The part of frozen parameters, if there are any: every graph may read it."""
        return (FROZEN_PART,) if self.frozen else ()

    def predicted_bytes(self, batch: int) -> int:
        """About how much memory training on batches of that many examples takes; see `Memory`.

        benchmarks/step_memory compares it with what processes took.
        """
        return max(self.memory.least_bytes, self.memory.fixed_bytes + self.memory.example_bytes * batch)

    def part(self, name: str) -> PartSpec:
        """The part of that name.

        Raises:
            ArtifactError: there is none.
        """
        for part in self.parts:
            if part.name == name:
                return part
        raise _malformed(f"it has no part {name!r}")


def encode_manifest(manifest: Manifest) -> bytes:
    """Write a manifest as canonical JSON, UTF-8."""
    return json.dumps(
        dataclasses.asdict(manifest), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def decode_manifest(content: bytes) -> Manifest:
    """Read a manifest from bytes that are authentic already, and check that it makes sense.

    Raises:
        ArtifactError: not JSON, a field missing, unknown or of the wrong type, or a contradiction.
    """
    try:
        value = json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"it is not JSON: {error}") from error
    manifest = _read(Manifest, value, "manifest")
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Refuse a manifest whose fields contradict each other.

    Raises:
        ArtifactError: it names the contradiction.
    """
    names = [part.name for part in manifest.parts]
    if len(set(names)) != len(names):
        raise _malformed("two parts have one name")
    if min(dataclasses.astuple(manifest.memory)) < 0:
        raise _malformed("it needs less than no memory")
    kinds = sorted(graph.kind for graph in manifest.graphs)
    some = ["evaluate", "infer", "train"]
    if kinds not in ([["clip", *some]] if manifest.privacy else [some, sorted(["gradient", *some])]):
        raise _malformed(
            "it must have one train, one evaluate and one infer graph, and a clip graph if it is private; else it may "
            "have a gradient graph"
        )
    if not 1 <= manifest.batch.minimum <= manifest.batch.maximum:
        raise _malformed("its batch range is empty")
    if manifest.layout.size == 0:
        raise _malformed("it has nothing to train")
    if manifest.part(CHECKPOINT_PART).size_bytes != manifest.layout.size_bytes:
        raise _malformed("its checkpoint does not have the layout's size")
    if manifest.frozen and manifest.part(FROZEN_PART).size_bytes != sum(map(tensor_bytes, manifest.frozen)):
        raise _malformed("its frozen part does not have the size of its tensors")
    _check_tensors("the frozen part", manifest.frozen)
    if any(spec.role != "frozen" or None in spec.shape for spec in manifest.frozen):
        raise _malformed("its frozen part holds something else")
    _check_formats(manifest)
    for graph in manifest.graphs:
        _check_graph(manifest, graph)
    _check_privacy(manifest)
    _check_parity(manifest)


def _check_formats(manifest: Manifest) -> None:
    names = [known.name for known in manifest.formats]
    if "onnx" not in names or len(set(names)) != len(names):
        raise _malformed("it must have the format onnx, and each other at most once")
    for known in manifest.formats:
        if not manifest.batch.minimum <= known.batch.minimum <= known.batch.maximum <= manifest.batch.maximum:
            raise _malformed(f"its {known.name} takes batches that the model does not, or none")
        if any(not known.batch.minimum <= step.batch <= known.batch.maximum for step in manifest.parity.steps):
            raise _malformed(f"its {known.name} does not take the batches of the parity vector")
        for graph in manifest.graphs:
            manifest.part(graph.part(known.name))


def _check_tensors(where: str, tensors: tuple[TensorSpec, ...]) -> None:
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise _malformed(f"{where} names a tensor twice")
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise _malformed(f"{tensor.name} has unknown dtype {tensor.dtype!r}")
        if any(dimension is not None and dimension < 0 for dimension in tensor.shape):
            raise _malformed(f"{tensor.name} has a negative dimension")


def _check_graph(manifest: Manifest, graph: GraphSpec) -> None:
    _check_tensors(f"graph {graph.kind}", graph.inputs)
    _check_tensors(f"graph {graph.kind}", graph.outputs)
    inputs = {tensor.name: tensor for tensor in graph.inputs}
    outputs = {tensor.name: tensor for tensor in graph.outputs}
    learned = [spec for spec in graph.inputs if spec.role in ("parameter", "buffer")]
    held = [(spec.role, spec.name, spec.dtype, spec.shape) for spec in learned]
    expected = [(entry.role, entry.tensor, "float32", entry.shape) for entry in manifest.layout.entries]
    # A graph may not need every parameter (one that acts in training only), but it keeps their order.
    if held != [entry for entry in expected if entry in held]:
        raise _malformed(f"graph {graph.kind} does not follow the layout")
    given = [(spec.name, spec.shape) for spec in graph.outputs if spec.role == "gradient"]
    parameters = [entry for entry in manifest.layout.entries if entry.role == "parameter"]
    if graph.kind == "gradient" and given != [(f"gradient:{entry.name}", entry.shape) for entry in parameters]:
        raise _malformed("its gradient graph does not give a gradient of each parameter")
    if graph.kind == "train" and held != expected:
        raise _malformed("the train graph lacks a parameter")
    corrections = [(tensor.name, tensor.shape) for tensor in graph.inputs if tensor.role == "correction"]
    wanted = [(f"correction:{entry.name}", entry.shape) for entry in parameters if graph.takes("proximal")]
    if corrections != wanted:
        raise _malformed(f"graph {graph.kind} does not take a proximal and a correction for each parameter, or neither")
    known = {*manifest.frozen, *manifest.inputs, manifest.target}
    for tensor in graph.inputs:
        if tensor.role in ("frozen", "input", "target") and tensor not in known:
            raise _malformed(f"graph {graph.kind} takes {tensor.name}, which is no field of examples and not frozen")
    for feedback in graph.feedback:
        source, target = outputs.get(feedback.output), inputs.get(feedback.input)
        if source is None or target is None or source.shape != target.shape or source.role != target.role:
            raise _malformed(f"feedback {feedback.output} -> {feedback.input} does not fit")
    if graph.kind == "train":
        fed = [feedback.input for feedback in graph.feedback]
        state = [tensor.name for tensor in graph.inputs if tensor.role in _STATE]
        if sorted(fed) != sorted(state):
            raise _malformed("the train graph does not feed back every parameter, buffer and slot once")


def _check_privacy(manifest: Manifest) -> None:
    """The examples must have no way into the update but through the sum of their clipped gradients."""
    privacy = manifest.privacy
    wanted = [(f"gradient:{entry.name}", "float32", entry.shape) for entry in manifest.layout.entries]
    if privacy is None:
        wanted = []
    else:
        if not min(privacy.clip_norm, privacy.noise_multiplier, privacy.lot_size) > 0:
            raise _malformed("its clip norm, noise multiplier or lot size is not positive")
        if any(entry.role == "buffer" for entry in manifest.layout.entries):
            raise _malformed("it is private for each example, but learns buffers")
        clip = manifest.graph("clip")
        if not (clip.takes("weight") and clip.takes("clip_norm") and clip.takes("input")):
            raise _malformed("its clip graph does not weight and clip examples")
        given = [(spec.name, spec.dtype, spec.shape) for spec in clip.outputs if spec.role == "gradient"]
        if given != wanted:
            raise _malformed("its clip graph does not give a gradient of each parameter")
        if manifest.graph("train").takes("input") or manifest.graph("train").takes("target"):
            raise _malformed("its train graph takes examples")
    for graph in manifest.graphs:
        taken = [(spec.name, spec.dtype, spec.shape) for spec in graph.inputs if spec.role == "gradient"]
        if taken != (wanted if graph.kind == "train" else []):
            raise _malformed(f"graph {graph.kind} does not take the gradients that it should")
        if graph.kind != "clip" and (graph.takes("weight") or graph.takes("clip_norm")):
            raise _malformed(f"graph {graph.kind} takes weights of examples or a clip norm")


def _check_parity(manifest: Manifest) -> None:
    if manifest.parity.stride < 1 or not manifest.parity.steps:
        raise _malformed("its parity vector is empty")
    sampled = -(-manifest.layout.size // manifest.parity.stride)
    size_bytes = sum(
        sum(row_bytes(spec) for spec in (*manifest.inputs, manifest.target)) * step.batch + 8 * sampled
        for step in manifest.parity.steps
    )
    if manifest.part(PARITY_PART).size_bytes != size_bytes:
        raise _malformed("its parity vector does not have the size its steps need")


def tensor_bytes(spec: TensorSpec) -> int:
    """Bytes of a tensor of fixed shape."""
    return math.prod(dimension or 0 for dimension in spec.shape) * np.dtype(spec.dtype).itemsize


def row_bytes(spec: TensorSpec) -> int:
    """Bytes of one example of a batched tensor."""
    return math.prod(dimension for dimension in spec.shape[1:] if dimension is not None) * np.dtype(spec.dtype).itemsize


def _malformed(why: str) -> ArtifactError:
    return ArtifactError(f"the bundle's manifest is malformed: {why}", hint="export the model again")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key stands twice")
    return keys


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _read(kind: type[_Record], value: Any, where: str) -> _Record:
    """Turn parsed JSON into a record of `kind`, refusing anything that its annotations do not allow."""
    if not isinstance(value, dict):
        raise _malformed(f"{where} is not an object")
    record: Any = kind
    hints = _hints(record)
    if set(value) != set(hints):
        odd = sorted(set(value) ^ set(hints))
        raise _malformed(f"{where} lacks or does not know {', '.join(odd)}")
    return kind(**{name: _value(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _read(hint, value, where)
    if origin is tuple and isinstance(value, list):
        item = get_args(hint)[0]
        return tuple(_value(item, entry, f"{where}[{index}]") for index, entry in enumerate(value))
    if origin is Literal and isinstance(value, str) and value in get_args(hint):
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        return _value(next(kind for kind in get_args(hint) if kind is not type(None)), value, where)
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if hint in (int, str) and type(value) is hint:
        return value
    raise _malformed(f"{where} has a value that is not allowed there")
