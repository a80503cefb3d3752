"""Models of the zoo as LiteRT and ExecuTorch: each trains there, and ends where PyTorch itself ends."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from edge_sdk.training.artifact import Artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.evaluation import evaluate
from edge_sdk.training.manifest import BatchRange, Runtime
from edge_sdk.training.parity import replay_parity
from edge_sdk.training.plan import TrainingPlan
from exporters.examples.zoo import ZOO
from tests.integration.exported import exported, rows, trained_eagerly

# Compilers take minutes for the larger models.
pytestmark = pytest.mark.timeout(3600)

BATCH = 8
MODELS = ("mlp", "lenet", "mobilenet_v3", "autoencoder", "temporal_convolution", "lstm", "lora", "vit")


@cache
def bundle(name: str) -> Artifact:
    """A model of the zoo in every format."""
    spec = ZOO[name]()
    assert isinstance(spec.example_inputs, tuple)
    return exported(
        spec.model,
        spec.example_inputs,
        spec.example_target,
        spec.loss,
        name=spec.name,
        learning_rate=spec.learning_rate,
        formats=("onnx", "litert", "executorch"),
        compiled_batch=BATCH,
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("runtime", ["litert", "executorch"])
def test_a_model_of_the_zoo_trains_as_in_pytorch(name: str, runtime: Runtime) -> None:
    artifact, spec = bundle(name), ZOO[name]()
    assert isinstance(spec.example_inputs, tuple)
    (x,), y = spec.example_inputs, spec.example_target
    known = artifact.manifest.format(runtime)
    assert known.replay.worst < 0.5
    assert known.batch == BatchRange(BATCH if runtime == "litert" else 1, BATCH)
    assert replay_parity(artifact, runtime).ok
    plan = TrainingPlan(epochs=4, batch_size=BATCH, learning_rate=artifact.manifest.optimizer.default_learning_rate)
    checkpoint, examples = artifact.checkpoint(), rows(x, y)
    result = BundleTrainer(artifact, runtime).train(checkpoint, examples, plan, seed=b"order")

    after, losses = trained_eagerly(
        spec.model,
        spec.loss,
        lambda p: torch.optim.SGD(p, plan.learning_rate),
        examples["x"],
        examples["y"],
        plan,
        b"order",
    )
    moved, apart = (float(np.linalg.norm(end - after)) for end in (checkpoint, checkpoint + result.update))
    # Usually a millionth, but one ReLU on the other side of its kink sends the two on ways of their own.
    assert apart < 0.1 * moved
    assert result.loss == pytest.approx(sum(losses) / (plan.epochs * len(x)), rel=1e-2)
    trained = evaluate(artifact, checkpoint + result.update, examples)
    assert trained.loss < evaluate(artifact, checkpoint, examples).loss
