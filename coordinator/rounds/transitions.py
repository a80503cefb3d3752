"""The round as a function: (state, event, now) -> (state, effects).

Every fault of a device is a counted refusal with a name and leaves the state alone; nothing a device sends can raise
here. A stage closes when all expected have come, when its time is up, or early when nearly all came and then nobody
new for a while (at most half the tolerated dropouts missing), so that the slow are not cut off by the fast. The
journal of accepted events replays to the same state, and `outbox` derives from a state every message that a device
may still need, so no queue of outgoing messages is stored: after a restart the phase is published again, byte for
byte. Knows no clock, store, broker or log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from coordinator.rounds.states import (
    Abandoned,
    Advertising,
    Cohort,
    Committed,
    Entry,
    Releasing,
    Reporting,
    RoundConfig,
    Selecting,
    Sharing,
    State,
    Unmasking,
    config_of,
)
from edge_sdk.errors import RemoteProtocolError
from edge_sdk.privacy.rotate import padded_length
from edge_sdk.protocol.messages import (
    AbandonReason,
    AdvertiseKeys,
    Decline,
    Digest,
    MaskedInput,
    Message,
    Neighbour,
    Outcome,
    PublicKey,
    Receipt,
    ReceiptStatus,
    Rejection,
    RejectionReason,
    Roster,
    RoundId,
    ShareDelivery,
    ShareKeys,
    Survivors,
    UnmaskingShares,
    bitmap,
    members,
)
from edge_sdk.protocol.session import BOX_BYTES, SHARE_BYTES, survivors_digest
from edge_sdk.secagg import client, graph, keys, merkle, modular, suite

_ANY_PRIVATE_KEY = bytes(range(keys.KEY_BYTES))

VerifyPeer = Callable[[bytes, bytes, bytes, float], bool]
"""(certificate DER, message, signature, now) -> whether a good certificate's key signed the message."""


class Fault(StrEnum):
    """Why something a device sent was not taken; counted by name."""

    NOT_SELECTED = "not_selected"
    WRONG_ROUND = "wrong_round"
    WRONG_STAGE = "wrong_stage"
    BAD_SIGNATURE = "bad_signature"
    BAD_KEY = "bad_key"
    NOT_THE_NEIGHBOURS = "not_the_neighbours"
    CHANGED_ITS_MIND = "changed_its_mind"
    WRONG_SIZE = "wrong_size"
    WRONG_SURVIVORS = "wrong_survivors"


STAGE_MESSAGES = (AdvertiseKeys, ShareKeys, MaskedInput, UnmaskingShares, Decline)
"""What a device says inside a round."""

StageMessage = AdvertiseKeys | ShareKeys | MaskedInput | UnmaskingShares | Decline


# ---- events


@dataclass(frozen=True, slots=True)
class CheckedIn:
    """A device whose certificate is good offers itself."""

    device_id: str
    certificate: bytes


@dataclass(frozen=True, slots=True)
class From:
    """An authenticated stage message. A masked input comes here only when its vector is here, verified."""

    device_id: str
    message: StageMessage


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class Released:
    """The masks are off and the new model is stored."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The round cannot go on."""

    reason: AbandonReason


Event = CheckedIn | From | Tick | Released | Stopped


# ---- effects


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to one device."""

    device_id: str
    message: Message


@dataclass(frozen=True, slots=True)
class Accumulate:
    """Add this device's vector to the running sum, in the transaction that records the event."""

    device_id: str


@dataclass(frozen=True, slots=True)
class Release:
    """Take off the masks, decode, apply the server optimizer, then say Released or Stopped."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Count a device's fault."""

    device_id: str
    fault: Fault


Effect = Send | Accumulate | Release | Refuse
Step = tuple[State, tuple[Effect, ...]]


def open_round(config: RoundConfig, now: float) -> State:
    """A round that takes check-ins."""
    return Selecting(config, now, now, {})


