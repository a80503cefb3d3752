"""The coordinator's store and what people do with it: create, list, show; and a disk or database that fails."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from coordinator.config import TaskConfig
from coordinator.privacy.clipping import AdaptiveClipping
from coordinator.service.tasks import create_task, list_rounds, list_tasks, newest_model, task_config
from coordinator.store import tables
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from edge_sdk.errors import ConfigError, StoreError
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.protocol.messages import Decline, DeclineReason, TaskState
from edge_sdk.secagg import suite
from tests.simulation.world import START, device_name, fresh_folder
from tests.simulation.world import task_config as make_config
from tests.unit.desk import Desk

CONFIG = make_config(8)
CHECKPOINT = bytes(4 * CONFIG.dimension)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.in_folder(tmp_path / "work")
    yield opened
    opened.close()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "work" / "blobs")


def execute(database: Database, sql: str) -> Any:
    return database.run_tx(
        "test", lambda c: c.execute(sa.text(sql)).fetchall() if "SELECT" in sql else c.execute(sa.text(sql))
    )


# ---- tasks


def test_a_task_is_created_and_found_again(database: Database, blobs: Blobs) -> None:
    create_task(database, blobs, CONFIG, b"bundle", CHECKPOINT, START)
    stored = task_config(database, "task")
    assert stored == replace(CONFIG, bundle=stored.bundle)
    assert blobs.get(stored.bundle.sha256) == b"bundle"
    (view,) = list_tasks(database)
    assert (view.task, view.state, view.rounds, view.committed, view.model_version) == ("task", TaskState.OPEN, 1, 0, 1)
    assert newest_model(database, blobs, "task") == (1, CHECKPOINT)
    assert list_rounds(database, "task") == []


@pytest.mark.parametrize("changes", [{"population": "others"}, {"task": "another"}, {}])
def test_names_are_taken_once(database: Database, blobs: Blobs, changes: dict[str, Any]) -> None:
    create_task(database, blobs, CONFIG, b"bundle", CHECKPOINT, START)
    with pytest.raises(ConfigError, match="already uses") as caught:
        create_task(database, blobs, replace(CONFIG, **changes), b"bundle", CHECKPOINT, START)
    assert "--population" in caught.value.hint
    assert len(list_tasks(database)) == 1


def test_a_checkpoint_of_another_dimension_is_refused(database: Database, blobs: Blobs) -> None:
    with pytest.raises(ConfigError, match="49 parameters"):
        create_task(database, blobs, CONFIG, b"bundle", CHECKPOINT[4:], START)
    assert list_tasks(database) == []


@pytest.mark.parametrize("ask", [lambda d, b: task_config(d, "x"), lambda d, b: newest_model(d, b, "x")])
def test_unknown_tasks_are_named(database: Database, blobs: Blobs, ask: Callable[[Database, Blobs], Any]) -> None:
    with pytest.raises(ConfigError, match="there is no") as caught:
        ask(database, blobs)
    assert "'x'" in str(caught.value)
    assert "edge run list" in caught.value.hint


# ---- configurations


def test_a_configuration_survives_its_json() -> None:
    for config in (CONFIG, make_config(12, epsilon=8.0), replace(CONFIG, evaluation="test.npz", signer="PEM")):
        assert TaskConfig.from_json(config.to_json()) == config


def test_every_choice_of_privacy_survives_as_json() -> None:
    chosen = replace(CONFIG.privacy, mechanism=Mechanism.DISCRETE_GAUSSIAN, adaptive_clipping=AdaptiveClipping(0.7))
    for config in (CONFIG, replace(CONFIG, privacy=chosen)):
        assert TaskConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '"x"', "null", '{"bundle": {}}', CONFIG.to_json().replace("epochs", "e")]
)
def test_json_that_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        TaskConfig.from_json(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": ""},
        {"task": "Task"},
        {"task": "x" * 64},
        {"population": "a/b"},
        {"dimension": 0},
        {"rounds": 0},
        {"max_abandoned": 0},
        {"min_reports": 1},
        {"min_check_ins": 3},
        {"goal_count": 3},
        {"goal_count": 65_536},
        {"training": replace(CONFIG.training, epochs=0)},
        {"training": replace(CONFIG.training, learning_rate=math.nan)},
        {"training": replace(CONFIG.training, learning_rate=math.inf)},
        {"training": replace(CONFIG.training, proximal=-0.1)},
        {"training": replace(CONFIG.training, proximal=math.inf)},
        {"pacing": replace(CONFIG.pacing, quiet_s=0.0)},
        {"pacing": replace(CONFIG.pacing, report_timeout_s=-1.0)},
        {"privacy": replace(CONFIG.privacy, epsilon=0.0)},
        {"privacy": replace(CONFIG.privacy, epsilon=math.nan)},
        {"privacy": replace(CONFIG.privacy, delta=0.0)},
        {"privacy": replace(CONFIG.privacy, delta=1.0)},
        {"privacy": replace(CONFIG.privacy, clip_norm=0.0)},
        {"privacy": replace(CONFIG.privacy, participation_cap=0)},
        {"privacy": replace(CONFIG.privacy, corrupt_share=-0.1)},
        {"privacy": replace(CONFIG.privacy, corrupt_share=0.4)},
        {"privacy": replace(CONFIG.privacy, dropout_share=0.5)},
        {"privacy": replace(CONFIG.privacy, mechanism=Mechanism.NONE)},
        *({"privacy": replace(CONFIG.privacy, adaptive_clipping=AdaptiveClipping(q))} for q in (0.0, 1.0, math.nan)),
        {"privacy": replace(CONFIG.privacy, adaptive_clipping=AdaptiveClipping(0.5, learning_rate=0.0))},
        {"privacy": replace(CONFIG.privacy, adaptive_clipping=AdaptiveClipping(0.5)), "query": "count"},
        # Ten thousand devices of which a third may vanish: more neighbours than a message holds boxes for.
        {"goal_count": 10_000, "privacy": replace(CONFIG.privacy, corrupt_share=0.1, dropout_share=0.3)},
    ],
    ids=str,
)
def test_a_task_that_could_not_run_is_refused_when_it_is_made(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(CONFIG, **changes)


# ---- databases that fail


@pytest.mark.parametrize("place", ["a file", "nowhere"])
def test_a_place_that_cannot_be_used_says_so(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").write_text("")
    folder = tmp_path / "a file" / "work" if place == "a file" else Path("/proc/nowhere")
    for use in (Database.in_folder, Blobs):
        with pytest.raises(StoreError, match="cannot create") as caught:
            use(folder)
        assert "may write" in caught.value.hint


def test_a_foreign_file_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "coordinator.sqlite"
    file.write_bytes(b"something else" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        Database.in_folder(tmp_path)
    assert file.read_bytes() == b"something else" * 1000


def test_a_store_of_another_version_is_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "coordinator.sqlite")
    connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT)")
    connection.execute("INSERT INTO meta VALUES ('schema', '99')")
    connection.commit()
    with pytest.raises(StoreError, match="schema 99") as caught:
        Database.in_folder(tmp_path)
    assert "another work folder" in caught.value.hint
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert names == ["meta"]
    connection.close()


def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    def half(connection: sa.Connection) -> None:
        connection.execute(tables.meta.insert().values(key="a", value="b"))
        raise RuntimeError("died here")

    with pytest.raises(RuntimeError):
        database.run_tx("test", half)
    assert execute(database, "SELECT key FROM meta") == [("schema",)]


def test_conflicts_are_tried_again_and_other_errors_are_not(database: Database) -> None:
    tries: list[str] = []

    def failing(text: str, times: int) -> Callable[[sa.Connection], str]:
        def work(_: sa.Connection) -> str:
            tries.append(text)
            if len(tries) <= times:
                raise sa.exc.OperationalError("x", {}, sqlite3.OperationalError(text))
            return "done"

        return work

    assert database.run_tx("test", failing("database is locked", 2)) == "done"
    assert len(tries) == 3
    for text, retryable in (("database is locked", False), ("disk I/O error", True)):
        tries.clear()
        with pytest.raises(StoreError, match=text):
            database.run_tx("test", failing(text, 9), retryable=retryable)
        assert len(tries) == 1


def test_a_conflict_that_stays_is_an_error(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.store.database._BACKOFF_S", 0.0)

    def work(_: sa.Connection) -> None:
        raise sa.exc.OperationalError("x", {}, sqlite3.OperationalError("database is locked"))

    with pytest.raises(StoreError, match="could not test: database is locked"):
        database.run_tx("test", work)


def test_a_full_disk_stops_the_coordinator_with_nothing_half_written() -> None:
    with fresh_folder() as folder:
        desk = Desk(folder)
        with desk.world:
            desk.check_in_all()
            ((pages,),) = execute(desk.world.database, "SELECT page_count FROM pragma_page_count()")
            execute(desk.world.database, f"PRAGMA max_page_count = {pages}")
            before = dump(desk.world.database)
            message = Decline(desk.rid, DeclineReason.TRAINING_FAILED, "x" * 50_000)
            with pytest.raises(StoreError, match="full") as caught:
                desk.send(device_name(0), message)
            assert "free some disk space" in caught.value.hint
            assert dump(desk.world.database) == before


def test_a_read_only_database_says_what_to_do(database: Database) -> None:
    execute(database, "PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="readonly") as caught:
        database.run_tx("write", lambda c: c.execute(tables.meta.insert().values(key="a", value="b")))
    assert "writable" in caught.value.hint


def test_nothing_is_published_before_it_is_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    with fresh_folder() as folder:
        desk = Desk(folder)
        with desk.world:
            for number in range(4):
                desk.check_in(device_name(number))
            run_tx = desk.world.database.run_tx

            def failing(name: str, work: Any, **options: Any) -> Any:
                if name == "record what happened":
                    raise StoreError("disk full")
                return run_tx(name, work, **options)

            before = dump(desk.world.database)
            monkeypatch.setattr(desk.world.database, "run_tx", failing)
            with pytest.raises(StoreError):
                desk.check_in(device_name(4))
            monkeypatch.undo()
            assert dump(desk.world.database) == before
            desk.coordinator = desk.world.make_coordinator()
            desk.coordinator.start(desk.now)
            assert desk.view.checked_in == 4
            assert len(desk.check_in(device_name(4))) == 5


def dump(database: Database) -> dict[str, list[Any]]:
    """Every row of every table."""
    return {
        table.name: database.run_tx("read", lambda c, t=table: sorted(map(repr, c.execute(sa.select(t)))))  # type: ignore[misc]
        for table in tables.metadata.sorted_tables
    }


# ---- blobs


def test_blobs_are_kept_by_their_digest(blobs: Blobs, tmp_path: Path) -> None:
    reference = blobs.put(b"data")
    assert (reference.sha256, reference.size_bytes) == (suite.digest(b"data"), 4)
    assert blobs.put(b"data") == reference
    assert Blobs(tmp_path / "work" / "blobs").get(reference.sha256) == b"data"
    assert [file.name for file in (tmp_path / "work" / "blobs").iterdir()] == [reference.sha256.hex()]


def test_blobs_that_are_missing_or_damaged_are_not_given_out(blobs: Blobs, tmp_path: Path) -> None:
    reference = blobs.put(b"data")
    (file,) = (tmp_path / "work" / "blobs").iterdir()
    file.write_bytes(b"dada")
    with pytest.raises(StoreError, match="damaged"):
        blobs.get(reference.sha256)
    file.unlink()
    with pytest.raises(StoreError, match="cannot read"):
        blobs.get(reference.sha256)


def test_a_blob_that_cannot_be_written_leaves_nothing(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        blobs.put(b"data")
    assert "disk space" in caught.value.hint
    assert list((tmp_path / "work" / "blobs").iterdir()) == []
