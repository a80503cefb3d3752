"""Whole rounds over real brokers: the drivers, reconnects, large vectors in chunks, and a restarted coordinator."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coordinator.secagg.work import Workers
from coordinator.service import driver
from coordinator.service.broker import RunningBroker
from coordinator.service.driver import serve
from coordinator.service.engine import Coordinator
from coordinator.service.release import ReleaseFailed, ReleaseJob, ReleaseResult, release
from coordinator.service.tasks import create_task, list_rounds, list_tasks, newest_model
from edge_sdk.runtime.agent import DeviceAgent
from edge_sdk.runtime.driver import mqtt, run_devices
from tests.simulation import world
from tests.simulation.world import World, known_update

LIMIT_S = 90.0


def run(made: World, broker: RunningBroker, *, restart_after: Callable[[Coordinator], bool] | None = None) -> None:
    """Run coordinator and devices until the task ends."""

    async def main() -> None:
        stop, agents = asyncio.Event(), list(made.fleet.agents.values())
        devices = asyncio.create_task(run_devices(agents, mqtt(broker.url), stop=stop))
        coordinator = made.make_coordinator()
        crash = asyncio.Event()
        server = asyncio.create_task(serve(coordinator, broker.url, "coordinator", stop=crash))
        restarted = restart_after is None
        async with asyncio.timeout(LIMIT_S):
            while not (restarted and coordinator.idle and all_installed(agents)):
                if not restarted and restart_after is not None and restart_after(coordinator):
                    restarted = True
                    crash.set()
                    await server
                    crash = asyncio.Event()
                    coordinator = made.make_coordinator()
                    server = asyncio.create_task(serve(coordinator, broker.url, "coordinator", stop=crash))
                await next_turn(server, devices)
        stop.set()
        crash.set()
        await asyncio.gather(devices, server)

    def all_installed(agents: list[DeviceAgent]) -> bool:
        return all(agent.memberships[world.POPULATION].installed_version == 1 + made.config.rounds for agent in agents)

    async def next_turn(*tasks: asyncio.Task[None]) -> None:
        # Ends at once, with its error, where a task has failed; else lets both loops work a little.
        done, _ = await asyncio.wait(tasks, timeout=0.02, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    asyncio.run(main())


def assert_mean(made: World, devices: int) -> None:
    version, checkpoint = newest_model(made.database, made.blobs, "task")
    assert version == 1 + made.config.rounds
    mean = np.mean([known_update(n, made.config.dimension) for n in range(devices)], axis=0)
    assert np.allclose(np.frombuffer(checkpoint, "<f4"), made.config.rounds * mean, atol=2e-2)


@pytest.mark.usefixtures("now")
def test_two_rounds(tmp_path: Path, broker: RunningBroker) -> None:
    made = World(tmp_path, 8, config=world.task_config(8, rounds=2))
    run(made, broker)
    assert [r.phase for r in list_rounds(made.database, "task")] == ["committed", "committed"]
    assert_mean(made, 8)


@pytest.mark.usefixtures("now")
def test_vectors_too_large_for_a_message_are_pulled_in_chunks(tmp_path: Path, broker: RunningBroker) -> None:
    made = World(tmp_path, 4, config=world.task_config(4, dimension=100_000))
    run(made, broker)
    assert list_rounds(made.database, "task")[0].bytes_up > 4 * 100_000
    assert_mean(made, 4)


@pytest.mark.usefixtures("now")
def test_a_coordinator_that_restarts_inside_a_round_goes_on_with_it(tmp_path: Path, broker: RunningBroker) -> None:
    made = World(tmp_path, 8)

    def some_reported(_: Coordinator) -> bool:
        rounds = list_rounds(made.database, "task")
        return bool(rounds) and rounds[0].selected > 0

    run(made, broker, restart_after=some_reported)
    rounds = list_rounds(made.database, "task")
    assert [(r.number, r.phase, r.reported) for r in rounds] == [(1, "committed", 8)]
    assert_mean(made, 8)


@pytest.mark.usefixtures("now")
def test_noise_leaves_the_mean_and_costs_what_the_task_promised(tmp_path: Path, broker: RunningBroker) -> None:
    config = world.task_config(20, epsilon=8.0)
    made = World(tmp_path, 20, config=dataclasses.replace(config, rounds=1))
    run(made, broker)
    (only,) = list_rounds(made.database, "task")
    assert only.epsilon is not None
    assert 0 < only.epsilon <= 8.0
    assert all(len(agent.store.participations("task")) == 1 for agent in made.fleet.agents.values())


@pytest.mark.usefixtures("now")
def test_other_tasks_go_on_while_masks_are_taken_off(
    tmp_path: Path, broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first task's release does not end before the second task's whole round did."""
    made = World(tmp_path, 4, config=world.task_config(4))
    second = dataclasses.replace(world.task_config(4), task="second", population="others")
    create_task(made.database, made.blobs, second, b"a bundle", bytes(4 * second.dimension), world.START)
    over = threading.Event()

    def patient(job: ReleaseJob, workers: Workers) -> ReleaseResult | ReleaseFailed:
        if job.config.task == "task":
            assert over.wait(LIMIT_S)
        return release(job, workers)

    monkeypatch.setattr(driver, "release", patient)
    agents = [*made.fleet.agents.values(), *(made.agent_maker(n, "others")() for n in range(4, 8))]

    async def main() -> None:
        stop, coordinator = asyncio.Event(), made.make_coordinator()
        devices = asyncio.create_task(run_devices(agents, mqtt(broker.url), stop=stop))
        server = asyncio.create_task(serve(coordinator, broker.url, "coordinator", stop=stop, workers=1))
        async with asyncio.timeout(LIMIT_S):
            while (committed := [task.committed for task in list_tasks(made.database)]) != [1, 1]:
                if committed == [0, 1]:
                    over.set()
                done, _ = await asyncio.wait((devices, server), timeout=0.02)
                assert not done
        stop.set()
        await asyncio.gather(devices, server)

    asyncio.run(main())
    assert over.is_set()
