"""The port through which heavy pure work is dealt out. Who does it, and where, is the service's business."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

Batch = TypeVar("Batch")
Result = TypeVar("Result")
Item = TypeVar("Item")


class Workers(Protocol):
    """Whoever does the work."""

    def each(self, work: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        """Yield the result of every batch, in any order, holding a few at a time.

        Args:
            work: a function of a module, so that it can be named to another process.
            batches: its arguments, plain values.
        """
        ...


class Here:
    """Does the work in the caller's thread, one batch after the other."""

    def each(self, work: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        return map(work, batches)


HERE = Here()


def dealt(items: Sequence[Item], cost: Callable[[Item], int], limit: int) -> Iterator[tuple[Item, ...]]:
    """Split items in order into batches whose cost reaches `limit`, the last one excepted."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += cost(item)
        if total >= limit:
            yield tuple(batch)
            batch, total = [], 0
    if batch:
        yield tuple(batch)
