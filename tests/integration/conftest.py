"""Brokers for integration tests: each test that takes `broker` runs on mosquitto and on amqtt."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.service.broker import BrokerKind, RunningBroker, start_broker
from tests.simulation import world


@pytest.fixture(params=["mosquitto", "amqtt"])
def broker_kind(request: pytest.FixtureRequest) -> BrokerKind:
    """The kind of broker that the test runs on."""
    kind: BrokerKind = request.param
    return kind


@pytest.fixture
def broker(broker_kind: BrokerKind, tmp_path: Path) -> Iterator[RunningBroker]:
    """A broker on a free loopback port, without TLS."""
    with start_broker(tmp_path / "broker", kind=broker_kind) as running:
        yield running


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates and tasks of the test world belong to this day."""
    monkeypatch.setattr(world, "START", time.time())
    world.authority.cache_clear()
    world.identity.cache_clear()
