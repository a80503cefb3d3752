"""`edge` as other processes see it: started, read line by line, killed, and asked what it says."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

LIMIT_S = 60.0
_POLL_S = 0.02


class Command:
    """A running `edge ...`; killed at the end of a `with` block if it still runs.

    Args:
        arguments: of `edge`, or of `python -m` where `module` is another.
        module: what to run.
    """

    def __init__(self, *arguments: str | Path, module: str = "edge_sdk.cli") -> None:
        self.said: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", module, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def wait_for(self, text: str) -> str:
        """Read until a line holds `text`, and return that line."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line.rstrip("\n"))
            if text in line:
                return line
        raise AssertionError(f"it ended without saying {text!r}: {self.said}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait()

    def finish(self, limit_s: float = LIMIT_S) -> int:
        """Wait for its end, which must come within the limit, and return its exit code."""
        rest, _ = self._process.communicate(timeout=limit_s)
        self.said += rest.splitlines()
        return self._process.returncode


def until(holds: Callable[[], bool]) -> None:
    """Wait until something that another process does has happened."""
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(_POLL_S)
