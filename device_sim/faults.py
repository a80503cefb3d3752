"""Devices that vanish: drawn from a seed, and played on the real transport.

A vanished device neither sends nor hears, whatever its process does, until a later round is announced, as a phone
does that leaves its charger. Numbers here are of a simulation; no secret is drawn from them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from device_sim.script import STAGES, Vanish
from edge_sdk.protocol import codec, topics
from edge_sdk.runtime.agent import DeviceAgent
from edge_sdk.runtime.driver import MakeTransport, Transport

VANISHING_STAGES = ("advertise_keys", "share_keys", "masked_input", "unmasking")

_KIND_AT = 3


def draw_vanishings(device_ids: Sequence[str], rounds: int, share: float, seed: int) -> tuple[Vanish, ...]:
    """Which devices vanish in which round, and before which stage.

    Args:
        device_ids: the fleet.
        rounds: numbered from 1.
        share: of the devices that vanish in a round, spread evenly over the four stages.
        seed: the same seed draws the same faults.
    """
    draw = random.Random(f"vanishings {seed}")
    return tuple(
        Vanish(device_id, number, draw.choice(VANISHING_STAGES))
        for number in range(1, rounds + 1)
        for device_id in device_ids
        if draw.random() < share
    )


class FaultyTransport:
    """A device's transport that plays its vanishings.

    Args:
        agent: whose it is.
        make: makes the real transport.
        faults: this device's.
        on_message, on_connected: the driver's.
    """

    def __init__(
        self,
        agent: DeviceAgent,
        make: MakeTransport,
        faults: Sequence[Vanish],
        on_message: Callable[[str, bytes], None],
        on_connected: Callable[[], None],
    ) -> None:
        self._agent = agent
        self._faults = {(fault.round_number, STAGES[fault.stage]) for fault in faults}
        self._on_message = on_message
        self._away_from: bytes | None = None
        self._announced = b""
        self._inner: Transport = make(agent, self._hear, on_connected)

    def launch(self) -> None:
        """Begin to connect, and keep at it."""
        self._inner.launch()

    def publish(self, topic: str, payload: bytes, *, expiry_s: float | None = None) -> bool:
        """Send, unless the device has vanished or does so now."""
        if self._away_from is None and self._vanishes(payload):
            self._away_from = self._announced
        if self._away_from is not None:
            return False
        return self._inner.publish(topic, payload, expiry_s=expiry_s)

    async def stop(self) -> None:
        """Say goodbye."""
        await self._inner.stop()

    def _vanishes(self, payload: bytes) -> bool:
        found = self._agent.announcement
        if found is None or payload[:2] != b"EF" or len(payload) <= _KIND_AT:
            return False
        kind = codec.KINDS.get(payload[_KIND_AT])
        fault = (found.round_number, kind)
        if fault not in self._faults:
            return False
        self._faults.discard(fault)
        return True

    def _hear(self, topic: str, payload: bytes) -> None:
        if isinstance(topics.parse(topic), topics.TaskTopic):
            self._announced = payload
            if self._away_from is not None and payload != self._away_from:
                self._away_from = None
        if self._away_from is None:
            self._on_message(topic, payload)


def faulty(make: MakeTransport, faults: Sequence[Vanish]) -> MakeTransport:
    """Transports that play the given vanishings, each device its own."""

    def make_faulty(
        agent: DeviceAgent, on_message: Callable[[str, bytes], None], on_connected: Callable[[], None]
    ) -> FaultyTransport:
        own = [fault for fault in faults if fault.device_id == agent.device_id]
        return FaultyTransport(agent, make, own, on_message, on_connected)

    return make_faulty
