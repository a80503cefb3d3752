"""Whether this is a good moment to train: power, network, idleness, heat, room and the hour.

`Eligibility` is what the app asks for, `Conditions` what the machine says, `SystemConditions` who asks it. What a
machine cannot tell (a desktop has no battery) is None, and no objection. Reading costs a few small files.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from edge_sdk.errors import ConfigError

GIB: Final = 1 << 30
MIB: Final = 1 << 20

_METERED_GUESSES: Final = {"1": True, "2": False, "3": True, "4": False}  # NMMetered: yes, no, guess-yes, guess-no
_TIMEOUT_S: Final = 2.0
_REMEMBER_S: Final = 60.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the machine says now; None where it cannot tell.

    Attributes:
        charging: on external power.
        battery: charge from 0 to 1.
        metered: whether the network is paid for by volume.
        load: runnable processes a core, averaged over a minute.
        untouched_s: seconds since somebody used this machine's keyboard, screen or a terminal.
        temperature_c: of the hottest sensor, degrees Celsius.
        free_memory_bytes, free_disk_bytes: room.
        hour: local time of day, 0 to 24.
    """

    charging: bool | None = None
    battery: float | None = None
    metered: bool | None = None
    load: float | None = None
    untouched_s: float | None = None
    temperature_c: float | None = None
    free_memory_bytes: int | None = None
    free_disk_bytes: int | None = None
    hour: float | None = None


@dataclass(frozen=True, slots=True)
class Eligibility:
    """When the app lets its device train.

    Attributes:
        charging: on external power only.
        unmetered: on unmetered networks only.
        idle: only while load is at most `load_at_most`.
        load_at_most: runnable processes a core.
        untouched_for_s: only when nobody has used the machine for so long; 0 for whether or not somebody does.
        battery_at_least: charge from 0 to 1, also on external power.
        temperature_at_most_c: degrees Celsius.
        memory_at_least_bytes, disk_at_least_bytes: free room.
        quiet_hours: (from, to) in local hours in which it does not train, such as (8, 22); it may span midnight.

    Raises:
        ConfigError: a bound is out of range.
    """

    charging: bool = True
    unmetered: bool = True
    idle: bool = True
    load_at_most: float = 0.7
    untouched_for_s: float = 0.0
    battery_at_least: float = 0.2
    temperature_at_most_c: float = 80.0
    memory_at_least_bytes: int = 256 * MIB
    disk_at_least_bytes: int = 256 * MIB
    quiet_hours: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.battery_at_least <= 1 or not self.load_at_most > 0:
            raise ConfigError(
                f"a battery of {self.battery_at_least} or a load of {self.load_at_most} is out of range",
                hint="give a charge from 0 to 1 and a positive load",
            )
        if self.quiet_hours is not None and not all(0 <= hour <= 24 for hour in self.quiet_hours):
            raise ConfigError(f"quiet hours {self.quiet_hours} are no hours", hint="give hours from 0 to 24")

    def objections(self, now: Conditions) -> tuple[str, ...]:
        """Why not now, in words; empty where nothing is against it."""
        found = []
        if self.charging and now.charging is False:
            found.append("not charging")
        if now.battery is not None and now.battery < self.battery_at_least:
            found.append(f"battery at {now.battery:.0%}")
        if self.unmetered and now.metered:
            found.append("the network is metered")
        if self.idle and now.load is not None and now.load > self.load_at_most:
            found.append(f"busy: load {now.load:.1f} a core")
        if now.untouched_s is not None and now.untouched_s < self.untouched_for_s:
            found.append(f"used {now.untouched_s:.0f} s ago")
        if now.temperature_c is not None and now.temperature_c > self.temperature_at_most_c:
            found.append(f"hot: {now.temperature_c:.0f} degrees")
        if now.free_memory_bytes is not None and now.free_memory_bytes < self.memory_at_least_bytes:
            found.append(f"{now.free_memory_bytes / MIB:.0f} MiB of memory free")
        if now.free_disk_bytes is not None and now.free_disk_bytes < self.disk_at_least_bytes:
            found.append(f"{now.free_disk_bytes / MIB:.0f} MiB of disk free")
        if self.quiet_hours is not None and now.hour is not None and _within(now.hour, *self.quiet_hours):
            found.append("quiet hours")
        return tuple(found)


ONLY_WHEN: Final = (
    "charging, unmetered, idle, battery=PERCENT, untouched=MINUTES, temperature=CELSIUS, memory=MIB, disk=MIB, "
    "quiet=FROM-TO (hours)"
)
"""What `--only-when` understands; bounds of battery, heat and room hold in any case, and can be changed."""


