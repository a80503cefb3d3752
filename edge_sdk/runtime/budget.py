"""What the app lets training take from its machine: processor, time, traffic, memory; and how each is held to.

What would take more is refused with its reason, on the device and at the coordinator. Reads no clock of its own but
the monotonic one, between steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Final, Protocol

from edge_sdk.errors import BudgetExceeded, ConfigError
from edge_sdk.protocol.messages import DeclineReason
from edge_sdk.protocol.policy import Objection

DAY_S: Final = 86_400
MB: Final = 1_000_000

_NAP_S: Final = 0.25
"""A pause between steps looks this often whether training should stop."""
_PAUSE_S: Final = 0.05
"""Pauses of quick steps are put together: to fall asleep and wake up takes longer than some steps."""
_KEEP_BYTES: Final = 1 << 16
"""Traffic is written down once it comes to this much: a process that is killed forgets less."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What training may take. Infinity, the default, is no bound.

    Attributes:
        cpu_share: share of the time, in (0, 1], in which training computes; it pauses between steps for the rest.
        threads: that a step computes on.
        wall_s: seconds that a round's training may last, pauses included; the round is declined then.
        bytes_per_day: sent and received, from midnight to midnight UTC. What would take more is declined before it is
            fetched; a round that has begun is finished, since others would be kept waiting.
        memory_mb: that a bundle's training may take, in 10^6 bytes, as the bundle itself predicts.

    Raises:
        ConfigError: one is out of range.
    """

    cpu_share: float = 1.0
    threads: int = 1
    wall_s: float = math.inf
    bytes_per_day: float = math.inf
    memory_mb: float = math.inf

    def __post_init__(self) -> None:
        # Comparisons with NaN are false.
        if not (0 < self.cpu_share <= 1 and self.threads >= 1):
            raise ConfigError(
                f"a budget of cpu_share={self.cpu_share} on threads={self.threads} cannot be held to",
                hint="give a share above 0 and up to 1, and one thread or more",
            )
        for name in ("wall_s", "bytes_per_day", "memory_mb"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"a budget of {name}={getattr(self, name)} allows no training",
                    hint="give a positive number, or leave it out for no bound",
                )

    def memory_objection(self, needed_bytes: int, free_bytes: int | None) -> Objection | None:
        """Why training that takes about so much memory is refused, or None.

        Args:
            needed_bytes: as the bundle predicts.
            free_bytes: on this machine now; None where it cannot be told.
        """
        if needed_bytes > self.memory_mb * MB:
            allowed = f"this device allows {self.memory_mb:g}"
        elif free_bytes is not None and needed_bytes > free_bytes:
            allowed = f"{free_bytes / MB:.0f} are free on this device"
        else:
            return None
        return Objection(
            DeclineReason.OVER_MEMORY_BUDGET, f"training takes about {needed_bytes / MB:.0f} MB of memory; {allowed}"
        )


def parse_budget(text: str) -> Budget:
    """Read "cpu_share=0.5,bytes_per_day=50e6"; empty for no bound.

    Raises:
        ConfigError: it cannot be read, or is out of range.
    """
    names = [field.name for field in fields(Budget)]
    values: dict[str, float] = {}
    for item in filter(None, text.replace(" ", "").split(",")):
        name, _, number = item.partition("=")
        try:
            if name not in names:
                raise ValueError(name)
            values[name] = float(number)
        except ValueError as error:
            raise ConfigError(
                f"{item!r:.80} is no part of a budget",
                hint=f"give numbers for any of {', '.join(names)}, such as wall_s=600",
            ) from error
    threads = values.pop("threads", 1.0)
    if not threads.is_integer():
        raise ConfigError(f"a budget of threads={threads:g} is no number of threads", hint="give a whole number")
    return Budget(**values, threads=int(threads))


class Pacer:
    """Asked before every step of one training: pauses for the rest of the time, and ends what takes too long.

    Args:
        budget: see there.
        should_stop: asked too, also during pauses.
        monotonic, sleep: the system's, or a test's.
    """

    def __init__(
        self,
        budget: Budget,
        should_stop: Callable[[], bool] | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._budget = budget
        self._should_stop = should_stop or (lambda: False)
        self._monotonic = monotonic
        self._sleep = sleep
        self._began = self._step_began = monotonic()
        self._owed_s = 0.0

    def __call__(self) -> bool:
        """Whether training should stop; True ends it.

        Raises:
            BudgetExceeded: it lasted longer than the budget allows.
        """
        ended = self._monotonic()
        self._owed_s += (ended - self._step_began) * (1 / self._budget.cpu_share - 1)
        ready_at = ended + self._owed_s
        stop = self._should_stop()
        while not stop and self._owed_s >= _PAUSE_S and (now := self._monotonic()) < ready_at:
            if now - self._began >= self._budget.wall_s:
                break
            self._sleep(min(_NAP_S, ready_at - now))
            stop = self._should_stop()
        self._step_began = self._monotonic()
        self._owed_s = max(0.0, ready_at - self._step_began)
        if not stop and self._step_began - self._began >= self._budget.wall_s:
            raise BudgetExceeded(
                f"training was not done after the {self._budget.wall_s:g} s that this device allows a round",
                hint="raise wall_s or cpu_share, or let the task take fewer steps",
            )
        return stop


class TrafficLog(Protocol):
    """Keeps what was sent and received."""

    def count_traffic(self, day: int, received_bytes: int, sent_bytes: int) -> None:
        """Add to a day's traffic."""
        ...

    def traffic(self, day: int) -> tuple[int, int]:
        """Bytes received and sent on a day."""
        ...


class Traffic:
    """Counts what a device sends and receives, and tells what it has left today. Days are those of UTC.

    Args:
        budget: see there.
        log: the device's store.
    """

    def __init__(self, budget: Budget, log: TrafficLog) -> None:
        self._allowed = budget.bytes_per_day
        self._log = log
        self._day, self._received, self._sent = 0, 0, 0

    def count(self, now: float, *, received: int = 0, sent: int = 0) -> None:
        """Count bytes of messages."""
        day = int(now // DAY_S)
        if day != self._day:
            self.keep()
        self._day = day
        self._received += received
        self._sent += sent
        if self._received + self._sent >= _KEEP_BYTES:
            self.keep()

    def keep(self) -> None:
        """Write down what was counted."""
        if self._received or self._sent:
            self._log.count_traffic(self._day, self._received, self._sent)
        self._received = self._sent = 0

    def used(self, now: float) -> int:
        """Bytes sent and received today."""
        pending = self._received + self._sent if int(now // DAY_S) == self._day else 0
        return sum(self._log.traffic(int(now // DAY_S))) + pending

    def objection(self, more_bytes: int, now: float) -> Objection | None:
        """Why so much more is not sent and received today, or None."""
        if math.isinf(self._allowed):
            return None
        used = self.used(now)
        if used + more_bytes <= self._allowed and used < self._allowed:
            return None
        told = f"{more_bytes / MB:.1f} MB more" if more_bytes else "More"
        end = "" if more_bytes <= self._allowed else ", which is less than that on any day"
        return Objection(
            DeclineReason.OVER_TRAFFIC_BUDGET,
            f"{told} cannot go now: {used / MB:.1f} of the {self._allowed / MB:.1f} MB that this device allows a day "
            f"are used{end}; the next day begins at {datetime.fromtimestamp(next_day(now), UTC):%Y-%m-%d %H:%M} UTC",
        )


def next_day(now: float) -> float:
    """When the next day of UTC begins, in seconds since the epoch."""
    return (now // DAY_S + 1) * DAY_S
