"""What a training step costs: every model of the zoo on stock ONNX Runtime, against eager PyTorch and other peers.

    python -m benchmarks.train_step [--models mlp,lenet] [--batches 32,8] [--optimizer sgd] [--peers all]

One thread, CPU time of the process that trains. The contenders take turns within each round, so that a busy machine
slows all of them; a ratio is the median of the rounds' ratios. Peers, of which eager PyTorch is always one:

    torchscript  the bundle's TorchScript graphs
    litert       its LiteRT graphs, where the extra export-litert is installed; the export takes minutes
    executorch   its ExecuTorch graphs, where the extra executorch is; so do these
    compile      torch.compile, which takes minutes to warm up and needs a C++ compiler
    private      the bundle's step with clipped gradients of each example, before noise
    official     ONNX Runtime's own training API, the last there is, in an environment of its own, which is made at
                 --official-env if it is not there; it gets what PyTorch's tracing exporter writes of model and loss,
                 in operators that it can differentiate, and must lose what PyTorch loses

All peers at once run in the environment that `make formats` makes: work/formats/bin/python -m benchmarks.train_step
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric import ec

import edge_sdk.training
import exporters
from benchmarks.official_training import OfficialTraining, official_python
from edge_sdk.errors import ExportError
from edge_sdk.training.artifact import Artifact, parse_artifact
from edge_sdk.training.graphs import run_named, runtime_name
from edge_sdk.training.manifest import Runtime
from edge_sdk.training.steps import SampledSteps, TrainingSteps, open_steps
from exporters import ModelSpec, export
from exporters.arguments import Arguments, read_arguments
from exporters.examples.zoo import ZOO

ROUNDS = 9
ROUND_S = 0.3
RATES = {"sgd": 0.01, "adam": 1e-4}
PEERS = ("torchscript", "litert", "executorch", "compile", "private", "official")
RATIOS = (
    ("ours", "eager"),
    ("torchscript", "eager"),
    ("litert", "eager"),
    ("executorch", "eager"),
    ("compile", "eager"),
    ("private", "ours"),
    ("ours", "official"),
)
"""What is divided by what, of those that were asked for."""

TITLES = {
    "ours": "edge-sdk",
    "compile": "torch.compile",
    "torchscript": "TorchScript",
    "litert": "LiteRT",
    "executorch": "ExecuTorch",
    "official": "ORT training",
}

# Known to everyone: nothing but this benchmark opens what it signs.
_SIGNER = ec.derive_private_key(1, ec.SECP256R1())
_PACKAGES = tuple(path for package in (exporters, edge_sdk.training) for path in package.__path__)

Contender = Callable[[int], float]
"""Takes so many steps, and gives the seconds of CPU time of each."""


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """A model of the zoo with a batch of examples."""

    spec: ModelSpec
    arguments: Arguments
    tensors: Mapping[str, torch.Tensor]
    optimizer: str

    @classmethod
    def of(cls, spec: ModelSpec, batch: int, optimizer: str) -> _Task:
        arguments, inputs = read_arguments(spec.model, spec.example_inputs)
        rows = torch.arange(batch) % len(spec.example_target)
        tensors = {name: tensor[rows].contiguous() for name, tensor in {**inputs, "y": spec.example_target}.items()}
        return cls(spec, arguments, tensors, optimizer)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--models", default=",".join(ZOO), help="names, with commas (default: all)")
    parser.add_argument("--batches", default="32", help="examples a step, with commas (default: %(default)s)")
    parser.add_argument("--optimizer", default="sgd", choices=tuple(RATES), help="(default: %(default)s)")
    parser.add_argument("--peers", default="", help=f'of {",".join(PEERS)}, or "all" (default: eager PyTorch alone)')
    parser.add_argument(
        "--bundles",
        type=Path,
        help="keep bundles here, and take those that this code has made before: converters are slow",
    )
    parser.add_argument(
        "--official-env",
        type=Path,
        default=Path("work/onnxruntime-training"),
        help="environment of ONNX Runtime's training API (default: %(default)s)",
    )
    options = parser.parse_args(sys.argv[1:])
    peers = PEERS if options.peers == "all" else tuple(filter(None, options.peers.split(",")))
    if unknown := set(peers) - set(PEERS):
        parser.error(f"there is no peer {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    notes: list[str] = []
    python = official_python(options.official_env) if "official" in peers else None
    left_out = {"official": "its environment cannot be made"} if "official" in peers and python is None else {}
    if "official" in peers and options.optimizer != "sgd":
        left_out["official"] = "it is measured with SGD only"
    if "compile" in peers and (missing := _why_not_compile()):
        left_out["compile"] = missing
    notes += [f"{TITLES[peer]} left out: {why}" for peer, why in left_out.items()]
    peers = tuple(peer for peer in peers if peer not in left_out)
    ratios = [(one, other) for one, other in RATIOS if {one, other} <= {"ours", "eager", *peers}]
    print(f"{options.optimizer}, one thread, CPU time, medians of {ROUNDS} interleaved rounds")
    print(
        f"torch {torch.__version__}, {runtime_name('onnx')}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n"
    )
    print(_row("model", "batch", "eager ms", "edge-sdk ms", *(f"{_title(a)} / {_title(b)}" for a, b in ratios)))
    print("|---" * (4 + len(ratios)) + "|")
    for name in options.models.split(","):
        for batch in (int(size) for size in options.batches.split(",")):
            task = _Task.of(ZOO[name](), batch, options.optimizer)
            with _contenders(task, peers, python, options.bundles, notes) as contenders:
                rounds = _rounds(contenders)
            cells = [
                f"{_ratio(rounds[one], rounds[other]):.2f}" if {one, other} <= rounds.keys() else "-"
                for one, other in ratios
            ]
            print(_row(name, batch, _ms(rounds["eager"]), _ms(rounds["ours"]), *cells), flush=True)
    print("\n" + "\n".join(dict.fromkeys(notes)))


@contextmanager
def _contenders(
    task: _Task, peers: tuple[str, ...], python: Path | None, bundles: Path | None, notes: list[str]
) -> Iterator[dict[str, Contender]]:
    """Those of the peers that can train the model, warmed up; why others cannot is noted."""
    name = task.spec.name
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        kept = bundles or Path(folder)
        artifact = _export(task, kept, "plain")
        found: dict[str, Contender] = {"eager": _timed(_eager(task)), "ours": _timed(_bundled(artifact, task))}
        for peer in peers:
            try:
                match peer:
                    case "torchscript" | "litert" | "executorch":
                        size = len(task.tensors["y"])
                        formats = {"formats": ("onnx", peer), "compiled_batch": size}
                        other = _export(task, kept, peer, **formats)
                        found[peer] = _timed(_bundled(other, task, peer))
                    case "compile":
                        found[peer] = _timed(_eager(task, compiled=True))
                    case "private":
                        private = _export(task, kept, peer, privacy="example")
                        found[peer] = _timed(_private(private, task))
                    case "official":
                        if python is None:
                            raise AssertionError(peer)
                        official = OfficialTraining(
                            python, task.spec, task.arguments, task.tensors, RATES["sgd"], Path(folder)
                        )
                        found[peer] = stack.enter_context(official).step_s
                    case _:
                        raise AssertionError(peer)
            except (ExportError, RuntimeError) as error:
                notes.append(f"{name} without {_title(peer)}: {str(error).splitlines()[0][:150]}")
        yield found


def _export(task: _Task, folder: Path, kind: str, **settings: Any) -> Artifact:
    """A bundle of the model, made here unless this code has made it in that folder before."""
    made_by = b"".join(path.read_bytes() for package in _PACKAGES for path in sorted(Path(package).rglob("*.py")))
    digest = hashlib.sha256(made_by + torch.__version__.encode()).hexdigest()[:8]
    path = folder / f"{task.spec.name}-{kind}-{len(task.tensors['y'])}-{task.optimizer}-{digest}.edge"
    if path.exists():
        return parse_artifact(path.read_bytes(), signer=_SIGNER.public_key())
    folder.mkdir(parents=True, exist_ok=True)
    return export(
        task.spec.model,
        task.spec.loss,
        example_inputs=task.spec.example_inputs,
        example_target=task.spec.example_target,
        path=path,
        signer=_SIGNER,
        optimizer=task.optimizer,
        name=task.spec.name,
        **settings,
    )


def _eager(task: _Task, *, compiled: bool = False) -> Callable[[], object]:
    spec = task.spec
    args, kwargs = task.arguments.fill(task.tensors)
    parameters = [parameter for parameter in spec.model.parameters() if parameter.requires_grad]
    rate = RATES[task.optimizer]
    rule: torch.optim.Optimizer
    rule = torch.optim.SGD(parameters, rate) if task.optimizer == "sgd" else torch.optim.Adam(parameters, rate)

    def measure() -> torch.Tensor:
        return spec.loss(spec.model(*args, **kwargs), task.tensors["y"])

    loss_of: Callable[[], torch.Tensor] = torch.compile(measure) if compiled else measure

    def step() -> float:
        rule.zero_grad()
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        rule.step()
        return loss.item()

    return step


def _bundled(artifact: Artifact, task: _Task, runtime: Runtime = "onnx") -> Callable[[], object]:
    steps = open_steps(artifact, runtime)
    feeds = _feeds(steps, artifact, task)

    def step() -> None:
        steps.feed_back(steps.run(feeds), feeds)

    return step


def _private(artifact: Artifact, task: _Task) -> Callable[[], object]:
    """The clip graph and the train graph, without what lies between: turning gradients into integers and noise."""
    steps = open_steps(artifact)
    if not isinstance(steps, SampledSteps):
        raise TypeError("the bundle is not private")
    feeds = _feeds(steps, artifact, task)

    def step() -> None:
        feeds.update(run_named(steps.clip, feeds))
        steps.feed_back(run_named(steps.graph, feeds), feeds)

    return step


def _feeds(steps: TrainingSteps, artifact: Artifact, task: _Task) -> dict[str, Any]:
    feeds: dict[str, Any] = steps.state(artifact.layout.unflatten(artifact.checkpoint()))
    feeds |= {name: tensor.numpy() for name, tensor in task.tensors.items()}
    feeds["learning_rate"] = np.array(RATES[task.optimizer], np.float32)
    feeds["seed"] = np.array(1, np.int64)
    feeds["weight"] = np.ones(len(task.tensors["y"]), np.float32)
    return feeds


def _why_not_compile() -> str | None:
    """What torch.compile lacks here, if anything."""
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        return "there is no C++ compiler"
    try:
        torch.compile(lambda x: (x + 1).sum())(torch.ones(3))
    except RuntimeError as error:
        return str(error).splitlines()[0][:150]
    return None


def _timed(step: Callable[[], object]) -> Contender:
    for _ in range(3):
        step()

    def steps(count: int) -> float:
        start = time.process_time()
        for _ in range(count):
            step()
        return (time.process_time() - start) / count

    return steps


def _rounds(contenders: Mapping[str, Contender]) -> dict[str, list[float]]:
    """Seconds of a step in each round, for each contender."""
    counts = {name: max(2, int(ROUND_S / max(steps(2), 1e-4))) for name, steps in contenders.items()}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, steps in contenders.items():
            found[name].append(steps(counts[name]))
    return found


def _ms(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.2f}"


def _ratio(ones: list[float], others: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _title(contender: str) -> str:
    return TITLES.get(contender, contender)


if __name__ == "__main__":
    main()
