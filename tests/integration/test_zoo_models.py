"""The zoo: every model is exported, trains on stock ONNX Runtime, and ends where PyTorch itself ends."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.plan import TrainingPlan
from exporters.examples.zoo import ZOO
from tests.integration.exported import exported, rows, trained_eagerly


@pytest.mark.parametrize("name", ZOO)
def test_a_model_of_the_zoo_trains_as_in_pytorch(name: str) -> None:
    spec = ZOO[name]()
    x: torch.Tensor | Mapping[str, torch.Tensor]
    if isinstance(spec.example_inputs, tuple):
        (x,), y = spec.example_inputs, spec.example_target
    else:
        x, y = spec.example_inputs, spec.example_target
    artifact = exported(spec.model, x, y, spec.loss, name=spec.name, learning_rate=spec.learning_rate)
    assert artifact.manifest.format("onnx").replay.worst < 0.5
    plan = TrainingPlan(epochs=4, batch_size=8, learning_rate=artifact.manifest.optimizer.default_learning_rate)
    checkpoint, examples = artifact.checkpoint(), rows(x, y)
    result = BundleTrainer(artifact).train(checkpoint, examples, plan, seed=b"order")

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


def test_the_zoo_is_the_same_every_time() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, two = ZOO["mlp"](), ZOO["mlp"]()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(map(torch.equal, one.example_inputs, two.example_inputs))
    assert all(map(torch.equal, one.model.parameters(), two.model.parameters()))
