"""One task at work: its open round, the running sum, and the writes that the next transaction makes durable.

The runner applies events to the pure round and collects what must be written (`task_rows`); the engine commits all
runners' writes in one transaction and only then publishes. Knows no broker, topic, signature or table.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass, field

import numpy as np

from coordinator.aggregation.accumulator import ModularSum
from coordinator.aggregation.server_optimizers import server_optimizer
from coordinator.config import TaskConfig
from coordinator.privacy import accountant
from coordinator.privacy.ledger import ReleaseEvent
from coordinator.rounds import closing, events, transitions
from coordinator.rounds.events import Accumulate, Effect, Event, Fault, Refuse, VerifyPeer
from coordinator.rounds.states import (
    Abandoned,
    Committed,
    Releasing,
    RoundConfig,
    Selecting,
    State,
    Unmasking,
    config_of,
    counts,
    phase,
    survivors_fixed,
)
from coordinator.service import journal
from coordinator.service.bench import Bench, backoff_s
from coordinator.service.release import ReleaseFailed, ReleaseJob, ReleaseResult
from coordinator.service.task_rows import Model, StoredTask, TaskRows, Write
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from edge_sdk.errors import LocalProtocolError
from edge_sdk.protocol import codec
from edge_sdk.protocol.messages import (
    NO_ROUND,
    AbandonReason,
    Announcement,
    Decline,
    DeclineReason,
    Digest,
    Plan,
    RoundId,
    TaskState,
)
from edge_sdk.protocol.policy import release_of
from edge_sdk.secagg import modular, suite

log = logging.getLogger("edge.coordinator")

_NOT_ITS_OWN = frozenset(
    {DeclineReason.ROSTER_UNSOUND, DeclineReason.SURVIVORS_UNSOUND, DeclineReason.ROUND_ALREADY_JOINED}
)
"""Declines that others may have caused, or another round: nobody sits out for them."""

SOFTWARE = "1"
"""Rises when the transitions change meaning: a round that older code opened is abandoned, not reinterpreted."""


@dataclass(slots=True)
class Statistics:
    """What people see of a round; nothing here decides anything."""

    bytes_up: int = 0
    bytes_down: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    declined: dict[str, int] = field(default_factory=dict)
    loss: float | None = None
    accuracy: float | None = None
    epsilon: float | None = None
    clip_norm: float | None = None
    within: float | None = None
    detail: str = ""


class TaskRunner:
    """A task's rounds, one after the other.

    Args:
        config: the task's.
        database, blobs: the store.
        verify_peer: checks the signature over an advertisement.
    """

    def __init__(self, config: TaskConfig, database: Database, blobs: Blobs, verify_peer: VerifyPeer) -> None:
        self.config = config
        self._database = database
        self._blobs = blobs
        self._verify_peer = verify_peer
        self.state: State | None = None
        self.task_state = TaskState.OPEN
        self.reason = ""
        self.sequence = 0
        self.statistics = Statistics()
        self.model_version = 0
        self.checkpoint = config.bundle
        self._optimizer_sha256 = Digest(b"")
        self._clip_norm = config.privacy.clip_norm
        self._position = 0
        self._opened_at = 0.0
        self._total: ModularSum | None = None
        self._total_changed = False
        self.bench = Bench(config.pacing.sit_out_s)
        self._optimizer = server_optimizer(config.server_optimizer)
        self.grouped: set[str] = set()
        self._opens_at = 0.0
        self._abandoned_in_a_row = 0
        self._failed_in_a_row = 0
        self._committed = 0
        self._ledger: list[ReleaseEvent] = []
        self._rows = TaskRows(config.task)
        self._touched = False

    # ---- loading

    def load(self, now: float) -> None:
        """Read the task and fold its open round.

        A round that other software opened, or whose survivors would now come out differently from those that were
        published, is abandoned and its id burnt.
        """
        self._load_task(self._database.run_tx("read the task", self._rows.read))
        found = self._database.run_tx("read the open round", self._rows.read_open_round)
        if found is None:
            return
        plan = codec.decode(Plan, found.plan)
        self._opened_at = found.opened_at
        config = self._round_config(plan, found.plan)
        self._position = len(found.events)
        self.statistics = _statistics_from(found.statistics)
        if found.software != SOFTWARE:
            self.state = transitions.open_round(config, found.opened_at)
            self.apply(events.Stopped(AbandonReason.RESTARTED_DIFFERENTLY), now)
            return
        self.state = journal.fold(config, found.opened_at, found.events, self._verify_peer)
        self._total = None
        if found.total is not None:
            count, vector = found.total
            self._total = ModularSum(plan.bits, count, np.frombuffer(vector, modular.work_dtype(plan.bits)))
        summed = 0 if self._total is None else self._total.count
        fixed = survivors_fixed(self.state)
        published = codec.encode(fixed) if fixed else None
        if found.survivors != published or summed != counts(self.state).reported:
            self.apply(events.Stopped(AbandonReason.RESTARTED_DIFFERENTLY), now)

    def _load_task(self, found: StoredTask) -> None:
        self.task_state, self.sequence, self.reason = found.state, found.sequence, found.reason
        self.model_version, self.checkpoint = found.model.version, found.model.checkpoint
        self._optimizer_sha256, self._clip_norm = found.model.optimizer_sha256, found.model.clip_norm
        self._ledger, self.grouped = found.ledger, found.grouped
        for device_id, standing in found.benched.items():
            self.bench.restore(device_id, standing)
        for ended in found.ended:
            # Whether anybody was turned away is not kept: such rounds count again from here on.
            empty = ended.reason is AbandonReason.TOO_FEW_CHECK_INS
            self._count_end(ended.committed, ended.closed_at, empty=empty)

    # ---- a round's life

    @property
    def plan(self) -> Plan | None:
        """The open round's plan."""
        return None if self.state is None else config_of(self.state).plan

    def wants_round(self, now: float) -> bool:
        """Whether a new round should open."""
        return self.opens_at is not None and now >= self.opens_at

    @property
    def opens_at(self) -> float | None:
        """From when on a new round should open, or None."""
        return self._opens_at if self.state is None and self.task_state is TaskState.OPEN else None

    def open_round(self, rid: RoundId, now: float) -> None:
        """Open the next round, or end the task where its rounds are done or its budget would not bear another."""
        if self._committed >= self.config.rounds:
            self._end_task(TaskState.COMPLETE, "all rounds are committed")
            return
        plan = self.config.plan(
            rid,
            round_number=self._committed + 1,
            model_version=self.model_version,
            checkpoint=self.checkpoint,
            clip_norm=self._clip_norm,
        )
        if self._would_exceed(plan):
            self._end_task(TaskState.COMPLETE, "the privacy budget is spent")
            return
        body = codec.encode(plan)
        self.sequence += 1
        self.reason = ""
        self.state = transitions.open_round(self._round_config(plan, body), now)
        self._opened_at, self._position = now, 0
        self._total, self._total_changed = None, False
        self.statistics = Statistics()
        self._rows.new_round(
            rid=rid, number=plan.round_number, software=SOFTWARE, plan=body, opened_at=now, phase=phase(self.state)
        )
        self._write_task()

    def apply(self, event: Event, now: float, vector: modular.Words | None = None) -> tuple[Effect, ...]:
        """Apply an event to the open round, noting what to write; returns what is left for the engine to do.

        Args:
            event: what happened.
            now: seconds since the epoch.
            vector: the unpacked masked vector, with a masked input.
        """
        if self.state is None:
            return ()
        before = self.state
        self.state, effects = transitions.step(before, event, now, self._verify_peer)
        if isinstance(event, events.From) and isinstance(event.message, Decline) and self.state is not before:
            _count_one(self.statistics.declined, event.message.reason.name.lower())
            if event.message.reason not in _NOT_ITS_OWN:
                self._sit_out(event.device_id, now)
        left: list[Effect] = []
        for effect in effects:
            match effect:
                case Accumulate():
                    if vector is None:
                        raise LocalProtocolError("a masked input without its vector")
                    self._accumulate(vector)
                case Refuse(_, fault):
                    self.count(fault)
                case _:
                    left.append(effect)
        if self.state is not before:
            self._rows.event(config_of(self.state).plan.rid, journal.to_row(self._position, event, now))
            self._position += 1
            self._touched = True
            if isinstance(self.state, Committed | Abandoned):
                self._close(self.state, now)
        return tuple(left)

    def count(self, fault: Fault) -> None:
        """Count a device's fault in the open round."""
        _count_one(self.statistics.faults, fault)
        self._touched = True

    def _accumulate(self, vector: modular.Words) -> None:
        total = self._total or ModularSum.empty(vector.size, self.config.encoding.bits)
        self._total = total.plus(vector)
        self._total_changed = True

    def _close(self, state: Committed | Abandoned, now: float) -> None:
        reason = AbandonReason.NONE if isinstance(state, Committed) else state.reason
        if (
            isinstance(state, Abandoned)
            and isinstance(state.last, Unmasking)
            and reason is AbandonReason.TOO_FEW_ANSWERS
        ):
            self._spoiled(state.last.cohort.names(closing.spoilers(state.last)), now)
        selecting = state.last if isinstance(state, Abandoned) else None
        empty = (
            reason is AbandonReason.TOO_FEW_CHECK_INS and isinstance(selecting, Selecting) and not selecting.turned_away
        )
        self._count_end(isinstance(state, Committed), now, empty=empty)
        self._write_round(state, closed_at=now, reason=reason)
        # Devices' ids were never tied to a value, and go too.
        self._rows.forget_inputs(config_of(state).plan.rid)
        self._say_closed(state)
        self.state = None
        if not self._abandoned_in_a_row:
            return
        said = f"{self._abandoned_in_a_row} rounds in a row were abandoned: {reason.name.lower()}"
        # Every so many: a task that was resumed has as many tries again.
        if not empty and self._failed_in_a_row % self.config.max_abandoned == 0:
            self._end_task(TaskState.PAUSED, said)
        else:
            log.info("%s opens its next round in %.0f s: %s", self.config.task, self._opens_at - now, said)
            self._say_task(TaskState.OPEN, said)

    def _spoiled(self, device_ids: tuple[str, ...], now: float) -> None:
        """Nobody could rebuild these devices' secrets."""
        for device_id in device_ids:
            log.warning("%s shared what is of no use, and sits out", device_id)
            self.count(Fault.BAD_SHARES)
            self._sit_out(device_id, now)

    def _sit_out(self, device_id: str, now: float) -> None:
        self._rows.bench(device_id, self.bench.send(device_id, now))

    def _forgive(self, device_ids: tuple[str, ...]) -> None:
        forgiven = [device_id for device_id in device_ids if self.bench.forgive(device_id)]
        if forgiven:
            self._rows.forgive(forgiven)

    def _say_closed(self, state: Committed | Abandoned) -> None:
        reached, statistics = counts(state), self.statistics
        words = [f"{reached.reported} of {reached.selected or reached.checked_in} devices reported"]
        if statistics.accuracy is not None:
            words.append(f"accuracy {statistics.accuracy:.1%}")
        if statistics.epsilon is not None and math.isfinite(statistics.epsilon):
            words.append(f"epsilon {statistics.epsilon:.2f}")
        words += [f"{count} declined as {reason}" for reason, count in sorted(statistics.declined.items())]
        if statistics.detail:
            words.append(statistics.detail)
        ended = "committed"
        if isinstance(state, Abandoned):
            ended = f"abandoned, {state.reason.name.lower().replace('_', ' ')}"
        number = config_of(state).plan.round_number
        log.info("%s round %d of %d %s: %s", self.config.task, number, self.config.rounds, ended, ", ".join(words))

    def _count_end(self, committed: bool, now: float, *, empty: bool) -> None:
        """Count a round's end.

        Args:
            committed: or abandoned.
            now: seconds since the epoch.
            empty: too few came, and nobody was turned away: no failure, but a fleet that is asleep, or has spent what
                it may send today.
        """
        if committed:
            self._committed += 1
            self._abandoned_in_a_row = self._failed_in_a_row = 0
            self._opens_at = now
        else:
            self._abandoned_in_a_row += 1
            self._failed_in_a_row += not empty
            pacing = self.config.pacing
            self._opens_at = now + backoff_s(self._abandoned_in_a_row, pacing.backoff_s, pacing.backoff_limit_s)

    # ---- releasing

    def release_job(self) -> ReleaseJob:
        """The frozen input of the release."""
        if not isinstance(self.state, Releasing) or self._total is None:
            raise LocalProtocolError("there is nothing to release")
        return ReleaseJob(
            rid=config_of(self.state).plan.rid,
            config=self.config,
            unmasking=self.state.unmasking,
            total=self._total.words,
            parameters=np.frombuffer(self._blobs.get(self.checkpoint.sha256), "<f4"),
            optimizer_state=self._blobs.get(self._optimizer_sha256),
            bundle=tuple(self._blobs.get(ref.sha256) for ref in (self.config.bundle, *self.config.parts)),
        )

    def released(self, result: ReleaseResult | ReleaseFailed, now: float) -> tuple[Effect, ...]:
        """Make a release durable: ledger, model, round state and sequence in the same transaction."""
        if not isinstance(self.state, Releasing) or config_of(self.state).plan.rid != result.rid:
            return ()
        for _ in result.liars:
            self.count(Fault.BAD_SHARES)
        if isinstance(result, ReleaseFailed):
            self._spoiled(result.spoilers, now)
            self.statistics.detail = result.detail
            return self.apply(events.Stopped(result.reason), now)
        plan, cohort = config_of(self.state).plan, self.state.unmasking.cohort
        reported = cohort.names(self.state.unmasking.reported)
        self._forgive(reported)
        self._group(reported)
        checkpoint = self._blobs.put(result.parameters.astype("<f4").tobytes())
        optimizer = self._blobs.put(result.optimizer_state)
        event = ReleaseEvent.of(release_of(plan), result.reports)
        position = len(self._ledger)
        self._ledger.append(event)
        self.statistics.loss, self.statistics.accuracy = result.loss, result.accuracy
        self.statistics.detail = result.warning
        self.statistics.epsilon = self._epsilon()
        adaptive = self.config.privacy.adaptive_clipping
        if adaptive is not None and result.within is not None:
            self.statistics.clip_norm, self.statistics.within = plan.clip_norm, result.within
            self._clip_norm = adaptive.next_norm(plan.clip_norm, result.within, start=self.config.privacy.clip_norm)
        self.model_version += 1
        self.checkpoint, self._optimizer_sha256 = checkpoint, optimizer.sha256
        model = Model(self.model_version, checkpoint, optimizer.sha256, self._clip_norm)
        self._rows.release(plan.rid, position, event, model, loss=result.loss, accuracy=result.accuracy, now=now)
        return self.apply(events.Released(), now)

    def _group(self, reported: tuple[str, ...]) -> None:
        """Remember who took part until the means of the group are combined, so that nobody is in two of them."""
        if self._optimizer.groups == 1:
            return
        if self._optimizer.completes(self._committed + 1):
            self.grouped.clear()
            self._rows.forget_group()
            return
        self.grouped.update(reported)
        self._rows.group(reported)

    def _would_exceed(self, plan: Plan) -> bool:
        event = ReleaseEvent.of(release_of(plan), plan.min_reports)
        privacy = self.config.privacy
        return accountant.would_exceed(
            self._ledger, event, privacy.epsilon, privacy.delta, participations=privacy.participation_cap
        )

    def _epsilon(self) -> float:
        """What the releases so far cost a device that took part in as many of them as it may."""
        privacy = self.config.privacy
        return accountant.epsilon(self._ledger, privacy.delta, participations=privacy.participation_cap)

    # ---- what is announced and planned

    def announcement(self) -> Announcement:
        """What the population hears of this task now."""
        plan = self.plan
        return Announcement(
            sequence=self.sequence,
            population=self.config.population,
            task=self.config.task,
            state=self.task_state,
            rid=plan.rid if plan else NO_ROUND,
            round_number=plan.round_number if plan else 0,
            rounds=self.config.rounds,
            selection_window_s=self.config.pacing.selection_timeout_s,
            model_version=self.model_version,
            bundle=self.config.bundle,
            checkpoint=self.checkpoint,
        )

    def _round_config(self, plan: Plan, body: bytes) -> RoundConfig:
        digest = Digest(suite.digest(body))
        model = suite.digest(plan.bundle.sha256, plan.checkpoint.sha256)
        context = suite.context(plan.rid, digest, model)
        return RoundConfig(plan, digest, context, self.config.min_check_ins, self.config.pacing)

    # ---- writing

    def take_writes(self) -> list[Write]:
        """All that the next transaction must write; the caller commits it or stops the process."""
        if self._touched and self.state is not None:
            self._write_round(self.state)
        if self._total_changed and self.state is not None and self._total is not None:
            self._rows.total(config_of(self.state).plan.rid, self._total)
        self._touched = self._total_changed = False
        return self._rows.take()

    def _write_round(
        self, state: State, closed_at: float | None = None, reason: AbandonReason = AbandonReason.NONE
    ) -> None:
        fixed = survivors_fixed(state)
        self._rows.round(
            config_of(state).plan.rid,
            phase=phase(state),
            survivors=codec.encode(fixed) if fixed else None,
            closed_at=closed_at,
            reason=int(reason),
            statistics=json.dumps({**asdict(self.statistics), **asdict(counts(state))}),
        )

    def _write_task(self) -> None:
        self._rows.task(self.task_state, self.reason, self.sequence)

    def _end_task(self, state: TaskState, reason: str) -> None:
        log.info("%s is %s: %s", self.config.task, state.name.lower(), reason)
        self._say_task(state, reason)

    def _say_task(self, state: TaskState, reason: str) -> None:
        self.task_state, self.reason = state, reason
        self.sequence += 1
        self._write_task()


def _count_one(counts: dict[str, int], what: str) -> None:
    counts[what] = counts.get(what, 0) + 1


def _statistics_from(text: str) -> Statistics:
    data = json.loads(text)
    return Statistics(
        bytes_up=data.get("bytes_up", 0),
        bytes_down=data.get("bytes_down", 0),
        faults=data.get("faults", {}),
        declined=data.get("declined", {}),
    )
