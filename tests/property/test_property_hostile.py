"""Well-signed nonsense from enrolled peers, at every stage: nobody falls over, and nobody gives a secret away twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from edge_sdk.protocol import codec
from edge_sdk.protocol.messages import (
    MaskedInput,
    Message,
    RoundId,
    UnmaskingShares,
    bitmap,
)
from tests.simulation.world import World, device_name, fresh_folder, identity, task_config
from tests.unit.desk import control_topic, frame
from tests.unit.post import Cohort, Post
from tests.unit.wire_messages import KINDS, build

TO_DEVICE = [kind for kind in KINDS if kind in codec._TO_DEVICE]
TO_COORDINATOR = [kind for kind in KINDS if kind in codec._TO_COORDINATOR]


def nonsense(rng: random.Random, kind: type[Message], rid: RoundId, known: list[Message]) -> Message:
    """A message of random values; often one that was really said, with a field or two changed."""
    candidates = [message for message in known if type(message) is kind]
    if candidates and rng.random() < 0.7:
        message = rng.choice(candidates)
        other: Any = build(kind, lambda name, hint, wire: random_value(rng, hint, wire))
        names = rng.sample(list(kind.__dataclass_fields__), k=1)
        return replace(message, **{name: getattr(other, name) for name in names})
    made: Any = build(kind, lambda name, hint, wire: random_value(rng, hint, wire))
    return replace(made, rid=rid) if "rid" in kind.__dataclass_fields__ else made  # type: ignore[no-any-return]


def random_value(rng: random.Random, hint: Any, wire: str) -> Any:
    plain = build_one(hint)
    if isinstance(plain, bytes):
        return rng.randbytes(len(plain) or rng.choice([0, 1, 2, 64, 80, 400]))
    if isinstance(plain, bool):
        return rng.random() < 0.5
    if isinstance(plain, tuple):
        ints = hint.__args__[0] is int
        return tuple(rng.randrange(8) for _ in range(rng.randrange(8))) if ints else ()
    if isinstance(plain, str):
        return rng.choice(["", "task", "x" * 300])
    if isinstance(plain, float):
        return rng.choice([0.0, -1.0, 1.0, 1e300, float("inf")])
    if type(plain) is int:
        limit = {"ubyte": 255, "uint16": 2**16 - 1, "uint32": 2**32 - 1, "uint64": 2**64 - 1}[wire]
        return rng.choice([0, 1, 5, 6, 7, rng.randint(0, limit), limit])
    return rng.choice(list(hint))


def build_one(hint: Any) -> Any:
    """An empty value of a field's type."""
    lengths = {"Digest": 32, "RoundId": 16, "PublicKey": 32, "Signature": 64, "Bitmap": 0}
    name = getattr(hint, "__name__", "")
    if name in lengths and not isinstance(hint, type):
        return bytes(lengths[name])
    if getattr(hint, "__origin__", None) is tuple:
        return ()
    return next(iter(hint)) if hasattr(hint, "__members__") else hint()


def stages() -> Iterator[tuple[str, Post, list[Message]]]:
    """A device at each stage of a round, with what the coordinator would truly say to it."""
    for stage in ("Waiting", "Preparing", "Advertised", "Shared", "Reported", "Answered"):
        with fresh_folder() as folder:
            post = Post(folder)
            cohort = Cohort(post)
            known: list[Message] = [cohort.plan]
            if stage in ("Waiting", "Preparing"):
                post.announce()
                if stage == "Preparing":
                    post.tell(cohort.plan)
            elif stage == "Advertised":
                post.follow(cohort.plan)
                post.train()
            else:
                cohort.play_until_reported()
                known += [cohort.survivors, replace(cohort.survivors, survivors=bitmap({0, 1, 2, 3, 4}, 6))]
                if stage == "Answered":
                    post.tell(cohort.survivors)
            yield stage, post, known
            post.store.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_device_survives_any_coordinator(seed: int) -> None:
    rng = random.Random(seed)
    for _stage, post, known in stages():
        answers: set[Message] = set()
        inputs: set[bytes] = set()
        for _ in range(60):
            message = nonsense(rng, rng.choice(TO_DEVICE), known[0].rid, known)  # type: ignore[union-attr]
            for said in post.tell(message) + post.wait(rng.choice([0.0, 0.0, 15.0])):
                if isinstance(said, UnmaskingShares):
                    answers.add(said)
                if isinstance(said, MaskedInput):
                    inputs.add(said.vector.sha256)
            if rng.random() < 0.05:
                post = post.reboot()
        assert len(answers) <= 1
        assert len(inputs) <= 1
        assert len(post.store.participations()) <= 1
        post.store.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_coordinator_survives_any_devices(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that speaks nonsense beside its honest self, and a stranger: rounds may be lost, nothing else."""
    rng = random.Random(seed)
    with fresh_folder() as folder, World(folder, 7, config=task_config(7, min_reports=3), seed=seed) as world:
        known: list[Message] = []
        kind = type(world.fleet.coordinator)
        receive = kind.receive

        def attacked(self: Any, batch: Any, now: float) -> Any:
            runner = self._runners.get("task")
            rid = runner.plan.rid if runner and runner.plan else RoundId(bytes(16))
            for _, payload in batch:
                if payload[:2] == b"EF":
                    read = codec.read_frame(payload)
                    known.append(codec.decode(read.kind, read.body))
            hostile = []
            for name in (device_name(0), "device-090"):
                message = nonsense(rng, rng.choice(TO_COORDINATOR), rid, known[-30:])
                certificate = identity(name).certificate_der
                hostile.append((control_topic(name), frame(name, message, certificate=certificate)))
            rng.shuffle(hostile)
            return receive(self, [*hostile, *batch], now)

        monkeypatch.setattr(kind, "receive", attacked)
        assert world.fleet.run(until=lambda: world.fleet.coordinator.idle)
        assert all(view.closed_at is not None for view in world.rounds)
        mixed = {key: kinds for key, kinds in world.witness.kinds_released().items() if len(kinds) > 1}
        assert not mixed
        assert any(view.faults for view in world.rounds)
