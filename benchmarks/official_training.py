"""ONNX Runtime's own training API (its last release, 1.19.2) as a peer, in an environment and a process of its own.

It gets the forward pass and the loss as PyTorch's tracing exporter writes them, which is what it was made for, and
differentiates them itself. Layers whose operators it cannot differentiate are written in others that it can.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import venv
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from exporters import ModelSpec
from exporters.arguments import Arguments

PACKAGES = (
    "onnxruntime-training-cpu==1.19.2",
    "onnx==1.16.2",
    "numpy<2",
    "protobuf<5",
    "cerberus",
    "h5py",
    "torch==2.4.1",
)

# The newest that both this PyTorch writes and that release reads.
_OPSET = 17
_CHECKED_STEPS = 3

# Runs in the other environment: makes the artifacts, then takes as many steps as each line of its input says.
_WORKER = f"""
import sys, time
from pathlib import Path
import numpy as np, onnx, onnxruntime
from onnxruntime.training import artifacts
from onnxruntime.training.api import CheckpointState, Module, Optimizer
folder, rate = Path(sys.argv[1]), float(sys.argv[2])
model, batch = onnx.load(folder / "forward.onnx"), np.load(folder / "batch.npz")
trained = set((folder / "trained").read_text().split())
held = [tensor.name for tensor in model.graph.initializer if tensor.name not in trained]
artifacts.generate_artifacts(model, requires_grad=sorted(trained), frozen_params=held,
                             optimizer=artifacts.OptimType.SGD, artifact_directory=str(folder))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
state = CheckpointState.load_checkpoint(str(folder / "checkpoint"))
module = Module(str(folder / "training_model.onnx"), state, session_options=options)
optimizer = Optimizer(str(folder / "optimizer_model.onnx"), module)
optimizer.set_learning_rate(rate)
module.train()
inputs = [batch[name] for name in module.input_names()]
def step():
    loss = module(*inputs); optimizer.step(); module.lazy_reset_grad()
    return float(np.asarray(loss).ravel()[0])
print("losses", *(step() for _ in range({_CHECKED_STEPS})), flush=True)
for line in sys.stdin:
    start = time.process_time()
    for _ in range(int(line)): step()
    print((time.process_time() - start) / int(line), flush=True)
