"""The guide for app developers, word for word: each block of code runs, in order, and does what the text says."""

from __future__ import annotations

import asyncio
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coordinator.registrar.tokens import make_tokens
from device_sim.fleet import FleetFolders, make_authorities, make_devices
from edge_sdk import EdgeClient, Eligibility, client, events, f32, i64
from edge_sdk.clock import SystemClock
from edge_sdk.errors import ConfigError
from exporters import export
from tests.integration.test_registrar_server import Served

GUIDE = (Path(__file__).parents[2] / "docs" / "device.md").read_text(encoding="utf-8")
X = np.ones(16, np.float32)


def blocks(section: str) -> list[str]:
    """The code of a section, in order."""
    text = GUIDE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    found = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert found, f"{section} has no code"
    return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "served")
    yield made
    made.close()


@pytest.fixture
def app(tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What an app ships lies in its current folder; its user's home is another."""
    folders = FleetFolders(tmp_path / "fleet")
    make_authorities(folders, SystemClock().now())
    make_devices(folders, {"other": {"x": X[np.newaxis], "y": np.arange(1)}}, SystemClock().now())
    shipped = tmp_path / "app"
    shipped.mkdir()
    export(
        torch.nn.Linear(16, 4),
        torch.nn.functional.cross_entropy,
        example_inputs=(torch.zeros(2, 16),),
        example_target=torch.zeros(2, dtype=torch.int64),
        path=shipped / "keyboard.edge",
        optimizer="sgd",
        name="keyboard",
        signer=folders.signer_key,
    )
    (shipped / "signer.pub").write_bytes(folders.signer_public.read_bytes())
    (shipped / "registrar.crt").write_bytes((served.folder / "registrar.crt").read_bytes())
    user = tmp_path / "user" / ".myapp"
    user.mkdir(parents=True)
    folders.device("other").rename(user / "other")
    monkeypatch.setenv("HOME", str(user.parent))
    monkeypatch.chdir(shipped)
    monkeypatch.setattr(client, "REGISTRAR_PORT", served.port)
    monkeypatch.setattr(client, "_registrar_beside", lambda broker: served.url)
    (token,) = make_tokens(served.folder, 1, expires_at=served.now + 1_000, identity_id="")
    return {"token": token, "features": X, "label": 3, "x": X[np.newaxis], "image": X, "images": X[np.newaxis]}


def run(code: str, names: dict[str, Any]) -> None:
    """Run a block as it stands, but for a broker that nobody answers at."""
    code = code.replace("mqtts://fl.example.com:8883", "mqtt://127.0.0.1:9")
    exec(compile(code, "docs/device.md", "exec"), names)  # noqa: S102


def test_the_guide(app: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    begin, consent = blocks("In an afternoon")
    run(begin, app)
    edge: EdgeClient = app["edge"]
    assert app["output"].shape == (1, 4)
    assert len(app["taps"]) == 1
    assert not edge.consent.granted
    run(consent, app)
    assert edge.consent.granted
    (loop,) = blocks("Taking part")
    run(loop, app)
    with pytest.raises(ConfigError, match="runs already"):
        asyncio.run(app["main"]())
    for section in ("Predictions", "Consent", "What left the device", "What the device insists on", "Personal models"):
        for code in blocks(section):
            run(code, app)
    assert edge.model("keyboard").version == 0
    assert [change.text_version for change in edge.consent.history()] == ["3", "3", "4"]
    assert "epsilon 0.00 of 10 at delta 1e-05" in capsys.readouterr().out
    assert app["policy"].min_reports == 100
    assert app["taps"] is edge.examples("taps")
    for code in blocks("Budgets"):
        run(code, app)
    assert app["budget"].threads == 2
    # It was enrolled meanwhile, or is now.
    edge.stop()
    if not edge.device_id:
        edge.run(until=lambda: True)
    assert edge.device_id
    edge.withdraw()
    assert not (Path.home() / ".myapp" / "edge" / "identity").exists()
    edge.close()


def test_the_guides_events(app: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("Events")
    told = [
        events.Installed("keyboard", 1.0, 7),
        events.Uploaded("keyboard", 1.0, 3, 4_000, 0.5, 1e-5),
        events.Refused("keyboard", 1.0, 4, "cohort_too_small", "the plan releases sums of 3 devices"),
        events.Deferred("keyboard", 1.0, "not charging"),
    ]

    class Told:
        async def events(self) -> Any:
            for event in told:
                yield event

    app["edge"] = Told()
    run(code, app)
    asyncio.run(app["watch"]())
    assert capsys.readouterr().out.splitlines() == [
        "version 7 of keyboard",
        "4000 masked bytes; epsilon 0.50 so far",
        "round 4 was declined: the plan releases sums of 3 devices",
        "not now: not charging",
    ]


def test_the_clients_own_example(app: dict[str, Any]) -> None:
    """The one at the head of its module."""
    text = inspect.getdoc(client) or ""
    code = textwrap.dedent("\n".join(line for line in text.splitlines() if line.startswith("    ")))
    for name in ("signer.pub", "registrar.crt"):
        target = Path.home() / ".myapp" / "edge" / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(Path(name).read_bytes())
    with EdgeClient("~/.myapp/edge", enrol_token="any") as ready:  # noqa: S106
        ready.model("keyboard", bundle="keyboard.edge")
    names = app | {"EdgeClient": EdgeClient, "Eligibility": Eligibility, "f32": f32, "i64": i64}
    run(code.replace('edge.join("keyboard",', 'edge.join("keyboard", bundle="keyboard.edge",'), names)
    assert len(names["edge"].examples("taps")) == 1
    names["edge"].close()
