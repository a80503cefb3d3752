"""Personal models: tuned on the device, judged on examples held out, used only where they win, and never for long."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from coordinator.service.broker import RunningBroker
from coordinator.service.driver import serve
from device_sim.fleet import FleetFolders, make_authorities, make_devices
from edge_sdk import EdgeClient, f32, i64
from edge_sdk.clock import SystemClock
from edge_sdk.errors import ConfigError, StoreError
from edge_sdk.events import Event, Personalised
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.inference.model import Model
from edge_sdk.inference.personal import Comparison, PersonalModel, compared
from edge_sdk.inference.predictor import Predictor
from edge_sdk.protocol.messages import BlobRef
from edge_sdk.runtime.blob_cache import BlobCache
from edge_sdk.runtime.driver import DeviceLoop, mqtt
from edge_sdk.runtime.home import models_folder
from edge_sdk.signing import public_key_to_pem
from edge_sdk.training.evaluation import evaluate, example_losses
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.layout import Vector
from edge_sdk.training.learner import TUNING, LocalLearner
from edge_sdk.training.trainer import TrainingInterrupted, everything
from tests.integration.exported import images, small
from tests.integration.test_inference_models import KEY, checkpoint
from tests.simulation import world
from tests.simulation.world import World

NOTHING: Vector = np.zeros(small().layout.size, np.float32)
"""A global model that gives every class the same chance."""
GLOBAL = checkpoint(5)

_PARTS = {part.sha256: small().part(part.name) for part in small().manifest.parts}


def read(part: BlobRef) -> bytes:
    return _PARTS[part.sha256.hex()]


def habits(count: int, seed: int = 1) -> dict[str, NDArray[np.generic]]:
    """Somebody with habits: of ten labels they use two, for bright and for dark images."""
    x, y = images(count, seed)
    return {"x": x + np.where(y % 2, 0.5, -0.5).astype(np.float32)[:, None, None, None], "y": y % 2}


def chance(count: int) -> dict[str, NDArray[np.generic]]:
    """Labels that nothing tells."""
    x, y = images(count)
    return {"x": x, "y": y}


class Device:
    """A learner over stores in a folder, with a global model."""

    def __init__(self, folder: Path) -> None:
        self.examples = ExampleStore(folder / "taps.sqlite", {"x": f32(1, 8, 8), "y": i64()}, holdout=0.3)
        self.models = InstalledModels(folder / "models", signer=KEY)
        self.personal = PersonalModel(folder / "personal")
        self.learner = LocalLearner(KEY, self.examples, self.models, personal=self.personal)
        self.learner._tuning = replace(TUNING, learning_rate=0.1)
        self.models.install(small(), 1, GLOBAL)

    def tune(self, should_stop: Callable[[], bool] = lambda: False) -> Comparison:
        found = self.learner.tune(read, should_stop)
        assert found is not None
        return found


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    yield made
    made.examples.close()


def right(model: Model, rows: dict[str, NDArray[np.generic]]) -> float:
    return float((model.predict(rows["x"]).argmax(-1) == rows["y"]).mean())


def test_habits_make_a_personal_model_that_is_used(device: Device) -> None:
    device.examples.add_many(habits(300))
    model = Model(device.models)
    before, fresh = right(model, habits(200, seed=9)), habits(200, seed=9)
    assert not model.is_personal
    assert device.learner.should_tune()
    found = device.tune()
    assert found.wins
    assert model.is_personal
    assert right(model, fresh) > before + 0.2
    # What it says is what the bundle's own evaluation finds, on examples that it was not tuned on.
    held_out = everything(device.examples.rows(held_out=True))
    tuned = small().layout.decode(device.personal.checkpoint(found))
    assert found.examples == len(held_out["y"]) == device.examples.count(held_out=True)
    assert found.global_loss == pytest.approx(evaluate(small(), GLOBAL, held_out).loss, abs=1e-5)
    assert found.personal_loss == pytest.approx(evaluate(small(), tuned, held_out).loss, abs=1e-5)
    assert found.gain == pytest.approx(found.global_loss - found.personal_loss)
    losses = example_losses(small(), GLOBAL, held_out) - example_losses(small(), tuned, held_out)
    assert found.noise == pytest.approx(losses.std(ddof=1) / math.sqrt(len(losses)))
    assert not device.learner.should_tune()


def test_chance_makes_none(device: Device) -> None:
    device.examples.add_many(chance(300))
    device.models.install(small(), 2, NOTHING)
    found = device.tune()
    assert found.gain < 2 * found.noise
    assert not found.wins
    assert not Model(device.models).is_personal
    assert not list((device.personal._folder).glob("*.checkpoint"))
    assert not device.learner.should_tune(), "what did not win is not tried again and again"


def test_too_few_held_out_examples_judge_nothing(device: Device) -> None:
    device.examples.add_many(habits(40))
    assert 0 < device.examples.count(held_out=True) < 20
    assert not device.learner.should_tune()
    assert not device.tune().wins


def test_when_the_global_model_moves_the_personal_one_is_tuned_anew(device: Device) -> None:
    device.examples.add_many(habits(300))
    model = Model(device.models)
    first = device.tune()
    tuned = small().layout.decode(device.personal.checkpoint(first))
    device.models.install(small(), 2, tuned)
    assert not model.is_personal
    assert device.learner.should_tune()
    second = device.tune()
    assert second.base_sha256 == first.sha256
    assert second.global_loss == pytest.approx(first.personal_loss)


def test_a_fifth_more_examples_are_a_reason_to_tune_again(device: Device) -> None:
    device.examples.add_many(habits(300))
    device.tune()
    device.examples.add_many(habits(30, seed=5))
    assert not device.learner.should_tune()
    device.examples.add_many(habits(60, seed=6))
    assert device.learner.should_tune()


def test_one_that_is_interrupted_leaves_nothing_and_is_due_again(device: Device) -> None:
    device.examples.add_many(habits(300))
    with pytest.raises(TrainingInterrupted):
        device.tune(lambda: True)
    assert device.personal.comparison() is None
    assert device.learner.should_tune()


def test_one_that_diverges_does_not_win_and_is_not_due_again(device: Device) -> None:
    device.examples.add_many(habits(300))
    device.learner._tuning = replace(TUNING, learning_rate=1e30)
    assert not device.tune().wins
    assert not device.learner.should_tune()


@pytest.mark.parametrize("name", ["personal.checkpoint", "personal.json"])
def test_a_damaged_one_does_not_serve(device: Device, name: str) -> None:
    device.examples.add_many(habits(300))
    device.tune()
    (device.personal._folder / name).write_bytes(b"damaged")
    again = InstalledModels(device.models._folder, signer=KEY)
    again.personal = device.personal
    x, _ = images(3)
    assert np.array_equal(Model(again).predict(x), Predictor(small(), GLOBAL).predict(x))


def test_it_is_for_its_owners_eyes_only(device: Device) -> None:
    device.examples.add_many(habits(300))
    device.tune()
    assert {path.stat().st_mode & 0o077 for path in device.personal._folder.iterdir()} == {0}


def test_losses_that_are_none_do_not_count_and_those_that_explode_lose() -> None:
    before, after = np.array([1.0, 2.0, np.nan, 3.0]), np.array([0.5, 1.0, np.nan, 2.9])
    assert compared(before, after) == pytest.approx((3, 2.0, 4.4 / 3, 1.6 / 3, 0.26034165586355514))
    assert compared(before, np.array([0.5, np.inf, 0.0, 0.1]))[3] == -math.inf
    assert compared(before[:1], after[:1]) == (1, 0.0, 0.0, 0.0, 0.0)


# ---- in an app


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A device that took part: a global model is installed, and its bundle is here."""
    folders = FleetFolders(tmp_path)
    make_authorities(folders, SystemClock().now())
    make_devices(folders, {"phone": chance(1)}, SystemClock().now())
    made = folders.device("phone")
    (made / "signer.pub").write_bytes(public_key_to_pem(KEY))
    InstalledModels(models_folder(made, "keyboard"), signer=KEY).install(small(), 1, GLOBAL)
    blobs = BlobCache(made / "blobs")
    for content in _PARTS.values():
        blobs.put(content)
    return made


