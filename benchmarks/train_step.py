"""What a training step costs: every model of the zoo on stock ONNX Runtime, against eager PyTorch.

    python -m benchmarks.train_step [--models mlp,lenet] [--batch 32] [--optimizer sgd] [--compile] [--official]

One thread, CPU time of this process. The contenders take turns within each round, so that a busy machine slows all
of them; the figure is the median of the rounds' ratios. `--compile` adds torch.compile, which takes minutes to warm
up. `--official` adds ONNX Runtime's own training API, the last there is, in an environment of its own that is made
under work/; it gets the bundle's inference graph, and differentiates that itself.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.official_training import OfficialTraining, official_python
from edge_sdk.signing import new_private_key
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.graphs import open_graph
from exporters import ModelSpec, export
from exporters.examples.zoo import ZOO

ROUNDS = 9
ROUND_S = 0.3
LEARNING_RATE = 0.01

Step = Callable[[], object]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--models", default=",".join(ZOO), help="names, with commas (default: all)")
    parser.add_argument("--batch", type=int, default=32, help="examples a step (default: %(default)s)")
    parser.add_argument("--optimizer", default="sgd", choices=("sgd", "adam"), help="(default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--official", action="store_true", help="ONNX Runtime's own training API too, with SGD only")
    options = parser.parse_args(sys.argv[1:])
    if options.official and options.optimizer != "sgd":
        parser.error("--official goes with --optimizer sgd")
    torch.set_num_threads(1)
    python = official_python(Path("work")) if options.official else None
    print(f"batch {options.batch}, {options.optimizer}, one thread, CPU time, medians of {ROUNDS} interleaved rounds")
    print(f"{'':22s}{'eager ms':>10s}{'edge-sdk ms':>13s}  / eager")
    for name in options.models.split(","):
        spec = ZOO[name]()
        with tempfile.TemporaryDirectory() as folder:
            artifact = _export(spec, options.optimizer, Path(folder))
            steps = {
                "eager": _eager(spec, options.batch, options.optimizer),
                "edge-sdk": _ours(artifact, spec, options),
            }
            if options.compile:
                steps["compile"] = _eager(spec, options.batch, options.optimizer, compiled=True)
            rounds = _rounds(steps)
            line = f"  {name:20s}{_middle(rounds['eager']):10.2f}{_middle(rounds['edge-sdk']):13.2f}"
            line += f"{_ratio(rounds['edge-sdk'], rounds['eager']):9.2f}"
            if options.compile:
                line += f"   torch.compile / eager {_ratio(rounds['compile'], rounds['eager']):.2f}"
            if python is not None:
                line += "   " + _against_official(python, artifact, spec, options, Path(folder))
        print(line, flush=True)


def _export(spec: ModelSpec, optimizer: str, folder: Path) -> Artifact:
    return export(
        spec.model,
        spec.loss,
        example_inputs=spec.example_inputs,
        example_target=spec.example_target,
        path=folder / "model.edge",
        signer=new_private_key(),
        optimizer=optimizer,
        name=spec.name,
    )


def _batch(spec: ModelSpec, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    (x,) = spec.example_inputs
    if not isinstance(x, torch.Tensor):
        raise SystemExit(f"{spec.name} takes more than one tensor, which this benchmark cannot feed")
    rows = torch.arange(size) % len(x)
    return x[rows].contiguous(), spec.example_target[rows].contiguous()


def _eager(spec: ModelSpec, size: int, optimizer: str, *, compiled: bool = False) -> Step:
    x, y = _batch(spec, size)
    parameters = [parameter for parameter in spec.model.parameters() if parameter.requires_grad]
    rule: torch.optim.Optimizer
    rule = torch.optim.SGD(parameters, LEARNING_RATE) if optimizer == "sgd" else torch.optim.Adam(parameters, 1e-4)

    def measure() -> torch.Tensor:
        return spec.loss(spec.model(x), y)

    loss_of: Callable[[], torch.Tensor] = torch.compile(measure) if compiled else measure

    def step() -> float:
        rule.zero_grad()
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        rule.step()
        return loss.item()

    return step


def _ours(artifact: Artifact, spec: ModelSpec, options: argparse.Namespace) -> Step:
    graph = open_graph(artifact, "train")
    x, y = _batch(spec, options.batch)
    values: dict[str, Any] = {"input": x.numpy(), "target": y.numpy()}
    values["learning_rate"] = np.array(LEARNING_RATE if options.optimizer == "sgd" else 1e-4, np.float32)
    feeds = {tensor.name: values[tensor.role] for tensor in graph.spec.inputs if tensor.role in values}
    learned = artifact.layout.unflatten(artifact.checkpoint())
    feeds |= dict(graph.constants) | dict(learned)
    for tensor in graph.spec.inputs:
        if tensor.role == "slot":
            feeds[tensor.name] = np.zeros([size or 0 for size in tensor.shape], tensor.dtype)
    feedback = {link.output: link.input for link in graph.spec.feedback}
    names = [tensor.name for tensor in graph.spec.outputs]

    def step() -> None:
        for name, value in zip(names, graph.run(feeds), strict=True):
            if name in feedback:
                feeds[feedback[name]] = value

    return step


def _against_official(
    python: Path, artifact: Artifact, spec: ModelSpec, options: argparse.Namespace, folder: Path
) -> str:
    x, y = _batch(spec, options.batch)
    try:
        official = OfficialTraining(python, artifact, x.numpy(), y.numpy(), LEARNING_RATE, folder)
    except RuntimeError as error:
        return f"ORT training: {error}"
    with official:
        ours: list[float] = []
        theirs: list[float] = []
        step = _ours(artifact, spec, options)
        step()
        for _ in range(ROUNDS):
            ours.append(_cpu_s(step, _count(step)))
            theirs.append(official.step_s())
    return f"edge-sdk / ORT training {_ratio(ours, theirs):.2f}"


def _rounds(steps: dict[str, Step]) -> dict[str, list[float]]:
    """Milliseconds of a step in each round, for each contender."""
    counts = {}
    for name, step in steps.items():
        for _ in range(3):
            step()
        counts[name] = _count(step)
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            found[name].append(_cpu_s(step, counts[name]))
    return found


def _count(step: Step) -> int:
    return max(2, int(ROUND_S / max(_cpu_s(step, 1), 1e-4)))


def _cpu_s(step: Step, count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - start) / count


def _middle(seconds: list[float]) -> float:
    return 1e3 * statistics.median(seconds)


def _ratio(ones: list[float], others: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


if __name__ == "__main__":
    main()
