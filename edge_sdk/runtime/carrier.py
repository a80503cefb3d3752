"""How a client runs: here, in a thread of its own, or on the app's event loop; once at a time, and alone in its folder.

Knows threads, loops and the folder's lock, and nothing of what is done meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

from edge_sdk.errors import ConfigError, EdgeError
from edge_sdk.runtime.home_lock import only_process_in

log = logging.getLogger("edge.device")

Until: TypeAlias = Callable[[], bool]


class Errand:
    """One time that a client runs; made on the event loop that it runs on.

    Attributes:
        stopped: set when it should end.
        until: it ends when this holds too.
        wake: lets it look at once at what changed; called on the loop.
    """

    def __init__(self, until: Until) -> None:
        self.loop = asyncio.get_running_loop()
        self.stopped = asyncio.Event()
        self.until = until
        self.wake: Callable[[], None] = lambda: None


class Carrier:
    """Runs a client.

    Args:
        home: the folder that it runs in.
        work: what to do until the errand is stopped.
    """

    def __init__(self, home: Path, work: Callable[[Errand], Awaitable[None]]) -> None:
        self._home = home
        self._work = work
        self._lock = threading.Lock()
        self._refusal = ""
        self._begun = self._stopping = False
        self._ended = threading.Event()
        self._ended.set()
        self._errand: Errand | None = None
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._failure: EdgeError | None = None

    @property
    def running(self) -> bool:
        """Whether it was begun and has not ended."""
        return self._begun

    def run(self, until: Until) -> None:
        """Run here, until stopped, or by SIGINT or SIGTERM where this is the main thread.

        Raises:
            ConfigError: this client runs already, or another process runs in the folder.
            EdgeError: what the work raised.
        """
        self._begin()
        asyncio.run(self._carry(until, signals=threading.current_thread() is threading.main_thread()))

    def start(self) -> None:
        """Run in a thread.

        Raises:
            ConfigError: this client runs already.
        """
        self._begin()
        self._thread = threading.Thread(target=self._run_in_thread, name="edge", daemon=True)
        self._thread.start()

    def enter(self) -> None:
        """Run on this event loop.

        Raises:
            ConfigError: this client runs already.
        """
        self._begin()
        self._task = asyncio.get_running_loop().create_task(self._carry(_never))
        self._task.add_done_callback(_log_failure)

    async def leave(self) -> None:
        """End what `enter` began.

        Raises:
            EdgeError: what the work raised.
        """
        self.request_stop()
        task, self._task = self._task, None
        if task is not None:
            await task

    def request_stop(self) -> None:
        """Let it end soon; from any thread."""
        with self._lock:
            self._stopping = True
            if self._errand is not None:
                self._errand.loop.call_soon_threadsafe(self._errand.stopped.set)

    def stop(self) -> None:
        """End it; wait for what `start` began, unless called from there.

        Raises:
            EdgeError: why what `start` began had ended by itself.
        """
        self.request_stop()
        if self._thread is threading.current_thread():
            return
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._failure = self._failure, None
        if error is not None:
            raise error

    def wait(self) -> bool:
        """Wait until it has ended; False at once where that would wait for oneself."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        with self._lock:
            loops = [one.loop for one in (self._errand,) if one is not None]
            loops += [self._task.get_loop()] if self._task is not None else []
        if loop is not None and loop in loops:
            return False
        return self._ended.wait()

    def wake(self) -> None:
        """Let it look at once at what changed; from any thread."""
        with self._lock:
            if self._errand is not None:
                self._errand.loop.call_soon_threadsafe(self._errand.wake)

    def retire(self, refusal: str, hint: str) -> None:
        """Run never again, for this reason."""
        self._refusal, self._hint = refusal, hint

    def _begin(self) -> None:
        with self._lock:
            if self._refusal:
                raise ConfigError(self._refusal, hint=self._hint)
            if self._begun:
                raise ConfigError("this client runs already", hint="stop it first, or let it")
            self._begun, self._stopping = True, False
            self._ended.clear()

    def _run_in_thread(self) -> None:
        try:
            asyncio.run(self._carry(_never))
        except EdgeError as error:
            log.error("the device stopped: %s (%s)", error, error.hint)
            self._failure = error

    async def _carry(self, until: Until, *, signals: bool = False) -> None:
        errand = Errand(until)
        if signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                errand.loop.add_signal_handler(number, errand.stopped.set)
        with self._lock:
            self._errand = errand
            if self._stopping:
                errand.stopped.set()
        try:
            with only_process_in(self._home):
                await self._work(errand)
        finally:
            with self._lock:
                self._errand, self._begun = None, False
            self._ended.set()


def _never() -> bool:
    return False


def _log_failure(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("the device stopped: %s", error)
