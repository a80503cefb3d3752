"""When a personal model serves, and what it is worth: devices like the fleet, with labels of their own, and with a hand
of their own.

    python -m benchmarks.personal [DEVICES]

A global model is trained on half of the digits. Each device then draws examples from the other half, tunes and judges a
personal model as an app's device does (`LocalLearner.tune`, at the defaults and the learning rate of a round), and both
are measured on fresh examples of the same device.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DEVICES = 60
STORED, FRESH = (100, 300), 100
HOLDOUT = 0.3
LEARNING_RATE = 0.1

Rows = Mapping[str, NDArray[np.generic]]


def _like_the_fleet(rows: Rows, draw: np.random.Generator, count: int) -> Rows:
    chosen = draw.permutation(len(rows["y"]))[:count]
    return {name: array[chosen] for name, array in rows.items()}


def _labels_of_its_own(rows: Rows, draw: np.random.Generator, count: int) -> Rows:
    """Two of the ten digits, mostly."""
    weights = np.where(np.isin(rows["y"], draw.choice(10, 2, replace=False)), 20.0, 1.0)
    chosen = draw.choice(len(rows["y"]), count, replace=False, p=weights / weights.sum())
    return {name: array[chosen] for name, array in rows.items()}


def _a_hand_of_its_own(rows: Rows, draw: np.random.Generator, count: int) -> Rows:
    """Written sideways."""
    found = _like_the_fleet(rows, draw, count)
    return {"x": np.ascontiguousarray(np.rot90(found["x"], axes=(2, 3))), "y": found["y"]}


KINDS: Mapping[str, Callable[[Rows, np.random.Generator, int], Rows]] = {
    "like the fleet": _like_the_fleet,
    "labels of its own": _labels_of_its_own,
    "a hand of its own": _a_hand_of_its_own,
}


def main() -> None:
    """Print a table: by kind of device and stored examples, how often it wins and what that is worth."""
    from device_sim.datasets import digits
    from edge_sdk.inference.installed import InstalledModels
    from edge_sdk.inference.personal import PersonalModel
    from edge_sdk.signing import new_private_key, private_key_to_pem
    from edge_sdk.training.artifact import read_artifact
    from edge_sdk.training.bundle_trainer import BundleTrainer
    from edge_sdk.training.evaluation import evaluate
    from edge_sdk.training.examples import ExampleStore
    from edge_sdk.training.learner import TUNING, LocalLearner
    from edge_sdk.training.plan import TrainingPlan
    from exporters import export
    from exporters.examples.digits import build

    devices = int(sys.argv[1]) if len(sys.argv) > 1 else DEVICES
    train, test = digits()
    half = np.arange(len(train["y"])) % 2 == 0
    known = {name: rows[half] for name, rows in train.items()}
    others = {name: np.concatenate([train[name][~half], test[name]]) for name in train}
    with tempfile.TemporaryDirectory() as work:
        folder, key, spec = Path(work), new_private_key(), build()
        (folder / "signer.key").write_bytes(private_key_to_pem(key))
        (folder / "signer.key").chmod(0o600)
        bundle = export(
            spec.model,
            spec.loss,
            example_inputs=spec.example_inputs,
            example_target=spec.example_target,
            path=folder / "digits.edge",
            optimizer="sgd",
            name="digits",
            signer=folder / "signer.key",
        )
        del bundle
        artifact = read_artifact(folder / "digits.edge", signer=key.public_key())
        plan = TrainingPlan(epochs=30, batch_size=16, learning_rate=LEARNING_RATE)
        start = artifact.checkpoint()
        trained = start + BundleTrainer(artifact).train(start, known, plan, seed=bytes(32)).update
        accuracy = evaluate(artifact, trained, others).accuracy or 0.0
        print(f"global model: {accuracy:.1%} of unseen digits right; {devices} devices of each kind")
        print(f"{'device':20}{'stored':>8}{'wins':>8}{'global':>9}{'served':>9}{'where it wins':>15}{'worse':>8}")
        parts = {part.sha256: artifact.part(part.name) for part in artifact.manifest.parts}
        for kind, choose in KINDS.items():
            for stored in STORED:
                before, after, won = [], [], []
                for device in range(devices):
                    draw, home = np.random.default_rng([device, stored]), folder / f"{kind}-{stored}-{device}"
                    drawn = choose(others, draw, stored + FRESH)
                    # What was drawn once is not drawn again: who is judged on what it was tuned on always wins.
                    order = draw.permutation(stored + FRESH)
                    rows, fresh = (
                        {name: array[part] for name, array in drawn.items()}
                        for part in (order[:stored], order[stored:])
                    )
                    personal = PersonalModel(home / "personal")
                    models = InstalledModels(home / "models", signer=key.public_key())
                    models.install(artifact, 1, trained)
                    with ExampleStore.create_for(home / "taps.sqlite", rows, holdout=HOLDOUT) as examples:
                        examples.add_many(rows)
                        learner = LocalLearner(key.public_key(), examples, models, personal=personal)
                        learner._tuning = replace(TUNING, learning_rate=LEARNING_RATE)
                        found = learner.tune(lambda part: parts[part.sha256.hex()], lambda: False)
                    served = trained
                    if found is not None and found.wins:
                        served = artifact.layout.decode(personal.checkpoint(found))
                    before.append(evaluate(artifact, trained, fresh).accuracy or 0.0)
                    after.append(evaluate(artifact, served, fresh).accuracy or 0.0)
                    won.append(served is not trained)
                gains = [b - a for a, b, w in zip(before, after, won, strict=True) if w]
                worse = sum(gain < -0.01 for gain in gains)
                where = f"{statistics.mean(gains):+.1%}" if gains else "-"
                print(
                    f"{kind:20}{stored:8}{sum(won) / devices:8.0%}{statistics.mean(before):9.1%}"
                    f"{statistics.mean(after):9.1%}{where:>15}{worse / devices:8.0%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
