"""What a bundle says that training takes, against what it takes: a process's growth over 20 steps.

    python -m benchmarks.step_memory [MODEL ...]

A fresh process for each model of the zoo and each batch size opens the training graph, and then trains. The growth of
its resident set, from there to its peak, is what `Manifest.predicted_bytes` foretells. Linux only: the peak is reset
through /proc.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

MODELS = ("mlp", "lenet", "resnet", "mobilenet_v2", "lstm", "gpt", "lora", "vit")
OPTIMIZERS = ("sgd", "adam")
BATCHES = (1, 8, 32, 96)
STEPS = 20

_CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from edge_sdk.credentials import load_public_key
from edge_sdk.training.artifact import read_artifact
from edge_sdk.training.graphs import open_graph
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.parity import decode_parity
from edge_sdk.training.plan import TrainingPlan
def status(name):
    return int(open("/proc/self/status").read().split(name)[1].split()[0]) * 1024
artifact = read_artifact(sys.argv[1], signer=load_public_key(Path(sys.argv[2])))
batch, steps = int(sys.argv[3]), int(sys.argv[4])
known = next(decode_parity(artifact.manifest, artifact.part("parity"))).examples
examples = {name: np.resize(rows, (2 * batch, *rows.shape[1:])) for name, rows in known.items()}
checkpoint = artifact.checkpoint()
open_graph(artifact, "train")
before = status("VmRSS:")
open("/proc/self/clear_refs", "w").write("5")
plan = TrainingPlan(epochs=steps, batch_size=batch, learning_rate=1e-4, max_steps=steps)
BundleTrainer(artifact).train(checkpoint, examples, plan, seed=bytes(32))
print(json.dumps([status("VmHWM:") - before, artifact.manifest.predicted_bytes(batch)]))
"""


def main() -> None:
    """Measure and print."""
    names = sys.argv[1:] or MODELS
    ratios = []
    print(f"growth over {STEPS} steps, MB                     " + "".join(f"{f'batch {n}':>22}" for n in BATCHES))
    for name in names:
        for optimizer in OPTIMIZERS:
            found = list(_measured(name, optimizer))
            ratios += [predicted / taken for taken, predicted in found]
            cells = "".join(f"{f'{p / 1e6:.1f} / {m / 1e6:.1f} = {p / m:.2f}':>22}" for m, p in found)
            print(f"  {name:22}{optimizer:8}predicted / measured{cells}", flush=True)
    low, *_, high = sorted(ratios)
    print(f"predicted / measured: median {statistics.median(ratios):.2f}, {low:.2f} to {high:.2f}")


def _measured(name: str, optimizer: str) -> Iterator[tuple[int, int]]:
    """Bytes taken and predicted, by batch size."""
    from edge_sdk.signing import new_private_key, public_key_to_pem
    from exporters import export
    from exporters.examples.zoo import ZOO

    spec, key = ZOO[name](), new_private_key()
    with tempfile.TemporaryDirectory() as folder:
        bundle, pem = Path(folder, "model.edge"), Path(folder, "signer.pub")
        pem.write_bytes(public_key_to_pem(key.public_key()))
        export(
            spec.model,
            spec.loss,
            example_inputs=spec.example_inputs,
            example_target=spec.example_target,
            path=bundle,
            signer=key,
            optimizer=optimizer,
            learning_rate=spec.learning_rate if optimizer == "sgd" else None,
        )
        for batch in BATCHES:
            words = [bundle, pem, batch, STEPS]
            done = subprocess.run(
                [sys.executable, "-c", _CHILD, *(str(word) for word in words)], check=True, stdout=subprocess.PIPE
            )
            taken, predicted = json.loads(done.stdout)
            yield taken, predicted


if __name__ == "__main__":
    main()
