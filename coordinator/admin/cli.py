"""`edge coordinator serve` and `edge run create|list|show|resume`.

Light to import: everything heavy is inside the handlers.
"""

from __future__ import annotations

import argparse
import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.admin.run_options import add_run_options, config_of_options
from edge_sdk.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from coordinator.analytics.estimate import Estimate
    from coordinator.config import TaskConfig
    from coordinator.service.tasks import RoundView
    from edge_sdk.cli import Subparsers
    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.manifest import FormatSpec

DEFAULT_HOME = Path("work/coordinator")
_DEFAULT = "(default: %(default)s)"


def add_coordinator_verb(subparsers: Subparsers) -> None:
    """Declare `edge coordinator`."""
    parser = subparsers.add_parser("coordinator", help="run the coordinator of a federation")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    serve = actions.add_parser("serve", help="serve all open tasks of a work folder")
    serve.add_argument("--home", type=Path, default=DEFAULT_HOME, metavar="DIR", help=f"work folder {_DEFAULT}")
    serve.add_argument(
        "--broker",
        default="embedded",
        metavar="URL",
        help=f"mqtt(s)://[user@]host[:port], password in EDGE_BROKER_PASSWORD; or 'embedded' to start one {_DEFAULT}",
    )
    serve.add_argument("--port", type=int, default=1883, metavar="N", help=f"of the embedded broker {_DEFAULT}")
    serve.add_argument(
        "--workers", type=int, metavar="N", help="processes that take the masks off a round's sum (default: one a core)"
    )
    serve.add_argument("--verbose", action="store_true", help="log every refused message")
    serve.set_defaults(handler=_serve)


def add_run_verb(subparsers: Subparsers) -> None:
    """Declare `edge run`."""
    parser = subparsers.add_parser("run", help="create, list and show training runs")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = actions.add_parser(
        "create",
        # The list of all of its options, which argparse would put before each error, hides the error.
        usage="edge run create NAME (--bundle FILE | --analytics FILE) --signer KEY --devices N [OPTION ...]",
        help="create a run; a serving coordinator takes it up by itself",
    )
    create.add_argument("task", metavar="NAME", help="its name, such as 'digits'")
    create.add_argument("--home", type=Path, default=DEFAULT_HOME, metavar="DIR", help=f"work folder {_DEFAULT}")
    create.add_argument("--bundle", type=Path, metavar="FILE", help="the signed .edge bundle to train")
    create.add_argument(
        "--analytics", type=Path, metavar="FILE", help="ask this signed query instead of training: edge signer query"
    )
    create.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="for a query that evaluates: parameters other than the bundle's"
    )
    create.add_argument("--signer", type=Path, required=True, metavar="KEY", help="public key of the bundle's signer")
    create.add_argument("--population", metavar="NAME", help="whom to train with (default: the run's name)")
    create.add_argument("--evaluation", type=Path, metavar="FILE", help=".npz with x and y, held out, on this machine")
    add_run_options(create)
    create.set_defaults(handler=_create)
    resume = actions.add_parser("resume", help="go on with a run that was paused because its rounds failed")
    resume.add_argument("task", metavar="NAME", help="the run's name")
    resume.add_argument("--home", type=Path, default=DEFAULT_HOME, metavar="DIR", help=f"work folder {_DEFAULT}")
    resume.set_defaults(handler=_resume)
    listing = actions.add_parser("list", help="list the runs of a work folder")
    listing.add_argument("--home", type=Path, default=DEFAULT_HOME, metavar="DIR", help=f"work folder {_DEFAULT}")
    listing.set_defaults(handler=_list)
    show = actions.add_parser("show", help="show the rounds of a run")
    show.add_argument("task", metavar="NAME", help="the run's name")
    show.add_argument("--home", type=Path, default=DEFAULT_HOME, metavar="DIR", help=f"work folder {_DEFAULT}")
    show.set_defaults(handler=_show)


