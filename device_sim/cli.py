"""`edge demo` and `edge sim prepare`. Light to import: everything heavy is inside the handlers."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.errors import ConfigError

if TYPE_CHECKING:
    from device_sim.demo import DemoSettings
    from edge_sdk.cli import Subparsers


def add_demo_verb(subparsers: Subparsers) -> None:
    """Declare `edge demo`."""
    parser = subparsers.add_parser("demo", help="train a model across a private fleet on this machine, end to end")
    parser.add_argument("--devices", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--processes", type=int, help="that carry the devices (default: one for 25 devices)")
    parser.add_argument("--dropout", type=float, default=0.1, help="share vanishing in a round (default: %(default)s)")
    parser.add_argument("--epsilon", help="device-level budget over all rounds, or 'off' for no noise (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of data, split, fleet and faults (default: %(default)s)")
    parser.add_argument(
        "--broker", default="embedded", help="mqtt(s)://host[:port], or 'embedded' (default: %(default)s)"
    )
    parser.add_argument("--no-kills", action="store_true", help="kill no process on the way")
    parser.add_argument("--work", type=Path, default=Path("work/demo"), help="work folder (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with a demo that was stopped in the work folder")
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
    from device_sim.demo import Demo, load_settings
    from device_sim.screen import Screen

    if arguments.resume:
        found = load_settings(arguments.work)
        if found is None:
            raise ConfigError(f"there is no demo to resume in {arguments.work}", hint="start one with: edge demo")
        settings, prepared = found
    else:
        settings, prepared = _settings(arguments), False
    screen = Screen()
    try:
        Demo(settings, arguments.work, screen).run(resume=prepared)
    except KeyboardInterrupt:
        screen.close()
        print(f"\nstopped; go on with: edge demo --resume --work {arguments.work}")
        return 130
    return 0


def _settings(arguments: argparse.Namespace) -> DemoSettings:
    """The settings of the command line."""
    from device_sim.demo import DemoSettings
    from device_sim.job import EPSILON

    try:
        epsilon = EPSILON if arguments.epsilon is None else math.inf
        if arguments.epsilon not in (None, "off"):
            epsilon = float(arguments.epsilon)
    except ValueError as error:
        raise ConfigError(
            f"epsilon {arguments.epsilon!r} is no number", hint="give a positive number, or 'off' for no noise"
        ) from error
    return DemoSettings(
        devices=arguments.devices,
        rounds=arguments.rounds,
        processes=arguments.processes or max(2, arguments.devices // 25),
        dropout=arguments.dropout,
        epsilon=epsilon,
        seed=arguments.seed,
        broker=arguments.broker,
        kills=not arguments.no_kills,
    )


def _prepare(arguments: argparse.Namespace) -> int:
    import time

    import numpy as np

    from device_sim.datasets import federated_digits
    from device_sim.fleet import FleetFolders, device_ids, empty_work_folder, make_authorities, make_devices

    if not 2 <= arguments.devices <= 1_000:
        raise ConfigError(f"--devices {arguments.devices} is out of range", hint="choose 2 to 1000")
    dataset = federated_digits(arguments.devices, seed=arguments.seed)
    folders = FleetFolders(arguments.work)
    empty_work_folder(folders.work, "sim.json")
    now = time.time()
    make_authorities(folders, now)
    make_devices(folders, dict(zip(device_ids(arguments.devices), dataset.shards, strict=True)), now)
    np.savez(folders.evaluation, x=dataset.test[0], y=dataset.test[1])
    print(f"registrar, signer, coordinator and {arguments.devices} devices are in {folders.work}")
    return 0
