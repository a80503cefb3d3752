"""A lying coordinator and a hostile network before a whole device, in Python and in Kotlin: both refuse it alike.

The device is a process, what it says comes over a broker, and what it trains is real. Every test ends with a round that
nobody attacks: the same device takes part in it to the end, so what it refused before was the attack.
"""

from __future__ import annotations

import math
import random
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from coordinator.registrar.authority import DAY_S, create_authority, issue_identity
from coordinator.service.broker import start_broker
from edge_sdk.protocol import chunks, codec, topics
from edge_sdk.protocol.limits import CONTROL_FRAME_MAX_BYTES, LARGE_FRAME_MAX_BYTES
from edge_sdk.protocol.messages import (
    AdvertiseKeys,
    BlobRef,
    Decline,
    DeclineReason,
    DeviceId,
    Digest,
    Large,
    Message,
    Plan,
    Pull,
    Survivors,
    UnmaskingShares,
)
from edge_sdk.signing import key_id, new_private_key, sign_raw
from edge_sdk.training.artifact import Artifact, pack_bundle, parse_artifact
from tests.integration.commands import until
from tests.integration.exported import SIGNER, exported, labels, small
from tests.integration.jvm import classpath
from tests.integration.wire import CLIENTS, Client, Device, Network, Wire
from tests.simulation import world
from tests.simulation.world import POPULATION, authority, identity
from tests.unit.lies import DELIVERIES, FORGED_ROSTERS, ME, ROSTERS, SURVIVORS, Lie, all_but
from tests.unit.post import one, reference
from tests.unit.wire_messages import KINDS, sample

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def _today() -> Iterator[None]:
    """Certificates of the test world are good now, as the processes have no other clock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "START", time.time())
        world.authority.cache_clear()
        world.identity.cache_clear()
        yield
    world.authority.cache_clear()
    world.identity.cache_clear()


class Stand:
    """One device, what is between, and the coordinator."""

    def __init__(self, device: Device, network: Network, wire: Wire) -> None:
        self.device, self.network, self.wire = device, network, wire


@contextmanager
def stood(client: Client, folder: Path, *policy: str) -> Iterator[Stand]:
    if client == "Kotlin":
        classpath()
    with start_broker(folder / "broker", kind="mosquitto") as broker:
        network = Network(broker.url)
        device = Device(client, folder / "home", network.url, *policy)
        try:
            with Wire(broker.url) as wire:
                yield Stand(device, network, wire)
        finally:
            device.stop()
            network.stop()


@pytest.fixture(scope="module", params=CLIENTS)
def stand(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stood(request.param, tmp_path_factory.mktemp("stand"), "--min-reports", "2", "--epsilon", "any") as made:
        yield made


def declined(wire: Wire, message: Message) -> Decline:
    """The device leaves the round, says why, and says nothing else."""
    said = wire.tell(message)
    assert [type(one) for one in said] == [Decline], said
    return one(said, Decline)


# ---- what the coordinator says of others


@pytest.mark.parametrize("lie", [*ROSTERS, *FORGED_ROSTERS], ids=lambda lie: lie.name)
def test_a_lying_roster(stand: Stand, lie: Lie) -> None:
    cohort = stand.wire.cohort()
    cohort.play_until_advertised()
    answer = declined(stand.wire, lie.tell(cohort))
    assert answer.reason is DeclineReason.ROSTER_UNSOUND
    assert lie.complaint in answer.detail
    stand.wire.honest_round()


@pytest.mark.parametrize("lie", DELIVERIES, ids=lambda lie: lie.name)
def test_a_lie_about_who_shared(stand: Stand, lie: Lie) -> None:
    cohort = stand.wire.cohort()
    cohort.play_until_shared()
    answer = declined(stand.wire, lie.tell(cohort))
    assert answer.reason is DeclineReason.SURVIVORS_UNSOUND
    assert lie.complaint in answer.detail
    stand.wire.honest_round()


@pytest.mark.parametrize("lie", SURVIVORS, ids=lambda lie: lie.name)
def test_a_lie_about_who_survived(stand: Stand, lie: Lie) -> None:
    cohort = stand.wire.cohort()
    cohort.play_until_reported()
    answer = declined(stand.wire, lie.tell(cohort))
    assert answer.reason is DeclineReason.SURVIVORS_UNSOUND
    assert lie.complaint in answer.detail
    stand.wire.honest_round()


def test_a_split_view_of_who_shared(stand: Stand) -> None:
    """Others were shown that one of them did not share: what this device masked for is not what the survivors say."""
    wire = stand.wire
    cohort = wire.cohort()
    cohort.play_until_reported()
    others = replace(cohort.survivors, sharers=all_but(5), survivors=all_but(5))
    assert "not the roster and the sharers" in declined(wire, others).detail
    wire.honest_round()


# ---- both secrets of one device


def test_a_second_set_of_survivors(stand: Stand) -> None:
    """Of a device shown as alive and then as gone only the one share comes, whatever happens in between."""
    wire = stand.wire
    cohort = wire.cohort()
    cohort.play_until_reported()
    first = wire.answer(cohort.survivors, UnmaskingShares)
    assert 3 in first.indices
    gone = replace(cohort.survivors, survivors=all_but(3))
    fewer = replace(cohort.survivors, sharers=all_but(3), survivors=all_but(3))

    def ask_again() -> None:
        for second in (gone, fewer):
            before = len(stand.device.said)
            assert wire.tell(second) == []
            stand.device.says("an attempt to learn both secrets of one device", before)
        assert wire.tell(cohort.survivors) == [first]

    ask_again()
    stand.device.restart()
    wire.meet()
    ask_again()
    wire.finish(cohort)
    wire.honest_round()


def test_survivors_before_there_is_a_masked_input(stand: Stand) -> None:
    wire = stand.wire
    cohort = wire.cohort()
    cohort.play_until_shared()
    before = len(stand.device.said)
    early = Survivors(cohort.plan.rid, cohort.cohort.root, all_but(), all_but())
    assert wire.tell(early) == []
    stand.device.says("survivors before this device's masked input", before)
    cohort.report_all()
    wire.finish(cohort)


def test_an_answer_is_of_the_living_or_of_the_gone(stand: Stand) -> None:
    """Seven of eight reported: shares of seven self seeds come, and of one mask key; asked once more, the same ones."""
    wire = stand.wire
    cohort = wire.cohort()
    cohort.play_until_shared()
    cohort.report_all(without="device-007")
    answer = wire.answer(cohort.survivors, UnmaskingShares)
    # Six neighbours alive and one gone, a share of one secret each; its own are none of them.
    assert answer.indices == tuple(range(1, 8))
    assert len(answer.shares) == 32 * 7
    assert wire.tell(cohort.survivors) == [answer]
    wire.finish(cohort)


# ---- plans


def weaker_plans(wire: Wire) -> Iterator[tuple[Plan, DeclineReason, str]]:
    def plan(reason: DeclineReason, words: str, **changes: Any) -> tuple[Plan, DeclineReason, str]:
        return wire.plan(**changes), reason, words

    malformed = DeclineReason.PLAN_MALFORMED
    yield plan(DeclineReason.COHORT_TOO_SMALL, "sums of 2 devices", min_reports=2)
    yield plan(DeclineReason.COHORT_TOO_SMALL, "1% colluding", corrupt_share=0.01)
    yield plan(DeclineReason.EPSILON_TOO_LARGE, "this device allows 50", device_variance=40)
    yield plan(DeclineReason.EPSILON_TOO_LARGE, "this device allows 50", participation_cap=1_000)
    yield plan(DeclineReason.NOISE_TOO_SMALL, "adds no noise", device_variance=0)
    yield plan(DeclineReason.SUITE_UNSUPPORTED, "suite 9", suite=9)
    yield plan(malformed, "participation_cap is 0", participation_cap=0)
    yield plan(malformed, "epochs is 0", epochs=0)
    yield plan(malformed, "learning_rate is -1", learning_rate=-1.0)
    yield plan(malformed, "expires_after_s is", expires_after_s=math.inf)
    yield plan(malformed, "goal_count 3", goal_count=3)
    yield plan(malformed, "clip norm, scale and norm bound", clip_norm=0.0)
    yield plan(malformed, "bits", bits=99)
    yield plan(malformed, "dimension is", dimension=1 << 28)
    yield plan(malformed, "norm bound", norm_bound=1.0)


@pytest.mark.parametrize("client", CLIENTS)
def test_plans_weaker_than_the_devices_policy(client: Client, tmp_path: Path) -> None:
    with stood(client, tmp_path, "--min-reports", "4", "--epsilon", "50") as stand:
        wire = stand.wire
        for plan, reason, words in weaker_plans(wire):
            wire.announce(wire.announcement(plan))
            answer = declined(wire, plan)
            assert (answer.reason, words in answer.detail) == (reason, True), answer
            # Nor is it followed when it comes again, or made harmless.
            assert wire.tell(plan) == []
            assert wire.tell(replace(wire.plan(), rid=plan.rid)) == []
        cohort = wire.cohort(wire.plan(participation_cap=3))
        cohort.play_until_reported()
        wire.finish(cohort)


def test_a_tampered_plan(stand: Stand) -> None:
    """Another plan in the round of the first: it is not followed; nor is one of a round that nobody announced."""
    wire = stand.wire
    cohort = wire.cohort()
    cohort.play_until_advertised()
    (advertised,) = wire.tell(replace(cohort.plan, clip_norm=50.0, device_variance=1, norm_bound=5_000.0))
    assert advertised == cohort.advertised
    before = len(stand.device.said)
    assert wire.tell(wire.plan()) == []
    stand.device.says("a plan of a round that is not announced", before)
    cohort.share_all()
    cohort.report_all()
    wire.finish(cohort)
    before = len(stand.device.said)
    assert wire.tell(cohort.plan) == []
    stand.device.says("a plan of a round that this device already left", before)
    assert wire.tell(wire.plan()) == []
    stand.device.says("a plan of a round that is not announced", before)
    wire.honest_round()


# ---- bundles and checkpoints


def other_bundle(signer: Any = SIGNER, **replaced: bytes) -> Artifact:
    artifact = small()
    parts = {part.name: artifact.part(part.name) for part in artifact.manifest.parts} | replaced
    content = pack_bundle(
        artifact.manifest,
        parts,
        signer_key_id=key_id(signer.public_key()),
        sign=lambda message: sign_raw(signer, message),
    )
    return parse_artifact(content, signer=signer.public_key())


def offered(wire: Wire, head: bytes, checkpoint: bytes, *others: bytes) -> list[Message]:
    """Announce a round of this bundle and checkpoint, and serve what is asked for; what came last."""
    wire.served |= {reference(data).sha256: data for data in (head, checkpoint, *others)}
    plan = wire.plan(bundle=reference(head), checkpoint=reference(checkpoint))
    wire.announce(wire.announcement(plan))
    said = wire.tell(plan)
    pulls = [m for m in said if isinstance(m, Pull)]
    while pulls:
        pull = pulls.pop(0)
        said = wire.give(wire.served[pull.sha256], pull)
        pulls += [m for m in said if isinstance(m, Pull)]
    return said


def test_bundles_that_are_not_the_publishers(stand: Stand) -> None:
    wire, checkpoint = stand.wire, small().part("checkpoint")
    revoked = other_bundle(new_private_key())
    flipped = bytearray(small().head)
    flipped[len(flipped) // 2] ^= 1
    lying = np.frombuffer(small().part("parity"), "<f4").copy()
    sampled = -(-small().layout.size // small().manifest.parity.stride)
    lying[-2 * sampled : -sampled] += 1.0
    wrong_parity = other_bundle(parity=lying.tobytes())
    longer = np.zeros(small().layout.size + 1, "<f4").tobytes()
    for head, content, words in (
        (revoked.head, checkpoint, "signed"),
        (bytes(flipped), checkpoint, ""),
        (small().head[:-1], checkpoint, ""),
        (b"no bundle at all", checkpoint, ""),
        (wrong_parity.head, checkpoint, "other values than this bundle was certified with"),
        (small().head, longer, ""),
    ):
        parts = [wrong_parity.part(part.name) for part in wrong_parity.manifest.parts]
        (said,) = offered(wire, head, content, *parts)
        assert isinstance(said, Decline), (words, said)
        assert said.reason is DeclineReason.BUNDLE_INVALID, said
        assert words in said.detail, said
    wire.honest_round()


def test_blobs_that_are_not_what_was_announced(stand: Stand) -> None:
    """A substituted checkpoint, with every chunk well made, is asked for again and never used."""
    wire = stand.wire
    wire.honest_round()  # so that nothing but the checkpoint is to be fetched
    checkpoint = np.random.default_rng(7).normal(0, 0.1, small().layout.size).astype("<f4").tobytes()
    plan = wire.plan(checkpoint=reference(checkpoint))
    wire.announce(wire.announcement(plan))
    (pull,) = [m for m in wire.tell(plan) if isinstance(m, Pull) and m.sha256 == plan.checkpoint.sha256]
    before = len(stand.device.said)
    (again,) = wire.give(bytes(len(checkpoint)), pull)
    assert again == pull
    stand.device.says("its SHA-256 differs", before)
    wire.served[pull.sha256] = checkpoint
    assert isinstance(one(wire.give(checkpoint, pull), AdvertiseKeys), AdvertiseKeys)
    wire.honest_round()


def test_chunks_lost_doubled_reordered_cut_and_too_long(stand: Stand) -> None:
    """Of a checkpoint in several chunks; what arrives in the end is what was announced."""
    wire = stand.wire
    bundle = wide_bundle()
    wire.served |= {reference(bundle.part(p.name)).sha256: bundle.part(p.name) for p in bundle.manifest.parts}
    checkpoint = bundle.part("checkpoint")
    plan = wire.plan(
        bundle=reference(bundle.head),
        checkpoint=reference(checkpoint),
        dimension=bundle.layout.size,
        norm_bound=400.0,
    )
    wire.served |= {plan.bundle.sha256: bundle.head}
    wire.announce(wire.announcement(plan))
    pulls = {m.sha256: m for m in wire.tell(plan) if isinstance(m, Pull)}
    pull = pulls.pop(plan.checkpoint.sha256)
    frames = list(chunks.frames(pull.sha256, checkpoint, pull.chunk_bytes, [(0, sum(pull.counts))]))
    assert len(frames) >= 3
    topic = topics.build(topics.ChunkDown(DeviceId(ME)))
    head = frames[0][:12]
    body = frames[0][20:]

    def made(index: int, data: bytes, crc: int | None = None) -> bytes:
        return head + struct.pack("<II", index, zlib.crc32(data) if crc is None else crc) + data

    for bad in (
        b"", frames[0][:11], frames[0][:-1], frames[0] + b"x", made(0, body[:-1]), made(0, body + b"x"),
        made(2**32 - 1, body), made(len(frames), body), made(0, body, 1), made(0, b""),
    ):  # fmt: skip
        assert wire.put(topic, bad) == ()
    # The last comes first, and each twice; the first is lost until it is asked for anew.
    for frame in (*frames[:0:-1], *frames[:0:-1]):
        assert wire.put(topic, frame) == ()
    for other in pulls.values():
        for more in wire.give(wire.served[other.sha256], other):
            assert isinstance(more, Pull)
            wire.give(wire.served[more.sha256], more)
    stand.network.cut()
    wire.meet()
    assert one(wire.read(wire.put(topic, frames[0])), AdvertiseKeys).rid == plan.rid
    wire.honest_round()


def wide_bundle() -> Artifact:
    """Of so many parameters that its checkpoint is several chunks."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 600), nn.ReLU(), nn.Linear(600, 10))
    return exported(model, torch.randn(8, 1, 8, 8), labels(8), name="wide")


