"""What the transport says and does when a broker refuses, limits, misbehaves or is not there."""

from __future__ import annotations

import asyncio
import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from coordinator.service.broker import RunningBroker
from edge_sdk.errors import ConfigError, TransportError
from edge_sdk.protocol.limits import CONTROL_FRAME_MAX_BYTES
from edge_sdk.runtime.broker_url import BrokerUrl
from edge_sdk.runtime.mqtt import MqttTransport, TlsFiles
from edge_sdk.runtime.mqtt_link import PAYLOAD_MAX_BYTES
from tests.integration import fake_broker
from tests.integration.fake_broker import FakeBroker, publish_body
from tests.integration.peers import Peer


@contextmanager
def refusal(match: str) -> Iterator[None]:
    """Expect a `TransportError` that matches, and that says what to do."""
    with pytest.raises(TransportError, match=match) as caught:
        yield
    assert caught.value.hint


async def attempt(url: BrokerUrl, timeout_s: float = 10.0, **options: Any) -> None:
    peer = Peer(url, "a", ["t"], **options)
    try:
        await peer.transport.start(timeout_s)
    finally:
        await peer.stop()


def test_a_port_where_nobody_listens() -> None:
    with refusal("refuses connections"):
        asyncio.run(attempt(BrokerUrl("127.0.0.1", 1, False)))


def test_a_host_that_does_not_exist() -> None:
    with refusal("'no-such-host.invalid' is unknown"):
        asyncio.run(attempt(BrokerUrl("no-such-host.invalid", 1883, False)))


def test_a_host_name_that_cannot_be() -> None:
    with refusal("unknown"):
        asyncio.run(attempt(BrokerUrl("a" * 300, 1883, False)))


def test_no_descriptors_left() -> None:
    async def scenario() -> None:
        lowest_free = os.dup(0)
        os.close(lowest_free)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            with refusal(r"cannot be reached.*open files"):
                await attempt(BrokerUrl("127.0.0.1", 1, False))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    asyncio.run(scenario())


def test_tls_with_a_broker_without_it(broker: RunningBroker) -> None:
    url = BrokerUrl(broker.url.host, broker.url.port, True)
    with refusal("TLS with the broker|did not answer"):
        asyncio.run(attempt(url, 3.0))


def test_tls_files_without_tls() -> None:
    with pytest.raises(ConfigError, match="without TLS"):
        MqttTransport(BrokerUrl("h", 1, False), "a", [], print, tls=TlsFiles(None))


@pytest.mark.parametrize("options", [{"keepalive_s": 0}, {"reconnect_min_s": 0}, {"reconnect_max_s": 0.5}])
def test_paces_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot be"):
        MqttTransport(BrokerUrl("h", 1, False), "a", [], print, **options)


@pytest.mark.parametrize("protocol", ["auto", "5"])
def test_a_peer_that_says_nothing(protocol: str) -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.ignore_connect = True
            with refusal("did not answer within 0.2 s"):
                await attempt(fake.url, 0.2, protocol=protocol)

    asyncio.run(scenario())


def test_a_peer_that_hangs_up() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.close_instead = True
            with refusal("closed the connection before it was ready"):
                await attempt(fake.url)
            # Auto tried both versions before it gave up.
            assert (await fake.packet(fake_broker.CONNECT))[6] == 5
            assert (await fake.packet(fake_broker.CONNECT))[6] == 4

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("protocol", "code", "match"),
    [
        ("5", 0x86, "refuses this client's credentials"),
        ("5", 0x87, "refuses this client's credentials"),
        ("5", 0x85, "refuses this client's id"),
        ("5", 0x88, "is not available"),
        ("5", 0x97, "is not available"),
        ("5", 0x80, "refuses the connection"),
        ("3.1.1", 2, "refuses this client's id"),
        ("3.1.1", 3, "is not available"),
        ("3.1.1", 4, "refuses this client's credentials"),
        ("3.1.1", 5, "refuses this client's credentials"),
    ],
)
def test_refusals_are_explained(protocol: str, code: int, match: str) -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.connect_code = code
            with refusal(match):
                await attempt(fake.url, protocol=protocol)

    asyncio.run(scenario())


