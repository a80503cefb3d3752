"""What privacy costs in accuracy, next to what it would cost if the server were trusted.

    python -m benchmarks.utility_table                      # prints the tables; half an hour on one core
    python -m benchmarks.utility_table --write docs/utility.md

Two tasks: the digits of the demo, and one that is generated, with as many devices as wanted that each have examples of
their own. Each over cohorts of several sizes, for several epsilons, three ways: with the devices' noise, through the
real encoding with its integer Skellam noise (only masks, which cancel to the bit, and messages are left out); with
Gaussian noise that a trusted server adds once to the sum of the same clipped updates, for the same epsilon; and without
noise. Every update is trained by the exported bundle. All randomness is drawn from seeds, so that the same machine
prints the same tables.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import generated_task
from coordinator.aggregation.accumulator import ModularSum
from coordinator.aggregation.server_optimizers import server_optimizer
from coordinator.privacy.calibration import PrivacyPlan, calibrate, gaussian_multiplier
from device_sim import job
from device_sim.baselines import (
    Aggregate,
    demo_plan,
    drawn_reporters,
    mean_of_clipped,
    train_centrally,
    train_federated,
)
from device_sim.datasets import FederatedDataset, federated_digits
from edge_sdk.privacy.encode import decode, encode
from edge_sdk.secagg.suite import digest
from edge_sdk.signing import new_private_key
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.layout import Vector
from edge_sdk.training.plan import TrainingPlan
from exporters.spec import ModelSpec

EPSILONS = (2.0, 4.0, 8.0, 10.0)
SEEDS = (0, 1, 2)
ROUNDS = 10
DROPOUT = 0.1
CORRUPT_SHARE = 0.05
GENERATED_CLIP_NORM = 0.5
GENERATED_PLAN = TrainingPlan(epochs=6, batch_size=32, learning_rate=0.3, max_steps=12)
GENERATED_OPTIMIZER = job.SERVER_OPTIMIZER
BEGIN, END = "<!-- begin of the generated tables -->", "<!-- end of the generated tables -->"


@dataclass(frozen=True, slots=True)
class Job:
    """A task and how it is trained.

    Attributes:
        title: for the table.
        artifact: the exported bundle.
        data: (devices, seed) -> the examples.
        cohorts: sizes to measure.
        clip_norm, plan, optimizer: of the training.
    """

    title: str
    artifact: Artifact = field(repr=False)
    data: Callable[[int, int], FederatedDataset]
    cohorts: tuple[int, ...]
    clip_norm: float
    plan: TrainingPlan
    optimizer: str


def make_jobs(folder: Path) -> tuple[Job, Job]:
    """Both tasks, their bundles exported to the folder."""
    from exporters.examples import digits

    return (
        Job(
            title="Digits",
            artifact=exported(folder / "digits.edge", digits.build),
            data=lambda devices, seed: federated_digits(devices, seed=seed),
            cohorts=(40, 100, 200, 500, 1000),
            clip_norm=job.CLIP_NORM,
            plan=demo_plan(),
            optimizer=job.SERVER_OPTIMIZER,
        ),
        Job(
            title="Generated",
            artifact=exported(folder / "generated.edge", generated_task.build),
            data=lambda devices, seed: generated_task.generated_data(devices, seed=seed),
            cohorts=(100, 400),
            clip_norm=GENERATED_CLIP_NORM,
            plan=GENERATED_PLAN,
            optimizer=GENERATED_OPTIMIZER,
        ),
    )


def exported(path: Path, build: Callable[[], ModelSpec]) -> Artifact:
    """The bundle of a model, as the demo exports it."""
    from exporters import export

    spec = build()
    return export(
        spec.model,
        spec.loss,
        example_inputs=spec.example_inputs,
        example_target=spec.example_target,
        path=path,
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


def central_mean(multiplier: float, clip_norm: float, seed: int) -> Aggregate:
    """The mean with the noise that a trusted server adds once to the sum of the clipped updates."""
    exact = mean_of_clipped(clip_norm)

    def aggregate(number: int, updates: Sequence[Vector]) -> Vector:
        mean = exact(number, updates)
        noise = np.random.default_rng([seed, number]).normal(0, multiplier * clip_norm / len(updates), mean.size)
        return np.asarray(mean + noise, np.float32)

    return aggregate


def accuracy(work: Job, devices: int, seed: int, aggregate: Aggregate) -> float:
    """The accuracy after the last round of one federation."""
    return train_federated(
        work.artifact,
        work.data(devices, seed),
        plan=work.plan,
        optimizer=server_optimizer(work.optimizer),
        reporters=drawn_reporters(devices, ROUNDS, DROPOUT, seed),
        aggregate=aggregate,
        seed=seed,
    )[-1]


def by_devices(work: Job, devices: int, epsilon: float, seed: int) -> Aggregate:
    """Noise of the devices, calibrated as `edge run create` does."""
    dimension = work.artifact.layout.size
    plan = calibrate(
        clip_norm=work.clip_norm,
        dimension=dimension,
        min_reports=job.min_reports(devices),
        max_devices=devices,
        rounds=ROUNDS,
        epsilon=epsilon,
        delta=job.DELTA,
        corrupt_share=CORRUPT_SHARE,
    )
    return private_mean(plan, dimension, work.clip_norm, seed)


def by_server(work: Job, devices: int, epsilon: float, seed: int) -> Aggregate:
    """Noise of a trusted server for the same epsilon."""
    multiplier = gaussian_multiplier(rounds=ROUNDS, epsilon=epsilon, delta=job.DELTA)
    return central_mean(multiplier, work.clip_norm, seed)


def table(work: Job, cohorts: Sequence[int], epsilons: Sequence[float], seeds: Sequence[int]) -> str:
    """A task's table in Markdown: medians over the seeds, and in brackets the worst."""
    lines = [
        f"{work.title}, {work.artifact.layout.size:,} parameters:",
        "",
        "| devices | noise | " + " | ".join(f"epsilon {epsilon:g}" for epsilon in epsilons) + " | none |",
        "|---:|---|" + "---:|" * (len(epsilons) + 1),
    ]
    for devices in cohorts:
        without = [accuracy(work, devices, seed, mean_of_clipped(work.clip_norm)) for seed in seeds]
        for name, noise in (("of devices", by_devices), ("of a trusted server", by_server)):
            cells = [
                _cell([accuracy(work, devices, seed, noise(work, devices, epsilon, seed)) for seed in seeds])
                for epsilon in epsilons
            ]
            own = noise is by_devices
            cells.append(_cell(without) if own else "")
            lines.append(f"| {f'{devices:,}' if own else ''} | {name} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    central = []
    for seed in seeds:
        data = work.data(max(cohorts), seed)
        central.append(train_centrally(work.artifact, data.train, data.test, seed=seed)[-1])
    lines += ["", f"Centralised training of the same model: {_cell(central)}."]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description="accuracy by task, cohort and epsilon")
    parser.add_argument("--write", type=Path, help="a Markdown file that holds the two marker lines")
    parser.add_argument("--cohorts", type=int, nargs="+", help="for both tasks")
    parser.add_argument("--epsilons", type=float, nargs="+", default=EPSILONS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        jobs = make_jobs(Path(folder))
    made = "\n\n".join(
        table(work, arguments.cohorts or work.cohorts, arguments.epsilons, arguments.seeds) for work in jobs
    )
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