def step(state: State, event: Event, now: float, verify_peer: VerifyPeer) -> Step:
    """The next state and what should happen.

    Args:
        state: where the round stands.
        event: what happened.
        now: seconds since the epoch.
        verify_peer: checks the signature over an advertisement.
    """
    if isinstance(state, Committed | Abandoned):
        return state, _after_the_end(state, event)
    match event:
        case Stopped(reason):
            return _abandon(state, reason)
        case Released():
            if not isinstance(state, Releasing):
                return state, ()
            return Committed(state), _outcomes(state.unmasking, True, AbandonReason.NONE)
        case CheckedIn():
            state, effects = _check_in(state, event, now)
        case From():
            state, effects = _take(state, event, now, verify_peer)
        case Tick():
            effects = ()
        case _:
            assert_never(event)
    if isinstance(state, Abandoned):
        return state, effects
    following, more = _close_if_due(state, now)
    return following, effects + more


def deadline(state: State) -> float | None:
    """When the round wants its next Tick, or None."""
    match state:
        case Releasing() | Committed() | Abandoned():
            return None
        case _:
            came, expected = _progress(state)
            due = state.opened_at + _timeout(state)
            if expected and came >= _nearly_all(state.config, expected) and _suffices(state):
                due = min(due, state.last_at + state.config.pacing.quiet_s)
            return due


# ---- taking what comes


def _check_in(state: State, event: CheckedIn, now: float) -> Step:
    task = config_of(state).plan.task
    if not isinstance(state, Selecting):
        if _belongs(state, event.device_id):
            return state, tuple(Send(event.device_id, m) for m in outbox_for(state, event.device_id))
        wait_s = config_of(state).pacing.report_timeout_s
        return state, (Send(event.device_id, Rejection(task, RejectionReason.ROUND_IN_PROGRESS, wait_s / 4, wait_s)),)
    if event.device_id in state.checked_in:
        return state, ()
    if len(state.checked_in) >= state.config.plan.goal_count:
        wait_s = state.config.pacing.report_timeout_s
        return state, (Send(event.device_id, Rejection(task, RejectionReason.ROUND_FULL, wait_s / 4, wait_s)),)
    checked_in = {**state.checked_in, event.device_id: event.certificate}
    return replace(state, checked_in=checked_in, last_at=now), ()


def _belongs(state: State, device_id: str) -> bool:
    match state:
        case Selecting():
            return device_id in state.checked_in
        case Advertising():
            return device_id in state.selected
        case Sharing() | Reporting() | Unmasking():
            return device_id in state.cohort.index_of
        case Releasing():
            return device_id in state.unmasking.cohort.index_of
        case Committed() | Abandoned():
            return False


def _take(state: State, event: From, now: float, verify_peer: VerifyPeer) -> Step:
    device_id, message = event.device_id, event.message
    if message.rid != config_of(state).plan.rid:
        return state, (Refuse(device_id, Fault.WRONG_ROUND),)
    if not _belongs(state, device_id) or isinstance(state, Selecting):
        return state, (Refuse(device_id, Fault.NOT_SELECTED), _without(state, device_id))
    if isinstance(message, Decline):
        return _drop(state, device_id), ()
    match state, message:
        case Advertising(), AdvertiseKeys():
            return _take_keys(state, device_id, message, now, verify_peer)
        case Sharing(), ShareKeys():
            return _take_shares(state, device_id, message, now)
        case Reporting(), MaskedInput():
            return _take_input(state, device_id, message, now)
        case Unmasking(), UnmaskingShares():
            return _take_answer(state, device_id, message, now)
        case ((Unmasking() | Releasing()), MaskedInput()):
            return state, _too_late(state, device_id, message)
        case Releasing(), _:
            return state, ()  # How it ends is not known yet; everybody hears when it is.
        case _:
            # A stage that is over: a repetition crossing our answer, or a device that fell behind. Either way it
            # gets what it lacks.
            lacking = tuple(Send(device_id, m) for m in outbox_for(state, device_id))
            return state, lacking or (_without(state, device_id),)


def _without(state: State, device_id: str) -> Effect:
    """What a device hears that fell behind: for it the round is over, and it need not repeat itself."""
    return Send(device_id, Outcome(config_of(state).plan.rid, False, AbandonReason.NONE, 0))


def _drop(state: State, device_id: str) -> State:
    match state:
        case Advertising() if device_id not in state.gone:
            return replace(state, gone=state.gone | {device_id})
        case Sharing() | Reporting() | Unmasking() if state.cohort.index_of[device_id] not in state.gone:
            return replace(state, gone=state.gone | {state.cohort.index_of[device_id]})
        case _:
            return state