# ---- whose words they are


def test_words_of_others(stand: Stand) -> None:
    """Frames by a device, by another registrar's coordinator, by an expired one; to another device, and to all."""
    wire, now = stand.wire, world.START
    cohort = wire.cohort()
    cohort.play_until_advertised()
    lie = replace(cohort.plan, device_variance=1)
    other = create_authority("Other Registrar", now=now)
    impostors = {
        "role device": identity("device-001"),
        "not by the registrar": issue_identity(other, identity_id="coordinator", role="coordinator", now=now),
        "role broker": identity("broker", "broker"),
        "expired": issue_identity(
            authority(), identity_id="coordinator", role="coordinator", now=now - 10 * DAY_S, lifetime_days=1
        ),
    }
    for words, impostor in impostors.items():
        before = len(stand.device.said)
        assert wire.announce(wire.announcement(wire.plan()), signer=impostor) == []
        stand.device.says(words, before)
        assert wire.tell(lie, signer=impostor) == []
        stand.device.says("the signature is not the coordinator's", before)
    for addressee in ("device-001", codec.BROADCAST):
        before = len(stand.device.said)
        assert wire.tell(lie, addressee=addressee) == []
        stand.device.says("the signature is not the coordinator's", before)
    # Whoever heard an announcement has the coordinator's certificate, and not its key.
    who, forger = identity("coordinator", "coordinator"), identity("device-001")
    announcement = wire.announcement(wire.plan())
    forged = codec.write_frame(announcement, codec.BROADCAST, forger.sign, certificate=who.certificate_der)
    before = len(stand.device.said)
    assert wire.put(topics.build(topics.TaskTopic(POPULATION)), forged) == ()
    stand.device.says("an announcement whose signature is not the coordinator's", before)
    cohort.share_all()
    cohort.report_all()
    wire.finish(cohort)


