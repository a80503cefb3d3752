"""What the private federation is compared with, run on a small fleet with the bundle that the demo exports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.generated_task import generated_data
from benchmarks.utility_table import central_mean, private_mean
from coordinator.aggregation.server_optimizers import server_optimizer
from coordinator.privacy.calibration import calibrate
from device_sim import baselines, job
from device_sim.baselines import (
    BASELINES_FILE,
    Baselines,
    demo_plan,
    drawn_reporters,
    load_baselines,
    mean_of_clipped,
    train_centrally,
    train_federated,
)
from device_sim.datasets import digits, federated_digits
from device_sim.fleet import FleetFolders
from edge_sdk.errors import ConfigError
from edge_sdk.signing import new_private_key, public_key_to_pem
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.evaluation import evaluate
from exporters import export
from exporters.examples.digits import build

DEVICES, ROUNDS, DROPOUT = 200, 10, 0.1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> FleetFolders:
    """A demo's work folder with its signer and its bundle."""
    made = FleetFolders(tmp_path_factory.mktemp("demo"))
    key = new_private_key()
    made.signer_public.parent.mkdir()
    made.signer_public.write_bytes(public_key_to_pem(key.public_key()))
    spec = build()
    export(
        spec.model,
        spec.loss,
        example_inputs=spec.example_inputs,
        example_target=spec.example_target,
        path=made.bundle,
        signer=key,
    )
    return made


@pytest.fixture(scope="module")
def artifact(folders: FleetFolders) -> Artifact:
    from edge_sdk.credentials import load_public_key
    from edge_sdk.training.artifact import read_artifact

    return read_artifact(folders.bundle, signer=load_public_key(folders.signer_public))


@pytest.fixture(scope="module")
def compared(artifact: Artifact) -> Baselines:
    return baselines.compare(artifact, devices=DEVICES, rounds=ROUNDS, dropout=DROPOUT, seed=1)


def test_central_training_reads_digits(compared: Baselines) -> None:
    assert len(compared.centralised) == baselines.CENTRAL_EPOCHS
    assert compared.centralised[-1] > 0.97


def test_the_jobs_settings_come_close_to_central_training_without_noise(compared: Baselines) -> None:
    assert len(compared.noise_free) == ROUNDS
    assert compared.centralised[-1] - compared.noise_free[-1] < 0.03


def test_a_trusted_servers_noise_is_added_once() -> None:
    mean = central_mean(2.0, 0.5, seed=3)(1, [np.zeros(20_000, np.float32)] * 10)
    assert float(mean.std()) == pytest.approx(2.0 * 0.5 / 10, rel=0.03)
    assert not np.array_equal(mean, central_mean(2.0, 0.5, seed=3)(2, [np.zeros(20_000, np.float32)] * 10))


def test_generated_devices_hold_examples_of_their_own() -> None:
    few, many = (generated_data(devices, seed=5) for devices in (3, 6))
    for before, after in zip(few.shards, many.shards, strict=False):
        np.testing.assert_array_equal(before["x"], after["x"])
    assert len({shard["x"].tobytes() for shard in many.shards}) == 6
    np.testing.assert_array_equal(few.test["y"], many.test["y"])
    # Devices see different mixes of labels.
    shares = [np.bincount(shard["y"], minlength=8) / len(shard["y"]) for shard in many.shards]
    assert np.abs(shares[0] - shares[1]).sum() > 0.3


def test_noise_for_the_jobs_epsilon_costs_less_than_ten_points(artifact: Artifact, compared: Baselines) -> None:
    plan = calibrate(
        clip_norm=job.CLIP_NORM,
        dimension=artifact.layout.size,
        min_reports=job.min_reports(DEVICES),
        max_devices=DEVICES,
        rounds=ROUNDS + 1,
        epsilon=job.EPSILON,
        delta=job.DELTA,
        corrupt_share=0.05,
    )
    private = train_federated(
        artifact,
        federated_digits(DEVICES, seed=1),
        plan=demo_plan(),
        optimizer=server_optimizer(job.SERVER_OPTIMIZER),
        reporters=drawn_reporters(DEVICES, ROUNDS, DROPOUT, seed=1),
        aggregate=private_mean(plan, artifact.layout.size, job.CLIP_NORM, seed=1),
        seed=1,
    )
    assert compared.noise_free[-1] - private[-1] < 0.1


def test_the_mean_is_of_clipped_updates() -> None:
    aggregate = mean_of_clipped(1.0)
    updates = [np.array(values, np.float32) for values in ([3.0, 4.0], [0.0, -0.5], [0.0, 0.0])]
    np.testing.assert_allclose(aggregate(1, updates), [0.2, 0.1], rtol=1e-6)


def test_reporters_are_those_whose_report_the_demo_lets_arrive() -> None:
    reporters = drawn_reporters(400, 5, 0.2, seed=7)
    assert reporters == drawn_reporters(400, 5, 0.2, seed=7)
    assert len(reporters) == 5
    # A quarter of those that vanish do so after their report.
    share = np.mean([len(places) / 400 for places in reporters])
    assert abs(share - 0.85) < 0.03
    assert drawn_reporters(3, 2, 0.0, seed=7) == ((0, 1, 2), (0, 1, 2))


def test_the_command_writes_what_the_demo_reads(
    folders: FleetFolders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(baselines, "CENTRAL_EPOCHS", 2)
    marker = folders.work / "demo.json"
    marker.write_text(json.dumps({"devices": 10, "rounds": 2, "dropout": 0.1, "seed": 1, "other": True}))
    monkeypatch.setattr("sys.argv", ["baselines", str(marker)])
    assert baselines.main() == 0
    found = load_baselines(folders.work / BASELINES_FILE)
    assert found is not None
    assert (len(found.centralised), len(found.noise_free)) == (2, 2)

    monkeypatch.setattr(baselines, "BASELINES_FILE", "other.json")
    folders.bundle.rename(folders.bundle.with_suffix(".gone"))
    try:
        assert baselines.main() == 2
    finally:
        folders.bundle.with_suffix(".gone").rename(folders.bundle)
    assert "cannot read bundle" in capsys.readouterr().err


def test_baselines_are_read_back_or_refused(tmp_path: Path) -> None:
    path = tmp_path / BASELINES_FILE
    assert load_baselines(path) is None
    path.write_text('{"centralised": [0.5], "noise_free": [1]}')
    assert load_baselines(path) == Baselines((0.5,), (1.0,))
    path.write_text('{"centralised": [0.5]}')
    with pytest.raises(ConfigError, match="holds no baselines"):
        load_baselines(path)


def test_a_model_without_classes_has_no_accuracy(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluate(artifact, artifact.checkpoint(), digits()[1])
    monkeypatch.setattr(baselines, "evaluate", lambda *_: replace(found, accuracy=None))
    with pytest.raises(ConfigError, match="no accuracy"):
        train_centrally(artifact, *digits())
