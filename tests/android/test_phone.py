"""What the app does on a phone: it stores drawings, accepts an invitation, trains, and withdraws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coordinator.service.broker import RunningBroker
from edge_sdk.signing import public_key_to_pem
from tests.integration import jvm, test_jvm_training
from tests.integration.exported import SIGNER, small
from tests.integration.test_jvm_training import mosquitto
from tests.integration.test_registrar_server import Served
from tests.simulation import world
from tests.simulation.world import POPULATION

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

__all__ = ["mosquitto"]  # a fixture

PHONE = 2
original = test_jvm_training.client


@pytest.mark.usefixtures("now")
def test_the_app_takes_part_and_withdraws(
    tmp_path: Path, mosquitto: RunningBroker, monkeypatch: pytest.MonkeyPatch, apk_code: str
) -> None:
    heard: list[str] = []

    def client(folder: Path, number: int, broker: RunningBroker, x: Any, y: Any, said: dict[int, list[str]]) -> None:
        if number != PHONE:
            original(folder, number, broker, x, y, said)
            return
        home = folder / "phone"
        home.mkdir()
        lines = f"coordinator {broker.url}\nregistrar {registrar.url}\ntoken {registrar.token()}\n"
        (home / "invitation").write_text(lines + (registrar.folder / "registrar.crt").read_text())
        (home / "signer.pub").write_bytes(public_key_to_pem(SIGNER.public_key()))
        (home / "model.edge").write_bytes(small().to_bytes())
        with jvm.Jvm("edge.demo.PhoneKt", home, POPULATION, code=apk_code) as process:
            said[number] = heard[:] = process.rest()

    monkeypatch.setattr(test_jvm_training, "client", client)
    # Asserts that this device was in all three rounds, and serves the last model.
    registrar = Served(tmp_path, world.authority())
    try:
        test_jvm_training.test_kotlin_clients_train_with_python_ones_and_serve_the_model(tmp_path, mosquitto)
    finally:
        registrar.close()
    assert "starts with version 0, null, 30 examples" in heard
    assert "joined with 30 examples" in heard
    assert any(line.startswith("enrolled as d") for line in heard)
    assert "open round: false" in heard
    assert "predicts otherwise: true" in heard
    assert not (tmp_path / "phone" / "edge" / "identity").exists()
    # The model of the app is back, and nothing of the person is left to see.
    assert heard[-1] == "after withdrawing: version 0, 0 examples, 0 shown"
    stages = [line for line in heard if line.startswith("learned RoundChanged")]
    assert any("Trained(examples=30)" in line for line in stages)
    assert any("Shared(bytes=" in line for line in stages)
    assert any("Finished(version=" in line for line in stages)
