"""The port behind which a device trains and serves, and what passes through it. Knows no round's stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from edge_sdk.privacy.subsampled import Sampling
from edge_sdk.protocol.messages import BlobRef, Plan


@dataclass(frozen=True, slots=True)
class Bundle:
    """A fetched bundle: its head, and how to read those of its parts that the learner asked for.

    `read` may be called from any thread; it raises StoreError for a part that is gone or was damaged.
    """

    head: bytes = field(repr=False)
    read: Callable[[BlobRef], bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Train by this plan from this checkpoint; the result goes to the agent's `trained` or `failed`."""

    plan: Plan
    bundle: Bundle
    checkpoint: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    population: str


@dataclass(frozen=True, slots=True)
class Update:
    """What training came to.

    Attributes:
        values: float32 little-endian in layout order.
        sampling: what it releases of each example, where the bundle adds noise for each.
    """

    values: bytes = field(repr=False)
    sampling: Sampling | None = None


class Learner(Protocol):
    """Training and serving on this device, as the agent needs them."""

    @property
    def runtime_version(self) -> str:
        """What runs the graphs, such as "onnxruntime 1.31.1"."""
        ...

    @property
    def example_count(self) -> int:
        """Examples that could be trained on now."""
        ...

    def parts(self, head: bytes) -> tuple[BlobRef, ...]:
        """Authenticate a bundle's head, and name the parts of the bundle that this device needs.

        Raises:
            ArtifactError: not signed by a pinned signer, tampered with, or without something this device needs.
        """
        ...

    def check(self, bundle: Bundle, checkpoint: bytes) -> int:
        """Authenticate the bundle, see that this runtime computes it right; return the layout's dimension.

        Raises:
            ArtifactError: not signed by a pinned signer, tampered with, or not for this runtime.
        """
        ...

    def sampling(self, bundle: Bundle, plan: Plan) -> Sampling | None:
        """What training by this plan would release of each example now; None where nothing protects each.

        Raises:
            ArtifactError: as for `check`.
        """
        ...

    def memory_bytes(self, head: bytes, plan: Plan) -> int:
        """About how much memory training by this plan takes, as the bundle of that head predicts.

        Raises:
            ArtifactError: as for `parts`.
        """
        ...

    def train(self, job: TrainingJob, should_stop: Callable[[], bool] | None = None) -> Update:
        """Train. `should_stop` is asked before every step.

        Raises:
            TrainingError: it failed, or was asked to stop.
            BudgetExceeded: it took longer than the device allows.
        """
        ...

    def install(self, version: int, bundle: Bundle, checkpoint: bytes) -> None:
        """Serve predictions from this model from now on.

        Raises:
            ArtifactError, StoreError: it cannot be served; the last one stays.
        """
        ...
