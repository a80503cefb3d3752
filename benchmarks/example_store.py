"""The example store against plain SQLite: rows added and read a second, and memory at a million rows.

    python -m benchmarks.example_store [ROWS]

Both keep the same bytes in the same kind of table with the same settings of SQLite; plain SQLite checks, seals, ages,
counts and holds out nothing. They take turns in one process. Memory is that of fresh processes, one with few rows and
one with ROWS, a million by default, that each train for some steps: what the second's resident set grows by beyond the
first's, from before the rows are listed to the peak. Linux only: the peak is reset through /proc.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.fields import f32, i64

SCHEMA = {"x": f32(16), "y": i64()}
FEW = 1_000
TURNS = 7
BATCH = 32

_CHILD = """
import json, sys, time
from pathlib import Path
import numpy as np
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.plan import TrainingPlan, batches
def status(name):
    return int(open("/proc/self/status").read().split(name)[1].split()[0]) * 1024
with ExampleStore(Path(sys.argv[1])) as store:
    store.rows(newest=1).take(np.arange(1))  # code is loaded
    before = status("VmRSS:")
    open("/proc/self/clear_refs", "w").write("5")
    began = time.perf_counter()
    rows = store.rows(held_out=False)
    listed_s = time.perf_counter() - began
    plan = TrainingPlan(epochs=1, batch_size=32, learning_rate=0.1, max_steps=500)
    began = time.perf_counter()
    for places in batches(plan, len(rows), bytes(32)):
        rows.take(places)
    print(json.dumps([status("VmHWM:") - before, listed_s, time.perf_counter() - began]))
"""


class _Plain:
    """What remains of a store where SQLite does all there is to do."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=WAL", "secure_delete=ON", "synchronous=NORMAL"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute(
            "CREATE TABLE examples (row INTEGER PRIMARY KEY AUTOINCREMENT, at REAL, blob BLOB NOT NULL)"
        )

    def add_many(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        rows = ((1.0, a.tobytes() + b.tobytes()) for a, b in zip(x, y, strict=True))
        self._connection.executemany("INSERT INTO examples (at, blob) VALUES (?, ?)", rows)
        self._connection.execute("COMMIT")

    def take(self, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        marks = ",".join("?" * len(numbers))
        sql = f"SELECT row, blob FROM examples WHERE row IN ({marks})"  # noqa: S608 - question marks
        found = dict(self._connection.execute(sql, numbers.tolist()).fetchall())
        return np.frombuffer(b"".join(found[n] for n in numbers.tolist()), np.uint8).reshape(len(numbers), -1)


def main() -> None:
    """Measure and print."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        _speed(Path(folder))
        _memory(Path(folder), rows)


def _speed(folder: Path) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(20_000, 16)).astype(np.float32), random.integers(0, 10, 20_000)
    sealed, plain = ExampleStore(folder / "sealed", SCHEMA, max_rows=10**9), _Plain(folder / "plain")

    def read(take: Callable[[np.ndarray[Any, Any]], object]) -> Callable[[], object]:
        orders = np.random.default_rng(1).integers(0, 20_000, (200, BATCH))
        return lambda: [take(places) for places in orders]

    def one_by_one(add: Callable[[int], object]) -> Callable[[], object]:
        return lambda: [add(place) for place in range(500)]

    cases: list[tuple[str, int, Callable[[], object], Callable[[], object]]] = [
        (
            "added, 10,000 in a transaction",
            10_000,
            lambda: sealed.add_many({"x": x[:10_000], "y": y[:10_000]}),
            lambda: plain.add_many(x[:10_000], y[:10_000]),
        ),
        (
            "added, each in its own",
            500,
            one_by_one(lambda place: sealed.add(x=x[place], y=y[place])),
            one_by_one(lambda place: plain.add_many(x[place : place + 1], y[place : place + 1])),
        ),
        (
            f"read, {BATCH} at random places",
            200 * BATCH,
            read(lambda places: sealed_rows.take(places)),
            read(lambda places: plain.take(places + 1)),
        ),
    ]
    sealed.add_many({"x": x, "y": y})
    plain.add_many(x, y)
    sealed_rows = sealed.rows()
    print("rows of 72 bytes, a second of wall time            store       plain   CPU time, store / plain")
    for name, count, ours, theirs in cases:
        walls: dict[bool, list[float]] = {True: [], False: []}
        cpus: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(2 * TURNS + 2):
            mine = turn % 2 == 0
            wall, cpu = time.perf_counter(), time.process_time()
            (ours if mine else theirs)()
            if turn >= 2:  # the first of each is warming up
                walls[mine].append(time.perf_counter() - wall)
                cpus[mine].append(time.process_time() - cpu)
        rates = [count / statistics.median(walls[mine]) for mine in (True, False)]
        ratio = statistics.median(a / b for a, b in zip(cpus[True], cpus[False], strict=True))
        print(f"  {name:44}{rates[0]:12,.0f}{rates[1]:12,.0f}{ratio:10.2f}", flush=True)
    sealed.close()


def _memory(folder: Path, rows: int) -> None:
    found = {}
    x, y = np.zeros((10_000, 16), np.float32), np.zeros(10_000, np.int64)
    for count in (FEW, rows):
        path = folder / f"{count}.sqlite"
        began = time.perf_counter()
        with ExampleStore(path, SCHEMA, max_rows=10**9) as store:
            for start in range(0, count, 10_000):
                size = min(10_000, count - start)
                store.add_many({"x": x[:size], "y": y[:size]})
        added_s = time.perf_counter() - began
        told = subprocess.run([sys.executable, "-c", _CHILD, str(path)], check=True, capture_output=True, text=True)
        grown, listed_s, taken_s = json.loads(told.stdout)
        found[count] = grown
        print(
            f"{count:>9,} rows, {path.stat().st_size / 1e6:.1f} MB on disk: added in {added_s:.1f} s, listed in "
            f"{listed_s:.2f} s, 500 batches of {BATCH} in {taken_s:.2f} s; grew by {grown / 1e6:.1f} MB"
        )
    more = found[rows] - found[FEW]
    print(f"memory beyond that of {FEW:,} rows: {more / 1e6:.1f} MB, {more / rows:.0f} bytes a row of 72")


if __name__ == "__main__":
    main()
