"""Turn a PyTorch model, a loss and an optimizer into a signed bundle that trains without PyTorch.

The step is traced in training mode; evaluation and inference are cut from a trace in evaluation mode. Nothing is
written before the graphs have been certified against float64 autograd.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from torch.distributions import Distribution

from edge_sdk.credentials import load_private_key
from edge_sdk.errors import ArtifactError, ExportError
from edge_sdk.signing import key_id, sign_raw
from edge_sdk.training.artifact import Artifact, pack_bundle, parse_artifact
from edge_sdk.training.graphs import installed_version, load_graph
from edge_sdk.training.layout import Layout, LayoutEntry, LayoutRole, encode_vector
from edge_sdk.training.manifest import (
    CHECKPOINT_PART,
    FROZEN_PART,
    PARITY_PART,
    BatchRange,
    FormatSpec,
    GraphKind,
    GraphSpec,
    LossSpec,
    Manifest,
    OptimizerSpec,
    Role,
    Runtime,
    TensorSpec,
    Tool,
)
from edge_sdk.training.parity import replay_parity
from edge_sdk.training.steps import SampledSteps, ShuffledSteps, TrainingSteps
from exporters.arguments import ExampleInputs
from exporters.cuts import cut_onnx, operators_of, write_as
from exporters.drawing import Examples
from exporters.formats import FORMATS, Format
from exporters.freezing import FrozenStorage, Patterns
from exporters.graph import Graph
from exporters.lowering import RULES, Lowered
from exporters.lowering.builder import IR_VERSION, MINIMUM_ONNXRUNTIME, OPSET
from exporters.lowering.normalization import joins_examples
from exporters.memory import estimate_memory
from exporters.optimizers import Optimizer, find_optimizer, hyperparameters
from exporters.parity_vector import make_parity
from exporters.prepare import BatchNormMode, find_reduction, prepare_examples, prepare_step
from exporters.privacy import DpSgd, batch_sizes, find_privacy, label_to_ignore, make_private
from exporters.private_step import PrivateStep
from exporters.record import record
from exporters.replay import Graphs, certify
from exporters.step import MODEL_ERRORS, TARGET, Step, Tensors

_TRACED_BATCHES = (4, 7)

Signer = str | os.PathLike[str] | ec.EllipticCurvePrivateKey


def export(
    model: torch.nn.Module,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    example_inputs: ExampleInputs,
    example_target: torch.Tensor,
    path: str | os.PathLike[str],
    signer: Signer,
    optimizer: str | Optimizer = "sgd",
    name: str = "model",
    version: str = "1",
    learning_rate: float | None = None,
    batch_max: int = 1024,
    batch_norm: BatchNormMode = "train",
    trainable: Patterns | None = None,
    frozen: FrozenStorage = "float32",
    correction: bool = False,
    gradient: bool = False,
    formats: Sequence[str] = ("onnx",),
    compiled_batch: int = 16,
    privacy: str | DpSgd | None = None,
) -> Artifact:
    """Export a model's training step, evaluation and inference as one signed bundle.

    The model is left as it is. Its present parameters become the bundle's checkpoint; those that require no
    gradient are frozen. Buffers that its forward pass changes in training, such as running statistics, are learned
    too. Modules that are in evaluation mode inside a model in training mode stay so in training.

    Args:
        model: takes tensors of examples, first dimension the batch, and gives one tensor.
        loss: takes (output, target), gives a scalar.
        example_inputs: a few real examples: one tensor, a tuple of forward's arguments or a dict of its keyword
            arguments, which may be tuples or dicts of tensors themselves.
        example_target: their targets, one tensor.
        path: where the bundle goes; replaced in one step, and only by a whole bundle.
        signer: the model signer's P-256 private key, or the PEM file that holds it.
        optimizer: "sgd", "momentum", "nesterov", "adam", "adamw", "adagrad", "rmsprop", with settings after a colon
            as in "adam:beta2=0.99,max_gradient_norm=1", or an object of `exporters.optimizers`.
        name: names the model; part of the manifest, as is `version`.
        version: names this export.
        learning_rate: what plans start from; the optimizer's usual one by default.
        batch_max: the largest batch a step may get.
        batch_norm: "frozen" lets every batch norm use the running statistics that it has.
        trainable: names of parameters to train, as in state_dict, where * stands for anything; all others are frozen,
            and so are other batch norms' statistics. Without it, requires_grad decides.
        frozen: "int8" stores frozen matrices in 8 bits with a scale for each row; the model then has those weights.
        correction: let plans and algorithms add proximal * parameter + correction to every gradient before the
            optimizer sees it, as FedProx, SCAFFOLD and FedDyn do.
        gradient: add a graph that gives gradients and takes no step, for algorithms that take their own.
        formats: "onnx", and what else the same graphs are to be written in: "torchscript", "litert", "executorch".
        compiled_batch: the size of the batches that LiteRT takes, and the largest that ExecuTorch does.
        privacy: "example" hides each example of a device from whoever gets its update, by differentially private
            SGD; with settings after a colon as in "example:clip_norm=0.5,noise_multiplier=1.1,lot_size=64", or an
            object of `exporters.privacy`.

    Returns:
        The bundle, read back from its bytes and verified.

    Raises:
        ExportError: the model cannot be exported, or the exported step is not the model's; it names the
            operator, module or parameter, and the remedy.
        IdentityError: the signing key cannot be read.
    """
    key = signer if isinstance(signer, ec.EllipticCurvePrivateKey) else load_private_key(Path(signer))
    chosen = find_optimizer(optimizer)
    private = find_privacy(privacy)
    labels: dict[str, object] = {"name": name, "version": version}
    for what, text in labels.items():
        if not isinstance(text, str) or not text:
            raise ExportError(f"the model's {what} is {text!r}, which is no text", hint=f'pass one, as in {what}="1"')
    if batch_max < 1:
        raise ExportError(f"batch_max is {batch_max}", hint="pass at least 1")
    others = {known: form for known, form in FORMATS.items() if known in formats}
    if len(others) + 1 != len(set(formats)) or "onnx" not in formats:
        raise ExportError(
            f"the formats {', '.join(formats) or '(none)'} cannot be exported",
            hint=f"choose onnx, and of {', '.join(FORMATS)} what else is wanted",
        )
    if compiled_batch < 1:
        raise ExportError(f"compiled_batch is {compiled_batch}", hint="pass at least 1")
    if gradient and private is not None:
        raise ExportError(
            "a private step may not stand beside a graph that gives the examples' gradient as it is",
            hint="leave out gradient or privacy",
        )
    if frozen not in get_args(FrozenStorage):
        raise ExportError(f"{frozen!r} is no way to store what is frozen", hint='pass "float32" or "int8"')
    if batch_norm not in get_args(BatchNormMode):
        raise ExportError(f"{batch_norm!r} is no way to treat batch norms", hint='pass "train" or "frozen"')
    arguments, examples = prepare_examples(model, example_inputs, example_target)
    rate = chosen.default_learning_rate if learning_rate is None else learning_rate
    if not (math.isfinite(rate) and rate > 0):
        raise ExportError(f"learning rate {rate} is not a positive number", hint="pass a positive one, or none")
    with _plainly():
        step = prepare_step(
            model, loss, chosen, arguments, examples, batch_norm=batch_norm, trainable=trainable, frozen=frozen
        )
        step = replace(step, corrected=correction)
        if private is not None:
            step = make_private(step, private, examples)
        manifest, parts = _build(step, examples, name, version, rate, batch_max, others, compiled_batch, gradient)
    content = pack_bundle(
        manifest, parts, signer_key_id=key_id(key.public_key()), sign=lambda message: sign_raw(key, message)
    )
    artifact = parse_artifact(content, signer=key.public_key())
    for known in manifest.formats:
        if not replay_parity(artifact, known.name).ok:
            raise ExportError(
                f"{known.name} computes other values than onnx",
                hint=f"leave {known.name} out of the formats, and please report the model",
            )
    _write(Path(path), content)
    return artifact


def _build(
    step: Step,
    examples: Tensors,
    name: str,
    version: str,
    rate: float,
    batch_max: int,
    others: Mapping[Runtime, Format],
    compiled_batch: int,
    gradient: bool,
) -> tuple[Manifest, dict[str, bytes]]:
    traced = {kind: _trace(step, run, examples) for kind, run in step.training().items()}
    batch = BatchRange(2 if any(joins_examples(graph) for graph in traced.values()) else 1, batch_max)
    if batch.minimum > batch.maximum:
        raise ExportError(f"batch_max is {batch_max}, but batch norm needs two examples", hint="pass at least 2")
    source = step.arguments.names[0]
    trained = {kind: Lowered(graph, source) for kind, graph in traced.items()}
    traced["evaluate"] = traced["infer"] = _trace(step, step.serve, examples)
    served = Lowered(traced["infer"], source)
    cut = [
        cut_onnx(lowered, step, kind) for kind, lowered in (*trained.items(), ("evaluate", served), ("infer", served))
    ]
    if gradient:
        traced["gradient"] = _trace(step, step.differentiate, examples)
        cut.append(cut_onnx(Lowered(traced["gradient"], source), step, "gradient"))
    specs = {spec.kind: spec for spec, _, _ in cut}
    stored = {key: tensor.numpy() for key, tensor in step.stored.items()}
    labels = next(iter(trained.values())).labels(TARGET)
    ignored = labels.ignored if labels else None
    if labels and isinstance(step, PrivateStep):
        ignored = label_to_ignore(step, labels, examples)
    drawn = Examples({key: tensor.numpy() for key, tensor in examples.items()}, labels)
    layout = _layout(step.learned)
    operators = tuple(sorted(set().union(*(used for _, _, used in cut))))
    ranges: dict[Runtime, BatchRange] = {"onnx": batch}
    written: dict[Runtime, dict[GraphKind, bytes]] = {"onnx": {spec.kind: content for spec, content, _ in cut}}
    for runtime, form in others.items():
        ranges[runtime] = form.batch(batch, min(max(compiled_batch, batch.minimum), batch.maximum))
        written[runtime] = {
            kind: write_as(form, traced[kind], spec, step, ranges[runtime]) for kind, spec in specs.items()
        }
    formats: list[FormatSpec] = []
    parts: dict[str, bytes] = {}
    graphs: dict[Runtime, Graphs] = {}
    for runtime, contents in written.items():
        with _named(runtime):
            graphs[runtime] = _opened(step, runtime, contents, specs, stored, layout)
            replay = certify(step, graphs[runtime], drawn, learning_rate=rate, batch=ranges[runtime])
        formats.append(
            FormatSpec("onnx", MINIMUM_ONNXRUNTIME, OPSET, IR_VERSION, operators, batch, replay)
            if runtime == "onnx"
            else FormatSpec(
                runtime, installed_version(runtime), None, None, operators_of(traced.values()), ranges[runtime], replay
            )
        )
        parts |= {specs[kind].part(runtime): content for kind, content in contents.items()}
    shared = BatchRange(
        max(taken.minimum for taken in ranges.values()), min(taken.maximum for taken in ranges.values())
    )
    parity, parts[PARITY_PART] = make_parity(
        step, graphs["onnx"], drawn, learning_rate=rate, layout=layout, batch=shared
    )
    parts[CHECKPOINT_PART] = _flat(step.learned)
    if stored:
        little = (array.astype(array.dtype.newbyteorder("<")) for array in stored.values())
        parts[FROZEN_PART] = b"".join(array.tobytes() for array in little)
    taken = [tensor for kind in trained for tensor in specs[kind].inputs]
    optimizer = step.optimizer
    manifest = Manifest(
        name=name,
        version=version,
        layout=layout,
        frozen=tuple(TensorSpec(key, "frozen", array.dtype.name, array.shape) for key, array in stored.items()),
        inputs=tuple(tensor for tensor in taken if tensor.role == "input"),
        target=_only(taken, "target"),
        output=_only(specs["infer"].outputs, "output"),
        classes=labels.classes if labels else None,
        ignored_label=ignored,
        loss=LossSpec(_loss_name(step.loss), find_reduction(step, examples)),
        optimizer=OptimizerSpec(
            optimizer.kind,
            hyperparameters(optimizer),
            tuple(tensor.name for tensor in taken if tensor.role == "slot"),
            rate,
        ),
        privacy=step.privacy if isinstance(step, PrivateStep) else None,
        batch=batch,
        graphs=tuple(specs.values()),
        memory=estimate_memory([(onnx.load_from_string(parts[specs[kind].part()]), specs[kind]) for kind in trained]),
        formats=tuple(formats),
        tools=(
            Tool("edge-sdk", version_of("edge-sdk")),
            Tool("onnx", onnx.__version__),
            Tool("onnxruntime", installed_version("onnx")),
            Tool("torch", str(torch.__version__)),
            *(Tool(tool, version_of(tool)) for form in others.values() for tool in form.tools),
        ),
        parity=parity,
        parts=(),
    )
    return manifest, parts


@contextmanager
def _named(runtime: Runtime) -> Iterator[None]:
    """Say of which format, beside ONNX, a graph is that does not load or match."""
    try:
        yield
    except ExportError as error:
        if runtime == "onnx":
            raise
        raise ExportError(
            f"as {runtime}, {error}", hint=f"leave {runtime} out of the formats, and please report the model"
        ) from error


def _opened(
    step: Step,
    runtime: Runtime,
    contents: Mapping[GraphKind, bytes],
    specs: Mapping[GraphKind, GraphSpec],
    stored: Mapping[str, npt.NDArray[Any]],
    layout: Layout,
) -> Graphs:
    """The graphs of one format, ready to run."""
    try:
        opened = {kind: load_graph(runtime, content, specs[kind], stored) for kind, content in contents.items()}
    except ArtifactError as error:
        raise ExportError(
            f"the exported graph is not valid: {error}",
            hint="please report the model, since the exporter gets one of its operators wrong",
        ) from error
    steps: TrainingSteps = ShuffledSteps(opened["train"])
    if isinstance(step, PrivateStep):
        steps = SampledSteps(opened["clip"], opened["train"], layout, step.privacy)
    return Graphs(steps, opened["evaluate"], opened["infer"], opened.get("gradient"))


def _trace(step: Step, run: Callable[[Tensors], Tensors], examples: Tensors) -> Graph:
    def inputs(batch: int) -> dict[str, torch.Tensor]:
        rows = torch.arange(batch) % len(examples[TARGET])
        drawn = {name: tensor[rows].clone() for name, tensor in examples.items()}
        return step.initial_state() | drawn | step.beside(batch)

    one, two = sizes = batch_sizes(step, examples) if isinstance(step, PrivateStep) else _TRACED_BATCHES
    try:
        return record(run, (inputs(one), inputs(two)), sizes, supported=RULES.keys(), model=step.model)
    except MODEL_ERRORS as error:
        raise ExportError(
            f"the model or the loss fails on batches of {one} and {two}: {error}",
            hint="let forward work for any number of examples: avoid sizes that are written out",
        ) from error


def _layout(tensors: dict[str, torch.Tensor]) -> Layout:
    """The layout of tensors by their names in graphs."""
    roles: dict[str, LayoutRole] = {"parameter": "parameter", "buffer": "buffer"}
    entries = []
    for key, tensor in tensors.items():
        role, _, name = key.partition(":")
        entries.append(LayoutEntry(name, tuple(tensor.shape), roles[role]))
    return Layout(tuple(entries))


def _flat(tensors: dict[str, torch.Tensor]) -> bytes:
    return encode_vector(np.concatenate([tensor.numpy().reshape(-1) for tensor in tensors.values()]))


def _only(tensors: Iterable[TensorSpec], role: Role) -> TensorSpec:
    (found,) = (tensor for tensor in tensors if tensor.role == role)
    return found


def _loss_name(loss: object) -> str:
    return str(getattr(loss, "__name__", type(loss).__name__))


@contextmanager
def _plainly() -> Iterator[None]:
    """Let torch run layers as they are written, on one thread.

    Small tensors gain nothing from threads, and lose much where the processor is shared. Transformer layers in
    evaluation mode would take a path of their own, which leaves padded positions zero. Distributions look whether their
    arguments are valid, which a graph cannot.
    """
    threads, fast = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    checked = Distribution._validate_args
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.mha.set_fastpath_enabled(fast)
        Distribution.set_default_validate_args(checked)


def _write(path: Path, content: bytes) -> None:
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ExportError(
            f"cannot write {path}: {error.strerror or error}",
            hint="check the disk's free space, and that the folder exists and can be written",
        ) from error
