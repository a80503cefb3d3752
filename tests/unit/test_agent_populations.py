"""One device in several populations: one round at a time, each in its turn, and coordinators keep to their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.registrar.authority import DAY_S, issue_identity
from edge_sdk.events import Refused
from edge_sdk.identity import Identity
from edge_sdk.protocol.messages import (
    AbandonReason,
    AdvertiseKeys,
    CheckIn,
    Decline,
    DeclineReason,
    Message,
    Outcome,
    Pull,
    Rejection,
    RejectionReason,
    TaskState,
)
from tests.simulation.world import POPULATION, START, authority, fresh_folder, identity
from tests.unit.post import (
    BUNDLE,
    CHECKPOINT,
    DIMENSION,
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

OTHER = "others"
WINDOW_S = 30.0


@pytest.fixture
def post() -> Iterator[Post]:
    with fresh_folder() as folder:
        held = Post(folder, others={OTHER: Learner(1, DIMENSION)})
        yield held
        held.store.close()


def announce_other(post: Post, *, signer: Identity | None = None, **changes: Any) -> list[Message]:
    values: dict[str, Any] = {"population": OTHER, "task": "second", **next_round(50)} | changes
    return post.announce(make_announcement(**values), signer=signer)


def learner(post: Post, population: str) -> Learner:
    found = post.agent.memberships[population].learner
    assert isinstance(found, Learner)
    return found


def check_ins(said: list[Message]) -> list[str]:
    return [message.task for message in said if isinstance(message, CheckIn)]


def test_all_populations_are_subscribed_to(post: Post) -> None:
    assert [topic for topic in post.agent.subscriptions if "/task/" in topic] == [
        f"fl/v1/pub/task/{POPULATION}",
        f"fl/v1/pub/task/{OTHER}",
    ]


def test_it_offers_itself_to_one_at_a_time_and_then_to_the_other(post: Post) -> None:
    assert check_ins(post.announce()) == ["task"]
    assert check_ins(announce_other(post)) == []
    assert set(check_ins(post.wait(WINDOW_S - 1))) == {"task"}
    # The first's selection is over, and it said nothing.
    assert set(check_ins(post.wait(2))) == {"second"}
    assert set(check_ins(post.wait(WINDOW_S + 1))) == {"task"}


def test_a_rejection_frees_it_for_the_other_at_once(post: Post) -> None:
    post.announce()
    announce_other(post)
    said = post.tell(Rejection("task", RejectionReason.ROUND_FULL, 600.0, 0.0))
    assert check_ins(said) == ["second"]


def test_while_it_is_in_a_round_it_offers_itself_to_nobody(post: Post) -> None:
    post.follow()
    assert check_ins(announce_other(post)) == []
    assert check_ins(post.wait(WINDOW_S + 1)) == []
    other = make_plan(**next_round(50), task="second")
    assert check_ins(post.tell(Outcome(make_plan().rid, False, AbandonReason.CANCELLED, 0))) == ["second"]
    said = post.tell(other)
    for pull in [message for message in said if isinstance(message, Pull)]:
        said = post.give(BUNDLE if pull.sha256 == other.bundle.sha256 else CHECKPOINT, pull)
    assert one(said, AdvertiseKeys).rid == other.rid
    job = post.agent.take_job()
    assert job is not None
    assert (job.population, learner(post, OTHER).checks, learner(post, POPULATION).checks) == (OTHER, 1, 1)


def test_a_plan_that_comes_late_is_declined_and_the_round_under_way_goes_on(post: Post) -> None:
    """It had offered itself there first, heard nothing for long, and joined the other meanwhile."""
    announce_other(post)
    post.wait(WINDOW_S + 1)
    post.follow()
    late = make_plan(**next_round(50), task="second")
    declined = one(post.tell(late), Decline)
    assert (declined.rid, declined.reason) == (late.rid, DeclineReason.ROUND_ALREADY_JOINED)
    assert stage_of(post) == "Advertised"
    assert [event.population for event in post.events if isinstance(event, Refused)] == [OTHER]
    # A restart takes the round up that it was in, and declines the other again.
    again = post.reboot()
    assert stage_of(again) == "Advertised"
    announce_other(again)
    assert one(again.tell(late), Decline).reason is DeclineReason.ROUND_ALREADY_JOINED
    # And when that round is over, it offers itself to the next round of the other only.
    assert check_ins(again.tell(Outcome(make_plan().rid, False, AbandonReason.CANCELLED, 0))) == []
    again.store.close()


def test_a_round_is_taken_up_again_with_the_learner_of_its_population(post: Post) -> None:
    announce_other(post)
    other = make_plan(**next_round(50), task="second")
    for pull in [message for message in post.tell(other) if isinstance(message, Pull)]:
        post.give(BUNDLE if pull.sha256 == other.bundle.sha256 else CHECKPOINT, pull)
    again = post.reboot()
    job = again.agent.take_job()
    assert job is not None
    assert job.population == OTHER
    # And it hears that coordinator at once, before any announcement.
    again.tell(Outcome(other.rid, True, AbandonReason.NONE, 6))
    assert stage_of(again) == "Waiting"
    again.store.close()


def test_a_round_of_a_population_that_was_left_is_left_too(post: Post) -> None:
    announce_other(post)
    post.tell(make_plan(**next_round(50), task="second"))
    assert stage_of(post) == "Preparing"
    post.store.close()
    again = Post(post.folder, now=post.now)
    assert stage_of(again) == "Waiting"
    assert again.store.has_ended(make_plan(**next_round(50)).rid)
    again.store.close()


def test_one_populations_coordinator_says_nothing_in_the_others_round(post: Post) -> None:
    """Two coordinators may share a broker; neither may end, plan or reject for the other."""
    rival = identity("rival", "coordinator")
    announce_other(post, signer=rival)
    assert check_ins(post.announce()) == []
    post.tell(Rejection("second", RejectionReason.ROUND_FULL, 600.0, 0.0))
    assert post.agent.memberships[OTHER].checked_in
    post.tell(Rejection("second", RejectionReason.ROUND_FULL, 600.0, 0.0), signer=rival)
    assert post.tell(make_plan(), signer=rival) == []
    assert stage_of(post) == "Waiting"
    post.tell(make_plan())
    assert stage_of(post) == "Preparing"
    post.tell(Outcome(make_plan().rid, True, AbandonReason.NONE, 6), signer=rival)
    assert stage_of(post) == "Preparing"


def test_one_populations_coordinator_cannot_take_over_the_others_round(post: Post) -> None:
    """By announcing that very round to its own population."""
    rival = identity("rival", "coordinator")
    post.follow()
    announce_other(post, signer=rival, rid=make_plan().rid, task="task", round_number=1)
    assert post.tell(make_plan(), signer=rival) == []
    post.tell(Outcome(make_plan().rid, True, AbandonReason.NONE, 6), signer=rival)
    assert stage_of(post) == "Advertised"
    post.tell(Outcome(make_plan().rid, True, AbandonReason.NONE, 6))
    assert stage_of(post) == "Waiting"


def test_a_coordinator_whose_certificate_expired_silences_no_other(post: Post) -> None:
    short = issue_identity(authority(), identity_id="rival", role="coordinator", now=START - 2 * DAY_S, lifetime_days=3)
    post.announce(signer=short)
    post.wait(2 * DAY_S)
    announce_other(post)
    assert post.tell(make_plan(), signer=short) == []
    assert stage_of(post) == "Waiting"
    post.tell(make_plan(**next_round(50), task="second"))
    assert stage_of(post) == "Preparing"


def test_objections_are_by_population(post: Post) -> None:
    post.agent.consider_conditions({POPULATION: ("not charging",)}, post.now)
    assert check_ins(post.announce()) == []
    assert check_ins(announce_other(post)) == ["second"]


def test_the_budget_is_one_for_all_populations(post: Post) -> None:
    """What the first took is gone for the second, whoever coordinates it."""
    rival = identity("rival", "coordinator")
    plan = make_plan(participation_cap=1, device_variance=500)
    Cohort(post, plan).play_until_reported()
    post.tell(Outcome(plan.rid, True, AbandonReason.NONE, 6))
    announce_other(post, signer=rival)
    other = make_plan(**next_round(50), task="second", participation_cap=1, device_variance=500)
    assert one(post.tell(other, signer=rival), Decline).reason.name == "EPSILON_TOO_LARGE"


def test_each_installs_its_own_finished_model_also_after_a_round_of_the_other(post: Post) -> None:
    post.follow()
    announce_other(post, state=TaskState.COMPLETE, rid=bytes(16), model_version=9)
    assert learner(post, OTHER).installed == []
    post.tell(Outcome(make_plan().rid, False, AbandonReason.CANCELLED, 0))
    # The blobs are those of the first population's round: nothing needs to be fetched.
    assert learner(post, OTHER).installed == [9]
    assert post.agent.memberships[OTHER].is_complete
    assert not post.agent.memberships[POPULATION].is_complete
    assert post.store.facts("installed_version/") == {OTHER: "9", POPULATION: "1"}


def test_blobs_of_one_population_outlive_a_fetch_for_the_other(post: Post) -> None:
    post.follow()
    post.tell(Outcome(make_plan().rid, False, AbandonReason.CANCELLED, 0))
    kept = {path.name for path in (post.folder / "blobs").iterdir()}
    again = post.reboot()
    other, checkpoint = b"another bundle", bytes(4 * DIMENSION) + b"!"
    announced = make_announcement(
        population=OTHER,
        task="second",
        state=TaskState.COMPLETE,
        rid=bytes(16),
        model_version=2,
        bundle=reference(other),
        checkpoint=reference(checkpoint),
    )
    for pull in [message for message in again.announce(announced) if isinstance(message, Pull)]:
        again.give(other if pull.sha256 == announced.bundle.sha256 else checkpoint, pull)
    assert learner(again, OTHER).installed == [2]
    assert kept < {path.name for path in (again.folder / "blobs").iterdir()}
    again.store.close()
