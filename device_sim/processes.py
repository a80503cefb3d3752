"""Child processes of a simulation: a log file each, killed and restarted on purpose, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from coordinator.service import bind_to_parent
from edge_sdk.errors import EdgeError

_STOP_TIMEOUT_S = 3.0
_POLL_S = 0.05


class Child:
    """A program that runs beside this one.

    Args:
        name: for messages, and for its log file.
        module: Python module to run with `-m`.
        arguments: its command line.
        logs: folder of log files; the child's output is appended to `name`.log.
        niceness: added to the child's, so that it yields to the others.
    """

    def __init__(self, name: str, module: str, arguments: Sequence[str], logs: Path, *, niceness: int = 0) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        # Bound to this process: not even its sudden death leaves any behind.
        self._command = [sys.executable, "-I", "-S", bind_to_parent.__file__, str(os.getpid())]
        self._command += [sys.executable, "-m", module, *arguments]
        self._niceness = niceness
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again."""
        # One thread each: the fleet's processes share the cores, and spinning thread pools would fight for them.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                # A group of its own, so that Ctrl-C reaches it only through `stop`.
                start_new_session=True,
            )
        if self._niceness:
            os.setpriority(os.PRIO_PROCESS, self._process.pid, self._niceness)

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def require_success(self) -> None:
        """Raise if it has ended badly.

        Raises:
            EdgeError: with the end of its log.
        """
        code = None if self._process is None else self._process.poll()
        if code:
            raise EdgeError(f"{self.name} ended with code {code}: {self.last_words()}", hint=f"see {self.log}")

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def ask_to_stop(self) -> None:
        """Tell it to stop, without waiting."""
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGTERM)

    def last_words(self) -> str:
        """The end of its log."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return "(no log)"
        return (
            "; ".join(line.strip().removeprefix("edge: error: ") for line in lines[-2:])
            if lines
            else "it said nothing; is the disk full?"
        )


def wait_for(children: Sequence[Child], *, timeout_s: float, on_wait: Callable[[], None] = lambda: None) -> bool:
    """Wait until all have ended; False where time ran out."""
    end = time.monotonic() + timeout_s
    while any(child.running for child in children):
        if time.monotonic() > end:
            return False
        on_wait()
        time.sleep(_POLL_S)
    return True


def stop_all(children: Sequence[Child]) -> None:
    """Tell all to stop, wait a little, and kill what is left."""
    try:
        for child in children:
            child.ask_to_stop()
        wait_for(children, timeout_s=_STOP_TIMEOUT_S)
    finally:
        # Also where an impatient second Ctrl-C cuts the waiting short.
        for child in children:
            child.kill()
