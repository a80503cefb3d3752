"""The one order of what a model learns: named tensors <-> one flat float32 vector.

A checkpoint, an update and an aggregate are all 1-D float32 arrays in the order of a Layout. Knows nothing
of graphs, files or training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ArtifactError, TrainingError

Vector: TypeAlias = npt.NDArray[np.float32]

ELEMENT_BYTES = 4

LayoutRole = Literal["parameter", "buffer"]


@dataclass(frozen=True, slots=True)
class LayoutEntry:
    """One tensor's place: its `state_dict` name, its shape, and what it is.

    A parameter is trained by gradients, a buffer changed by the forward pass in training (running statistics).
    """

    name: str
    shape: tuple[int, ...]
    role: LayoutRole = "parameter"

    @property
    def tensor(self) -> str:
        """Its name in graphs."""
        return f"{self.role}:{self.name}"

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

    def flatten(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Vector:
        """Join tensors, found by their names in graphs, into a new flat vector.

        Raises:
            TrainingError: a tensor is missing, or its shape or dtype differs from the layout.
        """
        vector = np.empty(self.size, np.float32)
        for offset, entry in zip(self.offsets, self.entries, strict=True):
            tensor = tensors.get(entry.tensor)
            if tensor is None or tensor.shape != entry.shape or tensor.dtype != np.float32:
                found = "missing" if tensor is None else f"{tensor.dtype}{list(tensor.shape)}"
                raise TrainingError(f"{entry.name} is {found}, the layout says float32{list(entry.shape)}")
            vector[offset : offset + entry.size] = tensor.reshape(-1)
        return vector

    def unflatten(self, vector: Vector) -> dict[str, npt.NDArray[np.float32]]:
        """View a flat vector as its tensors, by their names in graphs and in layout order, without copying.

        Raises:
            TrainingError: the vector is not 1-D float32 of the layout's size.
        """
        self.check(vector)
        return {
            entry.tensor: vector[offset : offset + entry.size].reshape(entry.shape)
            for offset, entry in zip(self.offsets, self.entries, strict=True)
        }

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
