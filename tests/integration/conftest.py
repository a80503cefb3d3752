"""Brokers, each test that takes `broker` on mosquitto and on amqtt; folders of a small fleet for commands."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.service.broker import BrokerKind, RunningBroker, start_broker
from device_sim.fleet import FleetFolders, device_ids
from edge_sdk.cli import main
from tests.shared import made_once
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


@pytest.fixture
def quiet_log() -> Iterator[None]:
    """A command sets up the log of its process, which here is that of all tests."""
    level = logging.getLogger("edge").level
    yield
    logging.getLogger("edge").setLevel(level)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> FleetFolders:
    """Two devices, a coordinator without a run, and a signed bundle; not to be changed."""
    return made_once(tmp_path_factory, "prepared", _prepare)


def _prepare(folder: Path) -> FleetFolders:
    folders = FleetFolders(folder / "hand")
    assert main(["sim", "prepare", "--devices", "2", "--work", str(folders.work)]) == 0
    assert main(["export", "--signer", str(folders.signer_key), "--out", str(folders.bundle)]) == 0
    return folders


@pytest.fixture
def folders(prepared: FleetFolders, tmp_path: Path) -> FleetFolders:
    """The same, to be changed."""
    shutil.copytree(prepared.work, tmp_path / "hand")
    return FleetFolders(tmp_path / "hand")


@pytest.fixture
def home(folders: FleetFolders) -> Path:
    """A device's folder, of a device that has never run."""
    return folders.device(device_ids(1)[0])
