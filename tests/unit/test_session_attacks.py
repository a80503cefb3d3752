"""A coordinator that lies: every lie ends in a refusal by name, and none gets a secret out of a device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edge_sdk.errors import RemoteProtocolError
from edge_sdk.protocol import session
from edge_sdk.protocol.limits import NEIGHBOURS_MAX
from edge_sdk.protocol.messages import (
    AbandonReason,
    Decline,
    DeclineReason,
    Digest,
    MaskedInput,
    Outcome,
    Receipt,
    ReceiptStatus,
    RoundId,
    ShareDelivery,
    ShareKeys,
    Survivors,
    UnmaskingShares,
)
from edge_sdk.protocol.policy import Spending
from tests.simulation.world import device_name
from tests.unit.cohort import PLAN, Member, Round, planned, said
from tests.unit.lies import DELIVERIES, FORGED_ROSTERS, ME, ROSTERS, SIZE, SURVIVORS, Lie, all_but

OTHER_RID = RoundId(bytes(16))


def refused(member: Member, message: Any, reason: DeclineReason) -> str:
    """Feed a lie; the device must leave the round, say why, and say nothing else."""
    effects = member.hears(message)
    assert isinstance(member.state, session.Ended)
    assert member.state.declined is reason
    (effect,) = effects
    assert isinstance(effect, session.Send)
    assert isinstance(effect.message, Decline)
    assert effect.message.reason is reason
    return effect.message.detail


# ---- stage 2: rosters


def advertised() -> tuple[Round, Member]:
    held = Round(SIZE).until_advertised()
    return held, held.members[ME]


def test_an_honest_roster_is_answered() -> None:
    held, member = advertised()
    assert len(said(member.hears(held.roster(ME)), ShareKeys).boxes) == 80 * (SIZE - 1)


@pytest.mark.parametrize("lie", ROSTERS, ids=lambda lie: lie.name)
def test_rosters_that_do_not_hold_together(lie: Lie) -> None:
    held, member = advertised()
    assert lie.complaint in refused(member, lie.tell(held), DeclineReason.ROSTER_UNSOUND)


@pytest.mark.parametrize("lie", FORGED_ROSTERS, ids=lambda lie: lie.name)
def test_entries_that_nobody_stands_for(lie: Lie) -> None:
    """A roster whose tree is right, over an entry that is not."""
    held, member = advertised()
    assert lie.complaint in refused(member, lie.tell(held), DeclineReason.ROSTER_UNSOUND)


def test_degree_that_no_message_holds() -> None:
    held = Round(SIZE, planned(goal_count=60_000)).until_advertised()
    roster = replace(held.roster(ME), size=60_000, degree=NEIGHBOURS_MAX + 2, threshold=600)
    assert "more than a message holds" in refused(held.members[ME], roster, DeclineReason.ROSTER_UNSOUND)


def test_wrong_neighbours_in_a_sparse_graph() -> None:
    held = Round(64, planned(dropout_share=0.1, min_reports=30, goal_count=64)).until_advertised()
    mine = held.cohort.neighbours[0]
    assert len(mine) < 63
    stranger = next(index for index in range(1, 64) if index not in mine)
    chosen = tuple(sorted((stranger, *mine[1:])))
    lying = replace(held.cohort, neighbours=(chosen, *held.cohort.neighbours[1:]))
    roster = held.roster(ME, lying)
    assert "not those of the graph" in refused(held.members[ME], roster, DeclineReason.ROSTER_UNSOUND)


# ---- stage 4: boxes


def shared() -> tuple[Round, Member]:
    held = Round(SIZE).until_shared()
    return held, held.members[ME]


@pytest.mark.parametrize("lie", DELIVERIES, ids=lambda lie: lie.name)
def test_boxes_that_are_not_right(lie: Lie) -> None:
    held, member = shared()
    assert lie.complaint in refused(member, lie.tell(held), DeclineReason.SURVIVORS_UNSOUND)


def test_one_bad_box_costs_a_share_and_no_more() -> None:
    """One hostile neighbour must not be able to push a device out."""
    held, member = shared()
    delivery = held.delivery(ME)
    spoiled = replace(delivery, boxes=bytes(80) + delivery.boxes[80:])
    assert said(member.hears(spoiled), MaskedInput).inline
    assert isinstance(member.state, session.Reported)
    assert 1 not in member.state.holding.shares


# ---- stage 5: survivors


def reported(who: tuple[int, ...] = tuple(range(SIZE))) -> tuple[Round, Member]:
    held = Round(SIZE).until_reported([device_name(n) for n in who])
    return held, held.members[ME]


@pytest.mark.parametrize("lie", SURVIVORS, ids=lambda lie: lie.name)
def test_survivors_that_are_not_acceptable(lie: Lie) -> None:
    held, member = reported()
    assert lie.complaint in refused(member, lie.tell(held), DeclineReason.SURVIVORS_UNSOUND)


def test_survivors_who_never_shared() -> None:
    held = Round(SIZE).until_shared([device_name(n) for n in range(7)])
    member = held.members[ME]
    member.hears(held.delivery(ME))
    everybody = Survivors(PLAN.rid, held.cohort.root, all_but(7), all_but())
    assert "not among those who shared" in refused(member, everybody, DeclineReason.SURVIVORS_UNSOUND)


def test_a_second_set_of_survivors_is_never_answered() -> None:
    held, member = reported()
    first = said(member.hears(held.survivors), UnmaskingShares)
    answered = member.state
    for second in (
        replace(held.survivors, survivors=all_but(3)),
        replace(held.survivors, sharers=all_but(3), survivors=all_but(3)),
    ):
        with pytest.raises(RemoteProtocolError, match="both secrets of one device"):
            member.hears(second)
        assert member.state is answered
    assert said(member.hears(held.survivors), UnmaskingShares) == first
    assert member.state is answered


def test_of_the_living_the_self_seed_of_the_gone_the_mask_key() -> None:
    held, member = reported((0, 1, 2, 3, 4, 5, 6))
    answer = said(member.hears(held.survivors), UnmaskingShares)
    assert isinstance(member.state, session.Answered)
    shares = member.state.reported.holding.shares
    for position, index in enumerate(answer.indices):
        released = answer.shares[32 * position : 32 * (position + 1)]
        assert released == shares[index][1 if index == 7 else 0]


# ---- at the wrong time


def test_survivors_before_the_masked_input() -> None:
    held, member = shared()
    survivors = Survivors(PLAN.rid, held.cohort.root, all_but(), all_but())
    before = member.state
    with pytest.raises(RemoteProtocolError, match="before this device's masked input"):
        member.hears(survivors)
    assert member.state is before


def test_messages_of_stages_that_are_over_get_the_same_answer_again() -> None:
    held = Round(SIZE).until_shared()
    member = held.members[ME]
    shared_keys = session.pending(member.state)
    delivery, roster = held.delivery(ME), held.roster(ME)
    assert said(member.hears(roster), ShareKeys) == shared_keys
    forged = replace(roster, root=Digest(bytes(32)))
    assert said(member.hears(forged), ShareKeys) == shared_keys
    masked = said(member.hears(delivery), MaskedInput)
    assert said(member.hears(delivery), MaskedInput) == masked
    assert said(member.hears(replace(delivery, sharers=all_but(5))), MaskedInput) == masked


def test_stage_messages_that_come_too_early_change_nothing() -> None:
    _, member = advertised()
    before = member.state
    assert session.pending(before) is not None
    effects = member.hears(ShareDelivery(PLAN.rid, all_but(), (), b""))
    assert (member.state, [type(e) for e in effects]) == (before, [session.Send])


@pytest.mark.parametrize(
    "message",
    [
        Receipt(OTHER_RID, Digest(bytes(32)), ReceiptStatus.LATE),
        Outcome(OTHER_RID, True, AbandonReason.NONE, 8),
        Survivors(OTHER_RID, Digest(bytes(32)), all_but(), all_but()),
    ],
)
def test_messages_of_other_rounds_change_nothing(message: Any) -> None:
    _, member = reported()
    before = member.state
    with pytest.raises(RemoteProtocolError, match="another round"):
        member.hears(message)
    assert member.state is before


def test_receipts_of_other_vectors_change_nothing() -> None:
    _, member = reported()
    before = member.state
    for status in ReceiptStatus:
        assert member.hears(Receipt(PLAN.rid, Digest(bytes(32)), status)) == ()
    assert member.state is before


def test_a_second_plan_for_the_same_round_is_not_followed() -> None:
    held, member = shared()
    before = member.state
    weaker = planned(device_variance=1, clip_norm=50.0)
    effects = member.step(session.PlanReceived(weaker, Digest(bytes(32)), Spending()))
    assert member.state is before
    assert said(effects, ShareKeys) == session.pending(before)
    with pytest.raises(RemoteProtocolError, match="another round is under way"):
        member.step(session.PlanReceived(planned(rid=OTHER_RID), Digest(bytes(32)), Spending()))
    assert member.state is before
    assert held.config.plan == PLAN
