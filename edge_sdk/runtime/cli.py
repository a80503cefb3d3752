"""`edge device run|enrol|renew|status`, and what `upkeep_cli` adds. Light: what is heavy is inside the handlers."""

from __future__ import annotations

import argparse
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.errors import ConfigError
from edge_sdk.runtime import upkeep_cli
from edge_sdk.runtime.eligibility import ONLY_WHEN

if TYPE_CHECKING:
    from edge_sdk.cli import Subparsers
    from edge_sdk.runtime.consent import ConsentChange
    from edge_sdk.runtime.device_store import DeviceStore


CONSENT_TEXT = "edge device run --consent"
"""Stands for the version of the text that the owner was shown."""


def add_verb(subparsers: Subparsers) -> None:
    """Declare `edge device`."""
    parser = subparsers.add_parser("device", help="run a device on this machine")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    run = actions.add_parser("run", help="take part in a population's training and serve its newest model")
    run.add_argument("--home", type=Path, required=True, metavar="DIR", help="the device's folder")
    run.add_argument(
        "--broker", required=True, metavar="URL", help="mqtt(s)://[user@]host[:port], password in EDGE_BROKER_PASSWORD"
    )
    run.add_argument("--population", required=True, metavar="NAME", help="whose tasks to take part in")
    run.add_argument(
        "--examples", type=Path, metavar="FILE", help=".npz with x and y, to fill an empty example store with"
    )
    run.add_argument(
        "--min-reports", type=int, default=20, metavar="N", help="fewest devices in a sum (default: %(default)s)"
    )
    run.add_argument(
        "--epsilon",
        default="10",
        help="most this device spends on all tasks together, or 'any' to allow no noise (default: %(default)s)",
    )
    run.add_argument(
        "--example-epsilon",
        default="any",
        help="most that this device's own noise leaves to any of its examples; 'any' takes bundles without such noise "
        "(default: %(default)s)",
    )
    run.add_argument(
        "--local-noise", action="store_true", help="count on this device's own noise only, whatever other devices add"
    )
    run.add_argument(
        "--analytics", action="store_true", help="answer signed questions about the examples too, noised and masked"
    )
    run.add_argument(
        "--only-when",
        default="",
        metavar="WHAT",
        help=f"train only when, with commas between: {ONLY_WHEN} (default: always)",
    )
    run.add_argument(
        "--budget",
        default="",
        metavar="WHAT",
        help="what training may take, such as cpu_share=0.5,threads=2,wall_s=600,bytes_per_day=50e6,memory_mb=300",
    )
    run.add_argument(
        "--runtime",
        default="onnx",
        choices=("onnx", "torchscript", "litert", "executorch"),
        help="what trains, where it is installed and bundles have its format (default: %(default)s)",
    )
    run.add_argument(
        "--consent",
        default="",
        metavar="PURPOSE",
        help="the owner agrees to training for this purpose; kept until it is revoked, and then without effect",
    )
    run.add_argument("--until-done", action="store_true", help="end once the finished task's model is installed")
    run.add_argument("--verbose", action="store_true", help="log details")
    run.set_defaults(handler=_run)
    enrol = actions.add_parser("enrol", help="get this device's identity from a registrar, with a one-time token")
    enrol.add_argument("--home", type=Path, required=True, metavar="DIR", help="the device's folder")
    enrol.add_argument("--registrar", required=True, metavar="URL", help="https://host[:port]")
    enrol.add_argument("--ca", type=Path, required=True, metavar="FILE", help="the registrar's certificate, to pin")
    enrol.add_argument("--token", required=True, help="from the fleet's operator")
    enrol.add_argument("--id", default="", metavar="ID", help="the device's id (default: a random one)")
    enrol.set_defaults(handler=_enrol)
    renew = actions.add_parser("renew", help="renew this device's certificate before it expires")
    renew.add_argument("--home", type=Path, required=True, metavar="DIR", help="the device's folder")
    renew.add_argument(
        "--registrar", default="", metavar="URL", help="https://host[:port] (default: where it was enrolled)"
    )
    renew.add_argument("--force", action="store_true", help="though two thirds of its life are not over")
    renew.set_defaults(handler=_renew)
    status = actions.add_parser("status", help="show what is installed and what left the device")
    status.add_argument("--home", type=Path, required=True, metavar="DIR", help="the device's folder")
    status.set_defaults(handler=_status)
    upkeep_cli.add_actions(actions)