def _take_keys(state: Advertising, device_id: str, message: AdvertiseKeys, now: float, verify_peer: VerifyPeer) -> Step:
    known = state.advertised.get(device_id)
    if known is not None:
        return state, () if known == message else (Refuse(device_id, Fault.CHANGED_ITS_MIND),)
    signed = client.advertisement(state.config.context, message.channel_public, message.mask_public)
    if not verify_peer(state.selected[device_id], signed, message.signature, now):
        return state, (Refuse(device_id, Fault.BAD_SIGNATURE),)
    if not (_is_agreeable(message.channel_public) and _is_agreeable(message.mask_public)):
        return state, (Refuse(device_id, Fault.BAD_KEY),)
    return replace(state, advertised={**state.advertised, device_id: message}, last_at=now), ()


def _is_agreeable(public: PublicKey) -> bool:
    """Whether a secret can be agreed on with this key; with a point of low order no device could."""
    try:
        keys.agree(_ANY_PRIVATE_KEY, public)
    except RemoteProtocolError:
        return False
    return True


def _take_shares(state: Sharing, device_id: str, message: ShareKeys, now: float) -> Step:
    index = state.cohort.index_of[device_id]
    known = state.shared.get(index)
    if known is not None:
        return state, () if known == message else (Refuse(device_id, Fault.CHANGED_ITS_MIND),)
    if message.indices != state.cohort.neighbours[index]:
        return state, (Refuse(device_id, Fault.NOT_THE_NEIGHBOURS),)
    if len(message.boxes) != BOX_BYTES * len(message.indices):
        return state, (Refuse(device_id, Fault.WRONG_SIZE),)
    return replace(state, shared={**state.shared, index: message}, last_at=now), ()


def refusal_of_input(state: State, device_id: str, message: MaskedInput) -> tuple[Effect, ...]:
    """What to say to an offered masked input that is not wanted; nothing where it is, and its vector may be pulled."""
    if message.rid != config_of(state).plan.rid:
        return (Refuse(device_id, Fault.WRONG_ROUND),)
    if not _belongs(state, device_id):
        return (Refuse(device_id, Fault.NOT_SELECTED),)
    match state:
        case Reporting():
            index = state.cohort.index_of[device_id]
            if index not in state.shared:
                return (Refuse(device_id, Fault.NOT_SELECTED),)
            known = state.reported.get(index)
            if known is not None:
                if known != message.vector.sha256:
                    return (Refuse(device_id, Fault.CHANGED_ITS_MIND),)
                return (Send(device_id, Receipt(message.rid, known, ReceiptStatus.DUPLICATE)),)
            if message.vector.size_bytes != vector_bytes(state.config):
                return (Refuse(device_id, Fault.WRONG_SIZE),)
            return ()
        case Unmasking() | Releasing():
            return _too_late(state, device_id, message)
        case _:
            return (Refuse(device_id, Fault.WRONG_STAGE),)


def vector_bytes(config: RoundConfig) -> int:
    """The size of a packed masked vector."""
    return modular.packed_bytes(padded_length(config.plan.dimension), config.plan.bits)


def _too_late(state: Unmasking | Releasing, device_id: str, message: MaskedInput) -> tuple[Effect, ...]:
    """The receipt of a masked input after reporting, and the survivors for a device that may not have heard of them."""
    unmasking = state.unmasking if isinstance(state, Releasing) else state
    index = unmasking.cohort.index_of[device_id]
    if unmasking.reported.get(index) != message.vector.sha256:
        return (Send(device_id, Receipt(message.rid, message.vector.sha256, ReceiptStatus.LATE)),)
    receipt = Receipt(message.rid, message.vector.sha256, ReceiptStatus.DUPLICATE)
    if index in unmasking.answers:
        return (Send(device_id, receipt),)
    return Send(device_id, receipt), Send(device_id, unmasking.survivors)


