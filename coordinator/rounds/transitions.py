"""The round as a function: (state, event, now) -> (state, effects).

Every fault of a device is a counted refusal with a name and leaves the state alone; nothing a device sends can raise
here. The journal of accepted events replays to the same state. What a stage needs to end is in `closing`, what devices
may still need in `outbox`. Knows no clock, store, broker or log.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from coordinator.rounds.closing import abandon, close_if_due, outcomes
from coordinator.rounds.events import (
    Accumulate,
    CheckedIn,
    Effect,
    Event,
    Fault,
    From,
    Refuse,
    Released,
    Send,
    Step,
    Stopped,
    Tick,
    TurnedAway,
    VerifyPeer,
)
from coordinator.rounds.outbox import outbox_for, outcome_of
from coordinator.rounds.states import (
    Abandoned,
    Advertising,
    Committed,
    Endorsing,
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
from edge_sdk.protocol.checks import sharers_digest, survivors_digest
from edge_sdk.protocol.messages import (
    AbandonReason,
    AdvertiseKeys,
    Consistency,
    Decline,
    Endorsement,
    MaskedInput,
    Outcome,
    PublicKey,
    Receipt,
    ReceiptStatus,
    Rejection,
    RejectionReason,
    ShareKeys,
    UnmaskingShares,
)
from edge_sdk.protocol.policy import encoding_of
from edge_sdk.secagg import client, keys, modular
from edge_sdk.secagg.client import BOX_BYTES, SHARE_BYTES

_ANY_PRIVATE_KEY = bytes(range(keys.KEY_BYTES))


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
            return abandon(state, reason)
        case Released():
            if not isinstance(state, Releasing):
                return state, ()
            return Committed(state), outcomes(state.unmasking, True, AbandonReason.NONE)
        case CheckedIn():
            state, effects = _check_in(state, event, now)
        case TurnedAway(device_id):
            if isinstance(state, Selecting) and device_id not in state.checked_in:
                state = replace(state, turned_away=state.turned_away | {device_id})
            effects = ()
        case From():
            state, effects = _take(state, event, now, verify_peer)
        case Tick():
            effects = ()
        case _:
            assert_never(event)
    if isinstance(state, Abandoned):
        return state, effects
    following, more = close_if_due(state, now)
    return following, effects + more


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
        case Sharing() | Reporting() | Endorsing() | Unmasking():
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
            return _take_input(state, device_id, message, now, verify_peer)
        case Endorsing(), Endorsement():
            return _take_endorsement(state, device_id, message, now, verify_peer)
        case Unmasking(), UnmaskingShares():
            return _take_answer(state, device_id, message, now)
        case ((Endorsing() | Unmasking() | Releasing()), MaskedInput()):
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
        case Sharing() | Reporting() | Endorsing() | Unmasking() if state.cohort.index_of[device_id] not in state.gone:
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


def refusal_of_input(
    state: State, device_id: str, message: MaskedInput, now: float, verify_peer: VerifyPeer
) -> tuple[Effect, ...]:
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
                if known.vector != message.vector:
                    return (Refuse(device_id, Fault.CHANGED_ITS_MIND),)
                return (Send(device_id, Receipt(message.rid, known.vector.sha256, ReceiptStatus.DUPLICATE)),)
            if message.vector.size_bytes != vector_bytes(state.config):
                return (Refuse(device_id, Fault.WRONG_SIZE),)
            if not _states_its_sharers(state, index, message, now, verify_peer):
                return (Refuse(device_id, Fault.BAD_SIGNATURE),)
            return ()
        case Endorsing() | Unmasking() | Releasing():
            return _too_late(state, device_id, message)
        case _:
            return (Refuse(device_id, Fault.WRONG_STAGE),)


def _states_its_sharers(
    state: Reporting, index: int, message: MaskedInput, now: float, verify_peer: VerifyPeer
) -> bool:
    """Whether the device signed for which U2 it masked, where its neighbours will ask."""
    if state.config.plan.consistency is Consistency.THRESHOLD:
        return True
    cohort = state.cohort
    stated = client.statement(state.config.context, cohort.root, index, sharers_digest(state.sharers))
    return verify_peer(cohort.entries[index].certificate, stated, message.statement, now)


def vector_bytes(config: RoundConfig) -> int:
    """The size of a packed masked vector."""
    return modular.packed_bytes(encoding_of(config.plan).length, config.plan.bits)


def _too_late(state: Endorsing | Unmasking | Releasing, device_id: str, message: MaskedInput) -> tuple[Effect, ...]:
    """The receipt of a masked input after reporting, and the survivors for a device that may not have heard of them."""
    current = state.unmasking if isinstance(state, Releasing) else state
    index = current.cohort.index_of[device_id]
    known = current.reported.get(index)
    if known is None or known.vector != message.vector:
        return (Send(device_id, Receipt(message.rid, message.vector.sha256, ReceiptStatus.LATE)),)
    receipt = Send(device_id, Receipt(message.rid, message.vector.sha256, ReceiptStatus.DUPLICATE))
    came = current.endorsements if isinstance(current, Endorsing) else current.answers
    lacking = () if index in came else outbox_for(current, device_id)
    return receipt, *(Send(device_id, one) for one in lacking)


def _take_input(state: Reporting, device_id: str, message: MaskedInput, now: float, verify_peer: VerifyPeer) -> Step:
    refusal = refusal_of_input(state, device_id, message, now, verify_peer)
    if refusal:
        return state, refusal
    index = state.cohort.index_of[device_id]
    reported = {**state.reported, index: replace(message, inline=b"")}
    receipt = Receipt(message.rid, message.vector.sha256, ReceiptStatus.ACCEPTED)
    return replace(state, reported=reported, last_at=now), (Accumulate(device_id), Send(device_id, receipt))


def _take_endorsement(
    state: Endorsing, device_id: str, message: Endorsement, now: float, verify_peer: VerifyPeer
) -> Step:
    index = state.cohort.index_of[device_id]
    if index not in state.cohort.committee or index not in state.reported:
        return state, (Refuse(device_id, Fault.NOT_SELECTED),)
    known = state.endorsements.get(index)
    if known is not None:
        return state, () if known == message else (Refuse(device_id, Fault.CHANGED_ITS_MIND),)
    digest = survivors_digest(state.survivors)
    if message.survivors_digest != digest:
        return state, (Refuse(device_id, Fault.WRONG_SURVIVORS),)
    signed = client.endorsement(state.config.context, digest)
    if not verify_peer(state.cohort.entries[index].certificate, signed, message.signature, now):
        return state, (Refuse(device_id, Fault.BAD_SIGNATURE),)
    return replace(state, endorsements={**state.endorsements, index: message}, last_at=now), ()


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


def _after_the_end(state: Committed | Abandoned, event: Event) -> tuple[Effect, ...]:
    """A straggler hears how the round ended."""
    if not isinstance(event, From) or event.message.rid != config_of(state).plan.rid:
        return ()
    return (Send(event.device_id, outcome_of(state)),)
