"""What was released, as an append-only list of events that lives in the store as JSON.

An event says what the mechanism was, not what it cost: the accountant decides that anew each time. Knows no
store and no accountant.
"""

from __future__ import annotations

import json
import operator
from dataclasses import asdict, dataclass

from edge_sdk.errors import StoreError
from edge_sdk.privacy.quantize import l1_bound


@dataclass(frozen=True, slots=True)
class ReleaseEvent:
    """One released sum.

    Attributes:
        mechanism: "skellam", or "none" where noise was off.
        norm_bound: D2, the most one device moves the sum of integers in the 2-norm.
        dimension: coordinates of the sum, padding included.
        variance: of the noise that honest devices put into the sum, per coordinate; 0 without noise.
        reports: updates in the sum.
    """

    mechanism: str
    norm_bound: float
    dimension: int
    variance: int
    reports: int

    @property
    def l1_bound(self) -> float:
        """D1, the most one device moves the sum in the 1-norm."""
        return l1_bound(self.norm_bound, self.dimension)

    def to_json(self) -> str:
        """Return the event as one line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ReleaseEvent:
        """Return the event of a line of JSON; an unknown mechanism is kept, for the accountant to refuse.

        Raises:
            StoreError: the line is no such event.
        """
        try:
            data = json.loads(text)
            return cls(
                mechanism=str(data["mechanism"]),
                norm_bound=float(data["norm_bound"]),
                dimension=operator.index(data["dimension"]),
                variance=operator.index(data["variance"]),
                reports=operator.index(data["reports"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"a ledger entry cannot be read: {error!r}", hint="restore the store from a backup"
            ) from error
