"""The running sum of encoded updates modulo 2^bits. Knows no masks, devices or stores."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edge_sdk.errors import LocalProtocolError
from edge_sdk.secagg.modular import Words, reduce, work_dtype


@dataclass(frozen=True, slots=True, eq=False)
class ModularSum:
    """A sum of vectors modulo 2^bits, and how many they were.

    The order of additions does not matter, to the bit.

    Attributes:
        bits: of the modulus.
        count: vectors added.
        words: the sum in the work dtype; read-only, and its bits above `bits` mean nothing.
    """

    bits: int
    count: int
    words: Words = field(repr=False)

    def __post_init__(self) -> None:
        if self.words.dtype != work_dtype(self.bits) or self.words.ndim != 1:
            raise LocalProtocolError(f"a sum modulo 2^{self.bits} is not {self.words.ndim}-D {self.words.dtype}")
        if self.count < 0:
            raise LocalProtocolError(f"a sum of {self.count} vectors")
        self.words.flags.writeable = False

    @classmethod
    def empty(cls, length: int, bits: int) -> ModularSum:
        """The sum of no vectors."""
        return cls(bits, 0, np.zeros(length, work_dtype(bits)))

    def plus(self, vector: Words) -> ModularSum:
        """The sum with one vector more.

        Raises:
            LocalProtocolError: its length or dtype is not the sum's.
        """
        if vector.shape != self.words.shape or vector.dtype != self.words.dtype:
            given, held = (f"{words.dtype}{list(words.shape)}" for words in (vector, self.words))
            raise LocalProtocolError(f"a vector {given} cannot join a sum {held}")
        return ModularSum(self.bits, self.count + 1, self.words + vector)

    def total(self) -> Words:
        """The residues modulo 2^bits, a new vector."""
        return reduce(self.words, self.bits)
