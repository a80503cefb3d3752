"""When a stage ends, and what follows it.

A stage closes when all expected have come, when its time is up, or early when nearly all came and then nobody new for a
while (at most half the tolerated dropouts missing), so that the slow are not cut off by the fast. One that would fail
waits for its full time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from coordinator.rounds.agreement import agreement
from coordinator.rounds.events import (
    Effect,
    Release,
    Send,
    Step,
)
from coordinator.rounds.outbox import outbox
from coordinator.rounds.states import (
    Abandoned,
    Advertising,
    Cohort,
    Committed,
    Endorsing,
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
from edge_sdk.protocol.checks import committee_of, graph_seed
from edge_sdk.protocol.messages import (
    AbandonReason,
    Consistency,
    Digest,
    Outcome,
    Survivors,
    bitmap,
)
from edge_sdk.secagg import client, graph, merkle, quorum


def deadline(state: State) -> float | None:
    """When the round wants its next Tick, or None."""
    match state:
        case Releasing() | Committed() | Abandoned():
            return None
        case _:
            due = state.opened_at + _timeout(state)
            early = _early(state)
            return early if early < due and _suffices(state) else due


def _progress(state: Selecting | Advertising | Sharing | Reporting | Endorsing | Unmasking) -> tuple[int, int]:
    """How many came in this stage, and how many may still be hoped for in all."""
    match state:
        case Selecting():
            expected = state.config.plan.goal_count - len(state.turned_away)
            return len(state.checked_in), max(expected, state.config.min_check_ins)
        case Advertising():
            return len(state.advertised), len(state.selected) - len(state.gone - state.advertised.keys())
        case Sharing():
            return len(state.shared), state.cohort.size - len(state.gone - state.shared.keys())
        case Reporting():
            return len(state.reported), len(state.shared) - len(
                (state.gone & state.shared.keys()) - state.reported.keys()
            )
        case Endorsing():
            return len(state.endorsements), state.cohort.quorum
        case Unmasking():
            gone = (state.gone & state.reported.keys()) - state.answers.keys()
            return len(state.answers), len(state.reported) - len(gone)
        case _:
            assert_never(state)


def _timeout(state: Selecting | Advertising | Sharing | Reporting | Endorsing | Unmasking) -> float:
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
        case Endorsing() | Unmasking():
            return pacing.unmask_timeout_s
        case _:
            assert_never(state)


def _early(state: Selecting | Advertising | Sharing | Reporting | Endorsing | Unmasking) -> float:
    """When the stage may close before its time, if what came suffices by then; infinity where too few came."""
    came, expected = _progress(state)
    nearly_all = expected > 0 and came >= (1.0 - state.config.plan.dropout_share / 2) * expected
    return state.last_at + state.config.pacing.quiet_s if nearly_all else math.inf


def _suffices(state: Selecting | Advertising | Sharing | Reporting | Endorsing | Unmasking) -> bool:
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
            return (
                len(state.reported) >= state.config.plan.min_reports
                and _reachable(state.cohort, state.shared, state.reported)
                and _can_be_endorsed(state)
            )
        case Endorsing():
            return len(state.endorsements) >= state.cohort.quorum
        case Unmasking():
            return enough_answers(state)
        case _:
            assert_never(state)


def _reachable(cohort: Cohort, whose: Mapping[int, object], alive: Mapping[int, object]) -> bool:
    """Whether the secrets of all of these could be rebuilt by those alive."""
    return bool(np.all(cohort.neighbours_among(alive)[list(whose)] >= cohort.parameters.threshold))


def _can_be_endorsed(state: Reporting) -> bool:
    """Whether devices would take these for one piece of the ring, and enough of the committee are among them."""
    if state.config.plan.consistency is Consistency.THRESHOLD:
        return True
    cohort, survivors = state.cohort, frozenset(state.reported)
    return len(cohort.committee & survivors) >= cohort.quorum and quorum.holds_together(
        cohort.size,
        cohort.parameters.degree,
        survivors,
        state.config.plan.corrupt_share,
        graph_seed(state.config.context, cohort.root),
    )


def close_if_due(state: State, now: float) -> Step:
    """Close the stage where it is time, and send out what the next one needs."""
    if isinstance(state, Releasing | Committed | Abandoned):
        return state, ()
    came, expected = _progress(state)
    # Times are looked at first: in a large cohort it takes long to tell what suffices.
    if came < expected and now < state.opened_at + _timeout(state) and (now < _early(state) or not _suffices(state)):
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
        case Endorsing():
            return _close_endorsing(state, now)
        case Unmasking():
            return _close_unmasking(state)
        case _:
            assert_never(state)


def _close_selection(state: Selecting, now: float) -> Step:
    if not _suffices(state):
        return abandon(state, AbandonReason.TOO_FEW_CHECK_INS)
    following = Advertising(state.config, now, now, state.checked_in, frozenset(), {})
    return following, _sends(following)


def _close_advertising(state: Advertising, now: float) -> Step:
    if not _suffices(state):
        return abandon(state, AbandonReason.TOO_FEW_KEYS)
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
    found = agreement(plan.consistency, size, plan.corrupt_share, plan.dropout_share)
    parameters = found.graph
    seed = graph_seed(config.context, root)
    return Cohort(
        entries=entries,
        index_of={e.device_id: index for index, e in enumerate(entries)},
        root=root,
        proofs=tuple(b"".join(proof) for proof in merkle.proofs(leaves)),
        parameters=parameters,
        neighbours=tuple(graph.neighbours(size, parameters.degree, index, seed) for index in range(size)),
        committee=committee_of(config.context, root, size, found.committee),
        quorum=found.quorum,
    )


def _close_sharing(state: Sharing, now: float) -> Step:
    if not _suffices(state):
        return abandon(state, AbandonReason.TOO_FEW_SHARES)
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
        return abandon(state, AbandonReason.TOO_FEW_REPORTS)
    survivors = Survivors(state.config.plan.rid, cohort.root, state.sharers, bitmap(set(state.reported), cohort.size))
    endorsing = Endorsing(
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
    if state.config.plan.consistency is Consistency.QUORUM:
        return endorsing, _sends(endorsing)
    following = _unmasking(endorsing, now)
    return following, _sends(following)


def _close_endorsing(state: Endorsing, now: float) -> Step:
    if not _suffices(state):
        return abandon(state, AbandonReason.NO_QUORUM)
    following = _unmasking(state, now)
    return following, _sends(following)


def _unmasking(state: Endorsing, now: float) -> Unmasking:
    return Unmasking(
        state.config,
        now,
        now,
        state.selected,
        state.cohort,
        state.gone,
        state.shared,
        state.reported,
        state.survivors,
        dict(sorted(state.endorsements.items())),
        {},
    )


def _close_unmasking(state: Unmasking) -> Step:
    if not _suffices(state):
        return abandon(state, AbandonReason.TOO_FEW_ANSWERS)
    return Releasing(state), (Release(),)


def enough_answers(state: Unmasking) -> bool:
    """Whether for every device in U2 at least the threshold of shares has come."""
    return bool(np.all(shares_came(state)[list(state.shared)] >= state.cohort.parameters.threshold))


def shares_came(state: Unmasking) -> NDArray[np.int64]:
    """How many shares of each device's secret have come; of those not in U2 it means nothing."""
    cohort = state.cohort
    came = cohort.neighbours_among(state.answers)
    sharing = cohort.neighbours_among(state.shared)
    for holder, answer in state.answers.items():
        if len(answer.indices) < sharing[holder]:
            missing = set(cohort.neighbours[holder]).intersection(state.shared).difference(answer.indices)
            came[list(missing)] -= 1
    return came


