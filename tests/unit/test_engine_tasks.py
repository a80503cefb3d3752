"""Tasks at work in one coordinator: several at once, new ones, finished ones, and what a restart brings back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from coordinator.service.bench import LONGEST_S, Bench
from coordinator.service.engine import Publication
from coordinator.service.tasks import create_task, list_rounds, list_tasks, newest_model
from coordinator.store import tables
from coordinator.store.database import Database
from device_sim.script import CrashCoordinator, Reboot, Vanish
from device_sim.virtual import VirtualFleet
from edge_sdk.protocol import chunks, codec, topics
from edge_sdk.protocol.messages import (
    NO_ROUND,
    AbandonReason,
    Announcement,
    CheckIn,
    Consistency,
    Decline,
    DeclineReason,
    DeviceId,
    Outcome,
    Plan,
    Pull,
    Rejection,
    RejectionReason,
    TaskState,
)
from tests.simulation.world import START, World, device_name, fresh_folder, identity, task_config
from tests.unit.desk import Desk, control_topic, frame, heard, only

ME = device_name(0)


@pytest.fixture
def desk() -> Iterator[Desk]:
    with fresh_folder() as folder:
        held = Desk(folder, rounds=2)
        with held.world:
            yield held


def announcements(publications: tuple[Publication, ...]) -> list[Announcement]:
    found = []
    for publication in publications:
        if isinstance(topics.parse(publication.topic), topics.TaskTopic):
            assert publication.retain
            message = codec.parse_for_device(codec.read_frame(publication.payload))
            assert isinstance(message, Announcement)
            found.append(message)
    return found


def restart(desk: Desk) -> tuple[Publication, ...]:
    desk.coordinator = desk.world.make_coordinator()
    return desk.coordinator.start(desk.now)


def test_a_restart_announces_the_same_round(desk: Desk) -> None:
    rid = desk.rid
    (again,) = announcements(restart(desk))
    assert (again.rid, again.state, again.round_number) == (rid, TaskState.OPEN, 1)
    (once_more,) = announcements(desk.coordinator.republish(desk.now))
    assert once_more == again
    assert announcements(desk.coordinator.tick(desk.now)) == []


def test_a_restart_repeats_the_phase_byte_for_byte(desk: Desk) -> None:
    desk.join_all()
    plans = {p.topic: p.payload for p in desk.coordinator.republish(desk.now)}
    again = {p.topic: p.payload for p in restart(desk)}
    assert again == plans
    assert len(again) == 6


def abandon(desk: Desk) -> tuple[Publication, ...]:
    """Let the open round's selection run out."""
    desk.now += desk.world.config.pacing.selection_timeout_s
    return desk.coordinator.tick(desk.now)


def reopen(desk: Desk) -> Announcement:
    """Wait for the next round, and not longer than it takes."""
    due = desk.coordinator.next_deadline()
    assert due is not None
    assert announcements(desk.coordinator.tick(due - 0.01)) == []
    desk.now = due
    (announced,) = announcements(desk.coordinator.tick(due))
    return announced


def test_an_abandoned_round_is_followed_by_another_after_a_while(desk: Desk) -> None:
    first = desk.rid
    desk.check_in_all()
    desk.now += 10_000
    publications = desk.coordinator.tick(desk.now)
    (announced,) = announcements(publications)
    assert (announced.state, announced.rid, announced.round_number) == (TaskState.OPEN, NO_ROUND, 0)
    assert list_tasks(desk.world.database)[0].reason == "1 rounds in a row were abandoned: too_few_keys"
    outcomes = {said.message for said in heard(publications)}
    assert outcomes == {Outcome(first, False, AbandonReason.TOO_FEW_KEYS, 0)}
    assert not desk.coordinator.idle
    second = reopen(desk)
    assert second.rid == desk.rid != first
    assert second.round_number == 1
    assert second.sequence > announced.sequence
    assert list_tasks(desk.world.database)[0].reason == ""


def test_the_wait_doubles_up_to_a_limit_and_outlasts_a_restart(desk: Desk) -> None:
    waits = []
    for number in range(6):
        abandon(desk)
        if number == 2:
            desk.coordinator = desk.world.make_coordinator()
            desk.coordinator.start(desk.now)
        closed_at = desk.now
        reopen(desk)
        waits.append(desk.now - closed_at)
    pacing = desk.world.config.pacing
    assert waits == [pacing.backoff_s * factor for factor in (1, 2, 4, 8, 8, 8)]
    assert waits[-1] == pacing.backoff_limit_s


