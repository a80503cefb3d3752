"""A coordinator at its desk: a real engine over a real store, to which a test passes one message after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from coordinator.service.engine import Coordinator, Publication
from coordinator.service.tasks import RoundView, list_rounds
from edge_sdk.identity import Identity
from edge_sdk.protocol import codec, topics
from edge_sdk.protocol.messages import CheckIn, DeviceId, Digest, Message, Plan, RoundId
from edge_sdk.protocol.policy import Spending
from edge_sdk.protocol.session import PlanReceived
from edge_sdk.secagg import suite
from tests.simulation.world import START, World, device_name, identity, task_config
from tests.unit.cohort import Member, make_environment

M = TypeVar("M", bound=Message)
DEVICES = 5


@dataclass(frozen=True, slots=True)
class Said:
    """A message of the coordinator's to a device, or raw bytes on its chunk topic."""

    device_id: str
    message: Message


class Desk:
    """An engine with one open task and nobody there yet.

    Args:
        folder: for its store.
        devices: the goal count; all of them are in `members`, without agents.
        dimension: of the task.
    """

    def __init__(self, folder: Path, devices: int = DEVICES, *, dimension: int = 50, rounds: int = 1) -> None:
        config = task_config(devices, min_reports=2, dimension=dimension, rounds=rounds)
        self.world = World(folder, devices, config=config)
        self.now = START
        self.coordinator: Coordinator = self.world.fleet.coordinator
        self.coordinator.start(self.now)
        self.members = {name: Member(name, make_environment(name, self.world.policy)) for name in names(devices)}

    # ---- passing bytes and messages

    def put(self, topic: str, payload: bytes) -> tuple[Publication, ...]:
        return self.coordinator.receive(((topic, payload),), self.now)

    def send(
        self, name: str, message: Message, *, signer: Identity | None = None, certificate: bytes | None = None
    ) -> list[Said]:
        """Pass a frame on a device's topic; `signer` signs it and `certificate` travels with it if given."""
        return heard(self.put(control_topic(name), frame(name, message, signer=signer, certificate=certificate)))

    def wait(self, seconds: float) -> list[Said]:
        self.now += seconds
        return heard(self.coordinator.tick(self.now))

    # ---- the round

    @property
    def rid(self) -> RoundId:
        """The open round's id."""
        runner = self.coordinator._runners["task"]
        assert runner.plan is not None
        return runner.plan.rid

    @property
    def view(self) -> RoundView:
        """The newest round, as the store has it."""
        return list_rounds(self.world.database, "task")[-1]

    def check_in(self, name: str) -> list[Said]:
        message = CheckIn("task", self.rid, "1", "1")
        return self.send(name, message, certificate=identity(name).certificate_der)

    def check_in_all(self) -> Plan:
        """All devices check in; returns the plan that each of them gets."""
        said = [answer for name in self.members for answer in self.check_in(name)]
        plans = [answer.message for answer in said if isinstance(answer.message, Plan)]
        assert len(plans) == len(self.members)
        return plans[0]

    def join_all(self) -> None:
        """All devices follow the plan; none has said so yet."""
        plan = self.check_in_all()
        digest = Digest(suite.digest(codec.encode(plan)))
        for member in self.members.values():
            member.step(PlanReceived(plan, digest, Spending()))


def names(devices: int) -> list[str]:
    return [device_name(n) for n in range(devices)]


def control_topic(name: str) -> str:
    return topics.build(topics.ControlUp(DeviceId(name)))


def chunk_topic(name: str) -> str:
    return topics.build(topics.ChunkUp(0, DeviceId(name)))


def frame(name: str, message: Message, *, signer: Identity | None = None, certificate: bytes | None = None) -> bytes:
    """A frame of a device's."""
    return codec.write_frame(message, name, (signer or identity(name)).sign, certificate=certificate or b"")


def heard(publications: Iterable[Publication]) -> list[Said]:
    """The control messages to devices among publications."""
    found = []
    for publication in publications:
        topic = topics.parse(publication.topic)
        if isinstance(topic, topics.ControlDown):
            read = codec.read_frame(publication.payload)
            found.append(Said(topic.device_id, codec.parse_for_device(read)))
    return found


def only(said: list[Said], kind: type[M]) -> M:
    """The one message that was said, which must be of this kind."""
    (answer,) = said
    assert isinstance(answer.message, kind), answer
    return cast(M, answer.message)