def _take_input(state: Reporting, device_id: str, message: MaskedInput, now: float) -> Step:
    refusal = refusal_of_input(state, device_id, message)
    if refusal:
        return state, refusal
    index = state.cohort.index_of[device_id]
    reported = {**state.reported, index: message.vector.sha256}
    receipt = Receipt(message.rid, message.vector.sha256, ReceiptStatus.ACCEPTED)
    return replace(state, reported=reported, last_at=now), (Accumulate(device_id), Send(device_id, receipt))


def _take_answer(state: Unmasking, device_id: str, message: UnmaskingShares, now: float) -> Step:
    index = state.cohort.index_of[device_id]
    if index not in state.reported:
        return state, (Refuse(device_id, Fault.NOT_SELECTED),)
    known = state.answers.get(index)
    if known is not None:
        return state, () if known == message else (Refuse(device_id, Fault.CHANGED_ITS_MIND),)
    if message.survivors_digest != survivors_digest(state.survivors):
        return state, (Refuse(device_id, Fault.WRONG_SURVIVORS),)
    neighbours = set(state.cohort.neighbours[index])
    given = message.indices
    if len(set(given)) != len(given) or not set(given) <= neighbours & state.shared.keys():
        return state, (Refuse(device_id, Fault.NOT_THE_NEIGHBOURS),)
    if len(message.shares) != SHARE_BYTES * len(given):
        return state, (Refuse(device_id, Fault.WRONG_SIZE),)
    return replace(state, answers={**state.answers, index: message}, last_at=now), ()


# ---- closing a stage


def _progress(state: Selecting | Advertising | Sharing | Reporting | Unmasking) -> tuple[int, int]:
    """How many came in this stage, and how many may still be hoped for in all."""
    match state:
        case Selecting():
            return len(state.checked_in), state.config.plan.goal_count
        case Advertising():
            return len(state.advertised), len(state.selected) - len(state.gone - state.advertised.keys())
        case Sharing():
            return len(state.shared), state.cohort.size - len(state.gone - state.shared.keys())
        case Reporting():
            return len(state.reported), len(state.shared) - len(
                (state.gone & state.shared.keys()) - state.reported.keys()
            )
        case Unmasking():
            gone = (state.gone & state.reported.keys()) - state.answers.keys()
            return len(state.answers), len(state.reported) - len(gone)
        case _:
            assert_never(state)


def _timeout(state: Selecting | Advertising | Sharing | Reporting | Unmasking) -> float:
    pacing = state.config.pacing
    match state:
        case Selecting():
            return pacing.selection_timeout_s
        case Advertising():
            return pacing.advertise_timeout_s
        case Sharing():
            return pacing.share_timeout_s
        case Reporting():
            return pacing.report_timeout_s
        case Unmasking():
            return pacing.unmask_timeout_s
        case _:
            assert_never(state)


def _nearly_all(config: RoundConfig, expected: int) -> float:
    return (1.0 - config.plan.dropout_share / 2) * expected


def _suffices(state: Selecting | Advertising | Sharing | Reporting | Unmasking) -> bool:
    """Whether what came would carry the round on; a stage that would fail waits for its full time."""
    match state:
        case Selecting():
            return len(state.checked_in) >= state.config.min_check_ins
        case Advertising():
            return len(state.advertised) >= state.config.plan.min_reports
        case Sharing():
            return len(state.shared) >= state.config.plan.min_reports and _reachable(
                state.cohort, state.shared, state.shared
            )
        case Reporting():
            # Devices refuse a smaller sum or fewer live neighbours; better to know it before their answers are spent.
            return len(state.reported) >= state.config.plan.min_reports and _reachable(
                state.cohort, state.shared, state.reported
            )
        case Unmasking():
            return enough_answers(state)
        case _:
            assert_never(state)


def _reachable(cohort: Cohort, whose: Mapping[int, object], alive: Mapping[int, object]) -> bool:
    """Whether the secrets of all of these could be rebuilt by those alive."""
    living = frozenset(alive)
    return all(len(living.intersection(cohort.neighbours[i])) >= cohort.parameters.threshold for i in whose)


def _close_if_due(state: State, now: float) -> Step:
    if isinstance(state, Releasing | Committed | Abandoned):
        return state, ()
    came, expected = _progress(state)
    due = deadline(state)
    if came < expected and (due is None or now < due):
        return state, ()
    match state:
        case Selecting():
            return _close_selection(state, now)
        case Advertising():
            return _close_advertising(state, now)
        case Sharing():
            return _close_sharing(state, now)
        case Reporting():
            return _close_reporting(state, now)
        case Unmasking():
            return _close_unmasking(state)
        case _:
            assert_never(state)


