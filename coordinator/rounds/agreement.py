"""Which graph and which committee a plan's way of agreeing on the survivors asks for."""

from __future__ import annotations

from edge_sdk.errors import PrivacyError
from edge_sdk.protocol.messages import Consistency
from edge_sdk.secagg import graph, quorum
from edge_sdk.secagg.quorum import QuorumParameters

NEIGHBOURS_AT_EASE = 100
"""Up to so many neighbours a stage more costs more than it saves."""


def agreement(consistency: Consistency, size: int, corrupt_share: float, dropout_share: float) -> QuorumParameters:
    """Return degree and threshold for a roster of so many, and the committee, of nobody where there is no quorum.

    Raises:
        PrivacyError: none keeps the promise.
    """
    if consistency is Consistency.QUORUM:
        return quorum.parameters(size, corrupt_share, dropout_share)
    return QuorumParameters(graph.parameters(size, corrupt_share, dropout_share), 0, 0)


def cheapest(size: int, corrupt_share: float, dropout_share: float) -> Consistency:
    """Return what costs devices less: more neighbours, or a stage more and a committee's signatures.

    A quorum, where the threshold would ask for more than a hundred neighbours and the quorum saves each device more of
    them than it shows it signatures.

    Raises:
        PrivacyError: nothing keeps the promise.
    """
    by_threshold = graph.parameters(size, corrupt_share, dropout_share)
    if by_threshold.degree <= NEIGHBOURS_AT_EASE:
        return Consistency.THRESHOLD
    try:
        by_quorum = quorum.parameters(size, corrupt_share, dropout_share)
    except PrivacyError:
        return Consistency.THRESHOLD
    saved = by_threshold.degree - by_quorum.graph.degree
    return Consistency.QUORUM if saved > by_quorum.quorum else Consistency.THRESHOLD
