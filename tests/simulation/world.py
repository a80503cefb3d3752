"""A fleet in memory for tests: real agents, real coordinator, a learner whose update is known, a witness of all sent.

A `Case` is a whole run as one value: its repr in a failure can be pasted into `reproductions.py`.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coordinator.config import Privacy, TaskConfig, Training
from coordinator.registrar.authority import Authority, create_authority, issue_identity
from coordinator.rounds.outbox import live
from coordinator.rounds.states import Pacing, Unmasking
from coordinator.secagg.work import Workers
from coordinator.service import release as releasing
from coordinator.service.engine import Coordinator
from coordinator.service.tasks import RoundView, create_task, encoding_for, list_rounds, list_tasks
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from device_sim.script import Fault
from device_sim.virtual import Network, VirtualFleet
from edge_sdk.identity import Identity, Role
from edge_sdk.privacy.subsampled import Sampling
from edge_sdk.protocol import codec, topics
from edge_sdk.protocol.checks import survivors_digest
from edge_sdk.protocol.messages import (
    AbandonReason,
    BlobRef,
    Consistency,
    Digest,
    Endorsement,
    MaskedInput,
    Plan,
    Quorum,
    Survivors,
    TaskState,
    UnmaskingShares,
    members,
)
from edge_sdk.protocol.policy import DevicePolicy
from edge_sdk.runtime.agent import DeviceAgent, Pace
from edge_sdk.runtime.blob_cache import BlobCache
from edge_sdk.runtime.budget import Budget
from edge_sdk.runtime.device_store import DeviceStore
from edge_sdk.runtime.learner import Bundle, Learner, TrainingJob, Update
from edge_sdk.secagg import client, modular, suite

_MEMORY = Path("/dev/shm")  # noqa: S108  # only its speed is wanted, every world has a folder of its own in it

START = 1_800_000_000.0
DIMENSION = 50
POPULATION = "testers"
NO_NETWORK_TROUBLE = Network()


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """A folder for one world's stores, in memory where the machine has such, as every commit waits for a disk."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as name:
        yield Path(name)


@cache
def authority() -> Authority:
    return create_authority("Test Registrar", now=START)


@cache
def identity(name: str, role: Role = "device") -> Identity:
    return issue_identity(authority(), identity_id=name, role=role, now=START)


def device_name(number: int) -> str:
    return f"device-{number:03d}"


def known_update(number: int, dimension: int = DIMENSION) -> NDArray[np.float32]:
    """The update that device `number` trains, whatever the checkpoint; its norm is below one."""
    values = np.random.default_rng(number).normal(0, 1, dimension)
    return (0.7 * values / np.linalg.norm(values)).astype(np.float32)


@dataclass
class KnownLearner:
    """Trains at once to a known update."""

    number: int
    dimension: int = DIMENSION
    installed: list[int] = field(default_factory=list)
    runtime_version: str = "none"
    example_count: int = 10
    sampled: Sampling | None = None
    memory: int = 0

    def parts(self, head: bytes) -> tuple[BlobRef, ...]:
        return ()

    def check(self, bundle: Bundle, checkpoint: bytes) -> int:
        return len(checkpoint) // 4

    def memory_bytes(self, head: bytes, plan: Plan) -> int:
        return self.memory

    def sampling(self, bundle: Bundle, plan: Plan) -> Sampling | None:
        return self.sampled

    def train(self, job: TrainingJob, should_stop: Callable[[], bool] | None = None) -> Update:
        return Update(known_update(self.number, self.dimension).astype("<f4").tobytes(), self.sampled)

    def install(self, version: int, bundle: Bundle, checkpoint: bytes) -> None:
        self.installed.append(version)


PACING = Pacing(
    selection_timeout_s=30.0,
    advertise_timeout_s=20.0,
    share_timeout_s=20.0,
    report_timeout_s=60.0,
    unmask_timeout_s=20.0,
    quiet_s=3.0,
    backoff_s=1.0,
    backoff_limit_s=8.0,
    sit_out_s=10.0,
)


