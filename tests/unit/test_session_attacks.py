"""A coordinator that lies: every lie ends in a refusal by name, and none gets a secret out of a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from coordinator.registrar.authority import create_authority, issue_identity
from edge_sdk.errors import RemoteProtocolError
from edge_sdk.protocol import session
from edge_sdk.protocol.limits import NEIGHBOURS_MAX
from edge_sdk.protocol.messages import (
    AbandonReason,
    Bitmap,
    Decline,
    DeclineReason,
    Digest,
    MaskedInput,
    Outcome,
    PublicKey,
    Receipt,
    ReceiptStatus,
    Roster,
    RoundId,
    ShareDelivery,
    ShareKeys,
    Survivors,
    UnmaskingShares,
    bitmap,
)
from edge_sdk.protocol.policy import Spending
from edge_sdk.secagg import client
from tests.simulation.world import START, authority, device_name, identity
from tests.unit.cohort import NOW, PLAN, Member, Round, planned, said, signed_entry

SIZE = 8
ME = device_name(0)
OTHER_RID = RoundId(bytes(16))


def refused(member: Member, message: Any, reason: DeclineReason, now: float = NOW) -> str:
    """Feed a lie; the device must leave the round, say why, and say nothing else."""
    effects = member.hears(message, now)
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


def lie(change: Callable[[Roster], Roster]) -> str:
    held, member = advertised()
    return refused(member, change(held.roster(ME)), DeclineReason.ROSTER_UNSOUND)


def with_neighbour(roster: Roster, position: int, **changes: Any) -> Roster:
    changed = replace(roster.neighbours[position], **changes)
    return replace(roster, neighbours=(*roster.neighbours[:position], changed, *roster.neighbours[position + 1 :]))


def test_an_honest_roster_is_answered() -> None:
    held, member = advertised()
    assert len(said(member.hears(held.roster(ME)), ShareKeys).boxes) == 80 * (SIZE - 1)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda r: replace(r, root=Digest(bytes(32))), "not at its index"),
        (lambda r: replace(r, index=1), "not at its index"),
        (lambda r: replace(r, index=SIZE), "roster of 8"),
        (lambda r: replace(r, index=2**32 - 1), "roster of 8"),
        (lambda r: replace(r, proof=b""), "not at its index"),
        (lambda r: replace(r, proof=r.proof[:-1]), "not at its index"),
        (lambda r: replace(r, proof=r.proof + bytes(32)), "not at its index"),
        (lambda r: replace(r, size=SIZE + 1), "do not protect"),
        (lambda r: replace(r, size=3), "roster of 3 for 4 reports"),
        (lambda r: replace(r, size=101), "roster of 101"),
        (lambda r: replace(r, size=2**32 - 1), "roster of 4294967295"),
        (lambda r: replace(r, threshold=3), "do not protect"),
        (lambda r: replace(r, threshold=0), "do not protect"),
        (lambda r: replace(r, threshold=8), "do not protect"),
        (lambda r: replace(r, degree=6), "not those of the graph"),
        (lambda r: replace(r, degree=4, threshold=2), "do not protect"),
        (lambda r: replace(r, degree=0, threshold=0), "do not protect"),
        (lambda r: replace(r, neighbours=()), "not those of the graph"),
        (lambda r: replace(r, neighbours=r.neighbours[1:]), "not those of the graph"),
        (lambda r: replace(r, neighbours=r.neighbours[::-1]), "not those of the graph"),
        (lambda r: replace(r, neighbours=(*r.neighbours, r.neighbours[-1])), "not those of the graph"),
        (lambda r: with_neighbour(r, 2, index=0), "not those of the graph"),
        (lambda r: with_neighbour(r, 2, proof=r.neighbours[3].proof), "is not in the roster"),
        (lambda r: with_neighbour(r, 2, proof=b""), "is not in the roster"),
        (lambda r: with_neighbour(r, 2, certificate=b"x"), "is not in the roster"),
        (lambda r: with_neighbour(r, 2, channel_public=PublicKey(bytes(32))), "is not in the roster"),
        (lambda r: with_neighbour(r, 2, mask_public=r.neighbours[1].mask_public), "is not in the roster"),
    ],
)
def test_rosters_that_do_not_hold_together(change: Callable[[Roster], Roster], complaint: str) -> None:
    assert complaint in lie(change)


def test_degree_that_no_message_holds() -> None:
    held = Round(SIZE, planned(goal_count=60_000)).until_advertised()
    roster = replace(held.roster(ME), size=60_000, degree=NEIGHBOURS_MAX + 2, threshold=600)
    assert "more than a message holds" in refused(held.members[ME], roster, DeclineReason.ROSTER_UNSOUND)


def forge(index: int, make: Callable[[Round], Any]) -> str:
    """A roster whose tree is right, over an entry that is not."""
    held, member = advertised()
    entry = make(held)
    roster = held.forged_roster(ME, lambda entries: entries.__setitem__(index, entry))
    return refused(member, roster, DeclineReason.ROSTER_UNSOUND)


def test_invented_device_of_another_registrar() -> None:
    other = issue_identity(create_authority("Other", now=START), identity_id="device-003", role="device", now=START)
    keys = client.round_keys(bytes(32))
    complaint = forge(
        3, lambda held: signed_entry("device-003", other.certificate_der, keys, held.config.context, other.sign)
    )
    assert "not by the registrar" in complaint


def test_neighbour_whose_certificate_is_no_devices() -> None:
    boss = identity("coordinator", "coordinator")
    keys = client.round_keys(bytes(32))
    complaint = forge(
        3, lambda held: signed_entry("device-003", boss.certificate_der, keys, held.config.context, boss.sign)
    )
    assert "role coordinator" in complaint


def test_neighbour_whose_certificate_has_expired() -> None:
    short = issue_identity(
        authority(), identity_id="device-003", role="device", now=START - 10 * 86_400, lifetime_days=1
    )  # fmt: skip
    keys = client.round_keys(bytes(32))
    complaint = forge(
        3, lambda held: signed_entry("device-003", short.certificate_der, keys, held.config.context, short.sign)
    )
    assert "expired" in complaint


def test_neighbour_whose_certificate_is_garbage() -> None:
    keys = client.round_keys(bytes(32))
    complaint = forge(
        3, lambda held: signed_entry("x", bytes(3_000), keys, held.config.context, lambda data: bytes(64))
    )
    assert "over the limit" in complaint


def test_keys_that_their_owner_did_not_sign() -> None:
    complaint = forge(3, lambda held: replace(held.entry("device-003"), message=held.entry("device-004").message))
    assert "signature" in complaint


def test_keys_signed_for_another_plan_or_model() -> None:
    assert "signature" in forge(3, lambda held: held.entry("device-003", context=bytes(32)))


@pytest.mark.parametrize("index", [3, 7])
def test_one_device_twice(index: int) -> None:
    assert "order of the devices" in forge(index, lambda held: held.entry("device-005"))


def test_this_device_as_its_own_neighbour() -> None:
    assert "order of the devices" in forge(3, lambda held: held.entry(ME))


def test_roster_without_this_device() -> None:
    held, member = advertised()
    roster = held.forged_roster(ME, lambda entries: entries.__setitem__(0, held.entry("device-050")))
    assert "not at its index" in refused(member, roster, DeclineReason.ROSTER_UNSOUND)


def test_other_keys_under_this_devices_name() -> None:
    held, member = advertised()
    roster = held.forged_roster(ME, lambda entries: entries.__setitem__(0, held.entry(ME)))
    assert "not at its index" in refused(member, roster, DeclineReason.ROSTER_UNSOUND)


@pytest.mark.parametrize("which", ["channel", "mask"])
def test_keys_that_give_everybody_the_same_secret(which: str) -> None:
    """Points of low order: refused before anything is sent, not when the masks are made."""

    def make(held: Round) -> Any:
        keys = client.round_keys(bytes(32))
        pair = getattr(keys, which)
        object.__setattr__(pair, "public", bytes(32))
        return held.entry("device-003", keys=keys)

    assert "low order" in forge(3, make)


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


def mislead(change: Callable[[ShareDelivery], ShareDelivery]) -> str:
    held, member = shared()
    return refused(member, change(held.delivery(ME)), DeclineReason.SURVIVORS_UNSOUND)


def all_but(*missing: int) -> Bitmap:
    return bitmap(set(range(SIZE)) - set(missing), SIZE)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: replace(d, sharers=all_but(0)), "set of those who shared"),
        (lambda d: replace(d, sharers=bitmap({0, 1, 2}, SIZE)), "set of those who shared"),
        (lambda d: replace(d, sharers=Bitmap(b"")), "set of those who shared"),
        (lambda d: replace(d, sharers=Bitmap(d.sharers + b"\0")), "set of those who shared"),
        (lambda d: replace(d, sharers=bitmap({0, 1, 2, 3, 4}, SIZE)), "only 4 neighbours"),
        (lambda d: replace(d, sharers=all_but(5)), "not those of the neighbours"),
        (lambda d: replace(d, indices=d.indices[:-1]), "not those of the neighbours"),
        (lambda d: replace(d, indices=d.indices[::-1]), "not those of the neighbours"),
        (lambda d: replace(d, indices=(0, *d.indices[1:])), "not those of the neighbours"),
        (lambda d: replace(d, boxes=d.boxes[:-1]), "not those of the neighbours"),
        (lambda d: replace(d, boxes=b""), "not those of the neighbours"),
        (lambda d: replace(d, boxes=d.boxes[80:] + d.boxes[:80]), "only 0 boxes"),
        (lambda d: replace(d, boxes=bytes(len(d.boxes))), "only 0 boxes"),
        (lambda d: replace(d, boxes=d.boxes[80:160] + d.boxes[:80] + d.boxes[160:]), "only 5 boxes"),
    ],
)
def test_boxes_that_are_not_right(change: Callable[[ShareDelivery], ShareDelivery], complaint: str) -> None:
    assert complaint in mislead(change)


def test_boxes_for_another_device() -> None:
    held, member = shared()
    other = held.delivery(device_name(1))
    mixed = replace(held.delivery(ME), boxes=other.boxes)
    assert "only 0 boxes" in refused(member, mixed, DeclineReason.SURVIVORS_UNSOUND)


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


def deceive(change: Callable[[Survivors], Survivors]) -> str:
    held, member = reported()
    return refused(member, change(held.survivors), DeclineReason.SURVIVORS_UNSOUND)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: replace(s, survivors=all_but(0)), "not among those who shared"),
        (lambda s: replace(s, survivors=bitmap({0, 1, 2}, SIZE)), "3 survivors; the plan promised 4"),
        (lambda s: replace(s, survivors=bitmap({0}, SIZE)), "1 survivors"),
        (lambda s: replace(s, survivors=all_but(1, 2)), "only 5 neighbours survive"),
        (lambda s: replace(s, sharers=all_but(7)), "not the roster and the sharers"),
        (lambda s: replace(s, sharers=all_but(7), survivors=all_but(7)), "not the roster and the sharers"),
        (lambda s: replace(s, root=Digest(bytes(32))), "not the roster and the sharers"),
        (lambda s: replace(s, survivors=Bitmap(b"")), "not among those who shared"),
        (lambda s: replace(s, survivors=Bitmap(s.survivors + b"\1")), "not among those who shared"),
    ],
)
def test_survivors_that_are_not_acceptable(change: Callable[[Survivors], Survivors], complaint: str) -> None:
    assert complaint in deceive(change)


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


def test_a_roster_in_an_order_of_the_coordinators_choice() -> None:
    """The order decides who is whose neighbour."""

    def swap(entries: list[Any]) -> None:
        entries[3], entries[4] = entries[4], entries[3]

    held, member = advertised()
    complaint = refused(member, held.forged_roster(ME, swap), DeclineReason.ROSTER_UNSOUND)
    assert "order of the devices" in complaint
