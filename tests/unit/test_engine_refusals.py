"""Bytes from anybody at the coordinator's door: what is not authentic or has no place costs a line in a log."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.registrar.authority import DAY_S, create_authority, issue_identity
from coordinator.service import engine as engine_module
from coordinator.service import uploads
from edge_sdk.identity import Identity
from edge_sdk.protocol import chunks, codec, session, topics
from edge_sdk.protocol.limits import CONTROL_FRAME_MAX_BYTES
from edge_sdk.protocol.messages import (
    AbandonReason,
    AdvertiseKeys,
    BlobRef,
    CheckIn,
    Decline,
    DeclineReason,
    DeviceId,
    Digest,
    Large,
    MaskedInput,
    Message,
    Outcome,
    Plan,
    Pull,
    Receipt,
    ReceiptStatus,
    Rejection,
    RejectionReason,
    Roster,
    RoundId,
    ShareDelivery,
    ShareKeys,
)
from edge_sdk.runtime.spool import Spool
from edge_sdk.secagg import suite
from tests.simulation.world import START, authority, device_name, fresh_folder, identity, known_update
from tests.unit.cohort import said as in_effects
from tests.unit.desk import Desk, Said, chunk_topic, control_topic, frame, heard, only
from tests.unit.wire_messages import KINDS, sample

ME, YOU = device_name(0), device_name(1)


@pytest.fixture
def desk() -> Iterator[Desk]:
    with fresh_folder() as folder:
        held = Desk(folder)
        with held.world:
            yield held


# ---- who speaks


def anonymous(held: Desk, message: Message, **how: Any) -> None:
    assert held.send(ME, message, **how) == []


def test_a_device_introduces_itself_with_its_certificate(desk: Desk) -> None:
    check_in = CheckIn("task", desk.rid, "1", "1")
    anonymous(desk, check_in)
    assert desk.view.checked_in == 0
    desk.check_in(ME)
    assert desk.view.checked_in == 1
    assert desk.send(ME, check_in) == []
    assert desk.view.checked_in == 1


def impostors() -> dict[str, Identity]:
    other = create_authority("Other Registrar", now=START)
    return {
        "another device": identity(YOU),
        "the coordinator": identity("coordinator", "coordinator"),
        "of another registrar": issue_identity(other, identity_id=ME, role="device", now=START),
        "expired": issue_identity(authority(), identity_id=ME, role="device", now=START - 10 * DAY_S, lifetime_days=1),
        "not yet valid": issue_identity(authority(), identity_id=ME, role="device", now=START + 10 * DAY_S),
    }


@pytest.mark.parametrize(
    "who", ["another device", "the coordinator", "of another registrar", "expired", "not yet valid"]
)
def test_impostors_are_refused(desk: Desk, who: str) -> None:
    impostor = impostors()[who]
    check_in = CheckIn("task", desk.rid, "1", "1")
    anonymous(desk, check_in, signer=impostor, certificate=impostor.certificate_der)
    anonymous(desk, check_in, signer=impostor, certificate=identity(ME).certificate_der)
    anonymous(desk, check_in, certificate=impostor.certificate_der)
    assert desk.view.checked_in == 0
    desk.check_in(ME)
    anonymous(desk, Decline(desk.rid, DeclineReason.TRAINING_FAILED, ""), signer=impostor)
    assert desk.view.declined == {}
    assert desk.view.checked_in == 1


def test_a_frame_on_another_devices_topic_is_refused(desk: Desk) -> None:
    payload = frame(ME, CheckIn("task", desk.rid, "1", "1"), certificate=identity(ME).certificate_der)
    assert desk.put(control_topic(YOU), payload) == ()
    assert desk.view.checked_in == 0


def test_a_certificate_that_expires_during_a_round_ends_the_devices_part(desk: Desk) -> None:
    desk.check_in_all()
    desk.now = START + 100 * DAY_S
    anonymous(desk, Decline(desk.rid, DeclineReason.TRAINING_FAILED, ""))


def test_whatever_comes_on_whatever_topic_is_survived(desk: Desk) -> None:
    rng = random.Random(3)
    good = frame(ME, CheckIn("task", desk.rid, "1", "1"), certificate=identity(ME).certificate_der)
    topics_seen = [
        "", "/", "fl/v1/d/x", "fl/v1/d/Device/up/ctl", "fl/v1/d/device-000/dn/ctl", "fl/v1/pub/task/testers",
        "fl/v1/d//up/ctl", "fl/v1/w/0/device-000/c", "fl/v1/w/x/device-000/c", control_topic(ME), "\udcff",
    ]  # fmt: skip
    payloads = [b"", b"EF", bytes(100), good[:-1], good + b"x", os.urandom(200), bytes(CONTROL_FRAME_MAX_BYTES + 1)]
    for _ in range(300):
        changed = bytearray(good)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        payloads.append(bytes(changed))
    batch = [(topic, payload) for topic in topics_seen for payload in payloads]
    assert desk.coordinator.receive(batch, desk.now) == ()
    assert desk.view.checked_in == 0


def test_messages_of_the_coordinators_own_kinds_are_refused(desk: Desk) -> None:
    desk.check_in(ME)
    for kind in KINDS:
        if kind in codec._TO_DEVICE and kind not in codec._TO_COORDINATOR:
            assert desk.send(ME, sample(kind)) == []


def test_one_bad_message_costs_the_others_of_its_batch_nothing(desk: Desk) -> None:
    batch = []
    for name in desk.members:
        payload = frame(name, CheckIn("task", desk.rid, "1", "1"), certificate=identity(name).certificate_der)
        batch += [(control_topic(name), payload[:-1] + b"?"), (control_topic(name), payload)]
    answers = heard(desk.coordinator.receive(batch, desk.now))
    assert [type(answer.message) for answer in answers] == [Plan] * len(desk.members)


# ---- check-ins


@pytest.mark.parametrize(
    ("task", "rid", "reason"),
    [
        ("other", None, RejectionReason.UNKNOWN_TASK),
        ("", None, RejectionReason.UNKNOWN_TASK),
        ("task", RoundId(bytes(16)), RejectionReason.STALE_ANNOUNCEMENT),
    ],
)
def test_check_ins_that_miss_are_told_when_to_come_again(
    desk: Desk, task: str, rid: RoundId | None, reason: RejectionReason
) -> None:
    message = CheckIn(task, rid or desk.rid, "1", "1")
    answer = only(desk.send(ME, message, certificate=identity(ME).certificate_der), Rejection)
    assert (answer.reason, answer.task) == (reason, task)
    assert answer.retry_after_s > 0


def test_a_check_in_after_the_round_began(desk: Desk) -> None:
    desk.check_in_all()
    late = device_name(40)
    assert only(desk.check_in(late), Rejection).reason is RejectionReason.ROUND_IN_PROGRESS
    assert only(desk.check_in(ME), Plan) == only(desk.check_in(YOU), Plan)


# ---- rounds that are not


def test_messages_of_unknown_rounds_are_refused(desk: Desk) -> None:
    desk.check_in_all()
    for message in (
        Decline(RoundId(bytes(16)), DeclineReason.TRAINING_FAILED, ""),
        MaskedInput(RoundId(bytes(16)), BlobRef(Digest(bytes(32)), 100), b""),
        replace(sample(ShareKeys), rid=RoundId(os.urandom(16))),
    ):
        assert desk.send(ME, message) == []


def test_messages_of_a_round_that_ended_hear_how(desk: Desk) -> None:
    desk.check_in_all()
    rid = desk.rid
    desk.wait(10_000)
    assert desk.view.number == 1
    for message in (
        Decline(rid, DeclineReason.TRAINING_FAILED, ""),
        MaskedInput(rid, BlobRef(Digest(bytes(32)), 100), b""),
    ):
        answer = only(desk.send(ME, message), Outcome)
        assert answer == Outcome(rid, False, AbandonReason.TOO_FEW_KEYS, 0)


def test_a_round_that_ended_in_the_same_batch_is_not_spoken_of_yet(desk: Desk) -> None:
    desk.check_in_all()
    declines = [
        (control_topic(name), frame(name, Decline(desk.rid, DeclineReason.COHORT_TOO_SMALL, "")))
        for name in desk.members
    ]
    answers = heard(desk.coordinator.receive([*declines, declines[0]], desk.now))
    assert {type(a.message) for a in answers} == {Outcome}
    assert {a.message.reason for a in answers if isinstance(a.message, Outcome)} == {AbandonReason.TOO_FEW_KEYS}


# ---- blobs


def chunks_to(desk: Desk, name: str, pull: Pull) -> list[bytes]:
    publications = desk.put(control_topic(name), frame(name, pull))
    expected = topics.build(topics.ChunkDown(DeviceId(name)))
    return [p.payload for p in publications if p.topic == expected]


def test_only_what_is_offered_can_be_pulled(desk: Desk) -> None:
    desk.check_in(ME)
    runner = desk.coordinator._runners["task"]
    bundle = runner.config.bundle
    (chunk,) = chunks_to(desk, ME, Pull(bundle.sha256, 1024, (0,), (1,)))
    assert chunks.decode_chunk(chunk).data == b"a bundle"
    optimizer = Digest(runner._optimizer_sha256)
    for digest in (Digest(bytes(32)), optimizer, Digest(suite.digest(b"x"))):
        assert chunks_to(desk, ME, Pull(digest, 1024, (0,), (1,))) == []


@pytest.mark.parametrize(
    ("chunk_bytes", "firsts", "counts"),
    [
        (1024, (0,), ()),
        (1024, (), ()),
        (1024, (1,), (1,)),
        (1024, (0,), (2,)),
        (1024, (0,), (0,)),
        (1024, (2**32 - 1,), (2**32 - 1,)),
        (1, (0,), (1,)),
        (0, (0,), (1,)),
        (2**32 - 1, (0,), (1,)),
        (1024, (0,) * 300, (1,) * 300),
    ],
)
def test_pulls_that_ask_too_much_get_nothing(
    desk: Desk, chunk_bytes: int, firsts: tuple[int, ...], counts: tuple[int, ...]
) -> None:
    desk.check_in(ME)
    bundle = desk.coordinator._runners["task"].config.bundle
    assert chunks_to(desk, ME, Pull(bundle.sha256, chunk_bytes, firsts, counts)) == []


# ---- stage messages through the door


def report_of(desk: Desk, name: str) -> MaskedInput:
    """Take the round to the point where `name` has its masked input ready."""
    desk.join_all()
    rosters: dict[str, Roster] = {}
    deliveries: dict[str, ShareDelivery] = {}

    def note(answers: list[Said]) -> None:
        for answer in answers:
            if isinstance(answer.message, Roster):
                rosters[answer.device_id] = answer.message
            if isinstance(answer.message, ShareDelivery):
                deliveries[answer.device_id] = answer.message

    for member in desk.members.values():
        note(desk.send(member.name, in_effects(member.step(session.Ready()), AdvertiseKeys)))
        dimension = desk.world.config.dimension
        member.step(session.Trained(known_update(0, dimension).astype("<f4").tobytes()))
    for member in desk.members.values():
        note(desk.send(member.name, in_effects(member.hears(rosters[member.name]), ShareKeys)))
    return in_effects(desk.members[name].hears(deliveries[name]), MaskedInput)


def test_an_inline_vector_that_is_not_what_its_digest_says_is_refused(desk: Desk) -> None:
    report = report_of(desk, ME)
    for inline in (report.inline[:-1] + b"?", report.inline[:-1], report.inline + b"?"):
        assert desk.send(ME, replace(report, inline=inline)) == []
    assert desk.view.reported == 0
    receipt = only(desk.send(ME, report), Receipt)
    assert receipt.status is ReceiptStatus.ACCEPTED
    assert only(desk.send(ME, report), Receipt).status is ReceiptStatus.DUPLICATE
    assert desk.view.reported == 1


def test_faults_are_counted_and_kept(desk: Desk) -> None:
    report = report_of(desk, ME)
    desk.send(ME, replace(report, vector=BlobRef(report.vector.sha256, 1)))
    desk.send(ME, report)
    desk.send(ME, replace(report, vector=BlobRef(Digest(bytes(32)), report.vector.size_bytes)))
    desk.send(YOU, Decline(desk.rid, DeclineReason.SURVIVORS_UNSOUND, "x"))
    desk.send(YOU, Decline(desk.rid, DeclineReason.SURVIVORS_UNSOUND, "x"))
    desk.wait(0)
    assert desk.view.faults == {"wrong_size": 1, "changed_its_mind": 1}
    assert desk.view.declined == {"survivors_unsound": 1}
    restarted = desk.world.make_coordinator()
    restarted.start(desk.now)
    assert restarted._runners["task"].statistics.faults == {"wrong_size": 1, "changed_its_mind": 1}


# ---- vectors in chunks


def by_chunks(report: MaskedInput) -> tuple[MaskedInput, bytes]:
    return replace(report, inline=b""), report.inline


def chunk_of(data: bytes, index: int = 0) -> bytes:
    return chunks.encode_chunk(suite.digest(data), index, data)


def test_an_offered_vector_is_pulled_and_receipted(desk: Desk) -> None:
    offer, data = by_chunks(report_of(desk, ME))
    pull = only(desk.send(ME, offer), Pull)
    assert (pull.sha256, pull.firsts, pull.counts) == (offer.vector.sha256, (0,), (1,))
    (chunk,) = chunks.frames(pull.sha256, data, pull.chunk_bytes, [(0, 1)])
    receipt = only(heard(desk.put(chunk_topic(ME), chunk)), Receipt)
    assert receipt.status is ReceiptStatus.ACCEPTED
    assert desk.view.reported == 1
    assert desk.put(chunk_topic(ME), chunk) == ()
    assert only(desk.send(ME, offer), Receipt).status is ReceiptStatus.DUPLICATE


def test_chunks_that_nobody_asked_for_cost_nothing(desk: Desk) -> None:
    offer, data = by_chunks(report_of(desk, ME))
    junk = [b"", bytes(19), bytes(21), os.urandom(1000), chunk_of(b"other"), chunk_of(data, 1), chunk_of(data)[:-1]]
    for name in (ME, "device-077"):
        for payload in junk * 50:
            assert desk.put(chunk_topic(name), payload) == ()
    desk.send(ME, offer)
    for payload in junk * 50:
        assert desk.put(chunk_topic(ME), payload) == ()
    assert desk.view.reported == 0
    assert only(heard(desk.put(chunk_topic(ME), chunk_of(data))), Receipt).status is ReceiptStatus.ACCEPTED


def test_a_vector_that_is_not_what_was_offered_is_dropped_and_may_come_again(desk: Desk) -> None:
    offer, data = by_chunks(report_of(desk, ME))
    desk.send(ME, offer)
    lie = bytes(len(data))
    forged = chunks.encode_chunk(offer.vector.sha256, 0, lie)
    assert desk.put(chunk_topic(ME), forged) == ()
    assert desk.view.reported == 0
    only(desk.send(ME, offer), Pull)
    assert only(heard(desk.put(chunk_topic(ME), chunk_of(data))), Receipt).status is ReceiptStatus.ACCEPTED


def test_a_lost_chunk_is_asked_for_again(desk: Desk) -> None:
    offer, _ = by_chunks(report_of(desk, ME))
    first = only(desk.send(ME, offer), Pull)
    assert desk.wait(1.0) == []
    assert only(desk.wait(10.0), Pull) == first
    assert only(desk.send(ME, offer), Pull) == first


def test_transfers_are_bounded_whoever_offers(tmp_path: Path) -> None:
    transfers = uploads.Uploads(0, Spool(tmp_path))
    for number in range(100):
        message = MaskedInput(RoundId(bytes(16)), BlobRef(Digest(suite.digest(bytes([number]))), 10**6), b"")
        transfers.offer(f"device-{number}", message, START)
    assert len(transfers.requests(START)) == uploads.MAX_TRANSFERS
    later = START + uploads.STALLED_AFTER_S + 1
    newcomer = MaskedInput(RoundId(bytes(16)), BlobRef(Digest(bytes(32)), 10**6), b"")
    transfers.offer("device-200", newcomer, later)
    assert [device for device, _ in transfers.requests(later)] == ["device-200"]


def test_a_transfer_goes_on_after_a_restart_with_what_is_missing(tmp_path: Path) -> None:
    data = bytes(range(256)) * 1_000
    sha256 = Digest(suite.digest(data))
    message = MaskedInput(RoundId(bytes(16)), BlobRef(sha256, len(data)), b"")
    before = uploads.Uploads(0, Spool(tmp_path))
    assert before.offer(ME, message, START) is None
    ((_, pull),) = before.requests(START)
    frames = list(chunks.frames(sha256, data, pull.chunk_bytes, [(0, 5)]))
    for each in frames[:3]:
        assert before.chunk(ME, each, START) is None

    after = uploads.Uploads(0, Spool(tmp_path))
    assert after.offer(ME, message, START) is None
    ((_, pull),) = after.requests(START)
    assert (pull.firsts, pull.counts) == ((3,), (2,))
    assert after.chunk(ME, frames[3], START) is None
    assert after.chunk(ME, frames[4], START) == (message, data)
    assert not list(tmp_path.iterdir())


def test_a_device_that_offers_something_else_gives_up_its_first_transfer(tmp_path: Path) -> None:
    transfers = uploads.Uploads(0, Spool(tmp_path))
    for digit in range(50):
        message = MaskedInput(RoundId(bytes(16)), BlobRef(Digest(suite.digest(bytes([digit]))), 10**6), b"")
        transfers.offer(ME, message, START)
        assert len(transfers.requests(START)) == 1


# ---- frames too large for one message


def test_large_frames_are_pulled_by_their_own_device_only(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.join_all()
    monkeypatch.setattr(engine_module, "CONTROL_FRAME_MAX_BYTES", 2_000)
    answers: list[Said] = []
    for member in desk.members.values():
        answers += desk.send(member.name, in_effects(member.step(session.Ready()), AdvertiseKeys))
    references = {answer.device_id: answer.message.frame for answer in answers if isinstance(answer.message, Large)}
    assert set(references) == set(desk.members)
    mine = references[ME]
    (chunk,) = chunks_to(desk, ME, Pull(mine.sha256, 60_000, (0,), (1,)))
    data = chunks.decode_chunk(chunk).data
    assert (suite.digest(data), len(data)) == (mine.sha256, mine.size_bytes)
    roster = codec.parse_for_device(codec.read_frame(data, large=True))
    assert isinstance(roster, Roster)
    assert roster.index == 0
    assert chunks_to(desk, YOU, Pull(mine.sha256, 60_000, (0,), (1,))) == []
    desk.wait(10_000)
    assert chunks_to(desk, ME, Pull(mine.sha256, 60_000, (0,), (1,))) == []
