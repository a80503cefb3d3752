"""Devices that misbehave towards the round: each is refused by name and changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.rounds import events, transitions
from coordinator.rounds.events import Accumulate, CheckedIn, Fault, Refuse, Release, Send
from coordinator.rounds.states import Abandoned, Advertising, Releasing, Reporting, Selecting, Sharing, Unmasking
from coordinator.service.release import unmask
from edge_sdk.errors import RemoteProtocolError
from edge_sdk.protocol.messages import (
    AbandonReason,
    AdvertiseKeys,
    BlobRef,
    Decline,
    DeclineReason,
    Digest,
    MaskedInput,
    Outcome,
    PublicKey,
    Receipt,
    ReceiptStatus,
    Rejection,
    RejectionReason,
    Roster,
    RoundId,
    ShareDelivery,
    Signature,
    UnmaskingShares,
)
from edge_sdk.secagg import client, modular
from tests.simulation.world import device_name
from tests.unit.cohort import NOW, PLAN, Round, entropy, planned, verify_device

SIZE = 8
ME, YOU = device_name(0), device_name(1)
STRANGER = "device-070"


def refused(held: Round, name: str, message: Any, fault: Fault) -> None:
    """The message must be refused with this fault and leave the state alone; who is not in the round is told so."""
    before = held.state
    expected: tuple[events.Effect, ...] = (Refuse(name, fault),)
    if fault is Fault.NOT_SELECTED and not isinstance(message, MaskedInput | UnmaskingShares):
        expected += (Send(name, Outcome(PLAN.rid, False, AbandonReason.NONE, 0)),)
    assert held.tell(name, message) == expected
    assert held.state is before


def selected() -> Round:
    held = Round(SIZE)
    held.select()
    assert isinstance(held.state, Advertising)
    return held


# ---- who may speak


def test_strangers_are_not_selected_at_any_stage() -> None:
    for held in (selected(), Round(SIZE).until_advertised(), Round(SIZE).until_shared(), Round(SIZE).until_reported()):
        for message in (
            Decline(PLAN.rid, DeclineReason.TRAINING_FAILED, ""),
            AdvertiseKeys(PLAN.rid, PublicKey(bytes(32)), PublicKey(bytes(32)), Signature(bytes(64))),
        ):
            refused(held, STRANGER, message, Fault.NOT_SELECTED)


def test_nobody_is_selected_before_selection_closes() -> None:
    held = Round(SIZE)
    held.state, _ = transitions.step(held.state, CheckedIn(ME, b"certificate"), NOW, verify_device)
    refused(held, ME, Decline(PLAN.rid, DeclineReason.TRAINING_FAILED, ""), Fault.NOT_SELECTED)


def test_other_rounds_are_refused() -> None:
    for held in (selected(), Round(SIZE).until_reported()):
        refused(held, ME, Decline(RoundId(bytes(16)), DeclineReason.TRAINING_FAILED, ""), Fault.WRONG_ROUND)


def test_a_second_check_in_changes_nothing_or_brings_what_is_missing() -> None:
    held = Round(SIZE)
    event = CheckedIn(ME, b"certificate")
    held.state, _ = transitions.step(held.state, event, NOW, verify_device)
    before = held.state
    assert transitions.step(before, event, NOW + 1, verify_device) == (before, ())
    held = selected()
    before = held.state
    after, effects = transitions.step(before, event, NOW, verify_device)
    assert (after, effects) == (before, (Send(ME, PLAN),))


@pytest.mark.parametrize(
    ("taken", "reason"), [(20, RejectionReason.ROUND_FULL), (21, RejectionReason.ROUND_IN_PROGRESS)]
)
def test_check_ins_beyond_the_goal_are_told_when_to_come_again(taken: int, reason: RejectionReason) -> None:
    """The goal count closes selection at once, so that a full round is one in progress; both are said."""
    config = Round(1).config
    state = transitions.open_round(config, NOW)
    if taken == 20:
        full = {device_name(n): b"" for n in range(PLAN.goal_count)}
        assert isinstance(state, Selecting)
        after, effects = transitions._check_in(replace(state, checked_in=full), CheckedIn(STRANGER, b""), NOW)
    else:
        for n in range(PLAN.goal_count):
            state, _ = transitions.step(state, CheckedIn(device_name(n), b""), NOW, verify_device)
        assert isinstance(state, Advertising)
        after, effects = transitions.step(state, CheckedIn(STRANGER, b""), NOW, verify_device)
    (effect,) = effects
    assert isinstance(effect, Send)
    assert isinstance(effect.message, Rejection)
    assert effect.message.reason is reason
    assert effect.message.retry_after_s > 0
    assert type(after) in (Selecting, Advertising)


# ---- stage 1


def advertisement(held: Round, name: str = ME, **changes: Any) -> AdvertiseKeys:
    return replace(held.entry(name).message, **changes)


def test_keys_without_a_good_signature_are_refused() -> None:
    held = selected()
    refused(held, ME, advertisement(held, signature=Signature(bytes(64))), Fault.BAD_SIGNATURE)
    refused(held, ME, advertisement(held, name=YOU), Fault.BAD_SIGNATURE)
    other_context = held.entry(ME, context=bytes(32)).message
    refused(held, ME, other_context, Fault.BAD_SIGNATURE)


@pytest.mark.parametrize("which", ["channel", "mask"])
def test_keys_of_low_order_are_refused(which: str) -> None:
    """One of them in a roster would stop every neighbour."""
    held = selected()
    keys = client.round_keys(entropy(ME, 1))
    object.__setattr__(getattr(keys, which), "public", b"\1" + bytes(31))
    refused(held, ME, held.entry(ME, keys=keys).message, Fault.BAD_KEY)


def test_keys_are_advertised_once() -> None:
    held = selected()
    first = advertisement(held)
    held.tell(ME, first)
    before = held.state
    assert held.tell(ME, first) == ()
    assert held.state is before
    other = held.entry(ME, keys=client.round_keys(entropy(ME, 5))).message
    refused(held, ME, other, Fault.CHANGED_ITS_MIND)


# ---- stage 3


def test_boxes_for_others_than_the_neighbours_are_refused() -> None:
    held = Round(SIZE).until_advertised()
    message = held.share([ME])[ME]
    for indices in ((), message.indices[1:], message.indices[::-1], (*message.indices[:-1], 0)):
        refused(held, ME, replace(message, indices=indices), Fault.NOT_THE_NEIGHBOURS)
    for boxes in (b"", message.boxes[:-1], message.boxes + b"\0"):
        refused(held, ME, replace(message, boxes=boxes), Fault.WRONG_SIZE)
    held.tell(ME, message)
    refused(held, ME, replace(message, commitment=Digest(bytes(32))), Fault.CHANGED_ITS_MIND)
    refused(held, ME, replace(message, boxes=bytes(len(message.boxes))), Fault.CHANGED_ITS_MIND)


# ---- stage 4


def test_masked_inputs_are_taken_once_and_whole() -> None:
    held = Round(SIZE).until_shared()
    message = held.report([ME])[ME]
    for size in (0, 63, 65, 2**40):
        refused(held, ME, replace(message, vector=BlobRef(message.vector.sha256, size)), Fault.WRONG_SIZE)
    effects = held.tell(ME, message)
    receipt = Receipt(PLAN.rid, message.vector.sha256, ReceiptStatus.ACCEPTED)
    assert effects == (Accumulate(ME), Send(ME, receipt))
    before = held.state
    assert held.tell(ME, message) == (Send(ME, replace(receipt, status=ReceiptStatus.DUPLICATE)),)
    assert held.state is before
    other = replace(message, vector=BlobRef(Digest(bytes(32)), message.vector.size_bytes))
    refused(held, ME, other, Fault.CHANGED_ITS_MIND)


def test_a_masked_input_of_one_who_did_not_share_is_refused() -> None:
    held = Round(SIZE).until_shared([device_name(n) for n in range(1, SIZE)])
    message = MaskedInput(PLAN.rid, BlobRef(Digest(bytes(32)), 40), b"")
    refused(held, ME, message, Fault.NOT_SELECTED)


def test_a_masked_input_offered_at_the_wrong_stage_is_refused() -> None:
    held = Round(SIZE).until_advertised()
    message = MaskedInput(PLAN.rid, BlobRef(Digest(bytes(32)), 40), b"")
    assert transitions.refusal_of_input(held.state, ME, message, NOW, verify_device) == (Refuse(ME, Fault.WRONG_STAGE),)
    for known in (held, Round(SIZE).until_shared(), Round(SIZE).until_reported()):
        said = transitions.refusal_of_input(known.state, STRANGER, message, NOW, verify_device)
        assert said[0] == Refuse(STRANGER, Fault.NOT_SELECTED)
    wrong_round = replace(message, rid=RoundId(bytes(16)))
    assert transitions.refusal_of_input(held.state, ME, wrong_round, NOW, verify_device) == (
        Refuse(ME, Fault.WRONG_ROUND),
    )


def test_after_reporting_a_masked_input_is_late_or_brings_the_survivors() -> None:
    names = [device_name(n) for n in range(SIZE - 1)]
    held = Round(SIZE)
    held.until_shared()
    everyone = held.report()
    for name in names:
        held.vectors[name] = modular.unpack(everyone[name].inline, PLAN.dimension, PLAN.bits)
        held.tell(name, everyone[name])
    assert isinstance(held.state, Reporting)
    held.tick(held.state.opened_at + 10_000)
    assert isinstance(held.state, Unmasking)
    late = device_name(SIZE - 1)
    before = held.state
    assert held.tell(late, everyone[late]) == (
        Send(late, Receipt(PLAN.rid, everyone[late].vector.sha256, ReceiptStatus.LATE)),
    )
    duplicate = Receipt(PLAN.rid, everyone[ME].vector.sha256, ReceiptStatus.DUPLICATE)
    asked_again = replace(everyone[ME], inline=b"")
    assert held.tell(ME, asked_again) == (Send(ME, duplicate), Send(ME, held.survivors))
    assert held.state is before
    held.tell(ME, held.answer([ME])[ME])
    assert held.tell(ME, asked_again) == (Send(ME, duplicate),)
    other = replace(everyone[ME], vector=BlobRef(Digest(bytes(32)), 40))
    assert held.tell(ME, other) == (Send(ME, Receipt(PLAN.rid, Digest(bytes(32)), ReceiptStatus.LATE)),)


# ---- stage 6


def test_answers_must_be_to_the_set_and_of_the_neighbours() -> None:
    held = Round(SIZE).until_reported()
    message = held.answer([ME])[ME]
    refused(held, ME, replace(message, survivors_digest=Digest(bytes(32))), Fault.WRONG_SURVIVORS)
    for indices in ((0, *message.indices[1:]), (1, 1, *message.indices[2:]), (99,), (2**32 - 1,)):
        refused(held, ME, replace(message, indices=indices), Fault.NOT_THE_NEIGHBOURS)
    for shares in (b"", message.shares[:-1], message.shares + b"\0"):
        refused(held, ME, replace(message, shares=shares), Fault.WRONG_SIZE)
    held.tell(ME, message)
    refused(held, ME, replace(message, shares=bytes(len(message.shares))), Fault.CHANGED_ITS_MIND)


def test_one_who_is_not_a_survivor_answers_nothing() -> None:
    held = Round(SIZE).until_reported([device_name(n) for n in range(SIZE - 1)])
    message = held.answer([ME])[ME]
    refused(held, device_name(SIZE - 1), message, Fault.NOT_SELECTED)


# ---- those who fall behind, and those who leave


def test_a_repetition_brings_what_the_device_lacks() -> None:
    held = Round(SIZE).until_advertised()
    (effect,) = held.tell(ME, held.cohort.entries[0].message)
    assert isinstance(effect, Send)
    assert isinstance(effect.message, Roster)
    held = Round(SIZE).until_shared()
    (effect,) = held.tell(ME, held.state.shared[0])  # type: ignore[union-attr]
    assert isinstance(effect, Send)
    assert isinstance(effect.message, ShareDelivery)
    held = Round(SIZE).until_reported()
    (effect,) = held.tell(ME, held.state.shared[0])  # type: ignore[union-attr]
    assert effect == Send(ME, held.survivors)


def test_a_decline_is_taken_once() -> None:
    decline = Decline(PLAN.rid, DeclineReason.TRAINING_FAILED, "")
    for held in (selected(), Round(SIZE).until_advertised(), Round(SIZE).until_shared(), Round(SIZE).until_reported()):
        assert held.tell(ME, decline) == ()
        left = held.state
        assert held.tell(ME, decline) == ()
        assert held.state is left


def test_a_stage_does_not_wait_for_those_who_declined() -> None:
    held = Round(SIZE).until_shared()
    messages = held.report()
    for name in list(messages)[:-1]:
        held.tell(name, messages[name])
    assert isinstance(held.state, Reporting)
    effects = held.tell(device_name(SIZE - 1), Decline(PLAN.rid, DeclineReason.SURVIVORS_UNSOUND, ""))
    assert isinstance(held.state, Unmasking)
    assert {e.device_id for e in effects if isinstance(e, Send)} == set(list(messages)[:-1])


def test_all_declining_ends_the_round() -> None:
    held = selected()
    effects = [held.tell(name, Decline(PLAN.rid, DeclineReason.COHORT_TOO_SMALL, "")) for name in held.members][-1]
    assert isinstance(held.state, Abandoned)
    assert held.state.reason is AbandonReason.TOO_FEW_KEYS
    outcome = Outcome(PLAN.rid, False, AbandonReason.TOO_FEW_KEYS, 0)
    assert set(effects) == {Send(name, outcome) for name in held.members}


# ---- bad shares


def answered(spoilers: int, spoil: Any) -> Round:
    """A round of 16 devices whose first `spoilers` answers are changed before they are sent."""
    held = Round(16, planned(goal_count=16)).until_reported()
    for number, (name, message) in enumerate(held.answer().items()):
        held.tell(name, spoil(message) if number < spoilers else message)
    assert isinstance(held.state, Releasing)
    return held


def garbage(message: UnmaskingShares) -> UnmaskingShares:
    return replace(message, shares=bytes(byte ^ 0x55 for byte in message.shares))


@pytest.mark.parametrize("spoilers", [0, 1, 2])
def test_a_few_bad_shares_are_found_and_left_out(spoilers: int) -> None:
    held = answered(spoilers, garbage)
    assert isinstance(held.state, Releasing)
    clean = answered(0, garbage)
    assert isinstance(clean.state, Releasing)
    found, liars = unmask(held.state.unmasking, held.total())
    assert np.array_equal(found, unmask(clean.state.unmasking, clean.total())[0])
    # Fault.BAD_SHARES: counted when the release ends.
    assert liars == frozenset(range(spoilers))


def test_many_bad_shares_end_the_round() -> None:
    held = answered(8, garbage)
    assert isinstance(held.state, Releasing)
    with pytest.raises(RemoteProtocolError, match="not enough good shares"):
        unmask(held.state.unmasking, held.total())


def test_a_device_that_shared_a_lie_can_only_spoil_the_round() -> None:
    """Its own commitment shows it: no wrong sum comes out."""
    held = Round(SIZE)
    held.until_advertised()
    shares = held.share()
    for name, message in shares.items():
        held.tell(name, replace(message, commitment=Digest(bytes(32))) if name == ME else message)
    for name, report in held.report().items():
        held.vectors[name] = modular.unpack(report.inline, PLAN.dimension, PLAN.bits)
        held.tell(name, report)
    for name, answer in held.answer().items():
        held.tell(name, answer)
    assert isinstance(held.state, Releasing)
    with pytest.raises(RemoteProtocolError, match="not enough good shares"):
        unmask(held.state.unmasking, held.total())


# ---- the order of the roster


def test_arrival_decides_nothing() -> None:
    first, second = Round(SIZE), Round(SIZE)
    for held, order in ((first, 1), (second, -1)):
        held.select()
        for name, message in list(held.advertise().items())[::order]:
            held.tell(name, message)
    assert isinstance(first.state, Sharing)
    assert first.cohort.root == second.cohort.root
    assert [e.device_id for e in second.cohort.entries] == sorted(second.members)


def test_an_effect_is_for_the_driver() -> None:
    held = Round(SIZE).until_reported()
    assert [held.tell(name, answer) for name, answer in held.answer().items()][-1] == (Release(),)


def test_nothing_is_said_of_the_end_before_it_is_known() -> None:
    held = Round(SIZE).until_reported()
    answers = held.answer()
    for name, answer in answers.items():
        held.tell(name, answer)
    assert isinstance(held.state, Releasing)
    before = held.state
    assert held.tell(ME, answers[ME]) == ()
    assert held.tell(ME, before.unmasking.shared[0]) == ()
    assert held.state is before


def test_messages_after_the_end_are_answered_with_the_outcome() -> None:
    held = selected()
    held.state, _ = transitions.step(
        held.state, events.Stopped(AbandonReason.CANCELLED), NOW, verify_device
    )  # fmt: skip
    decline = Decline(PLAN.rid, DeclineReason.TRAINING_FAILED, "")
    assert held.tell(ME, decline) == (Send(ME, Outcome(PLAN.rid, False, AbandonReason.CANCELLED, 0)),)
    assert held.tell(ME, replace(decline, rid=RoundId(bytes(16)))) == ()


def test_every_fault_has_a_test() -> None:
    text = Path(__file__).read_text()
    assert all(f"Fault.{fault.name}" in text for fault in Fault)
