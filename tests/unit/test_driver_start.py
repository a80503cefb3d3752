"""The coordinator's loop turns while it loads what takes long, and nothing is served before."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import pytest

from coordinator.privacy import accountant
from coordinator.secagg.work import HERE
from coordinator.service import driver
from coordinator.service.engine import Coordinator
from edge_sdk.clock import SystemClock
from edge_sdk.runtime.broker_url import parse_broker_url


class Silence:
    """A transport that is always connected and carries nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.stopped = False

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        self.stopped = True


class Recorder:
    """A coordinator that only notes that it was started."""

    subscriptions: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.started = 0

    def start(self, now: float) -> tuple[()]:
        self.started += 1
        return ()


def test_the_accountant_is_loaded_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = threading.Event()
    monkeypatch.setattr(driver, "MqttTransport", Silence)
    monkeypatch.setattr(accountant, "load", lambda: turned.wait(60) or pytest.fail("the loop stood still"))
    recorder = Recorder()

    async def main() -> None:
        stop = asyncio.Event()
        loop = driver._Loop(
            cast(Coordinator, recorder), parse_broker_url("mqtt://nowhere"), "c", None, SystemClock(), HERE
        )
        running = asyncio.create_task(loop.run(stop))
        for _ in range(10):
            await asyncio.sleep(0)
        assert recorder.started == 0
        turned.set()
        stop.set()
        await running
        assert recorder.started == 1
        assert cast(Any, loop)._transport.stopped

    asyncio.run(main())
