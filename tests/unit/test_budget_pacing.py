"""What training may take: shares of the processor, time, traffic a day; and how each is held to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from edge_sdk import Budget
from edge_sdk.errors import BudgetExceeded, ConfigError
from edge_sdk.protocol.messages import DeclineReason
from edge_sdk.runtime.budget import DAY_S, Pacer, Traffic, next_day, parse_budget
from edge_sdk.runtime.device_store import DeviceStore

NOON = 1_800_000_000.0 // DAY_S * DAY_S + DAY_S / 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"cpu_share": 0},
        {"cpu_share": 1.1},
        {"cpu_share": math.nan},
        {"threads": 0},
        {"wall_s": 0},
        {"bytes_per_day": -1},
        {"memory_mb": math.nan},
    ],
)
def test_a_budget_that_cannot_be_held_to_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}=") as caught:
        Budget(**wrong)
    assert caught.value.hint


def test_a_budget_in_words() -> None:
    assert parse_budget("") == Budget()
    assert parse_budget("cpu_share=0.5, threads=2,wall_s=600,bytes_per_day=50e6,memory_mb=300") == Budget(
        0.5, 2, 600, 50e6, 300
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cpu=0.5", "'cpu=0.5' is no part of a budget"),
        ("wall_s", "'wall_s' is no part"),
        ("wall_s=long", "'wall_s=long' is no part"),
        ("threads=1.5", "threads=1.5 is no number of threads"),
        ("threads=inf", "threads=inf is no number of threads"),
        ("wall_s=-1", "wall_s=-1.0 allows no training"),
    ],
)
def test_what_is_no_budget_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_budget(text)
    assert caught.value.hint


class Machine:
    """A monotonic clock on which steps and pauses take their time."""

    def __init__(self) -> None:
        self.now = self.slept = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds

    def pacer(self, budget: Budget, should_stop: Any = None) -> Pacer:
        return Pacer(budget, should_stop, monotonic=lambda: self.now, sleep=self.sleep)


@pytest.mark.parametrize(("share", "slept"), [(1.0, 0.0), (0.5, 20.0), (0.25, 60.0), (0.8, 5.0)])
def test_training_computes_for_its_share_of_the_time(share: float, slept: float) -> None:
    machine = Machine()
    pacer = machine.pacer(Budget(cpu_share=share))
    for took in (4.0, 6.0, 10.0):
        assert not pacer()
        machine.now += took
    assert not pacer()
    assert machine.slept == pytest.approx(slept)


def test_pauses_of_quick_steps_are_put_together() -> None:
    machine = Machine()
    pacer, pauses = machine.pacer(Budget(cpu_share=0.5)), 0
    for _ in range(1000):
        before = machine.slept
        assert not pacer()
        pauses += machine.slept > before
        machine.now += 0.001
    assert machine.slept == pytest.approx(1.0, abs=0.1)
    assert 15 <= pauses <= 20


def test_a_pause_ends_when_training_should_stop() -> None:
    machine = Machine()
    pacer = machine.pacer(Budget(cpu_share=0.1), lambda: machine.now > 12)
    machine.now += 10
    assert pacer()
    assert machine.slept == pytest.approx(2.25)


def test_a_pause_that_conditions_cause_counts_as_a_pause() -> None:
    """Who waits for the charger anyway has rested."""
    machine = Machine()

    def waits() -> bool:
        machine.now += 9.0
        return False

    pacer = machine.pacer(Budget(cpu_share=0.5), waits)
    machine.now += 9.0
    assert not pacer()
    assert machine.slept == 0


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_a_training_that_lasts_too_long_ends(share: float) -> None:
    machine = Machine()
    pacer = machine.pacer(Budget(wall_s=60, cpu_share=share))

    def train() -> None:
        for _ in range(100):
            assert not pacer()
            machine.now += 5

    with pytest.raises(BudgetExceeded, match="not done after the 60 s") as caught:
        train()
    assert 60 <= machine.now < 61
    assert caught.value.hint


def test_a_training_that_is_stopped_has_not_taken_too_long() -> None:
    machine = Machine()
    pacer = machine.pacer(Budget(wall_s=60), lambda: True)
    machine.now += 100
    assert pacer()


# ---- traffic


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with DeviceStore(tmp_path / "device.sqlite") as opened:
        yield opened


def test_traffic_is_counted_by_day_and_outlives_the_process(store: DeviceStore) -> None:
    traffic = Traffic(Budget(bytes_per_day=1e6), store)
    traffic.count(NOON, received=300_000)
    traffic.count(NOON + 1, sent=500_000)
    assert traffic.used(NOON + 2) == 800_000
    assert store.traffic(int(NOON // DAY_S)) == (300_000, 500_000)
    again = Traffic(Budget(bytes_per_day=1e6), store)
    assert again.used(NOON) == 800_000
    assert again.used(NOON + DAY_S) == 0
    assert again.objection(200_000, NOON) is None
    found = again.objection(200_001, NOON)
    assert found is not None
    assert found.reason is DeclineReason.OVER_TRAFFIC_BUDGET
    assert "0.2 MB more cannot go now: 0.8 of the 1.0 MB" in found.detail
    assert found.detail.endswith("the next day begins at 2027-01-16 00:00 UTC")
    assert again.objection(200_001, next_day(NOON)) is None


def test_small_messages_are_kept_together_and_none_is_forgotten(store: DeviceStore) -> None:
    traffic, today = Traffic(Budget(), store), int(NOON // DAY_S)
    traffic.count(NOON, received=10, sent=20)
    assert store.traffic(today) == (0, 0)
    assert traffic.used(NOON) == 30
    assert traffic.used(NOON + DAY_S) == 0
    traffic.count(NOON + DAY_S, sent=1)
    assert store.traffic(today) == (10, 20)
    traffic.keep()
    traffic.keep()
    assert store.traffic(today + 1) == (0, 1)


def test_days_long_past_are_forgotten(store: DeviceStore) -> None:
    for day in range(100, 150):
        store.count_traffic(day, 1, 1)
    assert [store.traffic(day) for day in (117, 118, 149)] == [(0, 0), (1, 1), (1, 1)]


def test_what_no_day_allows_is_told_as_such(store: DeviceStore) -> None:
    traffic = Traffic(Budget(bytes_per_day=1e6), store)
    found = traffic.objection(2_000_000, NOON)
    assert found is not None
    assert "1.0 MB that this device allows a day are used, which is less than that on any day" in found.detail
    assert traffic.objection(0, NOON) is None
    traffic.count(NOON, sent=1_000_000)
    found = traffic.objection(0, NOON)
    assert found is not None
    assert found.detail.startswith("More cannot go now")


def test_without_a_bound_nothing_is_asked(store: DeviceStore) -> None:
    traffic = Traffic(Budget(), store)
    traffic.count(NOON, received=10**12)
    assert traffic.objection(10**12, NOON) is None


# ---- memory


def test_memory_is_compared_with_what_is_allowed_and_what_is_free() -> None:
    budget = Budget(memory_mb=100)
    assert budget.memory_objection(100_000_000, None) is None
    assert budget.memory_objection(100_000_000, 100_000_000) is None
    for needed, free, words in (
        (100_000_001, None, "takes about 100 MB of memory; this device allows 100"),
        (90_000_000, 80_000_000, "takes about 90 MB of memory; 80 are free"),
    ):
        found = budget.memory_objection(needed, free)
        assert found is not None
        assert found.reason is DeclineReason.OVER_MEMORY_BUDGET
        assert words in found.detail
