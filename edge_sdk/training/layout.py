"""The one order of a model's parameters: named tensors <-> one flat float32 vector.

A checkpoint, an update and an aggregate are all 1-D float32 arrays in the order of a Layout. Knows nothing
of graphs, files or training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ArtifactError, TrainingError

Vector: TypeAlias = npt.NDArray[np.float32]

ELEMENT_BYTES = 4


@dataclass(frozen=True, slots=True)
class LayoutEntry:
    """One tensor's place: its `state_dict` name and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """Tensors in order; each starts where the one before ends.

    Raises:
        ArtifactError: a name twice or empty, or a negative dimension.
    """

    entries: tuple[LayoutEntry, ...]

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.entries]
        if len(set(names)) != len(names) or "" in names:
            raise ArtifactError("a layout names a tensor twice, or not at all", hint="export the model again")
        if any(dimension < 0 for entry in self.entries for dimension in entry.shape):
            raise ArtifactError("a layout has a negative dimension", hint="export the model again")

    @property
    def size(self) -> int:
        """Number of elements of the flat vector."""
        return sum(entry.size for entry in self.entries)

    @property
    def size_bytes(self) -> int:
        """Bytes of the flat vector."""
        return self.size * ELEMENT_BYTES

    @property
    def offsets(self) -> tuple[int, ...]:
        """First element of each tensor in the flat vector."""
        return tuple(accumulate((entry.size for entry in self.entries[:-1]), initial=0))[: len(self.entries)]

    def flatten(self, tensors: Sequence[npt.NDArray[np.float32]]) -> Vector:
        """Join tensors, given in layout order, into a new flat vector.

        Raises:
            TrainingError: the number of tensors, a shape or a dtype differs from the layout.
        """
        if len(tensors) != len(self.entries):
            raise TrainingError(f"{len(tensors)} tensors for a layout of {len(self.entries)}")
        for entry, tensor in zip(self.entries, tensors, strict=True):
            if tensor.shape != entry.shape or tensor.dtype != np.float32:
                raise TrainingError(
                    f"{entry.name} is {tensor.dtype}{list(tensor.shape)}, the layout says float32{list(entry.shape)}"
                )
        vector = np.empty(self.size, np.float32)
        for offset, entry, tensor in zip(self.offsets, self.entries, tensors, strict=True):
            vector[offset : offset + entry.size] = tensor.reshape(-1)
        return vector

    def unflatten(self, vector: Vector) -> tuple[npt.NDArray[np.float32], ...]:
        """View a flat vector as its tensors, in layout order, without copying.

        Raises:
            TrainingError: the vector is not 1-D float32 of the layout's size.
        """
        self.check(vector)
        return tuple(
            vector[offset : offset + entry.size].reshape(entry.shape)
            for offset, entry in zip(self.offsets, self.entries, strict=True)
        )

    def check(self, vector: Vector, what: str = "the checkpoint") -> None:
        """Refuse a vector that is not this layout's; `what` names it in the message.

        Raises:
            TrainingError: not 1-D float32, not of the layout's size, or not finite.
        """
        if vector.dtype != np.float32 or vector.ndim != 1:
            raise TrainingError(
                f"{what} is {vector.ndim}-D {vector.dtype}, not 1-D float32",
                hint="pass the flat float32 vector in layout order",
            )
        if vector.size != self.size:
            raise TrainingError(
                f"{what} has {vector.size} elements, this model has {self.size}",
                hint="the checkpoint belongs to another model or version: fetch the one of this bundle",
            )
        if not np.isfinite(vector).all():
            raise TrainingError(
                f"{what} holds NaN or infinity", hint="roll back to the last checkpoint that was finite"
            )

    def decode(self, content: bytes, what: str = "the checkpoint") -> Vector:
        """Read a flat vector from its bytes (float32 little-endian, layout order) into a new array.

        Raises:
            TrainingError: wrong length or not finite.
        """
        if len(content) != self.size_bytes:
            raise TrainingError(
                f"{what} has {len(content)} bytes, this model needs {self.size_bytes}",
                hint="the checkpoint belongs to another model or version: fetch the one of this bundle",
            )
        vector = np.frombuffer(content, "<f4").astype(np.float32)
        self.check(vector, what)
        return vector


def encode_vector(vector: Vector) -> bytes:
    """Write a flat vector as float32 little-endian bytes."""
    return vector.astype("<f4").tobytes()
