"""Devices of every runtime in one secure sum: the model is what one runtime would make of it."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coordinator.config import Training
from coordinator.service.tasks import newest_model
from device_sim.fleet import FleetFolders, make_authorities, make_devices
from edge_sdk import DevicePolicy, EdgeClient
from edge_sdk.cli import main
from edge_sdk.clock import SystemClock
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.layout import Vector
from edge_sdk.training.learner import LocalLearner
from edge_sdk.training.manifest import Runtime
from edge_sdk.training.plan import TrainingPlan
from tests.integration.commands import Command
from tests.integration.exported import SIGNER, exported, images, labels, rows
from tests.shared import free_port
from tests.simulation import world
from tests.simulation.world import World

pytestmark = pytest.mark.timeout(3600)

RUNTIMES: tuple[Runtime, ...] = ("onnx", "torchscript", "litert", "executorch")
DEVICES, ROUNDS, EXAMPLES = 8, 2, 8
# One batch of everything a device holds, so that no shuffle decides.
PLAN = TrainingPlan(epochs=1, batch_size=EXAMPLES, learning_rate=0.1)


def _learner(folder: Path, number: int) -> LocalLearner:
    examples = rows(*images(EXAMPLES, seed=number))
    store = ExampleStore.create_for(folder / f"examples-{number}.sqlite", examples)
    store.add_many(examples)
    key = SIGNER.public_key()
    models = InstalledModels(folder / f"models-{number}", signer=key)
    return LocalLearner(key, store, models, runtime=RUNTIMES[number % len(RUNTIMES)])


def _expected(artifact: Artifact) -> Vector:
    """What plain averaging on ONNX Runtime makes of a model of zeros."""
    trainer, model = BundleTrainer(artifact), np.zeros(artifact.layout.size, np.float32)
    for _ in range(ROUNDS):
        updates = [
            trainer.train(model, rows(*images(EXAMPLES, seed=number)), PLAN, seed=b"").update
            for number in range(DEVICES)
        ]
        assert max(map(np.linalg.norm, updates)) < 1, "nothing is clipped"
        model += np.mean(updates, axis=0)
    return model


def test_learners_of_every_runtime_share_a_round(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    artifact = exported(model, torch.randn(8, 1, 8, 8), labels(8), formats=RUNTIMES, compiled_batch=EXAMPLES)
    config = replace(
        world.task_config(DEVICES, rounds=ROUNDS, dimension=artifact.layout.size),
        training=Training(epochs=PLAN.epochs, batch_size=EXAMPLES, max_steps=10, learning_rate=PLAN.learning_rate),
    )
    learners = [_learner(tmp_path, number) for number in range(DEVICES)]
    parts = list(artifact.parts.values())
    with World(tmp_path, DEVICES, config=config, bundle=artifact.head, parts=parts, learners=learners) as made:
        made.run()
        assert [(view.phase, view.reported) for view in made.rounds] == [("committed", DEVICES)] * ROUNDS
        _, checkpoint = newest_model(made.database, made.blobs, "task")
    found, expected = np.frombuffer(checkpoint, "<f4"), _expected(artifact)
    # What rounding to integers leaves of it.
    assert np.linalg.norm(found - expected) < 0.08 * np.linalg.norm(expected)


def test_apps_on_every_runtime_train_with_a_real_coordinator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, now = FleetFolders(tmp_path / "fleet"), SystemClock().now()
    make_authorities(folders, now)
    x, y = images(4)
    make_devices(folders, {runtime: rows(x, y) for runtime in RUNTIMES}, now)
    formats = "--format torchscript --format litert --format executorch --compiled-batch 4"
    assert main(f"export --signer {folders.signer_key} --out {folders.bundle} {formats}".split()) == 0
    create = (
        f"run create {{}} --home {folders.coordinator} --bundle {folders.bundle} --signer {folders.signer_public} "
        "--devices 4 --min-reports 4 --rounds 1 --epsilon off --batch-size {}"
    )
    assert main(create.format("large", 32).split()) == 0
    said = capsys.readouterr().out
    assert "devices on litert cannot take part: its graphs take batches of 4\n" in said
    assert "devices on executorch cannot take part: its graphs take batches of 1 to 4\n" in said
    assert main(create.format("digits", 4).split()) == 0
    assert "cannot take part" not in capsys.readouterr().out
    port = free_port()
    policy = DevicePolicy(min_reports=4, epsilon_at_most=math.inf)
    with ExitStack() as running:
        serving = running.enter_context(
            Command("coordinator", "serve", "--home", folders.coordinator, "--port", str(port))
        )
        serving.wait_for("Ctrl-C stops it")
        apps = {
            runtime: running.enter_context(
                EdgeClient(folders.device(runtime), f"mqtt://127.0.0.1:{port}", policy=policy, runtime=runtime)
            )
            for runtime in RUNTIMES
        }
        for app in apps.values():
            app.join("digits", examples=app.examples("digits"))
            app.consent.grant(purpose="reading", text_version="1")
        *others, last = apps.values()
        for app in others:
            app.start()
        last.run(until=lambda: all(app.is_complete("digits") for app in apps.values()))
        for app in others:
            app.stop()
        for app in apps.values():
            assert [receipt.outcome for receipt in app.privacy.receipts()] == ["committed"]
            assert app.model("digits").version == 2
            # Whatever trained, ONNX Runtime serves.
            np.testing.assert_array_equal(app.model("digits").predict(x), last.model("digits").predict(x))