def test_without_held_out_examples_there_is_no_personal_model(home: Path) -> None:
    with EdgeClient(home) as edge:
        taps = edge.examples("taps", x=f32(1, 8, 8), y=i64())
        for examples in (taps, None):
            with pytest.raises(ConfigError, match="to be judged by"):
                edge.join("keyboard", examples=examples, personalise=True)


def test_a_running_client_tunes_between_rounds_once_the_owner_agrees(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_sdk.runtime.driver.ASK_EVERY_S", 0.02)
    monkeypatch.setattr("edge_sdk.training.learner.TUNING", replace(TUNING, learning_rate=0.1))
    told: list[Event] = []
    with EdgeClient(home, "mqtt://127.0.0.1:9", on_event=told.append) as edge:
        taps = edge.examples("taps", x=f32(1, 8, 8), y=i64(), holdout=0.3)
        taps.add_many(habits(300))
        edge.join("keyboard", examples=taps, personalise=True)
        asked = iter(range(5))
        edge.run(until=lambda: next(asked, None) is None)
        assert told == [], "nobody agreed yet"
        edge.consent.grant(purpose="better typing", text_version="1")
        edge.run(until=lambda: bool(told))
        (event,) = told
        assert isinstance(event, Personalised)
        assert event.wins
        assert event.personal_loss < event.global_loss
        assert edge.model("keyboard").is_personal
        edge.withdraw()
        assert not edge.model("keyboard").is_personal
        x, _ = images(1)
        assert np.array_equal(edge.model("keyboard").predict(x), Predictor(small(), GLOBAL).predict(x))


def test_where_the_bundle_is_gone_it_is_said_and_the_device_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edge_sdk.runtime.driver.ASK_EVERY_S", 0.02)
    for path in (home / "blobs").iterdir():
        path.unlink()
    with EdgeClient(home, "mqtt://127.0.0.1:9") as edge:
        taps = edge.examples("taps", x=f32(1, 8, 8), y=i64(), holdout=0.3)
        taps.add_many(habits(100))
        edge.join("keyboard", examples=taps, personalise=True)
        edge.consent.grant(purpose="better typing", text_version="1")
        edge.run(until=lambda: "what was done between rounds failed" in caplog.text)


def test_a_rounds_training_does_not_wait_for_other_work(
    tmp_path: Path, broker: RunningBroker, now: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_sdk.runtime.driver.ASK_EVERY_S", 0.02)
    begun: list[int] = []

    def endless(should_stop: Callable[[], bool]) -> None:
        begun.append(1)
        while not should_stop():
            pass
        raise TrainingInterrupted("a round needs the thread")

    def failing() -> Callable[[Callable[[], bool]], None]:
        if len(begun) > 1:
            raise StoreError("the disk is gone")
        return endless

    async def main(made: World) -> None:
        stop, agents = asyncio.Event(), list(made.fleet.agents.values())
        coordinator = made.make_coordinator()
        loop = DeviceLoop(agents, mqtt(broker.url), spare=failing)
        running = [
            asyncio.create_task(serve(coordinator, broker.url, "coordinator", stop=stop)),
            asyncio.create_task(loop.run(stop, lambda: [view.phase for view in made.rounds] == ["committed"])),
        ]
        async with asyncio.timeout(60):
            await running[1]
        stop.set()
        await asyncio.gather(*running)

    with World(tmp_path, 3, config=world.task_config(3, rounds=1, min_reports=3)) as made:
        asyncio.run(main(made))
        assert [view.phase for view in made.rounds] == ["committed"]
    assert begun
