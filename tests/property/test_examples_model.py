"""The example store against a list: whatever is done to it, it holds what the list holds."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_sdk.clock import ManualClock
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.fields import f32, i64

SCHEMA = {"x": f32(3), "y": i64()}
DAY_S = 86_400.0
MAX_ROWS = 12
TTL_DAYS = 5.0


def rows(labels: list[int]) -> dict[str, np.ndarray[Any, Any]]:
    y = np.array(labels, np.int64)
    return {"x": np.repeat(y[:, None], 3, axis=1).astype(np.float32), "y": y}


class StoreAgainstList(RuleBasedStateMachine):
    """The model: (number, time, label) of each row, oldest first."""

    @initialize(holdout=st.sampled_from([0.0, 0.3]))
    def begin(self, holdout: float) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="examples-"))
        self.path = self.folder / "examples.sqlite"
        self.clock = ManualClock(1e9)
        self.holdout = holdout
        self.store = self.opened(SCHEMA)
        self.model: list[tuple[int, float, int]] = []
        self.numbered = self.label = 0

    def opened(self, schema: dict[str, Any] | None = None) -> ExampleStore:
        return ExampleStore(
            self.path, schema, max_rows=MAX_ROWS, ttl_days=TTL_DAYS, holdout=self.holdout, clock=self.clock
        )

    @rule(count=st.integers(0, 2 * MAX_ROWS))
    def add_many(self, count: int) -> None:
        labels = list(range(self.label, self.label + count))
        self.store.add_many(rows(labels))
        self._added(labels[-MAX_ROWS:])
        self.label += count

    @rule()
    def add_one(self) -> None:
        self.store.add(x=np.full(3, self.label, np.float32), y=self.label)
        self._added([self.label])
        self.label += 1

    def _added(self, labels: list[int]) -> None:
        for label in labels:
            self.numbered += 1
            self.model.append((self.numbered, self.clock.now(), label))
        self.model = [row for row in self.model if row[0] > self.numbered - MAX_ROWS]

    @rule(days=st.sampled_from([0.0, 0.5, 1.0, 4.999, 5.0, 40.0]))
    def time_passes(self, days: float) -> None:
        self.clock.advance(days * DAY_S)

    @rule()
    def erase(self) -> None:
        held = self.store.rows()
        self.store.erase()
        self.model = []
        assert len(held) == 0 or not len(self.store)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self.opened()

    @rule(where=st.floats(0, 1))
    @precondition(lambda self: not self.holdout)
    def rows_seen_before_more_came(self, where: float) -> None:
        """Rows that were listed and went meanwhile are left out; the others are the same."""
        listed = self.store.rows()
        before = list(self._alive())
        self.add_many(int(where * MAX_ROWS))
        places, found = listed.take(np.arange(len(listed)))
        still = [row[2] for row in before if row in self.model]
        assert found["y"].tolist() == still
        assert [before[place][2] for place in places] == still

    @invariant()
    def it_holds_what_the_list_holds(self) -> None:
        alive = self._alive()
        labels = [label for _, _, label in alive]
        assert len(self.store) == len(alive)
        found = self.store.arrays()
        assert found["y"].tolist() == labels
        assert np.array_equal(found["x"], rows(labels)["x"])
        assert self.store.rows(newest=3).take(np.arange(min(3, len(labels))))[1]["y"].tolist() == labels[-3:]
        parts = [self.store.rows(held_out=part) for part in (False, True)]
        assert [len(part) for part in parts] == [self.store.count(held_out=part) for part in (False, True)]
        both = np.concatenate([part.take(np.arange(len(part)))[1]["y"] for part in parts])
        assert sorted(both.tolist()) == labels

    def _alive(self) -> list[tuple[int, float, int]]:
        self.model = [row for row in self.model if row[1] > self.clock.now() - TTL_DAYS * DAY_S]
        return self.model

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.store.close()
            shutil.rmtree(self.folder)


StoreAgainstList.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestStore = StoreAgainstList.TestCase
