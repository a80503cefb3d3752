"""Training and serving on this device: the agent's port, filled with the example store and ONNX Runtime.

Knows nothing of rounds, messages or brokers.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from edge_sdk.analytics.analyst import Analyst
from edge_sdk.analytics.query import is_query
from edge_sdk.errors import ArtifactError, BudgetExceeded, TrainingError
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.inference.personal import MIN_EXAMPLES, Comparison, PersonalModel, compared
from edge_sdk.privacy.subsampled import Sampling
from edge_sdk.protocol.messages import BlobRef, Digest, Plan
from edge_sdk.runtime.budget import Budget, Pacer
from edge_sdk.runtime.learner import Bundle, TrainingJob, Update
from edge_sdk.training.artifact import Artifact, parse_head
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.evaluation import example_losses
from edge_sdk.training.example_privacy import sampling_of
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.graphs import check_threads, close_large, installed_version, runtime_name
from edge_sdk.training.layout import encode_vector
from edge_sdk.training.manifest import CHECKPOINT_PART, PARITY_PART, Runtime
from edge_sdk.training.parity import require_parity
from edge_sdk.training.plan import TrainingPlan
from edge_sdk.training.trainer import TrainingInterrupted, everything

log = logging.getLogger("edge.device")

TUNING: Final = TrainingPlan(epochs=3, batch_size=16, learning_rate=0.01)
"""How a personal model is tuned, where no round's plan has told batch size and learning rate."""
GROWTH: Final = 1.2
JUDGES: Final = 500
"""Held-out examples that a personal model is judged by, at most: the newest."""


