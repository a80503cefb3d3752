"""Fold a ledger into the epsilon that was spent, with Google's dp-accounting.

Each release may have held any device: nothing is claimed for devices being chosen, since they choose
themselves. The library takes seconds to import: `load` does it, else the first call that needs it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from coordinator.privacy.ledger import ReleaseEvent
from edge_sdk.errors import PrivacyError
from edge_sdk.privacy.accounting import ORDERS

SKELLAM, DISCRETE_GAUSSIAN, NO_NOISE = "skellam", "discrete_gaussian", "none"


def epsilon(events: Sequence[ReleaseEvent], delta: float, *, participations: int | None = None) -> float:
    """Return the epsilon at `delta` of all releases together; 0 for none, infinity if one had no noise.

    Args:
        events: the ledger.
        delta: in (0, 1).
        participations: the most releases that one device took part in, held by the devices themselves; only
            the costliest so many of each kind then count.

    Raises:
        PrivacyError: an event's mechanism is unknown or its numbers make no sense, or delta is not in (0, 1).
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"a delta of {delta} is not between 0 and 1")
    for event in events:
        _check(event)
    if not events:
        return 0.0
    if any(event.mechanism == NO_NOISE for event in events):
        return math.inf
    counted = events if participations is None else _costliest(events, participations)
    # Each of the Skellam theorem's two bounds holds alone; take the better for the whole ledger.
    return min(_composed(counted, delta, bound) for bound in (_first_bound, _second_bound))


def would_exceed(
    events: Sequence[ReleaseEvent],
    event: ReleaseEvent,
    epsilon_budget: float,
    delta: float,
    *,
    participations: int | None = None,
) -> bool:
    """Return whether releasing `event` too would spend more than the budget."""
    return epsilon((*events, event), delta, participations=participations) > epsilon_budget


def _costliest(events: Sequence[ReleaseEvent], count: int) -> list[ReleaseEvent]:
    """Return of every kind the events with the least noise, which bound any `count` events of that kind."""
    kinds: defaultdict[tuple[str, float, int, int], list[ReleaseEvent]] = defaultdict(list)
    for event in sorted(events, key=lambda event: event.device_variance):
        kinds[event.mechanism, event.norm_bound, event.length, event.honest].append(event)
    return [event for kind in kinds.values() for event in kind[:count]]


def _check(event: ReleaseEvent) -> None:
    if event.mechanism not in (SKELLAM, DISCRETE_GAUSSIAN, NO_NOISE):
        raise PrivacyError(
            f"the ledger holds a release by the mechanism {event.mechanism!r}, which is not known here",
            hint="upgrade the coordinator; what that release cost cannot be told",
        )
    usable = math.isfinite(event.norm_bound) and min(event.norm_bound, event.length, event.honest) > 0
    if not usable or (event.mechanism != NO_NOISE and event.device_variance <= 0):
        raise PrivacyError(f"the ledger holds a release that makes no sense: {event}")


def _composed(
    events: Sequence[ReleaseEvent], delta: float, bound: Callable[[ReleaseEvent], tuple[float, float]]
) -> float:
    dp = load()
    accountant = dp.rdp.RdpAccountant(list(ORDERS), dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for event, count in Counter(events).items():
        accountant.compose(dp.SelfComposedDpEvent(dp.ZCDpEvent(*bound(event)), count))
    return float(accountant.get_epsilon(delta))


def _first_bound(event: ReleaseEvent) -> tuple[float, float]:
    """Return rho and xi of alpha D2^2/(2 mu) + ((2 alpha - 1) D2^2 + 6 D1)/(4 mu^2), xi at least 0."""
    if event.mechanism == DISCRETE_GAUSSIAN:
        return _discrete_gaussian_bound(event)
    square, mu = event.norm_bound**2, float(event.variance)
    rho = square / (2 * mu) + square / (2 * mu * mu)
    return rho, max(0.0, (6 * event.l1_bound - square) / (4 * mu * mu))


def _second_bound(event: ReleaseEvent) -> tuple[float, float]:
    """Return rho and xi of alpha D2^2/(2 mu) + 3 D1/(2 mu)."""
    if event.mechanism == DISCRETE_GAUSSIAN:
        return _discrete_gaussian_bound(event)
    mu = float(event.variance)
    return event.norm_bound**2 / (2 * mu), 3 * event.l1_bound / (2 * mu)


def _discrete_gaussian_bound(event: ReleaseEvent) -> tuple[float, float]:
    """Return rho and xi of alpha D2^2/(2 n v) + tau d, tau = 10 sum_{k<n} exp(-2 pi^2 v k/(k+1)), n devices of v."""
    v = event.device_variance
    tau = 10 * math.fsum(math.exp(-2 * math.pi**2 * v * k / (k + 1)) for k in range(1, event.honest))
    return event.norm_bound**2 / (2 * event.variance), tau * event.length


@lru_cache(maxsize=1)
def load() -> Any:
    """Return the library, imported if it was not."""
    import dp_accounting
    import dp_accounting.rdp

    return dp_accounting
