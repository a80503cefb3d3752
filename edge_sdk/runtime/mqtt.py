"""The transport: a client that stays connected to a broker, on the event loop that it was started on.

Many transports share a loop and cost no thread. A message handed to `publish` may be lost at any time, even
after the broker acknowledged it: the protocol above asks again. So sessions are clean, nothing is kept for an
absent broker, and a new connection begins with nothing of the old. Knows nothing of topics, frames or
signatures.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias

from edge_sdk.errors import ConfigError, EdgeError, LocalProtocolError, TransportError
from edge_sdk.runtime.broker_url import BrokerUrl
from edge_sdk.runtime.dial import TlsFiles, dial
from edge_sdk.runtime.mqtt_link import PAYLOAD_MAX_BYTES, MqttLink, Outgoing, Traffic, Version

__all__ = ["MqttTransport", "ProtocolChoice", "TlsFiles", "Traffic"]

ProtocolChoice: TypeAlias = Literal["auto", "5", "3.1.1"]

_VERSIONS: Final[dict[ProtocolChoice, tuple[Version, ...]]] = {
    "auto": ("5", "3.1.1"),
    "5": ("5",),
    "3.1.1": ("3.1.1",),
}


class MqttTransport:
    """Keeps one client connected to a broker.

    Every callback runs on the event loop, must return at once, and may call any method here.

    Args:
        url: the broker.
        client_id: this client's id; two clients with one id evict each other.
        subscriptions: topic filters, subscribed to at QoS 1 on every connection.
        on_message: is given (topic, payload).
        on_connected: called on every connection, once all subscriptions are granted.
        on_disconnected: called with the reason when a connection is lost, and when the first attempt after
            `launch` fails; neither for `stop` nor for each attempt in between.
        tls: files for TLS; only with an `mqtts` URL.
        protocol: MQTT version; "auto" is 5 where the broker knows it, else 3.1.1.
        keepalive_s: a dead link is noticed within two and a half times this.
        reconnect_min_s: the first pause before a reconnect is drawn from 0 to this,
        reconnect_max_s: and each further one from twice the range, up to this (full jitter).
        connect_timeout_s: bounds each attempt but that of `start`.
        queue_messages: how many messages may wait here while the broker is slow to acknowledge,
        queue_bytes: and how many bytes.

    Raises:
        ConfigError: arguments that do not go together.
    """

    def __init__(
        self,
        url: BrokerUrl,
        client_id: str,
        subscriptions: Sequence[str],
        on_message: Callable[[str, bytes], None],
        *,
        on_connected: Callable[[], None] | None = None,
        on_disconnected: Callable[[str], None] | None = None,
        tls: TlsFiles | None = None,
        protocol: ProtocolChoice = "auto",
        keepalive_s: int = 60,
        reconnect_min_s: float = 1.0,
        reconnect_max_s: float = 60.0,
        connect_timeout_s: float = 10.0,
        queue_messages: int = 4_096,
        queue_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        if tls is not None and not url.tls:
            raise ConfigError(f"TLS files were given, but {url} is without TLS", hint="write mqtts:// in the URL")
        if keepalive_s < 1 or not 0 < reconnect_min_s <= reconnect_max_s:
            raise ConfigError(
                f"a keepalive of {keepalive_s} s with reconnect pauses of {reconnect_min_s:g} to "
                f"{reconnect_max_s:g} s cannot be",
                hint="the keepalive is at least 1 s; pauses are positive, the shorter first",
            )
        self._url = url
        self._client_id = client_id
        self._subscriptions = tuple(subscriptions)
        self._on_message = on_message
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._tls = tls
        self._versions = _VERSIONS[protocol]
        self._keepalive_s = keepalive_s
        self._reconnect_min_s = reconnect_min_s
        self._reconnect_max_s = reconnect_max_s
        self._connect_timeout_s = connect_timeout_s
        self._queue_messages_max = queue_messages
        self._queue_bytes_max = queue_bytes
        self._queue: deque[Outgoing] = deque()
        self._queue_bytes = 0
        self._jitter = random.SystemRandom()
        self._link: MqttLink | None = None
        self._task: asyncio.Task[None] | None = None
        self._drained: asyncio.Event | None = None
        self._down_said = False
        self._past = Traffic()
        self._last_error: EdgeError | None = None

    @property
    def connected(self) -> bool:
        """Whether messages can be published now."""
        return self._link is not None

    @property
    def protocol(self) -> Version | None:
        """The MQTT version of the present connection."""
        return None if self._link is None else self._link.version

    @property
    def payload_max_bytes(self) -> int:
        """The largest payload that the present connection takes."""
        return PAYLOAD_MAX_BYTES if self._link is None else self._link.payload_max_bytes

    @property
    def last_error(self) -> EdgeError | None:
        """Why the latest attempt to connect failed; None while connected."""
        return self._last_error

    @property
    def traffic(self) -> Traffic:
        """What was moved so far."""
        return self._past if self._link is None else self._past + self._link.traffic()

    async def start(self, timeout_s: float = 10.0) -> None:
        """Connect, subscribe, and keep the connection up from then on.

        Raises:
            TransportError: this first attempt failed, or took longer than `timeout_s`.
            IdentityError: the TLS files cannot be used.
        """
        self._require_stopped()
        self._task = asyncio.create_task(self._run(await self._open(timeout_s)))

    def launch(self) -> None:
        """Begin to connect, and keep at it; a failure reaches `on_disconnected` once, then `last_error`."""
        self._require_stopped()
        self._task = asyncio.create_task(self._run(None))

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        expiry_s: float | None = None,
        content_type: str | None = None,
    ) -> bool:
        """Send at QoS 1 without waiting; `expiry_s` and `content_type` count where MQTT 5 is spoken.

        Returns:
            False if it was dropped: not connected, or too much is waiting. True promises nothing.

        Raises:
            TransportError: the payload is larger than the broker takes.
        """
        link = self._link
        full = len(self._queue) >= self._queue_messages_max or self._queue_bytes > self._queue_bytes_max
        if link is None or full:
            self._past += Traffic(dropped=1)
            return False
        if len(payload) > link.payload_max_bytes:
            raise TransportError(
                f"a payload of {len(payload)} bytes is over the broker's limit of {link.payload_max_bytes}",
                hint="use smaller chunks, or raise the broker's maximum packet size",
            )
        expiry = None if expiry_s is None else max(1, round(expiry_s))
        self._queue.append(Outgoing(topic, payload, retain, expiry, content_type))
        self._queue_bytes += len(payload)
        self._send_queued()
        return True

    async def stop(self, drain_s: float = 1.0) -> None:
        """Wait up to `drain_s` until all is acknowledged, say goodbye, and stay away until started again."""
        if self._busy():
            self._drained = asyncio.Event()
            try:
                async with asyncio.timeout(drain_s):
                    await self._drained.wait()
            except TimeoutError:
                pass
            self._drained = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._link is not None:
            self._link.goodbye()
            self._let_go(self._link)

    def abort(self) -> None:
        """Break the connection as a failing network would; it is then made anew. For fault injection."""
        if self._link is not None:
            self._link.abort()

    # The link calls these.

    def link_up(self, link: MqttLink) -> None:
        """Begin to use a link whose subscriptions are granted."""
        self._link = link
        self._last_error = None
        self._down_said = False
        if self._on_connected is not None:
            self._on_connected()

    def link_down(self, link: MqttLink, reason: str) -> None:
        """Let go of a link that ended by itself."""
        self._let_go(link)
        self._say_down(reason)

    def link_message(self, topic: str, payload: bytes) -> None:
        """Hand a message on, unless it is larger than any of the protocol's."""
        if len(payload) > PAYLOAD_MAX_BYTES:
            self._past += Traffic(dropped=1)
        else:
            self._on_message(topic, payload)

    def link_acknowledged(self) -> None:
        """Send what waited for acknowledgements."""
        self._send_queued()
        if self._drained is not None and not self._busy():
            self._drained.set()

    async def _run(self, link: MqttLink | None) -> None:
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            try:
                link = link or await self._open(self._connect_timeout_s)
            except EdgeError as error:
                self._last_error = error
                # From the loop and not from here: a callback that raises must not end the reconnecting.
                loop.call_soon(self._say_down, str(error))
            else:
                since = loop.time()
                await link.ended.wait()
                link = None
                # Two clients with one id evict each other as fast as they may. Only a connection that
                # lasted earns short pauses again.
                if loop.time() - since > 10 * self._reconnect_min_s:
                    attempt = 0
            span_s = min(self._reconnect_max_s, self._reconnect_min_s * 2.0 ** min(attempt, 30))
            attempt += 1
            await asyncio.sleep(self._jitter.uniform(0, span_s))

    async def _open(self, timeout_s: float) -> MqttLink:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._open_any(timeout_s)
        except TimeoutError:
            raise TransportError(
                f"the broker at {self._url} did not answer within {timeout_s:g} s",
                hint="check that the port speaks MQTT (with TLS for mqtts://) and is reachable from here",
            ) from None

    async def _open_any(self, timeout_s: float) -> MqttLink:
        newest, *older = self._versions
        link: MqttLink | None = None
        try:
            # Some brokers meet a version that they do not know with silence.
            async with asyncio.timeout(timeout_s / 2 if older else None):
                link = await self._attempt(newest)
        except TimeoutError:
            pass
        if older and (link is None or (link.failure is not None and link.version_in_doubt)):
            refused = link is not None and link.version_refused
            link = await self._attempt(older[0])
            if refused and link.failure is None:
                self._versions = (older[0],)
        if link is None:
            raise TimeoutError
        if link.failure is not None:
            raise link.failure
        return link

    async def _attempt(self, version: Version) -> MqttLink:
        link = MqttLink(self, self._url, await dial(self._url, self._tls), version)
        try:
            link.begin(self._client_id, self._subscriptions, self._keepalive_s)
            await link.settled.wait()
        except asyncio.CancelledError:
            link.abort()
            raise
        return link

    def _send_queued(self) -> None:
        link = self._link
        while link is not None and self._queue and link.in_flight < link.in_flight_max:
            outgoing = self._queue.popleft()
            self._queue_bytes -= len(outgoing.payload)
            link.send(outgoing)

    def _busy(self) -> bool:
        return self._link is not None and (len(self._queue) > 0 or self._link.in_flight > 0)

    def _let_go(self, link: MqttLink) -> None:
        self._past += link.traffic() + Traffic(dropped=len(self._queue))
        self._link = None
        self._queue.clear()
        self._queue_bytes = 0
        if self._drained is not None:
            self._drained.set()

    def _say_down(self, reason: str) -> None:
        if not self._down_said:
            self._down_said = True
            if self._on_disconnected is not None:
                self._on_disconnected(reason)

    def _require_stopped(self) -> None:
        if self._task is not None:
            raise LocalProtocolError(f"the transport of {self._client_id} was started twice")
