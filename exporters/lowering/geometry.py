"""The fixed numbers of a convolution."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from exporters.graph import Dim


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution from a wide tensor [batch, channels, *size] to a narrow one [batch, outputs, *out_size].

    Its weight is [outputs, channels / groups, *kernel]; a transposed convolution goes from narrow to wide. Tuples
    have one entry a spatial dimension.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    batch: Dim
    channels: int
    outputs: int
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    out_size: tuple[int, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial axes of an activation."""
        return tuple(range(2, 2 + len(self.kernel)))

    @property
    def taps(self) -> list[tuple[int, ...]]:
        """Every position in the kernel, in row-major order."""
        return list(itertools.product(*(range(extent) for extent in self.kernel)))

    @property
    def needed(self) -> tuple[int, ...]:
        """How much of the padded wide tensor, from its start, the convolution reads."""
        return tuple(
            s * (o - 1) + d * (k - 1) + 1
            for s, o, d, k in zip(self.stride, self.out_size, self.dilation, self.kernel, strict=True)
        )

    @property
    def ends(self) -> tuple[int, ...]:
        """How much padding it reads after the wide tensor; below zero, how much of that it leaves unread."""
        return tuple(need - size - pad for need, size, pad in zip(self.needed, self.size, self.padding, strict=True))

    @property
    def depthwise(self) -> bool:
        """Whether every channel is filtered by itself, into one output."""
        return self.groups == self.channels == self.outputs

    @property
    def pairs(self) -> int:
        """How many pairs of a wide and a narrow position there are."""
        return math.prod(self.size) * math.prod(self.out_size)
