"""One MQTT connection under asyncio, from CONNECT to its end; the only module that imports paho.

paho encodes and decodes the packets and counts keepalive. It is given a socket that is connected already
(`dial`), because paho itself would block the loop to connect, and every connection has a paho client of its
own, because paho would carry unacknowledged messages over to the next. Whether to connect again is decided
elsewhere (`mqtt`).
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_sdk.errors import TransportError
from edge_sdk.protocol.limits import CHUNK_HEADER_BYTES, CHUNK_MAX_BYTES, CONTROL_FRAME_MAX_BYTES
from edge_sdk.runtime.broker_url import BrokerUrl
from edge_sdk.runtime.dial import TLS_HINT, Wire, words

Version: TypeAlias = Literal["5", "3.1.1"]

PAYLOAD_MAX_BYTES: Final = CHUNK_HEADER_BYTES + CHUNK_MAX_BYTES

# Larger than any message of the protocol: a broker that announces more would have it all kept in memory.
_PACKET_MAX_BYTES: Final = 1 << 20

# Topic (at most 140 bytes here), properties and fixed header, generously.
_OVERHEAD_BYTES: Final = 512
# Messages that may wait for their acknowledgement at a time, where the broker names no smaller number.
_IN_FLIGHT_MAX: Final = 64
_TICKS_PER_KEEPALIVE: Final = 4

_UNSUPPORTED_VERSION: Final = 0x84
_CLIENT_ID_INVALID: Final = 0x85
_BAD_CREDENTIALS: Final = (0x86, 0x87, 0x8C)
_BUSY: Final = (0x88, 0x89, 0x97, 0x9F)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was moved. Bytes are of MQTT, without TLS and TCP."""

    bytes_up: int = 0
    bytes_down: int = 0
    messages_up: int = 0
    messages_down: int = 0
    connections: int = 0
    dropped: int = 0
    """Messages given up on this side: not connected, queue full, or received too large."""
    refused: int = 0
    """Messages that the broker refused, as far as it says so (MQTT 5)."""

    def __add__(self, other: Traffic) -> Traffic:
        """Sum two traffics."""
        return Traffic(
            self.bytes_up + other.bytes_up,
            self.bytes_down + other.bytes_down,
            self.messages_up + other.messages_up,
            self.messages_down + other.messages_down,
            self.connections + other.connections,
            self.dropped + other.dropped,
            self.refused + other.refused,
        )


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish at QoS 1."""

    topic: str
    payload: bytes
    retain: bool
    expiry_s: int | None
    content_type: str | None


class LinkOwner(Protocol):
    """What a link reports to. All calls come from the event loop, with nothing locked."""

    def link_up(self, link: MqttLink) -> None:
        """All subscriptions are granted."""
        ...

    def link_down(self, link: MqttLink, reason: str) -> None:
        """A link that was up ended by itself."""
        ...

    def link_message(self, topic: str, payload: bytes) -> None:
        """A message came."""
        ...

    def link_acknowledged(self) -> None:
        """The broker acknowledged messages: more may be sent."""
        ...


class MqttLink:
    """One connection.

    paho calls back with its locks held, so those callbacks only take notes; `_settle` acts on them after.

    Args:
        owner: is told what happens.
        url: the broker, for messages and credentials.
        wire: connected to it.
        version: the MQTT version to speak.
    """

    def __init__(self, owner: LinkOwner, url: BrokerUrl, wire: Wire, version: Version) -> None:
        self._owner = owner
        self._url = url
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self._client: _PahoClient | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._tick_s = 0.0
        self._subscriptions: tuple[str, ...] = ()
        self._retain_available = True
        self._write_due = False
        self._blocked = False  # the socket takes no more, and the loop watches for when it does
        self._inbox: deque[tuple[str, bytes]] = deque()
        self._answered = False
        self._granted = False
        self._acknowledged = False
        self._lost: str | None = None
        self._progress_at = 0.0
        self._messages_up = 0
        self._messages_down = 0
        self._refused = 0
        self.version: Version = version
        self.in_flight = 0
        self.in_flight_max = _IN_FLIGHT_MAX
        self.payload_max_bytes = PAYLOAD_MAX_BYTES
        self.up = False
        self.failure: TransportError | None = None
        self.version_refused = False
        self.settled = asyncio.Event()
        self.ended = asyncio.Event()

    @property
    def version_in_doubt(self) -> bool:
        """Whether an older MQTT version may fare better: this one was refused, or met with silence."""
        return self.version_refused or not self._answered

    def begin(self, client_id: str, subscriptions: Sequence[str], keepalive_s: int) -> None:
        """Send CONNECT, then SUBSCRIBE; `settled` is set when all is granted, or `failure` says why not."""
        self._subscriptions = tuple(subscriptions)
        self._tick_s = keepalive_s / _TICKS_PER_KEEPALIVE
        client = _PahoClient(self._wire, client_id, self.version)
        if self._url.username is not None:
            client.username_pw_set(self._url.username, self._url.password)
        client.max_inflight_messages_set(0)  # the bound on what is in flight is ours
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        client.on_socket_register_write = self._on_want_write
        client.on_socket_close = self._on_socket_close
        self._client = client
        self._loop.add_reader(self._wire.fileno(), self._readable)
        # Without properties: a broker that lacks MQTT 5 may misread them, and wait for more to come.
        client.connect(self._url.host, self._url.port, keepalive_s)
        self._ticker = self._loop.call_later(self._tick_s, self._tick)

    def send(self, outgoing: Outgoing) -> None:
        """Publish at QoS 1; nothing once the link ended."""
        if self._client is None:
            return
        if self.in_flight == 0:
            self._progress_at = self._loop.time()
        self.in_flight += 1
        self._messages_up += 1
        properties = None
        if self.version == "5":
            properties = _publish_properties(outgoing.expiry_s, outgoing.content_type)
        retain = outgoing.retain and self._retain_available
        self._client.publish(outgoing.topic, outgoing.payload, 1, retain, properties)

    def goodbye(self) -> None:
        """Send DISCONNECT and close."""
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_write()
            self._close()

    def abort(self) -> None:
        """Reset the connection."""
        if self._client is not None:
            self._give_up("the connection was aborted on this side")
            self._pump()

    def _give_up(self, reason: str) -> None:
        self._lost = reason
        self._unwatch()
        self._wire.reset()

    def traffic(self) -> Traffic:
        """What this link moved."""
        return Traffic(
            bytes_up=self._wire.bytes_out,
            bytes_down=self._wire.bytes_in,
            messages_up=self._messages_up,
            messages_down=self._messages_down,
            connections=int(self.up),
            refused=self._refused,
        )

    # The event loop calls these.

    def _readable(self) -> None:
        while self._wire.fill():
            pass
        self._pump()

    def _write(self) -> None:
        self._write_due = False
        if self._client is None:
            return
        self._client.loop_write()
        flushed = self._wire.flush()
        if self._wire.ended:
            self._pump()
        elif flushed and self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._wire.fileno())
        elif not flushed and not self._blocked:
            self._blocked = True
            self._loop.add_writer(self._wire.fileno(), self._write)

    def _tick(self) -> None:
        client = self._client
        if client is None:
            return
        self._ticker = self._loop.call_later(self._tick_s, self._tick)
        client.loop_misc()
        if client.socket() is None:
            self._lost = "the broker did not answer a ping: the link is dead"
        elif self.in_flight and self._loop.time() - self._progress_at > 3 * _TICKS_PER_KEEPALIVE * self._tick_s:
            self._lost = "the broker acknowledges nothing"
        self._settle()

    def _pump(self) -> None:
        client = self._client
        while client is not None and client.socket() is not None and (self._wire.buffered or self._wire.ended):
            client.loop_read()
            if self._lost is None and client.arriving_bytes > _PACKET_MAX_BYTES:
                self._give_up(f"the broker sends a packet of {client.arriving_bytes} bytes")
        self._settle()

    def _settle(self) -> None:
        """Act on what paho's callbacks noted, now that none of its locks is held."""
        try:
            if self._granted and not self.up and self._lost is None:
                self.up = True
                self.settled.set()
                self._owner.link_up(self)
            if self._acknowledged:
                self._acknowledged = False
                self._owner.link_acknowledged()
            while self._inbox:
                self._owner.link_message(*self._inbox.popleft())
        finally:
            # If a callback raised, that is a bug above, and no reason to lose the rest.
            if self._inbox:
                self._loop.call_soon(self._settle)
            elif self._client is not None and (self._lost is not None or self._client.socket() is None):
                self._end()

    def _end(self) -> None:
        reason = self._lost or "the connection was closed"
        if self._wire.error is not None:
            reason = words(self._wire.error)
        if not self.up and self.failure is None:
            self.failure = TransportError(
                f"the broker at {self._url} closed the connection before it was ready: {reason}",
                hint=TLS_HINT if self._url.tls else "check that the port speaks MQTT, and the broker's log",
            )
        self._close()
        if self.up:
            self._owner.link_down(self, reason)

    def _close(self) -> None:
        self._unwatch()
        if self._ticker is not None:
            self._ticker.cancel()
        self._wire.close()
        self._client = None
        self.settled.set()
        self.ended.set()

    def _unwatch(self) -> None:
        descriptor = self._wire.fileno()
        if descriptor >= 0:
            self._loop.remove_reader(descriptor)
            if self._blocked:
                self._loop.remove_writer(descriptor)
                self._blocked = False

    # paho calls these.

    def _on_connect(
        self, client: paho.Client, _: Any, __: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if self._answered:
            self._lost = "the broker welcomed this client twice"
            return
        self._answered = True
        if reason.is_failure:
            self.version_refused = reason.value == _UNSUPPORTED_VERSION
            self.failure = _refusal(self._url, reason)
            return
        self.failure = self._heed(properties)
        if self.failure is not None:
            self._lost = str(self.failure)
        elif not self._subscriptions:
            self._granted = True
        elif self.version == "5":
            client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in self._subscriptions])
        else:
            client.subscribe([(topic, 1) for topic in self._subscriptions])

    def _heed(self, properties: Properties | None) -> TransportError | None:
        """Take over the broker's limits (MQTT 5), or say which of them is too narrow."""
        self.in_flight_max = min(_IN_FLIGHT_MAX, getattr(properties, "ReceiveMaximum", _IN_FLIGHT_MAX))
        self._retain_available = bool(getattr(properties, "RetainAvailable", 1))
        packet_max_bytes: int | None = getattr(properties, "MaximumPacketSize", None)
        if packet_max_bytes is not None:
            self.payload_max_bytes = min(PAYLOAD_MAX_BYTES, packet_max_bytes - _OVERHEAD_BYTES)
        if self.payload_max_bytes < CONTROL_FRAME_MAX_BYTES:
            return TransportError(
                f"the broker at {self._url} takes packets of {packet_max_bytes} bytes at most",
                hint=f"set its maximum packet size to at least {CONTROL_FRAME_MAX_BYTES + _OVERHEAD_BYTES}",
            )
        if getattr(properties, "MaximumQoS", 1) < 1:
            return TransportError(
                f"the broker at {self._url} takes messages at QoS 0 only", hint="use a broker with QoS 1"
            )
        return None

    def _on_subscribe(self, _: Any, __: Any, ___: int, reasons: list[ReasonCode], ____: Any) -> None:
        refused = [topic for topic, reason in zip(self._subscriptions, reasons, strict=False) if reason.is_failure]
        if refused:
            self.failure = TransportError(
                f"the broker at {self._url} refuses the subscription to {', '.join(refused)}",
                hint="check the broker's access control, and that this client's certificate carries its id",
            )
            self._lost = str(self.failure)
        else:
            self._granted = True

    def _on_publish(self, _: Any, __: Any, ___: int, reason: ReasonCode, ____: Any) -> None:
        self.in_flight -= 1
        self._acknowledged = True
        self._progress_at = self._loop.time()
        self._refused += int(reason.is_failure)

    def _on_message(self, _: Any, __: Any, message: paho.MQTTMessage) -> None:
        self._messages_down += 1
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return  # no topic of ours
        self._inbox.append((topic, bytes(message.payload)))

    def _on_disconnect(self, _: Any, __: Any, flags: paho.DisconnectFlags, reason: ReasonCode, ___: Any) -> None:
        if self._lost is None and flags.is_disconnect_packet_from_server:
            self._lost = f"the broker disconnected: {reason}"

    def _on_want_write(self, *_: Any) -> None:
        # Written at the end of this turn of the loop, with all else that is published in it.
        if not self._write_due and not self._blocked:
            self._write_due = True
            self._loop.call_soon(self._write)

    def _on_socket_close(self, *_: Any) -> None:
        self._unwatch()