def _serve(arguments: argparse.Namespace) -> int:
    import asyncio
    import os
    import signal

    from coordinator.service.broker import start_broker
    from coordinator.service.driver import serve
    from coordinator.service.engine import Coordinator
    from coordinator.store.blobs import Blobs
    from coordinator.store.database import Database
    from edge_sdk.clock import SystemClock
    from edge_sdk.credentials import CA_FILE, CERTIFICATE_FILE, KEY_FILE, load_identity
    from edge_sdk.logs import log_to_terminal
    from edge_sdk.runtime.broker_url import parse_broker_url
    from edge_sdk.runtime.dial import TlsFiles
    from edge_sdk.runtime.home_lock import only_process_in

    log_to_terminal(verbose=arguments.verbose)
    home: Path = arguments.home
    folder = home / "identity"
    identity = load_identity(folder, role="coordinator", now=SystemClock().now())
    given = None if arguments.broker == "embedded" else parse_broker_url(arguments.broker)
    with ExitStack() as stack:
        stack.enter_context(only_process_in(home))
        database = Database.in_folder(home)
        stack.callback(database.close)
        coordinator = Coordinator(database, Blobs(home / "blobs"), identity, ca=identity.ca, random_bytes=os.urandom)
        if given is None:
            embedded = stack.enter_context(start_broker(home / "broker", port=arguments.port))
            url, kind = embedded.url, f" ({embedded.kind}, started here)"
        else:
            url, kind = given, ""
        tls = TlsFiles(folder / CA_FILE, folder / CERTIFICATE_FILE, folder / KEY_FILE) if url.tls else None

        async def main() -> None:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
            await serve(
                coordinator, url, identity.id, stop=stop, tls=tls, workers=arguments.workers, on_serving=say_serving
            )

        def say_serving() -> None:
            print(f"{identity.id} serves {home} at {url}{kind}; Ctrl-C stops it, starting it again resumes", flush=True)

        asyncio.run(main())
    return 0


def _create(arguments: argparse.Namespace) -> int:
    from coordinator.service.tasks import create_task
    from coordinator.store.blobs import Blobs
    from coordinator.store.database import Database
    from edge_sdk.clock import SystemClock
    from edge_sdk.credentials import load_public_key
    from edge_sdk.signing import public_key_to_pem
    from edge_sdk.training.artifact import read_artifact
    from edge_sdk.training.layout import encode_vector

    signer = load_public_key(arguments.signer)
    signer_pem = public_key_to_pem(signer).decode()
    formats: tuple[FormatSpec, ...] = ()
    if arguments.analytics is not None:
        config, head, checkpoint, parts = _question(arguments, signer, signer_pem)
    elif arguments.bundle is not None:
        artifact = read_artifact(arguments.bundle, signer=signer)
        config = config_of_options(
            arguments,
            task=arguments.task,
            population=arguments.population or arguments.task,
            dimension=artifact.layout.size,
            signer=signer_pem,
            evaluation="" if arguments.evaluation is None else str(arguments.evaluation.resolve()),
        )
        _check_fit(arguments, artifact)
        head, checkpoint, parts = artifact.head, encode_vector(artifact.checkpoint()), list(artifact.parts.values())
        formats = artifact.manifest.formats
    else:
        raise ConfigError("a run needs --bundle to train, or --analytics to ask", hint="pass one of them")
    home: Path = arguments.home
    create_task(
        Database.in_folder(home), Blobs(home / "blobs"), config, head, checkpoint, SystemClock().now(), parts=parts
    )
    encoding = config.encoding
    noise = (
        f"epsilon {encoding.epsilon:.2f} at delta {config.privacy.delta:g} for {config.privacy.participation_cap} "
        f"participations, noise multiplier {encoding.noise_multiplier:.2f}"
        if encoding.device_variance
        else "NO NOISE: whoever sees the models learns the exact sum of the updates, though of no single one"
    )
    print(f"run {config.task}: {config.rounds} rounds with {config.goal_count} devices of {config.population!r}")
    print(f"  secure aggregation over at least {config.min_reports} reports, {encoding.bits} bits a parameter")
    print(f"  {noise}")
    needed = _device_options(config)
    if needed:
        print(f"  devices decline this by default; to take part: edge device run {' '.join(needed)}")
    for known in formats:
        if not known.batch.minimum <= config.training.batch_size <= known.batch.maximum:
            sizes = " to ".join(str(size) for size in sorted({known.batch.minimum, known.batch.maximum}))
            print(f"  devices on {known.name} cannot take part: its graphs take batches of {sizes}")
    return 0


