"""A whole fleet in one process and in virtual time: the real agents and the real coordinator over an in-memory bus.

Nothing here is a second implementation: the objects driven are those that the asyncio drivers drive. Time is a heap of
deliveries; a message takes a drawn latency, may be lost, duplicated or overtaken, and devices and the coordinator die
and return by script. A run is its seed, its network and its faults: an error that leaves `run` carries them as a note.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from coordinator.service.engine import Coordinator, Publication
from coordinator.service.release import ReleaseJob, release
from device_sim.script import STAGES, CrashCoordinator, Fault, Reboot, Vanish
from edge_sdk.errors import EdgeError
from edge_sdk.protocol import codec, topics
from edge_sdk.runtime.agent import DeviceAgent
from edge_sdk.runtime.frames import Outgoing
from edge_sdk.runtime.learner import TrainingJob

_KIND_AT = 3
_RECONNECT_S = 5.0


class ProcessDied(Exception):
    """Raised by a port that a test made fail: whoever called it is dead, and starts again from its store."""


@dataclass(frozen=True, slots=True)
class Network:
    """How the bus treats messages; announcements are retained, so that they are late rather than lost.

    Attributes:
        latency_s: the mean of an exponential latency.
        loss: share of messages lost.
        duplicates: share of messages that come twice.
    """

    latency_s: float = 0.02
    loss: float = 0.0
    duplicates: float = 0.0


@dataclass(order=True, slots=True)
class _Delivery:
    at: float
    order: int
    action: Callable[[], None] = field(compare=False)


@dataclass(slots=True)
class _Seat:
    """A device's place on the bus."""

    agent: DeviceAgent
    revive: Callable[[], DeviceAgent]
    running: bool = False
    online: bool = True
    away_from: bytes = b""


