"""What is written for mosquitto, and what is refused before any process starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.service import broker
from coordinator.service.broker import BrokerTls, mosquitto_acl, mosquitto_config, start_broker
from edge_sdk.errors import ConfigError

TLS = BrokerTls(Path("/id/ca"), Path("/id/crt"), Path("/id/key"), Path("/id/crl"), ("coordinator", "standby"))


def lines(tls: BrokerTls | None) -> list[str]:
    return mosquitto_config("127.0.0.1", 1884, Path("/run/broker"), tls).splitlines()


def test_without_tls_anyone_on_this_machine_may_come() -> None:
    found = lines(None)
    assert found[0] == "listener 1884 127.0.0.1"
    assert "allow_anonymous true" in found
    assert not any(line.startswith(("cafile", "acl_file", "use_")) for line in found)


def test_with_tls_the_certificate_is_the_name() -> None:
    found = lines(TLS)
    for line in (
        "allow_anonymous false",
        "cafile /id/ca",
        "certfile /id/crt",
        "keyfile /id/key",
        "crlfile /id/crl",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "acl_file /run/broker/acl",
    ):
        assert line in found


@pytest.mark.parametrize("tls", [None, TLS])
def test_queues_are_bounded_by_bytes(tls: BrokerTls | None) -> None:
    found = lines(tls)
    assert {
        "max_packet_size 1100000",
        "max_queued_messages 0",
        "max_queued_bytes 268435456",
        "memory_limit 2147483648",
    } <= set(found)
    assert "persistence false" in found


def test_only_coordinators_reach_everything() -> None:
    assert mosquitto_acl(TLS.coordinators).splitlines() == [
        "pattern read fl/v1/pub/#",
        "pattern write fl/v1/d/%u/up/#",
        "pattern read fl/v1/d/%u/dn/#",
        "pattern write fl/v1/w/+/%u/c",
        "",
        "user coordinator",
        "topic readwrite fl/v1/#",
        "",
        "user standby",
        "topic readwrite fl/v1/#",
    ]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])  # noqa: S104 - refused
def test_a_reachable_address_wants_tls(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="without TLS") as caught:
        start_broker(tmp_path, host=host)
    assert caught.value.hint


def test_a_coordinator_named_like_a_setting_is_refused(tmp_path: Path) -> None:
    for name in ("ca", "crt", "key"):
        (tmp_path / name).touch()
    tls = BrokerTls(tmp_path / "ca", tmp_path / "crt", tmp_path / "key", coordinators=("x\ntopic readwrite #",))
    with pytest.raises(ConfigError, match="cannot name a coordinator"):
        start_broker(tmp_path, kind="mosquitto", tls=tls)


def test_without_mosquitto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "_mosquitto", lambda: None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        start_broker(tmp_path, kind="mosquitto")
    assert "amqtt" in caught.value.hint
    with pytest.raises(ConfigError, match="no access control"):
        start_broker(tmp_path, tls=TLS)