def _question(
    arguments: argparse.Namespace, signer: ec.EllipticCurvePublicKey, signer_pem: str
) -> tuple[TaskConfig, bytes, bytes, list[bytes]]:
    """A run that asks a query: its configuration, the signed query, zeros to begin with, and a model's parts."""
    from dataclasses import replace

    from coordinator.analytics.model import model_parts, references
    from edge_sdk.analytics.query import query_text, read_query
    from edge_sdk.training.artifact import read_artifact

    try:
        content = arguments.analytics.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the query {arguments.analytics}: {error.strerror or error}",
            hint="make one with: edge signer query",
        ) from error
    query = read_query(content, signer=signer)
    parts: list[bytes] = []
    if query.kind == "evaluate":
        if arguments.bundle is None:
            raise ConfigError("the query evaluates a model", hint="pass its --bundle too")
        artifact = read_artifact(arguments.bundle, signer=signer)
        checkpoint = None if arguments.checkpoint is None else arguments.checkpoint.read_bytes()
        parts = model_parts(artifact, checkpoint)
        if references(parts) != query.model:
            raise ConfigError(
                "the query was signed for another bundle or checkpoint", hint="pass those that it was signed with"
            )
    arguments.clip_norm, arguments.server_optimizer = query.norm_bound, "average"
    arguments.rounds = arguments.rounds or 1
    config = config_of_options(
        arguments,
        task=arguments.task,
        population=arguments.population or arguments.task,
        dimension=query.dimension,
        signer=signer_pem,
    )
    return replace(config, query=query_text(query)), content, bytes(4 * query.dimension), parts


def _device_options(config: TaskConfig) -> list[str]:
    """What a device must be told so that its policy lets this run pass, beside the defaults."""
    from edge_sdk.protocol.policy import DevicePolicy

    policy, options = DevicePolicy(), ["--analytics"] if config.query else []
    if config.min_reports < policy.min_reports:
        options.append(f"--min-reports {config.min_reports}")
    if not config.encoding.device_variance:
        options.append("--epsilon any")
    elif config.encoding.epsilon > policy.epsilon_at_most:
        options.append(f"--epsilon {math.ceil(config.encoding.epsilon)}")
    return options


def _check_fit(arguments: argparse.Namespace, artifact: Artifact) -> None:
    """See that server, batches and held-out examples go with the bundle, before anything is written."""
    from coordinator.aggregation.server_optimizers import server_optimizer
    from edge_sdk.training.evaluation import evaluate
    from edge_sdk.training.npz import read_examples

    server_optimizer(arguments.server_optimizer)
    batch = artifact.manifest.batch
    if not batch.minimum <= arguments.batch_size <= batch.maximum:
        raise ConfigError(
            f"--batch-size {arguments.batch_size} is out of the bundle's range",
            hint=f"choose {batch.minimum} to {batch.maximum}, or export with another batch_max",
        )
    if arguments.proximal and not artifact.manifest.graph("train").takes("proximal"):
        raise ConfigError(
            f"--proximal {arguments.proximal} needs a bundle whose gradients can be corrected",
            hint="export it with edge export --correction, or leave --proximal out",
        )
    if arguments.evaluation is not None:
        examples = read_examples(arguments.evaluation)
        try:
            evaluate(artifact, artifact.checkpoint(), examples)
        except TrainingError as error:
            raise ConfigError(
                f"{arguments.evaluation} does not fit the bundle: {error}", hint=error.hint or "convert the examples"
            ) from error


def _list(arguments: argparse.Namespace) -> int:
    from coordinator.service.tasks import list_tasks
    from coordinator.store.database import Database
    from edge_sdk.protocol.messages import TaskState

    tasks = list_tasks(Database.in_folder(existing_home(arguments.home)))
    if not tasks:
        print(f"no runs in {arguments.home}; create one with: edge run create")
    for task in tasks:
        accuracy = "" if task.accuracy is None else f", accuracy {task.accuracy:.1%}"
        reason = f" ({task.reason})" if task.reason else ""
        print(
            f"{task.task}: {task.state.name.lower()}{reason}, {task.committed} of {task.rounds} rounds, "
            f"model version {task.model_version}{accuracy}"
        )
        if task.state is TaskState.PAUSED:
            where = f"{task.task} --home {arguments.home}"
            print(f"  why: edge run show {where}; once that is mended: edge run resume {where}")
    return 0


