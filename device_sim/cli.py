"""`edge demo` and `edge sim prepare`. Light to import: everything heavy is inside the handlers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.cli import EXIT_INTERRUPTED
from edge_sdk.errors import ConfigError

if TYPE_CHECKING:
    from device_sim.settings import DemoSettings
    from edge_sdk.cli import Subparsers


def add_demo_verb(subparsers: Subparsers) -> None:
    """Declare `edge demo`."""
    parser = subparsers.add_parser("demo", help="train a model across a private fleet on this machine, end to end")
    parser.add_argument("--devices", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument(
        "--processes", type=int, help="that carry the devices (default: one for 25 devices, 2 at least)"
    )
    parser.add_argument("--dropout", type=float, default=0.1, help="share vanishing in a round (default: %(default)s)")
    parser.add_argument("--epsilon", help="device-level budget over all rounds, or 'off' for no noise (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of data, split, fleet and faults (default: %(default)s)")
    parser.add_argument(
        "--broker",
        default="embedded",
        help="mqtt(s)://[user@]host[:port], password in EDGE_BROKER_PASSWORD, or 'embedded' (default: %(default)s)",
    )
    parser.add_argument("--no-kills", action="store_true", help="kill no process on the way")
    parser.add_argument("--work", type=Path, default=Path("work/demo"), help="work folder (default: %(default)s)")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the demo that was stopped in the work folder, as it was set"
    )
    parser.set_defaults(handler=_demo)


def add_sim_verb(subparsers: Subparsers) -> None:
    """Declare `edge sim`."""
    parser = subparsers.add_parser("sim", help="prepare simulated fleets")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    prepare = actions.add_parser(
        "prepare", help="make a registrar, a signer, a coordinator and devices with handwritten digits, to run by hand"
    )
    prepare.add_argument("--devices", type=int, default=5, help="(default: %(default)s)")
    prepare.add_argument("--seed", type=int, default=0, help="of data and split (default: %(default)s)")
    prepare.add_argument("--work", type=Path, default=Path("work/hand"), help="work folder (default: %(default)s)")
    prepare.set_defaults(handler=_prepare)


def _demo(arguments: argparse.Namespace) -> int:
    import signal

    from device_sim.demo import Demo
    from device_sim.fleet import unusable
    from device_sim.screen import Screen
    from device_sim.settings import load_settings
    from device_sim.summary import command

    if arguments.resume:
        found = load_settings(arguments.work)
        if found is None:
            raise ConfigError(f"there is no demo to resume in {arguments.work}", hint="start one with: edge demo")
        settings, prepared = found
    else:
        settings, prepared = _settings(arguments), False
    # A service manager's or a closed terminal's way to say what Ctrl-C says.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    screen = Screen()
    if arguments.resume:
        screen.note(f"going on with {settings.rounds} rounds over {settings.devices} devices in {arguments.work}")
    try:
        Demo(settings, arguments.work, screen).run(resume=prepared)
    except KeyboardInterrupt:
        screen.close()
        screen.say(f"stopped; go on with: {command('demo', '--resume', '--work', arguments.work)}")
        return EXIT_INTERRUPTED
    except OSError as error:
        raise unusable(arguments.work, error) from error
    finally:
        screen.close()
    return 0


def _settings(arguments: argparse.Namespace) -> DemoSettings:
    """The settings of the command line."""
    from coordinator.admin.run_options import epsilon_of_option
    from device_sim.job import EPSILON
    from device_sim.settings import DemoSettings

    return DemoSettings(
        devices=arguments.devices,
        rounds=arguments.rounds,
        processes=max(2, arguments.devices // 25) if arguments.processes is None else arguments.processes,
        dropout=arguments.dropout,
        epsilon=EPSILON if arguments.epsilon is None else epsilon_of_option(arguments.epsilon),
        seed=arguments.seed,
        broker=arguments.broker,
        kills=not arguments.no_kills,
    )


def _prepare(arguments: argparse.Namespace) -> int:
    import time

    import numpy as np

    from device_sim.datasets import federated_digits
    from device_sim.fleet import FleetFolders, device_ids, fresh_work_folder, make_authorities, make_devices, unusable

    if not 2 <= arguments.devices <= 1_000:
        raise ConfigError(f"--devices {arguments.devices} is out of range", hint="choose 2 to 1000")
    folders = FleetFolders(arguments.work)
    try:
        with fresh_work_folder(folders.work, "sim.json", "{}"):
            dataset = federated_digits(arguments.devices, seed=arguments.seed)
            now = time.time()
            make_authorities(folders, now)
            make_devices(folders, dict(zip(device_ids(arguments.devices), dataset.shards, strict=True)), now)
            np.savez(folders.evaluation, allow_pickle=False, **dataset.test)
    except OSError as error:
        raise unusable(folders.work, error) from error
    print(f"registrar, signer, coordinator and {arguments.devices} devices are in {folders.work}")
    return 0