def _run(arguments: argparse.Namespace) -> int:
    from edge_sdk.client import EdgeClient
    from edge_sdk.clock import SystemClock
    from edge_sdk.logs import log_to_folder, log_to_terminal
    from edge_sdk.protocol.policy import DevicePolicy
    from edge_sdk.runtime.budget import parse_budget
    from edge_sdk.runtime.eligibility import eligibility_of
    from edge_sdk.runtime.enrolment import usable_identity
    from edge_sdk.runtime.home import IDENTITY_FOLDER, examples_file, require_name
    from edge_sdk.runtime.home_lock import only_process_in

    log_to_terminal(verbose=arguments.verbose)
    policy = DevicePolicy(
        min_reports=arguments.min_reports,
        epsilon_at_most=_epsilon(arguments.epsilon, "--epsilon"),
        example_epsilon_at_most=_epsilon(arguments.example_epsilon, "--example-epsilon"),
        local_noise=arguments.local_noise,
    )
    eligibility = eligibility_of(arguments.only_when)
    budget = parse_budget(arguments.budget)
    home: Path = arguments.home
    if not home.is_dir():
        raise ConfigError(f"there is no folder {home}", hint="name one that holds identity/ and signer.pub")
    population: str = arguments.population
    require_name(population, "a population")
    path = examples_file(home, population)
    with only_process_in(home):
        usable_identity(home / IDENTITY_FOLDER, now=SystemClock().now())  # what is wrong with it comes before all else
        if arguments.examples is not None:
            _import_examples(arguments.examples, path)
    with (
        EdgeClient(home, arguments.broker, policy=policy, runtime=arguments.runtime, budget=budget) as client,
        log_to_folder(home),
    ):
        examples = client.examples(population) if path.is_file() else None
        client.join(population, examples=examples, eligibility=eligibility, analytics=arguments.analytics)
        # A service has it in its command line for ever: that must not undo a revocation.
        if arguments.consent and client.consent.newest is None:
            client.consent.grant(purpose=arguments.consent, text_version=CONSENT_TEXT)
        print(
            f"device {client.device_id}: {0 if examples is None else len(examples)} examples, model version "
            f"{client.model(population).version or 'none'}; Ctrl-C stops it, starting it again resumes",
            flush=True,
        )
        if not client.consent.granted:
            print(f"  it only serves: {consent_line(client.consent.newest)}; see --consent", flush=True)
        client.run(until=lambda: arguments.until_done and client.is_complete(population))
    return _status(arguments)


def _enrol(arguments: argparse.Namespace) -> int:
    from edge_sdk.clock import SystemClock
    from edge_sdk.credentials import load_ca
    from edge_sdk.runtime.enrolment import enrol
    from edge_sdk.runtime.home import IDENTITY_FOLDER

    identity = enrol(
        arguments.home / IDENTITY_FOLDER,
        arguments.registrar,
        token=arguments.token,
        ca=load_ca(arguments.ca),
        now=SystemClock().now(),
        identity_id=arguments.id,
    )
    print(f"device {identity.id} is enrolled: {arguments.home / IDENTITY_FOLDER}")
    return 0


