"""Eligibility over a real broker: a device that may not train joins no round, and unplugging pauses within a step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.service.broker import RunningBroker
from coordinator.service.driver import serve
from edge_sdk.runtime import driver
from edge_sdk.runtime.agent import DeviceAgent
from edge_sdk.runtime.driver import mqtt, run_devices
from edge_sdk.runtime.learner import TrainingJob, Update
from tests.simulation import world
from tests.simulation.world import KnownLearner, World

STEPS = 5


class Stepwise(KnownLearner):
    """Takes a few steps, and says when it is asked whether to stop."""

    asked = 0
    at_step: Callable[[int], None] = staticmethod(lambda step: None)

    def train(self, job: TrainingJob, should_stop: Callable[[], bool] | None = None) -> Update:
        assert should_stop is not None
        for step in range(STEPS):
            type(self).at_step(step)
            assert not should_stop()
            type(self).asked += 1
        return super().train(job)


def objections(agent: DeviceAgent) -> tuple[str, ...]:
    return agent.memberships[world.POPULATION].objections


def test_devices_wait_pause_and_go_on(
    tmp_path: Path, broker: RunningBroker, now: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "ASK_EVERY_S", 0.02)
    monkeypatch.setattr(driver, "PAUSE_S", 0.01)
    against: list[str] = ["not charging"]
    unplugged, noticed = threading.Event(), threading.Event()

    def unplug(step: int) -> None:
        if step == 2 and not unplugged.is_set():
            against.append("not charging")
            unplugged.set()
            assert noticed.wait(60)

    async def main(made: World) -> None:
        stop, agents = asyncio.Event(), list(made.fleet.agents.values())
        coordinator = made.make_coordinator()
        running = [
            asyncio.create_task(serve(coordinator, broker.url, "coordinator", stop=stop)),
            asyncio.create_task(
                run_devices(agents, mqtt(broker.url), stop=stop, objections=lambda: {world.POPULATION: tuple(against)})
            ),
        ]

        async def until(holds: Callable[[], bool]) -> None:
            while not holds():
                done, _ = await asyncio.wait(running, timeout=0.02, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()

        async with asyncio.timeout(60):
            await until(lambda: all(agent.announcement is not None and objections(agent) for agent in agents))
            assert made.rounds[0].checked_in == 0
            Stepwise.at_step = staticmethod(unplug)
            against.clear()
            await until(unplugged.is_set)
            await until(lambda: all(objections(agent) for agent in agents))
            noticed.set()
            assert Stepwise.asked == 2
            against.clear()
            await until(lambda: coordinator.idle)
        assert Stepwise.asked == 3 * STEPS
        stop.set()
        await asyncio.gather(*running)

    Stepwise.asked, Stepwise.at_step = 0, staticmethod(lambda step: None)
    config = world.task_config(3, rounds=1, min_reports=3)
    learners = [Stepwise(number, config.dimension) for number in range(3)]
    with World(tmp_path, 3, config=config, learners=learners) as made:
        asyncio.run(main(made))
        assert [view.phase for view in made.rounds] == ["committed"]
