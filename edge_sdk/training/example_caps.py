"""How much a store of examples keeps, and what a row takes on the disk. Knows no file."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Final

from edge_sdk.errors import StoreError

PAGE_BYTES: Final = 4096
"""Of the database."""
DEFAULT_MAX_ROWS: Final = 10_000

_INDEX_BYTES: Final = 2 * 20
"""Of an index entry, in pages that are half full."""


@dataclass(frozen=True, slots=True)
class Caps:
    """What a store keeps.

    Attributes:
        max_rows: the oldest beyond go.
        max_bytes: of the file, but for its log of writes; the oldest beyond go. Infinity for no cap.
        ttl_days: rows this old are not trained on any more and are erased. Infinity for no cap.
        holdout: the share of new rows that is kept for evaluation and never trained on, in [0, 1).

    Raises:
        StoreError: one is out of range.
    """

    max_rows: int = DEFAULT_MAX_ROWS
    max_bytes: float = math.inf
    ttl_days: float = math.inf
    holdout: float = 0.0

    def __post_init__(self) -> None:
        # Comparisons with NaN are false.
        if not (self.max_rows >= 1 and self.max_bytes > 0 and self.ttl_days > 0 and 0 <= self.holdout < 1):
            raise StoreError(
                f"a store cannot be kept to max_rows={self.max_rows}, max_bytes={self.max_bytes:g}, "
                f"ttl_days={self.ttl_days:g} and holdout={self.holdout:g}",
                hint="give at least one row, some bytes and days (infinity for no cap), and a share from 0 to below 1",
            )

    @property
    def ttl_s(self) -> float:
        """The age cap, seconds."""
        return self.ttl_days * 86_400.0

    def holds_out(self, row: int) -> bool:
        """Whether a new row of that number is for evaluation.

        By the number alone, so that it can be told again; rows added one after another do not go together.
        """
        if self.holdout == 0:
            return False
        digest = hashlib.sha256(b"edge-sdk/held-out/1" + row.to_bytes(8, "little")).digest()
        return int.from_bytes(digest[:8], "little") < self.holdout * 2.0**64

    def rows_of(self, sealed_bytes: int) -> int:
        """How many rows of so many sealed bytes each the store keeps.

        Raises:
            StoreError: not one.
        """
        row_bytes = _bytes_on_disk(sealed_bytes)
        if self.max_bytes < row_bytes:
            raise StoreError(
                f"max_bytes={self.max_bytes:g} holds no example, each of which takes {row_bytes:.0f} bytes",
                hint="raise it, or leave it out",
            )
        return int(min(self.max_rows, self.max_bytes / row_bytes))


def _bytes_on_disk(sealed: int) -> float:
    """What a row of so many sealed bytes takes in the file, its share of whole pages and of the index included.

    By SQLite's file format, sections 1.6 and 2.3: a table's page holds whole cells; of a large one the end goes to
    pages of its own.
    """
    usable = PAGE_BYTES
    cell = sealed + 24  # lengths, number, time and part
    overflow = 0
    if cell > usable - 35:
        least = (usable - 12) * 32 // 255 - 23
        local = least + (cell - least) % (usable - 4)
        local = local if local <= usable - 35 else least
        overflow = -(-(cell - local) // (usable - 4))
        cell = local + 4
    return (usable / ((usable - 8) // (cell + 2)) + overflow * usable + _INDEX_BYTES) * 1.01
