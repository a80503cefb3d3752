"""What devices may still need, derived from a state.

No queue of outgoing messages is stored: after a restart the current phase is derived again from the folded state, and
published again byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from coordinator.rounds.states import (
    Abandoned,
    Advertising,
    Cohort,
    Committed,
    Endorsing,
    Reporting,
    Sharing,
    State,
    Unmasking,
    config_of,
)
from edge_sdk.protocol.messages import (
    AbandonReason,
    Consistency,
    Message,
    Neighbour,
    Outcome,
    Quorum,
    Roster,
    RoundId,
    ShareDelivery,
    members,
)
from edge_sdk.secagg.client import BOX_BYTES


def outbox(state: State) -> Iterator[tuple[str, Message]]:
    """The current phase's messages to all whose answer is outstanding."""
    match state:
        case Advertising():
            audience: Iterator[str] = (d for d in state.selected if d not in state.advertised and d not in state.gone)
        case Sharing():
            audience = _outstanding(state.cohort, range(state.cohort.size), state.shared, state.gone)
        case Reporting():
            audience = _outstanding(state.cohort, state.shared, state.reported, state.gone)
        case Endorsing():
            committee = sorted(state.cohort.committee & state.reported.keys())
            audience = _outstanding(state.cohort, committee, state.endorsements, state.gone)
        case Unmasking():
            audience = _outstanding(state.cohort, state.reported, state.answers, state.gone)
        case _:
            return
    for device_id in audience:
        for message in outbox_for(state, device_id):
            yield device_id, message


def _outstanding(
    cohort: Cohort, expected: Iterable[int], came: Mapping[int, object], gone: frozenset[int]
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
        case Endorsing():
            index = state.cohort.index_of.get(device_id)
            return (state.survivors,) if index in state.cohort.committee & state.reported.keys() else ()
        case Unmasking():
            index = state.cohort.index_of.get(device_id)
            if index is None or index not in state.reported:
                return ()
            by_quorum = state.config.plan.consistency is Consistency.QUORUM
            return (quorum_for(state, index) if by_quorum else state.survivors,)
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
        neighbours=tuple(_standing(cohort, i) for i in cohort.neighbours[index]),
        committee=len(cohort.committee),
        quorum=cohort.quorum,
    )


def _standing(cohort: Cohort, index: int) -> Neighbour:
    entry = cohort.entries[index]
    return Neighbour(
        index=index,
        certificate=entry.certificate,
        channel_public=entry.message.channel_public,
        mask_public=entry.message.mask_public,
        signature=entry.message.signature,
        proof=cohort.proofs[index],
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


def quorum_for(state: Unmasking, index: int) -> Quorum:
    """Stage 5b for one device: the survivors with a quorum's endorsements, and its neighbours' statements."""
    cohort, survivors = state.cohort, state.survivors
    alive = tuple(i for i in cohort.neighbours[index] if i in state.reported)
    return Quorum(
        rid=survivors.rid,
        root=survivors.root,
        sharers=survivors.sharers,
        survivors=survivors.survivors,
        members=tuple(_standing(cohort, i) for i in state.endorsements),
        endorsements=b"".join(message.signature for message in state.endorsements.values()),
        indices=alive,
        statements=b"".join(state.reported[i].statement for i in alive),
    )


def live(state: Unmasking) -> frozenset[int]:
    """U3, as indices."""
    return members(state.survivors.survivors, state.cohort.size) or frozenset()


def outcome_of(state: Committed | Abandoned) -> Outcome:
    """What a straggler hears."""
    rid: RoundId = config_of(state).plan.rid
    if isinstance(state, Committed):
        return Outcome(rid, True, AbandonReason.NONE, len(state.releasing.unmasking.reported))
    return Outcome(rid, False, state.reason, 0)
