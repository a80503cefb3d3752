"""`edge coordinator serve` and `edge run create|list|show`.

Light to import: everything heavy is inside the handlers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.errors import ConfigError

if TYPE_CHECKING:
    from coordinator.config import TaskConfig
    from edge_sdk.cli import Subparsers

DEFAULT_HOME = Path("work/coordinator")


def add_coordinator_verb(subparsers: Subparsers) -> None:
    """Declare `edge coordinator`."""
    parser = subparsers.add_parser("coordinator", help="run the coordinator of a federation")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    serve = actions.add_parser("serve", help="serve all open tasks of a work folder")
    serve.add_argument("--home", type=Path, default=DEFAULT_HOME, help="work folder (default: %(default)s)")
    serve.add_argument(
        "--broker",
        default="embedded",
        help="mqtt(s)://host[:port], or 'embedded' to start one on this machine (default: %(default)s)",
    )
    serve.add_argument("--port", type=int, default=1883, help="of the embedded broker (default: %(default)s)")
    serve.add_argument("--verbose", action="store_true", help="log every refused message")
    serve.set_defaults(handler=_serve)


def add_run_verb(subparsers: Subparsers) -> None:
    """Declare `edge run`."""
    parser = subparsers.add_parser("run", help="create, list and show training runs")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="create a run; a serving coordinator takes it up by itself")
    create.add_argument("task", help="its name, such as 'digits'")
    create.add_argument("--home", type=Path, default=DEFAULT_HOME, help="work folder (default: %(default)s)")
    create.add_argument("--bundle", type=Path, required=True, help="the signed .edge bundle to train")
    create.add_argument("--signer", type=Path, required=True, help="public key of the bundle's signer")
    create.add_argument("--population", help="whom to train with (default: the task's name)")
    create.add_argument("--rounds", type=int, default=10)
    create.add_argument("--devices", type=int, required=True, help="goal count: selection fills to this many")
    create.add_argument("--min-reports", type=int, help="fewest devices in a released sum (default: 70%% of --devices)")
    create.add_argument(
        "--epsilon", default="10", help="device-level budget, or 'off' for no noise (default: %(default)s)"
    )
    create.add_argument("--delta", type=float, default=1e-5)
    create.add_argument("--clip-norm", type=float, default=1.0)
    create.add_argument("--participation-cap", type=int, help="rounds one device may join (default: rounds + 1)")
    create.add_argument("--corrupt-share", type=float, default=0.05)
    create.add_argument("--dropout-share", type=float, default=0.2)
    create.add_argument("--epochs", type=int, default=5)
    create.add_argument("--batch-size", type=int, default=8)
    create.add_argument("--max-steps", type=int, default=100)
    create.add_argument("--learning-rate", type=float, default=0.1)
    create.add_argument("--server-optimizer", default="fedavg:learning_rate=1")
    create.add_argument("--evaluation", type=Path, help=".npz with x and y, held out at the coordinator")
    create.add_argument("--stage-timeout", type=float, default=60.0, help="seconds for each stage but reporting")
    create.add_argument("--report-timeout", type=float, default=1200.0, help="seconds for training and reporting")
    create.add_argument("--quiet", type=float, default=2.0, help="seconds without news that close a nearly full stage")
    create.set_defaults(handler=_create)
    listing = actions.add_parser("list", help="list the runs of a work folder")
    listing.add_argument("--home", type=Path, default=DEFAULT_HOME, help="work folder (default: %(default)s)")
    listing.set_defaults(handler=_list)
    show = actions.add_parser("show", help="show the rounds of a run")
    show.add_argument("task")
    show.add_argument("--home", type=Path, default=DEFAULT_HOME, help="work folder (default: %(default)s)")
    show.set_defaults(handler=_show)


def _serve(arguments: argparse.Namespace) -> int:
    import asyncio
    import logging
    import os
    import signal

    from coordinator.service.broker import start_broker
    from coordinator.service.driver import serve
    from coordinator.service.engine import Coordinator
    from coordinator.store.blobs import Blobs
    from coordinator.store.database import Database
    from edge_sdk.clock import SystemClock
    from edge_sdk.credentials import CA_FILE, CERTIFICATE_FILE, KEY_FILE, load_identity
    from edge_sdk.runtime.broker_url import parse_broker_url
    from edge_sdk.runtime.dial import TlsFiles

    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        format="%(asctime)s %(name)s %(message)s",
    )
    home: Path = arguments.home
    folder = home / "identity"
    identity = load_identity(folder, role="coordinator", now=SystemClock().now())
    coordinator = Coordinator(
        Database.in_folder(home), Blobs(home / "blobs"), identity, ca=identity.ca, random_bytes=os.urandom
    )
    embedded = None
    if arguments.broker == "embedded":
        embedded = start_broker(home / "broker", port=arguments.port)
        url = embedded.url
    else:
        url = parse_broker_url(arguments.broker)
    tls = TlsFiles(folder / CA_FILE, folder / CERTIFICATE_FILE, folder / KEY_FILE) if url.tls else None

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await serve(coordinator, url, identity.id, stop=stop, tls=tls)

    kind = f" ({embedded.kind}, started here)" if embedded else ""
    print(
        f"coordinator {identity.id} in {home} on {url}{kind}; Ctrl-C stops it, starting it again resumes",
        flush=True,
    )
    try:
        asyncio.run(main())
    finally:
        if embedded is not None:
            embedded.stop()
    return 0


def _create(arguments: argparse.Namespace) -> int:
    from coordinator.service.tasks import create_task
    from coordinator.store.blobs import Blobs
    from coordinator.store.database import Database
    from edge_sdk.clock import SystemClock
    from edge_sdk.credentials import load_public_key
    from edge_sdk.signing import public_key_to_pem
    from edge_sdk.training.artifact import read_artifact

    signer = load_public_key(arguments.signer)
    artifact = read_artifact(arguments.bundle, signer=signer)
    checkpoint = artifact.checkpoint()
    config = _config(arguments, checkpoint.size, public_key_to_pem(signer).decode())
    home: Path = arguments.home
    create_task(
        Database.in_folder(home),
        Blobs(home / "blobs"),
        config,
        artifact.content,
        checkpoint.astype("<f4").tobytes(),
        SystemClock().now(),
    )
    encoding = config.encoding
    noise = (
        f"epsilon {encoding.epsilon:.2f} at delta {config.privacy.delta:g} for {config.privacy.participation_cap} "
        f"participations, noise multiplier {encoding.noise_multiplier:.2f}"
        if encoding.device_variance
        else "NO NOISE: the sum is hidden from nobody who sees the model change"
    )
    print(f"run {config.task}: {config.rounds} rounds with {config.goal_count} devices of {config.population!r}")
    print(f"  secure aggregation over at least {config.min_reports} reports, {encoding.bits} bits a parameter")
    print(f"  {noise}")
    return 0


def _config(arguments: argparse.Namespace, dimension: int, signer: str) -> TaskConfig:
    import math

    from coordinator.config import Privacy, TaskConfig, Training
    from coordinator.rounds.states import Pacing
    from coordinator.service.tasks import encoding_for
    from edge_sdk.protocol.messages import BlobRef, Digest

    try:
        epsilon = math.inf if arguments.epsilon == "off" else float(arguments.epsilon)
    except ValueError as error:
        raise ConfigError(
            f"epsilon {arguments.epsilon!r} is no number",
            hint="give a positive number, or 'off' for no noise",
        ) from error
    if arguments.evaluation is not None and not arguments.evaluation.is_file():
        raise ConfigError(f"there is no file {arguments.evaluation}", hint="give an .npz with arrays x and y")
    min_reports = arguments.min_reports or max(2, math.ceil(0.7 * arguments.devices))
    privacy = Privacy(
        epsilon=epsilon,
        delta=arguments.delta,
        clip_norm=arguments.clip_norm,
        participation_cap=arguments.participation_cap or arguments.rounds + 1,
        corrupt_share=arguments.corrupt_share,
        dropout_share=arguments.dropout_share,
    )
    stage_s = arguments.stage_timeout
    return TaskConfig(
        task=arguments.task,
        population=arguments.population or arguments.task,
        bundle=BlobRef(Digest(bytes(32)), 0),
        dimension=dimension,
        rounds=arguments.rounds,
        goal_count=arguments.devices,
        min_check_ins=min_reports,
        min_reports=min_reports,
        training=Training(arguments.epochs, arguments.batch_size, arguments.max_steps, arguments.learning_rate),
        privacy=privacy,
        encoding=encoding_for(privacy, dimension=dimension, min_reports=min_reports, goal_count=arguments.devices),
        pacing=Pacing(
            selection_timeout_s=max(600.0, stage_s),
            advertise_timeout_s=stage_s,
            share_timeout_s=stage_s,
            report_timeout_s=arguments.report_timeout,
            unmask_timeout_s=stage_s,
            quiet_s=arguments.quiet,
        ),
        server_optimizer=arguments.server_optimizer,
        signer=signer,
        evaluation="" if arguments.evaluation is None else str(arguments.evaluation.resolve()),
    )


def _list(arguments: argparse.Namespace) -> int:
    from coordinator.service.tasks import list_tasks
    from coordinator.store.database import Database

    tasks = list_tasks(Database.in_folder(_existing(arguments.home)))
    if not tasks:
        print(f"no runs in {arguments.home}; create one with: edge run create")
    for task in tasks:
        accuracy = "" if task.accuracy is None else f", accuracy {task.accuracy:.1%}"
        reason = f" ({task.reason})" if task.reason else ""
        print(
            f"{task.task}: {task.state.name.lower()}{reason}, {task.committed} of {task.rounds} rounds, "
            f"model version {task.model_version}{accuracy}"
        )
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from coordinator.service.tasks import list_rounds, task_config
    from coordinator.store.database import Database

    database = Database.in_folder(_existing(arguments.home))
    config = task_config(database, arguments.task)
    print(f"{config.task}: population {config.population!r}, {config.dimension} parameters, {config.rounds} rounds")
    print(" round  phase          in  keys  shares  reports  answers   loss  accuracy  epsilon  KB up  KB down")
    for r in list_rounds(database, arguments.task):
        devices = max(1, r.selected)
        loss = "-" if r.loss is None else f"{r.loss:.3f}"
        accuracy = "-" if r.accuracy is None else f"{r.accuracy:.1%}"
        epsilon = "-" if r.epsilon is None else f"{r.epsilon:.2f}"
        reached = f"{r.checked_in:4d}{r.advertised:6d}{r.shared:8d}{r.reported:9d}{r.answered:9d}"
        traffic = f"{r.bytes_up / devices / 1000:7.1f}{r.bytes_down / devices / 1000:9.1f}"
        print(f"{r.number:6d}  {r.phase:13s}{reached}{loss:>7s}{accuracy:>10s}{epsilon:>9s}{traffic}")
        if r.phase == "abandoned":
            print(f"        abandoned: {r.reason.name.lower().replace('_', ' ')}. {r.detail}")
        for what, counts in (("refused", r.faults), ("declined", r.declined)):
            if counts:
                print(f"        {what}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    return 0


def _existing(home: Path) -> Path:
    if not (home / "coordinator.sqlite").is_file():
        raise ConfigError(f"{home} is not a coordinator's work folder", hint="name one with --home")
    return home
