"""`edge device run|status`. Light to import: everything heavy is inside the handlers."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.errors import ConfigError

if TYPE_CHECKING:
    from edge_sdk.cli import Subparsers
    from edge_sdk.client import EdgeClient


def add_verb(subparsers: Subparsers) -> None:
    """Declare `edge device`."""
    parser = subparsers.add_parser("device", help="run a device on this machine")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    run = actions.add_parser("run", help="take part in a population's training and serve its newest model")
    run.add_argument("--home", type=Path, required=True, help="the device's folder")
    run.add_argument("--broker", required=True, help="mqtt(s)://host[:port]")
    run.add_argument("--population", required=True, help="whose tasks to take part in")
    run.add_argument("--examples", type=Path, help=".npz with x and y to add to an empty example store")
    run.add_argument("--min-reports", type=int, default=20, help="fewest devices in a sum (default: %(default)s)")
    run.add_argument(
        "--epsilon",
        default="10",
        help="most this device spends on a task, or 'any' to allow no noise (default: %(default)s)",
    )
    run.add_argument("--until-done", action="store_true", help="end once the finished task's model is installed")
    run.add_argument("--verbose", action="store_true", help="log what happens")
    run.set_defaults(handler=_run)
    status = actions.add_parser("status", help="show what is installed and what left the device")
    status.add_argument("--home", type=Path, required=True, help="the device's folder")
    status.set_defaults(handler=_status)


def _run(arguments: argparse.Namespace) -> int:
    import asyncio
    import logging
    import signal

    from edge_sdk.client import EXAMPLES_FILE, EdgeClient
    from edge_sdk.protocol.messages import TaskState
    from edge_sdk.protocol.policy import DevicePolicy
    from edge_sdk.runtime.broker_url import parse_broker_url
    from edge_sdk.runtime.driver import mqtt, run_devices

    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        format="%(asctime)s %(name)s %(message)s",
    )
    url = parse_broker_url(arguments.broker)
    try:
        epsilon = math.inf if arguments.epsilon == "any" else float(arguments.epsilon)
    except ValueError as error:
        raise ConfigError(
            f"epsilon {arguments.epsilon!r} is no number",
            hint="give a positive number, or 'any' to allow no noise",
        ) from error
    if arguments.examples is not None:
        _import_examples(arguments.examples, arguments.home / EXAMPLES_FILE)
    policy = DevicePolicy(min_reports=arguments.min_reports, epsilon_at_most=epsilon)
    with EdgeClient(arguments.home, population=arguments.population, policy=policy) as client:
        agent = client.agent
        print(
            f"device {agent.device_id}: {client.learner.example_count} examples, model version "
            f"{agent.installed_version or 'none'}; Ctrl-C stops it, starting it again resumes",
            flush=True,
        )

        def done() -> bool:
            found = agent.announcement
            return (
                arguments.until_done
                and found is not None
                and found.state is TaskState.COMPLETE
                and agent.installed_version >= found.model_version
            )

        async def main() -> None:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
            transports = mqtt(url, lambda _: client.tls_files if url.tls else None)
            await run_devices([agent], transports, stop=stop, done=done)

        asyncio.run(main())
        _print_status(client)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from edge_sdk.client import EdgeClient

    with EdgeClient(arguments.home, population="none") as client:
        _print_status(client)
    return 0


def _print_status(client: EdgeClient) -> None:
    print(f"device {client.identity.id}: model version {client.agent.installed_version or 'none'}")
    for p in client.participations():
        epsilon = "no noise" if math.isinf(p.epsilon) else f"epsilon {p.epsilon:.2f} so far"
        print(
            f"  {p.task} round {p.round_number}: sent {p.sent_bytes} masked bytes, "
            f"sha256 {p.sent_sha256.hex()[:16]}..., {epsilon}"
        )


def _import_examples(source: Path, target: Path) -> None:
    import zipfile

    import numpy as np

    from edge_sdk.training.examples import ExampleStore

    if target.exists():
        return
    try:
        with np.load(source, allow_pickle=False) as data:
            x, y = data["x"], data["y"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"cannot read examples from {source}: {error}", hint="give an .npz file with arrays x and y"
        ) from error
    with ExampleStore.create_for(target, x, y) as store:
        store.add_many(x, y)