def test_replayed_announcements_and_messages(stand: Stand) -> None:
    """Each frame of a whole round comes again in the next one, as it was signed, and in another order."""
    wire = stand.wire
    old = wire.cohort()
    old.play_until_reported()
    said: list[Message] = [old.plan, old.roster(ME), old.delivered, old.survivors]
    wire.finish(old)
    cohort = wire.cohort()
    cohort.play_until_shared()
    before = len(stand.device.said)
    assert wire.announce(wire.announcement(old.plan)) == []
    stand.device.says("an announcement older than one already heard", before)
    for message in (*said, *said[::-1]):
        assert wire.tell(message) == []
    cohort.report_all()
    for message in said:
        assert wire.tell(message) == []
    wire.finish(cohort)


def test_the_rounds_own_messages_twice_and_out_of_order(stand: Stand) -> None:
    """Whatever of the round comes again or too early, the device says what it said, byte for byte, or nothing."""
    wire = stand.wire
    cohort = wire.cohort()
    cohort.play_until_shared()
    assert wire.tell(cohort.roster(ME)) == [cohort.shared]
    report = cohort.report_all()
    again: tuple[Message, ...] = (cohort.delivered, cohort.roster(ME), cohort.plan)
    for message in again:
        assert wire.tell(message) == [report]
    answer = wire.finish(cohort)
    # The round is over: nothing is said any more.
    for message in (*again, cohort.survivors):
        assert wire.tell(message) == []
    assert answer.rid == cohort.plan.rid


