"""A Kotlin client and Python devices in two populations at once: one is trained for, the other is answered."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.analytics.model import model_parts, references
from coordinator.analytics.results import read_estimates
from coordinator.service.broker import RunningBroker, start_broker
from coordinator.service.driver import serve
from coordinator.service.tasks import create_task, encoding_for, list_rounds, newest_model
from edge_sdk.analytics.query import Query, parse_query, query_text, sign_query
from edge_sdk.credentials import save_identity
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.runtime.agent import DeviceAgent, Pace
from edge_sdk.runtime.blob_cache import BlobCache
from edge_sdk.runtime.driver import mqtt, run_devices
from edge_sdk.signing import public_key_to_pem
from edge_sdk.training.evaluation import evaluate
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.learner import LocalLearner
from tests.integration.exported import SIGNER, images, small
from tests.integration.jvm import Jvm, classpath
from tests.simulation import world
from tests.simulation.world import POPULATION, START, World, device_name

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow, pytest.mark.usefixtures("now")]
LIMIT_S = 300.0
OTHERS = "others"
DEVICES, ROWS = 3, 30
X, Y = images(DEVICES * ROWS)
HISTOGRAM = parse_query(f"histogram:field=y,low=0,high=10,bins=10,max_rows={ROWS}")
EVALUATION = replace(parse_query(f"evaluate:high=10,max_rows={ROWS}"), model=references(model_parts(small())))


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    classpath()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[RunningBroker]:
    with start_broker(tmp_path / "broker", kind="mosquitto") as running:
        yield running


def ask(made: World, query: Query) -> None:
    """A second task beside the training: the others are asked."""
    config = world.task_config(DEVICES, min_reports=DEVICES, dimension=query.dimension)
    privacy = replace(config.privacy, clip_norm=query.norm_bound)
    encoding = encoding_for(privacy, dimension=query.dimension, min_reports=DEVICES, goal_count=DEVICES)
    # Who offered itself here first goes to the training soon, which waits for everybody.
    pacing = replace(config.pacing, selection_timeout_s=15)
    config = replace(config, task="question", population=OTHERS, privacy=privacy, encoding=encoding, pacing=pacing)
    config = replace(config, server_optimizer="average", query=query_text(query))
    parts = model_parts(small()) if query.kind == "evaluate" else []
    checkpoint = np.zeros(query.dimension, "<f4").tobytes()
    create_task(made.database, made.blobs, config, sign_query(query, SIGNER), checkpoint, START, parts=parts)
    made.config = config


def python_device(made: World, folder: Path, number: int, stores: list[ExampleStore]) -> DeviceAgent:
    rows = {"x": X[number::DEVICES], "y": Y[number::DEVICES]}
    stores.append(ExampleStore.create_for(folder / f"examples-{number}.sqlite", rows))
    stores[-1].add_many(rows)
    key, home = SIGNER.public_key(), folder / device_name(number)
    learners = {
        name: LocalLearner(key, stores[-1], InstalledModels(home / name, signer=key), analytics=True)
        for name in (POPULATION, OTHERS)
    }
    made.stores[device_name(number)] = made.make_store(home / "device.sqlite")
    return DeviceAgent(
        world.identity(device_name(number)),
        learners,
        made.stores[device_name(number)],
        BlobCache(home / "blobs"),
        policy=made.policy,
        random_bytes=made.random_bytes(),
        pace=Pace(resend_s=5.0),
    )


class Kotlin(threading.Thread):
    """A Kotlin client in both populations, until both tasks are over."""

    def __init__(self, folder: Path, number: int, broker: RunningBroker) -> None:
        super().__init__(daemon=True)
        self.said: list[str] = []
        home = folder / f"kotlin-{number}"
        save_identity(home / "identity", world.identity(device_name(number)))
        (home / "signer.pub").write_bytes(public_key_to_pem(SIGNER.public_key()))
        np.savez(home / "examples.npz", x=X[number::DEVICES], y=Y[number::DEVICES])
        self._options: list[str | Path] = ["--home", home, "--examples", home / "examples.npz"]
        self._options += ["--broker", str(broker.url), "--population", f"{POPULATION},{OTHERS}", "--min-reports", "2"]
        self._options += ["--epsilon", "any", "--consent", "a test", "--until-done", "--analytics"]

    def run(self) -> None:
        with Jvm("edge.DeviceMainKt", *self._options) as process:
            self.said = process.said
            process.rest()


@pytest.mark.parametrize("query", [HISTOGRAM, EVALUATION], ids=["histogram", "evaluation"])
def test_a_kotlin_client_trains_in_one_population_and_answers_in_the_other(
    tmp_path: Path, mosquitto: RunningBroker, query: Query
) -> None:
    artifact, stores = small(), list[ExampleStore]()
    config = world.task_config(DEVICES, rounds=2, min_reports=DEVICES, dimension=artifact.layout.size)
    config = replace(config, min_check_ins=DEVICES, pacing=replace(config.pacing, selection_timeout_s=200))
    parts = [artifact.part(part.name) for part in artifact.manifest.parts]
    with World(tmp_path, 0, config=config, bundle=artifact.head, parts=parts) as made:
        ask(made, query)
        agents = [python_device(made, tmp_path, number, stores) for number in range(DEVICES - 1)]
        kotlin = Kotlin(tmp_path, DEVICES - 1, mosquitto)
        kotlin.start()

        async def main() -> None:
            stop, coordinator = asyncio.Event(), made.make_coordinator()
            server = asyncio.create_task(serve(coordinator, mosquitto.url, "coordinator", stop=stop))
            devices = asyncio.create_task(run_devices(agents, mqtt(mosquitto.url), stop=stop))
            end = time.monotonic() + LIMIT_S
            while not coordinator.idle or kotlin.is_alive():
                done, _ = await asyncio.wait((server, devices), timeout=0.05)
                for task in done:
                    task.result()
                assert time.monotonic() < end, f"it did not end: {kotlin.said}"
            stop.set()
            await asyncio.gather(devices, server)

        asyncio.run(main())
        rounds = {task: list_rounds(made.database, task) for task in ("task", "question")}
        found = read_estimates(made.database, made.blobs, made.config)
        version, _ = newest_model(made.database, made.blobs, "task")
    committed = {task: [r.reported for r in views if r.phase == "committed"] for task, views in rounds.items()}
    assert committed == {"task": [DEVICES] * 2, "question": [DEVICES]}
    assert f"model {version}" in kotlin.said
    assert sum(line.startswith("round ") for line in kotlin.said) == 3
    if query.kind == "histogram":
        expected = np.bincount(Y, minlength=10).tolist()
    else:
        measured = evaluate(artifact, artifact.checkpoint(), {"x": X, "y": Y})
        assert measured.accuracy is not None
        expected = [measured.loss, measured.accuracy, len(X)]
    # What rounding to integers leaves.
    for one, truth in zip(found, expected, strict=True):
        assert math.isclose(one.value, truth, abs_tol=max(0.02, 5 * one.stddev)), (one, truth)
    for store in stores:
        store.close()
