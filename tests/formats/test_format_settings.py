"""What else than a plain step LiteRT and ExecuTorch carry, what they refuse, and what their batches may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edge_sdk.errors import ExportError, TrainingError
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.gradients import BundleGradients
from edge_sdk.training.graphs import load_graph, open_graph, run_named
from edge_sdk.training.manifest import Runtime
from edge_sdk.training.plan import TrainingPlan
from tests.integration import covered
from tests.integration.covered_cases import CASES
from tests.integration.exported import exported, images, known_entropy, labels, rows, small_net

pytestmark = pytest.mark.timeout(3600)

ALL: tuple[Runtime, ...] = ("onnx", "torchscript", "litert", "executorch")
COMPILED: tuple[Runtime, ...] = ("litert", "executorch")
PLAN = TrainingPlan(epochs=2, batch_size=4, learning_rate=0.05)


def _dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 10))


def _normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (small_net, {"optimizer": "adam:max_gradient_norm=1", "correction": True}),
        (_dropout, {"optimizer": "adamw"}),
        (_normalised, {"optimizer": "nesterov"}),
        (small_net, {"trainable": "4.*", "frozen": "int8"}),
        (_dropout, {"privacy": "example:clip_norm=1,noise_multiplier=1,lot_size=8"}),
    ],
    ids=["corrected", "dropout", "batch norm", "int8", "private"],
)
def test_every_runtime_makes_the_same_update(build: Callable[[], nn.Module], settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    artifact = exported(build(), torch.randn(8, 1, 8, 8), labels(8), formats=ALL, compiled_batch=4, **settings)
    checkpoint, examples = artifact.checkpoint(), rows(*images(20))
    updates = [
        BundleTrainer(artifact, runtime, entropy=known_entropy())
        .train(checkpoint, examples, PLAN, seed=bytes(32))
        .update
        for runtime in ALL
    ]
    assert np.abs(updates[0]).max() > 1e-3
    for update in updates[1:]:
        assert np.abs(update - updates[0]).max() < 1e-3 * np.abs(updates[0]).max()


@pytest.mark.parametrize("runtime", COMPILED)
def test_gradients_alone(runtime: Runtime) -> None:
    artifact = _small(gradient=True)
    examples = rows(*images(4))
    found, expected = (
        BundleGradients(artifact, name).at(artifact.checkpoint(), examples) for name in (runtime, ALL[0])
    )
    assert np.abs(expected.vector).max() > 1e-3
    assert np.abs(found.vector - expected.vector).max() < 1e-5
    with pytest.raises(TrainingError, match="5 examples are no batch of this bundle"):
        BundleGradients(artifact, runtime).at(artifact.checkpoint(), rows(*images(5)))


def _small(**settings: Any) -> Artifact:
    formats = ("onnx", *COMPILED)
    return exported(small_net(), torch.randn(8, 1, 8, 8), labels(8), formats=formats, compiled_batch=4, **settings)


def test_batches_of_other_sizes_are_refused() -> None:
    artifact = _small()
    checkpoint, examples = artifact.checkpoint(), rows(*images(20))
    for runtime in COMPILED:
        with pytest.raises(TrainingError, match=f"batches of 8, this bundle's {runtime} graphs take up to 4"):
            BundleTrainer(artifact, runtime).train(
                checkpoint, examples, TrainingPlan(epochs=1, batch_size=8, learning_rate=0.1), seed=b""
            )
    few = rows(*images(3))
    with pytest.raises(TrainingError, match=r"litert graphs take batches of 4 or more: .* there are 3 examples"):
        BundleTrainer(artifact, "litert").train(checkpoint, few, PLAN, seed=b"")
    # ExecuTorch takes smaller ones, and so the rest of an epoch too.
    assert BundleTrainer(artifact, "executorch").train(checkpoint, few, PLAN, seed=b"").steps == PLAN.epochs


@pytest.mark.parametrize("runtime", COMPILED)
def test_an_open_graph_keeps_what_it_runs_from(runtime: Runtime) -> None:
    artifact = _small()
    spec, content = artifact.manifest.graph("infer"), artifact.part(artifact.manifest.graph("infer").part(runtime))
    graph = load_graph(runtime, bytes(bytearray(content)), spec, {})
    taken = [b"\xff" * len(content) for _ in range(100)]
    x, _ = images(4)
    feeds = artifact.layout.unflatten(artifact.checkpoint()) | {"x": x}
    found = run_named(graph, feeds)["output"]
    assert len(taken) == 100
    np.testing.assert_allclose(found, run_named(open_graph(artifact, "infer"), feeds)["output"], atol=1e-5)


def test_what_compiles_and_does_not_run_is_refused_by_operator_and_line() -> None:
    case = CASES["torch.scatter_add"]
    model, x, y = covered.examples(case, 9)
    with pytest.raises(ExportError, match=r"covered_functions.py:\d+ `.*: LiteRT cannot carry aten.scatter_add"):
        exported(model, x, y, case.loss, formats=("onnx", "litert"))


class _Sorted(nn.Module):
    """Has an operator that neither carries."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(torch.tanh(self.linear(x)), dim=1)[0]


@pytest.mark.parametrize(("runtime", "title"), [("litert", "LiteRT"), ("executorch", "ExecuTorch")])
def test_what_cannot_be_carried_is_refused_by_operator_and_line(runtime: Runtime, title: str) -> None:
    wanted = rf"test_format_settings.py:\d+ `return torch.sort.*: {title} cannot carry aten.sort"
    with pytest.raises(ExportError, match=wanted) as caught:
        exported(_Sorted(), torch.randn(8, 6), torch.randn(8, 8), F.mse_loss, formats=("onnx", runtime))
    assert caught.value.hint is not None
    assert f"leave {runtime} out" in caught.value.hint
