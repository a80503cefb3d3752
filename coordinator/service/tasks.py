"""Creating and reading tasks in the store: what `edge run create|list|show`, the demo and the tests call.

A running coordinator notices a new task by itself. Nothing here talks to devices.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sqlalchemy as sa

from coordinator.aggregation.server_optimizers import server_optimizer
from coordinator.config import Encoding, Privacy, TaskConfig
from coordinator.privacy.calibration import calibrate
from coordinator.privacy.ledger import ReleaseEvent
from coordinator.privacy.report import ReleasedRound
from coordinator.store import tables
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from edge_sdk.errors import ConfigError, StoreError
from edge_sdk.protocol.messages import AbandonReason, Digest, TaskState


def encoding_for(privacy: Privacy, *, dimension: int, min_reports: int, goal_count: int) -> Encoding:
    """The noise and the integers that keep the promise of `privacy`, whoever may collude or drop out.

    Raises:
        PrivacyError: no noise that fits the modulus keeps it.
    """
    plan = calibrate(
        clip_norm=privacy.clip_norm,
        dimension=dimension,
        min_reports=min_reports,
        max_devices=goal_count,
        rounds=privacy.participation_cap,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        corrupt_share=privacy.corrupt_share,
        mechanism=privacy.mechanism,
        bits=privacy.bits,
        local_noise=privacy.local_noise,
        adaptive_clipping=privacy.adaptive_clipping is not None,
    )
    return Encoding(
        mechanism=plan.mechanism,
        bits=plan.bits,
        clip_bit=plan.clip_bit,
        scale=plan.scale,
        norm_bound=plan.norm_bound,
        device_variance=plan.device_variance,
        noise_multiplier=plan.noise_multiplier,
        epsilon=plan.epsilon,
    )


def create_task(
    database: Database,
    blobs: Blobs,
    config: TaskConfig,
    bundle: bytes,
    checkpoint: bytes,
    now: float,
    *,
    parts: Iterable[bytes] = (),
) -> None:
    """Store a task with its bundle and first checkpoint, open for check-ins.

    Args:
        config: validated; its references to the bundle and its parts are set here.
        bundle: the signed bundle's head.
        checkpoint: float32 little-endian, in layout order.
        now: seconds since the epoch.
        parts: the bundle's.

    Raises:
        ConfigError: the task or population exists, or the checkpoint is not of the configured dimension.
    """
    if len(checkpoint) != 4 * config.dimension:
        raise ConfigError(f"the checkpoint has {len(checkpoint) // 4} parameters; the task says {config.dimension}")
    optimizer = server_optimizer(config.server_optimizer)
    reference = blobs.put(bundle)
    model = blobs.put(checkpoint)
    state = blobs.put(optimizer.dump(optimizer.init(np.frombuffer(checkpoint, "<f4"))))
    stored = replace(config, bundle=reference, parts=tuple(blobs.put(part) for part in parts))

    def write(connection: sa.Connection) -> None:
        t = tables.tasks.c
        taken = connection.execute(
            sa.select(t.task).where((t.task == config.task) | (t.population == config.population))
        ).scalar()
        if taken is not None:
            raise ConfigError(
                f"the run {taken!r} already uses that name or population",
                hint="choose another name and --population; edge run list shows those taken",
            )
        connection.execute(
            tables.tasks.insert().values(
                task=config.task,
                population=config.population,
                config=stored.to_json(),
                state=int(TaskState.OPEN),
                reason="",
                sequence=1,
                created_at=now,
            )
        )
        connection.execute(
            tables.models.insert().values(
                task=config.task,
                version=1,
                checkpoint_sha256=model.sha256,
                checkpoint_bytes=model.size_bytes,
                optimizer_sha256=state.sha256,
                clip_norm=config.privacy.clip_norm,
                created_at=now,
            )
        )

    database.run_tx("create the task", write)


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task, as people see it."""

    task: str
    population: str
    state: TaskState
    reason: str
    rounds: int
    committed: int
    model_version: int
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class RoundView:
    """A round, as people see it; counts are devices that reached each stage.

    `clip_norm` and `within`, the estimated share of updates within it, are told where clipping adapts.
    """

    number: int
    phase: str
    reason: AbandonReason
    opened_at: float
    closed_at: float | None
    checked_in: int
    selected: int
    advertised: int
    shared: int
    reported: int
    answered: int
    bytes_up: int
    bytes_down: int
    loss: float | None
    accuracy: float | None
    epsilon: float | None
    clip_norm: float | None
    within: float | None
    faults: dict[str, int]
    declined: dict[str, int]
    detail: str


