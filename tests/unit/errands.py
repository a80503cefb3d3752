"""Work for worker processes in tests: functions of a module, so that another process can find them."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def who_did(number: int) -> tuple[int, int]:
    """The number and the process."""
    return number, os.getpid()


def fail(number: int) -> int:
    raise ValueError(f"no such number as {number}")


def die_once(errand: tuple[int, Path]) -> int:
    """Kill the process that does number 3, but for the second time."""
    number, folder = errand
    if number == 3 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number
