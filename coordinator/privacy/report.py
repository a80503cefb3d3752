"""An auditor's report of a run: what was promised, released and refused, in one signed document.

    report.json       everything, canonical JSON: what `verify_report` reads
    report.md         the same for people
    report.sig        the coordinator's signature over report.json, raw r||s
    identity.crt      the coordinator's certificate
    registrar.crt     its registrar's

The ledger is told as the plans that devices signed up to, not as epsilons, so that an auditor computes the cost anew:
`verify_report` does, with the coordinator's accountant and with the one that devices use.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from coordinator.config import TaskConfig
from coordinator.privacy import accountant
from coordinator.privacy.ledger import ReleaseEvent
from edge_sdk.errors import ConfigError, EdgeError, StoreError
from edge_sdk.protocol import codec
from edge_sdk.protocol.messages import Plan
from edge_sdk.protocol.policy import composed_epsilon, release_of
from edge_sdk.secagg.graph import CORRECTNESS_BITS, SECURITY_BITS

FORMAT = 1

ASSUMPTIONS = (
    "The registrar issues certificates to real devices only and does not work for the coordinator.",
    "No more than the stated share of a round's devices work with the coordinator.",
    "Devices run the SDK unchanged: each clips its update, draws its own noise and counts its participations.",
    "X25519, AES-128, ChaCha20-Poly1305, SHA-256 and ECDSA P-256 hold.",
    "No amplification is claimed for devices being chosen, since they choose themselves.",
)

NOT_PROMISED = (
    "That nobody knows that or when a device took part.",
    "That another device clipped its update: under masks nobody can check that.",
    "That several devices of one person count as one: the unit is the device.",
    "That every sum is of the smallest size or more in each of the subgroups a lying coordinator may form: see "
    "PROTOCOL.md, section 15, for the chance in large cohorts.",
)


@dataclass(frozen=True, slots=True)
class ReleasedRound:
    """A ledger entry and the round that it is of.

    Attributes:
        number, rid: the round.
        plan: its plan as devices got it, FlatBuffers.
        event: what the coordinator's ledger holds.
    """

    number: int
    rid: bytes
    plan: bytes
    event: ReleaseEvent


@dataclass(frozen=True, slots=True)
class EndedRound:
    """A round as the report lists it; `declined` counts devices by the reason for which they refused its plan."""

    number: int
    phase: str
    reason: str
    reports: int
    declined: dict[str, int]


@dataclass(frozen=True, slots=True)
class Audit:
    """What `verify_report` found."""

    run: str
    coordinator: str
    releases: int
    epsilon: float
    device_epsilon: float
    delta: float
    complaints: tuple[str, ...]


def make_report(
    config: TaskConfig,
    released: Sequence[ReleasedRound],
    rounds: Sequence[EndedRound],
    *,
    coordinator: str,
    now: float,
) -> dict[str, Any]:
    """Return the report as plain data.

    Args:
        config: the run's.
        released: its ledger, in order.
        rounds: all of its rounds, in order.
        coordinator: the id of who makes the report.
        now: seconds since the epoch.
    """
    privacy, encoding = config.privacy, config.encoding
    agreed = config.agreement(config.goal_count)
    plans = [codec.decode(Plan, one.plan) for one in released]
    events = [one.event for one in released]
    return {
        "format": FORMAT,
        "run": config.task,
        "population": config.population,
        "coordinator": coordinator,
        "made_at": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
        "promise": {
            "unit": "device: neighbouring runs differ in all that one device contributed",
            "mechanism": encoding.mechanism.name.lower(),
            "epsilon": _number(encoding.epsilon),
            "epsilon_budget": _number(privacy.epsilon),
            "delta": privacy.delta,
            "participations_at_most": privacy.participation_cap,
            "clip_norm": privacy.clip_norm,
            "clip_quantile": None if privacy.adaptive_clipping is None else privacy.adaptive_clipping.quantile,
            "local_noise": privacy.local_noise,
            "noise_multiplier": encoding.noise_multiplier,
        },
        "secure_aggregation": {
            "smallest_sum_devices": config.min_reports,
            "cohort_devices": config.goal_count,
            "corrupt_share": privacy.corrupt_share,
            "dropout_share": privacy.dropout_share,
            "degree": agreed.graph.degree,
            "threshold": agreed.graph.threshold,
            "consistency": privacy.consistency.name.lower(),
            "committee": agreed.committee,
            "quorum": agreed.quorum,
            "security_bits": SECURITY_BITS,
            "correctness_bits": CORRECTNESS_BITS,
        },
        "spent": {
            "releases": len(released),
            "epsilon": _number(accountant.epsilon(events, privacy.delta, participations=privacy.participation_cap)),
            "epsilon_by_device_accounting": _number(_by_devices(plans, privacy.delta, privacy.participation_cap)),
            "delta": privacy.delta,
        },
        "accountants": {
            "coordinator": f"dp-accounting {version('dp-accounting')}, Renyi",
            "device": f"edge-sdk {version('edge-sdk')}, Renyi, independent of the former",
        },
        "assumptions": list(ASSUMPTIONS),
        "not_promised": list(NOT_PROMISED),
        "ledger": [
            {
                "round": one.number,
                "rid": one.rid.hex(),
                "reports": one.event.reports,
                "event": json.loads(one.event.to_json()),
                "plan": one.plan.hex(),
                "plan_sha256": hashlib.sha256(one.plan).hexdigest(),
            }
            for one in released
        ],
        "rounds": [dataclasses.asdict(one) for one in rounds],
        "rejected_plans": dict(sorted(_declined(rounds).items())),
    }


def encode_report(report: dict[str, Any]) -> bytes:
    """Return the report as canonical JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(report, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def verify_report(content: bytes) -> Audit:
    """Compute a report's costs anew from its plans and compare; whose report it is, is for the caller to check.

    Raises:
        ConfigError: it is no such report.
    """
    try:
        report = json.loads(content)
        if report["format"] != FORMAT:
            raise ConfigError(f"a report of format {report['format']}; this version reads {FORMAT}")
        delta, cap = float(report["spent"]["delta"]), int(report["promise"]["participations_at_most"])
        complaints, events, plans = [], [], []
        for entry in report["ledger"]:
            event, plan = ReleaseEvent.from_json(json.dumps(entry["event"])), _plan_of(entry)
            complaints += _complaints(report, entry, event, plan)
            events.append(event)
            plans.append(plan)
        found = accountant.epsilon(events, delta, participations=cap)
        by_devices = _by_devices(plans, delta, cap)
        for key, value in (("epsilon", found), ("epsilon_by_device_accounting", by_devices)):
            told = report["spent"][key]
            if not math.isclose(math.inf if told is None else told, value, rel_tol=1e-6):
                complaints.append(f"{key} is told as {told}, but the ledger makes it {value:.6g}")
        budget = report["promise"]["epsilon_budget"]
        if budget is not None and found > budget:
            complaints.append(f"the releases cost {found:.4g}, more than the budget of {budget:g}")
        return Audit(report["run"], report["coordinator"], len(events), found, by_devices, delta, tuple(complaints))
    except (KeyError, TypeError, ValueError, AttributeError, StoreError) as error:
        raise ConfigError(
            f"the report cannot be read: {error!r}", hint="ask its author for an undamaged one"
        ) from error


def _plan_of(entry: dict[str, Any]) -> Plan:
    try:
        return codec.decode(Plan, bytes.fromhex(entry["plan"]))
    except EdgeError as error:
        raise ValueError(str(error)) from error


def _complaints(report: dict[str, Any], entry: dict[str, Any], event: ReleaseEvent, plan: Plan) -> list[str]:
    where, release = f"round {entry['round']}", release_of(plan)
    found = []
    if hashlib.sha256(bytes.fromhex(entry["plan"])).hexdigest() != entry["plan_sha256"]:
        found.append(f"{where}: the plan's digest does not match")
    if plan.task != report["run"] or plan.rid.hex() != entry["rid"]:
        found.append(f"{where}: the plan is of another round")
    if event != ReleaseEvent.of(release, event.reports):
        found.append(f"{where}: the ledger's noise is not the plan's")
    if event.reports < plan.min_reports:
        found.append(f"{where}: {event.reports} reports were released, the plan promised {plan.min_reports} or more")
    return found


def _by_devices(plans: Sequence[Plan], delta: float, cap: int) -> float:
    """Return what the plans cost a device that followed the costliest of them, by its own accounting."""
    # Plans of a run differ in round and model only, but an auditor may not believe that.
    kinds = Counter(release_of(plan) for plan in plans)
    return composed_epsilon([(release, min(count, cap)) for release, count in kinds.items()], delta)


def _declined(rounds: Sequence[EndedRound]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in rounds:
        total.update(one.declined)
    return total


def _clip_norm(promise: dict[str, Any]) -> str:
    norm, quantile = promise["clip_norm"], promise["clip_quantile"]
    return f"{norm:g}" if quantile is None else f"{norm:g} at first, then the norm that {quantile:.0%} are within"


def _number(value: float) -> float | None:
    """Return a number that JSON has; infinity, for no promise at all, is null."""
    return value if math.isfinite(value) else None


def report_text(report: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    promise, spent, sums = report["promise"], report["spent"], report["secure_aggregation"]
    told = "none: noise was off" if promise["epsilon"] is None else f"{promise['epsilon']:.4g}"
    cost = "unbounded" if spent["epsilon"] is None else f"{spent['epsilon']:.4g}"
    own = spent["epsilon_by_device_accounting"]
    committee = f"{sums['quorum']} signatures of a committee of {sums['committee']}"
    held_by = committee if sums["quorum"] else "the threshold"
    lines = [
        f"# Privacy report of the run {report['run']}",
        "",
        f"Made by coordinator {report['coordinator']} at {report['made_at']} for population {report['population']}.",
        "Check it with `edge privacy verify`: signature, ledger and costs.",
        "",
        "## What was promised",
        "",
        "| | |",
        "|---|---|",
        f"| unit | {promise['unit']} |",
        f"| mechanism | {promise['mechanism']}, noise multiplier {promise['noise_multiplier']:.4g} |",
        f"| epsilon | {told} at delta {promise['delta']:g}, for {promise['participations_at_most']} participations |",
        f"| noise counted on | of {'each device alone' if promise['local_noise'] else 'all honest devices'} |",
        f"| clip norm | {_clip_norm(promise)} |",
        f"| smallest sum | {sums['smallest_sum_devices']} of {sums['cohort_devices']} devices |",
        f"| graph | {sums['degree']} neighbours, {sums['threshold']} shares rebuild a secret |",
        f"| one set of survivors | held by {held_by} |",
        f"| withstands | {sums['corrupt_share']:.0%} colluders, {sums['dropout_share']:.0%} dropouts |",
        f"| levels | security 2^-{sums['security_bits']}, correctness 2^-{sums['correctness_bits']} |",
        "",
        "## What was spent",
        "",
        f"{spent['releases']} sums were released. Together they cost a device that took part in as many as it may:",
        "",
        "| accountant | epsilon |",
        "|---|---:|",
        f"| {report['accountants']['coordinator']} | {cost} |",
        f"| {report['accountants']['device']} | {'unbounded' if own is None else f'{own:.4g}'} |",
        "",
        "## Rounds",
        "",
        "| round | end | reports | devices that refused the plan |",
        "|---:|---|---:|---|",
    ]
    for one in report["rounds"]:
        refused = ", ".join(f"{reason} {count}" for reason, count in sorted(one["declined"].items()))
        end = " ".join(text for text in (one["phase"], one["reason"]) if text)
        lines.append(f"| {one['number']} | {end} | {one['reports']} | {refused} |")
    for title, key in (("Assumptions", "assumptions"), ("Not promised", "not_promised")):
        lines += ["", f"## {title}", "", *(f"- {text}" for text in report[key])]
    return "\n".join(lines) + "\n"