def list_tasks(database: Database) -> list[TaskView]:
    """All tasks, oldest first."""

    def read(connection: sa.Connection) -> list[TaskView]:
        found = []
        for row in connection.execute(sa.select(tables.tasks).order_by(tables.tasks.c.created_at)):
            r, m = tables.rounds.c, tables.models.c
            committed = connection.execute(
                sa.select(sa.func.count()).where(r.task == row.task, r.phase == "committed")
            ).scalar_one()
            model = connection.execute(
                sa.select(m.version, m.accuracy).where(m.task == row.task).order_by(m.version.desc()).limit(1)
            ).one()
            rounds = TaskConfig.from_json(row.config).rounds
            state = TaskState(row.state)
            found.append(
                TaskView(
                    row.task,
                    row.population,
                    state,
                    row.reason,
                    rounds,
                    committed,
                    model.version,
                    model.accuracy,
                )
            )
        return found

    return database.run_tx("list the tasks", read)


def task_config(database: Database, task: str) -> TaskConfig:
    """A task's configuration.

    Raises:
        ConfigError: there is no such task.
    """

    def read(connection: sa.Connection) -> str | None:
        t = tables.tasks.c
        return connection.execute(sa.select(t.config).where(t.task == task)).scalar()

    text = database.run_tx("read the task", read)
    if text is None:
        raise ConfigError(f"there is no run {task!r}", hint="edge run list shows all")
    return TaskConfig.from_json(text)


def resume_task(database: Database, task: str) -> None:
    """Open a paused task again; a coordinator that starts after this goes on with it.

    Raises:
        ConfigError: there is no such task, or it is not paused.
    """

    def write(connection: sa.Connection) -> None:
        t = tables.tasks.c
        row = connection.execute(sa.select(t.state, t.sequence).where(t.task == task)).one_or_none()
        if row is None:
            raise ConfigError(f"there is no run {task!r}", hint="edge run list shows all")
        if row.state != TaskState.PAUSED:
            raise ConfigError(f"the run {task!r} is {TaskState(row.state).name.lower()}, not paused")
        values = {"state": int(TaskState.OPEN), "reason": "", "sequence": row.sequence + 1}
        connection.execute(tables.tasks.update().where(t.task == task).values(**values))

    database.run_tx("resume the task", write)


def list_rounds(database: Database, task: str) -> list[RoundView]:
    """All rounds of a task in the order they opened, the open one last."""

    def read(connection: sa.Connection) -> list[RoundView]:
        r = tables.rounds.c
        rows = connection.execute(sa.select(tables.rounds).where(r.task == task).order_by(r.opened_at))
        return [_round_view(row) for row in rows]

    return database.run_tx("list the rounds", read)


def read_ledger(database: Database, task: str) -> list[ReleasedRound]:
    """A task's ledger in order, each entry with the plan of its round."""

    def read(connection: sa.Connection) -> list[ReleasedRound]:
        led, r = tables.ledger.c, tables.rounds.c
        query = (
            sa.select(r.number, r.rid, r.plan, led.event)
            .join_from(tables.ledger, tables.rounds, led.rid == r.rid)
            .where(led.task == task)
            .order_by(led.position)
        )
        return [
            ReleasedRound(row.number, row.rid, row.plan, ReleaseEvent.from_json(row.event))
            for row in connection.execute(query)
        ]

    return database.run_tx("read the ledger", read)


def _round_view(row: sa.Row[Any]) -> RoundView:
    try:
        data = json.loads(row.statistics)
    except ValueError as error:
        raise StoreError(
            f"round {row.number} in the coordinator's store cannot be read: {error}",
            hint="the file is damaged: restore the work folder from a backup",
        ) from error
    return RoundView(
        number=row.number,
        phase=row.phase,
        reason=AbandonReason(row.reason),
        opened_at=row.opened_at,
        closed_at=row.closed_at,
        checked_in=data.get("checked_in", 0),
        selected=data.get("selected", 0),
        advertised=data.get("advertised", 0),
        shared=data.get("shared", 0),
        reported=data.get("reported", 0),
        answered=data.get("answered", 0),
        bytes_up=data.get("bytes_up", 0),
        bytes_down=data.get("bytes_down", 0),
        loss=data.get("loss"),
        accuracy=data.get("accuracy"),
        epsilon=data.get("epsilon"),
        clip_norm=data.get("clip_norm"),
        within=data.get("within"),
        faults=data.get("faults", {}),
        declined=data.get("declined", {}),
        detail=data.get("detail", ""),
    )


def newest_model(database: Database, blobs: Blobs, task: str) -> tuple[int, bytes]:
    """The newest version number of a task's model and its checkpoint."""

    def read(connection: sa.Connection) -> tuple[int, Digest] | None:
        m = tables.models.c
        query = sa.select(m.version, m.checkpoint_sha256).where(m.task == task).order_by(m.version.desc()).limit(1)
        row = connection.execute(query).one_or_none()
        return None if row is None else (row.version, Digest(row.checkpoint_sha256))

    found = database.run_tx("read the model", read)
    if found is None:
        raise ConfigError(f"there is no task {task!r}", hint="list them with: edge run list")
    return found[0], blobs.get(found[1])
