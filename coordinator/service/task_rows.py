"""A task's rows in the store: read when the coordinator starts, and writes collected for the next transaction.

Knows tables and no rules: what is written and when is the runner's business, and the transaction the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import sqlalchemy as sa

from coordinator.aggregation.accumulator import ModularSum
from coordinator.privacy.ledger import ReleaseEvent
from coordinator.service import journal
from coordinator.service.bench import Standing
from coordinator.store import tables
from edge_sdk.protocol.messages import AbandonReason, BlobRef, Digest, RoundId, TaskState

Write: TypeAlias = Callable[[sa.Connection], object]


@dataclass(frozen=True, slots=True)
class Model:
    """The newest model, and what the next round begins with."""

    version: int
    checkpoint: BlobRef
    optimizer_sha256: Digest
    clip_norm: float


@dataclass(frozen=True, slots=True)
class EndedRound:
    """How and when a round ended."""

    committed: bool
    reason: AbandonReason
    closed_at: float


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task but for its open round.

    Attributes:
        sequence: of its newest announcement.
        reason: why it stands as it does, in words.
        grouped: who took part in rounds whose means still wait for others.
        benched: who sits out.
        ended: its rounds, in the order in which they ended.
    """

    state: TaskState
    sequence: int
    reason: str
    model: Model
    ledger: list[ReleaseEvent]
    grouped: set[str]
    benched: dict[str, Standing]
    ended: list[EndedRound]


@dataclass(frozen=True, slots=True)
class StoredRound:
    """The open round.

    Attributes:
        plan: as it was sent.
        survivors: as they were published; None before.
        statistics: JSON.
        events: its journal.
        total: (inputs, their sum as bytes); None before the first.
    """

    plan: bytes
    software: str
    opened_at: float
    survivors: bytes | None
    statistics: str
    events: list[journal.Row]
    total: tuple[int, bytes] | None