def _resume(arguments: argparse.Namespace) -> int:
    from coordinator.service.tasks import resume_task
    from coordinator.store.database import Database
    from edge_sdk.runtime.home_lock import only_process_in

    home = existing_home(arguments.home)
    # A serving coordinator holds the task in memory, and would not hear of it.
    with only_process_in(home):
        resume_task(Database.in_folder(home), arguments.task)
    print(f"run {arguments.task} is open again; start the coordinator to go on: edge coordinator serve --home {home}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from coordinator.analytics.results import read_estimates
    from coordinator.service.tasks import list_rounds, task_config
    from coordinator.store.blobs import Blobs
    from coordinator.store.database import Database
    from edge_sdk.identity import utc_text

    database = Database.in_folder(existing_home(arguments.home))
    config = task_config(database, arguments.task)
    print(
        f"{config.task}: population {config.population!r}, {config.dimension:,} parameters, {config.rounds} rounds.\n"
        "Devices that came to each stage, then the model; kB for each device."
    )
    if config.query:
        print(f"Asks: {config.query}")
        for found in read_estimates(database, Blobs(arguments.home / "blobs"), config):
            print(_estimate_line(found))
    print("round   in keys shares input unmask  loss accuracy epsilon kB up  down phase")
    for view in list_rounds(database, arguments.task):
        print(_round_line(view))
        # Not only of abandoned ones: an evaluation that failed is told here too.
        reason = view.reason.name.lower().replace("_", " ") if view.phase == "abandoned" else ""
        told = ": ".join(text for text in (reason, view.detail) if text)
        if told:
            print(f"      {told}")
        if view.phase == "selection":
            until = utc_text(view.opened_at + config.pacing.selection_timeout_s)[11:19]
            print(
                f"      begins with {config.goal_count} devices, or at {until} UTC with {config.min_check_ins} or more"
            )
        if view.clip_norm is not None and view.within is not None:
            within = min(max(view.within, 0.0), 1.0)
            print(f"      clip norm {view.clip_norm:.3g}; about {within:.0%} of the updates within it")
        for what, counts in (("refused", view.faults), ("declined", view.declined)):
            if counts:
                print(f"      {what}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    return 0


def _estimate_line(found: Estimate) -> str:
    """One estimate; give or take what two standard deviations of the noise are."""
    if math.isnan(found.value):
        return f"  {found.label:<20s} lost in the noise"
    spread = "" if math.isnan(found.stddev) or not found.stddev else f" +- {2 * found.stddev:.4g}"
    return f"  {found.label:<20s} {found.value:.6g}{spread}"


def _round_line(view: RoundView) -> str:
    """One round in no more than 80 columns."""
    devices = max(1, view.selected)
    loss = "-" if view.loss is None else f"{view.loss:.3f}"
    accuracy = "-" if view.accuracy is None else f"{view.accuracy:.1%}"
    epsilon = "-" if view.epsilon is None else "none" if math.isinf(view.epsilon) else f"{view.epsilon:.2f}"
    reached = f"{view.checked_in:5d}{view.advertised:5d}{view.shared:7d}{view.reported:6d}{view.answered:7d}"
    traffic = f"{view.bytes_up / devices / 1000:6.1f}{view.bytes_down / devices / 1000:6.1f}"
    return f"{view.number:5d}{reached}{loss:>6s}{accuracy:>9s}{epsilon:>8s}{traffic} {view.phase}"


def existing_home(home: Path) -> Path:
    """The work folder, if it is one.

    Raises:
        ConfigError: no coordinator ever worked in it.
    """
    if not (home / "coordinator.sqlite").is_file():
        raise ConfigError(f"{home} is not a coordinator's work folder", hint="name one with --home")
    return home
