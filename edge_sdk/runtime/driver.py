"""The device's loop: broker messages and timers in, the agent's publications out, training in a thread.

One loop carries one device in an app and many in a fleet's process. It decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeAlias

from edge_sdk.clock import Clock, SystemClock
from edge_sdk.errors import EdgeError
from edge_sdk.identity import Identity
from edge_sdk.protocol.session import round_id
from edge_sdk.runtime.agent import DeviceAgent
from edge_sdk.runtime.broker_url import BrokerUrl
from edge_sdk.runtime.dial import TlsFiles
from edge_sdk.runtime.frames import Outgoing
from edge_sdk.runtime.learner import TrainingJob
from edge_sdk.runtime.mqtt import MqttTransport
from edge_sdk.training.trainer import TrainingInterrupted

log = logging.getLogger("edge.device")

MAX_WAIT_S = 5.0
ASK_EVERY_S = 10.0
"""How often it is asked whether this is a good moment to train."""
PAUSE_S = 1.0
"""How long a paused training waits before it looks whether its round is over."""


CLOCK_STEP_S = 60.0
"""By how much the clock may be off from one turn of the loop to the next before it was set."""


class Renewal(Protocol):
    """Renews one device's certificate."""

    next_at: float

    def attempt(self, now: float) -> Identity | None:
        """Renew, taking as long as that takes; None where it failed, which is not raised."""
        ...


class Transport(Protocol):
    """What a device sends through."""

    def launch(self) -> None:
        """Begin to connect, and keep at it."""
        ...

    def publish(self, topic: str, payload: bytes, *, expiry_s: float | None = None) -> bool:
        """Send without waiting; False where it was dropped. The agent repeats what matters."""
        ...

    async def stop(self) -> None:
        """Say goodbye."""
        ...


MakeTransport = Callable[[DeviceAgent, Callable[[str, bytes], None], Callable[[], None]], Transport]
"""(agent, on_message, on_connected) -> its transport."""


def mqtt(broker: BrokerUrl, tls: Callable[[DeviceAgent], TlsFiles | None] = lambda agent: None) -> MakeTransport:
    """Transports to a broker, a connection for each device, its id the client id."""

    def make(
        agent: DeviceAgent, on_message: Callable[[str, bytes], None], on_connected: Callable[[], None]
    ) -> MqttTransport:
        def say_connected() -> None:
            log.info("%s is connected to %s", agent.device_id, broker)
            on_connected()

        return MqttTransport(
            broker,
            agent.device_id,
            agent.subscriptions,
            on_message,
            on_connected=say_connected,
            on_disconnected=lambda reason: log.warning("%s: %s; it keeps trying", agent.device_id, reason),
            tls=tls(agent),
        )

    return make


Objections: TypeAlias = Callable[[], Mapping[str, tuple[str, ...]]]
"""What is against training now, in words, by population."""

SpareWork: TypeAlias = Callable[[Callable[[], bool]], None]
"""Work for the training thread while no round needs it; it asks now and then whether to stop, and raises EdgeError."""


async def run_devices(
    agents: Sequence[DeviceAgent],
    make_transport: MakeTransport,
    *,
    stop: asyncio.Event,
    done: Callable[[], bool] = lambda: False,
    clock: Clock | None = None,
    objections: Objections | None = None,
    renewals: Mapping[str, Renewal] | None = None,
) -> None:
    """Run devices until `stop` is set or `done()` holds; see `DeviceLoop`.

    Raises:
        StoreError: a device's store failed; nothing that it does not hold was sent.
    """
    await DeviceLoop(agents, make_transport, clock=clock, objections=objections, renewals=renewals).run(stop, done)


