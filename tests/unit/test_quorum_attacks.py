"""A quorum keeps the survivors one set: a coordinator that shows two, or forges one, gets nothing out of any device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from coordinator.rounds import closing, outbox, transitions
from coordinator.rounds.events import Fault, Refuse, Send, Tick
from coordinator.rounds.states import Abandoned, Endorsing, Releasing, Reporting, Unmasking
from coordinator.service.release import unmask
from edge_sdk.errors import RemoteProtocolError
from edge_sdk.protocol import checks, session
from edge_sdk.protocol.checks import Unsound, sharers_digest, survivors_digest
from edge_sdk.protocol.messages import (
    AbandonReason,
    Bitmap,
    Consistency,
    Decline,
    DeclineReason,
    Digest,
    Endorsement,
    MaskedInput,
    Quorum,
    Receipt,
    ReceiptStatus,
    Roster,
    Signature,
    Survivors,
    UnmaskingShares,
    bitmap,
)
from edge_sdk.secagg import client, graph, modular
from tests.simulation.world import device_name, identity
from tests.unit.cohort import NOW, PLAN, Member, Round, make_environment, planned, said, verify_device

SIZE = 60
BY_QUORUM = planned(
    goal_count=SIZE, min_reports=20, corrupt_share=0.05, dropout_share=0.2, consistency=Consistency.QUORUM
)
SMALL = planned(consistency=Consistency.QUORUM)


def reported() -> Round:
    """Sixty devices on a ring reported; the committee has not been asked."""
    held = Round(SIZE, BY_QUORUM).until_reported()
    assert isinstance(held.state, Endorsing)
    assert held.cohort.parameters.degree < SIZE // 2
    return held


def on_committee(held: Round) -> list[Member]:
    return [held[index] for index in sorted(held.cohort.committee)]


def beside_committee(held: Round) -> list[Member]:
    return [held[index] for index in range(held.cohort.size) if index not in held.cohort.committee]


def dead(held: Round, *indices: int) -> Survivors:
    """The survivors, but for these."""
    alive = set(range(held.cohort.size)) - set(indices)
    return replace(held.survivors, survivors=bitmap(alive, held.cohort.size))


def declined(member: Member, message: Any) -> str:
    """The device leaves the round, says why, and says nothing else."""
    (effect,) = member.hears(message)
    assert isinstance(effect, session.Send)
    assert isinstance(effect.message, Decline)
    assert effect.message.reason is DeclineReason.SURVIVORS_UNSOUND
    assert isinstance(member.state, session.Ended)
    return effect.message.detail


# ---- the honest way


def test_a_quorum_unmasks_what_the_threshold_does() -> None:
    held = reported()
    for name, message in held.endorse().items():
        held.tell(name, message)
    assert isinstance(held.state, Unmasking)
    assert len(held.state.endorsements) == held.cohort.quorum < len(held.cohort.committee)
    for name, answer in held.answer().items():
        held.tell(name, answer)
    assert isinstance(held.state, Releasing)
    total, liars = unmask(held.state.unmasking, held.total())
    assert total.any()
    assert liars == frozenset()
    # What is left when all masks are off is small: sixty clipped updates and their noise.
    assert np.abs(modular.centre(total, BY_QUORUM.bits)).max() < 1 << 14


def test_an_endorsement_is_repeated_and_gives_way_to_the_answer() -> None:
    held = reported()
    member = on_committee(held)[0]
    first = said(member.hears(held.survivors), Endorsement)
    assert isinstance(member.state, session.Endorsed)
    assert session.pending(member.state) == first
    assert session.resume(member.state) == (session.Send(first),)
    assert said(member.hears(held.survivors), Endorsement) == first
    assert session.masked_vector(member.state) is not None
    for name, message in held.endorse().items():
        held.tell(name, message)
    answer = said(member.hears(held.quorum(member.name)), UnmaskingShares)
    assert said(member.hears(held.quorum(member.name)), UnmaskingShares) == answer
    assert session.pending(member.state) == answer
    assert said(member.hears(held.survivors), UnmaskingShares) == answer


# ---- two sets of survivors


def test_two_sets_of_survivors_get_one_quorum_at_most_and_the_other_gets_no_share() -> None:
    """The coordinator wants both secrets of device `victim`; three colluders endorse and answer whatever it likes."""
    held = reported()
    cohort = held.cohort
    committee = sorted(cohort.committee)
    victim = next(i for i in range(SIZE) if i not in cohort.committee)
    colluders = set(committee[:3])
    alive, gone = held.survivors, dead(held, victim)
    endorsed: dict[str, dict[int, Endorsement]] = {"alive": {}, "gone": {}}
    for index in colluders:
        for name, survivors in (("alive", alive), ("gone", gone)):
            signature = identity(device_name(index)).sign(
                client.endorsement(held.config.context, survivors_digest(survivors))
            )
            endorsed[name][index] = Endorsement(BY_QUORUM.rid, survivors_digest(survivors), Signature(signature))
    for place, index in enumerate(i for i in committee if i not in colluders):
        # As even a split as there is.
        name, survivors, other = ("alive", alive, gone) if place % 2 else ("gone", gone, alive)
        endorsed[name][index] = said(held[index].hears(survivors), Endorsement)
        with pytest.raises(RemoteProtocolError, match="both secrets of one device"):
            held[index].hears(other)
    assert min(len(ones) for ones in endorsed.values()) < cohort.quorum

    # It shows what it has, to whom it pleases: padded with repetitions where that is too little.
    shares = {"self seed": 0, "mask key": 0}
    for holder in cohort.neighbours[victim]:
        if holder in colluders:
            shares["self seed"] += 1
            shares["mask key"] += 1
            continue
        name, survivors = ("alive", alive) if holder % 2 else ("gone", gone)
        padded = (list(endorsed[name].items()) * 2)[: cohort.quorum]
        message = quorum_of(held, holder, survivors, dict(padded), repeat=padded)
        try:
            effects = held[holder].hears(message)
        except RemoteProtocolError:
            continue
        for effect in effects:
            if isinstance(effect, session.Send) and isinstance(effect.message, UnmaskingShares):
                shares["self seed" if name == "alive" else "mask key"] += 1
    assert min(shares.values()) < cohort.parameters.threshold
    assert min(shares.values()) <= 3


def quorum_of(
    held: Round,
    index: int,
    survivors: Survivors,
    endorsements: dict[int, Endorsement],
    repeat: list[tuple[int, Endorsement]] | None = None,
) -> Quorum:
    """The message that a coordinator with these endorsements can make for one device."""
    state = held.state
    assert isinstance(state, Endorsing)
    unmasking = closing._unmasking(replace(state, survivors=survivors, endorsements=endorsements), NOW)
    message = outbox.quorum_for(unmasking, index)
    if repeat is None or len(repeat) == len(endorsements):
        return message
    standing = {member.index: member for member in message.members}
    return replace(
        message,
        members=tuple(standing[i] for i, _ in repeat),
        endorsements=b"".join(one.signature for _, one in repeat),
    )


def test_a_member_that_endorsed_one_set_takes_no_quorum_for_another() -> None:
    held = reported()
    member = on_committee(held)[0]
    said(member.hears(held.survivors), Endorsement)
    before = member.state
    other = quorum_of(held, held.index(member.name), dead(held, 5), {})
    with pytest.raises(RemoteProtocolError, match="both secrets of one device"):
        member.hears(other)
    assert member.state is before


def test_survivors_alone_are_answered_by_nobody() -> None:
    held = reported()
    for member in beside_committee(held)[:3]:
        before = member.state
        with pytest.raises(RemoteProtocolError, match="not on the committee"):
            member.hears(held.survivors)
        assert member.state is before
    for member in on_committee(held)[:3]:
        (effect,) = member.hears(held.survivors)
        assert isinstance(effect, session.Send)
        assert isinstance(effect.message, Endorsement)


# ---- a quorum that is none


@cache
def endorsed() -> Round:
    """A round with a quorum. Nobody has heard of it yet; tests copy the members that they ask."""
    held = reported()
    for name, message in held.endorse().items():
        held.tell(name, message)
    return held


def asked(held: Round) -> Member:
    """A device beside the committee, as it was before anybody asked it."""
    member = beside_committee(held)[0]
    return Member(member.name, member.environment, member.state, member.steps)


def lie(change: Callable[[Quorum], Quorum]) -> str:
    held = endorsed()
    member = asked(held)
    return declined(member, change(held.quorum(member.name)))


def test_an_honest_quorum_is_answered() -> None:
    held = endorsed()
    member = asked(held)
    assert said(member.hears(held.quorum(member.name)), UnmaskingShares).indices


def other_signature(position: int) -> Callable[[bytes], bytes]:
    """Another member's signature in place of one's own."""
    return lambda column: (
        column[: 64 * position] + column[64 * position + 64 : 64 * position + 128] + (column[64 * position + 64 :])
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda q: replace(q, members=q.members[1:], endorsements=q.endorsements[64:]), "no quorum"),
        (lambda q: replace(q, members=(), endorsements=b""), "no quorum"),
        (lambda q: replace(q, members=(*q.members[1:], q.members[1])), "no quorum"),
        (lambda q: replace(q, endorsements=q.endorsements[:-1]), "missing"),
        (lambda q: replace(q, endorsements=q.endorsements + bytes(64)), "missing"),
        (lambda q: replace(q, endorsements=bytes(len(q.endorsements))), "not good"),
        (lambda q: replace(q, endorsements=q.endorsements[64:] + q.endorsements[:64]), "not good"),
        (lambda q: replace(q, endorsements=other_signature(2)(q.endorsements)), "not good"),
        (lambda q: replace(q, statements=q.statements[:-1]), "missing"),
        (lambda q: replace(q, indices=q.indices[:-1], statements=q.statements[:-64]), "missing"),
        (lambda q: replace(q, indices=q.indices[::-1]), "missing"),
        (lambda q: replace(q, statements=bytes(len(q.statements))), "not good"),
        (lambda q: replace(q, statements=q.statements[64:] + q.statements[:64]), "not good"),
        (lambda q: replace(q, members=(replace(q.members[0], proof=b""), *q.members[1:])), "not in the roster"),
        (
            lambda q: replace(q, members=(replace(q.members[0], certificate=b"x"), *q.members[1:])),
            "not in the roster",
        ),
        (lambda q: replace(q, root=Digest(bytes(32))), "not the roster"),
        (lambda q: replace(q, sharers=Bitmap(bytes(len(q.sharers)))), "not the roster"),
        (lambda q: replace(q, survivors=Bitmap(b"")), "not among those who shared"),
    ],
)
def test_quorums_that_do_not_hold_together(change: Callable[[Quorum], Quorum], complaint: str) -> None:
    assert complaint in lie(change)


def test_an_endorsement_by_one_who_is_not_on_the_committee() -> None:
    """A device of the roster with a good signature, which was not drawn."""
    held = endorsed()
    member = asked(held)
    message = held.quorum(member.name)
    stranger = beside_committee(held)[1]
    index = held.index(stranger.name)
    signed = client.endorsement(held.config.context, survivors_digest(held.survivors))
    forged = replace(
        message,
        members=(outbox._standing(held.cohort, index), *message.members[1:]),
        endorsements=identity(stranger.name).sign(signed) + message.endorsements[64:],
    )
    assert "no quorum" in declined(member, forged)


def test_endorsements_of_another_set_or_another_round() -> None:
    held = endorsed()
    message = held.quorum(asked(held).name)
    for digest, context in (
        (survivors_digest(dead(held, 7)), held.config.context),
        (survivors_digest(held.survivors), bytes(32)),
    ):
        forged = b"".join(
            identity(device_name(member.index)).sign(client.endorsement(context, digest)) for member in message.members
        )
        assert "not good" in declined(asked(held), replace(message, endorsements=forged))


def test_one_device_twice_on_a_committee() -> None:
    """A colluder that stands at two places of the roster signs once."""
    held = Round(8, SMALL).until_advertised()
    entries = list(held.cohort.entries)
    entries[5] = replace(held.entry(device_name(4)), device_id=device_name(4))
    forged = closing.make_cohort(held.config, tuple(entries))
    roster = replace(held.roster(device_name(0), forged), committee=8, quorum=5)
    committee = (2, 3, 4, 5, 6)
    survivors = Survivors(SMALL.rid, forged.root, bitmap(set(range(8)), 8), bitmap(set(range(8)), 8))
    signers = {index: device_name(4) if index == 5 else device_name(index) for index in range(8)}
    alive = tuple(n.index for n in roster.neighbours)
    message = Quorum(
        rid=SMALL.rid,
        root=forged.root,
        sharers=survivors.sharers,
        survivors=survivors.survivors,
        members=tuple(outbox._standing(forged, index) for index in committee),
        endorsements=b"".join(
            identity(signers[i]).sign(client.endorsement(held.config.context, survivors_digest(survivors)))
            for i in committee
        ),
        indices=alive,
        statements=b"".join(
            identity(signers[i]).sign(
                client.statement(held.config.context, forged.root, i, sharers_digest(survivors.sharers))
            )
            for i in alive
        ),
    )
    environment = make_environment(device_name(0))
    with pytest.raises(Unsound, match="stands twice"):
        checks.require_quorum(
            held.config.context,
            device_name(0),
            roster,
            survivors,
            message,
            lambda certificate, signed, signature: environment.verify_peer(certificate, signed, signature, NOW),
        )


def test_a_quorum_where_none_is_asked_for_or_too_early() -> None:
    held = Round(8).until_reported()
    empty = Quorum(PLAN.rid, held.cohort.root, held.survivors.sharers, held.survivors.survivors, (), b"", (), b"")
    with pytest.raises(RemoteProtocolError, match="needs none"):
        held[0].hears(empty)
    early = Round(8, SMALL).until_shared()
    with pytest.raises(RemoteProtocolError, match="before this device's masked input"):
        early[0].hears(replace(empty, root=early.cohort.root))


# ---- rosters and rings


@pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, committee=0, quorum=0),
        lambda r: replace(r, quorum=r.quorum - 1),
        lambda r: replace(r, committee=r.committee + 10),
        lambda r: replace(r, quorum=r.committee + 1),
        lambda r: replace(r, committee=2**32 - 1, quorum=2**32 - 1),
        lambda r: replace(r, committee=1, quorum=1),
    ],
)
def test_committees_that_two_sets_can_get_through(change: Callable[[Roster], Roster]) -> None:
    held = Round(20, replace(SMALL, corrupt_share=0.1)).until_advertised()
    member = held[0]
    effects = member.hears(change(held.roster(member.name)))
    assert "two sets can each have" in said(effects, Decline).detail
    assert isinstance(member.state, session.Ended)
    assert member.state.declined is DeclineReason.ROSTER_UNSOUND


def test_survivors_that_cut_the_ring_are_neither_endorsed_nor_answered() -> None:
    """Every device has neighbours enough; but between two gaps some would be summed alone."""
    held = reported()
    cohort = held.cohort
    order = graph.permutation(SIZE, checks.graph_seed(held.config.context, cohort.root)).tolist()
    run = cohort.parameters.degree // 2
    gaps = set(order[:run]) | set(order[SIZE // 2 : SIZE // 2 + run])
    cut = dead(held, *gaps)
    alive = [member for member in on_committee(held) if held.index(member.name) not in gaps]
    assert "hold the graph together" in declined(alive[0], cut)
    other = next(m for m in beside_committee(held) if held.index(m.name) not in gaps)
    message = quorum_of(held, held.index(other.name), cut, {})
    assert "hold the graph together" in declined(other, message)


def test_a_coordinator_does_not_publish_survivors_that_devices_would_refuse() -> None:
    """It waits for more, and gives the round up where none come, before anybody reveals anything."""
    held = Round(SIZE, BY_QUORUM).until_shared()
    cohort = held.cohort
    order = graph.permutation(SIZE, checks.graph_seed(held.config.context, cohort.root)).tolist()
    run = cohort.parameters.degree // 2
    gaps = set(order[:run]) | set(order[SIZE // 2 : SIZE // 2 + run])
    for name, message in held.report([device_name(i) for i in range(SIZE) if i not in gaps]).items():
        held.tell(name, message)
    assert isinstance(held.state, Reporting)
    held.tick(held.state.opened_at + held.config.pacing.report_timeout_s)
    assert isinstance(held.state, Abandoned)
    assert held.state.reason is AbandonReason.TOO_FEW_REPORTS


# ---- what was masked for another U2


def test_the_seed_of_a_device_that_masked_for_another_set_of_sharers_stays_where_it_is() -> None:
    """Its neighbours ask for its own word for which U2 it masked, and get it for another one only."""
    held = Round(8, SMALL).until_shared()
    delivery = held.delivery(device_name(0))
    others = bitmap(set(range(7)), 8)
    position = delivery.indices.index(7)
    boxes = delivery.boxes[: 80 * position] + delivery.boxes[80 * (position + 1) :]
    without = tuple(i for i in delivery.indices if i != 7)
    apart = said(held[0].hears(replace(delivery, sharers=others, indices=without, boxes=boxes)), MaskedInput)
    assert held.tell(device_name(0), apart) == (Refuse(device_name(0), Fault.BAD_SIGNATURE),)
    reports = held.report([device_name(i) for i in range(1, 8)])
    for name, message in reports.items():
        held.tell(name, message)
    assert isinstance(held.state, Reporting)
    # A coordinator that takes it all the same shows its statement to the others, who have it checked.
    lying = replace(held.state, reported={**held.state.reported, 0: apart})
    held.state, _ = transitions.step(lying, Tick(), NOW + 10_000, verify_device)
    for index in sorted(held.cohort.committee - {0}):
        held.tell(device_name(index), said(held[index].hears(held.survivors), Endorsement))
    assert isinstance(held.state, Unmasking)
    detail = declined(held[3], held.quorum(device_name(3)))
    assert "not good" in detail


# ---- what the coordinator refuses


def refused(held: Round, name: str, message: Any, fault: Fault) -> None:
    before = held.state
    assert held.tell(name, message) == (Refuse(name, fault),)
    assert held.state is before


def test_endorsements_are_of_the_committee_and_of_this_set() -> None:
    held = reported()
    member, stranger = on_committee(held)[0], beside_committee(held)[0]
    message = said(member.hears(held.survivors), Endorsement)
    refused(held, stranger.name, message, Fault.NOT_SELECTED)
    refused(held, member.name, replace(message, survivors_digest=Digest(bytes(32))), Fault.WRONG_SURVIVORS)
    refused(held, member.name, replace(message, signature=Signature(bytes(64))), Fault.BAD_SIGNATURE)
    assert held.tell(member.name, message) == ()
    before = held.state
    assert held.tell(member.name, message) == ()
    assert held.state is before
    refused(held, member.name, replace(message, signature=Signature(bytes(64))), Fault.CHANGED_ITS_MIND)


def test_masked_inputs_say_for_which_sharers_they_are() -> None:
    held = Round(8, SMALL).until_shared()
    message = held.report([device_name(0)])[device_name(0)]
    assert len(message.statement) == 64
    for statement in (b"", bytes(64), message.statement[:-1]):
        refused(held, device_name(0), replace(message, statement=statement), Fault.BAD_SIGNATURE)
    assert len(held.tell(device_name(0), message)) == 2
    assert Round(8).until_shared().report([device_name(0)])[device_name(0)].statement == b""


def test_a_repeated_masked_input_brings_a_member_the_survivors() -> None:
    held = reported()
    assert isinstance(held.state, Endorsing)
    member, other = on_committee(held)[0], beside_committee(held)[0]
    for who in (member, other):
        message = held.state.reported[held.index(who.name)]
        receipt = Send(who.name, Receipt(message.rid, message.vector.sha256, ReceiptStatus.DUPLICATE))
        lacking = (Send(who.name, held.survivors),) if who is member else ()
        assert held.tell(who.name, message) == (receipt, *lacking)
    assert {name for name, _ in outbox.outbox(held.state)} == {m.name for m in on_committee(held)}
    held.tell(member.name, said(member.hears(held.survivors), Endorsement))
    assert len(held.tell(member.name, held.state.reported[held.index(member.name)])) == 1


def test_a_stage_closes_with_the_quorum_or_gives_the_round_up() -> None:
    held = reported()
    messages = list(held.endorse().items())
    for name, message in messages[: held.cohort.quorum - 1]:
        held.tell(name, message)
    assert isinstance(held.state, Endorsing)
    waiting = held.state
    assert closing.deadline(waiting) == waiting.opened_at + held.config.pacing.unmask_timeout_s
    name, message = messages[held.cohort.quorum - 1]
    effects = held.tell(name, message)
    assert isinstance(held.state, Unmasking)
    assert sum(isinstance(e, Send) and isinstance(e.message, Quorum) for e in effects) == SIZE
    held.state = waiting
    effects = held.tick(waiting.opened_at + held.config.pacing.unmask_timeout_s)
    assert isinstance(held.state, Abandoned)
    assert held.state.reason is AbandonReason.NO_QUORUM
    assert len(effects) == SIZE