class _PahoClient(paho.Client):
    """paho on a socket that is connected already."""

    def __init__(self, wire: Wire, client_id: str, version: Version) -> None:
        number = MQTTProtocolVersion.MQTTv5 if version == "5" else MQTTProtocolVersion.MQTTv311
        super().__init__(CallbackAPIVersion.VERSION2, client_id, protocol=number, reconnect_on_failure=False)
        self._wire = wire

    def _create_socket(self) -> Wire:
        return self._wire

    @property
    def arriving_bytes(self) -> int:
        """What the packet that is being read says of its size, as far as that is read."""
        return int(self._in_packet["remaining_length"])


@functools.lru_cache(maxsize=256)
def _publish_properties(expiry_s: int | None, content_type: str | None) -> Properties | None:
    # Cached: paho takes longer to build these than to send the message.
    if expiry_s is None and content_type is None:
        return None
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if expiry_s is not None:
        properties.MessageExpiryInterval = expiry_s
    if content_type is not None:
        properties.ContentType = content_type
    return properties


def _refusal(url: BrokerUrl, reason: ReasonCode) -> TransportError:
    code = reason.value
    if code in _BAD_CREDENTIALS:
        return TransportError(
            f"the broker at {url} refuses this client's credentials: {reason}",
            hint="check the user name and password in the broker URL, or this client's certificate",
        )
    if code == _UNSUPPORTED_VERSION:
        return TransportError(
            f"the broker at {url} does not speak this version of MQTT",
            hint='let the transport choose the version: protocol "auto"',
        )
    if code == _CLIENT_ID_INVALID:
        return TransportError(
            f"the broker at {url} refuses this client's id: {reason}",
            hint="the client id must be the common name of its certificate",
        )
    if code in _BUSY:
        return TransportError(f"the broker at {url} is not available: {reason}", hint="try again later")
    return TransportError(f"the broker at {url} refuses the connection: {reason}", hint="see the broker's log")
