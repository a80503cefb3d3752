"""When a device trains: what machines say in their files, and what an app makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.runtime.eligibility import (
    GIB,
    Conditions,
    Eligibility,
    SystemConditions,
    _Remembered,
    eligibility_of,
    network_is_metered,
    seconds_untouched,
)

Program = Callable[[str, str], None]

FINE = Conditions(
    charging=True,
    battery=0.9,
    metered=False,
    load=0.1,
    temperature_c=45.0,
    free_memory_bytes=GIB,
    free_disk_bytes=GIB,
    hour=3.0,
)


def machine(root: Path, files: dict[str, str]) -> SystemConditions:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n", encoding="utf-8")
    return SystemConditions(root, root, metered=lambda: None, untouched=lambda: None)


def supply(name: str, **values: str) -> dict[str, str]:
    return {f"sys/class/power_supply/{name}/{key}": value for key, value in values.items()}


@pytest.mark.parametrize(
    ("files", "charging", "battery"),
    [
        ({}, None, None),
        (
            supply("AC", type="Mains", online="1") | supply("BAT0", type="Battery", capacity="80", status="Full"),
            True,
            0.8,
        ),
        (
            supply("AC", type="Mains", online="0")
            | supply("BAT0", type="Battery", capacity="80", status="Discharging"),
            False,
            0.8,
        ),
        (supply("BAT0", type="Battery", capacity="15", status="Charging"), True, 0.15),
        (supply("BAT0", type="Battery", capacity="15", status="Discharging"), False, 0.15),
        (supply("usb", type="USB", online="1"), True, None),
        (supply("mouse", type="Battery", scope="Device", capacity="3", status="Discharging"), None, None),
        (supply("BAT0", type="Battery", capacity="?", status="Unknown"), False, None),
    ],
)
def test_power_is_read_as_linux_tells_it(
    tmp_path: Path, files: dict[str, str], charging: bool | None, battery: float | None
) -> None:
    found = machine(tmp_path, files).read()
    assert (found.charging, found.battery) == (charging, battery)


def test_load_heat_and_room_are_read(tmp_path: Path) -> None:
    found = machine(
        tmp_path,
        {
            "proc/loadavg": "4.00 2.00 1.00 2/300 1234",
            "proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable:     1048576 kB\nBuffers: 1 kB",
            "sys/class/thermal/thermal_zone0/temp": "41500",
            "sys/class/thermal/thermal_zone1/temp": "62000",
            "sys/class/thermal/thermal_zone2/temp": "",
        },
    ).read()
    assert found.load is not None
    assert found.load > 0
    assert (found.temperature_c, found.free_memory_bytes) == (62.0, GIB)
    assert found.free_disk_bytes is not None
    assert found.hour is not None
    assert 0 <= found.hour < 24


def test_a_machine_that_says_nothing_has_no_objections(tmp_path: Path) -> None:
    found = machine(tmp_path / "nowhere", {}).read()
    assert (found.load, found.free_memory_bytes, found.free_disk_bytes, found.temperature_c) == (None, None, None, None)
    assert Eligibility().objections(found) == ()


def test_this_machine_can_be_asked(tmp_path: Path) -> None:
    found = SystemConditions(tmp_path).read()
    assert found.free_memory_bytes is not None
    assert found.free_memory_bytes > 0
    assert network_is_metered() in (True, False, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"charging": False}, "not charging"),
        ({"battery": 0.1}, "battery at 10%"),
        ({"metered": True}, "the network is metered"),
        ({"load": 1.5}, "busy: load 1.5 a core"),
        ({"untouched_s": 59.0}, "used 59 s ago"),
        ({"temperature_c": 95.0}, "hot: 95 degrees"),
        ({"free_memory_bytes": 0}, "0 MiB of memory free"),
        ({"free_disk_bytes": 0}, "0 MiB of disk free"),
        ({"hour": 12.0}, "quiet hours"),
    ],
)
def test_each_objection_is_told_and_none_without_reason(changes: dict[str, float], words: str) -> None:
    import dataclasses

    asked = Eligibility(quiet_hours=(8, 22), untouched_for_s=60)
    assert asked.objections(FINE) == ()
    assert asked.objections(dataclasses.replace(FINE, **changes)) == (words,)  # type: ignore[arg-type]


def test_an_app_may_ask_for_less() -> None:
    careless = Eligibility(charging=False, unmetered=False, idle=False)
    assert careless.objections(Conditions(charging=False, metered=True, load=9.0)) == ()


@pytest.mark.parametrize(("hour", "quiet"), [(23.0, True), (2.0, True), (6.0, False), (12.0, False), (22.0, True)])
def test_quiet_hours_may_span_midnight(hour: float, quiet: bool) -> None:
    found = Eligibility(quiet_hours=(22, 6)).objections(Conditions(hour=hour))
    assert bool(found) == quiet


def test_bounds_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="out of range"):
        Eligibility(battery_at_least=20)
    with pytest.raises(ConfigError, match="no hours"):
        Eligibility(quiet_hours=(22, 25))


# ---- what other programs say


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Puts a program of that name where it is found, and nothing else is found."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    return put


@pytest.mark.parametrize(
    ("said", "metered"),
    [("u 1", True), ("u 2", False), ("u 3", True), ("u 4", False), ("u 0", None), ("", None), ("what is this", None)],
)
def test_networkmanager_is_asked_over_d_bus(program: Program, said: str, metered: bool | None) -> None:
    program(
        "busctl",
        '[ "$*" = "get-property org.freedesktop.NetworkManager /org/freedesktop/NetworkManager '
        f'org.freedesktop.NetworkManager Metered" ] && echo "{said}"',
    )
    assert network_is_metered() is metered


@pytest.mark.parametrize(
    ("said", "metered"),
    [
        ("GENERAL.STATE:100 (connected)\\nGENERAL.METERED:yes", True),
        ("GENERAL.STATE:100 (connected)\\nGENERAL.METERED:no (guessed)", False),
        ("GENERAL.STATE:30 (disconnected)\\nGENERAL.METERED:yes", None),
        (
            "GENERAL.STATE:100 (connected (externally))\\nGENERAL.METERED:unknown\\n\\n"
            "GENERAL.STATE:100 (connected)\\nGENERAL.METERED:yes (guessed)",
            True,
        ),
        ("", None),
    ],
)
def test_without_busctl_its_own_command_is_asked(program: Program, said: str, metered: bool | None) -> None:
    program("nmcli", f"printf '{said}\\n'")
    assert network_is_metered() is metered


@pytest.mark.parametrize("script", ["exit 1", "echo u 1; exit 1", "printf '\\377\\376'"])
def test_programs_that_fail_say_nothing(program: Program, script: str) -> None:
    program("busctl", script)
    program("nmcli", script)
    assert network_is_metered() is None
    assert seconds_untouched() is None


def test_logind_knows_since_when_nobody_is_there(program: Program) -> None:
    assert seconds_untouched() is None
    program("busctl", 'case "$*" in *login1*) echo "b false"; echo "t 1700000000000000";; esac')
    assert seconds_untouched() == 0.0
    program("busctl", 'echo "b true"; echo "t 1700000000000000"')
    found = seconds_untouched()
    assert found is not None
    assert found > 86_400


def test_other_programs_are_asked_once_a_minute() -> None:
    now, answers = [0.0], iter(range(1, 9))
    remembered = _Remembered(lambda: next(answers), lambda: now[0])
    assert [remembered(), remembered()] == [1, 1]
    now[0] = 59.0
    assert remembered() == 1
    now[0] = 60.0
    assert remembered() == 2


# ---- at the command line


def test_what_is_asked_for_at_the_command_line() -> None:
    assert eligibility_of("") is None
    assert eligibility_of("charging, idle") == Eligibility(unmetered=False)
    assert eligibility_of("battery=50,untouched=10,temperature=70,memory=512,disk=1024,quiet=8-22.5") == Eligibility(
        charging=False,
        unmetered=False,
        idle=False,
        battery_at_least=0.5,
        untouched_for_s=600,
        temperature_at_most_c=70,
        memory_at_least_bytes=512 << 20,
        disk_at_least_bytes=1 << 30,
        quiet_hours=(8, 22.5),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("charing", "--only-when charing is not known"),
        ("charging=yes", "--only-when charging=yes is not known"),
        ("battery=half", "--only-when battery=half holds no number"),
        ("battery", "--only-when battery holds no number"),
        ("quiet=8", "--only-when quiet=8 holds no number"),
        ("battery=120", "a battery of 1.2"),
        ("quiet=8-25", "are no hours"),
    ],
)
def test_what_cannot_be_asked_for(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        eligibility_of(text)
    assert caught.value.hint