class TaskRows:
    """One task's rows.

    Args:
        task: its name.
    """

    def __init__(self, task: str) -> None:
        self._task = task
        self._writes: list[Write] = []
        self._events: list[dict[str, object]] = []

    def take(self) -> list[Write]:
        """What was collected, in the order in which it must be written."""
        writes, self._writes = self._writes, []
        events, self._events = self._events, []
        if events:
            # First: a round that ended in this batch deletes its journal after.
            writes.insert(0, lambda c: c.execute(tables.journal.insert(), events))
        return writes

    # ---- reading

    def read(self, connection: sa.Connection) -> StoredTask:
        """The task but for its open round."""
        t, m, r, led = tables.tasks.c, tables.models.c, tables.rounds.c, tables.ledger.c
        g, b, name = tables.grouped.c, tables.benched.c, self._task
        row = connection.execute(sa.select(tables.tasks).where(t.task == name)).one()
        model = connection.execute(
            sa.select(tables.models).where(m.task == name).order_by(m.version.desc()).limit(1)
        ).one()
        ledger = connection.execute(sa.select(led.event).where(led.task == name).order_by(led.position)).scalars()
        grouped = connection.execute(sa.select(g.device_id).where(g.task == name)).scalars()
        benched = connection.execute(sa.select(b.device_id, b.times, b.until).where(b.task == name))
        columns = r.phase, r.reason, r.closed_at
        ended = sa.select(*columns).where(r.task == name, r.closed_at.is_not(None)).order_by(r.closed_at)
        return StoredTask(
            TaskState(row.state),
            row.sequence,
            row.reason,
            Model(
                model.version,
                BlobRef(Digest(model.checkpoint_sha256), model.checkpoint_bytes),
                Digest(model.optimizer_sha256),
                model.clip_norm,
            ),
            [ReleaseEvent.from_json(text) for text in ledger],
            set(grouped),
            {device_id: Standing(times, until) for device_id, times, until in benched},
            [
                EndedRound(phase == "committed", AbandonReason(reason), closed_at)
                for phase, reason, closed_at in connection.execute(ended)
            ],
        )

    def read_open_round(self, connection: sa.Connection) -> StoredRound | None:
        """The round that has not ended; None where there is none."""
        r, j, a = tables.rounds.c, tables.journal.c, tables.accumulators.c
        row = connection.execute(
            sa.select(tables.rounds).where(r.task == self._task, r.closed_at.is_(None))
        ).one_or_none()
        if row is None:
            return None
        events = [
            journal.Row(e.position, e.at, e.kind, e.device_id, e.payload)
            for e in connection.execute(sa.select(tables.journal).where(j.rid == row.rid).order_by(j.position))
        ]
        found = connection.execute(sa.select(a.count, a.vector).where(a.rid == row.rid)).one_or_none()
        total = None if found is None else (int(found[0]), bytes(found[1]))
        return StoredRound(row.plan, row.software, row.opened_at, row.survivors, row.statistics, events, total)

    # ---- writing

    def task(self, state: TaskState, reason: str, sequence: int) -> None:
        """How the task stands."""
        values = {"state": int(state), "reason": reason, "sequence": sequence}
        table = tables.tasks
        self._add(table.update().where(table.c.task == self._task).values(**values))

    def new_round(self, **values: Any) -> None:
        """A round that opened, by its columns but for its end."""
        self._add(tables.rounds.insert().values(task=self._task, reason=0, statistics="{}", **values))

    def round(self, rid: RoundId, **values: Any) -> None:
        """Columns of a round that changed."""
        table = tables.rounds
        self._add(table.update().where(table.c.rid == rid).values(**values))

    def forget_inputs(self, rid: RoundId) -> None:
        """A round ended: its sum and its journal, with what it held of devices, have served."""
        for table in (tables.accumulators, tables.journal):
            self._add(table.delete().where(table.c.rid == rid))

    def event(self, rid: RoundId, row: journal.Row) -> None:
        """An accepted event."""
        self._events.append({"rid": rid, **{field: getattr(row, field) for field in journal.FIELDS}})

    def total(self, rid: RoundId, total: ModularSum) -> None:
        """The running sum."""
        values = {"count": total.count, "vector": total.words.tobytes()}
        table = tables.accumulators

        def write(connection: sa.Connection) -> None:
            changed = connection.execute(table.update().where(table.c.rid == rid).values(**values))
            if changed.rowcount == 0:
                connection.execute(table.insert().values(rid=rid, **values))

        self._writes.append(write)

    def release(
        self,
        rid: RoundId,
        position: int,
        event: ReleaseEvent,
        model: Model,
        *,
        loss: float | None,
        accuracy: float | None,
        now: float,
    ) -> None:
        """A release: its place in the ledger, and the model that came of it."""
        self._add(
            tables.models.insert().values(
                task=self._task,
                version=model.version,
                checkpoint_sha256=model.checkpoint.sha256,
                checkpoint_bytes=model.checkpoint.size_bytes,
                optimizer_sha256=model.optimizer_sha256,
                clip_norm=model.clip_norm,
                loss=loss,
                accuracy=accuracy,
                created_at=now,
            )
        )
        self._add(tables.ledger.insert().values(task=self._task, position=position, rid=rid, event=event.to_json()))

    def group(self, device_ids: Sequence[str]) -> None:
        """Who took part in a round whose mean waits for others."""
        rows = [{"task": self._task, "device_id": device_id} for device_id in device_ids]
        self._writes.append(lambda c: c.execute(tables.grouped.insert(), rows))

    def forget_group(self) -> None:
        """The means of the group are combined."""
        self._add(tables.grouped.delete().where(tables.grouped.c.task == self._task))

    def bench(self, device_id: str, standing: Standing) -> None:
        """Who sits out."""
        self.forgive([device_id])
        row = {"task": self._task, "device_id": device_id, "times": standing.times, "until": standing.until}
        self._add(tables.benched.insert().values(**row))

    def forgive(self, device_ids: Sequence[str]) -> None:
        """Who sits out no more."""
        b = tables.benched.c
        self._add(tables.benched.delete().where(b.task == self._task, b.device_id.in_(device_ids)))

    def _add(self, statement: sa.Insert | sa.Update | sa.Delete) -> None:
        self._writes.append(lambda c: c.execute(statement))