def test_a_user_name_and_password_are_sent() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            url = BrokerUrl(fake.url.host, fake.url.port, False, "ann", "secret")
            await attempt(url)
            assert (await fake.packet(fake_broker.CONNECT)).endswith(b"\0\3ann\0\6secret")

    asyncio.run(scenario())


def test_auto_settles_on_what_the_broker_speaks() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.accepts_5 = False
            peer = await Peer(fake.url, "a", ["t"]).start()
            assert peer.transport.protocol == "3.1.1"
            peer.transport.abort()
            await peer.up()
            await peer.stop()
            versions = [(await fake.packet(fake_broker.CONNECT))[6] for _ in range(3)]
            # It remembers, and does not ask again on every reconnect.
            assert versions == [5, 4, 4]

    asyncio.run(scenario())


def test_no_common_version() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.accepts_5 = fake.accepts_311 = False
            with refusal("closed the connection|does not speak"):
                await attempt(fake.url)

    asyncio.run(scenario())


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_refused_subscription_is_named(protocol: str) -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.suback_code = 0x80
            with refusal("refuses the subscription to t"):
                await attempt(fake.url, protocol=protocol)

    asyncio.run(scenario())


def test_a_subscription_that_is_not_answered_is_not_connected() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.suback_code = None
            with refusal("did not answer"):
                await attempt(fake.url, 0.3)

    asyncio.run(scenario())


def test_a_client_without_subscriptions_is_ready_at_once() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            peer = await Peer(fake.url, "a").start()
            assert peer.transport.connected
            await peer.stop()

    asyncio.run(scenario())


def property_u32(number: int, value: int) -> bytes:
    return bytes([number]) + value.to_bytes(4, "big")


def test_a_broker_whose_packets_are_too_small_is_refused() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.properties = property_u32(39, CONTROL_FRAME_MAX_BYTES)
            with refusal("packets of 61440 bytes at most"):
                await attempt(fake.url, protocol="5")

    asyncio.run(scenario())


def test_a_broker_with_qos_0_only_is_refused() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.properties = b"\x24\x00"
            with refusal("QoS 0 only"):
                await attempt(fake.url, protocol="5")

    asyncio.run(scenario())


def test_the_brokers_packet_size_is_kept_to() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.properties = property_u32(39, 100_000)
            peer = await Peer(fake.url, "a", ["t"]).start()
            limit = peer.transport.payload_max_bytes
            assert CONTROL_FRAME_MAX_BYTES < limit < 100_000
            assert peer.publish("t", bytes(limit))
            assert len(await fake.packet(fake_broker.PUBLISH)) <= 100_000 - 5
            with refusal("over the broker's limit"):
                peer.publish("t", bytes(limit + 1))
            await peer.stop()

    asyncio.run(scenario())


def test_no_more_is_in_flight_than_the_broker_takes_and_the_queue_is_bounded() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.properties = b"\x21\x00\x03"
            fake.acknowledges = False
            peer = await Peer(fake.url, "a", queue_messages=5).start()
            taken = [peer.publish("t", b"%d" % i) for i in range(10)]
            assert taken == [True] * 8 + [False] * 2
            bodies = [await fake.packet(fake_broker.PUBLISH) for _ in range(3)]
            assert [body[-1:] for body in bodies] == [b"0", b"1", b"2"]
            # An acknowledgement lets exactly one more out.
            fake.send(fake_broker.PUBACK, bodies[0][3:5])
            assert (await fake.packet(fake_broker.PUBLISH))[-1:] == b"3"
            assert peer.publish("t", b"x")
            assert fake.packets.empty()
            await peer.transport.stop(0.0)
            assert peer.transport.traffic.messages_up == 4
            assert peer.transport.traffic.dropped == 2 + 5

    asyncio.run(scenario())


def test_the_queue_is_bounded_in_bytes_too() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.properties = b"\x21\x00\x01"
            fake.acknowledges = False
            peer = await Peer(fake.url, "a", queue_bytes=100).start()
            assert [peer.publish("t", bytes(60)) for _ in range(4)] == [True, True, True, False]
            await peer.transport.stop(0.0)

    asyncio.run(scenario())


