"""Broker URLs, as people write them and miswrite them."""

from __future__ import annotations

import pytest

from device_sim.settings import DemoSettings
from edge_sdk.errors import ConfigError
from edge_sdk.runtime.broker_url import BrokerUrl, parse_broker_url


@pytest.mark.parametrize(
    ("text", "url", "shown"),
    [
        ("mqtt://host", BrokerUrl("host", 1883, False), "mqtt://host:1883"),
        ("mqtts://host", BrokerUrl("host", 8883, True), "mqtts://host:8883"),
        ("mqtt://host:1/", BrokerUrl("host", 1, False), "mqtt://host:1"),
        ("MQTT://Host.Example:1884", BrokerUrl("host.example", 1884, False), "mqtt://host.example:1884"),
        ("mqtt://127.0.0.1:1883", BrokerUrl("127.0.0.1", 1883, False), "mqtt://127.0.0.1:1883"),
        ("mqtt://[::1]:1883", BrokerUrl("::1", 1883, False), "mqtt://[::1]:1883"),
        ("mqtts://ann@host", BrokerUrl("host", 8883, True, "ann"), "mqtts://ann@host:8883"),
        (
            "mqtts://a%40b:s%2Fcr%3At@host:99",
            BrokerUrl("host", 99, True, "a@b", "s/cr:t"),
            "mqtts://a%40b@host:99",
        ),
        ("mqtt://ann:@host", BrokerUrl("host", 1883, False, "ann", ""), "mqtt://ann@host:1883"),
    ],
)
def test_urls_are_read(text: str, url: BrokerUrl, shown: str) -> None:
    assert parse_broker_url(text) == url
    assert str(url) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:1883",
        "tcp://host",
        "ssl://host",
        "http://host",
        "gopher://host",
        "://host",
        "mqtt://",
        "mqtt://:1883",
        "mqtt://user@",
        "mqtt://host:0",
        "mqtt://host:65536",
        "mqtt://host:-1",
        "mqtt://host:port",
        "mqtt://host/topic",
        "mqtt://host?x=1",
        "mqtt://host#x",
        "mqtt:// host",
        "mqtt://host\n",
        "mqtt://ho\0st",
        "mqtt://[::1",
        "mqtt://:secret@host",
    ],
)
def test_mistakes_are_named_with_their_remedy(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_broker_url(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "mqtt://ann:secret@host/topic",
        "mqtt://ann:secret@host:0",
        "mqtt://ann:sec/secret@host",
        "mqtt://:secret@host",
        "ann:secret@host",
        "mqtt://ann:secret@[::1",
        "mqtt://ann:secret@ho st",
        "mqtt://ann:se@secret@",
    ],
)
def test_no_message_repeats_a_password(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_broker_url(text)
    assert "secret" not in str(caught.value) + caught.value.hint


def test_a_password_is_not_in_the_repr() -> None:
    assert "secret" not in repr(parse_broker_url("mqtt://ann:secret@host"))


def test_a_password_may_come_from_the_environment() -> None:
    environment = {"EDGE_BROKER_PASSWORD": "secret"}
    for text, expected in (
        ("mqtt://ann@host", "secret"),
        ("mqtt://ann:other@host", "other"),
        ("mqtt://host", None),
    ):
        assert parse_broker_url(text, environment).password == expected
    assert parse_broker_url("mqtt://ann@host", {}).password is None


def test_a_demo_writes_no_password_down() -> None:
    with pytest.raises(ConfigError, match="cannot hold a password") as caught:
        DemoSettings(broker="mqtt://ann:secret@host")
    assert "secret" not in str(caught.value)
    assert "EDGE_BROKER_PASSWORD" in (caught.value.hint or "")
