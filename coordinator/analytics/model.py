"""What a fleet needs to evaluate a model, as blobs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from edge_sdk.analytics.query import Reference
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.manifest import CHECKPOINT_PART


def model_parts(artifact: Artifact, checkpoint: bytes | None = None) -> list[bytes]:
    """The bundle's head, the parts that evaluation needs, and last the checkpoint; by default the bundle's own.

    Raises:
        TrainingError: the checkpoint is not one of this model's.
    """
    if checkpoint is None:
        checkpoint = artifact.part(CHECKPOINT_PART)
    artifact.layout.decode(checkpoint)
    names = (artifact.manifest.graph("evaluate").part(), *artifact.manifest.frozen_parts)
    return [artifact.head, *(artifact.part(name) for name in names), checkpoint]


def references(parts: Sequence[bytes]) -> tuple[Reference, ...]:
    """The same by hash and size."""
    return tuple(Reference(hashlib.sha256(part).hexdigest(), len(part)) for part in parts)