def test_what_no_coordinator_may_say(stand: Stand) -> None:
    """Messages of devices, announcements where they do not belong, pulls of what is not offered, frames too large."""
    wire = stand.wire
    cohort = wire.cohort()
    cohort.play_until_advertised()
    for kind in KINDS:
        if kind not in codec._TO_DEVICE:
            assert wire.tell(sample(kind)) == []
    before = len(stand.device.said)
    assert wire.tell(wire.announcement(wire.plan())) == []
    stand.device.says("an announcement on a device's own topic", before)
    assert wire.announce(replace(wire.announcement(wire.plan()), task="Not a task/")) == []
    stand.device.says("an announcement of a task that cannot be named", before)
    assert wire.tell(Pull(cohort.plan.bundle.sha256, 60_000, (0,), (1,))) == []
    stand.device.says("a pull of something that is not offered", before)
    assert wire.tell(Large(BlobRef(Digest(bytes(32)), LARGE_FRAME_MAX_BYTES + 1))) == []
    stand.device.says(f"a frame of {LARGE_FRAME_MAX_BYTES + 1} bytes is over the limit", before)
    assert wire.tell(Large(BlobRef(Digest(bytes(32)), 2**63 + 1))) == []
    huge = wire.plan(bundle=BlobRef(Digest(bytes(32)), 1 << 40))
    cohort.share_all()
    cohort.report_all()
    wire.finish(cohort)
    wire.announce(wire.announcement(huge))
    answer = declined(wire, huge)
    assert (answer.reason, answer.detail) == (DeclineReason.BUNDLE_INVALID, "a blob larger than any device takes")
    wire.honest_round()


