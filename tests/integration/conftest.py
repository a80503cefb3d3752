"""Brokers for integration tests: each test that takes `broker` runs on mosquitto and on amqtt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.service.broker import BrokerKind, RunningBroker, start_broker


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
