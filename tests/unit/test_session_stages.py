"""A session's own life: what it says when, how it ends, and that a replay is the same to the byte."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge_sdk.protocol import session
from edge_sdk.protocol.checks import survivors_digest
from edge_sdk.protocol.limits import INLINE_UPDATE_MAX_BYTES
from edge_sdk.protocol.messages import (
    AbandonReason,
    AdvertiseKeys,
    Decline,
    DeclineReason,
    Digest,
    MaskedInput,
    Outcome,
    Receipt,
    ReceiptStatus,
    ShareKeys,
)
from edge_sdk.protocol.policy import DevicePolicy, Spending
from edge_sdk.secagg import modular, suite
from tests.simulation.world import device_name
from tests.unit.cohort import NOW, PLAN, Member, Round, entropy, make_environment, planned, said

ME = device_name(0)
SIZE = 6


def joined(plan: Any = PLAN) -> Member:
    member = Member(ME, make_environment(ME))
    member.step(session.PlanReceived(plan, Digest(suite.digest(b"plan")), Spending()))
    return member


def update(size: int = 20, value: float = 0.01) -> bytes:
    return np.full(size, value, "<f4").tobytes()


def test_a_plan_is_prepared_for() -> None:
    member = Member(ME, make_environment(ME))
    effects = member.step(session.PlanReceived(PLAN, Digest(bytes(32)), Spending()))
    assert isinstance(member.state, session.Preparing)
    assert effects == (session.Fetch((PLAN.bundle, PLAN.checkpoint)),)
    assert session.resume(member.state) == effects
    assert session.round_id(member.state) == PLAN.rid


def test_ready_advertises_and_trains() -> None:
    member = joined()
    effects = member.step(session.Ready())
    message = said(effects, AdvertiseKeys)
    (train,) = [e for e in effects if isinstance(e, session.Train)]
    assert train.plan == PLAN
    assert session.pending(member.state) == message
    assert set(session.resume(member.state)) == set(effects)
    assert member.step(session.Ready()) == ()


def test_training_may_end_before_the_roster_or_after_the_boxes() -> None:
    held = Round(SIZE)
    held.select()
    late = held.members[ME]
    for name, message in held.advertise().items():
        held.tell(name, message)
    assert isinstance(late.state, session.Advertised)
    assert late.state.update is not None
    late.state = replace(late.state, update=None)
    for name, shares in held.share().items():
        held.tell(name, shares)
    assert late.hears(held.delivery(ME)) == ()
    assert isinstance(late.state, session.Holding)
    assert session.pending(late.state) is None
    (train,) = session.resume(late.state)
    assert isinstance(train, session.Train)
    message = said(late.step(session.Trained(update())), MaskedInput)
    assert message.vector.size_bytes == len(message.inline)


def test_a_second_training_is_ignored() -> None:
    member = joined()
    member.step(session.Ready())
    member.step(session.Trained(update()))
    before = member.state
    assert member.step(session.Trained(update(value=0.5))) == ()
    assert member.state is before


def test_a_masked_input_spends_and_is_repeated_until_it_is_receipted() -> None:
    held = Round(SIZE).until_shared()
    member = held.members[ME]
    effects = member.hears(held.delivery(ME))
    message = said(effects, MaskedInput)
    assert [e for e in effects if isinstance(e, session.Spend)] == [session.Spend(PLAN)]
    assert session.pending(member.state) == message
    assert session.masked_vector(member.state) == (message.vector.sha256, message.inline)
    assert member.hears(Receipt(PLAN.rid, message.vector.sha256, ReceiptStatus.BAD_DIGEST)) == (session.Send(message),)
    assert member.hears(Receipt(PLAN.rid, message.vector.sha256, ReceiptStatus.ACCEPTED)) == ()
    assert session.pending(member.state) == replace(message, inline=b"")
    receipted = member.state
    member.hears(Receipt(PLAN.rid, message.vector.sha256, ReceiptStatus.DUPLICATE))
    assert member.state is receipted


def test_a_late_masked_input_ends_the_round() -> None:
    held = Round(SIZE).until_shared()
    member = held.members[ME]
    message = said(member.hears(held.delivery(ME)), MaskedInput)
    member.hears(Receipt(PLAN.rid, message.vector.sha256, ReceiptStatus.LATE))
    assert isinstance(member.state, session.Ended)
    assert not member.state.committed
    assert session.masked_vector(member.state) is None


def test_large_vectors_are_offered_by_digest() -> None:
    plan = planned(dimension=40_000, norm_bound=400.0, device_variance=1 << 20)
    held = Round(SIZE, plan).until_shared()
    member = held.members[ME]
    message = said(member.hears(held.delivery(ME)), MaskedInput)
    assert message.inline == b""
    assert message.vector.size_bytes > INLINE_UPDATE_MAX_BYTES
    found = session.masked_vector(member.state)
    assert found is not None
    assert suite.digest(found[1]) == message.vector.sha256


@pytest.mark.parametrize("committed", [True, False])
def test_an_outcome_ends_the_round(committed: bool) -> None:
    held = Round(SIZE).until_reported()
    held.answer()
    member = held.members[ME]
    reason = AbandonReason.NONE if committed else AbandonReason.TOO_FEW_ANSWERS
    assert member.hears(Outcome(PLAN.rid, committed, reason, 6)) == ()
    assert isinstance(member.state, session.Ended)
    assert (member.state.committed, member.state.declined) == (committed, None)
    assert session.round_id(member.state) is None


def members_at_every_stage() -> list[Member]:
    """One member at each stage of a round."""
    found = [joined()]
    advertised = Round(SIZE).until_advertised()
    found.append(advertised.members[ME])
    shared = Round(SIZE).until_shared()
    found.append(shared.members[ME])
    holding = Round(SIZE).until_shared()
    holder = holding.members[ME]
    assert isinstance(holder.state, session.Shared)
    holder.state = replace(holder.state, update=None)
    holder.hears(holding.delivery(ME))
    found.append(holder)
    reported = Round(SIZE).until_reported()
    found.append(reported.members[ME])
    answered = Round(SIZE).until_reported()
    answered.answer()
    found.append(answered.members[ME])
    kinds = [type(m.state).__name__ for m in found]
    assert kinds == ["Preparing", "Advertised", "Shared", "Holding", "Reported", "Answered"]
    return found


@pytest.mark.parametrize(
    "event",
    [session.Tick(), session.Ready(), session.Trained(update()), session.Failed(DeclineReason.TRAINING_FAILED, "")],
)
def test_an_expired_round_is_left_whatever_comes(event: session.Event) -> None:
    for member in members_at_every_stage():
        assert member.step(event, NOW + PLAN.expires_after_s) == ()
        assert isinstance(member.state, session.Ended)
        assert member.state.detail == "the round expired"


def test_time_alone_changes_nothing_before() -> None:
    for member in members_at_every_stage():
        before = member.state
        assert member.step(session.Tick(), NOW + PLAN.expires_after_s - 1) == ()
        assert member.state is before


def test_a_later_round_ends_this_one() -> None:
    for member in members_at_every_stage():
        assert member.step(session.Superseded()) == ()
        assert isinstance(member.state, session.Ended)


def test_a_failure_is_said() -> None:
    for member in members_at_every_stage():
        message = said(member.step(session.Failed(DeclineReason.BUNDLE_INVALID, "x" * 999)), Decline)
        assert message == Decline(PLAN.rid, DeclineReason.BUNDLE_INVALID, "x" * 200)
        assert isinstance(member.state, session.Ended)


def test_nothing_concerns_a_device_without_a_round() -> None:
    member = Member(ME, make_environment(ME))
    outcome = session.Received(Outcome(PLAN.rid, True, AbandonReason.NONE, 0))
    for event in (session.Tick(), session.Ready(), session.Trained(b""), session.Superseded(), outcome):
        assert member.step(event) == ()
        assert isinstance(member.state, session.Waiting)


@pytest.mark.parametrize(
    "bad",
    [b"", update(19), update(21), update() + b"\0", update(value=math.inf), update(value=math.nan)],
)
def test_an_unusable_update_is_declined_and_not_spent(bad: bytes) -> None:
    held = Round(SIZE).until_shared()
    member = held.members[ME]
    assert isinstance(member.state, session.Shared)
    member.state = replace(member.state, update=None)
    member.hears(held.delivery(ME))
    effects = member.step(session.Trained(bad))
    assert said(effects, Decline).reason is DeclineReason.TRAINING_FAILED
    assert not any(isinstance(e, session.Spend) for e in effects)


def test_a_plan_below_the_policy_is_declined() -> None:
    member = Member(ME, make_environment(ME, DevicePolicy(min_reports=50)))
    effects = member.step(session.PlanReceived(PLAN, Digest(bytes(32)), Spending()))
    assert said(effects, Decline).reason is DeclineReason.COHORT_TOO_SMALL
    assert isinstance(member.state, session.Ended)


def test_the_same_journal_gives_the_same_bytes() -> None:
    """A restart must come to the same secrets; another device, or the same with other entropy, must not."""
    held = Round(SIZE).until_reported()
    messages = held.answer()
    again = Round(SIZE).until_reported()
    assert again.answer() == messages
    first, second = held.members[ME].state, again.members[ME].state
    assert first == second
    assert isinstance(first, session.Answered)
    assert first.reported.vector == session.masked_vector(second)[1]  # type: ignore[index]


def test_other_entropy_gives_other_secrets() -> None:
    member = joined()
    states = [session.step(member.environment, member.state, session.Ready(), NOW, entropy(ME, n))[0] for n in (7, 8)]
    publics = {s.message.mask_public for s in states if isinstance(s, session.Advertised)}
    assert len(publics) == 2


def test_a_masked_vector_says_nothing_of_the_update_alone() -> None:
    """Two cohorts that differ in nothing but entropy send vectors that differ nearly everywhere."""
    held = Round(SIZE).until_shared()
    member = held.members[ME]
    assert isinstance(member.state, session.Shared)
    plain_bytes = member.state.update
    message = said(member.hears(held.delivery(ME)), MaskedInput)
    vector = modular.unpack(message.inline, PLAN.dimension, PLAN.bits)
    assert plain_bytes is not None
    assert np.unique(vector).size > 15


def test_states_do_not_print_their_secrets() -> None:
    held = Round(SIZE).until_reported()
    held.answer()
    state = held.members[ME].state
    assert isinstance(state, session.Answered)
    shared = state.reported.holding.shared
    text = repr(state)
    for secret in (shared.self_seed, shared.seed, shared.keys.mask.private, shared.keys.channel.private):
        assert repr(secret)[2:-1] not in text
    assert shared.update is None
    assert "update" not in repr(replace(shared, update=b"secret"))
    assert repr(session.Trained(b"secret")) == "Trained()"


def test_answers_name_the_set_that_they_answer() -> None:
    held = Round(SIZE).until_reported()
    answers = held.answer()
    assert {a.survivors_digest for a in answers.values()} == {survivors_digest(held.survivors)}
    assert all(len(a.shares) == 32 * (SIZE - 1) for a in answers.values())


def test_share_keys_hold_a_box_for_every_neighbour() -> None:
    held = Round(SIZE).until_advertised()
    for name, message in held.share().items():
        assert isinstance(message, ShareKeys)
        assert message.indices == held.cohort.neighbours[held.index(name)]
        assert len(message.boxes) == 80 * len(message.indices)