def test_garbage_on_every_topic(stand: Stand) -> None:
    """Bits of an authentic plan turned, cut, lengthened; at the end the round goes on as if nothing had been."""
    wire, rng = stand.wire, random.Random(4)
    cohort = wire.cohort()
    cohort.play_until_advertised()
    who = identity("coordinator", "coordinator")
    plan = codec.write_frame(replace(cohort.plan, device_variance=1), ME, who.sign)
    device = DeviceId(ME)
    payloads = [b"", b"EF", bytes(100), plan[:-1], plan + b"x", bytes(CONTROL_FRAME_MAX_BYTES + 1), bytes(900_000)]
    for _ in range(60):
        changed = bytearray(plan)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        payloads.append(bytes(changed))
    for topic in (topics.ControlDown(device), topics.ChunkDown(device), topics.TaskTopic(POPULATION)):
        for payload in payloads:
            wire.send(topics.build(topic), payload)
        assert wire.heard() == ()
    cohort.share_all()
    cohort.report_all()
    wire.finish(cohort)


# ---- the network


CONNACK_AGAIN = bytes([0x20, 3, 0, 0, 0])
GARBAGE = {
    "a packet of no type": bytes([0x00, 0]),
    "a length that does not end": bytes([0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]),
    "a packet larger than any": bytes([0x30, 0xFF, 0xFF, 0xFF, 0x7F]) + bytes(2_000),
    "a second welcome": CONNACK_AGAIN,
    "a topic longer than its packet": bytes([0x30, 4, 0xFF, 0xFF, 0, 0]),
    "a message of unknown properties": bytes([0x30, 7, 0, 1, 0x61, 2, 0x7E, 1, 0x78]),
    "what only clients send": bytes([0x82, 6, 0, 9, 0, 1, 0x61, 1]),
    "the broker says goodbye": bytes([0xE0, 0]),
}


def test_a_connection_that_breaks_at_every_stage(stand: Stand) -> None:
    """Reset by the network before each stage's message, and after it: nothing is said twice in two ways."""
    wire, network = stand.wire, stand.network
    cohort = wire.cohort()

    def cut() -> None:
        network.cut()
        wire.meet()

    cohort.play_until_advertised()
    cut()
    cohort.share_all()
    cut()
    report = cohort.report_all()
    cut()
    assert wire.tell(cohort.delivered) == [report]
    answer = wire.finish(cohort)
    assert answer.rid == cohort.plan.rid
    wire.honest_round()


@pytest.mark.parametrize("noise", GARBAGE)
def test_bytes_that_are_not_mqtt(stand: Stand, noise: str) -> None:
    """In the middle of a round: the device leaves that connection, comes back, and goes on."""
    wire, network = stand.wire, stand.network
    stand.device.restart()  # one that broke off lately waits longer and longer before it comes back
    wire.meet()
    cohort = wire.cohort()
    cohort.play_until_shared()
    before = network.proxy.connections
    network.inject(GARBAGE[noise])
    until(lambda: network.proxy.connections > before)
    wire.meet()
    cohort.report_all()
    wire.finish(cohort)
