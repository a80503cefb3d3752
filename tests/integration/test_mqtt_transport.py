"""The transport on real brokers: messages, versions, loss and reconnection, many clients in one loop."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from coordinator.service.broker import RunningBroker, start_broker
from edge_sdk.errors import LocalProtocolError, TransportError
from edge_sdk.protocol.chunks import Assembly, MemoryParts, Range, frames
from edge_sdk.protocol.limits import CHUNK_DEFAULT_BYTES
from edge_sdk.runtime.broker_url import BrokerUrl
from tests.integration.peers import PATIENCE_S, Peer
from tests.integration.proxy import ChaosProxy


@asynccontextmanager
async def peers(url: BrokerUrl, *names: str, on: Sequence[str] = ("t/#",), **options: Any) -> AsyncIterator[list[Peer]]:
    """Clients that are connected, and stopped at the end."""
    made = [Peer(url, name, on, **options) for name in names]
    try:
        for peer in made:
            await peer.start()
        yield made
    finally:
        await asyncio.gather(*(peer.stop() for peer in made))


def test_messages_pass_and_the_version_is_found_out(broker: RunningBroker) -> None:
    async def scenario() -> None:
        async with peers(broker.url, "a", "b") as (a, b):
            expected = "5" if broker.kind == "mosquitto" else "3.1.1"
            assert a.transport.protocol == expected
            assert a.publish("t/1", b"hello", expiry_s=30, content_type="text/plain")
            assert await a.message() == ("t/1", b"hello")
            assert await b.message() == ("t/1", b"hello")
            assert a.publish("t/2", b"")
            assert await b.message() == ("t/2", b"")
            payload = os.urandom(a.transport.payload_max_bytes)
            assert a.publish("t/3", payload)
            assert await b.message() == ("t/3", payload)
            await a.stop()
            traffic = a.transport.traffic
            assert (traffic.messages_up, traffic.connections, traffic.dropped, traffic.refused) == (
                3,
                1,
                0,
                0,
            )
            assert traffic.bytes_up > len(payload)
            assert not a.transport.connected
            assert not a.publish("t/4", b"late")
            assert a.transport.traffic.dropped == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_version_can_be_insisted_on(broker: RunningBroker, protocol: str) -> None:
    async def scenario() -> None:
        peer = Peer(broker.url, "a", ["t"], protocol=protocol)
        if (broker.kind, protocol) == ("amqtt", "5"):
            with pytest.raises(TransportError, match="does not speak this version") as caught:
                await peer.start()
            assert "auto" in caught.value.hint
        else:
            await peer.start()
            assert peer.transport.protocol == protocol
        await peer.stop()

    asyncio.run(scenario())


def test_a_retained_message_waits_for_late_subscribers(broker: RunningBroker) -> None:
    async def scenario() -> None:
        async with peers(broker.url, "a", on=["t/x"]) as (a,):
            assert a.publish("t/x", b"standing", retain=True, expiry_s=60)
            assert await a.message() == ("t/x", b"standing")
            async with peers(broker.url, "b", on=["t/x"]) as (b,):
                assert await b.message() == ("t/x", b"standing")

    asyncio.run(scenario())


def test_it_comes_back_after_the_broker_was_killed(broker: RunningBroker) -> None:
    async def scenario() -> None:
        async with peers(broker.url, "a", "b") as (a, b):
            assert a.publish("t", b"before")
            assert await b.message() == ("t", b"before")
            broker.kill()
            for peer in (a, b):
                assert await peer.down()
                assert not peer.transport.connected
                assert not peer.publish("t", b"lost")
            with start_broker(broker.folder, kind=broker.kind, port=broker.url.port):
                await a.up()
                await b.up()
                assert a.publish("t", b"after")
                # Nothing of the old connection is sent again.
                assert await b.message() == ("t", b"after")
                assert await a.message() == ("t", b"before")
                assert await a.message() == ("t", b"after")
                await a.stop()
                await b.stop()
            assert a.transport.traffic.connections == 2

    asyncio.run(scenario())


def test_failed_attempts_are_reported_once_and_then_shown(broker: RunningBroker) -> None:
    async def scenario() -> None:
        async with ChaosProxy(broker.url) as proxy:
            proxy.refuse = True
            peer = Peer(proxy.url, "a", ["t"])
            peer.transport.launch()
            with pytest.raises(LocalProtocolError, match="twice"):
                peer.transport.launch()
            assert "closed the connection" in await peer.down()
            for _ in range(5):
                await proxy.connection()
            assert peer.downs.empty()
            assert isinstance(peer.transport.last_error, TransportError)
            proxy.refuse = False
            await peer.up()
            assert peer.transport.last_error is None
            await peer.stop()
            assert peer.downs.empty()
            # A stopped transport may be started again.
            await peer.start()
            await peer.stop()

    asyncio.run(scenario())


def test_an_aborted_connection_is_made_anew(broker: RunningBroker) -> None:
    async def scenario() -> None:
        async with peers(broker.url, "a") as (a,):
            for _ in range(5):
                a.transport.abort()
                assert "aborted" in await a.down()
                await a.up()
            assert a.publish("t", b"x")
            assert await a.message() == ("t", b"x")

    asyncio.run(scenario())


def test_a_half_open_link_is_noticed_by_keepalive(broker: RunningBroker) -> None:
    async def scenario() -> None:
        async with ChaosProxy(broker.url) as proxy, peers(proxy.url, "a", keepalive_s=1) as (a,):
            proxy.freeze()
            assert a.publish("t", b"into the void")
            assert "dead" in await a.down()
            proxy.thaw()
            await a.up()
            assert a.publish("t", b"back")
            assert await a.message() == ("t", b"back")

    asyncio.run(scenario())


def test_a_stopped_broker_process_is_noticed(broker: RunningBroker) -> None:
    async def scenario() -> None:
        async with peers(broker.url, "a", keepalive_s=1) as (a,):
            os.kill(broker.pid, signal.SIGSTOP)
            try:
                assert await a.down()
            finally:
                os.kill(broker.pid, signal.SIGCONT)
            await a.up()

    asyncio.run(scenario())


def test_a_client_is_replaced_by_another_of_its_id(broker: RunningBroker) -> None:
    async def scenario() -> None:
        # The first would come back and evict in turn; it is kept from that for the time of the test.
        first = await Peer(broker.url, "same", ["t"], reconnect_min_s=600, reconnect_max_s=600).start()
        async with peers(broker.url, "same", "other", on=["t"]) as (second, other):
            if broker.kind == "mosquitto":
                assert await first.down()
            assert other.publish("t", b"x")
            assert await second.message() == ("t", b"x")
        await first.stop()

    asyncio.run(scenario())


def test_two_hundred_clients_share_one_loop(broker: RunningBroker) -> None:
    count, rounds = 200, 3

    async def scenario() -> None:
        coordinator = await Peer(broker.url, "coordinator", ["d/+/up"]).start()
        devices = [Peer(broker.url, f"dev-{i}", ["task", f"d/dev-{i}/dn"]) for i in range(count)]
        await asyncio.gather(*(device.start() for device in devices))
        for turn in range(rounds):
            for i, device in enumerate(devices):
                assert device.publish(f"d/dev-{i}/up", b"%d" % turn)
            heard = {await coordinator.message() for _ in devices}
            assert heard == {(f"d/dev-{i}/up", b"%d" % turn) for i in range(count)}
            for i in range(count):
                assert coordinator.publish(f"d/dev-{i}/dn", b"%d" % i)
            for i, device in enumerate(devices):
                assert await device.message() == (f"d/dev-{i}/dn", b"%d" % i)
        assert coordinator.publish("task", b"go", retain=True)
        for device in devices:
            assert await device.message() == ("task", b"go")
        for device in devices:
            device.transport.abort()
        await asyncio.gather(*(device.up() for device in devices))
        for device in devices:
            assert await device.message() == ("task", b"go")
        await asyncio.gather(*(device.stop() for device in devices))
        await coordinator.stop()

    asyncio.run(scenario())


class Sender:
    """Answers pulls (ranges in decimal) on `ask` with chunks on `chunk`, remembering nothing."""

    def __init__(self, url: BrokerUrl, blob: bytes) -> None:
        self._blob = blob
        self._sha256 = hashlib.sha256(blob).digest()
        self.peer = Peer(url, "sender", ["ask"])
        self.chunks = 0

    async def serve(self) -> None:
        while True:
            _, request = await self.peer.inbox.get()
            numbers = [int(word) for word in request.split()]
            ranges: list[Range] = list(zip(numbers[::2], numbers[1::2], strict=True))
            for frame in frames(self._sha256, self._blob, CHUNK_DEFAULT_BYTES, ranges):
                self.chunks += 1
                self.peer.publish("chunk", frame)


async def fetch(peer: Peer, receiver: Assembly, begun: asyncio.Event | None = None) -> None:
    """Pull until all is here, through whatever happens to the connection; sets `begun` with the first chunk."""
    loop = asyncio.get_running_loop()
    while not receiver.complete:
        while not peer.ups.empty():
            peer.ups.get_nowait()
            receiver.connection_lost()
        if peer.transport.connected:
            ranges = receiver.requests(loop.time())
            if ranges:
                peer.publish("ask", b" ".join(b"%d %d" % pair for pair in ranges))
        deadline = receiver.next_deadline
        try:
            async with asyncio.timeout_at(min(deadline or 0, loop.time() + 0.2)):
                _, frame = await peer.inbox.get()
        except TimeoutError:
            continue
        receiver.receive(frame, loop.time())
        if begun is not None:
            begun.set()


def test_five_megabytes_arrive_through_a_link_that_keeps_breaking(broker: RunningBroker) -> None:
    blob = random.Random(7).randbytes(5_000_000)
    sha256 = hashlib.sha256(blob).digest()

    async def scenario() -> None:
        async with ChaosProxy(broker.url) as proxy:
            proxy.reset_after_bytes = 1_000_000
            sender = Sender(broker.url, blob)
            await sender.peer.start()
            serving = asyncio.create_task(sender.serve())
            async with peers(proxy.url, "receiver", on=["chunk"]) as (peer,):
                parts = MemoryParts(len(blob), CHUNK_DEFAULT_BYTES)
                receiver = Assembly(sha256, len(blob), CHUNK_DEFAULT_BYTES, parts, timeout_s=0.5)
                await asyncio.wait_for(fetch(peer, receiver), 4 * PATIENCE_S)
                assert receiver.finish() == blob
            assert proxy.resets >= 4
            # Whole-blob messages would never have come through.
            assert sender.chunks < 6 * len(blob) / CHUNK_DEFAULT_BYTES
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            await sender.peer.stop()

    asyncio.run(scenario())


def test_a_transfer_outlives_slow_links_and_a_broker_kill(broker: RunningBroker) -> None:
    blob = random.Random(8).randbytes(1_500_000)
    sha256 = hashlib.sha256(blob).digest()

    async def scenario() -> None:
        async with ChaosProxy(broker.url) as proxy:
            proxy.latency_s = 0.02
            proxy.rate_bytes_s = 2_000_000
            sender = Sender(broker.url, blob)
            await sender.peer.start()
            serving = asyncio.create_task(sender.serve())
            async with peers(proxy.url, "receiver", on=["chunk"]) as (peer,):
                parts = MemoryParts(len(blob), CHUNK_DEFAULT_BYTES)
                receiver = Assembly(sha256, len(blob), CHUNK_DEFAULT_BYTES, parts, timeout_s=0.5)
                begun = asyncio.Event()
                fetching = asyncio.create_task(fetch(peer, receiver, begun))
                await asyncio.wait_for(begun.wait(), PATIENCE_S)
                broker.kill()
                await sender.peer.down()
                assert not receiver.complete
                with start_broker(broker.folder, kind=broker.kind, port=broker.url.port):
                    await sender.peer.up()
                    await asyncio.wait_for(fetching, 4 * PATIENCE_S)
                    assert receiver.finish() == blob
                    await peer.stop()
                    serving.cancel()
                    await asyncio.gather(serving, return_exceptions=True)
                    await sender.peer.stop()

    asyncio.run(scenario())
