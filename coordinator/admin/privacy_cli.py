"""`edge privacy plan|report|verify`: what a run will cost and promise, and what one cost.

Light to import: everything heavy is inside the handlers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.admin.cli import DEFAULT_HOME, existing_home
from coordinator.admin.run_options import add_run_options, config_of_options
from edge_sdk.errors import ConfigError

if TYPE_CHECKING:
    from coordinator.privacy.forecast import Forecast
    from edge_sdk.cli import Subparsers

_REPORT, _SIGNATURE = "report.json", "report.sig"
_DOMAIN = b"edge-sdk/privacy-report/1\0"
_REPORT_MAX_BYTES = 64 << 20
_UNIT = 1000.0  # bytes in a kB, as the other tables have it


def add_privacy_verb(subparsers: Subparsers) -> None:
    """Declare `edge privacy`."""
    parser = subparsers.add_parser("privacy", help="what a run costs and promises: before, and after")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    plan = actions.add_parser(
        "plan",
        usage="edge privacy plan (--dimension N | --bundle FILE) --devices N [OPTION ...]",
        help="what a configuration costs and promises; runs nothing",
        description="Takes the options of `edge run create` and tells what they would cost and promise.",
    )
    size = plan.add_mutually_exclusive_group(required=True)
    size.add_argument("--dimension", type=int, metavar="N", help="trained parameters")
    size.add_argument("--bundle", type=Path, metavar="FILE", help="a .edge bundle to take them from")
    add_run_options(plan)
    plan.set_defaults(handler=_plan)
    report = actions.add_parser("report", help="write an auditor's report of a run, signed by the coordinator")
    report.add_argument("task", metavar="NAME", help="the run's name")
    report.add_argument(
        "--home", type=Path, default=DEFAULT_HOME, metavar="DIR", help="work folder (default: %(default)s)"
    )
    report.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    report.set_defaults(handler=_report)
    verify = actions.add_parser("verify", help="check a report: its signature, its ledger and what that cost")
    verify.add_argument("report", type=Path, metavar="DIR", help="the report's folder")
    verify.add_argument(
        "--registrar", type=Path, required=True, metavar="FILE", help="the registrar's certificate, from its owner"
    )
    verify.set_defaults(handler=_verify)


def _plan(arguments: argparse.Namespace) -> int:
    from coordinator.privacy.forecast import forecast
    from edge_sdk.training.artifact import inspect_artifact

    dimension = arguments.dimension
    if arguments.bundle is not None:
        dimension = inspect_artifact(arguments.bundle).layout.size
    if dimension < 1:
        raise ConfigError(f"--dimension is {dimension}", hint="give the number of trained parameters")
    config = config_of_options(arguments, task="plan", population="plan", dimension=dimension)
    for line in forecast_lines(forecast(config)):
        print(line)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from cryptography import x509

    from coordinator.privacy.report import EndedRound, encode_report, make_report, report_text
    from coordinator.service.tasks import list_rounds, read_ledger, task_config
    from coordinator.store.database import Database
    from edge_sdk.clock import SystemClock
    from edge_sdk.credentials import NewFile, certificate_files, load_identity, write_folder
    from edge_sdk.protocol.messages import AbandonReason

    home, now = existing_home(arguments.home), SystemClock().now()
    identity = load_identity(home / "identity", role="coordinator", now=now)
    database = Database.in_folder(home)
    config = task_config(database, arguments.task)
    rounds = [
        EndedRound(
            view.number,
            view.phase,
            "" if view.reason is AbandonReason.NONE else view.reason.name.lower(),
            view.reported,
            view.declined,
        )
        for view in list_rounds(database, arguments.task)
    ]
    ledger = read_ledger(database, arguments.task)
    report = make_report(config, ledger, rounds, coordinator=identity.id, now=now)
    content = encode_report(report)
    certificate = x509.load_der_x509_certificate(identity.certificate_der)
    write_folder(
        arguments.out,
        [
            NewFile(_REPORT, content),
            NewFile("report.md", report_text(report).encode()),
            NewFile(_SIGNATURE, identity.sign(_DOMAIN + content)),
            *certificate_files(certificate, identity.ca),
        ],
    )
    print(f"{arguments.out}: {len(ledger)} releases of {config.task}, signed by {identity.id}; read its report.md")
    print(f"  check it: edge privacy verify {arguments.out} --registrar {home / 'identity' / 'registrar.crt'}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from cryptography.hazmat.primitives import serialization

    from coordinator.privacy.report import verify_report
    from edge_sdk.credentials import CERTIFICATE_FILE, load_ca, load_certificate
    from edge_sdk.identity import verify_certificate
    from edge_sdk.signing import verify_raw

    folder: Path = arguments.report
    content, signature = _read(folder / _REPORT), _read(folder / _SIGNATURE)
    certificate = load_certificate(folder / CERTIFICATE_FILE)
    # At the time it began to be valid: a report outlives its author's certificate.
    signer = verify_certificate(
        certificate.public_bytes(serialization.Encoding.DER),
        load_ca(arguments.registrar),
        "coordinator",
        certificate.not_valid_before_utc.timestamp(),
    )
    if not verify_raw(signer.public_key, signature, _DOMAIN + content):
        raise ConfigError(
            f"{folder / _REPORT} was not signed by {signer.id}, or was changed since",
            hint="ask the coordinator's operator for the report again",
        )
    audit = verify_report(content)
    print(f"{audit.run}: {audit.releases} releases, signed by {signer.id}")
    print(f"  epsilon {audit.epsilon:.4g} by dp-accounting, {audit.device_epsilon:.4g} by the devices' accounting,")
    print(f"  both at delta {audit.delta:g}, computed anew from the plans in the ledger")
    complaints = audit.complaints if signer.id == audit.coordinator else (*audit.complaints, "its author is another")
    for complaint in complaints:
        print(f"  WRONG: {complaint}")
    return 1 if complaints else 0


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_REPORT_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}", hint="name a report's folder") from error
    if len(content) > _REPORT_MAX_BYTES:
        raise ConfigError(f"{path} is too large to be a report", hint="name a report's folder")
    return content


def forecast_lines(found: Forecast) -> list[str]:
    """The forecast in words, no line longer than 80 columns."""
    config, privacy, encoding = found.config, found.config.privacy, found.config.encoding
    traffic = found.traffic
    lines = [
        f"{config.goal_count:,} devices, {config.dimension:,} trained parameters, {config.rounds} rounds",
        "",
        "secure aggregation",
        f"  smallest sum released      {config.min_reports:,} devices",
        f"  colluders withstood        {found.colluders:,} of {config.goal_count:,}, together with the coordinator",
        f"  dropouts survived          {privacy.dropout_share:.0%} after advertise_keys",
        f"  neighbours k, threshold t  {found.graph.degree}, {found.graph.threshold} with all devices; "
        f"{found.smallest_graph.degree}, {found.smallest_graph.threshold} with the fewest",
        "  one set of survivors       "
        + (f"{found.quorum} signatures of a committee of {found.committee}" if found.quorum else "by the threshold"),
        f"  modulus                    2^{encoding.bits}",
        "",
        "privacy (unit: one device)",
    ]
    if found.epsilons:
        told = [f"{epsilon:.2f} after {count}" for count, epsilon in found.epsilons]
        lines += [
            f"  mechanism                  {encoding.mechanism.name.lower().replace('_', ' ')}, "
            f"noise multiplier {encoding.noise_multiplier:.3f}",
            f"  noise counted on           {_whose(found)}, variance {encoding.device_variance:,} each",
            f"  epsilon at delta {privacy.delta:<9g} {encoding.epsilon:.2f} for at most "
            f"{privacy.participation_cap} participations",
            *_wrapped("                             ", told),
        ]
    else:
        lines += ["  NO NOISE: whoever sees the models learns the exact sums of the updates"]
    if privacy.adaptive_clipping is not None:
        lines.append(
            f"  clip norm                  {privacy.clip_norm:g} at first, then the norm that "
            f"{privacy.adaptive_clipping.quantile:.0%} are within"
        )
    lines += ["", f"utility, with the fewest reports ({config.min_reports:,})"]
    if found.central_ratio is not None:
        lines += [
            f"  noise / signal             {found.noise_to_signal:.2f}; on the digits task that cost",
            *_wrapped("                             ", found.utility.split(", ")),
            f"  price of not trusting      {found.central_ratio:.2f} times the noise of a trusted server",
        ]
    else:
        lines += ["  noise / signal             0"]
    if found.groups > 1:
        lines += [
            f"  robust combination         of {found.groups} rounds with different devices:",
            f"                             {found.robust_ratio:.2f} times the noise of one cohort of all of them",
        ]
    lines += ["", "bytes of one device in a round, without the headers of the network"]
    for way, rows, total in (
        ("up", traffic.up, traffic.up_bytes),
        ("down", traffic.down, traffic.down_bytes),
    ):
        lines += [f"  {way:26s} {total / _UNIT:,.1f} kB"]
        lines += _wrapped("                             ", [f"{name} {size / _UNIT:,.1f}" for name, size in rows])
    return lines


def _whose(found: Forecast) -> str:
    if found.config.privacy.local_noise:
        return "a device's own only"
    return f"of {found.honest_reports:,} honest devices"


def _wrapped(indent: str, words: list[str]) -> list[str]:
    """Words with commas between, in lines of at most 80 columns."""
    import textwrap

    return textwrap.wrap(", ".join(words), 80, initial_indent=indent, subsequent_indent=indent)