def _renew(arguments: argparse.Namespace) -> int:
    from edge_sdk.clock import SystemClock
    from edge_sdk.credentials import CERTIFICATE_FILE, load_certificate
    from edge_sdk.runtime.enrolment import finish_renewal, is_due, registrar_url, renew
    from edge_sdk.runtime.home import IDENTITY_FOLDER

    folder, now = arguments.home / IDENTITY_FOLDER, SystemClock().now()
    finish_renewal(folder)
    certificate = load_certificate(folder / CERTIFICATE_FILE)
    if not arguments.force and not is_due(certificate, now):
        print(f"valid until {certificate.not_valid_after_utc:%Y-%m-%d}; too early to renew")
        return 0
    url = arguments.registrar or registrar_url(folder)
    if not url:
        raise ConfigError(f"it is not known where {folder} was enrolled", hint="name it: --registrar https://host:port")
    identity = renew(folder, url, now=now)
    print(f"device {identity.id} has a new certificate")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from edge_sdk.credentials import CERTIFICATE_FILE, load_certificate
    from edge_sdk.identity import certificate_id
    from edge_sdk.runtime.device_store import DeviceStore, require_ledger
    from edge_sdk.runtime.enrolment import registrar_url
    from edge_sdk.runtime.home import DEVICE_FILE, IDENTITY_FOLDER

    home: Path = upkeep_cli.existing_home(arguments.home)
    file, path = home / IDENTITY_FOLDER / CERTIFICATE_FILE, home / DEVICE_FILE
    device, until = "no identity", ""
    # Only what is in it is wanted: neither an expired certificate nor none keeps the owner from the ledger.
    if file.exists():
        certificate, url = load_certificate(file), registrar_url(home / IDENTITY_FOLDER)
        device = f"device {certificate_id(certificate)}"
        until = f"{certificate.not_valid_after_utc:%Y-%m-%d}" + (f", renewed from {url}" if url else "")
    if not path.is_file():
        require_ledger(path)
        print(f"{device}: has never run; nothing left it")
        return 0
    with DeviceStore(path) as store:
        _print_status(device, until, store)
    return 0


def _print_status(device: str, until: str, store: DeviceStore) -> None:
    from edge_sdk.clock import SystemClock
    from edge_sdk.privacy.subsampled import sampled_epsilon
    from edge_sdk.protocol.policy import DevicePolicy
    from edge_sdk.runtime.budget import DAY_S
    from edge_sdk.runtime.consent import Consent

    consent = Consent(store, SystemClock()).newest
    participations = store.participations()
    versions = store.facts("installed_version/")
    # One population is the rule, and then its name says nothing.
    words = versions.values() if len(versions) < 2 else (f"{version} of {name}" for name, version in versions.items())
    print(f"{device}: model version {', '.join(words) or 'none'}")
    if until:
        print(f"  certificate until {until}")
    print(f"  {consent_line(consent)}")
    received, sent = store.traffic(int(SystemClock().now() // DAY_S))
    if received or sent:
        print(f"  today (UTC): {received:,} bytes received, {sent:,} sent")
    if not participations:
        print("  nothing left this device")
    if samplings := store.samplings():
        delta = DevicePolicy().delta_at_most
        cost = sampled_epsilon(samplings, delta)
        print(f"  by this device's own noise each example has cost epsilon {cost:.2f} at delta {delta:g}")
    for p in participations:
        epsilon = "no noise" if math.isinf(p.epsilon) else f"epsilon {p.epsilon:.2f} so far"
        if not p.at:
            print(f"  {p.task}, before the owner withdrew: {epsilon}")
            continue
        print(
            f"  {p.task} round {p.round_number}: sent {p.sent_bytes:,} masked bytes, "
            f"sha256 {p.sent_sha256.hex()[:16]}..., {epsilon}"
        )


def consent_line(newest: ConsentChange | None) -> str:
    """Whether the owner agrees to training, in words."""
    if newest is None:
        return "training is off: nobody consented yet"
    when = datetime.fromtimestamp(newest.at, UTC).isoformat(sep=" ", timespec="seconds")
    what = f"{newest.purpose} (text {newest.text_version})"
    return f"consent to: {what}, since {when}" if newest.granted else f"training is off: consent revoked at {when}"


def _epsilon(text: str, option: str) -> float:
    if text == "any":
        return math.inf
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # Infinity is asked for by its name only, so that nobody turns the noise off by mistake.
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{option} {text} is no budget", hint="give a positive number, or 'any' to allow no noise")
    return value


def _import_examples(source: Path, target: Path) -> None:
    from edge_sdk.training.example_caps import DEFAULT_MAX_ROWS
    from edge_sdk.training.examples import ExampleStore
    from edge_sdk.training.npz import read_examples

    if target.is_file():
        with ExampleStore(target) as store:
            if len(store):
                print(f"{target} holds {len(store)} examples; {source} is not added to them")
                return
    rows = read_examples(source)
    # Who names a file wants all of it.
    with ExampleStore.create_for(target, rows, max_rows=max(len(rows["y"]), DEFAULT_MAX_ROWS)) as store:
        store.add_many(rows)
