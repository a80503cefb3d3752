"""The gradient graph: a step of one's own on the device, for algorithms that optimizers in the graph do not cover."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edge_sdk.errors import ArtifactError, ExportError, TrainingError
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.gradients import BundleGradients
from edge_sdk.training.manifest import check_manifest
from edge_sdk.training.plan import TrainingPlan, batches, step_seed
from exporters.randomness import Seeded
from tests.integration.exported import exported, flat, labels, small, small_net, trained_eagerly

COUNT = 20


def _normed() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 10))
    model[0].bias.requires_grad_(False)
    return model


@lru_cache
def artifact() -> Artifact:
    """A model with batch norm and a frozen parameter."""
    torch.manual_seed(4)
    return exported(_normed(), torch.randn(COUNT, 12), labels(COUNT), gradient=True)


def rows() -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(7)
    return {"x": random.standard_normal((COUNT, 12)).astype(np.float32), "y": labels(COUNT).numpy()}


def test_steps_of_ones_own_follow_pytorch_for_twenty() -> None:
    """Plain descent by hand, batch norm's statistics taken over: the model that torch trains, and the train graph."""
    examples, plan = rows(), TrainingPlan(epochs=5, batch_size=5, learning_rate=0.1)
    gradients, layout = BundleGradients(artifact()), artifact().layout
    vector = artifact().checkpoint()
    losses = []
    for chosen in batches(plan, COUNT, b"s"):
        found = gradients.at(vector, {name: field[chosen] for name, field in examples.items()})
        tensors = layout.unflatten(vector - np.float32(0.1) * found.vector)
        vector = layout.flatten({**tensors, **found.buffers})
        losses.append(found.loss * len(chosen))
    assert len(losses) == 20

    model = _normed()
    make = lambda p: torch.optim.SGD(p, 0.1)  # noqa: E731
    after, eager = trained_eagerly(model, F.cross_entropy, make, examples["x"], examples["y"], plan, b"s")
    np.testing.assert_allclose(losses, eager, rtol=1e-4)
    np.testing.assert_allclose(vector[: len(after)], after, atol=1e-5)
    assert np.array_equal(flat(model), after)
    result = BundleTrainer(artifact()).train(artifact().checkpoint(), examples, plan, seed=b"s")
    np.testing.assert_allclose(vector, artifact().checkpoint() + result.update, atol=1e-5)


def test_dropout_is_that_of_the_step() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(12, 16), nn.Dropout(0.5), nn.Linear(16, 10))
    examples = rows()
    gradients = BundleGradients(
        exported(model, torch.from_numpy(examples["x"]), torch.from_numpy(examples["y"]), gradient=True)
    )
    checkpoint = flat(model)
    for step in (0, 3):
        found = gradients.at(checkpoint, examples, seed=b"s", step=step)
        with Seeded(torch.tensor(step_seed(b"s", step))):
            loss = F.cross_entropy(model(torch.from_numpy(examples["x"])), torch.from_numpy(examples["y"]))
        expected = torch.autograd.grad(loss, list(model.parameters()))
        flattened = torch.cat([gradient.reshape(-1) for gradient in expected])
        np.testing.assert_allclose(found.vector, flattened.numpy(), atol=1e-6)


def test_what_is_no_batch_is_refused() -> None:
    gradients = BundleGradients(artifact())
    one = {name: field[:1] for name, field in rows().items()}
    with pytest.raises(TrainingError, match="1 examples are no batch of this bundle"):
        gradients.at(artifact().checkpoint(), one)


def test_a_bundle_without_the_graph_says_so() -> None:
    with pytest.raises(ArtifactError, match="no gradient graph") as caught:
        BundleGradients(small())
    assert "--gradient" in caught.value.hint


def test_a_private_step_has_no_gradient_beside_it() -> None:
    with pytest.raises(ExportError, match="may not stand beside"):
        exported(small_net(), torch.randn(8, 1, 8, 8), labels(8), gradient=True, privacy="example")


def test_a_manifest_with_less_than_all_gradients_makes_no_sense() -> None:
    manifest = artifact().manifest
    changed = tuple(
        replace(graph, outputs=graph.outputs[1:]) if graph.kind == "gradient" else graph for graph in manifest.graphs
    )
    with pytest.raises(ArtifactError, match="does not give a gradient of each parameter"):
        check_manifest(replace(manifest, graphs=changed))
