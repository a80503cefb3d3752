"""Trains a model of the zoo on some runtime, and sees that it ends where PyTorch itself ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from edge_sdk.training.artifact import Artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.manifest import Runtime
from edge_sdk.training.plan import TrainingPlan
from exporters.examples.zoo import ZOO
from tests.integration.exported import exported, rows, trained_eagerly

BATCH = 8


def train_as_pytorch(name: str, runtime: Runtime = "onnx", **settings: Any) -> Artifact:
    """Export a model of the zoo with these settings, train it both ways, compare, and give the bundle."""
    spec = ZOO[name]()
    x: torch.Tensor | Mapping[str, torch.Tensor]
    if isinstance(spec.example_inputs, tuple):
        (x,), y = spec.example_inputs, spec.example_target
    else:
        x, y = spec.example_inputs, spec.example_target
    artifact = exported(spec.model, x, y, spec.loss, name=spec.name, learning_rate=spec.learning_rate, **settings)
    assert artifact.manifest.format(runtime).replay.worst < 0.5
    plan = TrainingPlan(epochs=4, batch_size=BATCH, learning_rate=artifact.manifest.optimizer.default_learning_rate)
    checkpoint, examples = artifact.checkpoint(), rows(x, y)
    result = BundleTrainer(artifact, runtime).train(checkpoint, examples, plan, seed=b"order")

    _, losses = trained_eagerly(
        spec.model,
        spec.loss,
        lambda p: torch.optim.SGD(p, plan.learning_rate),
        {key: value for key, value in examples.items() if key != "y"} if isinstance(x, Mapping) else examples["x"],
        examples["y"],
        plan,
        b"order",
    )
    state = spec.model.state_dict()
    after = np.concatenate([state[entry.name].numpy().reshape(-1) for entry in artifact.layout.entries])
    moved, apart = (float(np.linalg.norm(end - after)) for end in (checkpoint, checkpoint + result.update))
    # Usually a millionth, but one ReLU on the other side of its kink sends the two on ways of their own.
    assert apart < 0.1 * moved
    assert result.loss == pytest.approx(sum(losses) / (plan.epochs * len(y)), rel=1e-2)
    steps = len(y) // plan.batch_size
    assert sum(losses[-steps:]) < 0.99 * sum(losses[:steps])
    return artifact
