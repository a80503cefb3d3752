"""TorchScript beside ONNX in one bundle: certified alike, trained alike, one cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edge_sdk.errors import ArtifactError, ExportError
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.training.learner import LocalLearner
from edge_sdk.training.onnx_sessions import Runtime, graph_part, open_graph
from edge_sdk.training.onnx_trainer import OnnxTrainer
from edge_sdk.training.parity import replay_parity
from edge_sdk.training.plan import TrainingPlan
from exporters.examples import zoo
from tests.integration.exported import SIGNER, exported, images, labels, small, small_net

BOTH: tuple[Runtime, ...] = ("onnx", "torchscript")


def both() -> Any:
    return exported(small_net(), torch.randn(8, 1, 8, 8), labels(8), formats=BOTH, name="both")


def test_two_devices_with_different_runtimes_make_the_same_update() -> None:
    artifact = both()
    x, y = images(40)
    plan = TrainingPlan(epochs=2, batch_size=8, learning_rate=0.05)
    updates = [
        OnnxTrainer(artifact, runtime).train(artifact.checkpoint(), {"x": x, "y": y}, plan, seed=bytes(32)).update
        for runtime in BOTH
    ]
    assert np.abs(updates[0]).max() > 1e-3
    assert np.abs(updates[0] - updates[1]).max() < 1e-5
    assert artifact.manifest.requirements.formats == BOTH
    assert replay_parity(artifact, "torchscript").ok


@pytest.mark.parametrize("model", ["mlp", "lenet", "gru"])
def test_zoo_models_are_certified_as_torchscript_too(model: str) -> None:
    spec = getattr(zoo, model)()
    artifact = exported(
        spec.model, spec.example_inputs[0], spec.example_target, spec.loss, optimizer="adam", formats=BOTH
    )
    assert {graph_part(graph, "torchscript") for graph in artifact.manifest.graphs} <= set(artifact.parts)


def test_there_is_no_autograd_in_it() -> None:
    graph = open_graph(both(), "train", "torchscript")
    assert "backward" in str(graph._function.graph)  # type: ignore[attr-defined]
    for tensor in graph.spec.inputs:
        assert tensor.dtype in ("float32", "int64")


def test_a_device_asks_for_the_parts_of_its_runtime(tmp_path: Path) -> None:
    artifact, key = both(), SIGNER.public_key()
    models = InstalledModels(tmp_path, signer=key)
    sizes = {spec.sha256: spec.name for spec in artifact.manifest.parts}
    asked = {
        runtime: {
            sizes[part.sha256.hex()] for part in LocalLearner(key, None, models, runtime=runtime).parts(artifact.head)
        }
        for runtime in ("onnx", "torchscript")
    }
    assert "train.onnx" in asked["onnx"]
    assert "train.ts" not in asked["onnx"]
    assert "train.ts" in asked["torchscript"]
    assert "train.onnx" not in asked["torchscript"]
    with pytest.raises(ArtifactError, match="the bundle has no torchscript, but onnx"):
        LocalLearner(key, None, models, runtime="torchscript").parts(small().head)


def test_what_torchscript_cannot_hold_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    with pytest.raises(ExportError, match="TorchScript has no operator edge_sdk"):
        exported(model, torch.randn(8, 4), labels(8) % 3, formats=BOTH)
    with pytest.raises(ExportError, match="in 8 bits cannot be TorchScript"):
        exported(small_net(), torch.randn(8, 1, 8, 8), labels(8), formats=BOTH, trainable="4.*", frozen="int8")
    with pytest.raises(ExportError, match="the formats onnx, coreml cannot be exported"):
        exported(model, torch.randn(8, 4), labels(8) % 3, formats=("onnx", "coreml"))
    with pytest.raises(ExportError, match="the formats torchscript cannot be exported"):
        exported(model, torch.randn(8, 4), labels(8) % 3, formats=("torchscript",))
