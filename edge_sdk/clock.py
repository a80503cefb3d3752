"""The clock as a port: what tells a driver the time, and a hand-turned one for tests and simulation.

Only drivers hold a clock. Pure code is given `now`, in seconds since the Unix epoch. Wall time, not monotonic
time, because deadlines and certificates outlive a process: what a journal says holds after a restart.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> float:
        """Return the seconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's own clock."""

    __slots__ = ()

    def now(self) -> float:
        """Return the seconds since the Unix epoch."""
        return time.time()


class ManualClock:
    """A clock that moves only when it is told to.

    Args:
        now: where it starts, in seconds since the Unix epoch.
    """

    __slots__ = ("_now",)

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def now(self) -> float:
        """Return the seconds since the Unix epoch."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move forward.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"a clock cannot go back by {-seconds} s")
        self._now += seconds