def spoilers(state: Unmasking) -> frozenset[int]:
    """The devices of whose secrets too few shares came although enough of their neighbours answered.

    Their boxes did not open, so that nobody holds a share of theirs.
    """
    threshold = state.cohort.parameters.threshold
    lacking = (shares_came(state) < threshold) & (state.cohort.neighbours_among(state.answers) >= threshold)
    return frozenset(index for index in state.shared if lacking[index])


def abandon(
    state: Selecting | Advertising | Sharing | Reporting | Endorsing | Unmasking | Releasing, reason: AbandonReason
) -> Step:
    """End the round without a release."""
    return Abandoned(state, reason), outcomes(state, False, reason)


def outcomes(state: State, committed: bool, reason: AbandonReason) -> tuple[Effect, ...]:
    """The end of a round, to all who took part in it."""
    plan = config_of(state).plan
    match state:
        case Selecting():
            audience: tuple[str, ...] = ()
        case Advertising():
            audience = tuple(state.selected)
        case Releasing():
            audience = tuple(state.unmasking.cohort.index_of)
        case Sharing() | Reporting() | Endorsing() | Unmasking():
            audience = tuple(state.cohort.index_of)
        case _:
            audience = ()
    reports = len(state.reported) if isinstance(state, Reporting | Endorsing | Unmasking) else 0
    outcome = Outcome(plan.rid, committed, reason, reports)
    return tuple(Send(device_id, outcome) for device_id in audience)


def _sends(state: State) -> tuple[Effect, ...]:
    return tuple(Send(device_id, message) for device_id, message in outbox(state))
