"""Devices by the thousand for `benchmarks.secagg`: real sessions, real frames, no stores and no training.

A session, its keys, boxes, signatures and masks are those of the SDK; a device here only lacks what costs no
computation: its store, and examples to train on (its update is drawn instead). Devices live in processes of their own,
which are handed messages and hand back what their devices say. The time they take is counted by stage.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.registrar.authority import issue_identity
from coordinator.registrar.folder import open_folder
from edge_sdk.errors import IdentityError
from edge_sdk.identity import Identity, verify_certificate
from edge_sdk.privacy.encode import encode
from edge_sdk.protocol import chunks, codec, session, topics
from edge_sdk.protocol.limits import CHUNK_DEFAULT_BYTES
from edge_sdk.protocol.messages import (
    NO_ROUND,
    Announcement,
    CheckIn,
    DeviceId,
    Digest,
    Large,
    Message,
    Outcome,
    Plan,
    Pull,
    Rejection,
    ShareDelivery,
    ToDevice,
)
from edge_sdk.protocol.policy import DevicePolicy, Spending
from edge_sdk.secagg.suite import digest
from edge_sdk.signing import verify_raw

Sent = tuple[str, bytes]
"""A topic and what goes there."""

POLICY = DevicePolicy(min_reports=2, epsilon_at_most=math.inf)


@dataclass(frozen=True, slots=True)
class Setting:
    """What all devices of a run know.

    Attributes:
        registrar: the registrar's folder.
        now: seconds since the epoch, throughout.
        dimension: of the updates.
        vanishing: those who are gone when it is time to report.
    """

    registrar: Path
    now: float
    dimension: int
    vanishing: frozenset[str]


def _nothing() -> chunks.Assembly:
    return chunks.Assembly(bytes(32), 1, CHUNK_DEFAULT_BYTES, chunks.MemoryParts(1, CHUNK_DEFAULT_BYTES))


@dataclass(slots=True)
class Device:
    """One device."""

    identity: Identity
    setting: Setting
    state: session.State = field(default_factory=session.Waiting)
    coordinator: bytes = b""
    cpu_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _steps: int = 0
    _frame: chunks.Assembly = field(default_factory=_nothing)

    def hear(self, topic: str, payload: bytes) -> list[Sent]:
        """Take in one message, and give what it answers."""
        if isinstance(topics.parse(topic), topics.ChunkDown):
            return self._chunk(payload)
        return self._frame_came(payload)

    def _frame_came(self, payload: bytes, *, large: bool = False) -> list[Sent]:
        start = time.process_time()
        frame = codec.read_frame(payload, large=large)
        announced = frame.kind is Announcement
        self.coordinator = frame.certificate if announced else self.coordinator
        peer = verify_certificate(self.coordinator, self.identity.ca, "coordinator", self.setting.now)
        whom = codec.BROADCAST if announced else self.identity.id
        if not verify_raw(peer.public_key, frame.signature, frame.signed_for(whom)):
            raise IdentityError("the signature is not the coordinator's")
        message = codec.parse_for_device(frame)
        if isinstance(message, ShareDelivery) and self.identity.id in self.setting.vanishing:
            return []
        said = self._act(message, frame.body)
        spent_s = time.process_time() - start
        if isinstance(self.state, session.Holding):
            # Drawn when it is needed, and not counted: it stands for a trained one.
            update = self._draw_update()
            start = time.process_time()
            said += self._step(session.Trained(update))
            spent_s += time.process_time() - start
        self.cpu_s[type(message).__name__] += spent_s
        return said

    def _act(self, message: ToDevice, body: bytes) -> list[Sent]:
        match message:
            case Announcement() if message.rid == NO_ROUND:
                return []
            case Announcement():
                return [self._say(CheckIn(message.task, message.rid, "1", "1"), self.identity.certificate_der)]
            case Plan():
                self._step(session.PlanReceived(message, Digest(digest(body)), Spending()))
                return self._step(session.Ready())
            case Large(reference):
                parts = chunks.MemoryParts(reference.size_bytes, CHUNK_DEFAULT_BYTES)
                self._frame = chunks.Assembly(reference.sha256, reference.size_bytes, CHUNK_DEFAULT_BYTES, parts)
                return self._pull()
            case Pull():
                return self._serve(message)
            case Rejection():
                raise RuntimeError(f"{self.identity.id} was rejected: {message.reason.name}")
            case Outcome():
                self._step(session.Received(message))
                return []
            case _:
                said = self._step(session.Received(message))
                if isinstance(self.state, session.Reported) and self.state.receipt is not None:
                    # The coordinator has it; a thousand of them would fill the machine.
                    self.state = replace(self.state, vector=b"")
                return said

    def _step(self, event: session.Event) -> list[Sent]:
        self._steps += 1
        entropy = digest(self.identity.id.encode(), self._steps.to_bytes(4, "little"))
        environment = session.Environment(
            self.identity.id, self.identity.certificate_der, self.identity.sign, self._verify, POLICY
        )
        self.state, effects = session.step(environment, self.state, event, self.setting.now, entropy)
        if isinstance(self.state, session.Ended) and self.state.declined is not None:
            raise RuntimeError(f"{self.identity.id} left the round: {self.state.detail}")
        return [self._say(effect.message) for effect in effects if isinstance(effect, session.Send)]

    def _verify(self, certificate: bytes, message: bytes, signature: bytes, now: float) -> str:
        peer = verify_certificate(certificate, self.identity.ca, "device", now)
        if not verify_raw(peer.public_key, signature, message):
            raise IdentityError(f"the signature is not {peer.id}'s")
        return peer.id

    def _draw_update(self) -> bytes:
        values = np.random.default_rng(len(self.identity.id)).standard_normal(self.setting.dimension, np.float32)
        return (values / np.linalg.norm(values)).astype("<f4").tobytes()

    def _say(self, message: Message, certificate: bytes = b"") -> Sent:
        frame = codec.write_frame(message, self.identity.id, self.identity.sign, certificate=certificate)
        return topics.build(topics.ControlUp(DeviceId(self.identity.id))), frame

    def _pull(self) -> list[Sent]:
        ranges = self._frame.requests(self.setting.now)
        if not ranges:
            return []
        firsts, counts = zip(*ranges, strict=True)
        return [self._say(Pull(Digest(self._frame.sha256), CHUNK_DEFAULT_BYTES, firsts, counts))]

    def _chunk(self, payload: bytes) -> list[Sent]:
        self._frame.receive(payload, self.setting.now)
        if not self._frame.complete:
            return self._pull()
        return self._frame_came(self._frame.finish(), large=True)

    def _serve(self, pull: Pull) -> list[Sent]:
        sha256, vector = session.masked_vector(self.state) or (pull.sha256, b"")
        topic = topics.build(topics.ChunkUp(0, DeviceId(self.identity.id)))
        ranges = tuple(zip(pull.firsts, pull.counts, strict=True))
        return [(topic, frame) for frame in chunks.frames(sha256, vector, pull.chunk_bytes, ranges)]


class Devices:
    """Devices in processes of their own. To be used in a `with` block.

    Args:
        setting: what they know.
        ids: who they are, for each process; the first device of a process may be its only one.
    """

    def __init__(self, setting: Setting, ids: Sequence[Sequence[str]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection[Any, Any]] = []
        self._processes = []
        self._home: dict[str, int] = {}
        for number, some in enumerate(ids):
            ours, theirs = context.Pipe()
            process = context.Process(target=_run, args=(theirs, setting, tuple(some)), daemon=True)
            process.start()
            self._connections.append(ours)
            self._processes.append(process)
            self._home.update(dict.fromkeys(some, number))
        for connection in self._connections:
            connection.recv()

    def __enter__(self) -> Devices:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(10)
            process.kill()

    def hear(self, messages: Iterable[tuple[str, str, bytes]]) -> list[Sent]:
        """Hand out (device id, topic, payload), in order for each device, and collect all that is answered."""
        batches: dict[int, list[tuple[str, str, bytes]]] = {}
        for message in messages:
            batches.setdefault(self._home[message[0]], []).append(message)
        for number, batch in batches.items():
            self._connections[number].send(batch)
        answers: list[Sent] = []
        for number in batches:
            answer = self._connections[number].recv()
            if isinstance(answer, Exception):
                raise answer
            answers += answer
        return answers

    def cpu_s(self, number: int) -> dict[str, dict[str, float]]:
        """By device of one process, the CPU seconds it took to answer each kind of message."""
        self._connections[number].send(None)
        found: dict[str, dict[str, float]] = self._connections[number].recv()
        return found


def _run(connection: Connection[Any, Any], setting: Setting, ids: tuple[str, ...]) -> None:
    authority = open_folder(setting.registrar)
    devices = {
        name: Device(issue_identity(authority, identity_id=name, role="device", now=setting.now), setting)
        for name in ids
    }
    timed = _Encoding()
    setattr(session, "encode", timed.around(encode))  # noqa: B010  # a function of a module, which types call constant
    connection.send(None)
    while True:
        try:
            batch = connection.recv()
        except EOFError:
            return
        if batch is None:
            connection.send({name: {**device.cpu_s, "encode": timed.seconds} for name, device in devices.items()})
            continue
        try:
            answers = [sent for name, topic, payload in batch for sent in devices[name].hear(topic, payload)]
        except Exception as error:
            connection.send(error)
            return
        connection.send(answers)


class _Encoding:
    """Counts the time of the encoding apart."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.process_time()
            try:
                return encode(*arguments)
            finally:
                self.seconds += time.process_time() - start

        return timed