@pytest.mark.parametrize("ending", ["all arrives", "the connection breaks"])
def test_a_broker_that_does_not_read_blocks_nobody(ending: str) -> None:
    count = 60

    async def scenario() -> None:
        async with FakeBroker() as fake:
            peer = await Peer(fake.url, "a").start()
            fake.reading.clear()
            for i in range(count):
                assert peer.publish("t", bytes([i]) * PAYLOAD_MAX_BYTES)
            # More than any socket buffers: what does not fit waits here, and the loop goes on.
            for _ in range(20):
                await asyncio.sleep(0)
            assert peer.transport.traffic.bytes_up < count * PAYLOAD_MAX_BYTES
            if ending == "all arrives":
                fake.reading.set()
                for i in range(count):
                    assert (await fake.packet(fake_broker.PUBLISH))[-1] == i
            else:
                peer.transport.abort()
                assert await peer.down()
                fake.reading.set()
                await peer.up()
            await peer.stop()

    asyncio.run(scenario())


def test_stop_waits_for_what_was_published() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.properties = b"\x21\x00\x01"
            peer = await Peer(fake.url, "a").start()
            for i in range(20):
                assert peer.publish("t", b"%d" % i)
            await peer.transport.stop(30.0)
            for i in range(20):
                assert (await fake.packet(fake_broker.PUBLISH)).endswith(b"%d" % i)
            await fake.packet(fake_broker.DISCONNECT)
            assert peer.transport.traffic.dropped == 0

    asyncio.run(scenario())


def test_refused_messages_are_counted() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.acknowledges = False
            peer = await Peer(fake.url, "a", ["t"]).start()
            assert peer.publish("t", b"x")
            body = await fake.packet(fake_broker.PUBLISH)
            fake.send(fake_broker.PUBACK, body[3:5] + b"\x87")
            await peer.stop()
            assert peer.transport.traffic.refused == 1

    asyncio.run(scenario())


def test_silence_is_no_loss_while_pings_are_answered() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            peer = await Peer(fake.url, "a", ["t"], keepalive_s=1).start()
            for _ in range(3):
                await fake.packet(fake_broker.PINGREQ)
            assert peer.transport.connected
            assert peer.downs.empty()
            await peer.stop()

    asyncio.run(scenario())


def test_a_broker_that_acknowledges_nothing_is_left() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.acknowledges = False
            peer = await Peer(fake.url, "a", ["t"], keepalive_s=1).start()
            assert peer.publish("t", b"x")
            assert await peer.down() == "the broker acknowledges nothing"
            await peer.up()
            await peer.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize(("protocol", "version"), [("5", 5), ("3.1.1", 4)])
def test_expiry_and_content_type_travel_where_they_can(protocol: str, version: int) -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            peer = await Peer(fake.url, "a", protocol=protocol).start()
            assert peer.publish("t", b"x", expiry_s=30.4, content_type="a/b")
            body = await fake.packet(fake_broker.PUBLISH)
            plain = b"\0\1t\0\1"
            properties = b"\x0b\x02\x00\x00\x00\x1e\x03\x00\x03a/b" if version == 5 else b""
            assert body == plain + properties + b"x"
            await peer.stop()

    asyncio.run(scenario())


def test_nothing_is_retained_where_the_broker_cannot() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.properties = b"\x25\x00"
            peer = await Peer(fake.url, "a", protocol="5").start()
            assert peer.publish("t", b"x", retain=True)
            await fake.packet(fake_broker.PUBLISH)
            await peer.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize(("protocol", "version"), [("5", 5), ("3.1.1", 4)])
def test_messages_that_are_too_large_or_on_unreadable_topics_are_dropped(protocol: str, version: int) -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            peer = await Peer(fake.url, "a", ["t"], protocol=protocol).start()
            fake.send(fake_broker.PUBLISH, publish_body("t", bytes(PAYLOAD_MAX_BYTES + 1), version=version))
            fake.send(fake_broker.PUBLISH, b"\0\2\xff\xfe" + b"\0" * (version == 5) + b"?")
            fake.send(fake_broker.PUBLISH, publish_body("t", bytes(PAYLOAD_MAX_BYTES), version=version))
            fake.send(fake_broker.PUBLISH, publish_body("t", b"end", version=version))
            assert await peer.message() == ("t", bytes(PAYLOAD_MAX_BYTES))
            assert await peer.message() == ("t", b"end")
            assert peer.transport.traffic.dropped == 1
            await peer.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("packet", [b"\x00\x00", b"\xf0\x00", b"\x30\xff\xff\xff\xff\xff", b"\x20\x01\x00"])
