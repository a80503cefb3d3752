"""When a stage closes, when a round is given up, and that its journal gives it back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from coordinator.rounds import closing, events, outbox, transitions
from coordinator.rounds.events import CheckedIn, Event, From, Released, Send, Stopped, Tick
from coordinator.rounds.states import (
    Abandoned,
    Advertising,
    Committed,
    Counts,
    Releasing,
    Reporting,
    Selecting,
    Sharing,
    State,
    Unmasking,
    counts,
    phase,
    survivors_fixed,
)
from coordinator.service import journal
from edge_sdk.errors import EdgeError, StoreError
from edge_sdk.protocol.messages import AbandonReason, Decline, DeclineReason, Outcome
from tests.simulation.world import device_name
from tests.unit.cohort import NOW, PLAN, Round, planned, round_config, verify_device

SIZE = 8
ALL = [device_name(n) for n in range(SIZE)]
PACING = round_config().pacing


def step(state: State, event: Event, now: float = NOW) -> tuple[State, tuple[events.Effect, ...]]:
    return transitions.step(state, event, now, verify_device)


def selecting(count: int, *, min_check_ins: int = 4, goal: int = 20) -> State:
    config = replace(round_config(planned(goal_count=goal)), min_check_ins=min_check_ins)
    state = transitions.open_round(config, NOW)
    for n in range(count):
        state, _ = step(state, CheckedIn(device_name(n), b""), NOW + n)
    return state


# ---- selection


def test_the_goal_closes_selection_at_once() -> None:
    state = selecting(20)
    assert isinstance(state, Advertising)
    assert len(list(outbox.outbox(state))) == 20


def test_nearly_the_goal_closes_selection_after_a_quiet_while() -> None:
    state = selecting(17)  # a dropout share of 0.3 tolerates half of 0.3 of 20 missing
    due = closing.deadline(state)
    assert due == NOW + 16 + PACING.quiet_s
    assert isinstance(step(state, Tick(), due - 0.1)[0], Selecting)
    assert isinstance(step(state, Tick(), due)[0], Advertising)


def test_enough_check_ins_close_selection_at_its_time_and_not_before() -> None:
    state = selecting(16)
    due = closing.deadline(state)
    assert due == NOW + PACING.selection_timeout_s
    assert isinstance(step(state, Tick(), due - 0.1)[0], Selecting)
    assert isinstance(step(state, Tick(), due)[0], Advertising)


def test_too_few_check_ins_give_the_round_up() -> None:
    state, effects = step(selecting(3), Tick(), NOW + PACING.selection_timeout_s)
    assert isinstance(state, Abandoned)
    assert (state.reason, effects) == (AbandonReason.TOO_FEW_CHECK_INS, ())


# ---- the other stages


def held_at(stage: str, came: int) -> Round:
    """A round at a stage in which the first `came` devices have spoken."""
    held = Round(SIZE)
    held.select()
    if stage == "advertise_keys":
        for name, keys in list(held.advertise().items())[:came]:
            held.tell(name, keys)
        return held
    held = Round(SIZE).until_advertised()
    if stage == "share_keys":
        for name, shares in held.share(ALL[:came]).items():
            held.tell(name, shares)
        return held
    held = Round(SIZE).until_shared()
    if stage == "masked_input":
        for name, report in held.report(ALL[:came]).items():
            held.tell(name, report)
        return held
    held = Round(SIZE).until_reported()
    for name, answer in held.answer(ALL[:came]).items():
        held.tell(name, answer)
    return held


STAGES = [
    ("advertise_keys", Advertising, Sharing, PACING.advertise_timeout_s, AbandonReason.TOO_FEW_KEYS),
    ("share_keys", Sharing, Reporting, PACING.share_timeout_s, AbandonReason.TOO_FEW_SHARES),
    ("masked_input", Reporting, Unmasking, PACING.report_timeout_s, AbandonReason.TOO_FEW_REPORTS),
    ("unmasking", Unmasking, Releasing, PACING.unmask_timeout_s, AbandonReason.TOO_FEW_ANSWERS),
]


@pytest.mark.parametrize(("stage", "before", "after", "timeout_s", "reason"), STAGES)
def test_a_stage_closes_when_all_have_come(
    stage: str, before: type, after: type, timeout_s: float, reason: AbandonReason
) -> None:
    assert isinstance(held_at(stage, SIZE - 1).state, before)
    assert isinstance(held_at(stage, SIZE).state, after)


@pytest.mark.parametrize(("stage", "before", "after", "timeout_s", "reason"), STAGES)
def test_a_stage_with_nearly_all_closes_after_a_quiet_while(
    stage: str, before: type, after: type, timeout_s: float, reason: AbandonReason
) -> None:
    held = held_at(stage, SIZE - 1)
    due = closing.deadline(held.state)
    assert due is not None
    assert due < held.state.opened_at + timeout_s  # type: ignore[union-attr]
    held.tick(due - 0.1)
    assert isinstance(held.state, before)
    held.tick(due)
    assert isinstance(held.state, after)


@pytest.mark.parametrize(("stage", "before", "after", "timeout_s", "reason"), STAGES)
def test_a_stage_that_would_fail_waits_for_its_full_time(
    stage: str, before: type, after: type, timeout_s: float, reason: AbandonReason
) -> None:
    held = held_at(stage, 3)
    due = closing.deadline(held.state)
    assert due is not None
    assert due == held.state.opened_at + timeout_s  # type: ignore[union-attr]
    held.tick(due - 0.1)
    assert isinstance(held.state, before)
    effects = held.tick(due)
    assert isinstance(held.state, Abandoned)
    assert held.state.reason is reason
    outcomes = {e.device_id: e.message for e in effects if isinstance(e, Send)}
    assert set(outcomes) == set(ALL)
    assert all(isinstance(m, Outcome) and m.reason is reason and not m.committed for m in outcomes.values())


def test_fewer_reports_than_the_threshold_needs_are_given_up_before_unmasking() -> None:
    """Devices would refuse, and shares once given cannot be taken back."""
    held = held_at("masked_input", 5)  # five are enough for the sum, but not for the six neighbours of the threshold
    held.tick(held.state.opened_at + PACING.report_timeout_s)  # type: ignore[union-attr]
    assert isinstance(held.state, Abandoned)
    assert held.state.reason is AbandonReason.TOO_FEW_REPORTS
    assert survivors_fixed(held.state) is None


# ---- the end


def test_a_released_round_is_committed_and_everybody_hears() -> None:
    held = held_at("unmasking", SIZE)
    state, effects = step(held.state, Released())
    assert isinstance(state, Committed)
    assert {e.device_id for e in effects if isinstance(e, Send)} == set(ALL)
    assert all(isinstance(e, Send) and isinstance(e.message, Outcome) and e.message.committed for e in effects)
    assert survivors_fixed(state) == held.survivors
    assert outbox.outcome_of(state).reports == SIZE


def test_released_means_nothing_before_releasing() -> None:
    for stage in ("advertise_keys", "share_keys", "masked_input", "unmasking"):
        state = held_at(stage, 4).state
        assert step(state, Released()) == (state, ())


@pytest.mark.parametrize("reason", [AbandonReason.BAD_SHARES, AbandonReason.CANCELLED, AbandonReason.BUDGET_EXHAUSTED])
def test_a_round_can_be_stopped_at_any_stage(reason: AbandonReason) -> None:
    states = [selecting(2), *(held_at(stage, 4).state for stage, *_ in STAGES), held_at("unmasking", SIZE).state]
    for before in states:
        state, _ = step(before, Stopped(reason))
        assert isinstance(state, Abandoned)
        assert state.reason is reason
        assert counts(state) == counts(before)
        assert phase(state) == "abandoned"
        assert closing.deadline(state) is None
        assert step(state, Tick(), NOW + 1e9) == (state, ())
        assert step(state, Released()) == (state, ())


def test_counts_and_phases_follow_the_stages() -> None:
    expected = {
        "advertise_keys": ("configuration", Counts(8, 8, 4, 0, 0, 0)),
        "share_keys": ("configuration", Counts(8, 8, 8, 4, 0, 0)),
        "masked_input": ("reporting", Counts(8, 8, 8, 8, 4, 0)),
        "unmasking": ("unmasking", Counts(8, 8, 8, 8, 8, 4)),
    }
    assert counts(selecting(5)) == Counts(5, 0, 0, 0, 0, 0)
    assert phase(selecting(5)) == "selection"
    for stage, (name, numbers) in expected.items():
        state = held_at(stage, 4).state
        assert (phase(state), counts(state)) == (name, numbers)
    released, _ = step(held_at("unmasking", SIZE).state, Released())
    assert (phase(released), counts(released)) == ("committed", Counts(8, 8, 8, 8, 8, 8))


# ---- the journal


class Recorder(Round):
    """A round that notes every event with its time."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.events: list[tuple[float, Event]] = []

    def note(self, event: Event, now: float) -> None:
        before = self.state
        self.state, _ = transitions.step(before, event, now, verify_device)
        if self.state is not before:
            self.events.append((now, event))


