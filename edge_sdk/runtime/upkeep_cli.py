"""`edge device logs|opt-out|purge|doctor|service`. Light to import: everything heavy is inside the handlers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from edge_sdk.errors import ConfigError, IdentityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_sdk.cli import Subparsers
    from edge_sdk.logs import LogLine

SICK = 1
"""What `doctor` exits with where something keeps the device from taking part."""


def add_actions(actions: Subparsers) -> None:
    """Declare the actions of `edge device` that look after a device."""
    logs = actions.add_parser("logs", help="show what the device logged")
    _add_home(logs)
    logs.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="so many lines (default: %(default)s)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is logged from now on")
    logs.add_argument("--json", action="store_true", help="as JSON objects, one a line")
    logs.set_defaults(handler=_logs)
    out = actions.add_parser("opt-out", help="train no more: the owner's consent is revoked")
    _add_home(out)
    out.set_defaults(handler=_opt_out)
    purge = actions.add_parser("purge", help="erase everything that the device keeps, its identity first")
    _add_home(purge)
    purge.add_argument("--yes", action="store_true", help="do not ask")
    purge.set_defaults(handler=_purge)
    doctor = actions.add_parser("doctor", help="look for what keeps the device from taking part, and say what to do")
    _add_home(doctor)
    doctor.add_argument("--broker", default="", metavar="URL", help="try to connect to it")
    doctor.add_argument(
        "--signer", type=Path, metavar="FILE", help="the key that an app pins, if not signer.pub in its folder"
    )
    doctor.add_argument("--only-when", default="", metavar="WHAT", help="as in edge device run")
    doctor.set_defaults(handler=_doctor)
    service = actions.add_parser(
        "service",
        help="print or install a systemd unit that keeps the device running",
        usage="edge device service [--install] [--user NAME] [--memory-max SIZE] [--cpu-quota SHARE] "
        "--home DIR -- RUN-OPTIONS...",
        description="After -- follow the options of edge device run, without --home.",
    )
    _add_home(service)
    service.add_argument("--install", action="store_true", help="write it where systemd looks for it")
    service.add_argument(
        "--user", default="", metavar="NAME", help="a unit of the system that runs as this user (default: of yours)"
    )
    service.add_argument("--memory-max", default="512M", metavar="SIZE", help="(default: %(default)s)")
    service.add_argument("--cpu-quota", default="50%", metavar="SHARE", help="of one core (default: 50%%)")
    service.add_argument("run_options", nargs="*", metavar="RUN-OPTIONS", help="options of edge device run")
    service.set_defaults(handler=_service)


def _add_home(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--home", type=Path, required=True, metavar="DIR", help="the device's folder")


def existing_home(home: Path) -> Path:
    """The device's folder that a person named.

    Raises:
        ConfigError: there is none.
    """
    if not home.is_dir():
        raise ConfigError(f"there is no folder {home}", hint="name the device's folder with --home")
    return home


def _logs(arguments: argparse.Namespace) -> int:
    from edge_sdk.logs import follow_log, read_log

    home = existing_home(arguments.home)
    if arguments.lines < 0:
        raise ConfigError(f"{arguments.lines} lines cannot be shown", hint="give a number from 0 on")

    def show(line: LogLine) -> None:
        print(line.text if arguments.json else line, flush=True)

    lines = read_log(home, arguments.lines)
    for line in lines:
        show(line)
    if not lines and arguments.lines:
        print(
            f"edge: nothing is logged in {home}: edge device run does that; an app has the lines in Python's logging",
            file=sys.stderr,
        )
    if arguments.follow:
        for line in follow_log(home):
            show(line)
    return 0


def _opt_out(arguments: argparse.Namespace) -> int:
    from edge_sdk.clock import SystemClock
    from edge_sdk.runtime.consent import Consent
    from edge_sdk.runtime.device_store import DeviceStore
    from edge_sdk.runtime.home import DEVICE_FILE

    with DeviceStore(existing_home(arguments.home) / DEVICE_FILE) as store:
        Consent(store, SystemClock()).revoke()
        sent = len(store.participations())
    print("training is off on this device, for good; it still serves its newest model")
    if sent:
        print(f"  what left it in {sent} rounds is in sums of many devices and cannot be taken out")
    print("  to erase what it keeps too: edge device purge")
    return 0


def _purge(arguments: argparse.Namespace) -> int:
    from edge_sdk.credentials import CERTIFICATE_FILE, load_certificate
    from edge_sdk.identity import certificate_id
    from edge_sdk.runtime.home import IDENTITY_FOLDER
    from edge_sdk.runtime.home_lock import only_process_in
    from edge_sdk.runtime.purge import holdings, purge

    home = existing_home(arguments.home)
    found = holdings(home)
    if not found:
        print(f"{home} holds nothing of a device")
        return 0
    try:
        name = certificate_id(load_certificate(home / IDENTITY_FOLDER / CERTIFICATE_FILE))
    except IdentityError:
        name = home.name  # erased before, or never whole
    print(f"of device {name} will be erased, for good:")
    for holding in found:
        print(f"  {holding.size_bytes:12,d}  {holding.path}")
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody here can confirm that", hint="say --yes")
        if input(f"type {name} to go on: ").strip() != name:
            print("nothing was erased")
            return 1
    with only_process_in(home):
        left = purge(home)
    print(f"device {name} is erased; the fleet's operator can revoke its id: edge registrar revoke {name}")
    for path in left:
        print(f"  left where it was, as it is not the SDK's: {path}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from edge_sdk.clock import SystemClock
    from edge_sdk.runtime.broker_url import parse_broker_url
    from edge_sdk.runtime.doctor import Patient, Verdict, examine
    from edge_sdk.runtime.eligibility import eligibility_of

    patient = Patient(
        arguments.home,
        SystemClock().now(),
        parse_broker_url(arguments.broker) if arguments.broker else None,
        eligibility_of(arguments.only_when),
        arguments.signer,
    )
    bad = 0
    for finding in examine(patient):
        bad += finding.verdict is Verdict.BAD
        print(f"{finding.verdict:4}  {finding.what:12} {finding.detail}", flush=True)
        if finding.hint:
            print(f"{'':19}hint: {finding.hint}", flush=True)
    print(f"{bad} of these keep the device from taking part" if bad else "nothing keeps the device from taking part")
    return SICK if bad else 0


def _service(arguments: argparse.Namespace) -> int:
    from edge_sdk.runtime.service_unit import ServiceUnit, install

    home = existing_home(arguments.home).resolve()
    command = [sys.executable, "-m", "edge_sdk.cli", "device", "run", "--home", str(home), *arguments.run_options]
    _check_run(command[3:])
    unit = ServiceUnit(command, home, arguments.user, arguments.memory_max, arguments.cpu_quota)
    if not arguments.install:
        print(unit.text(), end="")
        return 0
    known = install(unit, unit.path)
    print(f"wrote {unit.path}; start it with: {unit.enable}")
    if not known:
        print("  systemd does not run here, or did not read it")
    return 0


def _check_run(words: Sequence[str]) -> None:
    """See that `edge device run` will understand its options: a service that cannot start says so too late."""
    from edge_sdk.runtime.broker_url import parse_broker_url
    from edge_sdk.runtime.cli import add_verb

    parser: argparse.ArgumentParser = _Strict(prog="edge", add_help=False)
    add_verb(parser.add_subparsers())
    parse_broker_url(parser.parse_args(words).broker)


class _Strict(argparse.ArgumentParser):
    """Refuses as the rest of `edge` does."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            f"the service could not run: {message}",
            hint="after -- write options of edge device run, such as --broker mqtts://host --population name",
        )