def eligibility_of(text: str) -> Eligibility | None:
    """What `--only-when` asks for, words with commas between; None for always.

    Raises:
        ConfigError: a word is not known, or its number cannot be.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        return None
    asked: dict[str, Any] = {"charging": False, "unmetered": False, "idle": False}
    for word in words:
        name, _, value = word.partition("=")
        try:
            match name:
                case "charging" | "unmetered" | "idle" if name == word:
                    asked[name] = True
                case "battery":
                    asked["battery_at_least"] = float(value) / 100
                case "untouched":
                    asked["untouched_for_s"] = 60 * float(value)
                case "temperature":
                    asked["temperature_at_most_c"] = float(value)
                case "memory" | "disk":
                    asked[f"{name}_at_least_bytes"] = int(value) * MIB
                case "quiet":
                    begin, end = value.split("-")
                    asked["quiet_hours"] = (float(begin), float(end))
                case _:
                    raise ConfigError(f"--only-when {word} is not known", hint=f"use {ONLY_WHEN}")
        except ValueError as error:
            raise ConfigError(f"--only-when {word} holds no number", hint=f"use {ONLY_WHEN}") from error
    return Eligibility(**asked)


def _within(hour: float, begin: float, end: float) -> bool:
    return begin <= hour < end if begin <= end else hour >= begin or hour < end


@dataclass(frozen=True, slots=True)
class SystemConditions:
    """Reads the conditions of a Linux machine.

    Attributes:
        folder: whose disk must have room.
        root: where `/sys` and `/proc` are; another one in tests.
        metered: asks whether the network is metered; NetworkManager by default, at most once a minute.
        untouched: asks since when nobody used the machine, in seconds; logind by default, as often.
    """

    folder: Path
    root: Path = Path("/")
    metered: Callable[[], bool | None] = field(default_factory=lambda: _METERED)
    untouched: Callable[[], float | None] = field(default_factory=lambda: _UNTOUCHED)

    def read(self) -> Conditions:
        """What the machine says now."""
        charging, battery = self._power()
        local = time.localtime()
        return Conditions(
            charging=charging,
            battery=battery,
            metered=self.metered(),
            load=self._load(),
            untouched_s=self.untouched(),
            temperature_c=self._temperature(),
            free_memory_bytes=self.free_memory(),
            free_disk_bytes=_free_disk(self.folder),
            hour=local.tm_hour + local.tm_min / 60,
        )

    def _power(self) -> tuple[bool | None, float | None]:
        charging: bool | None = None
        battery: float | None = None
        for supply in sorted((self.root / "sys/class/power_supply").glob("*")):
            # A mouse or a pen has a battery of its own.
            if _text(supply / "scope") == "Device":
                continue
            kind = _text(supply / "type")
            if kind == "Battery":
                capacity = _number(supply / "capacity")
                if capacity is not None:
                    battery = min(capacity / 100, 1.0 if battery is None else battery)
                if charging is None:
                    charging = _text(supply / "status") in ("Charging", "Full", "Not charging")
            elif kind in ("Mains", "USB", "Wireless"):
                charging = bool(charging) or _text(supply / "online") == "1"
        # A machine without any supply to ask about hangs on a wall.
        return charging, battery

    def _load(self) -> float | None:
        words = _text(self.root / "proc/loadavg").split()
        try:
            return float(words[0]) / (os.cpu_count() or 1)
        except (IndexError, ValueError):
            return None

    def _temperature(self) -> float | None:
        zones = (self.root / "sys/class/thermal").glob("thermal_zone*/temp")
        found = [value / 1000 for value in map(_number, zones) if value is not None]
        return max(found, default=None)

    def free_memory(self) -> int | None:
        """Bytes of memory that programs can still have; None where the machine cannot tell."""
        for line in _text(self.root / "proc/meminfo").splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
        return None


def network_is_metered() -> bool | None:
    """What NetworkManager says, over D-Bus or by its own command; None where there is none."""
    name, path = "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager"
    told = _told("busctl", "get-property", name, path, name, "Metered").split()
    if len(told) == 2:
        return _METERED_GUESSES.get(told[1])
    # A line a network interface: "100 (connected)", then "yes", "no (guessed)" or "unknown".
    fields = _told("nmcli", "--terse", "--fields", "GENERAL.STATE,GENERAL.METERED", "device", "show").splitlines()
    values = [line.partition(":")[2] for line in fields if line]
    found = [
        metered.startswith("yes")
        for state, metered in zip(values[::2], values[1::2], strict=False)
        if state.startswith("100") and not metered.startswith("unknown")
    ]
    return any(found) if found else None


def seconds_untouched() -> float | None:
    """Since when logind believes that nobody uses this machine, in seconds; None where there is no logind."""
    name, path = "org.freedesktop.login1", "/org/freedesktop/login1"
    told = _told("busctl", "get-property", name, path, f"{name}.Manager", "IdleHint", "IdleSinceHint").split()
    # "b true" and "t 1700000000000000", microseconds since the epoch.
    if len(told) != 4 or not told[3].isdigit():
        return None
    return max(0.0, time.time() - int(told[3]) / 1e6) if told[1] == "true" else 0.0


def _told(program: str, *arguments: str) -> str:
    """What another program says; empty where it is not here, fails, or takes too long."""
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


class _Remembered(Generic[_T]):
    """An answer that another program gives, which costs more than all else here: kept for a minute."""

    def __init__(self, ask: Callable[[], _T], now: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._now = ask, now
        self._asked_at = -math.inf
        self._answer: _T

    def __call__(self) -> _T:
        if self._now() >= self._asked_at + _REMEMBER_S:
            self._answer = self._ask()
            self._asked_at = self._now()
        return self._answer


_METERED: _Remembered[bool | None] = _Remembered(network_is_metered)
_UNTOUCHED: _Remembered[float | None] = _Remembered(seconds_untouched)


def _free_disk(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None