"""


def official_python(home: Path) -> Path | None:
    """The interpreter of an environment with those packages, made if it is not there; None where it cannot be."""
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        if home.exists() and any(home.iterdir()) and not python.exists():
            raise SystemExit(f"error: {home} is a folder with something else in it; name another")
        print(f"making {home} ...", flush=True)
        venv.create(home, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *PACKAGES]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"ORT training left out: its packages cannot be installed on Python {sys.version.split()[0]}:")
            print("  " + (done.stderr.strip().splitlines() or ["pip failed"])[-1])
            return None
        (home / "complete").touch()
    return python


class OfficialTraining:
    """A process that trains a model with the official API.

    Raises:
        RuntimeError: it cannot, or learns something else than PyTorch; says why in one line.
    """

    def __init__(
        self,
        python: Path,
        spec: ModelSpec,
        arguments: Arguments,
        tensors: Mapping[str, torch.Tensor],
        learning_rate: float,
        folder: Path,
    ) -> None:
        whole = _WithLoss(copy.deepcopy(spec.model), spec, arguments, tuple(tensors))
        expected = _losses(copy.deepcopy(whole), tensors, learning_rate)
        trained = [name for name, parameter in whole.named_parameters() if parameter.requires_grad]
        (folder / "trained").write_text("\n".join(trained))
        np.savez(folder / "batch.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})  # type: ignore[arg-type]
        onnx.save(_forward(whole, tensors, folder / "forward.onnx"), folder / "forward.onnx")
        log = folder / "worker.log"
        with log.open("w") as errors:  # A pipe that nobody reads would fill up: it logs each thing it does.
            self._process = subprocess.Popen(
                [str(python), "-c", _WORKER, str(folder), str(learning_rate)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        # The libraries print to the same stream before it is ready.
        for line in self._lines():
            word, *found = line.split() or [""]
            if word == "losses":
                if np.allclose([float(loss) for loss in found], expected, rtol=1e-4):
                    return
                self._close()
                raise RuntimeError(f"its losses are {', '.join(found)}, PyTorch's {expected}")
        self._close()
        raise RuntimeError(_reason(log.read_text()))

    def __enter__(self) -> OfficialTraining:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def step_s(self, count: int = 10) -> float:
        """Seconds of CPU time of a step."""
        if self._process.stdin is None:
            raise RuntimeError("the process has no input")
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return float(next(self._lines()))

    def _lines(self) -> Iterator[str]:
        return iter(()) if self._process.stdout is None else iter(self._process.stdout.readline, "")

    def _close(self) -> None:
        self._process.kill()
        self._process.communicate()


class _WithLoss(nn.Module):
    """A model with its loss: takes inputs and target by place."""

    def __init__(self, model: nn.Module, spec: ModelSpec, arguments: Arguments, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self._loss, self._arguments, self._names = model, spec.loss, arguments, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        named = dict(zip(self._names, tensors, strict=True))
        args, kwargs = self._arguments.fill(named)
        loss: torch.Tensor = self._loss(self.model(*args, **kwargs), named["y"])
        return loss


def _group_norm(
    x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    """By a layer norm over each group, since InstanceNormalization has no gradient there."""
    rows = x.reshape(x.shape[0], groups, -1)
    whole = (1, -1, *[1] * (x.ndim - 2))
    return F.layer_norm(rows, rows.shape[2:], eps=eps).reshape(x.shape) * weight.reshape(whole) + bias.reshape(whole)


def _hardsigmoid(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return F.relu6(x + 3) / 6


def _hardswish(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return x * _hardsigmoid(x)


def _embedding_bag(
    rows: torch.Tensor, weight: torch.Tensor, *others: object, mode: str, padding_idx: int, **settings: object
) -> torch.Tensor:
    """The mean of rows that are no padding, which the tracing exporter cannot write."""
    if mode != "mean":
        raise RuntimeError(f"its bags are not written as a {mode}")
    counted = (rows != padding_idx).to(weight.dtype).unsqueeze(-1)
    return (F.embedding(rows, weight) * counted).sum(1) / counted.sum(1).clamp(min=1)


def _conv_transpose2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    *others: object,
) -> torch.Tensor:
    """By a convolution of the input with zeros between, since ConvTranspose's gradient has no kernel there."""
    if others != ((0, 0), 1, (1, 1)):
        raise RuntimeError("its transposed convolutions are written without output padding, groups and dilation only")
    n, channels, *sizes = x.shape
    (height, width), (down, across) = sizes, stride
    spread = F.pad(x.reshape(n, channels, height, 1, width, 1), (0, across - 1, 0, 0, 0, down - 1))
    spread = spread.reshape(n, channels, height * down, width * across)[..., : 1 - down or None, : 1 - across or None]
    edges = [size - 1 - edge for size, edge in zip(weight.shape[2:], padding, strict=True)]
    for axis in (2, 3):  # A flip becomes a Slice, whose gradient fails on a negative step.
        weight = weight.index_select(axis, torch.arange(weight.shape[axis] - 1, -1, -1))
    return F.conv2d(spread, weight.transpose(0, 1), bias, padding=edges)


_DIFFERENTIABLE: dict[object, Callable[..., torch.Tensor]] = {
    F.group_norm: _group_norm,
    F.hardsigmoid: _hardsigmoid,
    F.hardswish: _hardswish,
    F.embedding_bag: _embedding_bag,
    F.conv_transpose2d: _conv_transpose2d,
}
"""What it cannot differentiate, in operators that it can."""


class _Differentiable(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _DIFFERENTIABLE.get(func, func)(*args, **(kwargs or {}))


def _forward(whole: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> onnx.ModelProto:
    """Model and loss in training mode, for batches of this size, which is what suits it best."""
    with warnings.catch_warnings(), _Differentiable():
        warnings.simplefilter("ignore")  # That this exporter is the old one is why it is used.
        torch.onnx.export(
            whole,
            tuple(tensor.clone() for tensor in tensors.values()),  # Tensors of one storage would become one input.
            str(path),
            dynamo=False,
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
            opset_version=_OPSET,
            input_names=list(tensors),
            output_names=["loss"],
        )
    model = onnx.load(path)
    for node in model.graph.node:
        # Their gradients are made of outputs that are optional otherwise.
        wanted = {"SoftmaxCrossEntropyLoss": 2, "LayerNormalization": 3}.get(node.op_type, 0)
        node.output.extend(f"{node.output[0]}_{index}" for index in range(len(node.output), wanted))
    return model


def _losses(whole: nn.Module, tensors: Mapping[str, torch.Tensor], learning_rate: float) -> list[float]:
    """PyTorch's of the first steps."""
    rule = torch.optim.SGD([parameter for parameter in whole.parameters() if parameter.requires_grad], learning_rate)
    found = []
    for _ in range(_CHECKED_STEPS):
        rule.zero_grad()
        loss = whole(*tensors.values())
        loss.backward()
        rule.step()
        found.append(loss.item())
    return found


def _reason(log: str) -> str:
    """The last error of a log, in a line: what comes after the C++ function's name, which is long."""
    last = [line for line in log.splitlines() if "Error" in line] or ["ended without a word"]
    return last[-1].partition("RuntimeError: ")[2][-200:] or last[-1][:200]
