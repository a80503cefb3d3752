"""The two clocks."""

from __future__ import annotations

import pytest

from edge_sdk.clock import Clock, ManualClock, SystemClock


def test_a_manual_clock_moves_when_told() -> None:
    clock = ManualClock(100.0)
    assert clock.now() == clock.now() == 100.0
    clock.advance(2.5)
    assert clock.now() == 102.5


def test_a_manual_clock_does_not_go_back() -> None:
    clock = ManualClock()
    with pytest.raises(ValueError, match="back by 1 s"):
        clock.advance(-1)
    assert clock.now() == 0.0


def test_the_system_clock_tells_wall_time() -> None:
    clock: Clock = SystemClock()
    assert clock.now() > 1_700_000_000
