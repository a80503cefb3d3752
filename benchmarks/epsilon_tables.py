"""What privacy costs in noise, bits and bytes: the tables of docs/accounting.md.

    python -m benchmarks.epsilon_tables                 # prints them
    python -m benchmarks.epsilon_tables --write docs/accounting.md

Nothing is measured: every number follows from calibration and accounting, and a test holds the document to it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from coordinator.privacy.calibration import PrivacyPlan, calibrate, gaussian_multiplier
from edge_sdk.privacy.accounting import Release
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.protocol.policy import composed_epsilon
from edge_sdk.secagg.modular import packed_bytes

BEGIN, END = "<!-- begin of the generated tables -->", "<!-- end of the generated tables -->"
EPSILON, DELTA, ROUNDS, CORRUPT_SHARE = 10.0, 1e-5, 10, 0.05
CAP = ROUNDS + 1
DIMENSIONS = (1_370, 100_000, 1_000_000)
COHORTS = (20, 50, 200, 1_000, 10_000)


def default_plan(devices: int, dimension: int, **changes: object) -> PrivacyPlan:
    """The plan of `edge run create --devices N` with all other options left alone, but for the changes."""
    values: dict[str, object] = {
        "clip_norm": 1.0,
        "dimension": dimension,
        "min_reports": max(2, math.ceil(0.7 * devices)),
        "max_devices": devices,
        "rounds": CAP,
        "epsilon": EPSILON,
        "delta": DELTA,
        "corrupt_share": CORRUPT_SHARE,
    }
    return calibrate(**values | changes)  # type: ignore[arg-type]


def tables() -> str:
    """All tables, in Markdown."""
    return "\n\n".join("\n".join(lines) for lines in (_defaults(), _spent(), _multipliers(), _choices()))


def _defaults() -> Iterator[str]:
    yield f"The defaults (epsilon {EPSILON:g} at delta {DELTA:g} for {CAP} participations, 70% of the devices in the"
    yield f"smallest sum, {CORRUPT_SHARE:.0%} colluders): for each model size the bits of a coordinate, the size of a"
    yield "device's vector, and the 2-norm of the noise in the mean of the smallest sum, over the clip norm."
    yield ""
    yield "| devices | noise counted on | " + " | ".join(f"{d:,} parameters" for d in DIMENSIONS) + " |"
    yield "|---:|---:|" + "---|" * len(DIMENSIONS)
    for devices in COHORTS:
        plans = [default_plan(devices, dimension) for dimension in DIMENSIONS]
        cells = [_cell(devices, *pair) for pair in zip(plans, DIMENSIONS, strict=True)]
        yield f"| {devices:,} | of {plans[0].honest_reports:,} | " + " | ".join(cells) + " |"


def _cell(devices: int, plan: PrivacyPlan, dimension: int) -> str:
    reports = max(2, math.ceil(0.7 * devices))
    noise = plan.noise_multiplier * math.sqrt(dimension / (reports * plan.honest_reports))
    return f"{plan.bits} bits, {packed_bytes(dimension, plan.bits) / 1e3:,.1f} kB, noise {noise:.2g}"


def _spent() -> Iterator[str]:
    plan = default_plan(200, 1_370)
    release = Release(plan.mechanism, plan.norm_bound, 1_370, plan.device_variance, plan.honest_reports)
    counts = (1, 2, 3, 5, 8, CAP)
    yield "What a device has spent after so many participations, by the plan for 200 devices and 1,370 parameters:"
    yield ""
    yield "| participations | " + " | ".join(str(count) for count in counts) + " |"
    yield "|---|" + "---:|" * len(counts)
    for delta in (DELTA, 1e-6, 1e-8):
        spent = [composed_epsilon([(release, count)], delta) for count in counts]
        yield f"| epsilon at delta {delta:g} | " + " | ".join(f"{epsilon:.2f}" for epsilon in spent) + " |"


def _multipliers() -> Iterator[str]:
    epsilons, counts = (1.0, 2.0, 4.0, 8.0, 10.0), (1, 11, 51, 101, 1_001)
    yield f"The noise multiplier z that epsilon asks for at delta {DELTA:g}; a plan's is up to 2% more:"
    yield ""
    yield "| participations | " + " | ".join(f"epsilon {epsilon:g}" for epsilon in epsilons) + " |"
    yield "|---:|" + "---:|" * len(epsilons)
    for count in counts:
        found = (gaussian_multiplier(rounds=count, epsilon=epsilon, delta=DELTA) for epsilon in epsilons)
        yield f"| {count:,} | " + " | ".join(f"{z:.2f}" for z in found) + " |"


def _choices() -> Iterator[str]:
    devices, dimension = 1_000, 1_000_000
    make = partial(default_plan, devices, dimension)
    central = gaussian_multiplier(rounds=CAP, epsilon=EPSILON, delta=DELTA)
    reports = math.ceil(0.7 * devices)
    yield f"What each choice costs {devices:,} devices with {dimension:,} parameters; the noise is that in the smallest"
    yield "sum, as a multiple of what a server that is trusted with the sum would add to it:"
    yield ""
    yield "| choice | bits | noise multiplier | noise |"
    yield "|---|---:|---:|---:|"
    rows = [
        ("Skellam (default)", make()),
        ("discrete Gaussian", make(mechanism=Mechanism.DISCRETE_GAUSSIAN)),
        ("Skellam in 16 bits", make(bits=16)),
        ("discrete Gaussian in 16 bits", make(bits=16, mechanism=Mechanism.DISCRETE_GAUSSIAN)),
        ("adaptive clipping", make(adaptive_clipping=True)),
        ("no colluders", make(corrupt_share=0.0)),
        ("10% colluders", make(corrupt_share=0.1)),
        ("33% colluders", make(corrupt_share=0.33)),
        ("local noise", make(local_noise=True)),
    ]
    for name, plan in rows:
        noise = plan.noise_multiplier * math.sqrt(reports / plan.honest_reports) / central
        yield f"| {name} | {plan.bits} | {plan.noise_multiplier:.2f} | {noise:.2f} |"


def main() -> None:
    """Print, and write where asked."""
    parser = argparse.ArgumentParser(description="tables of epsilon and noise")
    parser.add_argument("--write", type=Path, help="a Markdown file that holds the two marker lines")
    arguments = parser.parse_args()
    made = tables()
    print(made)
    if arguments.write:
        before, _, rest = arguments.write.read_text(encoding="utf-8").partition(BEGIN)
        _, found, after = rest.partition(END)
        if not found:
            parser.error(f"{arguments.write} lacks the lines {BEGIN} and {END}")
        arguments.write.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
