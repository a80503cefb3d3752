"""What a demo was asked to do, checked, and kept in its work folder so that a stopped one can go on."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from device_sim import job
from edge_sdk.errors import ConfigError
from edge_sdk.runtime.broker_url import PASSWORD_VARIABLE, parse_broker_url

MARKER = "demo.json"
"""Stands in every demo's work folder."""


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What a demo does; stored in its work folder, so that a stopped one can go on.

    Attributes:
        devices, rounds, processes: how many.
        dropout: share of the devices that vanish in each round, over all its stages.
        epsilon: device-level budget over all rounds; infinity turns the noise off.
        seed: of data, split, fleet and faults.
        broker: "embedded" or a URL.
        kills: whether a device process and the coordinator are killed on the way.
    """

    devices: int = 200
    rounds: int = 10
    processes: int = 8
    dropout: float = 0.1
    epsilon: float = job.EPSILON
    seed: int = 0
    broker: str = "embedded"
    kills: bool = True

    def __post_init__(self) -> None:
        if not 10 <= self.devices <= 5_000:
            raise ConfigError(f"--devices {self.devices} is out of range", hint="choose 10 to 5000")
        if not 1 <= self.rounds <= 1_000:
            raise ConfigError(f"--rounds {self.rounds} is out of range", hint="choose 1 to 1000")
        if not 1 <= self.processes <= self.devices:
            raise ConfigError(f"--processes {self.processes} is out of range", hint="choose 1 to the devices")
        if not 0.0 <= self.dropout <= 0.2:
            raise ConfigError(
                f"--dropout {self.dropout} is out of range",
                hint="choose 0 to 0.2: more would leave too few in most rounds",
            )
        # Checked here, before the results of an earlier demo make room for this one.
        if not (0.1 <= self.epsilon <= 50 or self.epsilon == math.inf):
            raise ConfigError(f"--epsilon {self.epsilon:g} is out of range", hint="choose 0.1 to 50, or 'off'")
        # The URL goes into files and onto the command lines of other processes.
        if self.broker != "embedded" and parse_broker_url(self.broker, {}).password is not None:
            raise ConfigError(
                "the broker URL of a demo cannot hold a password",
                hint=f"write mqtts://user@host, and the password into the environment as {PASSWORD_VARIABLE}",
            )


def load_settings(work: Path) -> tuple[DemoSettings, bool] | None:
    """The settings of a demo that was stopped in this folder, and whether it had prepared all; None where none was."""
    path = work / MARKER
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        prepared = bool(data.pop("prepared", False))
        return DemoSettings(**data), prepared
    except (AttributeError, TypeError, ValueError):
        return None
