"""Topics: every one is read as it was written, and nothing else is."""

from __future__ import annotations

import pytest

from edge_sdk.errors import LocalProtocolError, RemoteProtocolError
from edge_sdk.protocol.messages import DeviceId
from edge_sdk.protocol.topics import (
    ChunkDown,
    ChunkUp,
    ControlDown,
    ControlUp,
    TaskTopic,
    Topic,
    build,
    coordinator_subscriptions,
    device_id,
    device_subscriptions,
    is_id,
    parse,
)

DEVICE = DeviceId("dev-1")


@pytest.mark.parametrize(
    ("topic", "text"),
    [
        (TaskTopic("main"), "fl/v1/pub/task/main"),
        (ControlUp(DEVICE), "fl/v1/d/dev-1/up/ctl"),
        (ChunkUp(0, DEVICE), "fl/v1/w/0/dev-1/c"),
        (ChunkUp(9_999, DEVICE), "fl/v1/w/9999/dev-1/c"),
        (ControlDown(DEVICE), "fl/v1/d/dev-1/dn/ctl"),
        (ChunkDown(DEVICE), "fl/v1/d/dev-1/dn/b"),
    ],
)
def test_topics_are_written_and_read(topic: Topic, text: str) -> None:
    assert build(topic) == text
    assert parse(text) == topic
    assert text.count("/") <= 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fl/v1/d/dev-1/up",
        "fl/v1/d/dev-1/up/ctl/",
        "/fl/v1/d/dev-1/up/ctl",
        "fl/v2/d/dev-1/up/ctl",
        "fl/v1/d/Dev-1/up/ctl",
        "fl/v1/d//up/ctl",
        "fl/v1/d/+/up/ctl",
        "fl/v1/d/-dev/up/ctl",
        "fl/v1/d/dev\n/up/ctl",
        "fl/v1/w/00/dev-1/c",
        "fl/v1/w/-1/dev-1/c",
        "fl/v1/w/10000/dev-1/c",
        "fl/v1/w/\u0661/dev-1/c",  # a digit, but not one of ours
        "fl/v1/pub/task/",
        "fl/v1/pub/other/main",
        "$SYS/broker/version",
    ],
)
def test_other_topics_are_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="not a topic"):
        parse(text)


@pytest.mark.parametrize("text", ["a", "0", "dev-1", "a" * 63, "0-"])
def test_names_that_may_be(text: str) -> None:
    assert is_id(text)
    assert device_id(text) == text


@pytest.mark.parametrize("text", ["", "-a", "A", "a_b", "a.b", "a" * 64, "a/b", "a\n", "ä", "+", "#"])
def test_names_that_may_not_be(text: str) -> None:
    assert not is_id(text)
    with pytest.raises(LocalProtocolError) as caught:
        device_id(text)
    assert caught.value.hint
    for topic in (ControlUp(DeviceId(text)), TaskTopic(text)):
        with pytest.raises(LocalProtocolError):
            build(topic)


@pytest.mark.parametrize("worker", [-1, 10_000])
def test_workers_out_of_range_are_refused(worker: int) -> None:
    with pytest.raises(LocalProtocolError):
        build(ChunkUp(worker, DEVICE))
    with pytest.raises(LocalProtocolError):
        coordinator_subscriptions(worker)


def test_a_device_subscribes_without_wildcards() -> None:
    filters = device_subscriptions(DEVICE, "main")
    assert filters == ("fl/v1/pub/task/main", "fl/v1/d/dev-1/dn/ctl", "fl/v1/d/dev-1/dn/b")
    assert [parse(text) for text in filters] == [TaskTopic("main"), ControlDown(DEVICE), ChunkDown(DEVICE)]


def test_a_coordinator_hears_all_devices_and_its_own_chunks() -> None:
    assert coordinator_subscriptions(3) == ("fl/v1/d/+/up/ctl", "fl/v1/w/3/+/c")
