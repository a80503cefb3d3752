"""What was released, as an append-only list of events that lives in the store as JSON.

An event says what the mechanism was, not what it cost: the accountant decides that anew each time. Knows no
store and no accountant.
"""

from __future__ import annotations

import json
import operator
from dataclasses import asdict, dataclass

from edge_sdk.errors import StoreError
from edge_sdk.privacy.accounting import Release
from edge_sdk.privacy.quantize import l1_bound


@dataclass(frozen=True, slots=True)
class ReleaseEvent:
    """One released sum.

    Attributes:
        mechanism: "skellam", "discrete_gaussian", or "none" where noise was off.
        norm_bound: D2, the most one device moves the sum of integers in the 2-norm.
        length: coordinates of the sum.
        device_variance: of the noise that each device put into the sum, per coordinate; 0 without noise.
        honest: devices whose noise is counted on.
        reports: updates in the sum.
    """

    mechanism: str
    norm_bound: float
    length: int
    device_variance: int
    honest: int
    reports: int

    @classmethod
    def of(cls, release: Release, reports: int) -> ReleaseEvent:
        """The event of a release over so many reports."""
        return cls(
            mechanism=release.mechanism.name.lower(),
            norm_bound=release.norm_bound,
            length=release.length,
            device_variance=release.device_variance,
            honest=release.honest,
            reports=reports,
        )

    @property
    def variance(self) -> int:
        """Of the noise that is counted on, per coordinate."""
        return self.device_variance * self.honest

    @property
    def l1_bound(self) -> float:
        """D1, the most one device moves the sum in the 1-norm."""
        return l1_bound(self.norm_bound, self.length)

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
                length=operator.index(data["length"]),
                device_variance=operator.index(data["device_variance"]),
                honest=operator.index(data["honest"]),
                reports=operator.index(data["reports"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"a ledger entry cannot be read: {error!r}", hint="restore the store from a backup"
            ) from error