def test_too_many_abandoned_rounds_in_a_row_pause_the_task(desk: Desk) -> None:
    last: tuple[Publication, ...] = ()
    for number in range(desk.world.config.max_abandoned):
        assert not desk.coordinator.idle
        if number:
            reopen(desk)
        desk.check_in_all()
        desk.now += 10_000
        last = desk.coordinator.tick(desk.now)
    assert desk.coordinator.idle
    assert desk.coordinator.next_deadline() is None
    (announced,) = announcements(last)
    assert (announced.state, announced.rid) == (TaskState.PAUSED, NO_ROUND)
    (task,) = list_tasks(desk.world.database)
    assert task.state is TaskState.PAUSED
    assert "too_few_keys" in task.reason
    message = CheckIn("task", NO_ROUND, "1", "1")
    answer = only(desk.send(ME, message, certificate=identity(ME).certificate_der), Rejection)
    assert answer.reason is RejectionReason.TASK_CLOSED
    (again,) = announcements(restart(desk))
    assert again == announced


def test_a_fleet_that_is_asleep_does_not_pause_the_task(desk: Desk) -> None:
    """Its devices may have spent what they may send today."""
    for _ in range(2 * desk.world.config.max_abandoned):
        abandon(desk)
        assert "too_few_check_ins" in list_tasks(desk.world.database)[0].reason
        reopen(desk)
    restart(desk)
    desk.check_in_all()


def test_a_fleet_that_is_there_and_declines_pauses_the_task(desk: Desk) -> None:
    """It sits out in between, and from most of these rounds it was sent away."""
    for number in range(desk.world.config.max_abandoned):
        assert list_tasks(desk.world.database)[0].state is TaskState.OPEN
        if number:
            reopen(desk)
        said = [answer for name in desk.members for answer in desk.check_in(name)]
        planned = [answer.device_id for answer in said if isinstance(answer.message, Plan)]
        for name in planned:
            desk.send(name, Decline(desk.rid, DeclineReason.PARTICIPATION_CAP, ""))
        if not planned:
            abandon(desk)
    assert {view.reason for view in list_rounds(desk.world.database, "task")} == {
        AbandonReason.TOO_FEW_KEYS,
        AbandonReason.TOO_FEW_CHECK_INS,
    }
    assert list_tasks(desk.world.database)[0].state is TaskState.PAUSED


@pytest.mark.parametrize(
    ("reason", "waits"),
    [
        (DeclineReason.EPSILON_TOO_LARGE, True),
        (DeclineReason.OVER_TRAFFIC_BUDGET, True),
        (DeclineReason.OVER_MEMORY_BUDGET, True),
        (DeclineReason.OVER_TIME_BUDGET, True),
        (DeclineReason.ROSTER_UNSOUND, False),
    ],
)
def test_a_device_that_declined_waits_unless_others_may_have_caused_it(
    desk: Desk, reason: DeclineReason, waits: bool
) -> None:
    desk.check_in_all()
    for name in desk.members:
        desk.send(name, Decline(desk.rid, reason, ""))
    assert desk.view.declined == {reason.name.lower(): len(desk.members)}
    reopen(desk)
    said = desk.check_in(ME)
    assert desk.view.checked_in == (not waits)
    if not waits:
        assert said == []
        return
    pacing = desk.world.config.pacing
    answer = only(said, Rejection)
    left_s = pacing.sit_out_s - pacing.backoff_s
    assert answer.reason is RejectionReason.SITTING_OUT
    assert answer.retry_after_s == pytest.approx(left_s, abs=1e-3)
    restart(desk)
    answer = only(desk.check_in(ME), Rejection)
    assert answer.retry_after_s == pytest.approx(left_s, abs=1e-3)
    desk.now += answer.retry_after_s
    assert desk.check_in(ME) == []
    assert desk.view.checked_in == 1


def test_who_sits_out_is_not_waited_for(desk: Desk) -> None:
    """Else a round would wait for a goal that nobody can fill, until its selection times out."""
    desk.check_in_all()
    sitting, *rest = desk.members
    for name in desk.members:
        reason = DeclineReason.EPSILON_TOO_LARGE if name == sitting else DeclineReason.ROSTER_UNSOUND
        desk.send(name, Decline(desk.rid, reason, ""))
    reopen(desk)
    (turned_away,) = desk.check_in(sitting)
    assert isinstance(turned_away.message, Rejection)
    for name in rest[:-1]:
        assert desk.check_in(name) == []
    restart(desk)
    said = desk.check_in(rest[-1])
    assert {answer.device_id for answer in said if isinstance(answer.message, Plan)} == set(rest)


def test_a_store_of_an_older_release_gets_the_tables_that_it_lacks(desk: Desk) -> None:
    desk.world.database.run_tx("forget a table", lambda c: c.execute(sa.schema.DropTable(tables.benched)))
    again = Database.in_folder(desk.world.folder)
    again.run_tx("read who sits out", lambda c: c.execute(tables.benched.select()).all())
    again.close()


