"""Gradients corrected in training: FedProx, SCAFFOLD and FedDyn, each against its own rule in PyTorch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edge_sdk.errors import ArtifactError, TrainingError
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.runtime.learner import Bundle, TrainingJob
from edge_sdk.signing import key_id, sign_raw
from edge_sdk.training.artifact import Artifact, pack_bundle, parse_artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.layout import Vector
from edge_sdk.training.learner import LocalLearner
from edge_sdk.training.plan import TrainingPlan, batches
from tests.integration.exported import SIGNER, exported, flat, images, labels, rows, small, small_net
from tests.unit.cohort import planned

PLAN = TrainingPlan(epochs=4, batch_size=4, learning_rate=0.1)

# What is minimised beside the loss, from the parameters and the distances gone.
Penalty = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

MAKERS: dict[str, tuple[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]] = {
    "sgd": ("sgd", lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": ("momentum:weight_decay=0.01", lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01)),
    "adam": ("adam", lambda p: torch.optim.Adam(p, 0.1)),
}


@lru_cache
def corrected(optimizer: str = "sgd") -> Artifact:
    return exported(small_net(), torch.randn(8, 1, 8, 8), labels(8), optimizer=optimizer, correction=True)


def penalised(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], penalty: Penalty) -> Vector:
    """Train the model itself on the loss and a penalty: its flat parameters after."""
    model = small_net()
    parameters = list(model.parameters())
    start = torch.cat([parameter.detach().clone().reshape(-1) for parameter in parameters])
    optimizer = make(parameters)
    x, y = images(20)
    for chosen in batches(PLAN, 20, b"s"):
        optimizer.zero_grad()
        whole = torch.cat([parameter.reshape(-1) for parameter in parameters])
        loss = F.cross_entropy(model(torch.from_numpy(x[chosen])), torch.from_numpy(y[chosen]))
        (loss + penalty(whole, whole - start)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return flat(model)


def trained(artifact: Artifact, proximal: float = 0.0, correction: Vector | None = None) -> Vector:
    plan = replace(PLAN, proximal=proximal)
    checkpoint = artifact.checkpoint()
    result = BundleTrainer(artifact).train(checkpoint, rows(*images(20)), plan, seed=b"s", correction=correction)
    assert result.steps == 20
    return checkpoint + result.update


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("proximal", "shifted"), [(0.5, False), (0.0, True), (0.5, True)])
def test_corrected_steps_follow_pytorch_for_twenty(name: str, proximal: float, shifted: bool) -> None:
    """A proximal term alone is FedProx, a correction alone SCAFFOLD, and both are FedDyn."""
    optimizer, make = MAKERS[name]
    artifact = corrected(optimizer)
    correction = 0.1 * np.random.default_rng(5).standard_normal(artifact.layout.size).astype(np.float32)
    found = trained(artifact, proximal, correction if shifted else None)

    def penalty(parameters: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
        linear = (parameters * torch.from_numpy(correction)).sum() if shifted else 0.0
        return proximal / 2 * distances.square().sum() + linear

    after, without = penalised(make, penalty), trained(artifact)
    moved = float(np.abs(after - artifact.checkpoint()).max())
    np.testing.assert_allclose(found, after, atol=1e-6 + 1e-4 * moved)
    assert float(np.abs(after - without).max()) > 0.05 * moved


def test_a_rounds_plan_reaches_the_trainer(tmp_path: Path) -> None:
    artifact, (x, y) = corrected(), images(20)
    checkpoint = artifact.checkpoint()
    with ExampleStore.create_for(tmp_path / "examples.sqlite", rows(x, y)) as store:
        store.add_many(rows(x, y))
        learner = LocalLearner(SIGNER.public_key(), store, InstalledModels(tmp_path, signer=SIGNER.public_key()))
        contents = {hashlib.sha256(content).digest(): content for content in artifact.parts.values()}
        bundle = Bundle(artifact.head, lambda part: contents[part.sha256])
        plan = planned(epochs=4, batch_size=4, max_steps=20, learning_rate=0.1, proximal=0.5, dimension=checkpoint.size)
        update = learner.train(TrainingJob(plan, bundle, checkpoint.tobytes(), b"s", "main"))
    assert np.array_equal(np.frombuffer(update.values, "<f4"), trained(artifact, 0.5) - checkpoint)


def test_without_a_correction_nothing_changes() -> None:
    plain, zeros = trained(small()), np.zeros_like(corrected().checkpoint())
    # Up to rounding: a plain step joins some gradients with what it does to the parameters.
    np.testing.assert_allclose(trained(corrected()), plain, atol=2e-6)
    assert np.array_equal(trained(corrected(), correction=zeros), trained(corrected()))


def test_a_strong_proximal_term_holds_the_model() -> None:
    gone = [float(np.linalg.norm(trained(corrected(), mu) - corrected().checkpoint())) for mu in (0.0, 1.0, 8.0)]
    assert gone[0] > 1.5 * gone[1] > 3 * gone[2] > 0


def test_buffers_are_not_corrected() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    x, y = torch.randn(8, 12), labels(8)
    artifact = exported(model, x, y, correction=True)
    plan = TrainingPlan(epochs=1, batch_size=8, learning_rate=0.1)
    ones = np.ones(artifact.layout.size, np.float32)
    examples = rows(x, y)
    plain, shifted = (
        BundleTrainer(artifact).train(artifact.checkpoint(), examples, plan, seed=b"", correction=correction).update
        for correction in (None, ones)
    )
    learned = artifact.layout.size - 16
    np.testing.assert_allclose(shifted[:learned], plain[:learned] - 0.1, atol=1e-6)
    assert np.array_equal(shifted[learned:], plain[learned:])


def test_a_bundle_that_takes_no_correction_says_so() -> None:
    trainer, checkpoint = BundleTrainer(small()), small().checkpoint()
    with pytest.raises(TrainingError, match="which this bundle does not take") as caught:
        trainer.train(checkpoint, rows(*images(8)), replace(PLAN, proximal=0.1), seed=b"")
    assert "--correction" in caught.value.hint
    with pytest.raises(TrainingError, match="does not take"):
        trainer.train(checkpoint, rows(*images(8)), PLAN, seed=b"", correction=np.zeros_like(checkpoint))


def test_a_correction_must_fit() -> None:
    trainer, checkpoint = BundleTrainer(corrected()), corrected().checkpoint()
    wrongs: list[Any] = [checkpoint[1:], checkpoint.astype(np.float64), np.full_like(checkpoint, np.nan)]
    for wrong in wrongs:
        with pytest.raises(TrainingError, match="the correction"):
            trainer.train(checkpoint, rows(*images(8)), PLAN, seed=b"", correction=wrong)


def test_a_manifest_names_a_correction_for_every_parameter() -> None:
    train, *others = corrected().manifest.graphs
    for dropped in ("proximal", "correction:0.weight"):
        inputs = tuple(tensor for tensor in train.inputs if tensor.name != dropped)
        manifest = replace(corrected().manifest, graphs=(replace(train, inputs=inputs), *others))
        parts = {part.name: corrected().part(part.name) for part in manifest.parts}
        content = pack_bundle(
            manifest, parts, signer_key_id=key_id(SIGNER.public_key()), sign=lambda message: sign_raw(SIGNER, message)
        )
        with pytest.raises(ArtifactError, match="a proximal and a correction for each parameter, or neither"):
            parse_artifact(content, signer=SIGNER.public_key())
