"""A loopback TCP proxy that misbehaves on demand: latency, rate, resets, half-open links, refusal."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Self

from edge_sdk.runtime.broker_url import BrokerUrl

_LINGER_NONE = struct.pack("ii", 1, 0)


class ChaosProxy:
    """Stands between clients and a broker. Its attributes may be set at any time.

    Attributes:
        latency_s: delay of every byte, each way.
        rate_bytes_s: throughput of each connection, each way; None is unbounded.
        reset_after_bytes: reset a connection each time it has moved this much; None is never.
        refuse: close new connections at once.
        connections, resets: how many there were.
    """

    def __init__(self, upstream: BrokerUrl) -> None:
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._frozen = False
        self.latency_s = 0.0
        self.rate_bytes_s: float | None = None
        self.reset_after_bytes: int | None = None
        self.refuse = False
        self.connections = 0
        self.resets = 0
        self._came = asyncio.Event()
        self.url = upstream

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1024)
        port = self._server.sockets[0].getsockname()[1]
        self.url = BrokerUrl("127.0.0.1", port, self._upstream.tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for pair in list(self._pairs):
            pair.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def connection(self) -> None:
        """Wait for another connection."""
        self._came.clear()
        await asyncio.wait_for(self._came.wait(), 30)

    def cut(self) -> None:
        """Reset all present connections."""
        for pair in list(self._pairs):
            self.resets += 1
            pair.reset()

    def inject(self, data: bytes) -> None:
        """Put bytes among those that the clients read."""
        for pair in self._pairs:
            pair.inject(data)

    def freeze(self) -> None:
        """Make all connections half-open: bytes vanish, nobody is told, until `thaw`."""
        self._frozen = True

    def thaw(self) -> None:
        """Let new connections through again; the present ones are reset, having lost bytes."""
        self._frozen = False
        self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._came.set()
        if self.refuse:
            writer.transport.abort()
            return
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(self._upstream.host, self._upstream.port)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, upstream_writer)
        self._pairs.add(pair)
        for source, sink in ((reader, upstream_writer), (upstream_reader, writer)):
            task = asyncio.create_task(self._pump(pair, source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, pair: _Pair, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await source.read(16 * 1024):
                if self._frozen:
                    continue
                pair.moved_bytes += len(data)
                if self.reset_after_bytes is not None and pair.moved_bytes >= self.reset_after_bytes:
                    self.resets += 1
                    # Half of it first: the reset comes in the middle of a packet.
                    sink.write(data[: len(data) // 2])
                    await asyncio.sleep(0)
                    break
                if self.rate_bytes_s is not None:
                    await asyncio.sleep(len(data) / self.rate_bytes_s)
                if self.latency_s:
                    loop.call_later(self.latency_s, _write, sink, data)
                else:
                    sink.write(data)
                    await sink.drain()
        if not self._frozen:
            pair.reset()
            self._pairs.discard(pair)


class _Pair:
    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers
        self.moved_bytes = 0

    def inject(self, data: bytes) -> None:
        _write(self._writers[0], data)

    def reset(self) -> None:
        for writer in self._writers:
            connection: socket.socket = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            writer.transport.abort()


def _write(sink: asyncio.StreamWriter, data: bytes) -> None:
    if not sink.is_closing():
        sink.write(data)
