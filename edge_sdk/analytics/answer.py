"""A device's answer to a query, from its examples: a short vector whose norm the query bounds. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.analytics.query import Query
from edge_sdk.errors import ArtifactError, TrainingError

Rows = Mapping[str, NDArray[Any]]
"""Examples by field, the first dimension being the rows, oldest first."""


def check_query(query: Query, fields: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Refuse a query that these examples cannot answer.

    Args:
        query: authenticated.
        fields: dtype name and shape of a row, by field.

    Raises:
        ArtifactError: the field is not there, or has not as many numbers as the query says.
    """
    if query.kind in ("count", "evaluate"):
        return
    found = fields.get(query.field)
    if found is None:
        raise ArtifactError(f"the examples have no field {query.field!r}, but {', '.join(sorted(fields))}")
    size = int(np.prod(found[1], dtype=np.int64))
    if query.kind == "mean" and size != query.components:
        raise ArtifactError(f"field {query.field} has {size} numbers a row; the query asks for {query.components}")


def answer(query: Query, rows: Rows) -> NDArray[np.float32]:
    """The answer: 1-D float32 of `query.dimension` numbers, its 2-norm at most `query.norm_bound`.

    A row weighs 1 / max_rows, and only the newest `max_rows` count.

    Raises:
        TrainingError: the query is for a model, which `answer_evaluation` takes, or a value is not finite.
    """
    count = min(len(next(iter(rows.values()))), query.max_rows)
    share = count / query.max_rows
    if query.kind == "count":
        return np.array([1.0, share], np.float32)
    if query.kind == "evaluate":
        raise TrainingError("a model is evaluated by its graph, not by its examples alone")
    found = rows[query.field]
    # The last `count`, which may be none: the examples can go between check-in and answer.
    values = found[len(found) - count :].reshape(count, math.prod(found.shape[1:])).astype(np.float64)
    if not np.isfinite(values).all():
        raise TrainingError(f"field {query.field} holds NaN or infinity", hint="drop or repair those examples")
    unit = (np.clip(values, query.low, query.high) - query.low) / (query.high - query.low)  # into [0, 1]
    if query.kind == "mean":
        return np.append(unit.sum(axis=0) / query.max_rows, share).astype(np.float32)
    # Fields of several numbers a row spread the row's weight over them.
    bins = np.minimum((unit * query.bins).astype(np.int64), query.bins - 1)
    counts = np.bincount(bins.reshape(-1), minlength=query.bins) / max(1, values.shape[1])
    return (counts / query.max_rows).astype(np.float32)


def answer_evaluation(query: Query, loss: float, right: float | None, count: int) -> NDArray[np.float32]:
    """The answer to an evaluation: mean loss clipped to [0, high], share of right labels and rows, weighted by rows."""
    share = min(count, query.max_rows) / query.max_rows
    told = min(max(loss, 0.0), query.high) / query.high
    return np.array([share * told, share * (right or 0.0), share], np.float32)
