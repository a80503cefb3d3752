"""What a message costs: many transports in one event loop, on mosquitto and on amqtt.

    python benchmarks/transport.py [--devices 200] [--messages 20] [--payload-bytes 1000]

Prints messages a second, and CPU microseconds a message for clients (sender and receiver together, both in
this process) and broker. CPU figures are steady; rates depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from coordinator.service.broker import BrokerKind, RunningBroker, start_broker
from edge_sdk.protocol.messages import DeviceId
from edge_sdk.protocol.topics import (
    ControlDown,
    ControlUp,
    TaskTopic,
    build,
    coordinator_subscriptions,
    device_subscriptions,
)
from edge_sdk.runtime.mqtt import MqttTransport, ProtocolChoice

_TICKS_S = os.sysconf("SC_CLK_TCK")
_RUNS: Sequence[tuple[BrokerKind, ProtocolChoice]] = (("mosquitto", "5"), ("mosquitto", "3.1.1"), ("amqtt", "3.1.1"))


class Count:
    """Counts messages, and lets one wait for a number of them."""

    def __init__(self) -> None:
        self._missing = 0
        self._done = asyncio.Event()

    def expect(self, number: int) -> None:
        """Begin to count."""
        self._missing = number
        self._done.clear()

    def add(self, _topic: str, _payload: bytes) -> None:
        """Count a message."""
        self._missing -= 1
        if self._missing == 0:
            self._done.set()

    async def all(self) -> None:
        """Wait for all that is expected."""
        await asyncio.wait_for(self._done.wait(), 300)


def broker_cpu_s(broker: RunningBroker) -> float:
    """CPU time that the broker has used (Linux)."""
    fields = Path(f"/proc/{broker.pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_S


async def measure(broker: RunningBroker, protocol: ProtocolChoice, devices: int, messages: int, size: int) -> None:
    """Connect, send up, send down, announce; print what each took."""
    up, down = Count(), Count()
    names = [DeviceId(f"dev-{number}") for number in range(devices)]
    coordinator = MqttTransport(broker.url, "coordinator", coordinator_subscriptions(0), up.add, protocol=protocol)
    fleet = [
        MqttTransport(broker.url, name, device_subscriptions(name, "main"), down.add, protocol=protocol)
        for name in names
    ]
    await coordinator.start()
    marks = (time.perf_counter(), time.process_time(), broker_cpu_s(broker))

    def report(what: str, number: int) -> None:
        wall_s, own_s, broker_s = (
            now - then
            for now, then in zip((time.perf_counter(), time.process_time(), broker_cpu_s(broker)), marks, strict=True)
        )
        print(
            f"  {what:<10} {number / wall_s:8.0f}/s   clients {own_s / number * 1e6:6.0f} us"
            f"   broker {broker_s / number * 1e6:6.0f} us"
        )

    await asyncio.gather(*(device.start(60) for device in fleet))
    report("connect", devices)
    payload = bytes(size)
    total = devices * messages
    sends: Sequence[tuple[str, Count, Callable[[int], bool]]] = (
        ("up", up, lambda i: fleet[i].publish(build(ControlUp(names[i])), payload)),
        ("down", down, lambda i: coordinator.publish(build(ControlDown(names[i])), payload)),
    )
    for what, count, send in sends:
        count.expect(total)
        marks = (time.perf_counter(), time.process_time(), broker_cpu_s(broker))
        sent = 0
        while sent < total:
            # A full queue is the signal to wait: here, for a turn of the loop.
            if send(sent % devices):
                sent += 1
            else:
                await asyncio.sleep(0)
        await count.all()
        report(what, total)
    down.expect(devices)
    marks = (time.perf_counter(), time.process_time(), broker_cpu_s(broker))
    coordinator.publish(build(TaskTopic("main")), bytes(4_000), retain=True)
    await down.all()
    report("announce", devices)
    await asyncio.gather(*(device.stop() for device in fleet))
    await coordinator.stop()


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description="What a message costs.")
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--messages", type=int, default=20)
    parser.add_argument("--payload-bytes", type=int, default=1_000)
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for kind, protocol in _RUNS:
        print(
            f"{kind}, MQTT {protocol}, {arguments.devices} devices x {arguments.messages} messages of "
            f"{arguments.payload_bytes} bytes"
        )
        with tempfile.TemporaryDirectory() as folder, start_broker(Path(folder), kind=kind) as broker:
            asyncio.run(measure(broker, protocol, arguments.devices, arguments.messages, arguments.payload_bytes))


if __name__ == "__main__":
    main()
