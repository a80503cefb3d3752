"""Consent and events: nothing is trained before the owner agrees, and the app hears what happens and why not."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_sdk.clock import ManualClock
from edge_sdk.errors import ConfigError, StoreError
from edge_sdk.events import Deferred, Event, Installed, Refused, Trained, Uploaded
from edge_sdk.privacy.subsampled import Sampling, sampled_epsilon
from edge_sdk.protocol.messages import (
    AbandonReason,
    CheckIn,
    Decline,
    DeclineReason,
    Outcome,
    Rejection,
    RejectionReason,
)
from edge_sdk.protocol.policy import DevicePolicy
from edge_sdk.runtime import event_stream
from edge_sdk.runtime.consent import Consent, ConsentChange
from edge_sdk.runtime.device_store import DeviceStore
from edge_sdk.runtime.event_stream import EventStream
from edge_sdk.runtime.privacy_account import PrivacyAccount, Receipt
from tests.simulation.world import POPULATION, START, fresh_folder
from tests.unit.post import POLICY, Cohort, Post, make_announcement, make_plan, next_round, one, stage_of

PURPOSE = "better typing"


@pytest.fixture
def post() -> Iterator[Post]:
    with fresh_folder() as folder:
        held = Post(folder, asks=True)
        yield held
        held.store.close()


@pytest.fixture
def consent(post: Post) -> Consent:
    assert post.consent is not None
    return post.consent


def take_part(post: Post, number: int = 1, **changes: object) -> None:
    plan = make_plan(**next_round(number), **changes)
    Cohort(post, plan).play_until_reported()
    post.tell(Outcome(plan.rid, True, AbandonReason.NONE, 6))


# ---- consent


def test_nothing_is_joined_before_consent_and_then_at_once(post: Post, consent: Consent) -> None:
    assert post.announce() == []
    assert post.events == [Deferred(POPULATION, START, "no consent")]
    assert post.agent.next_deadline() is None
    consent.grant(purpose=PURPOSE, text_version="3")
    one(post.wait(0.0), CheckIn)


def test_a_plan_that_nobody_agreed_to_is_declined(post: Post) -> None:
    post.announce()
    assert one(post.tell(make_plan()), Decline).reason is DeclineReason.TASK_NOT_ALLOWED
    assert stage_of(post) == "Waiting"


def test_revoking_ends_the_open_round_at_once(post: Post, consent: Consent) -> None:
    consent.grant(purpose=PURPOSE, text_version="3")
    post.follow()
    consent.revoke()
    said = one(post.wait(0.0), Decline)
    assert (said.reason, said.detail) == (DeclineReason.TASK_NOT_ALLOWED, "the device's owner no longer agrees")
    assert post.agent.take_job() is None
    assert post.store.journal() == []
    assert post.announce(make_announcement(sequence=2, **next_round(2))) == []


def test_a_round_is_not_taken_up_again_where_consent_was_revoked_meanwhile(post: Post, consent: Consent) -> None:
    """`edge device` in another process may revoke while this one does not run."""
    consent.grant(purpose=PURPOSE, text_version="3")
    post.follow()
    consent.revoke()
    again = post.reboot()
    assert [type(message) for message in again.started][-1] is Decline
    assert again.agent.take_job() is None
    assert again.store.journal() == []
    again.store.close()


def test_consent_is_kept_with_every_change(tmp_path: Path) -> None:
    clock, path = ManualClock(100.0), tmp_path / "device.sqlite"
    with DeviceStore(path) as store:
        consent = Consent(store, clock)
        assert (consent.granted, consent.newest) == (False, None)
        consent.grant(purpose=PURPOSE, text_version="3")
        clock.advance(5)
        consent.revoke()
        consent.revoke()
    with DeviceStore(path) as store:
        again = Consent(store, clock)
        assert again.history() == (
            ConsentChange(True, PURPOSE, "3", 100.0),
            ConsentChange(False, PURPOSE, "3", 105.0),
        )
        assert not again.granted
        store.put("consent", "[{}]")
        with pytest.raises(StoreError, match="consent cannot be read"):
            _ = again.granted


def test_a_revocation_that_cannot_be_written_holds_until_the_process_ends(tmp_path: Path) -> None:
    store = DeviceStore(tmp_path / "device.sqlite")
    changes: list[None] = []
    consent = Consent(store, ManualClock(100.0), changed=lambda: changes.append(None))
    consent.grant(purpose=PURPOSE, text_version="3")
    changes.clear()
    store.close()
    with pytest.raises(StoreError):
        consent.revoke()
    assert not consent.granted
    assert changes, "a training that is under way hears of it"
    with DeviceStore(tmp_path / "device.sqlite") as again:
        consent = Consent(again, ManualClock(101.0))
        assert consent.granted
        consent.revoke()
        consent.grant(purpose=PURPOSE, text_version="4")
        assert consent.granted, "what is granted anew is"


@pytest.mark.parametrize(("purpose", "version"), [("", "3"), ("typing", " ")])
def test_consent_to_nothing_is_none(post: Post, consent: Consent, purpose: str, version: str) -> None:
    with pytest.raises(ConfigError, match="proves nothing"):
        consent.grant(purpose=purpose, text_version=version)
    assert not consent.granted


def test_a_change_is_told(post: Post) -> None:
    told: list[bool] = []
    told_by = Consent(post.store, ManualClock(1.0), lambda: told.append(told_by.granted))
    told_by.grant(purpose=PURPOSE, text_version="3")
    told_by.revoke()
    assert told == [True, False]


# ---- events


def test_a_round_tells_what_happens_in_order(post: Post, consent: Consent) -> None:
    consent.grant(purpose=PURPOSE, text_version="3")
    take_part(post)
    (spent,) = post.store.participations()
    assert post.events == [
        Installed(POPULATION, START, 1),
        Trained(POPULATION, START, 1, 10),
        Uploaded(POPULATION, START, 1, 40, spent.epsilon, spent.delta),
    ]


def test_a_weaker_plan_is_refused_with_numbers(post: Post, consent: Consent) -> None:
    consent.grant(purpose=PURPOSE, text_version="3")
    post.announce()
    said = one(post.tell(make_plan(min_reports=1)), Decline)
    (event,) = post.events
    assert event == Refused(POPULATION, START, 1, "cohort_too_small", said.detail)
    assert "sums of 1 devices; this device asks for 2" in said.detail


def test_why_it_does_not_take_part_is_said_once_for_each_reason(post: Post, consent: Consent) -> None:
    consent.grant(purpose=PURPOSE, text_version="3")
    post.learner.example_count = 0
    for number in (1, 2):
        post.announce(make_announcement(sequence=number, **next_round(number)))
    post.learner.example_count = 10
    post.agent.consider_conditions({POPULATION: ("not charging", "busy")}, post.now)
    post.agent.consider_conditions({POPULATION: ("not charging", "busy")}, post.now)
    post.agent.consider_conditions({}, post.now)
    post.tell(Rejection("task", RejectionReason.ROUND_FULL, 10.0, 0.0))
    reasons = [event.reason for event in post.events if isinstance(event, Deferred)]
    assert reasons == ["too few examples", "not charging, busy", "round_full"]


# ---- the stream


def test_events_reach_the_callback_and_every_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "KEPT", 2)
    told: list[Event] = []
    made = [Installed(POPULATION, 1.0, version) for version in range(4)]

    async def main() -> tuple[list[Event], list[Event]]:
        stream = EventStream(told.append)

        async def read() -> list[Event]:
            return [event async for event in stream.read()]

        readers = [asyncio.create_task(read()) for _ in range(2)]
        await asyncio.sleep(0)
        for event in made:
            stream.emit(event)
        stream.close()
        found = [await reader for reader in readers]
        assert [event async for event in stream.read()] == []
        return found[0], found[1]

    first, second = asyncio.run(main())
    assert told == made
    # A reader that was too slow for four at once has the newest.
    assert first == second == made[3:]


# ---- the account


def test_receipts_say_what_left_for_what_purpose_at_what_cost(post: Post, consent: Consent) -> None:
    consent.grant(purpose=PURPOSE, text_version="3")
    take_part(post, 1)
    take_part(post, 2)
    account = PrivacyAccount(post.store, POLICY)
    first, second = account.receipts()
    sent = post.store.participations()
    assert first == Receipt(
        START, "task", 1, 40, sent[0].sent_sha256, PURPOSE, first.epsilon, first.epsilon, sent[0].delta, "committed"
    )
    assert second.cost == pytest.approx(second.epsilon - first.epsilon)
    assert 0 < second.cost < first.cost


def test_spending_is_by_task_and_of_the_whole_life(post: Post, consent: Consent) -> None:
    consent.grant(purpose=PURPOSE, text_version="3")
    take_part(post, 1, task="first", participation_cap=1, device_variance=1_000_000)
    take_part(post, 2, task="second", participation_cap=1, device_variance=1_000_000)
    spent = PrivacyAccount(post.store, POLICY).spent()
    assert {task: one.participations for task, one in spent.tasks.items()} == {"first": 1, "second": 1}
    assert max(one.epsilon for one in spent.tasks.values()) < spent.epsilon < spent.epsilon_at_most
    assert (spent.participations, spent.participations_at_most) == (2, 10_000)
    assert spent.example_epsilon is None
    post.store.count_examples(bytes(16), Sampling(1.0, 0.1, 10))
    again = PrivacyAccount(post.store, POLICY).spent()
    assert again.example_epsilon == sampled_epsilon((Sampling(1.0, 0.1, 10),), POLICY.delta_at_most)


def test_a_round_without_noise_costs_all_there_is(post: Post, consent: Consent) -> None:
    consent.grant(purpose=PURPOSE, text_version="3")
    held = post.reboot(policy=DevicePolicy(min_reports=2, epsilon_at_most=math.inf))
    take_part(held, 1, device_variance=0)
    take_part(held, 2, device_variance=0)
    assert [receipt.cost for receipt in PrivacyAccount(held.store, POLICY).receipts()] == [math.inf, math.inf]
    held.store.close()


def test_participations_in_all_tasks_together_are_capped(post: Post, consent: Consent) -> None:
    consent.grant(purpose=PURPOSE, text_version="3")
    held = post.reboot(policy=DevicePolicy(min_reports=2, all_participations_at_most=1))
    take_part(held, 1, task="first", device_variance=1_000_000)
    plan = make_plan(**next_round(2), task="second", device_variance=1_000_000)
    held.announce(make_announcement(sequence=2, rid=plan.rid, round_number=2, task="second"))
    said = one(held.tell(plan), Decline)
    assert (said.reason, said.detail) == (
        DeclineReason.PARTICIPATION_CAP,
        "took part 1 times in all tasks of at most 1",
    )
    held.store.close()


def test_a_ledger_of_the_first_version_is_read(post: Post, consent: Consent) -> None:
    """What was spent before an update of the SDK still counts after it."""
    consent.grant(purpose=PURPOSE, text_version="3")
    take_part(post)
    post.store.close()
    path = post.folder / "device.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE ledger DROP COLUMN purpose")
        connection.execute("DROP TABLE example_ledger")
        connection.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
    connection.close()
    again = post.reboot()
    (participation,) = again.store.participations()
    assert (participation.task, participation.purpose) == ("task", "")
    assert again.store.spending("task").participations == 1
    assert again.store.samplings() == ()
    again.store.close()