def _close_selection(state: Selecting, now: float) -> Step:
    if not _suffices(state):
        return _abandon(state, AbandonReason.TOO_FEW_CHECK_INS)
    following = Advertising(state.config, now, now, state.checked_in, frozenset(), {})
    return following, _sends(following)


def _close_advertising(state: Advertising, now: float) -> Step:
    if not _suffices(state):
        return _abandon(state, AbandonReason.TOO_FEW_KEYS)
    # Sorted by id: the order in which messages happened to arrive decides nothing.
    entries = tuple(Entry(d, state.selected[d], state.advertised[d]) for d in sorted(state.advertised))
    cohort = make_cohort(state.config, entries)
    gone = frozenset(cohort.index_of[d] for d in state.gone if d in cohort.index_of)
    following = Sharing(state.config, now, now, len(state.selected), cohort, gone, {})
    return following, _sends(following)


def make_cohort(config: RoundConfig, entries: tuple[Entry, ...]) -> Cohort:
    """The roster's tree and graph."""
    plan = config.plan
    leaves = [
        client.roster_leaf(index, e.certificate, e.message.channel_public, e.message.mask_public, e.message.signature)
        for index, e in enumerate(entries)
    ]
    root = Digest(merkle.root(leaves))
    size = len(entries)
    parameters = graph.parameters(size, plan.corrupt_share, plan.dropout_share, plan.two_survivor_sets)
    seed = suite.digest(b"graph", config.context, root)
    return Cohort(
        entries=entries,
        index_of={e.device_id: index for index, e in enumerate(entries)},
        root=root,
        proofs=tuple(b"".join(proof) for proof in merkle.proofs(leaves)),
        parameters=parameters,
        neighbours=tuple(graph.neighbours(size, parameters.degree, index, seed) for index in range(size)),
    )


def _close_sharing(state: Sharing, now: float) -> Step:
    if not _suffices(state):
        return _abandon(state, AbandonReason.TOO_FEW_SHARES)
    following = Reporting(
        state.config,
        now,
        now,
        state.selected,
        state.cohort,
        state.gone,
        state.shared,
        bitmap(set(state.shared), state.cohort.size),
        {},
    )
    return following, _sends(following)


def _close_reporting(state: Reporting, now: float) -> Step:
    cohort = state.cohort
    if not _suffices(state):
        return _abandon(state, AbandonReason.TOO_FEW_REPORTS)
    survivors = Survivors(state.config.plan.rid, cohort.root, state.sharers, bitmap(set(state.reported), cohort.size))
    following = Unmasking(
        state.config,
        now,
        now,
        state.selected,
        cohort,
        state.gone,
        state.shared,
        state.reported,
        survivors,
        {},
    )
    return following, _sends(following)


def _close_unmasking(state: Unmasking) -> Step:
    if not _suffices(state):
        return _abandon(state, AbandonReason.TOO_FEW_ANSWERS)
    return Releasing(state), (Release(),)


def enough_answers(state: Unmasking) -> bool:
    """Whether for every device in U2 at least the threshold of shares has come."""
    tally = dict.fromkeys(state.shared, 0)
    for answer in state.answers.values():
        for index in answer.indices:
            tally[index] += 1
    return all(count >= state.cohort.parameters.threshold for count in tally.values())


def _abandon(
    state: Selecting | Advertising | Sharing | Reporting | Unmasking | Releasing, reason: AbandonReason
) -> Step:
    return Abandoned(state, reason), _outcomes(state, False, reason)


def _outcomes(state: State, committed: bool, reason: AbandonReason) -> tuple[Effect, ...]:
    plan = config_of(state).plan
    match state:
        case Selecting():
            audience: tuple[str, ...] = ()
        case Advertising():
            audience = tuple(state.selected)
        case Releasing():
            audience = tuple(state.unmasking.cohort.index_of)
        case Sharing() | Reporting() | Unmasking():
            audience = tuple(state.cohort.index_of)
        case _:
            audience = ()
    reports = len(state.reported) if isinstance(state, Reporting | Unmasking) else 0
    outcome = Outcome(plan.rid, committed, reason, reports)
    return tuple(Send(device_id, outcome) for device_id in audience)


