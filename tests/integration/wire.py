"""A hostile coordinator and network, and one device in a process of its own: in Python or in Kotlin, alike.

`Wire` is to a device process what `tests.unit.post.Post` is to an agent in the test's own process: the same attacks
are told to both. In between are a real broker and, before the device, a proxy that a test can make misbehave.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import queue
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from coordinator.rounds.states import Endorsing, Releasing
from coordinator.service.release import unmask
from edge_sdk.credentials import save_identity
from edge_sdk.identity import Identity
from edge_sdk.privacy.encode import decode
from edge_sdk.protocol import codec, topics
from edge_sdk.protocol.messages import (
    NO_ROUND,
    AbandonReason,
    Announcement,
    BlobRef,
    Consistency,
    DeviceId,
    Digest,
    Endorsement,
    Large,
    Message,
    Outcome,
    Plan,
    Pull,
    RoundId,
    Survivors,
    UnmaskingShares,
)
from edge_sdk.protocol.policy import encoding_of
from edge_sdk.runtime.broker_url import BrokerUrl
from edge_sdk.runtime.frames import Outgoing
from edge_sdk.secagg import modular, suite
from edge_sdk.signing import public_key_to_pem
from tests.integration.commands import Command, until
from tests.integration.exported import SIGNER, images, small
from tests.integration.jvm import Jvm
from tests.integration.proxy import ChaosProxy
from tests.simulation.world import POPULATION, identity
from tests.unit.cohort import PLAN
from tests.unit.lies import ME, SIZE
from tests.unit.post import Cohort, Correspondent, make_announcement, one, reference

M = TypeVar("M", bound=Message)

Client = Literal["Python", "Kotlin"]
CLIENTS: tuple[Client, ...] = ("Python", "Kotlin")
PATIENCE_S = 30.0
_PING_AGAIN_S = 0.25


class Device:
    """A device's process and its folder; `restart` is what a power cut does to it.

    Args:
        client: in which language.
        home: its folder, made here.
        broker: where it connects.
        arguments: more of its command line.
    """

    def __init__(self, client: Client, home: Path, broker: BrokerUrl, *arguments: str) -> None:
        self.client, self.home = client, home
        save_identity(home / "identity", identity(ME))
        (home / "signer.pub").write_bytes(public_key_to_pem(SIGNER.public_key()))
        x, y = images(20)
        np.savez(home / "examples.npz", x=x, y=y)
        self._arguments: list[str | Path] = ["--home", home, "--broker", str(broker), "--population", POPULATION]
        self._arguments += ["--examples", home / "examples.npz", "--consent", "a test", *arguments]
        self._start()

    def _start(self) -> None:
        self._process = (
            Jvm("edge.DeviceMainKt", *self._arguments)
            if self.client == "Kotlin"
            else Command("device", "run", *self._arguments, "--verbose")
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: Jvm | Command) -> None:
        # Which says so by ending: there is no such line.
        with contextlib.suppress(AssertionError):
            process.wait_for("\0")

    def stop(self) -> None:
        self._process.kill()
        self._reader.join()
        self._process.__exit__(None, None, None)

    def restart(self) -> None:
        """Kill it, and start it again over the same folder."""
        self.stop()
        self._start()

    @property
    def said(self) -> list[str]:
        """What it wrote to its terminal."""
        return self._process.said

    def says(self, text: str, since: int = 0) -> None:
        """Wait until it has said this."""
        until(lambda: any(text in line for line in self.said[since:]))


class Network:
    """A `ChaosProxy` in a thread of its own, before a broker."""

    def __init__(self, upstream: BrokerUrl) -> None:
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self.proxy = ChaosProxy(upstream)
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)

    async def _run(self) -> None:
        async with self.proxy:
            self._ready.set()
            await self._stop.wait()

    @property
    def url(self) -> BrokerUrl:
        """Where the device connects."""
        return self.proxy.url

    def cut(self) -> None:
        """Reset the device's connection."""
        self._loop.call_soon_threadsafe(self.proxy.cut)

    def inject(self, data: bytes) -> None:
        """Put bytes into what the device reads from its broker."""
        self._loop.call_soon_threadsafe(self.proxy.inject, data)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


