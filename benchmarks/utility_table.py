"""What privacy costs in accuracy: the digits job over cohorts of several sizes and for several epsilons.

    python benchmarks/utility_table.py                      # prints the table; about eight minutes on one core
    python benchmarks/utility_table.py --write docs/utility.md

Every update is trained by the exported bundle and goes through the real encoding with its integer Skellam noise; only
masks, which cancel to the bit, and messages are left out. All randomness is drawn from seeds, so that the
same machine prints the same table.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from coordinator.aggregation.accumulator import ModularSum
from coordinator.aggregation.server_optimizers import server_optimizer
from coordinator.privacy.calibration import PrivacyPlan, calibrate
from device_sim import job
from device_sim.baselines import (
    Aggregate,
    demo_plan,
    drawn_reporters,
    mean_of_clipped,
    train_centrally,
    train_federated,
)
from device_sim.datasets import digits, federated_digits
from edge_sdk.privacy.encode import decode, encode
from edge_sdk.secagg.suite import digest
from edge_sdk.signing import new_private_key
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.layout import Vector

COHORTS = (40, 100, 200, 500, 1000)
EPSILONS = (2.0, 4.0, 8.0, 10.0, math.inf)
SEEDS = (0, 1, 2)
ROUNDS = 10
DROPOUT = 0.1
CORRUPT_SHARE = 0.05
BEGIN, END = "<!-- begin of the generated table -->", "<!-- end of the generated table -->"


def digits_bundle(folder: Path) -> Artifact:
    """Export the digits model as the demo does."""
    from exporters import export
    from exporters.examples.digits import build

    spec = build()
    return export(
        spec.model,
        spec.loss,
        example_inputs=spec.example_inputs,
        example_target=spec.example_target,
        path=folder / "digits.edge",
        signer=new_private_key(),
    )


def private_mean(plan: PrivacyPlan, dimension: int, clip_norm: float, seed: int) -> Aggregate:
    """The mean as the coordinator decodes it from the sum of all encodings, noise included."""
    parameters = plan.parameters(dimension, clip_norm)

    def aggregate(number: int, updates: Sequence[Vector]) -> Vector:
        ctx = digest(b"utility", *(value.to_bytes(8, "little") for value in (seed, number)))
        total = ModularSum.empty(parameters.length, parameters.bits)
        for place, update in enumerate(updates):
            # Simulation: a device's entropy comes from its operating system.
            entropy = digest(ctx, place.to_bytes(8, "little"))
            total = total.plus(encode(update, parameters, ctx, entropy))
        return decode(total.total(), parameters, ctx, total.count).mean

    return aggregate


def accuracy(artifact: Artifact, devices: int, epsilon: float, seed: int) -> float:
    """The accuracy after the last round of one federation."""
    dimension = artifact.layout.size
    if math.isinf(epsilon):
        aggregate = mean_of_clipped(job.CLIP_NORM)
    else:
        plan = calibrate(
            clip_norm=job.CLIP_NORM,
            dimension=dimension,
            min_reports=job.min_reports(devices),
            max_devices=devices,
            rounds=ROUNDS,
            epsilon=epsilon,
            delta=job.DELTA,
            corrupt_share=CORRUPT_SHARE,
        )
        aggregate = private_mean(plan, dimension, job.CLIP_NORM, seed)
    return train_federated(
        artifact,
        federated_digits(devices, seed=seed),
        plan=demo_plan(),
        optimizer=server_optimizer(job.SERVER_OPTIMIZER),
        reporters=drawn_reporters(devices, ROUNDS, DROPOUT, seed),
        aggregate=aggregate,
        seed=seed,
    )[-1]


def table(artifact: Artifact, cohorts: Sequence[int], epsilons: Sequence[float], seeds: Sequence[int]) -> str:
    """The table in Markdown: medians over the seeds, and in brackets the worst."""
    central = [train_centrally(artifact, *digits(seed=seed), seed=seed)[-1] for seed in seeds]
    names = ["no noise" if math.isinf(epsilon) else f"epsilon {epsilon:g}" for epsilon in epsilons]
    lines = ["| devices | " + " | ".join(names) + " |", "|---:|" + "---:|" * len(names)]
    for devices in cohorts:
        cells = []
        for epsilon in epsilons:
            found = [accuracy(artifact, devices, epsilon, seed) for seed in seeds]
            cells.append(_cell(found))
        lines.append(f"| {devices:,} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    lines += ["", f"Centralised training of the same model: {_cell(central)}."]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description="accuracy of the digits job by cohort and epsilon")
    parser.add_argument("--write", type=Path, help="a Markdown file that holds the two marker lines")
    parser.add_argument("--cohorts", type=int, nargs="+", default=COHORTS)
    parser.add_argument("--epsilons", type=float, nargs="+", default=EPSILONS, help="inf for no noise")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        artifact = digits_bundle(Path(folder))
    made = table(artifact, arguments.cohorts, arguments.epsilons, arguments.seeds)
    print(f"\n{made}")
    if arguments.write:
        before, _, rest = arguments.write.read_text(encoding="utf-8").partition(BEGIN)
        _, found, after = rest.partition(END)
        if not found:
            parser.error(f"{arguments.write} lacks the lines {BEGIN} and {END}")
        arguments.write.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")


def _cell(accuracies: Sequence[float]) -> str:
    return f"{statistics.median(accuracies):.1%} ({min(accuracies):.1%})"


if __name__ == "__main__":
    main()
