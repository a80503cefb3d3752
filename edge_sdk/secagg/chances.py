"""How many of a kind are among those drawn: what degrees, thresholds and committees come from. Knows no graph."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import PrivacyError

_ROUNDING = 1e-9  # so that .05 * 200 counts as 10


def count(share: float, size: int) -> int:
    """Return how many devices of `size` a share is."""
    return math.floor(share * size + _ROUNDING)


def check_shares(corrupt_share: float, dropout_share: float) -> None:
    """Raise PrivacyError where a share of colluding or dropped devices is none."""
    if not (0 <= corrupt_share < 1 and 0 <= dropout_share < 1):
        raise PrivacyError(
            f"shares of {corrupt_share} corrupt and {dropout_share} dropped are not both in [0, 1)",
            hint="give shares such as 0.1",
        )


def hypergeometric(size: int, marked: int, drawn: int) -> NDArray[np.float64]:
    """Return P[i marked] for i = 0..drawn, when `drawn` of `size` are drawn and `marked` are marked."""
    chances = np.zeros(drawn + 1)
    counts = np.arange(max(0, drawn - (size - marked)), min(drawn, marked) + 1)
    table = _log_factorials(size)
    logs = (
        table[marked] - table[counts] - table[marked - counts]
        + table[size - marked] - table[drawn - counts] - table[size - marked - drawn + counts]
        - (table[size] - table[drawn] - table[size - drawn])
    )  # fmt: skip
    chances[counts] = np.exp(logs)
    return chances


@lru_cache(maxsize=8)
def _log_factorials(size: int) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])
