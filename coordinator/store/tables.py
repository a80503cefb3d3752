"""The coordinator's tables. Only what every SQL database can do is used.

The round's truth is its journal: the accepted events in order, from which the state is folded. Beside it stand the
running sum (a vector cannot be replayed from digests), the survivors once they are fixed (so that a restart which
would compute others is noticed), and for readers the phase and the statistics.
"""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 1

metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("population", String(63), nullable=False, unique=True),
    Column("config", Text, nullable=False),
    Column("state", Integer, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("sequence", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("task", String(63), ForeignKey("tasks.task"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("checkpoint_sha256", LargeBinary(32), nullable=False),
    Column("checkpoint_bytes", Integer, nullable=False),
    Column("optimizer_sha256", LargeBinary(32), nullable=False),
    Column("clip_norm", Float, nullable=False),
    Column("loss", Float),
    Column("accuracy", Float),
    Column("created_at", Float, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("rid", LargeBinary(16), primary_key=True),
    Column("task", String(63), ForeignKey("tasks.task"), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("software", String(32), nullable=False),
    Column("plan", LargeBinary, nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("survivors", LargeBinary),
    Column("closed_at", Float),
    Column("reason", Integer, nullable=False, default=0),
    Column("statistics", Text, nullable=False, default="{}"),
)

journal = Table(
    "journal",
    metadata,
    Column("rid", LargeBinary(16), ForeignKey("rounds.rid"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("device_id", String(63), nullable=False),
    Column("payload", LargeBinary, nullable=False),
)

accumulators = Table(
    "accumulators",
    metadata,
    Column("rid", LargeBinary(16), ForeignKey("rounds.rid"), primary_key=True),
    Column("count", Integer, nullable=False),
    Column("vector", LargeBinary, nullable=False),
)

# Who took part in a round whose mean still waits for others to be combined with. Emptied when they are.
grouped = Table(
    "grouped",
    metadata,
    Column("task", String(63), ForeignKey("tasks.task"), primary_key=True),
    Column("device_id", String(63), primary_key=True),
)

# Who sits out, having declined a plan or spoilt a round. A row goes with the device's next committed round.
benched = Table(
    "benched",
    metadata,
    Column("task", String(63), ForeignKey("tasks.task"), primary_key=True),
    Column("device_id", String(63), primary_key=True),
    Column("times", Integer, nullable=False),
    Column("until", Float, nullable=False),
)

devices = Table(
    "devices",
    metadata,
    Column("device_id", String(63), primary_key=True),
    Column("certificate", LargeBinary, nullable=False),
    Column("sdk_version", String(64), nullable=False),
    Column("runtime_version", String(64), nullable=False),
    Column("first_seen_at", Float, nullable=False),
    Column("last_seen_at", Float, nullable=False),
)

ledger = Table(
    "ledger",
    metadata,
    Column("task", String(63), ForeignKey("tasks.task"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("rid", LargeBinary(16), ForeignKey("rounds.rid"), nullable=False),
    Column("event", Text, nullable=False),
    UniqueConstraint("rid"),
)
