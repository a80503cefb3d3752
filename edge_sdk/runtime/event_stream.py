"""Events on their way to the app: to its callback, and to whoever iterates over them, on any loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Final

from edge_sdk.events import Event, OnEvent

KEPT: Final = 1_000
"""Events that wait for a reader who is slow; beyond, the oldest go."""


class EventStream:
    """Hands events on.

    Args:
        on_event: called on the loop that emits, after what it does now; an exception of it is that loop's to report.
    """

    def __init__(self, on_event: OnEvent | None = None) -> None:
        self._on_event = on_event
        self._lock = threading.Lock()
        self._readers: list[_Reader] = []
        self._closed = False

    def emit(self, event: Event) -> None:
        """Hand an event to everybody; called on a running loop, returns at once."""
        if self._on_event is not None:
            asyncio.get_running_loop().call_soon(self._on_event, event)
        with self._lock:
            for reader in self._readers:
                reader.give(event)

    async def read(self) -> AsyncIterator[Event]:
        """The events from now on, until the stream is closed."""
        reader = _Reader()
        with self._lock:
            if self._closed:
                return
            self._readers.append(reader)
        try:
            while (event := await reader.queue.get()) is not None:
                yield event
        finally:
            with self._lock:
                self._readers.remove(reader)

    def close(self) -> None:
        """End all iterations."""
        with self._lock:
            self._closed = True
            for reader in self._readers:
                reader.give(None)


class _Reader:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Event | None] = asyncio.Queue()

    def give(self, event: Event | None) -> None:
        # A reader's loop that was closed reads no more.
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._put, event)

    def _put(self, event: Event | None) -> None:
        if self.queue.qsize() >= KEPT:
            self.queue.get_nowait()
        self.queue.put_nowait(event)
