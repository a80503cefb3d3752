"""The Kotlin client trains what Python trains: the same bundle, the same steps, the same update, to rounding."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from coordinator.service.broker import RunningBroker, start_broker
from coordinator.service.driver import serve
from coordinator.service.tasks import list_rounds, newest_model
from edge_sdk.credentials import save_identity
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.runtime.driver import mqtt, run_devices
from edge_sdk.signing import public_key_to_pem
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.learner import LocalLearner
from edge_sdk.training.plan import TrainingPlan
from exporters.privacy import DpSgd
from tests.integration.exported import SIGNER, exported, images, known_entropy, labels, repacked, small, small_net
from tests.integration.jvm import Jvm, classpath
from tests.simulation import world
from tests.simulation.world import POPULATION, World, device_name

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
LIMIT_S = 200.0


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    classpath()


def trained_in_kotlin(
    folder: Path, artifact: Artifact, rows: dict[str, Any], plan: TrainingPlan, seed: str
) -> tuple[list[str], Path]:
    """What it said, and the file of its update."""
    (folder / "model.edge").write_bytes(artifact.to_bytes())
    (folder / "signer.pub").write_bytes(public_key_to_pem(SIGNER.public_key()))
    np.savez(folder / "examples.npz", **rows)
    numbers = (plan.epochs, plan.batch_size, plan.learning_rate, plan.max_steps or 1_000_000, plan.proximal)
    out = folder / "update.f32"
    files = (folder / "model.edge", folder / "signer.pub", folder / "examples.npz")
    with Jvm("edge.TestTrainingKt", *files, seed, *map(str, numbers), out) as process:
        return process.rest(), out


@pytest.mark.parametrize(
    ("settings", "proximal"),
    [({}, 0.0), ({"optimizer": "adam"}, 0.0), ({"correction": True}, 0.5)],
    ids=["sgd", "adam", "proximal"],
)
def test_two_hundred_steps_give_the_same_update(tmp_path: Path, settings: dict[str, Any], proximal: float) -> None:
    artifact = exported(small_net(), torch.randn(8, 1, 8, 8), labels(8), name="small", **settings)
    x, y = images(50)
    plan = TrainingPlan(epochs=100, batch_size=8, learning_rate=0.002, max_steps=200, proximal=proximal)
    expected = BundleTrainer(artifact).train(artifact.checkpoint(), {"x": x, "y": y}, plan, seed=b"the seed")
    said, out = trained_in_kotlin(tmp_path, artifact, {"x": x, "y": y}, plan, "the seed")
    assert [line.split(",")[0] for line in said[1:]] == ["trained 200 steps"], said
    assert float(said[0].removeprefix("parity ")) <= 1.0
    update = np.frombuffer(out.read_bytes(), "<f4")
    assert np.abs(expected.update).max() > 1e-2
    assert np.abs(update - expected.update).max() <= 1e-4


def test_dropout_and_running_statistics_follow_the_seed(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 10))
    artifact = exported(model, torch.randn(8, 1, 8, 8), labels(8))
    x, y = images(40)
    plan = TrainingPlan(epochs=4, batch_size=8, learning_rate=0.05)
    expected = BundleTrainer(artifact).train(artifact.checkpoint(), {"x": x, "y": y}, plan, seed=b"seed")
    said, out = trained_in_kotlin(tmp_path, artifact, {"x": x, "y": y}, plan, "seed")
    assert len(said) == 2, said
    assert np.abs(np.frombuffer(out.read_bytes(), "<f4") - expected.update).max() <= 1e-4


def test_training_that_is_private_for_each_example_is_the_same(tmp_path: Path) -> None:
    """With the same random bytes: samples, clipped sums, noise and steps; samples are larger than a batch at times."""
    privacy = DpSgd(clip_norm=0.7, noise_multiplier=0.5, lot_size=6)
    artifact = exported(small_net(), torch.randn(8, 1, 8, 8), labels(8), privacy=privacy)
    x, y = images(20)
    plan = TrainingPlan(epochs=5, batch_size=4, learning_rate=0.05, max_steps=18)
    trainer = BundleTrainer(artifact, entropy=known_entropy())
    expected = trainer.train(artifact.checkpoint(), {"x": x, "y": y}, plan, seed=b"seed")
    said, out = trained_in_kotlin(tmp_path, artifact, {"x": x, "y": y}, plan, "seed")
    assert said[-1].startswith("trained 18 steps"), said
    assert float(said[0].removeprefix("parity ")) <= 1.0
    update = np.frombuffer(out.read_bytes(), "<f4")
    assert np.abs(expected.update).max() > 1e-2
    assert np.abs(update - expected.update).max() <= 1e-4


def test_bundles_that_cannot_be_trusted_are_refused(tmp_path: Path) -> None:
    x, y = images(8)
    plan = TrainingPlan(epochs=1, batch_size=4, learning_rate=0.1)

    def said(artifact: Artifact, **rows: Any) -> str:
        return trained_in_kotlin(tmp_path, artifact, rows or {"x": x, "y": y}, plan, "s")[0][-1]

    values = np.frombuffer(small().part("parity"), "<f4").copy()
    sampled = -(-small().layout.size // small().manifest.parity.stride)
    values[-2 * sampled : -sampled] += 1.0
    assert "other values than this bundle was certified with" in said(repacked(lambda m: m, parity=values.tobytes()))

    def newer(manifest: Any) -> Any:
        formats = tuple(dataclasses.replace(known, oldest="99.0") for known in manifest.formats)
        return dataclasses.replace(manifest, formats=formats)

    assert "needs ONNX Runtime 99.0" in said(repacked(newer))
    assert "labels must lie in 0..9" in said(small(), x=x, y=y + 10)
    assert "is not among" in said(small(), z=x, y=y)
    other = dataclasses.replace(small(), head=small().head[:-1] + b" ")
    assert "tampered" in said(other)


# ---- a whole federation


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[RunningBroker]:
    with start_broker(tmp_path / "broker", kind="mosquitto") as running:
        yield running


@pytest.mark.usefixtures("now")
def test_kotlin_clients_train_with_python_ones_and_serve_the_model(tmp_path: Path, mosquitto: RunningBroker) -> None:
    """Three rounds over two Python learners and two whole Kotlin clients, one of which the owner never allowed to."""
    key = SIGNER.public_key()
    x, y = images(120)
    stores, learners = [], []
    for number in range(2):
        rows = {"x": x[number::4], "y": y[number::4]}
        stores.append(ExampleStore.create_for(tmp_path / f"examples-{number}.sqlite", rows))
        stores[-1].add_many(rows)
        models = InstalledModels(tmp_path / f"models-{number}", signer=key)
        learners.append(LocalLearner(key, stores[-1], models))
    artifact = small()
    config = world.task_config(3, rounds=3, min_reports=3, dimension=artifact.layout.size)
    pacing = dataclasses.replace(config.pacing, selection_timeout_s=200)
    made = World(
        tmp_path,
        2,
        config=dataclasses.replace(config, min_check_ins=3, pacing=pacing),
        bundle=artifact.head,
        parts=[artifact.part(part.name) for part in artifact.manifest.parts],
        learners=learners,
    )
    said: dict[int, list[str]] = {}
    willing = [threading.Thread(target=client, args=(tmp_path, n, mosquitto, x, y, said), daemon=True) for n in (2, 3)]
    for thread in willing:
        thread.start()

    async def main() -> None:
        stop, coordinator = asyncio.Event(), made.make_coordinator()
        server = asyncio.create_task(serve(coordinator, mosquitto.url, "coordinator", stop=stop))
        agents = list(made.fleet.agents.values())
        devices = asyncio.create_task(run_devices(agents, mqtt(mosquitto.url), stop=stop))
        end = time.monotonic() + LIMIT_S
        while not (coordinator.idle and not any(thread.is_alive() for thread in willing)):
            done, _ = await asyncio.wait((server, devices), timeout=0.05)
            for task in done:
                task.result()
            assert time.monotonic() < end, f"it did not end: {said}"
        stop.set()
        await asyncio.gather(devices, server)

    asyncio.run(main())
    assert [(r.phase, r.reported) for r in list_rounds(made.database, "task")] == [("committed", 3)] * 3
    version, _ = newest_model(made.database, made.blobs, "task")
    # Both serve the last model; only one took part, as its ledger says.
    assert f"model {version}" in said[2]
    assert f"model {version}" in said[3]
    assert [sum(line.startswith("round ") for line in said[number]) for number in (2, 3)] == [3, 0]
    for store in stores:
        store.close()


def client(folder: Path, number: int, broker: RunningBroker, x: Any, y: Any, said: dict[int, list[str]]) -> None:
    """A Kotlin client, as a person would start it: with consent, or without."""
    home = folder / f"kotlin-{number}"
    save_identity(home / "identity", world.identity(device_name(number)))
    (home / "signer.pub").write_bytes(public_key_to_pem(SIGNER.public_key()))
    np.savez(home / "examples.npz", x=x[number::4], y=y[number::4])
    options: list[str | Path] = [
        "--home",
        home,
        "--broker",
        str(broker.url),
        "--population",
        POPULATION,
        "--min-reports",
        "2",
    ]
    consent = ["--consent", "a test"] if number == 2 else []
    with Jvm(
        "edge.DeviceMainKt", *options, "--epsilon", "any", "--examples", home / "examples.npz", "--until-done", *consent
    ) as process:
        said[number] = process.said
        process.rest()