def task_config(
    devices: int,
    *,
    rounds: int = 1,
    epsilon: float = math.inf,
    min_reports: int = 0,
    dimension: int = DIMENSION,
    participation_cap: int = 0,
    dropout_share: float = 0.3,
    consistency: Consistency = Consistency.THRESHOLD,
) -> TaskConfig:
    """A task whose cohort is the whole fleet; `min_reports` 0 stands for half of it."""
    floor = min_reports or max(2, devices // 2)
    privacy = Privacy(
        epsilon=epsilon,
        delta=1e-5,
        clip_norm=1.0,
        participation_cap=participation_cap or rounds + 10,
        corrupt_share=0.05,
        dropout_share=dropout_share,
        consistency=consistency,
    )
    return TaskConfig(
        task="task",
        population=POPULATION,
        bundle=BlobRef(Digest(bytes(32)), 0),
        signer="",
        dimension=dimension,
        rounds=rounds,
        goal_count=devices,
        min_check_ins=floor,
        min_reports=floor,
        training=Training(epochs=1, batch_size=8, max_steps=10, learning_rate=0.1),
        privacy=privacy,
        encoding=encoding_for(privacy, dimension=dimension, min_reports=floor, goal_count=devices),
        pacing=PACING,
        server_optimizer="fedavg:learning_rate=1",
    )


class Witness:
    """Sees what devices put under their masks, what the coordinator found when it took them off, and every frame.

    Attributes:
        sums: for each release the round's state and the unmasked sum, in order; every one is checked as it is made.
        inputs: by device, the digest of the masked input of each round that left it.
        answers: by round and device, the one answer that left it.
        survivors: by round, the one set that was published.
        endorsements: by round and device, the one endorsement that left it.
        frames: how many frames of each kind were sent.
    """

    def __init__(self) -> None:
        self.sums: list[tuple[Unmasking, modular.Words]] = []
        self.inputs: dict[str, dict[bytes, bytes]] = defaultdict(dict)
        self.answers: dict[bytes, dict[str, UnmaskingShares]] = defaultdict(dict)
        self.survivors: dict[bytes, Survivors] = {}
        self.endorsements: dict[bytes, dict[str, Endorsement]] = defaultdict(dict)
        self.frames: Counter[str] = Counter()
        self._plain: dict[tuple[bytes, int], modular.Words] = {}

    def observe(self, topic: str, payload: bytes) -> None:
        """Note what matters, and complain where a party contradicts itself."""
        if payload[:2] != b"EF":
            return
        kind = codec.KINDS[payload[3]]
        self.frames[kind.__name__] += 1
        if kind not in (MaskedInput, UnmaskingShares, Survivors, Quorum, Endorsement):
            return
        frame = codec.read_frame(payload)
        message = codec.decode(frame.kind, frame.body)
        device_id = getattr(topics.parse(topic), "device_id", "")
        match message:
            case MaskedInput():
                known = self.inputs[device_id].setdefault(message.rid, message.vector.sha256)
                assert known == message.vector.sha256, f"{device_id} sent two masked inputs in one round"
            case UnmaskingShares():
                first = self.answers[message.rid].setdefault(device_id, message)
                assert first == message, f"{device_id} gave two answers in one round"
            case Endorsement():
                endorsed = self.endorsements[message.rid].setdefault(device_id, message)
                assert endorsed == message, f"{device_id} endorsed two sets in one round"
            case Survivors() | Quorum():
                shown = Survivors(message.rid, message.root, message.sharers, message.survivors)
                published = self.survivors.setdefault(message.rid, shown)
                assert published == shown, "two survivor sets were published in one round"
            case _:
                raise AssertionError(message)

    def kinds_released(self) -> Mapping[tuple[bytes, int], set[str]]:
        """By round and device, of which of its two secrets shares were released."""
        kinds: dict[tuple[bytes, int], set[str]] = defaultdict(set)
        for rid, answers in self.answers.items():
            survivors = self.survivors[rid]
            alive = members(survivors.survivors, 8 * len(survivors.survivors)) or frozenset()
            for answer in answers.values():
                assert answer.survivors_digest == survivors_digest(survivors)
                for owner in answer.indices:
                    kinds[rid, owner].add("self seed" if owner in alive else "mask key")
        return kinds

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Stand between the session and its masks, and between the coordinator and its release."""
        mask, unmask = client.mask, releasing.unmask

        def watched_mask(*arguments: Any) -> modular.Words:
            vector, bits, ctx, index = arguments[0], arguments[1], arguments[4], arguments[7]
            self._plain[ctx, index] = modular.reduce(vector, bits)
            return mask(*arguments)

        def watched_unmask(
            state: Unmasking, total: modular.Words, workers: Workers
        ) -> tuple[modular.Words, frozenset[int]]:
            found, liars = unmask(state, total, workers)
            bits, ctx = state.config.plan.bits, state.config.context
            expected = np.zeros_like(found)
            for index in live(state):
                expected += self._plain[ctx, index]
            assert np.array_equal(found, modular.reduce(expected, bits)), "the sum is not that of the survivors"
            self.sums.append((state, found))
            return found, liars

        setattr(client, "mask", watched_mask)  # noqa: B010  # a function of a module, which types call constant
        setattr(releasing, "unmask", watched_unmask)  # noqa: B010
        try:
            yield
        finally:
            setattr(client, "mask", mask)  # noqa: B010
            setattr(releasing, "unmask", unmask)  # noqa: B010


class World:
    """A coordinator's store and its devices' stores under one folder, and a fleet that drives them."""

    def __init__(
        self,
        folder: Path,
        devices: int,
        *,
        config: TaskConfig | None = None,
        policy: DevicePolicy | None = None,
        seed: int = 1,
        network: Network = NO_NETWORK_TROUBLE,
        faults: Sequence[Fault] = (),
        bundle: bytes = b"a bundle",
        parts: Sequence[bytes] = (),
        learners: Sequence[Learner] = (),
        budget: Budget | None = None,
    ) -> None:
        self.budget = budget
        self.config = config or task_config(devices)
        self.folder = folder
        self.seed = seed
        self.processes = 0
        self.database = Database.in_folder(folder)
        self.blobs = Blobs(folder / "blobs")
        self.learners = [KnownLearner(number, self.config.dimension) for number in range(devices)]
        self.fitted = dict(enumerate(learners))
        self.policy = policy or DevicePolicy(min_reports=2, epsilon_at_most=math.inf)
        self.witness = Witness()
        self.stores: dict[str, DeviceStore] = {}
        checkpoint = np.zeros(self.config.dimension, "<f4").tobytes()
        create_task(self.database, self.blobs, self.config, bundle, checkpoint, START, parts=parts)
        self.fleet = VirtualFleet(
            self.make_coordinator,
            [self.agent_maker(number) for number in range(devices)],
            seed=seed,
            network=network,
            faults=faults,
            start_at=START,
            observe=self.witness.observe,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for store in self.stores.values():
            store.close()
        self.database.close()

    def make_coordinator(self) -> Coordinator:
        return Coordinator(
            self.database,
            self.blobs,
            identity("coordinator", "coordinator"),
            ca=authority().certificate,
            random_bytes=self.random_bytes(),
        )

    def random_bytes(self) -> Callable[[int], bytes]:
        """Another source for each process that starts, the same for each run: times and secrets follow the seed."""
        self.processes += 1
        return suite.Stream(suite.digest(b"world %d process %d" % (self.seed, self.processes))).bytes

    def agent_maker(self, number: int, population: str = POPULATION) -> Callable[[], DeviceAgent]:
        name = device_name(number)
        learner: Learner = (
            self.learners[number] if number < len(self.learners) else KnownLearner(number, self.config.dimension)
        )
        learner = self.fitted.get(number, learner)

        def make() -> DeviceAgent:
            home = self.folder / name
            if name in self.stores:
                self.stores[name].close()
            self.stores[name] = self.make_store(home / "device.sqlite")
            return DeviceAgent(
                identity(name),
                {population: learner},
                self.stores[name],
                BlobCache(home / "blobs"),
                policy=self.policy,
                random_bytes=self.random_bytes(),
                pace=Pace(resend_s=5.0),
                budget=self.budget,
            )

        return make

    def make_store(self, path: Path) -> DeviceStore:
        """A device's store; a test may put one here that fails."""
        return DeviceStore(path)

    def run(self, *, limit_s: float = 100_000.0) -> bool:
        """Run until every task has ended, and check what must hold however it ended."""
        with self.witness.watching():
            done = self.fleet.run(until=lambda: self.fleet.coordinator.idle, limit_s=limit_s)
        self.check()
        return done

    @property
    def rounds(self) -> list[RoundView]:
        return list_rounds(self.database, "task")

    @property
    def task_state(self) -> TaskState:
        return list_tasks(self.database)[0].state

    def check(self) -> None:
        """What must hold in every run."""
        for view in self.rounds:
            if view.closed_at is not None:
                assert (view.phase == "committed") == (view.reason is AbandonReason.NONE), view
        committed = sum(view.phase == "committed" for view in self.rounds)
        assert committed <= len(self.witness.sums)
        mixed = {key: kinds for key, kinds in self.witness.kinds_released().items() if len(kinds) > 1}
        assert not mixed, f"both secrets of one device: {mixed}"
        for name, store in self.stores.items():
            ledger = {p.rid: p.sent_sha256 for p in store.participations("task")}
            assert ledger == self.witness.inputs[name], f"{name}'s ledger is not what left it"


@dataclass(frozen=True, slots=True)
class Case:
    """A whole run as one value; without an epsilon there is no noise."""

    devices: int
    rounds: int = 1
    min_reports: int = 0
    epsilon: float | None = None
    seed: int = 1
    network: Network = NO_NETWORK_TROUBLE
    faults: tuple[Fault, ...] = ()
    by_quorum: bool = False

    def world(self, folder: Path) -> World:
        epsilon = math.inf if self.epsilon is None else self.epsilon
        config = task_config(
            self.devices,
            rounds=self.rounds,
            epsilon=epsilon,
            min_reports=self.min_reports,
            consistency=Consistency.QUORUM if self.by_quorum else Consistency.THRESHOLD,
        )
        policy = DevicePolicy(min_reports=2, epsilon_at_most=epsilon + 1)
        return World(
            folder,
            self.devices,
            config=config,
            policy=policy,
            seed=self.seed,
            network=self.network,
            faults=self.faults,
        )

    def run(self, folder: Path) -> list[RoundView]:
        """Run to the end of the task; every round is committed with the right sum, or abandoned with a reason."""
        with self.world(folder) as world:
            assert world.run(), f"it did not end: {self}"
            return world.rounds