def _after_the_end(state: Committed | Abandoned, event: Event) -> tuple[Effect, ...]:
    """A straggler hears how the round ended."""
    if not isinstance(event, From) or event.message.rid != config_of(state).plan.rid:
        return ()
    return (Send(event.device_id, outcome_of(state)),)


def outcome_of(state: Committed | Abandoned) -> Outcome:
    """What a straggler hears."""
    rid: RoundId = config_of(state).plan.rid
    if isinstance(state, Committed):
        return Outcome(rid, True, AbandonReason.NONE, len(state.releasing.unmasking.reported))
    return Outcome(rid, False, state.reason, 0)


# ---- what devices may still need


def _sends(state: State) -> tuple[Effect, ...]:
    return tuple(Send(device_id, message) for device_id, message in outbox(state))


def outbox(state: State) -> Iterator[tuple[str, Message]]:
    """The current phase's messages to all whose answer is outstanding."""
    match state:
        case Advertising():
            audience: Iterator[str] = (d for d in state.selected if d not in state.advertised and d not in state.gone)
        case Sharing():
            audience = _outstanding(state.cohort, range(state.cohort.size), state.shared, state.gone)
        case Reporting():
            audience = _outstanding(state.cohort, state.shared, state.reported, state.gone)
        case Unmasking():
            audience = _outstanding(state.cohort, state.reported, state.answers, state.gone)
        case _:
            return
    for device_id in audience:
        for message in outbox_for(state, device_id):
            yield device_id, message


def _outstanding(
    cohort: Cohort, expected: Mapping[int, object] | range, came: Mapping[int, object], gone: frozenset[int]
) -> Iterator[str]:
    return (cohort.entries[i].device_id for i in expected if i not in came and i not in gone)


def outbox_for(state: State, device_id: str) -> tuple[Message, ...]:
    """What this device may lack in the current phase."""
    match state:
        case Advertising():
            return (state.config.plan,) if device_id in state.selected else ()
        case Sharing():
            index = state.cohort.index_of.get(device_id)
            return () if index is None else (roster_for(state, index),)
        case Reporting():
            index = state.cohort.index_of.get(device_id)
            return () if index is None or index not in state.shared else (delivery_for(state, index),)
        case Unmasking():
            index = state.cohort.index_of.get(device_id)
            return () if index is None or index not in state.reported else (state.survivors,)
        case Committed() | Abandoned():
            return (outcome_of(state),)
        case _:
            return ()


def roster_for(state: Sharing, index: int) -> Roster:
    """Stage 2 for one device: its neighbours with their proofs."""
    cohort = state.cohort
    return Roster(
        rid=state.config.plan.rid,
        root=cohort.root,
        size=cohort.size,
        index=index,
        degree=cohort.parameters.degree,
        threshold=cohort.parameters.threshold,
        proof=cohort.proofs[index],
        neighbours=tuple(
            Neighbour(
                index=i,
                certificate=cohort.entries[i].certificate,
                channel_public=cohort.entries[i].message.channel_public,
                mask_public=cohort.entries[i].message.mask_public,
                signature=cohort.entries[i].message.signature,
                proof=cohort.proofs[i],
            )
            for i in cohort.neighbours[index]
        ),
    )


def delivery_for(state: Reporting, index: int) -> ShareDelivery:
    """Stage 4, down, for one device: the boxes that its neighbours addressed to it."""
    indices, boxes = [], []
    for sender in state.cohort.neighbours[index]:
        message = state.shared.get(sender)
        if message is None:
            continue
        position = message.indices.index(index)
        indices.append(sender)
        boxes.append(message.boxes[BOX_BYTES * position : BOX_BYTES * (position + 1)])
    return ShareDelivery(state.config.plan.rid, state.sharers, tuple(indices), b"".join(boxes))


def live(state: Unmasking) -> frozenset[int]:
    """U3, as indices."""
    return members(state.survivors.survivors, state.cohort.size) or frozenset()
