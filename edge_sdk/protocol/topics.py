"""The topics of the protocol: how they are written, and how a received one is read.

Pure. Knows nothing of brokers or of payloads. Who may write to a topic is the broker's business (its access
control follows these names); who really wrote a message is told by its signature alone.

| topic | direction | content |
|---|---|---|
| ``fl/v1/pub/task/{population}`` | coordinator to all | signed announcement, retained |
| ``fl/v1/d/{id}/up/ctl`` | device to coordinator | signed control frames |
| ``fl/v1/w/{worker}/{id}/c`` | device to one coordinator worker | chunks |
| ``fl/v1/d/{id}/dn/ctl`` | coordinator to device | signed control frames |
| ``fl/v1/d/{id}/dn/b`` | coordinator to device | chunks |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, assert_never

from edge_sdk.errors import LocalProtocolError, RemoteProtocolError
from edge_sdk.protocol.messages import DeviceId

PREFIX: Final = "fl/v1"
ID_PATTERN: Final = r"^[a-z0-9][a-z0-9-]{0,62}$"
WORKER_MAX: Final = 9_999

_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_WORKER: Final = re.compile(r"0|[1-9][0-9]{0,3}")


@dataclass(frozen=True, slots=True)
class TaskTopic:
    """Announcements to every device of a population."""

    population: str


@dataclass(frozen=True, slots=True)
class ControlUp:
    """Control frames from one device."""

    device_id: DeviceId


@dataclass(frozen=True, slots=True)
class ChunkUp:
    """Chunks from one device to one coordinator worker."""

    worker: int
    device_id: DeviceId


@dataclass(frozen=True, slots=True)
class ControlDown:
    """Control frames to one device."""

    device_id: DeviceId


@dataclass(frozen=True, slots=True)
class ChunkDown:
    """Chunks to one device."""

    device_id: DeviceId


Topic = TaskTopic | ControlUp | ChunkUp | ControlDown | ChunkDown


def is_id(text: str) -> bool:
    """Say whether `text` can name a device or population: 1 to 63 lower-case letters, digits and dashes."""
    return _ID.fullmatch(text) is not None


def device_id(text: str) -> DeviceId:
    """Check and type a device's id.

    Raises:
        LocalProtocolError: `text` cannot name a device.
    """
    return DeviceId(_checked(text, "device id"))


def build(topic: Topic) -> str:
    """Write a topic.

    Raises:
        LocalProtocolError: an id, population or worker in it is invalid.
    """
    match topic:
        case TaskTopic(population):
            return f"{PREFIX}/pub/task/{_checked(population, 'population')}"
        case ControlUp(device):
            return f"{PREFIX}/d/{_checked(device, 'device id')}/up/ctl"
        case ChunkUp(worker, device):
            return f"{PREFIX}/w/{_checked_worker(worker)}/{_checked(device, 'device id')}/c"
        case ControlDown(device):
            return f"{PREFIX}/d/{_checked(device, 'device id')}/dn/ctl"
        case ChunkDown(device):
            return f"{PREFIX}/d/{_checked(device, 'device id')}/dn/b"
        case _:
            assert_never(topic)


def parse(text: str) -> Topic:
    """Read the topic that came with a message; the inverse of `build`.

    Raises:
        RemoteProtocolError: `text` is none of the protocol's topics.
    """
    match text.split("/"):
        case ["fl", "v1", "d", name, "up", "ctl"] if is_id(name):
            return ControlUp(DeviceId(name))
        case ["fl", "v1", "w", worker, name, "c"] if is_id(name) and _WORKER.fullmatch(worker):
            return ChunkUp(int(worker), DeviceId(name))
        case ["fl", "v1", "d", name, "dn", "ctl"] if is_id(name):
            return ControlDown(DeviceId(name))
        case ["fl", "v1", "d", name, "dn", "b"] if is_id(name):
            return ChunkDown(DeviceId(name))
        case ["fl", "v1", "pub", "task", name] if is_id(name):
            return TaskTopic(name)
        case _:
            raise RemoteProtocolError(f"{text[:200]!r} is not a topic of this protocol")


def device_subscriptions(device: DeviceId, *populations: str) -> tuple[str, ...]:
    """List what a device subscribes to: exact topics only, which a broker finds by hash, not by scanning."""
    tasks = tuple(build(TaskTopic(population)) for population in populations)
    return (*tasks, build(ControlDown(device)), build(ChunkDown(device)))


def coordinator_subscriptions(worker: int) -> tuple[str, ...]:
    """List what coordinator worker `worker` subscribes to: all devices' control frames, its own chunks."""
    return (f"{PREFIX}/d/+/up/ctl", f"{PREFIX}/w/{_checked_worker(worker)}/+/c")


def _checked(text: str, what: str) -> str:
    if not is_id(text):
        raise LocalProtocolError(
            f"{text[:100]!r} is not a valid {what}",
            hint="use 1 to 63 lower-case letters, digits and dashes, beginning with a letter or digit",
        )
    return text


def _checked_worker(worker: int) -> int:
    if not 0 <= worker <= WORKER_MAX:
        raise LocalProtocolError(f"worker {worker} is outside 0 to {WORKER_MAX}")
    return worker
