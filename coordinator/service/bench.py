"""Who sits out: devices that declined a plan or spoiled a round wait longer each time, so that others' rounds go on.

Kept in memory only: a coordinator that restarts gives everybody another chance.
"""

from __future__ import annotations

LONGEST_S = 86_400.0


class Bench:
    """The devices of one task that wait.

    Args:
        wait_s: for the first time; it doubles each time, up to a day.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._times: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def send(self, device_id: str, now: float) -> None:
        """This device sits out from now on."""
        times = self._times[device_id] = self._times.get(device_id, 0) + 1
        self._until[device_id] = now + backoff_s(times, self._wait_s, LONGEST_S)

    def wait_s(self, device_id: str, now: float) -> float:
        """For how much longer it sits out; 0 where it may play."""
        return max(0.0, self._until.get(device_id, now) - now)

    def forgive(self, device_id: str) -> None:
        """It took part in a round that was committed."""
        self._times.pop(device_id, None)
        self._until.pop(device_id, None)


def backoff_s(times: int, first_s: float, longest_s: float) -> float:
    """How long to wait after the `times`-th failure in a row, from 1 on: doubling, up to a limit."""
    return min(longest_s, first_s * 2.0 ** min(times - 1, 60))
