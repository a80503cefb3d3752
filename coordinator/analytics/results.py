"""A query run's estimates, from the released means in the store."""

from __future__ import annotations

import math

import numpy as np

from coordinator.analytics.estimate import Estimate, estimates
from coordinator.config import TaskConfig
from coordinator.service.tasks import list_rounds, newest_model
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from edge_sdk.analytics.query import parse_query


def read_estimates(database: Database, blobs: Blobs, config: TaskConfig) -> list[Estimate]:
    """What the rounds of a query run say together; nothing before the first was released."""
    reports = [view.reported for view in list_rounds(database, config.task) if view.phase == "committed"]
    if not reports:
        return []
    encoding = config.encoding
    # Of one round's mean over r devices: each adds its noise and what rounding adds, at most a quarter of a step.
    variances = [(encoding.device_variance + 0.25) / (r * encoding.scale**2) for r in reports]
    _, mean = newest_model(database, blobs, config.task)
    return estimates(
        parse_query(config.query),
        np.frombuffer(mean, "<f4"),
        round(sum(reports) / len(reports)),
        math.sqrt(sum(variances)) / len(reports),
    )
