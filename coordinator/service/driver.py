"""The coordinator's loop: broker messages and timers in, the engine's publications out, releases beside it.

A release has a thread that waits for the worker processes, so that other tasks' rounds go on.

The only asyncio of the coordinator. It decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from coordinator.privacy import accountant
from coordinator.secagg.work import Workers
from coordinator.service.engine import Coordinator, Publication
from coordinator.service.release import ReleaseFailed, ReleaseJob, ReleaseResult, release
from coordinator.service.workers import ProcessWorkers
from edge_sdk.clock import Clock, SystemClock
from edge_sdk.protocol.messages import AbandonReason
from edge_sdk.runtime.broker_url import BrokerUrl
from edge_sdk.runtime.dial import TlsFiles
from edge_sdk.runtime.mqtt import MqttTransport

log = logging.getLogger("edge.coordinator")

LOOK_FOR_TASKS_S = 0.5
BATCH = 256
LINGER_S = 0.01


async def serve(
    coordinator: Coordinator,
    broker: BrokerUrl,
    client_id: str,
    *,
    stop: asyncio.Event,
    tls: TlsFiles | None = None,
    clock: Clock | None = None,
    workers: int | None = None,
    on_serving: Callable[[], None] = lambda: None,
) -> None:
    """Run until `stop` is set. Tasks that ended are still served: late devices fetch their model.

    Args:
        on_serving: called once, when the broker is connected and rounds can open.
        workers: how many processes take masks off; None for one a core.

    Raises:
        TransportError: the broker cannot be reached at the start; later losses are waited out.
        StoreError: the store failed; nothing that it does not hold was published.
    """
    with ProcessWorkers(workers) as pool:
        await _Loop(coordinator, broker, client_id, tls, clock or SystemClock(), pool, on_serving).run(stop)


class _Loop:
    def __init__(
        self,
        coordinator: Coordinator,
        broker: BrokerUrl,
        client_id: str,
        tls: TlsFiles | None,
        clock: Clock,
        workers: Workers,
        on_serving: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_serving = on_serving
        self._coordinator = coordinator
        self._workers = workers
        self._clock = clock
        self._inbox: asyncio.Queue[tuple[str, bytes] | ReleaseResult | ReleaseFailed | None] = asyncio.Queue()
        self._releases: set[asyncio.Task[None]] = set()
        self._transport = MqttTransport(
            broker,
            client_id,
            coordinator.subscriptions,
            lambda topic, payload: self._inbox.put_nowait((topic, payload)),
            on_connected=lambda: self._inbox.put_nowait(None),
            on_disconnected=lambda reason: log.warning("%s; the coordinator keeps trying", reason),
            tls=tls,
            queue_messages=65_536,
            reconnect_max_s=10.0,
        )

    async def run(self, stop: asyncio.Event) -> None:
        await self._transport.start()
        stopped = asyncio.create_task(stop.wait())
        stopped.add_done_callback(lambda _: self._inbox.put_nowait(None))
        try:
            # No round opens without it, and it takes seconds, in which the broker must not be kept waiting.
            await asyncio.to_thread(accountant.load)
            self._publish(self._coordinator.start(self._clock.now()))
            if not stop.is_set():
                self._on_serving()
            while not stop.is_set():
                await self._turn()
        finally:
            stopped.cancel()
            await self._transport.stop()

    async def _turn(self) -> None:
        """Wait for something, then take in all that is there, in one transaction."""
        due = self._coordinator.next_deadline()
        wait_s = LOOK_FOR_TASKS_S if due is None else min(LOOK_FOR_TASKS_S, max(0.0, due - self._clock.now()))
        try:
            async with asyncio.timeout(wait_s):
                items = [await self._inbox.get()]
        except TimeoutError:
            items = []
        if items:
            # Those who answer the same stage come close together: one transaction, and one sync, for many.
            await asyncio.sleep(LINGER_S)
        while len(items) < BATCH and not self._inbox.empty():
            items.append(self._inbox.get_nowait())
        messages: list[tuple[str, bytes]] = []
        for item in items:
            match item:
                case None:
                    self._publish(self._coordinator.republish(self._clock.now()))
                case ReleaseResult() | ReleaseFailed():
                    self._publish(self._coordinator.finished(item, self._clock.now()))
                case _:
                    messages.append(item)
        now = self._clock.now()
        if messages:
            self._publish(self._coordinator.receive(messages, now))
        if not items or (due is not None and now >= due):
            self._publish(self._coordinator.tick(now))
        for job in self._coordinator.take_jobs():
            task = asyncio.create_task(self._release(job))
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)

    async def _release(self, job: ReleaseJob) -> None:
        try:
            result = await asyncio.to_thread(release, job, self._workers)
        except Exception as error:
            # Whatever it was: a round must not wait for ever for its release.
            log.exception("the release of a round failed")
            result = ReleaseFailed(job.rid, AbandonReason.COORDINATOR_FAILED, repr(error))
        self._inbox.put_nowait(result)

    def _publish(self, publications: tuple[Publication, ...]) -> None:
        for p in publications:
            self._transport.publish(p.topic, p.payload, retain=p.retain, expiry_s=p.expiry_s)
