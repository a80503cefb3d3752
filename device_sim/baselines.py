"""What the private federation is compared with: the same bundle trained in one place, and federated without noise.

    python -m device_sim.baselines WORK/demo.json

Both run the bundle's own training step. The federation has the demo's devices, drawn dropouts, clipping and server
optimizer, in memory, and lacks only encoding, masks and noise. Knows nothing of messages.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from coordinator.aggregation.server_optimizers import ServerOptimizer, server_optimizer
from device_sim import job
from device_sim.datasets import Examples, FederatedDataset, federated_digits
from device_sim.faults import draw_vanishings
from device_sim.fleet import FleetFolders, device_ids, write_whole
from edge_sdk.credentials import load_public_key
from edge_sdk.errors import ConfigError, EdgeError
from edge_sdk.privacy.clip import clip
from edge_sdk.training.artifact import Artifact, read_artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.evaluation import evaluate
from edge_sdk.training.layout import Vector
from edge_sdk.training.plan import TrainingPlan

BASELINES_FILE = "baselines.json"

CENTRAL_EPOCHS = 60
CENTRAL_BATCH = 16
CENTRAL_LEARNING_RATE = 0.1
"""Of central training, at its first epoch; it falls to zero along half a cosine."""

Aggregate: TypeAlias = Callable[[int, Sequence[Vector]], Vector]
"""(round number from 1, the reporters' updates) -> their mean as the server learns it."""


@dataclass(frozen=True, slots=True)
class Baselines:
    """Accuracies on the held-out examples.

    Attributes:
        centralised: of training in one place, by epoch.
        noise_free: of the federation without noise, by round.
    """

    centralised: tuple[float, ...]
    noise_free: tuple[float, ...]


def train_centrally(artifact: Artifact, train: Examples, test: Examples, *, seed: int = 0) -> tuple[float, ...]:
    """Train the bundle's model on all examples in one place, and return its accuracy after each epoch.

    Raises:
        EdgeError: the bundle does not fit the examples, or training failed.
    """
    trainer = BundleTrainer(artifact)
    parameters = artifact.checkpoint()
    accuracies = []
    for epoch in range(CENTRAL_EPOCHS):
        rate = CENTRAL_LEARNING_RATE * (1 + math.cos(math.pi * epoch / CENTRAL_EPOCHS)) / 2
        plan = TrainingPlan(epochs=1, batch_size=CENTRAL_BATCH, learning_rate=rate)
        parameters = parameters + trainer.train(parameters, train, plan, seed=_seed(seed, epoch)).update
        accuracies.append(_accuracy(artifact, parameters, test))
    return tuple(accuracies)


def train_federated(
    artifact: Artifact,
    dataset: FederatedDataset,
    *,
    plan: TrainingPlan,
    optimizer: ServerOptimizer,
    reporters: Sequence[Sequence[int]],
    aggregate: Aggregate,
    seed: int = 0,
) -> tuple[float, ...]:
    """Federate in memory, and return the model's accuracy after each round.

    Args:
        artifact: the model, verified.
        dataset: a shard per device, and the held-out examples.
        plan: what each device does.
        optimizer: what the server does with the mean.
        reporters: for each round the devices, as places in `dataset.shards`, whose updates are in the mean.
        aggregate: makes the mean.
        seed: of the order of examples.

    Raises:
        EdgeError: the bundle does not fit the examples, or training failed.
    """
    trainer = BundleTrainer(artifact)
    parameters = artifact.checkpoint()
    state = optimizer.init(parameters)
    accuracies = []
    for number, places in enumerate(reporters, start=1):
        updates = [
            trainer.train(parameters, dataset.shards[place], plan, seed=_seed(seed, number, place)).update
            for place in places
        ]
        parameters, state = optimizer.apply(parameters, aggregate(number, updates), state)
        accuracies.append(_accuracy(artifact, parameters, dataset.test))
    return tuple(accuracies)


def mean_of_clipped(clip_norm: float) -> Aggregate:
    """The mean of clipped updates, in float64."""

    def aggregate(number: int, updates: Sequence[Vector]) -> Vector:
        clipped = np.stack([clip(update, clip_norm)[0] for update in updates])
        return np.asarray(clipped.mean(axis=0, dtype=np.float64), np.float32)

    return aggregate


def drawn_reporters(devices: int, rounds: int, dropout: float, seed: int) -> tuple[tuple[int, ...], ...]:
    """For each round the devices whose report arrives, with the dropouts that the demo draws from this seed.

    A device that vanishes after its report is still in the mean, and one that vanishes never comes back in that round.
    """
    ids = device_ids(devices)
    gone = {
        (vanishing.round_number, vanishing.device_id)
        for vanishing in draw_vanishings(ids, rounds, dropout, seed)
        if vanishing.stage != "unmasking"
    }
    return tuple(
        tuple(place for place, device_id in enumerate(ids) if (number, device_id) not in gone)
        for number in range(1, rounds + 1)
    )


def demo_plan() -> TrainingPlan:
    """What the digits job asks of each device."""
    training = job.TRAINING
    return TrainingPlan(
        training.epochs, training.batch_size, training.learning_rate, training.max_steps, training.proximal
    )


def compare(artifact: Artifact, *, devices: int, rounds: int, dropout: float, seed: int) -> Baselines:
    """Both baselines of a demo.

    Args:
        artifact: its bundle.
        devices, rounds, dropout, seed: its settings.
    """
    dataset = federated_digits(devices, seed=seed)
    return Baselines(
        centralised=train_centrally(artifact, dataset.train, dataset.test, seed=seed),
        noise_free=train_federated(
            artifact,
            dataset,
            plan=demo_plan(),
            optimizer=server_optimizer(job.SERVER_OPTIMIZER),
            reporters=drawn_reporters(devices, rounds, dropout, seed),
            aggregate=mean_of_clipped(job.CLIP_NORM),
            seed=seed,
        ),
    )


def load_baselines(path: Path) -> Baselines | None:
    """What `main` wrote, or None where it has written nothing yet.

    Raises:
        ConfigError: the file holds something else.
    """
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Baselines(tuple(map(float, data["centralised"])), tuple(map(float, data["noise_free"])))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} holds no baselines: {error}", hint="delete it and run the demo again") from error


def main() -> int:
    """Run from the command line: read a demo's settings, and write the baselines beside them."""
    marker = Path(sys.argv[1])
    try:
        settings = json.loads(marker.read_text(encoding="utf-8"))
        folders = FleetFolders(marker.parent)
        artifact = read_artifact(folders.bundle, signer=load_public_key(folders.signer_public))
        names = ("devices", "rounds", "dropout", "seed")
        found = compare(artifact, **{name: settings[name] for name in names})
        write_whole(marker.parent / BASELINES_FILE, json.dumps(asdict(found)))
    except EdgeError as error:
        print(f"baselines: {error}. {error.hint}", file=sys.stderr)
        return 2
    return 0


def _accuracy(artifact: Artifact, parameters: Vector, test: Examples) -> float:
    found = evaluate(artifact, parameters, test)
    if found.accuracy is None:
        raise ConfigError("the model's targets are no class labels, so it has no accuracy")
    return found.accuracy


def _seed(*parts: int) -> bytes:
    return b"".join(part.to_bytes(8, "little") for part in parts)


if __name__ == "__main__":
    sys.exit(main())
