"""Who sits out: devices that declined a plan or spoiled a round wait longer each time, so that others' rounds go on.

Knows no store: whoever sends a device here keeps its standing, and brings it back after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Standing:
    """How often in a row a device was sent to sit out, and until when it does, seconds since the epoch."""

    times: int
    until: float


class Bench:
    """The devices of one task that wait.

    Args:
        wait_s: for the first time; it doubles each time, up to a day.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._standings: dict[str, Standing] = {}

    def send(self, device_id: str, now: float) -> Standing:
        """This device sits out from now on."""
        before = self._standings.get(device_id)
        times = 1 + (before.times if before is not None else 0)
        found = self._standings[device_id] = Standing(times, now + backoff_s(times, self._wait_s, LONGEST_S))
        return found

    def restore(self, device_id: str, standing: Standing) -> None:
        """What `send` gave before the coordinator restarted."""
        self._standings[device_id] = standing

    def wait_s(self, device_id: str, now: float) -> float:
        """For how much longer it sits out; 0 where it may play."""
        found = self._standings.get(device_id)
        return max(0.0, found.until - now) if found is not None else 0.0

    def forgive(self, device_id: str) -> bool:
        """It took part in a round that was committed; whether there was anything to forgive."""
        return self._standings.pop(device_id, None) is not None


def backoff_s(times: int, first_s: float, longest_s: float) -> float:
    """How long to wait after the `times`-th failure in a row, from 1 on: doubling, up to a limit."""
    return min(longest_s, first_s * 2.0 ** min(times - 1, 60))
