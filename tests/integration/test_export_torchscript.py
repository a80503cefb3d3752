"""TorchScript beside ONNX in one bundle: certified alike, trained alike, one cohort."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edge_sdk.errors import ArtifactError, ExportError
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.learner import LocalLearner
from edge_sdk.training.manifest import Runtime
from edge_sdk.training.parity import replay_parity
from edge_sdk.training.plan import TrainingPlan
from exporters.examples import zoo
from tests.integration.covered import examples
from tests.integration.covered_cases import CASES
from tests.integration.exported import SIGNER, exported, images, labels, small, small_net

BOTH: tuple[Runtime, ...] = ("onnx", "torchscript")


def both() -> Any:
    return exported(small_net(), torch.randn(8, 1, 8, 8), labels(8), formats=BOTH, name="both")


def test_two_devices_with_different_runtimes_make_the_same_update() -> None:
    artifact = both()
    x, y = images(40)
    plan = TrainingPlan(epochs=2, batch_size=8, learning_rate=0.05)
    updates = [
        BundleTrainer(artifact, runtime).train(artifact.checkpoint(), {"x": x, "y": y}, plan, seed=bytes(32)).update
        for runtime in BOTH
    ]
    assert np.abs(updates[0]).max() > 1e-3
    assert np.abs(updates[0] - updates[1]).max() < 1e-5
    assert tuple(known.name for known in artifact.manifest.formats) == BOTH
    assert replay_parity(artifact, "torchscript").ok


@pytest.mark.parametrize("model", ["mlp", "lenet", "gru"])
def test_zoo_models_are_certified_as_torchscript_too(model: str) -> None:
    spec = getattr(zoo, model)()
    artifact = exported(
        spec.model, spec.example_inputs[0], spec.example_target, spec.loss, optimizer="adam", formats=BOTH
    )
    assert {graph.part("torchscript") for graph in artifact.manifest.graphs} <= set(artifact.parts)


@pytest.mark.parametrize(
    "settings", [{}, {"trainable": "3.*", "frozen": "int8"}, {"gradient": True}], ids=["all", "int8", "gradient"]
)
def test_dropout_and_what_is_frozen_in_8_bits_train_as_torchscript(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))
    x, y = torch.randn(24, 4), labels(24) % 3
    artifact = exported(model, x, y, formats=BOTH, **settings)
    plan = TrainingPlan(epochs=3, batch_size=8, learning_rate=0.1)
    start, examples = artifact.checkpoint(), {"x": x.numpy(), "y": y.numpy()}
    one, two = (BundleTrainer(artifact, runtime).train(start, examples, plan, seed=b"s").update for runtime in BOTH)
    assert np.abs(one).max() > 1e-2
    assert np.abs(one - two).max() < 1e-6
    again = BundleTrainer(artifact, "torchscript").train(start, examples, plan, seed=b"t").update
    assert np.abs(one - again).max() > 1e-3, "the seed decides about masks"


@pytest.mark.parametrize(
    "name",
    [
        "nn.LogSigmoid",
        "nn.LPPool2d",
        "torch.max",
        "torch.logit",
        "F.scaled_dot_product_attention: mask for each example",
        "F.grid_sample",
        "nn.GRU: padded sequences",
        "torch.topk",
        "x[indices] = values",
    ],
)
def test_what_is_covered_can_be_torchscript(name: str) -> None:
    """Some of all that is, among them arguments that its text has to spell with care: empty lists, numbers, truths."""
    model, x, y = examples(CASES[name], 9)
    assert exported(model, x, y, CASES[name].loss, formats=BOTH).manifest.format("torchscript").replay.worst < 1


def test_there_is_no_autograd_in_it() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.load")
        loaded: Any = torch.jit.load(io.BytesIO(both().part("train.ts")))  # type: ignore[no-untyped-call]
    code = str(loaded.code)
    assert "convolution_backward" in code
    assert "requires_grad" not in code


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


def test_formats_that_there_are_not_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    with pytest.raises(ExportError, match="the formats onnx, coreml cannot be exported"):
        exported(model, torch.randn(8, 4), labels(8) % 3, formats=("onnx", "coreml"))
    with pytest.raises(ExportError, match="the formats torchscript cannot be exported"):
        exported(model, torch.randn(8, 4), labels(8) % 3, formats=("torchscript",))
