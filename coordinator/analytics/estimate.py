"""What the released mean of a fleet's answers says: numbers with the standard deviation of the noise in them. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.analytics.query import Query

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class Estimate:
    """One number about the fleet.

    Attributes:
        label: what it is.
        value: the estimate; NaN where the noise leaves nothing to tell.
        stddev: of the noise that privacy put into it; what sampling the fleet adds is not in it. NaN where not known.
    """

    label: str
    value: float
    stddev: float


def estimates(
    query: Query, mean: Sequence[float] | NDArray[np.floating], reports: int, stddev: float
) -> list[Estimate]:
    """Read a released mean.

    Args:
        query: what was asked.
        mean: of the answers of `reports` devices, `query.dimension` numbers.
        reports: devices in it, over all rounds.
        stddev: of the noise in each number of it.
    """
    values = np.asarray(mean, np.float64)
    rows, noise = reports * query.max_rows, reports * query.max_rows * stddev
    match query.kind:
        case "count":
            return [
                Estimate("devices", reports, 0.0),
                Estimate("examples", float(values[1]) * rows, noise),
                Estimate("examples a device", float(values[1]) * query.max_rows, query.max_rows * stddev),
            ]
        case "mean":
            found = [_ratio(float(value), float(values[-1]), stddev) for value in values[:-1]]
            width = query.high - query.low
            labels = ["mean"] if len(found) == 1 else [f"mean {index}" for index in range(len(found))]
            return [
                Estimate(label, query.low + width * value, width * deviation)
                for label, (value, deviation) in zip(labels, found, strict=True)
            ]
        case "histogram":
            return [
                Estimate(label, float(value) * rows, noise) for label, value in zip(_labels(query), values, strict=True)
            ]
        case "quantiles":
            return [Estimate(f"{100 * q:g}%", _quantile(query, values, q), math.nan) for q in QUANTILES]
        case "evaluate":
            loss, accuracy = (_ratio(float(value), float(values[2]), stddev) for value in values[:2])
            return [
                Estimate("loss", query.high * loss[0], query.high * loss[1]),
                Estimate("accuracy", *accuracy),
                Estimate("examples", float(values[2]) * rows, noise),
            ]


def _ratio(part: float, whole: float, stddev: float) -> tuple[float, float]:
    """part / whole, and its standard deviation to first order; NaN where the whole drowns in noise."""
    if whole <= 2 * stddev:
        return math.nan, math.nan
    ratio = part / whole
    return ratio, stddev * math.sqrt(1 + ratio * ratio) / whole


def _edges(query: Query) -> NDArray[np.float64]:
    return np.linspace(query.low, query.high, query.bins + 1)


def _labels(query: Query) -> list[str]:
    edges = _edges(query)
    return [f"[{low:g}, {high:g})" for low, high in itertools.pairwise(edges)]


def _quantile(query: Query, counts: NDArray[np.float64], share: float) -> float:
    """Where the distribution function passes `share`, linear within a bin.

    With noise it is not monotone; what is used is the monotone function next to it in least squares.
    """
    from scipy.optimize import isotonic_regression

    fitted = isotonic_regression(np.concatenate([[0.0], np.cumsum(counts)])).x
    running = np.maximum(fitted - fitted[0], 0.0)
    if running[-1] <= 0:
        return math.nan
    return float(np.interp(share * running[-1], running, _edges(query)))