class DeviceLoop:
    """What carries devices; made and run on one event loop. They train one at a time, in a thread.

    Args:
        agents: the devices.
        make_transport: connects each.
        clock: tells the time.
        objections: asked every few seconds: while there is any, no device joins a round there, and one that trains
            pauses before its next step, for as long as its round lasts.
        renewals: renew certificates, by device id, when they are due and the device is between rounds.
        spare: asked every few seconds, while nothing is trained, for what else there is to do; a round's training
            that comes meanwhile ends it.
    """

    def __init__(
        self,
        agents: Sequence[DeviceAgent],
        make_transport: MakeTransport,
        *,
        clock: Clock | None = None,
        objections: Objections | None = None,
        renewals: Mapping[str, Renewal] | None = None,
        spare: Callable[[], SpareWork | None] = lambda: None,
    ) -> None:
        self._spare = spare
        self._spared_at = -math.inf
        self._clock = clock or SystemClock()
        self._seen_at = self._clock.now()
        self._renewals = renewals or {}
        self._objections = objections
        self._asked_at = -math.inf
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="training")
        self._inbox: asyncio.Queue[Callable[[], None] | None] = asyncio.Queue()
        self._transports: dict[str, Transport] = {}
        self._agents = agents
        self._deadlines: dict[str, float] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._in_training = 0
        self._ending = threading.Event()
        for agent in agents:
            self._transports[agent.device_id] = make_transport(
                agent, self._on_message(agent), self._on_connected(agent)
            )

    def wake(self) -> None:
        """Let every device look at once at what changed; called on the event loop."""
        self._inbox.put_nowait(self._tick_all)

    def _tick_all(self) -> None:
        self._asked_at = self._spared_at = -math.inf
        for agent in self._agents:
            self._send(agent, agent.tick(self._clock.now()))

    async def run(self, stop: asyncio.Event, done: Callable[[], bool]) -> None:
        for agent in self._agents:
            self._send(agent, agent.start(self._clock.now()))
            self._transports[agent.device_id].launch()
        stopped = asyncio.create_task(stop.wait())
        stopped.add_done_callback(lambda _: self._inbox.put_nowait(None))
        try:
            while not stop.is_set() and not done():
                await self._turn()
            for agent in self._agents:
                agent.keep_traffic()
        finally:
            self._ending.set()
            stopped.cancel()
            await asyncio.gather(*(t.stop() for t in self._transports.values()))
            # A step may take long, and the app has other things to do on this loop.
            await asyncio.to_thread(self._pool.shutdown)

    async def _turn(self) -> None:
        await self._ask()
        await self._renew()
        self._use_spare_time()
        due = min(self._deadlines.values(), default=math.inf)
        if self._objections is not None:
            due = min(due, self._asked_at + ASK_EVERY_S)
        wait_s = min(MAX_WAIT_S, max(0.0, due - self._clock.now()))
        try:
            async with asyncio.timeout(wait_s):
                action = await self._inbox.get()
        except TimeoutError:
            action = None
        while action is not None:
            action()
            action = None if self._inbox.empty() else self._inbox.get_nowait()
            # Let the sockets breathe between devices: one may have waited its turn behind many others.
            await asyncio.sleep(0)
        now = self._clock.now()
        self._watch_clock(now)
        for agent in self._agents:
            if self._deadlines.get(agent.device_id, float("inf")) <= now:
                self._send(agent, agent.tick(now))

    def _watch_clock(self, now: float) -> None:
        """A turn takes seconds: if the clock says something else, it was set, or the machine slept."""
        step_s, self._seen_at = now - self._seen_at, now
        if step_s > MAX_WAIT_S + CLOCK_STEP_S:
            log.warning("the clock went forward by %.0f s: it was set, or this machine slept", step_s)
        elif step_s < -CLOCK_STEP_S:
            log.warning("the clock was put back by %.0f s; a round under way may be lost", -step_s)
            self._asked_at = -math.inf
            for agent in self._agents:
                self._send(agent, agent.clock_set_back(now))

    async def _renew(self) -> None:
        """Renew the certificate of who is between rounds and due. Nothing is taken in meanwhile: no round begins."""
        for agent in self._agents:
            renewal = self._renewals.get(agent.device_id)
            if renewal is not None and self._clock.now() >= renewal.next_at and agent.between_rounds:
                identity = await asyncio.to_thread(renewal.attempt, self._clock.now())
                if identity is not None:
                    agent.adopt(identity)

    async def _ask(self) -> None:
        """Ask whether this is a good moment, if it is time to."""
        if self._objections is None or self._clock.now() < self._asked_at + ASK_EVERY_S:
            return
        # Reading sensors may wait for another program.
        found = await asyncio.to_thread(self._objections)
        self._asked_at = self._clock.now()
        for agent in self._agents:
            self._send(agent, agent.consider_conditions(found, self._asked_at))

    def _on_message(self, agent: DeviceAgent) -> Callable[[str, bytes], None]:
        def receive(topic: str, payload: bytes) -> None:
            self._inbox.put_nowait(lambda: self._send(agent, agent.receive(topic, payload, self._clock.now())))

        return receive

    def _on_connected(self, agent: DeviceAgent) -> Callable[[], None]:
        return lambda: self._inbox.put_nowait(lambda: self._send(agent, agent.connected(self._clock.now())))

    def _send(self, agent: DeviceAgent, messages: tuple[Outgoing, ...]) -> None:
        transport = self._transports[agent.device_id]
        for message in messages:
            if transport.publish(message.topic, message.payload, expiry_s=message.expiry_s):
                agent.sent(len(message.payload), self._clock.now())
        job = agent.take_job()
        if job is not None:
            self._in_training += 1
            self._begin(self._train(agent, job))
        due = agent.next_deadline()
        if due is None:
            self._deadlines.pop(agent.device_id, None)
        else:
            self._deadlines[agent.device_id] = due

    def _use_spare_time(self) -> None:
        if self._jobs or self._clock.now() < self._spared_at + ASK_EVERY_S:
            return
        self._spared_at = self._clock.now()
        try:
            work = self._spare()
        except EdgeError as error:
            log.warning("what could be done between rounds is not known: %s (%s)", error, error.hint)
        else:
            if work is not None:
                self._begin(self._do_spare_work(work))

    async def _do_spare_work(self, work: SpareWork) -> None:
        def should_stop() -> bool:
            return self._ending.is_set() or self._in_training > 0

        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, work, should_stop)
        except TrainingInterrupted:
            pass  # another time
        except EdgeError as error:
            log.warning("what was done between rounds failed: %s (%s)", error, error.hint)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _train(self, agent: DeviceAgent, job: TrainingJob) -> None:
        loop = asyncio.get_running_loop()

        def is_over() -> bool:
            # What is trained for a round that is gone only keeps the next one waiting.
            return self._ending.is_set() or round_id(agent.state) != job.plan.rid

        def should_stop() -> bool:
            # Asked in the training thread before every step: unplugging pauses it here, until the round is over.
            while not is_over() and agent.is_paused(job):
                self._ending.wait(PAUSE_S)
            return is_over()

        try:
            update = await loop.run_in_executor(self._pool, agent.train, job, should_stop)
        except EdgeError as error:
            failure = error
            self._inbox.put_nowait(lambda: self._send(agent, agent.failed(job, failure, self._clock.now())))
        else:
            self._inbox.put_nowait(lambda: self._send(agent, agent.trained(job, update, self._clock.now())))
        finally:
            self._in_training -= 1
