"""Runs that once went wrong, as they were printed: each stays here so that it stays right.

A failing simulation prints a `Case`. Paste it, and say what it found.
"""

from __future__ import annotations

from device_sim.virtual import Network
from tests.simulation.world import Case

COMMITTED: tuple[Case, ...] = (
    # The first counted fault of a round could not be stored: Python 3.11 takes a Counter in a dataclass apart.
    Case(devices=10, rounds=2, seed=4, network=Network(latency_s=0.5, loss=0.1, duplicates=0.2)),
    # Survivors that were lost on their way never came again: a device with a receipt had nothing to repeat.
    Case(devices=8, min_reports=3, seed=1, network=Network(latency_s=0.1, loss=0.15)),
    Case(devices=8, min_reports=3, seed=31, network=Network(latency_s=0.1, loss=0.15)),
    # The seventh checkpoint pushed the bundle out of the cache just when both were needed.
    Case(devices=3, rounds=8, min_reports=2),
)
"""Every round of these is committed."""