def test_malformed_packets_end_the_connection_and_nothing_else(packet: bytes) -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            peer = await Peer(fake.url, "a", ["t"]).start()
            fake.send_raw(packet)
            assert await peer.down()
            await peer.up()
            await peer.stop()

    asyncio.run(scenario())


def test_the_brokers_reason_for_a_disconnect_is_handed_on() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            peer = await Peer(fake.url, "a", ["t"], protocol="5").start()
            fake.send(fake_broker.DISCONNECT, b"\x8e\x00")
            assert await peer.down() == "the broker disconnected: Session taken over"
            await peer.stop()

    asyncio.run(scenario())


def test_short_lived_connections_do_not_shorten_the_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[float] = []

    def uniform(_: random.SystemRandom, low: float, high: float) -> float:
        assert low == 0
        spans.append(high)
        return 0.0

    monkeypatch.setattr(random.SystemRandom, "uniform", uniform)

    async def scenario() -> None:
        async with FakeBroker() as fake:
            peer = await Peer(fake.url, "a", ["t"], reconnect_min_s=1, reconnect_max_s=60).start()
            for _ in range(8):
                peer.transport.abort()
                await peer.up()
            await peer.stop()

    asyncio.run(scenario())
    assert spans == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_callback_that_raises_loses_no_other_message() -> None:
    async def scenario() -> None:
        told: list[dict[str, Any]] = []
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

        def on_message(_: str, payload: bytes) -> None:
            if payload == b"bad":
                raise ZeroDivisionError
            heard.put_nowait(payload)

        async with FakeBroker() as fake:
            transport = MqttTransport(fake.url, "a", ["t"], on_message, protocol="3.1.1")
            await transport.start()
            for payload in (b"1", b"bad", b"2", b"bad", b"3"):
                fake.send(fake_broker.PUBLISH, publish_body("t", payload, version=4))
            assert [await heard.get() for _ in range(3)] == [b"1", b"2", b"3"]
            assert len(told) == 2
            assert transport.connected
            await transport.stop()

    asyncio.run(scenario())


def test_callbacks_that_raise_do_not_end_the_reconnecting() -> None:
    async def scenario() -> None:
        told: list[dict[str, Any]] = []
        ups = asyncio.Queue[None]()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

        def on_connected() -> None:
            ups.put_nowait(None)
            raise ZeroDivisionError

        def on_disconnected(_: str) -> None:
            raise ZeroDivisionError

        async with FakeBroker() as fake:
            fake.close_instead = True
            transport = MqttTransport(
                fake.url,
                "a",
                ["t"],
                lambda *_: None,
                on_connected=on_connected,
                on_disconnected=on_disconnected,
                reconnect_min_s=0.01,
                reconnect_max_s=0.02,
            )
            transport.launch()
            for _ in range(6):
                await fake.packet(fake_broker.CONNECT)
            fake.close_instead = False
            await asyncio.wait_for(ups.get(), 30)
            assert transport.connected
            assert len(told) == 2
            await transport.stop()

    asyncio.run(scenario())


def test_a_callback_may_publish_and_abort() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            heard: list[bytes] = []
            down = asyncio.Event()

            def on_message(_: str, payload: bytes) -> None:
                heard.append(payload)
                assert transport.publish("t", b"answer") == (payload == b"1")
                transport.abort()

            transport = MqttTransport(
                fake.url, "a", ["t"], on_message, protocol="3.1.1", on_disconnected=lambda _: down.set()
            )
            await transport.start()
            both = b"".join(
                fake_broker.packet(fake_broker.PUBLISH, publish_body("t", payload, version=4))
                for payload in (b"1", b"2")
            )
            fake.send_raw(both)
            await asyncio.wait_for(down.wait(), 10)
            assert heard == [b"1", b"2"]
            await transport.stop()

    asyncio.run(scenario())


def test_stopping_while_connecting_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        async with FakeBroker() as fake:
            fake.ignore_connect = True
            peer = Peer(fake.url, "a", ["t"])
            peer.transport.launch()
            await fake.packet(fake_broker.CONNECT)
            await peer.stop()
            assert peer.downs.empty()

    asyncio.run(scenario())
