"""What the README says is done here, word for word: the walk by hand, and the code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_sim.fleet import FleetFolders, make_authorities, make_devices
from edge_sdk import EdgeClient
from edge_sdk.clock import SystemClock
from tests.shared import free_port

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
LIMIT_S = 120


def by_hand() -> tuple[str, str, str]:
    """The walk's commands: before the coordinator, the coordinator itself, and after it."""
    section = README.split("## The same by hand")[1].split("\n## ")[0]
    lines = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    script = "\n".join(line for line in lines if not line.startswith(". .venv"))
    before, serve, after = re.split(r"^(edge coordinator serve .*)$", script, flags=re.MULTILINE)
    return before, serve, after


def code_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def port() -> int:
    return free_port()


def test_the_walk_by_hand(tmp_path: Path, port: int) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    before, serve, after = by_hand()

    def run(script: str) -> str:
        command = ["bash", "-euo", "pipefail", "-c", script.replace(":1883", f":{port}")]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    prepared = run(before)
    assert "run digits: 3 rounds with 5 devices" in prepared
    assert "NO NOISE" in prepared
    serving = subprocess.Popen(
        [*serve.split(), "--port", str(port)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with serving:
        assert serving.stdout is not None
        # Other lines may come first, but the address does.
        assert any(f"127.0.0.1:{port}" in line for line in serving.stdout)
        shown = run(after)
        serving.send_signal(signal.SIGINT)
        rest = serving.communicate(timeout=10)[0]
    assert serving.returncode in (0, 130), rest
    assert "digits: complete (all rounds are committed), 3 of 3 rounds" in shown
    assert shown.count("committed") >= 4
    assert "device device-0000: model version 4" in shown
    assert "round 3: sent" in shown
    assert "consent to: reading digits" in shown


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FleetFolders:
    """A fleet's authorities, the signer's folder being the current one, in which the bundle is made."""
    made = FleetFolders(tmp_path)
    make_authorities(made, SystemClock().now())
    monkeypatch.chdir(made.signer_key.parent)
    return made


def export(folders: FleetFolders) -> None:
    """The README's own export."""
    import torch

    from exporters.examples.digits import build

    spec = build()
    (x,) = spec.example_inputs
    names = {"torch": torch, "model": spec.model, "x": x, "y": spec.example_target}
    exec(compile(code_blocks()[1], "README", "exec"), names)  # noqa: S102


def test_the_code_of_a_device(folders: FleetFolders) -> None:
    """The block runs as it stands, but for the folder, and a broker that nobody answers at."""
    export(folders)
    image = np.zeros((1, 8, 8), np.float32)
    make_devices(folders, {"phone": {"x": image[np.newaxis], "y": np.arange(1)}}, SystemClock().now())
    home = str(folders.device("phone"))
    code = code_blocks()[0].replace("~/.myapp/edge", home).replace("mqtts://fl.example.com:8883", "mqtt://127.0.0.1:9")
    names: dict[str, Any] = {"image": image, "images": image[np.newaxis], "label": 7, "token": "unused"}
    exec(compile(code, "README", "exec"), names)  # noqa: S102
    assert not names["edge"]._carrier.running
    with EdgeClient(home) as edge:
        assert len(edge.examples("taps")) == 1
        assert edge.consent.granted


def test_the_code_of_an_export(folders: FleetFolders) -> None:
    export(folders)
    assert Path("digits.edge").stat().st_size > 10_000
