"""A scripted broker, for what real ones do seldom: refuse, limit, forget, stay silent. MQTT 5 and 3.1.1."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from types import TracebackType
from typing import Self

from edge_sdk.runtime.broker_url import BrokerUrl

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, PINGRESP, DISCONNECT = (
    1,
    2,
    3,
    4,
    8,
    9,
    12,
    13,
    14,
)


class FakeBroker:
    """Accepts connections and answers by its attributes, which may be set at any time.

    Attributes:
        accepts_5, accepts_311: which versions are not refused.
        connect_code: the CONNACK code for those accepted (0 is welcome).
        properties: the CONNACK's properties (MQTT 5).
        suback_code: the code for every subscription; None stays silent.
        acknowledges: whether PUBLISH is answered by PUBACK.
        close_instead: close on CONNECT without a word.
        ignore_connect: say nothing at all.
        reading: while this is not set nothing is read.
        packets: (type, body) of all that came, CONNECT first.
    """

    def __init__(self) -> None:
        self.accepts_5 = True
        self.accepts_311 = True
        self.connect_code = 0
        self.properties = b""
        self.suback_code: int | None = 1
        self.acknowledges = True
        self.close_instead = False
        self.ignore_connect = False
        self.reading = asyncio.Event()
        self.reading.set()
        self.packets: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self.url = BrokerUrl("127.0.0.1", 1, False)
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = BrokerUrl("127.0.0.1", self._server.sockets[0].getsockname()[1], False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.reading.set()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def packet(self, kind: int) -> bytes:
        """Wait for the next packet of a type; returns its body."""
        while True:
            found, body = await asyncio.wait_for(self.packets.get(), 30)
            if found == kind:
                return body

    def send(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Send a packet on the newest connection."""
        self.send_raw(packet(kind, body, flags))

    def send_raw(self, data: bytes) -> None:
        """Send any bytes on the newest connection."""
        self._writers[-1].write(data)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._converse(reader, writer)
        writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version = 4
        while True:
            kind, flags, body = await _read(reader)
            await self.reading.wait()
            self.packets.put_nowait((kind, body))
            if kind == CONNECT:
                version = body[6]
                if self.close_instead:
                    return
                if self.ignore_connect:
                    continue
                if not (self.accepts_5 if version == 5 else self.accepts_311):
                    writer.write(packet(CONNACK, b"\0\x01"))
                    return
                tail = bytes([len(self.properties)]) + self.properties if version == 5 else b""
                writer.write(packet(CONNACK, bytes([0, self.connect_code]) + tail))
                if self.connect_code:
                    return
            elif kind == SUBSCRIBE and self.suback_code is not None:
                count = _filters(body, version)
                tail = b"\0" if version == 5 else b""
                writer.write(packet(SUBACK, body[:2] + tail + bytes([self.suback_code]) * count))
            elif kind == PUBLISH and self.acknowledges and flags & 6:
                size = struct.unpack_from(">H", body)[0]
                writer.write(packet(PUBACK, body[2 + size : 4 + size]))
            elif kind == PINGREQ:
                writer.write(packet(PINGRESP, b""))
            elif kind == DISCONNECT:
                return


def packet(kind: int, body: bytes, flags: int = 0) -> bytes:
    """Write an MQTT packet."""
    length, remaining = b"", len(body)
    while True:
        remaining, digit = remaining >> 7, remaining & 127
        length += bytes([digit | (128 if remaining else 0)])
        if not remaining:
            return bytes([kind << 4 | flags]) + length + body


def publish_body(topic: str, payload: bytes, *, version: int) -> bytes:
    """Write the body of a PUBLISH at QoS 0."""
    return struct.pack(">H", len(topic)) + topic.encode() + (b"\0" if version == 5 else b"") + payload


def _filters(body: bytes, version: int) -> int:
    at = 2 + (1 + body[2] if version == 5 else 0)
    count = 0
    while at < len(body):
        at += 3 + struct.unpack_from(">H", body, at)[0]
        count += 1
    return count


async def _read(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    first = (await reader.readexactly(1))[0]
    size = shift = 0
    while True:
        digit = (await reader.readexactly(1))[0]
        size |= (digit & 127) << shift
        shift += 7
        if not digit & 128:
            return first >> 4, first & 15, await reader.readexactly(size)
