"""Predictions, and models that are installed, replaced, damaged and rolled back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sdk.errors import ArtifactError, StoreError, TrainingError
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.inference.model import Model
from edge_sdk.inference.predictor import Predictor
from edge_sdk.signing import new_private_key
from edge_sdk.training.layout import Vector
from tests.integration.exported import SIGNER, flat, images, small, small_net

KEY = SIGNER.public_key()


def checkpoint(seed: int) -> Vector:
    """Parameters of the small net at other initial values."""
    return flat(small_net(seed))


@pytest.mark.parametrize("batch", [1, 7])
def test_predictions_are_those_of_pytorch(batch: int) -> None:
    x, _ = images(batch)
    with torch.no_grad():
        expected = small_net(5)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(Predictor(small(), checkpoint(5)).predict(x), expected, atol=1e-6)


def test_bad_inputs_are_refused() -> None:
    predictor = Predictor(small(), checkpoint(0))
    x, _ = images(2)
    with pytest.raises(TrainingError, match="x is float64"):
        predictor.predict(x.astype(np.float64))
    with pytest.raises(TrainingError, match=r"the model takes float32\[batch, 1, 8, 8\]"):
        predictor.predict(x[:, :, :4])
    with pytest.raises(TrainingError, match="NaN"):
        predictor.predict(np.full_like(x, np.nan))
    with pytest.raises(TrainingError, match="elements"):
        Predictor(small(), checkpoint(0)[:-1])
    with pytest.raises(TrainingError, match="output is not finite"):
        Predictor(small(), np.full(small().layout.size, 3e38, np.float32)).predict(x)


def test_the_newest_model_serves(tmp_path: Path) -> None:
    models, (x, _) = InstalledModels(tmp_path / "models", signer=KEY), images(3)
    assert models.current() is None
    with pytest.raises(ArtifactError, match="no model is installed"):
        models.predictor()
    for version in (1, 2):
        models.install(small(), version, checkpoint(version))
        current = models.current()
        assert current is not None
        assert current.version == version
        expected = Predictor(small(), checkpoint(version)).predict(x)
        assert np.array_equal(models.predictor().predict(x), expected)


def test_another_process_sees_the_swap(tmp_path: Path) -> None:
    writer, reader = (InstalledModels(tmp_path, signer=KEY) for _ in range(2))
    x, _ = images(3)
    writer.install(small(), 1, checkpoint(1))
    before = reader.predictor()
    assert reader.predictor() is before
    writer.install(small(), 2, checkpoint(2))
    assert np.array_equal(reader.predictor().predict(x), Predictor(small(), checkpoint(2)).predict(x))


def test_rolling_back_goes_one_step(tmp_path: Path) -> None:
    models, (x, _) = InstalledModels(tmp_path, signer=KEY), images(3)
    for version in (1, 2, 3):
        models.install(small(), version, checkpoint(version))
    assert models.roll_back().version == 2
    assert np.array_equal(models.predictor().predict(x), Predictor(small(), checkpoint(2)).predict(x))
    with pytest.raises(ArtifactError, match="no earlier model"):
        models.roll_back()


def test_only_two_models_are_kept(tmp_path: Path) -> None:
    models = InstalledModels(tmp_path, signer=KEY)
    for version in range(5):
        models.install(small(), version, checkpoint(version))
    assert len(list(tmp_path.glob("*.checkpoint"))) == 2
    assert len(list(tmp_path.glob("*/head"))) == 1


def test_a_model_that_cannot_predict_is_never_installed(tmp_path: Path) -> None:
    models = InstalledModels(tmp_path, signer=KEY)
    models.install(small(), 1, checkpoint(1))
    bad = checkpoint(2)
    bad[0] = np.nan
    with pytest.raises(ArtifactError, match="cannot predict"):
        models.install(small(), 2, bad)
    current = models.current()
    assert current is not None
    assert current.version == 1


def test_a_damaged_checkpoint_does_not_serve_and_can_be_repaired(tmp_path: Path) -> None:
    InstalledModels(tmp_path, signer=KEY).install(small(), 1, checkpoint(1))
    (file,) = tmp_path.glob("*.checkpoint")
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    models = InstalledModels(tmp_path, signer=KEY)
    with pytest.raises(ArtifactError, match="checkpoint of version 1 was damaged"):
        models.predictor()
    models.install(small(), 1, checkpoint(1))
    InstalledModels(tmp_path, signer=KEY).predictor()


def test_a_bundle_swapped_on_disk_does_not_serve(tmp_path: Path) -> None:
    InstalledModels(tmp_path, signer=KEY).install(small(), 1, checkpoint(1))
    with pytest.raises(ArtifactError, match="unknown key"):
        InstalledModels(tmp_path, signer=new_private_key().public_key()).predictor()
    (head,) = tmp_path.glob("*/head")
    whole = head.read_bytes()
    head.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match="truncated"):
        InstalledModels(tmp_path, signer=KEY).predictor()
    head.write_bytes(whole)
    (part,) = (path for path in head.parent.iterdir() if path != head)
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="tampered"):
        InstalledModels(tmp_path, signer=KEY).predictor()
    InstalledModels(tmp_path, signer=KEY).install(small(), 1, checkpoint(1))
    InstalledModels(tmp_path, signer=KEY).predictor()


def test_files_of_an_interrupted_installation_are_cleared(tmp_path: Path) -> None:
    models = InstalledModels(tmp_path, signer=KEY)
    models.install(small(), 1, checkpoint(1))
    (tmp_path / "half.part").write_bytes(b"half a model")
    models.install(small(), 2, checkpoint(2))
    assert not list(tmp_path.glob("*.part"))


def test_a_spoilt_state_is_told(tmp_path: Path) -> None:
    models = InstalledModels(tmp_path, signer=KEY)
    models.install(small(), 1, checkpoint(1))
    for text in ("{", "[]", json.dumps({"current": {"version": 1}, "previous": None})):
        (tmp_path / "installed.json").write_text(text)
        with pytest.raises(StoreError, match="cannot be read"):
            models.require_whole()
        assert models.current() is None
        with pytest.raises(StoreError, match="cannot be read"):
            InstalledModels(tmp_path, signer=KEY).predictor()


def test_a_spoilt_state_keeps_neither_the_bundled_model_nor_the_next_one_away(tmp_path: Path) -> None:
    models = InstalledModels(tmp_path, signer=KEY)
    models.install(small(), 1, checkpoint(1))
    (tmp_path / "installed.json").write_bytes(b"\xc9" * 300)
    models = InstalledModels(tmp_path, signer=KEY)
    models.bundled = tmp_path / "none.edge"
    with pytest.raises(ArtifactError, match=r"none\.edge"):
        models.predictor()
    assert Model(models).version == 0
    models.install(small(), 2, checkpoint(2))
    assert Model(InstalledModels(tmp_path, signer=KEY)).version == 2
    InstalledModels(tmp_path, signer=KEY).require_whole()


def test_a_record_that_was_deleted_is_told_to_who_remembers_it(tmp_path: Path) -> None:
    models = InstalledModels(tmp_path, signer=KEY)
    models.install(small(), 1, checkpoint(1))
    models.require_whole(any_installed=True)
    (tmp_path / "installed.json").unlink()
    models.require_whole()
    with pytest.raises(StoreError, match=r"installed\.json is gone"):
        models.require_whole(any_installed=True)


def test_what_was_damaged_while_the_device_was_off_is_told(tmp_path: Path) -> None:
    InstalledModels(tmp_path, signer=KEY).require_whole()  # nothing is installed yet
    InstalledModels(tmp_path, signer=KEY).install(small(), 1, checkpoint(1))
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            with pytest.raises((ArtifactError, StoreError)):
                InstalledModels(tmp_path, signer=KEY).require_whole()
            path.write_bytes(content)