def test_the_bench_doubles_up_to_a_day_and_forgives() -> None:
    bench = Bench(300.0)
    assert bench.wait_s(ME, START) == 0
    for wait_s in (300.0, 600.0, 1_200.0):
        bench.send(ME, START)
        assert bench.wait_s(ME, START) == wait_s
        assert bench.wait_s(ME, START + wait_s) == 0
    for _ in range(2_000):
        bench.send(ME, START)
    assert bench.wait_s(ME, START) == LONGEST_S
    assert bench.wait_s(device_name(1), START) == 0
    again = Bench(300.0)
    again.restore(ME, bench.send(ME, START))
    assert again.wait_s(ME, START) == LONGEST_S
    assert bench.forgive(ME)
    assert not bench.forgive(ME)
    assert bench.wait_s(ME, START) == 0
    bench.send(ME, START)
    assert bench.wait_s(ME, START) == 300.0


def test_a_finished_task_still_gives_out_its_model_after_a_restart(desk: Desk) -> None:
    ended = tables.tasks.update().values(state=int(TaskState.COMPLETE), sequence=9)
    closed = tables.rounds.update().values(closed_at=START, phase="committed")
    desk.world.database.run_tx("end", lambda c: (c.execute(ended), c.execute(closed)))
    (announced,) = announcements(restart(desk))
    assert announced.state is TaskState.COMPLETE
    assert desk.coordinator.idle
    desk.send(ME, CheckIn("task", NO_ROUND, "1", "1"), certificate=identity(ME).certificate_der)
    pull = Pull(announced.checkpoint.sha256, 1024, (0,), (1,))
    (publication,) = desk.put(control_topic(ME), frame(ME, pull))
    assert topics.parse(publication.topic) == topics.ChunkDown(DeviceId(ME))
    assert chunks.decode_chunk(publication.payload).data == bytes(200)


def test_a_new_task_is_noticed(desk: Desk) -> None:
    config = replace(task_config(4), task="second", population="others")
    create_task(desk.world.database, desk.world.blobs, config, b"bundle", bytes(200), START)
    (announced,) = announcements(desk.coordinator.tick(desk.now))
    assert (announced.task, announced.population) == ("second", "others")
    message = CheckIn("second", announced.rid, "1", "1")
    assert desk.send(ME, message, certificate=identity(ME).certificate_der) == []
    assert list_rounds(desk.world.database, "second")[0].checked_in == 1
    assert desk.view.checked_in == 0


def test_one_device_cannot_join_one_round_under_another_tasks_name(desk: Desk) -> None:
    config = replace(task_config(4), task="second", population="others")
    create_task(desk.world.database, desk.world.blobs, config, b"bundle", bytes(200), START)
    desk.coordinator.tick(desk.now)
    message = CheckIn("second", desk.rid, "1", "1")
    answer = only(desk.send(ME, message, certificate=identity(ME).certificate_der), Rejection)
    assert answer.reason is RejectionReason.STALE_ANNOUNCEMENT


def test_two_tasks_run_side_by_side_through_faults(folder: Path) -> None:
    """Two populations under one coordinator, which crashes; each gets the mean of its own devices."""
    with World(folder, 6, config=task_config(6, rounds=2)) as world:
        second = replace(task_config(8, rounds=2, min_reports=4), task="second", population="others")
        create_task(world.database, world.blobs, second, b"another bundle", bytes(200), START)

        makers = [world.agent_maker(n) for n in range(6)] + [world.agent_maker(n, "others") for n in range(20, 28)]
        faults = (
            Reboot(device_name(1), 1, "share_keys"),
            Vanish(device_name(21), 1, "masked_input"),
            CrashCoordinator(30),
            CrashCoordinator(60),
        )
        fleet = VirtualFleet(world.make_coordinator, makers, seed=5, faults=faults, start_at=START)
        assert fleet.run(until=lambda: fleet.coordinator.idle)
        for task, numbers in (("task", range(6)), ("second", range(20, 28))):
            rounds = list_rounds(world.database, task)
            assert [view.phase for view in rounds] == ["committed", "committed"]
            version, checkpoint = newest_model(world.database, world.blobs, task)
            assert version == 3
            assert np.isfinite(np.frombuffer(checkpoint, "<f4")).all()
            assert rounds[1].reported == len(numbers)


@pytest.fixture
def folder() -> Iterator[Path]:
    with fresh_folder() as path:
        yield path


def test_the_plan_promises_what_the_task_does(desk: Desk) -> None:
    plan = desk.check_in_all()
    assert isinstance(plan, Plan)
    config = desk.world.config
    assert (plan.goal_count, plan.min_reports, plan.dimension) == (5, 2, config.dimension)
    assert plan.consistency is Consistency.THRESHOLD
    assert plan.expires_after_s > config.pacing.report_timeout_s
    assert plan.rid == desk.rid