def events_of_a_round() -> Iterator[tuple[Recorder, State]]:
    """A round with faults on the way; after every event the recorder and the state."""
    held = Recorder()
    now = NOW
    for name, member in held.members.items():
        now += 1
        held.note(CheckedIn(name, member.environment.certificate), now)
        yield held, held.state
    now += PACING.selection_timeout_s
    held.note(Tick(), now)
    yield held, held.state
    for name, keys in held.advertise().items():
        held.note(From(name, keys), now)
        held.note(From(name, keys), now)
        yield held, held.state
    for name, shares in held.share().items():
        if name == ALL[2]:
            held.note(From(name, Decline(PLAN.rid, DeclineReason.ROSTER_UNSOUND, "x")), now)
            continue
        held.note(From(name, shares), now + 1)
        yield held, held.state
    now += PACING.share_timeout_s + 2
    held.note(Tick(), now)
    for name, report in held.report([n for n in ALL if n != ALL[2]]).items():
        held.note(From(name, replace(report, inline=b"")), now)
        yield held, held.state
    for name, answer in held.answer([n for n in ALL if n != ALL[2]]).items():
        held.note(From(name, answer), now)
        yield held, held.state
    held.note(Released(), now + 1)
    yield held, held.state


def test_the_journal_gives_every_state_back() -> None:
    phases = set()
    for held, state in events_of_a_round():
        rows = [journal.to_row(position, event, at) for position, (at, event) in enumerate(held.events)]
        assert journal.fold(held.config, NOW, rows, verify_device) == state
        assert [journal.to_event(row) for row in rows] == [event for _, event in held.events]
        assert list(outbox.outbox(state)) == list(outbox.outbox(journal.fold(held.config, NOW, rows, verify_device)))
        phases.add(phase(state))
    assert phases == {"selection", "configuration", "reporting", "unmasking", "committed"}


def test_a_stopped_round_comes_back_stopped() -> None:
    row = journal.to_row(0, Stopped(AbandonReason.CANCELLED), NOW)
    state = journal.fold(round_config(), NOW, [row], verify_device)
    assert isinstance(state, Abandoned)
    assert state.reason is AbandonReason.CANCELLED


@pytest.mark.parametrize("kind", ["", "check-in", "Survivors", "unknown"])
def test_a_journal_of_unknown_events_is_refused(kind: str) -> None:
    with pytest.raises(StoreError, match="unknown event"):
        journal.to_event(journal.Row(0, NOW, kind, "", b""))


def test_a_damaged_journal_is_refused() -> None:
    with pytest.raises(EdgeError):
        journal.to_event(journal.Row(0, NOW, "ShareKeys", ALL[0], b"garbage"))
