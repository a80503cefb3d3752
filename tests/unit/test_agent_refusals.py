"""Bytes from anybody at a device's door, and a coordinator that breaks its word."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.registrar.authority import DAY_S, create_authority, issue_identity
from edge_sdk.errors import ArtifactError, IdentityError, LocalProtocolError, StoreError, TrainingError
from edge_sdk.events import Deferred
from edge_sdk.identity import Identity
from edge_sdk.protocol import chunks, codec, topics
from edge_sdk.protocol.limits import CONTROL_FRAME_MAX_BYTES, GIB, LARGE_FRAME_MAX_BYTES
from edge_sdk.protocol.messages import (
    NO_ROUND,
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
    Outcome,
    Plan,
    Pull,
    Receipt,
    ReceiptStatus,
    Rejection,
    RejectionReason,
    Roster,
    TaskState,
    UnmaskingShares,
    bitmap,
)
from edge_sdk.protocol.policy import DevicePolicy
from edge_sdk.runtime import agent as agent_module
from edge_sdk.runtime.learner import Bundle
from edge_sdk.secagg import suite
from tests.simulation.world import POPULATION, START, authority, device_name, fresh_folder, identity
from tests.unit.post import (
    BUNDLE,
    CHECKPOINT,
    ME,
    Cohort,
    Learner,
    Post,
    make_announcement,
    make_plan,
    next_round,
    one,
    reference,
    stage_of,
)
from tests.unit.wire_messages import KINDS, sample


@pytest.fixture
def post() -> Iterator[Post]:
    with fresh_folder() as folder:
        held = Post(folder)
        yield held
        held.store.close()


# ---- whose words they are


def impostors() -> dict[str, Identity]:
    other = create_authority("Other Registrar", now=START)
    return {
        "a device": identity(device_name(1)),
        "of another registrar": issue_identity(other, identity_id="coordinator", role="coordinator", now=START),
        "a broker": identity("broker", "broker"),
        "expired": issue_identity(
            authority(), identity_id="coordinator", role="coordinator", now=START - 10 * DAY_S, lifetime_days=1
        ),
    }


@pytest.mark.parametrize("who", ["a device", "of another registrar", "a broker", "expired"])
def test_only_a_coordinator_of_the_own_registrar_is_heard(post: Post, who: str) -> None:
    impostor = impostors()[who]
    assert post.announce(signer=impostor) == []
    assert post.agent.announcement is None
    assert one(post.announce(), CheckIn).rid == make_plan().rid
    assert post.tell(make_plan(), signer=impostor) == []
    assert stage_of(post) == "Waiting"


def test_a_coordinators_certificate_is_not_its_signature(post: Post) -> None:
    """Anybody who ever heard an announcement has the certificate."""
    who, other = identity("coordinator", "coordinator"), identity(device_name(1))
    payload = codec.write_frame(make_announcement(), codec.BROADCAST, other.sign, certificate=who.certificate_der)
    assert post.put(topics.build(topics.TaskTopic(POPULATION)), payload) == ()
    assert post.agent.announcement is None


def test_nothing_is_believed_before_an_announcement(post: Post) -> None:
    assert post.tell(make_plan()) == []
    assert stage_of(post) == "Waiting"


def test_a_frame_for_another_device_is_not_for_this_one(post: Post) -> None:
    post.announce()
    for addressee in (device_name(1), codec.BROADCAST):
        assert post.tell(make_plan(), addressee=addressee) == []
    assert stage_of(post) == "Waiting"


def test_an_announcement_of_another_population_is_not_for_this_device(post: Post) -> None:
    assert post.announce(make_announcement(population="others")) == []
    assert post.announce(make_announcement(task="Not a task/")) == []
    assert post.agent.announcement is None


def test_announcements_do_not_go_back(post: Post) -> None:
    one(post.announce(make_announcement(sequence=5)), CheckIn)
    older = make_announcement(sequence=4, rid=NO_ROUND)
    assert post.announce(older) == []
    assert post.agent.announcement == make_announcement(sequence=5)
    again = post.reboot()
    assert again.announce(older) == []
    assert again.agent.announcement is None
    one(again.announce(make_announcement(sequence=5)), CheckIn)


def test_whatever_comes_on_whatever_topic_is_survived(post: Post) -> None:
    post.follow()
    rng = random.Random(4)
    who = identity("coordinator", "coordinator")
    plan = codec.write_frame(make_plan(device_variance=1), ME, who.sign)
    control = topics.build(topics.ControlDown(DeviceId(ME)))
    topics_seen = [
        "", "/", control, topics.build(topics.ChunkDown(DeviceId(ME))), topics.build(topics.TaskTopic(POPULATION)),
        topics.build(topics.ControlDown(DeviceId("device-009"))), topics.build(topics.ControlUp(DeviceId(ME))),
    ]  # fmt: skip
    payloads = [b"", b"EF", bytes(100), plan[:-1], plan + b"x", os.urandom(300), bytes(CONTROL_FRAME_MAX_BYTES + 1)]
    for _ in range(200):
        changed = bytearray(plan)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        payloads.append(bytes(changed))
    before = post.agent.state
    for topic in topics_seen:
        for payload in payloads:
            assert post.put(topic, payload) == ()
    assert post.agent.state is before


def test_messages_of_devices_kinds_are_refused(post: Post) -> None:
    post.follow()
    before = post.agent.state
    for kind in KINDS:
        if kind not in codec._TO_DEVICE:
            assert post.tell(sample(kind)) == []
    assert post.tell(make_announcement()) == []
    assert post.agent.state is before


def test_messages_of_other_rounds_change_nothing(post: Post) -> None:
    post.follow()
    before = post.agent.state
    for message in (
        Receipt(NO_ROUND, Digest(bytes(32)), ReceiptStatus.LATE),
        Outcome(NO_ROUND, True, AbandonReason.NONE, 9),
        replace(sample(Roster), rid=NO_ROUND),
    ):
        assert post.tell(message) == []
    assert post.agent.state is before


# ---- plans


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (make_plan(min_reports=1), DeclineReason.COHORT_TOO_SMALL),
        (make_plan(device_variance=10), DeclineReason.EPSILON_TOO_LARGE),
        (make_plan(suite=9), DeclineReason.SUITE_UNSUPPORTED),
        (make_plan(participation_cap=0), DeclineReason.PLAN_MALFORMED),
    ],
)
def test_a_plan_below_the_floors_is_declined_once_and_for_all(post: Post, plan: Plan, reason: DeclineReason) -> None:
    post.announce()
    assert one(post.tell(plan), Decline).reason is reason
    assert stage_of(post) == "Waiting"
    assert post.store.has_ended(plan.rid)
    assert post.tell(plan) == []
    assert post.tell(make_plan()) == []
    assert post.wait(1_000.0) == []
    assert post.announce() == []


def test_a_plan_of_a_round_that_ended_is_not_followed_again(post: Post) -> None:
    post.follow()
    post.tell(Outcome(make_plan().rid, False, AbandonReason.CANCELLED, 0))
    assert stage_of(post) == "Waiting"
    assert post.tell(make_plan()) == []
    again = post.reboot()
    assert again.announce() == []
    assert again.tell(make_plan()) == []
    assert stage_of(again) == "Waiting"


def test_a_second_plan_for_the_same_round_is_not_followed(post: Post) -> None:
    advertised = post.follow()
    before = post.agent.state
    assert post.tell(make_plan(device_variance=1)) == [advertised]
    assert post.tell(make_plan(**next_round(9))) == []
    assert post.agent.state is before
    assert post.agent.take_job() is not None
    assert post.agent.take_job() is None


def test_a_plan_of_a_round_that_is_not_announced_is_not_followed(post: Post) -> None:
    post.announce()
    assert post.tell(make_plan(**next_round(5))) == []
    assert stage_of(post) == "Waiting"
    assert not post.store.has_ended(make_plan(**next_round(5)).rid)


def test_a_neighbour_that_did_not_sign_its_keys_is_refused(post: Post) -> None:
    cohort = Cohort(post)
    cohort.play_until_advertised()

    def forge(entries: list[Any]) -> None:
        entries[3] = replace(entries[3], message=replace(entries[3].message, signature=entries[4].message.signature))

    said = post.tell(cohort.forged_roster(ME, forge))
    answer = one(said, Decline)
    assert answer.reason is DeclineReason.ROSTER_UNSOUND
    assert "signature" in answer.detail


def test_a_device_with_too_few_examples_says_so(post: Post) -> None:
    post.announce()
    post.learner.example_count = 0
    assert one(post.tell(make_plan()), Decline).reason is DeclineReason.NOT_ENOUGH_EXAMPLES
    assert post.wait(1_000.0) == []
    assert post.announce(make_announcement(sequence=2, **next_round(2))) == []


def test_tasks_that_are_not_allowed_are_not_even_asked_for() -> None:
    with fresh_folder() as folder:
        held = Post(folder, policy=DevicePolicy(min_reports=2, tasks=frozenset({"other"})))
        assert held.announce() == []
        (told,) = held.events
        assert isinstance(told, Deferred)
        assert told.reason == "task 'task' is not among those allowed"
        assert one(held.tell(make_plan()), Decline).reason is DeclineReason.TASK_NOT_ALLOWED
        held.store.close()


# ---- blobs


def test_blobs_that_are_not_what_was_announced_are_never_used(post: Post) -> None:
    post.announce()
    pulls = [m for m in post.tell(make_plan()) if isinstance(m, Pull)]
    assert len(pulls) == 2
    forged = bytes(len(BUNDLE))
    assert one(post.give(forged, pulls[0]), Pull) == pulls[0]
    assert post.give(CHECKPOINT, pulls[1]) == []
    assert stage_of(post) == "Preparing"
    one(post.give(BUNDLE, pulls[0]), AdvertiseKeys)
    assert post.learner.checks == 1


def test_a_transfer_that_came_whole_but_wrong_before_a_restart_begins_anew(post: Post) -> None:
    bundle = os.urandom(150_000)
    plan = replace(make_plan(), bundle=reference(bundle))
    post.announce()
    pulls = [m for m in post.tell(plan) if isinstance(m, Pull)]
    (pull,) = [m for m in pulls if m.sha256 == plan.bundle.sha256]
    forged = os.urandom(len(bundle))
    topic = topics.build(topics.ChunkDown(DeviceId(ME)))
    first, second, third = chunks.frames(pull.sha256, forged, pull.chunk_bytes, [(0, 3)])
    for frame in (first, second):
        assert post.put(topic, frame) == ()
    parts = post.blobs.spool.parts(pull.sha256, len(bundle), pull.chunk_bytes)
    parts.write(2, 2 * pull.chunk_bytes, chunks.decode_chunk(third).data)
    again = post.reboot()
    repeated = [m for m in again.started if isinstance(m, Pull)]
    assert pull in repeated
    for each in repeated:
        again.give(bundle if each.sha256 == pull.sha256 else CHECKPOINT, each)
    assert stage_of(again) == "Advertised"
    again.store.close()


def test_chunks_that_nobody_asked_for_are_dropped(post: Post) -> None:
    post.follow()
    topic = topics.build(topics.ChunkDown(DeviceId(ME)))
    for data in (b"x", BUNDLE, os.urandom(1000)):
        frame = chunks.encode_chunk(suite.digest(data), 0, data)
        assert post.put(topic, frame) == ()
        assert post.put(topic, frame[:11]) == ()


def test_a_bundle_that_fails_its_check_is_declined() -> None:
    class Strict(Learner):
        def check(self, bundle: Bundle, checkpoint: bytes) -> int:
            raise ArtifactError("not signed by a pinned signer")

    with fresh_folder() as folder:
        held = Post(folder, learner=Strict(0, 20))
        held.announce()
        first, second = [m for m in held.tell(make_plan()) if isinstance(m, Pull)]
        held.give(BUNDLE, first)
        assert one(held.give(CHECKPOINT, second), Decline).reason is DeclineReason.BUNDLE_INVALID
        held.store.close()


def test_a_checkpoint_of_another_dimension_is_declined(post: Post) -> None:
    post.announce()
    first, second = [m for m in post.tell(make_plan(dimension=21)) if isinstance(m, Pull)]
    post.give(BUNDLE, first)
    answer = one(post.give(CHECKPOINT, second), Decline)
    assert (answer.reason, "20 parameters; the plan says 21" in answer.detail) == (DeclineReason.BUNDLE_INVALID, True)


def test_blobs_larger_than_any_device_takes_are_declined(post: Post) -> None:
    post.announce()
    plan = replace(make_plan(), bundle=BlobRef(Digest(bytes(32)), GIB + 1))
    assert one(post.tell(plan), Decline).reason is DeclineReason.BUNDLE_INVALID


def test_a_blob_that_vanishes_before_training_is_said(post: Post) -> None:
    post.announce()
    pulls = [m for m in post.tell(make_plan()) if isinstance(m, Pull)]
    post.give(BUNDLE, pulls[0])
    check = post.learner.check

    def check_and_lose(bundle: Bundle, checkpoint: bytes) -> int:
        for file in (post.folder / "blobs").iterdir():
            file.unlink()
        return check(bundle, checkpoint)

    post.learner.check = check_and_lose  # type: ignore[method-assign]
    said = post.give(CHECKPOINT, pulls[1])
    assert one(said, Decline).reason is DeclineReason.TRAINING_FAILED
    assert stage_of(post) == "Waiting"


def test_a_blob_that_vanishes_while_the_device_is_off_is_said(post: Post) -> None:
    post.follow()
    for file in (post.folder / "blobs").iterdir():
        file.unlink()
    again = post.reboot()
    assert one(again.started, Decline).reason is DeclineReason.TRAINING_FAILED
    assert stage_of(again) == "Waiting"


# ---- large frames


def test_a_large_frame_is_read_as_if_it_had_come(post: Post) -> None:
    post.announce()
    data = codec.write_frame(make_plan(), ME, identity("coordinator", "coordinator").sign)
    pull = one(post.tell(Large(reference(data))), Pull)
    assert pull.sha256 == suite.digest(data)
    assert post.tell(Large(reference(data))) == []
    post.give(data, pull)
    assert stage_of(post) == "Preparing"


def test_large_frames_are_bounded_in_size_and_number(post: Post) -> None:
    post.announce()
    assert post.tell(Large(BlobRef(Digest(bytes(32)), LARGE_FRAME_MAX_BYTES + 1))) == []
    for number in range(50):
        one(post.tell(Large(BlobRef(Digest(suite.digest(bytes([number]))), LARGE_FRAME_MAX_BYTES))), Pull)
        assert len(post.agent._downloads) == 1


def test_a_large_frame_of_somebody_else_is_refused(post: Post) -> None:
    post.announce()
    data = codec.write_frame(make_plan(), ME, identity(device_name(1)).sign)
    assert post.give(data, one(post.tell(Large(reference(data))), Pull)) == []
    assert stage_of(post) == "Waiting"


# ---- rejections and repetitions


def test_a_rejected_device_comes_again_within_its_window(post: Post) -> None:
    check_in = one(post.announce(), CheckIn)
    assert post.tell(Rejection("task", RejectionReason.ROUND_FULL, 100.0, 50.0)) == []
    assert post.wait(99.0) == []
    assert one(post.wait(52.0), CheckIn) == check_in


@pytest.mark.parametrize("after_s", [-1e9, float("inf"), 1e300])
def test_a_rejection_cannot_send_a_device_away_for_good(post: Post, after_s: float) -> None:
    post.announce()
    post.tell(Rejection("task", RejectionReason.ROUND_FULL, after_s, after_s))
    deadline = post.agent.next_deadline()
    assert deadline is None or deadline <= post.now + 2 * agent_module.RETRY_MAX_S
    one(post.wait(2 * agent_module.RETRY_MAX_S + 1), CheckIn)


def test_rejections_of_other_tasks_are_nothing(post: Post) -> None:
    check_in = one(post.announce(), CheckIn)
    post.tell(Rejection("other", RejectionReason.ROUND_FULL, 1e6, 0.0))
    assert one(post.wait(30.0), CheckIn) == check_in


def test_what_brings_no_answer_is_repeated(post: Post) -> None:
    check_in = one(post.announce(), CheckIn)
    assert post.wait(9.0) == []
    assert post.wait(12.0) == [check_in]
    advertised = post.follow()
    assert post.wait(9.0) == []
    assert post.wait(12.0) == [advertised]
    assert post.read(post.agent.connected(post.now)) == [advertised]


# ---- the whole way


def test_a_whole_round_with_its_repetitions(post: Post) -> None:
    cohort = Cohort(post)
    report = cohort.play_until_reported()
    receipt = Receipt(report.rid, report.vector.sha256, ReceiptStatus.ACCEPTED)
    assert post.wait(21.0) == [report]
    assert post.tell(receipt) == []
    asking = replace(report, inline=b"")
    assert post.wait(21.0) == [asking]
    answer = one(post.tell(cohort.survivors), UnmaskingShares)
    assert post.wait(21.0) == [answer]
    again = post.reboot()
    assert again.started == [answer]
    assert again.tell(cohort.survivors) == [answer]
    assert again.tell(replace(cohort.survivors, survivors=bitmap({0, 1, 2, 3, 4}, 6))) == []
    assert again.tell(Outcome(report.rid, True, AbandonReason.NONE, 6)) == []
    assert stage_of(again) == "Waiting"
    assert again.wait(1_000.0) == []
    (participation,) = again.store.participations()
    assert participation.sent_sha256 == report.vector.sha256
    assert again.store.journal() == []
    again.store.close()


def test_a_pulled_vector_is_served_and_not_offered_anew_meanwhile(post: Post) -> None:
    report = Cohort(post).play_until_reported()
    post.now += 8.0
    pull = Pull(report.vector.sha256, 60_000, (0,), (1,))
    payload = codec.write_frame(pull, ME, identity("coordinator", "coordinator").sign)
    (chunk,) = post.put(topics.build(topics.ControlDown(DeviceId(ME))), payload)
    assert chunks.decode_chunk(chunk.payload).data == report.inline
    assert topics.parse(chunk.topic) == topics.ChunkUp(0, DeviceId(ME))
    assert post.wait(9.0) == []
    assert post.wait(12.0) == [report]
    for digest, firsts, counts in (
        (Digest(bytes(32)), (0,), (1,)),
        (reference(BUNDLE).sha256, (0,), (1,)),
        (report.vector.sha256, (0,), ()),
        (report.vector.sha256, (0,), (2**32 - 1,)),
    ):
        assert post.tell(Pull(digest, 60_000, firsts, counts)) == []


def test_nothing_is_served_before_there_is_anything(post: Post) -> None:
    post.follow()
    assert post.tell(Pull(reference(BUNDLE).sha256, 60_000, (0,), (1,))) == []


# ---- its own troubles


def test_a_store_that_fails_stops_the_device_before_anything_is_said(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = Cohort(post)
    write = post.store._write
    monkeypatch.setattr(post.store, "append", failing)
    post.announce()
    before = post.agent.state
    with pytest.raises(StoreError, match="disk full"):
        post.tell(make_plan())
    assert post.agent.state is before
    monkeypatch.undo()
    assert post.store._write == write
    report = cohort.play_until_reported()
    assert isinstance(report, MaskedInput)
    monkeypatch.setattr(post.store, "append", failing)
    with pytest.raises(StoreError):
        post.tell(cohort.survivors)
    assert stage_of(post) == "Reported"
    again = post.reboot()
    assert not [m for m in again.started if isinstance(m, UnmaskingShares)]
    one(again.tell(cohort.survivors), UnmaskingShares)
    again.store.close()


def failing(*_: Any, **__: Any) -> None:
    raise StoreError("disk full", hint="free some")


def test_training_that_fails_is_said(post: Post) -> None:
    post.follow()
    job = post.agent.take_job()
    assert job is not None
    said = post.read(post.agent.failed(job, TrainingError("out of memory"), post.now))
    assert one(said, Decline) == Decline(job.plan.rid, DeclineReason.TRAINING_FAILED, "out of memory")


def test_training_of_an_earlier_round_is_ignored(post: Post) -> None:
    post.follow()
    old = post.agent.take_job()
    assert old is not None
    post.follow(make_plan(**next_round(2)))
    before = post.agent.state
    assert post.finish(old) == []
    assert post.read(post.agent.failed(old, TrainingError("x"), post.now)) == []
    assert post.agent.state is before


def test_a_round_ends_by_the_clock(post: Post) -> None:
    post.follow()
    deadline = post.agent.next_deadline()
    assert deadline is not None
    post.wait(make_plan().expires_after_s + 1)
    assert stage_of(post) == "Waiting"
    assert post.store.has_ended(make_plan().rid)
    assert post.store.journal() == []


def test_a_device_that_was_off_for_weeks_drops_its_round_and_keeps_its_ledger(post: Post) -> None:
    Cohort(post).play_until_reported()
    assert post.store.journal() != []
    (spent,) = post.store.participations()
    post.now += 21 * DAY_S
    again = post.reboot()
    assert again.started == []
    assert stage_of(again) == "Waiting"
    assert again.store.journal() == []
    assert again.store.has_ended(make_plan().rid)
    assert again.store.participations() == [spent]
    # The round that it left is not joined again, and the next one is.
    assert again.announce() == []
    one(again.announce(make_announcement(sequence=2, **next_round(2))), CheckIn)


def test_a_certificate_is_changed_between_rounds_only_and_for_its_own_device(post: Post) -> None:
    other = issue_identity(authority(), identity_id=ME, role="device", now=START)
    one(post.announce(), CheckIn)
    with pytest.raises(LocalProtocolError, match="between rounds"):
        post.agent.adopt(other)
    post.follow()
    with pytest.raises(LocalProtocolError, match="between rounds"):
        post.agent.adopt(other)
    post.wait(make_plan().expires_after_s + 1)
    with pytest.raises(IdentityError, match="not this device's"):
        post.agent.adopt(identity(device_name(1)))
    post.agent.adopt(other)
    announced = make_announcement(sequence=2, **next_round(2))
    who = identity("coordinator", "coordinator")
    payload = codec.write_frame(announced, codec.BROADCAST, who.sign, certificate=who.certificate_der)
    (check_in,) = post.put(topics.build(topics.TaskTopic(POPULATION)), payload)
    assert codec.read_frame(check_in.payload).certificate == other.certificate_der


def test_a_later_announcement_ends_the_round(post: Post) -> None:
    post.follow()
    again = make_announcement(sequence=2, **next_round(2))
    assert one(post.announce(again), CheckIn).rid == again.rid
    assert stage_of(post) == "Waiting"


def test_a_finished_task_leaves_its_model(post: Post) -> None:
    final = os.urandom(len(CHECKPOINT))
    done = make_announcement(
        sequence=9, state=TaskState.COMPLETE, rid=NO_ROUND, model_version=7, checkpoint=reference(final)
    )
    for pull in [m for m in post.announce(done) if isinstance(m, Pull)]:
        post.give(BUNDLE if pull.sha256 == reference(BUNDLE).sha256 else final, pull)
    assert post.agent.memberships[POPULATION].installed_version == 7
    assert post.learner.installed == [7]
    again = post.reboot()
    assert again.agent.memberships[POPULATION].installed_version == 7
    assert again.announce(done) == []


def test_a_reboot_changes_nothing(post: Post) -> None:
    cohort = Cohort(post)
    cohort.play_until_reported()
    state = post.agent.state
    again = post.reboot()
    assert again.agent.state == state
    again.store.close()


@pytest.mark.parametrize(
    "policy",
    [DevicePolicy(min_reports=50), DevicePolicy(min_reports=2, tasks=frozenset({"other"}))],
)
def test_a_stricter_policy_after_a_reboot_leaves_the_open_round(post: Post, policy: DevicePolicy) -> None:
    post.follow()
    again = post.reboot(policy=policy)
    assert stage_of(again) == "Waiting"
    assert again.store.has_ended(make_plan().rid)
    assert again.store.journal() == []
    again.store.close()


@pytest.mark.parametrize("damage", ["kind = 'other'", "payload = x'00'", "payload = x'ffffffff00'"])
def test_a_damaged_journal_costs_the_round_and_not_the_device(post: Post, damage: str) -> None:
    post.follow()
    post.store._file.connection.execute(f"UPDATE journal SET {damage} WHERE position = 0")  # noqa: S608
    again = post.reboot()
    assert stage_of(again) == "Waiting"
    assert again.store.journal() == []
    one(again.announce(make_announcement(sequence=2, **next_round(2))), CheckIn)
    again.store.close()


def test_the_folder_can_be_read_by_nobody_else(post: Post) -> None:
    post.follow()
    assert not (Path(post.folder) / "device.sqlite").stat().st_mode & 0o077
