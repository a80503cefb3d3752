"""A transport for tests that remembers what happened to it, and lets a test wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from edge_sdk.runtime.broker_url import BrokerUrl
from edge_sdk.runtime.mqtt import MqttTransport

PATIENCE_S = 30.0


class Peer:
    """One client. `options` are those of `MqttTransport`; reconnects are fast unless they say otherwise."""

    def __init__(self, url: BrokerUrl, name: str, subscriptions: Sequence[str] = (), **options: Any) -> None:
        self.name = name
        self.inbox: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.ups: asyncio.Queue[None] = asyncio.Queue()
        self.downs: asyncio.Queue[str] = asyncio.Queue()
        options = {"reconnect_min_s": 0.02, "reconnect_max_s": 0.2, **options}
        self.transport = MqttTransport(
            url,
            name,
            subscriptions,
            lambda topic, payload: self.inbox.put_nowait((topic, payload)),
            on_connected=lambda: self.ups.put_nowait(None),
            on_disconnected=self.downs.put_nowait,
            **options,
        )

    async def start(self) -> Peer:
        """Connect, and take note of it."""
        await self.transport.start(PATIENCE_S)
        await self.up()
        return self

    async def up(self) -> None:
        """Wait for a connection to come up."""
        try:
            await asyncio.wait_for(self.ups.get(), PATIENCE_S)
        except TimeoutError:
            heard = [self.downs.get_nowait() for _ in range(self.downs.qsize())]
            raise AssertionError(f"{self.name} did not come up; it was lost {len(heard)} times: {heard[-5:]}") from None

    async def down(self) -> str:
        """Wait for a connection to be lost; returns the reason."""
        return await asyncio.wait_for(self.downs.get(), PATIENCE_S)

    async def message(self) -> tuple[str, bytes]:
        """Wait for the next message."""
        return await asyncio.wait_for(self.inbox.get(), PATIENCE_S)

    def publish(self, topic: str, payload: bytes, **options: Any) -> bool:
        """Publish."""
        return self.transport.publish(topic, payload, **options)

    async def stop(self) -> None:
        """Stop."""
        await self.transport.stop()
