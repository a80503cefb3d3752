"""Training and serving on this device: the agent's port, filled with the example store and ONNX Runtime.

Knows nothing of rounds, messages or brokers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray

from edge_sdk.errors import ArtifactError, TrainingError
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.runtime.agent import TrainingJob
from edge_sdk.signing import public_key_from_pem, public_key_to_pem
from edge_sdk.training.artifact import Artifact, parse_artifact
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.onnx_sessions import runtime_version
from edge_sdk.training.onnx_trainer import OnnxTrainer
from edge_sdk.training.parity import require_parity
from edge_sdk.training.plan import TrainingPlan


class LocalLearner:
    """Trains on the device's own examples and serves the newest model.

    Args:
        signer: the pinned public key that bundles must be signed with.
        examples: the app's examples; None on a device that only serves.
        models: installed models.
    """

    def __init__(
        self, signer: ec.EllipticCurvePublicKey, examples: ExampleStore | None, models: InstalledModels
    ) -> None:
        self._signer_pem = public_key_to_pem(signer)
        self._examples = examples
        self._models = models

    @property
    def runtime_version(self) -> str:
        """What runs the graphs, such as "onnxruntime 1.31.1"."""
        return f"onnxruntime {runtime_version()}"

    @property
    def example_count(self) -> int:
        """Examples that could be trained on now."""
        return 0 if self._examples is None else len(self._examples)

    def check(self, bundle: bytes, checkpoint: bytes) -> int:
        """Authenticate the bundle and replay its parity vectors on this runtime; return the layout's dimension."""
        artifact = self._artifact(bundle)
        dimension = artifact.layout.size
        if len(checkpoint) != 4 * dimension:
            raise ArtifactError(f"a checkpoint of {len(checkpoint)} bytes does not fit {dimension} parameters")
        return dimension

    def train(self, job: TrainingJob, should_stop: Callable[[], bool] | None = None) -> bytes:
        """The update, float32 little-endian in layout order."""
        if self._examples is None:
            raise TrainingError("this device holds no examples", hint="add some, or let it only serve")
        plan = TrainingPlan(
            epochs=job.plan.epochs,
            batch_size=job.plan.batch_size,
            learning_rate=job.plan.learning_rate,
            max_steps=job.plan.max_steps,
        )
        trainer = OnnxTrainer(self._artifact(job.bundle))
        checkpoint = np.frombuffer(job.checkpoint, "<f4").astype(np.float32)
        result = trainer.train(checkpoint, self._examples.arrays(), plan, seed=job.seed, should_stop=should_stop)
        return result.update.astype("<f4").tobytes()

    def install(self, version: int, bundle: bytes, checkpoint: bytes) -> None:
        """Serve predictions from this model from now on."""
        self._models.install(self._artifact(bundle), version, np.frombuffer(checkpoint, "<f4").astype(np.float32))

    def predict(self, x: NDArray[Any]) -> NDArray[Any]:
        """The newest installed model's output for a batch."""
        return self._models.predictor().predict(x)

    def _artifact(self, bundle: bytes) -> Artifact:
        return _checked(hashlib.sha256(bundle).digest(), _Bytes(bundle), self._signer_pem)


class _Bytes:
    """Carries bytes through a cache whose key is their digest alone."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bytes)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=4)
def _checked(digest: bytes, bundle: _Bytes, signer_pem: bytes) -> Artifact:
    """A bundle that is signed and that this runtime computes right; the replay is done once a process."""
    artifact = parse_artifact(bundle.data, signer=public_key_from_pem(signer_pem))
    require_parity(artifact)
    return artifact