class LocalLearner:
    """Trains on the device's own examples and serves the newest model.

    Args:
        signer: the pinned public key that bundles must be signed with.
        examples: the app's examples; None on a device that only serves.
        models: installed models.
        analytics: whether it answers queries too.
        runtime: what trains; predictions are ONNX Runtime's in any case.
        budget: of threads, processor and time.
        personal: where a variant tuned on this device is kept; None for none.

    Raises:
        ArtifactError: the runtime is not installed.
        ConfigError: the runtime cannot be kept to the budget's threads.
    """

    def __init__(
        self,
        signer: ec.EllipticCurvePublicKey,
        examples: ExampleStore | None,
        models: InstalledModels,
        *,
        analytics: bool = False,
        runtime: Runtime = "onnx",
        budget: Budget | None = None,
        personal: PersonalModel | None = None,
    ) -> None:
        installed_version(runtime)
        self._budget = budget or Budget()
        check_threads(runtime, self._budget.threads)
        self._signer = signer
        self._runtime = runtime
        self._examples = examples
        self._models = models
        self._personal = models.personal = personal
        self._tuning = TUNING
        self._analyst = Analyst(signer, examples, allowed=analytics)
        self._newest: Artifact | None = None
        self._lock = threading.Lock()  # training runs beside the loop

    @property
    def runtime_version(self) -> str:
        """What runs the graphs, such as "onnxruntime 1.31.1"."""
        return runtime_name(self._runtime)

    @property
    def example_count(self) -> int:
        """Examples that could be trained on now."""
        return 0 if self._examples is None else self._examples.count(held_out=False)

    def parts(self, head: bytes) -> tuple[BlobRef, ...]:
        """The parts of a bundle that training and serving here need, or what a query's answer needs."""
        if is_query(head):
            return self._analyst.parts(head)
        manifest = parse_head(head, signer=self._signer).manifest
        manifest.format(self._runtime)
        training = [graph.part(self._runtime) for graph in manifest.graphs if graph.kind in ("clip", "train")]
        graphs = [*training, manifest.graph("infer").part()]
        if self._personal is not None:
            # Else held-out examples are evaluated where models are released only.
            graphs.append(manifest.graph("evaluate").part())
        specs = [manifest.part(name) for name in (*graphs, CHECKPOINT_PART, PARITY_PART, *manifest.frozen_parts)]
        return tuple(BlobRef(Digest(bytes.fromhex(spec.sha256)), spec.size_bytes) for spec in specs)

    def check(self, bundle: Bundle, checkpoint: bytes) -> int:
        """Authenticate the bundle and replay its parity vectors on this runtime; return the layout's dimension."""
        if is_query(bundle.head):
            return self._analyst.check(bundle.head)
        dimension = self._artifact(bundle).layout.size
        if len(checkpoint) != 4 * dimension:
            raise ArtifactError(f"a checkpoint of {len(checkpoint)} bytes does not fit {dimension} parameters")
        return dimension

    def memory_bytes(self, head: bytes, plan: Plan) -> int:
        """About how much memory training by this plan takes; a query takes next to nothing."""
        if is_query(head):
            return 0
        manifest = parse_head(head, signer=self._signer).manifest
        return manifest.predicted_bytes(min(plan.batch_size, self.example_count or plan.batch_size))

    def sampling(self, bundle: Bundle, plan: Plan) -> Sampling | None:
        """What training by this plan would release of each example; None where the bundle does not protect each."""
        if is_query(bundle.head) or not self.example_count:
            return None
        privacy = self._artifact(bundle).manifest.privacy
        return None if privacy is None else sampling_of(privacy, _training(plan), self.example_count)

    def train(self, job: TrainingJob, should_stop: Callable[[], bool] | None = None) -> Update:
        """The update; or the answer to a query."""
        if is_query(job.bundle.head):
            return Update(self._analyst.answer(job.bundle.head, job.bundle.read))
        if self._examples is None:
            raise TrainingError("this device holds no examples", hint="add some, or let it only serve")
        plan, artifact = _training(job.plan), self._artifact(job.bundle)
        # What the task's operator found good for these examples is a better guess than any other.
        self._tuning = replace(TUNING, batch_size=plan.batch_size, learning_rate=plan.learning_rate)
        examples = self._examples.rows(held_out=False)
        checkpoint = np.frombuffer(job.checkpoint, "<f4").astype(np.float32)
        trainer = BundleTrainer(artifact, self._runtime, threads=self._budget.threads)
        pacer = Pacer(self._budget, should_stop)
        try:
            result = trainer.train(checkpoint, examples, plan, seed=job.seed, should_stop=pacer)
        finally:
            del trainer
            close_large(artifact)
        privacy = artifact.manifest.privacy
        sampling = None if privacy is None else sampling_of(privacy, plan, len(examples))
        return Update(result.update.astype("<f4").tobytes(), sampling)

    def install(self, version: int, bundle: Bundle, checkpoint: bytes) -> None:
        """Serve predictions from this model from now on; of a query's result nothing is served."""
        if is_query(bundle.head):
            return
        self._models.install(self._artifact(bundle), version, np.frombuffer(checkpoint, "<f4").astype(np.float32))

    def should_tune(self) -> bool:
        """Whether it is time to tune a personal model: there is none for the serving global model, or a fifth more
        examples than it was tuned on, and enough are held out to judge it.

        Raises:
            StoreError: the examples or models cannot be read.
        """
        current = self._models.current()
        if self._personal is None or self._examples is None or current is None or not self.example_count:
            return False
        last = self._personal.comparison()
        if last is not None and last.base_sha256 == current.checkpoint_sha256:
            return self.example_count >= GROWTH * max(1, last.trained_on)
        return self._examples.count(held_out=True) >= MIN_EXAMPLES

    def tune(self, read: Callable[[BlobRef], bytes], should_stop: Callable[[], bool]) -> Comparison | None:
        """Fine-tune the serving global model on this device's examples, and compare on those held out.

        Args:
            read: gives a part of the bundle.
            should_stop: asked before every step.

        Returns:
            How it did, kept with what won; None where there is nothing to tune.

        Raises:
            TrainingInterrupted: `should_stop` said so; it is to be tried again.
            ArtifactError, StoreError: the model's training graphs are not here any more, or nothing can be kept.
        """
        current = self._models.current()
        if self._personal is None or self._examples is None or current is None:
            return None
        artifact = self._artifact(Bundle(self._models.head(current), read))
        base = artifact.layout.decode(self._models.checkpoint(current))
        examples = self._examples.rows(held_out=False)
        held_out = everything(self._examples.rows(held_out=True, newest=JUDGES))
        tuned, measured = None, (0, 0.0, 0.0, 0.0, 0.0)
        try:
            trainer = BundleTrainer(artifact, self._runtime, threads=self._budget.threads)
            pacer = Pacer(self._budget, should_stop)
            result = trainer.train(base, examples, self._tuning, seed=secrets.token_bytes(32), should_stop=pacer)
            tuned = base + result.update
            before, after = (example_losses(artifact, vector, held_out) for vector in (base, tuned))
            measured = compared(before, after)
        except TrainingInterrupted:
            raise
        except (BudgetExceeded, TrainingError) as error:
            log.info("no personal model: %s", error)
        sha256 = "" if tuned is None else hashlib.sha256(encode_vector(tuned)).hexdigest()
        close_large(artifact)
        comparison = Comparison(current.checkpoint_sha256, sha256, len(examples), *measured)
        self._personal.keep(comparison, tuned)
        return comparison

    def _artifact(self, bundle: Bundle) -> Artifact:
        """The bundle, checked in every way; the one used last is kept, so that a round reads it once."""
        digest = hashlib.sha256(bundle.head).digest()
        with self._lock:
            if self._newest is None or self._newest.sha256 != digest:
                head = parse_head(bundle.head, signer=self._signer)
                artifact = head.with_parts(bundle.read(part) for part in self.parts(bundle.head))
                require_parity(artifact, self._runtime, self._budget.threads)
                self._newest = artifact
            return self._newest


def _training(plan: Plan) -> TrainingPlan:
    """The part of a round's plan that says how to train."""
    return TrainingPlan(
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        max_steps=plan.max_steps,
        proximal=plan.proximal,
    )
