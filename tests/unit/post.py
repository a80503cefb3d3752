"""A device alone with its post: a real agent over a real store, to which a test delivers message after message."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from coordinator.rounds.states import Reporting
from edge_sdk.clock import ManualClock
from edge_sdk.events import Event
from edge_sdk.identity import Identity
from edge_sdk.protocol import chunks, codec, topics
from edge_sdk.protocol.messages import (
    AdvertiseKeys,
    Announcement,
    BlobRef,
    DeviceId,
    Digest,
    MaskedInput,
    Message,
    Plan,
    Pull,
    RoundId,
    ShareKeys,
    TaskState,
)
from edge_sdk.protocol.policy import DevicePolicy, encoding_of
from edge_sdk.runtime.agent import DeviceAgent, Pace
from edge_sdk.runtime.blob_cache import BlobCache
from edge_sdk.runtime.budget import Budget
from edge_sdk.runtime.consent import Consent
from edge_sdk.runtime.device_store import DeviceStore
from edge_sdk.runtime.frames import Outgoing
from edge_sdk.runtime.learner import Bundle, TrainingJob
from edge_sdk.secagg import modular, suite
from tests.simulation.world import POPULATION, START, KnownLearner, device_name, identity
from tests.unit.cohort import PLAN, Round

M = TypeVar("M", bound=Message)
ME = device_name(0)
DIMENSION = 20
BUNDLE = b"a bundle" * 100
CHECKPOINT = bytes(4 * DIMENSION)
POLICY = DevicePolicy(min_reports=2)


def reference(data: bytes) -> BlobRef:
    return BlobRef(Digest(suite.digest(data)), len(data))


def make_plan(**changes: Any) -> Plan:
    """A plan with blobs that exist."""
    return replace(PLAN, bundle=reference(BUNDLE), checkpoint=reference(CHECKPOINT), **changes)


def make_announcement(**changes: Any) -> Announcement:
    values: dict[str, Any] = {
        "sequence": 1,
        "population": POPULATION,
        "task": "task",
        "state": TaskState.OPEN,
        "rid": PLAN.rid,
        "round_number": 1,
        "rounds": 3,
        "selection_window_s": 30.0,
        "model_version": 1,
        "bundle": reference(BUNDLE),
        "checkpoint": reference(CHECKPOINT),
    }
    return Announcement(**(values | changes))


@dataclass
class Learner(KnownLearner):
    """Takes any bundle, counts what it is asked."""

    checks: int = 0

    def check(self, bundle: Bundle, checkpoint: bytes) -> int:
        self.checks += 1
        return super().check(bundle, checkpoint)


class Correspondent:
    """A device to which a test delivers message after message; `put` is how, and comes from whoever has the device.

    Attributes:
        served: what the device may fetch, by SHA-256.
    """

    def __init__(self) -> None:
        self.served = {reference(data).sha256: data for data in (BUNDLE, CHECKPOINT)}

    def put(self, topic: str, payload: bytes) -> tuple[Outgoing, ...]:
        """Deliver one message; all that the device says to it."""
        raise NotImplementedError

    # ---- bytes and messages

    def read(self, outgoing: Iterable[Outgoing]) -> list[Message]:
        """The control messages in what the agent sends, each checked as the coordinator would."""
        found = []
        for message in outgoing:
            if isinstance(topics.parse(message.topic), topics.ControlUp):
                found.append(cast(Message, codec.parse_for_coordinator(codec.read_frame(message.payload))))
        return found

    def announce(self, message: Announcement | None = None, *, signer: Identity | None = None) -> list[Message]:
        who = signer or identity("coordinator", "coordinator")
        message = message or make_announcement()
        payload = codec.write_frame(message, codec.BROADCAST, who.sign, certificate=who.certificate_der)
        return self.read(self.put(topics.build(topics.TaskTopic(message.population)), payload))

    def tell(self, message: Message, *, signer: Identity | None = None, addressee: str = ME) -> list[Message]:
        who = signer or identity("coordinator", "coordinator")
        payload = codec.write_frame(message, addressee, who.sign)
        return self.read(self.put(topics.build(topics.ControlDown(DeviceId(ME))), payload))

    def answer(self, message: Message, kind: type[M]) -> M:
        """Tell something, and return the one answer of a kind."""
        return one(self.tell(message), kind)

    def give(self, data: bytes, pull: Pull) -> list[Message]:
        """Answer a pull with the chunks of `data`, whatever was asked for."""
        said: list[Message] = []
        ranges = tuple(zip(pull.firsts, pull.counts, strict=True))
        for frame in chunks.frames(pull.sha256, data, pull.chunk_bytes, ranges):
            said += self.read(self.put(topics.build(topics.ChunkDown(DeviceId(ME))), frame))
        return said

    # ---- a round

    def follow(self, plan: Plan | None = None) -> AdvertiseKeys:
        """Hear of a round, check in, get the plan and its blobs, and advertise."""
        plan = plan or make_plan()
        number = plan.round_number
        self.announce(make_announcement(rid=plan.rid, sequence=number, round_number=number, task=plan.task))
        said = self.tell(plan)
        open_pulls = [m for m in said if isinstance(m, Pull)]
        while open_pulls:
            pull = open_pulls.pop(0)
            said = self.give(self.served[pull.sha256], pull)
            open_pulls += [m for m in said if isinstance(m, Pull)]
        return one(said, AdvertiseKeys)

    def train(self) -> list[Message]:
        """Let it train."""
        raise NotImplementedError


class Post(Correspondent):
    """One agent and what it is told.

    Args:
        folder: the device's home; another post over the same folder is the device after a reboot.
        asks: whether the device's owner must consent.
        others: what it learns with in further populations.
    """

    def __init__(
        self,
        folder: Path,
        *,
        policy: DevicePolicy = POLICY,
        now: float = START,
        learner: Learner | None = None,
        asks: bool = False,
        others: Mapping[str, Learner] | None = None,
        budget: Budget | None = None,
        free_memory: Callable[[], int | None] = lambda: None,
    ) -> None:
        super().__init__()
        self.others = others
        self.now = now
        self.folder = folder
        self.store = DeviceStore(folder / "device.sqlite")
        self.blobs = BlobCache(folder / "blobs")
        self.consent = Consent(self.store, ManualClock(now)) if asks else None
        self.events: list[Event] = []
        self.learner = learner or Learner(0, DIMENSION)
        self.agent = DeviceAgent(
            identity(ME),
            {POPULATION: self.learner} | dict(others or {}),
            self.store,
            self.blobs,
            policy=policy,
            random_bytes=os.urandom,
            pace=Pace(resend_s=10.0),
            consent=self.consent,
            on_event=self.events.append,
            budget=budget,
            free_memory=free_memory,
        )
        self.started = self.read(self.agent.start(now))

    def reboot(self, *, policy: DevicePolicy = POLICY, budget: Budget | None = None) -> Post:
        """The process dies and starts again."""
        self.store.close()
        asks = self.consent is not None
        return Post(
            self.folder,
            policy=policy,
            now=self.now,
            learner=self.learner,
            asks=asks,
            others=self.others,
            budget=budget,
        )

    def put(self, topic: str, payload: bytes) -> tuple[Outgoing, ...]:
        return self.agent.receive(topic, payload, self.now)

    def wait(self, seconds: float) -> list[Message]:
        self.now += seconds
        return self.read(self.agent.tick(self.now))

    def train(self) -> list[Message]:
        job = self.agent.take_job()
        assert job is not None
        return self.finish(job)

    def finish(self, job: TrainingJob) -> list[Message]:
        return self.read(self.agent.trained(job, self.learner.train(job), self.now))


class Cohort(Round):
    """A cohort in which one member is the agent of a post."""

    def __init__(self, post: Correspondent, plan: Plan | None = None, size: int = 6) -> None:
        super().__init__(size, plan or make_plan(), DevicePolicy(min_reports=2, epsilon_at_most=math.inf))
        self.post = post
        self._own = self.members.pop(ME)

    def index(self, name: str) -> int:
        return int(name.rsplit("-", 1)[1])

    def play_until_advertised(self) -> None:
        """Everybody has advertised, and the roster is made."""
        self.members[ME] = self._own
        self.select()
        del self.members[ME]
        self.advertised = self.post.follow(self.plan)
        self.tell(ME, self.advertised)
        self.post.train()
        for name, keys in self.advertise().items():
            self.tell(name, keys)

    def play_until_shared(self) -> None:
        """Everybody has shared, and U2 is known."""
        self.play_until_advertised()
        self.share_all()

    def share_all(self) -> None:
        """Stage 3 of everybody's, after `play_until_advertised`."""
        self.shared = self.post.answer(self.roster(ME), ShareKeys)
        for name, shares in {ME: self.shared, **self.share()}.items():
            self.tell(name, shares)
        self.delivered = self.delivery(ME)

    def report_all(self, without: str = "") -> MaskedInput:
        """Stage 4 of everybody's but one's, after `play_until_shared`; returns the agent's masked input."""
        report = self.post.answer(self.delivered, MaskedInput)
        for name, message in {ME: report, **self.report(self.members.keys() - {without})}.items():
            self.vectors[name] = modular.unpack(message.inline, encoding_of(self.plan).length, self.plan.bits)
            self.tell(name, message)
        if isinstance(self.state, Reporting):
            self.tick(self.state.opened_at + self.config.pacing.report_timeout_s)
        return report

    def play_until_reported(self) -> MaskedInput:
        """Everybody goes through the stages; returns the agent's masked input."""
        self.play_until_shared()
        return self.report_all()


def one(said: Iterable[Message], kind: type[M]) -> M:
    """The one message of a kind."""
    (message,) = [m for m in said if isinstance(m, kind)]
    return message


def next_round(number: int) -> dict[str, Any]:
    """What another round's plan changes."""
    return {"rid": RoundId(suite.digest(bytes([number]))[:16]), "round_number": number}


def stage_of(post: Post) -> str:
    return type(post.agent.state).__name__