class Wire(Correspondent):
    """The coordinator's end of the wire to one device process.

    After each message it asks something that any device answers at once, whatever its state: so it knows that what the
    message brought is all there, also where that is nothing.
    """

    def __init__(self, broker: BrokerUrl) -> None:
        super().__init__()
        artifact = small()
        parts = [artifact.part(part.name) for part in artifact.manifest.parts]
        self.served = {reference(data).sha256: data for data in (artifact.head, *parts)}
        self._bundle, self._checkpoint = reference(artifact.head), reference(artifact.part("checkpoint"))
        self._dimension = artifact.layout.size
        self._rounds = itertools.count(1)
        self._came: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._asked: set[bytes] = set()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "coordinator", protocol=paho.MQTTv5)
        self._client.on_message = lambda _, __, message: self._came.put((message.topic, bytes(message.payload)))
        self._client.connect(broker.host, broker.port)
        device = DeviceId(ME)
        up = [topics.build(topics.ControlUp(device)), topics.build(topics.ChunkUp(0, device))]
        self._client.subscribe([(topic, 1) for topic in up])
        self._client.loop_start()
        self._announce_nothing()
        self.meet()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    # ---- messages

    def send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish something, and do not wait for what it brings."""
        self._client.publish(topic, payload, 1, retain).wait_for_publish(PATIENCE_S)

    def put(self, topic: str, payload: bytes) -> tuple[Outgoing, ...]:
        self.send(topic, payload, retain=topic.startswith("fl/v1/pub/"))
        return self.heard()

    def heard(self) -> tuple[Outgoing, ...]:
        """All that the device said until now; the same bytes once."""
        digest = self._ask()
        found: dict[tuple[str, bytes], None] = {}
        while True:
            came = self._came.get(timeout=PATIENCE_S)
            pulled = self._pulled(*came)
            if pulled == digest:
                return tuple(Outgoing(topic, payload, 0) for topic, payload in found)
            if pulled not in self._asked:
                found[came] = None

    def meet(self) -> None:
        """Wait until the device is there: it may have come, or come back, only now."""
        asked, end = set(), time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < end, "the device is not there"
            asked.add(self._ask())
            try:
                while self._pulled(*self._came.get(timeout=_PING_AGAIN_S)) not in asked:
                    pass
                return
            except queue.Empty:
                continue

    def _ask(self) -> bytes:
        digest = os.urandom(32)
        self._asked.add(digest)
        who = identity("coordinator", "coordinator")
        frame = codec.write_frame(Large(BlobRef(Digest(digest), 100)), ME, who.sign)
        self.send(topics.build(topics.ControlDown(DeviceId(ME))), frame)
        return digest

    def _pulled(self, topic: str, payload: bytes) -> bytes | None:
        if not isinstance(topics.parse(topic), topics.ControlUp):
            return None
        message = codec.parse_for_coordinator(codec.read_frame(payload))
        return message.sha256 if isinstance(message, Pull) else None

    def _announce_nothing(self) -> None:
        """The device must know who its coordinator is."""
        who = identity("coordinator", "coordinator")
        nothing = make_announcement(sequence=0, rid=NO_ROUND)
        frame = codec.write_frame(nothing, codec.BROADCAST, who.sign, certificate=who.certificate_der)
        self.send(topics.build(topics.TaskTopic(POPULATION)), frame, retain=True)

    def answer(self, message: Message, kind: type[M]) -> M:
        said = self.tell(message)
        while not any(isinstance(one, kind) for one in said):
            # It may train still.
            said = self.read(self.heard())
            assert not any(type(one).__name__ == "Decline" for one in said), said
        return one(said, kind)

    def announce(self, message: Announcement | None = None, *, signer: Identity | None = None) -> list[Message]:
        return super().announce(message or self.announcement(self.plan()), signer=signer)

    # ---- rounds

    def plan(self, **changes: Any) -> Plan:
        """The plan of a round that never was: of the exported bundle, within any device's policy."""
        number = next(self._rounds)
        honest = replace(
            PLAN,
            rid=RoundId(suite.digest(b"round", number.to_bytes(4, "little"))[:16]),
            round_number=number,
            bundle=self._bundle,
            checkpoint=self._checkpoint,
            dimension=self._dimension,
            norm_bound=90.0,
            participation_cap=1_000,
            expires_after_s=600.0,
        )
        return replace(honest, **changes)

    def announcement(self, plan: Plan) -> Announcement:
        """Of a plan's round."""
        number = plan.round_number
        return make_announcement(
            rid=plan.rid, sequence=number, round_number=number, bundle=plan.bundle, checkpoint=plan.checkpoint
        )

    def train(self) -> list[Message]:
        return []

    def cohort(self, plan: Plan | None = None) -> Cohort:
        """Eight devices, one of them this one, before their round."""
        return Cohort(self, plan or self.plan(), SIZE)

    def finish(self, cohort: Cohort) -> UnmaskingShares:
        """Play a round in which all have reported to its end; the sum must hold this device's vector, unmasked."""
        if isinstance(cohort.state, Endorsing):
            if cohort.index(ME) in cohort.cohort.committee:
                cohort.tell(ME, self.answer(cohort.survivors, Endorsement))
            for name, message in cohort.endorse().items():
                cohort.tell(name, message)
        by_quorum = cohort.plan.consistency is Consistency.QUORUM
        last: Survivors | Any = cohort.quorum(ME) if by_quorum else cohort.survivors
        answer = self.answer(last, UnmaskingShares)
        cohort.tell(ME, answer)
        for name, other in cohort.answer(cohort.vectors.keys() - {ME}).items():
            cohort.tell(name, other)
        assert isinstance(cohort.state, Releasing)
        assert cohort.state.unmasking.config.plan.rid == cohort.plan.rid
        length, bits = encoding_of(cohort.plan).length, cohort.plan.bits
        total = np.zeros(length, modular.work_dtype(bits))
        for vector in cohort.vectors.values():
            total += vector
        found, liars = unmask(cohort.state.unmasking, total)
        assert not liars
        # Masks that do not cancel would fill the modulus.
        decode(found, encoding_of(cohort.plan), cohort.config.context, len(cohort.vectors))
        self.tell(Outcome(cohort.plan.rid, True, AbandonReason.NONE, len(cohort.vectors)))
        return answer

    def honest_round(self) -> None:
        """The control of every attack: the same device, unattacked, takes part to the end."""
        cohort = self.cohort()
        cohort.play_until_reported()
        self.finish(cohort)