class VirtualFleet:
    """Drives agents and a coordinator until nothing is left to do.

    Args:
        make_coordinator: builds the coordinator over its store; called again after each crash.
        make_agents: for each device, what builds its agent over its own store; called again after each reboot.
        seed: of latencies, losses and duplicates.
        network: see there.
        faults: what goes wrong.
        start_at: virtual time at the beginning, seconds since the epoch.
        observe: is told of every (topic, payload) that a process sends, whatever becomes of it.
    """

    def __init__(
        self,
        make_coordinator: Callable[[], Coordinator],
        make_agents: Sequence[Callable[[], DeviceAgent]],
        *,
        seed: int,
        network: Network | None = None,
        faults: Sequence[Fault] = (),
        start_at: float = 1_800_000_000.0,
        observe: Callable[[str, bytes], None] = lambda topic, payload: None,
    ) -> None:
        self.now = start_at
        self.script = f"seed={seed}, network={network or Network()}, faults={list(faults)}"
        self._random = random.Random(seed)
        self._network = network or Network()
        self._faults = {fault for fault in faults if not isinstance(fault, CrashCoordinator)}
        self._crashes = {fault.delivery for fault in faults if isinstance(fault, CrashCoordinator)}
        self._observe = observe
        self._heap: list[_Delivery] = []
        self._order = 0
        self._retained: dict[str, bytes] = {}
        self._make_coordinator = make_coordinator
        self.coordinator = make_coordinator()
        self._seats = {}
        for make in make_agents:
            agent = make()
            self._seats[agent.device_id] = _Seat(agent, make)
        self._generation = 0
        self._wakes: dict[str, float] = {}
        self.delivered = 0

    @property
    def agents(self) -> dict[str, DeviceAgent]:
        """The agents as they are now, by device id."""
        return {device_id: seat.agent for device_id, seat in self._seats.items()}

    def run(self, *, until: Callable[[], bool], limit_s: float = 100_000.0) -> bool:
        """Run until `until()` holds; False where virtual time or work ran out first."""
        try:
            return self._run(until, self.now + limit_s)
        except Exception as error:
            error.add_note(f"to replay it: {self.script}")
            raise

    def _run(self, until: Callable[[], bool], end: float) -> bool:
        self._coordinate(lambda: self.coordinator.start(self.now))
        for seat in list(self._seats.values()):
            self._join(seat)
        while self._heap and not until():
            delivery = heapq.heappop(self._heap)
            if delivery.at > end:
                return until()
            self.now = max(self.now, delivery.at)
            delivery.action()
        return until()

    # ---- the coordinator's side

    def crash_coordinator(self) -> None:
        """The coordinator's process dies and comes back from its store."""
        self._generation += 1
        self.coordinator = self._make_coordinator()
        self._coordinate(lambda: self.coordinator.start(self.now))

    def _coordinate(self, action: Callable[[], Sequence[Publication]]) -> None:
        try:
            publications = action()
            jobs = self.coordinator.take_jobs()
        except ProcessDied:
            self.crash_coordinator()
            return
        for publication in publications:
            self._publish(publication)
        for job in jobs:
            self._later(0.05, self._release(job))
        self._wake("", self.coordinator.next_deadline(), self._tick_coordinator)

    def _to_coordinator(self, topic: str, payload: bytes) -> None:
        self.delivered += 1
        if self.delivered in self._crashes:
            self.crash_coordinator()
            return
        self._coordinate(lambda: self.coordinator.receive(((topic, payload),), self.now))

    def _publish(self, publication: Publication) -> None:
        topic = publication.topic
        self._observe(topic, publication.payload)
        if publication.retain:
            self._retained[topic] = publication.payload
        match topics.parse(topic):
            case topics.TaskTopic():
                for seat in self._seats.values():
                    self._to_device(seat, topic, publication.payload, retained=True)
            case topics.ControlDown(device_id) | topics.ChunkDown(device_id) if device_id in self._seats:
                self._to_device(self._seats[device_id], topic, publication.payload)
            case _:
                pass

    def _release(self, job: ReleaseJob) -> Callable[[], None]:
        generation = self._generation

        def done() -> None:
            if generation == self._generation:
                result = release(job)
                self._coordinate(lambda: self.coordinator.finished(result, self.now))

        return done

    def _tick_coordinator(self) -> None:
        self._coordinate(lambda: self.coordinator.tick(self.now))

    # ---- the devices' side

    def _join(self, seat: _Seat) -> None:
        process = seat.agent
        seat.running = True
        self._act(seat, lambda agent: agent.start(self.now))
        if seat.agent is not process:
            return
        for topic, payload in self._retained.items():
            self._to_device(seat, topic, payload, retained=True)
        self._act(seat, lambda agent: agent.connected(self.now))

    def _to_device(self, seat: _Seat, topic: str, payload: bytes, *, retained: bool = False) -> None:
        process = seat.agent

        def deliver() -> None:
            if seat.agent is not process or not seat.running:
                return
            if not seat.online:
                if not retained or payload == seat.away_from:
                    return
                seat.online = True
            self._act(seat, lambda agent: agent.receive(topic, payload, self.now))

        if seat.running:
            self._transmit(deliver, reliable=retained)

    def _act(self, seat: _Seat, action: Callable[[DeviceAgent], Sequence[Outgoing]]) -> None:
        try:
            messages = action(seat.agent)
        except ProcessDied:
            self._reboot(seat)
            return
        agent = seat.agent
        for message in messages:
            self._observe(message.topic, message.payload)
            fault = self._fault_at(agent, message.payload)
            if isinstance(fault, Vanish):
                self._vanish(seat)
            if not seat.online:
                break
            self._transmit(lambda m=message: self._to_coordinator(m.topic, m.payload))  # type: ignore[misc]
            if isinstance(fault, Reboot):
                self._reboot(seat)
                return
        job = agent.take_job()
        if job is not None:
            self._later(0.5, self._train(seat, job))
        self._wake(agent.device_id, agent.next_deadline(), lambda: self._tick_device(seat))

    def _tick_device(self, seat: _Seat) -> None:
        if seat.running:
            self._act(seat, lambda agent: agent.tick(self.now))

    def _train(self, seat: _Seat, job: TrainingJob) -> Callable[[], None]:
        process = seat.agent

        def done() -> None:
            if seat.agent is not process:
                return
            try:
                update = process.train(job)
            except EdgeError as error:
                failure = error
                self._act(seat, lambda agent: agent.failed(job, failure, self.now))
            else:
                self._act(seat, lambda agent: agent.trained(job, update, self.now))

        return done

    def _reboot(self, seat: _Seat) -> None:
        seat.agent = seat.revive()
        seat.running = False
        self._later(1.0, lambda: self._join(seat))

    def _vanish(self, seat: _Seat) -> None:
        seat.online = False
        topic = next(iter(seat.agent.subscriptions))
        seat.away_from = self._retained.get(topic, b"")

    def _fault_at(self, agent: DeviceAgent, payload: bytes) -> Vanish | Reboot | None:
        found = agent.announcement
        if not self._faults or found is None or len(payload) <= _KIND_AT or payload[:2] != b"EF":
            return None
        kind = codec.KINDS.get(payload[_KIND_AT])
        for fault in self._faults:
            same = fault.device_id == agent.device_id and fault.round_number == found.round_number
            if same and STAGES[fault.stage] is kind:
                self._faults.discard(fault)
                return fault
        return None

    # ---- time

    def _transmit(self, action: Callable[[], None], *, reliable: bool = False) -> None:
        copies = 1 + (self._random.random() < self._network.duplicates)
        for _ in range(copies):
            seconds = self._random.expovariate(1.0 / self._network.latency_s)
            if self._random.random() >= self._network.loss:
                self._later(seconds, action)
            elif reliable:
                self._later(seconds + _RECONNECT_S, action)

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, _Delivery(self.now + seconds, self._order, action))

    def _wake(self, who: str, at: float | None, action: Callable[[], None]) -> None:
        """Call `action` at a deadline; a deadline that moved leaves an early, harmless call behind."""
        if at is None:
            return
        known = self._wakes.get(who)
        if known is not None and self.now < known <= at:
            return
        self._wakes[who] = at

        def wake() -> None:
            if self._wakes.get(who) == at:
                del self._wakes[who]
            action()

        self._later(max(0.0, at - self.now) + 1e-6, wake)
