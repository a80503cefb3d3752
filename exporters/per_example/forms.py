"""The gradients of single examples, held whole or in factors from which norms and weighted sums follow with less work.

Knows nothing of models or autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Protocol, TypeAlias

import torch

Tensor: TypeAlias = torch.Tensor


class Gradients(Protocol):
    """The gradients of all examples by one tensor."""

    def joined(self, others: Sequence[Any]) -> Gradients:
        """Add those of other uses of the tensor, of the same type, example by example."""
        ...

    def squares(self) -> Tensor:
        """Squared 2-norm of each example's gradient, [batch]."""
        ...

    def weighted(self, factors: Tensor) -> Tensor:
        """The sum over examples of factors[i] times the gradient of example i."""
        ...


# From this length on, squares are summed by a matrix product, which writes none of them to memory (measured).
_LONG = 2048


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """Each example's gradient is arrange(value[i])."""

    value: Tensor
    arrange: Callable[[Tensor], Tensor] = _as_it_is
    """Moves elements to their places in the tensor that the gradients are of."""

    def joined(self, others: Sequence[Whole]) -> Whole:
        """Add the values."""
        return Whole(reduce(add, (other.value for other in others), self.value), self.arrange)

    def squares(self) -> Tensor:
        """Sum of squares."""
        flat = self.value.reshape(len(self.value), -1)
        if flat.shape[1] < _LONG:
            return (flat * flat).sum(1)
        row = flat[:, None]
        return torch.bmm(row, row.transpose(1, 2)).reshape(-1)

    def weighted(self, factors: Tensor) -> Tensor:
        """One product of a vector and a matrix."""
        flat = self.value.reshape(len(self.value), -1)
        return self.arrange((factors[None] @ flat).reshape(self.value.shape[1:]))


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """Each example's gradient is arrange(rows[i].T @ columns[i]).

    `rows` is [batch, positions, m] and `columns` [batch, positions, n].
    """

    rows: Tensor
    columns: Tensor
    arrange: Callable[[Tensor], Tensor] = _as_it_is

    def joined(self, others: Sequence[Products]) -> Products:
        """Put the positions one after another."""
        rows = torch.cat([self.rows, *(other.rows for other in others)], 1)
        columns = torch.cat([self.columns, *(other.columns for other in others)], 1)
        return Products(rows, columns, self.arrange)

    def squares(self) -> Tensor:
        """From inner products of the positions, or from the gradients themselves where these are less work."""
        if self.multiplied:
            return self._whole().squares()
        if self.rows.shape[1] == 1:
            return Whole(self.rows).squares() * Whole(self.columns).squares()
        alike = (self.rows @ self.rows.transpose(1, 2)) * (self.columns @ self.columns.transpose(1, 2))
        # Rounding can take terms that cancel below zero.
        return alike.sum((1, 2)).clamp(min=0)

    def weighted(self, factors: Tensor) -> Tensor:
        """One matrix product over all positions of all examples."""
        if self.multiplied:
            return self._whole().weighted(factors)
        if self.rows.shape[1] == 1:
            scaled = self.rows.squeeze(1) * factors[:, None]
        else:
            scaled = (self.rows * factors[:, None, None]).reshape(-1, self.rows.shape[2])
        return self.arrange(scaled.t() @ self.columns.reshape(-1, self.columns.shape[2]))

    @property
    def multiplied(self) -> bool:
        """Whether the gradients themselves are less work than inner products of the positions."""
        positions, m, n = self.rows.shape[1], self.rows.shape[2], self.columns.shape[2]
        return positions > 1 and positions * (m + n) > m * n

    def _whole(self) -> Whole:
        return Whole(self.rows.transpose(1, 2) @ self.columns, self.arrange)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Each example's gradient of a table is zero but for the rows index[i], to which value[i] is added.

    `index` is [batch, positions], `value` [batch, positions, width], `length` that of the table.
    """

    index: Tensor
    value: Tensor
    length: int

    def joined(self, others: Sequence[Rows]) -> Rows:
        """Put the positions one after another."""
        index = torch.cat([self.index, *(other.index for other in others)], 1)
        value = torch.cat([self.value, *(other.value for other in others)], 1)
        return Rows(index, value, self.length)

    def squares(self) -> Tensor:
        """From inner products of the positions that share a row."""
        if self.index.shape[1] == 1:
            return Whole(self.value).squares()
        same = (self.index[:, :, None] == self.index[:, None, :]).to(self.value.dtype)
        return ((self.value @ self.value.transpose(1, 2)) * same).sum((1, 2)).clamp(min=0)

    def weighted(self, factors: Tensor) -> Tensor:
        """The embedding's own gradient, of scaled values."""
        scaled = self.value * factors[:, None, None]
        found: Tensor = torch.ops.aten.embedding_dense_backward(scaled, self.index, self.length, -1, False)
        return found
