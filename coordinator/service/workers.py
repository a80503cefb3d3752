"""Worker processes for a release's heavy part, one pool for all tasks of a coordinator.

Processes, as the work is as much Python as it is AES. They are started when there is something to share out, end with
the coordinator however it ends, and one that dies costs its batch another try. Only values go there and come back.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from types import TracebackType
from typing import Self

from coordinator.secagg.work import Batch, Result
from edge_sdk.errors import ConfigError, WorkerError

log = logging.getLogger("edge.coordinator")

DEATHS = 3
"""So often may a worker die during one piece of work before it is given up."""

_HELD_PER_WORKER = 2


class ProcessWorkers:
    """A pool of processes; see `coordinator.secagg.work.Workers`. Threads may share one.

    Args:
        count: how many processes; None for one a core, and never more than that.

    Raises:
        ConfigError: the count is not positive.
    """

    def __init__(self, count: int | None = None) -> None:
        if count is not None and count < 1:
            raise ConfigError(f"{count} worker processes do no work", hint="ask for 1 or more")
        cores = os.cpu_count() or 1
        self.count = min(count or cores, cores)
        self._lock = threading.Lock()
        self._executor: ProcessPoolExecutor | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def each(self, work: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        """Yield the result of every batch, in any order; a single one is done in the caller's thread.

        Raises:
            WorkerError: workers keep dying, or the pool was closed meanwhile.
        """
        source = iter(batches)
        first = list(itertools.islice(source, 2))
        if len(first) < 2:
            yield from map(work, first)
            return
        source = itertools.chain(first, source)
        running: dict[Future[Result], Batch] = {}
        deaths = 0
        try:
            while True:
                executor = self._pool()
                unsent: list[Batch] = []
                try:
                    while len(running) < _HELD_PER_WORKER * self.count and (batch := next(source, None)) is not None:
                        unsent = [batch]
                        running[executor.submit(work, batch)] = batch
                        unsent = []
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        del running[future]
                        yield result
                except BrokenProcessPool as error:
                    deaths += 1
                    if deaths > DEATHS:
                        raise WorkerError(
                            f"worker processes died {deaths} times at one piece of work",
                            hint="see whether the machine has enough memory; fewer --workers need less",
                        ) from error
                    log.warning("a worker process died; its work is done again")
                    self._discard(executor)
                    source = itertools.chain(unsent, list(running.values()), source)
                    running.clear()
                except CancelledError as error:
                    raise WorkerError("the worker processes were stopped") from error
        finally:
            for future in running:
                future.cancel()

    def close(self) -> None:
        """Stop the processes, once what they do now is done; work under way elsewhere ends in a WorkerError."""
        with self._lock:
            self._closed = True
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)

    def _pool(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._closed:
                raise WorkerError("the worker processes were stopped")
            if self._executor is None:
                # Not forked: threads of the coordinator hold locks.
                self._executor = ProcessPoolExecutor(
                    self.count, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
                )
            return self._executor

    def _discard(self, broken: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._executor is broken:
                self._executor = None
        broken.shutdown(wait=False)


def _begin() -> None:
    """In each worker: leave Ctrl-C to the coordinator, and end when it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
