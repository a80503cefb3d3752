"""Shamir's secret sharing over GF(2^16) of byte strings of even length.

A secret of 2L bytes is L little-endian 16-bit symbols, each the value at 0 of its own random polynomial
of degree threshold-1. A share is the L values at x, of the same length as the secret. Knows no protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edge_sdk.errors import LocalProtocolError, RemoteProtocolError
from edge_sdk.secagg import field
from edge_sdk.secagg.suite import Stream

_BLOCK_ELEMENTS = 1 << 18


def split(secrets: Sequence[bytes], threshold: int, xs: Sequence[int], randomness: Stream) -> list[dict[int, bytes]]:
    """Share secrets of equal length among the points `xs`; return for each secret its shares by x.

    Takes 2 * (threshold-1) * total symbols bytes of `randomness`: the coefficients of x^1 of every symbol
    of every secret in order, then those of x^2, and so on.

    Raises:
        LocalProtocolError: the points are not distinct and in 1..65535, the threshold is not in
            1..len(xs), or the secrets are not of one even length.
    """
    if not 1 <= threshold <= len(xs):
        raise LocalProtocolError(f"a threshold of {threshold} cannot be met by {len(xs)} shares")
    if len(set(xs)) != len(xs) or not all(1 <= x <= field.ORDER for x in xs):
        raise LocalProtocolError("the points of shares must be distinct and in 1..65535")
    size_bytes = len(secrets[0])
    if size_bytes % 2 or not size_bytes or any(len(secret) != size_bytes for secret in secrets):
        raise LocalProtocolError("secrets shared together must have one even length")

    exp, log = field.tables()
    constants = np.frombuffer(b"".join(secrets), "<u2")
    higher = randomness.uint16((threshold - 1) * len(constants))
    log_coefficients = log[np.concatenate([constants, higher]).reshape(threshold, -1)]
    log_points = field.log_powers(np.array(xs, np.uint16), threshold)
    block = max(1, _BLOCK_ELEMENTS // log_coefficients.size)
    values = np.empty((len(xs), len(constants)), "<u2")
    for start in range(0, len(xs), block):
        rows = slice(start, start + block)
        terms = exp[log_points[rows, :, None] + log_coefficients]
        values[rows] = field.exclusive_or(terms, axis=1)
    data = values.tobytes()
    row_bytes = size_bytes * len(secrets)
    return [
        {
            x: data[offset : offset + size_bytes]
            for x, offset in zip(xs, range(size_bytes * secret, len(data), row_bytes), strict=True)
        }
        for secret in range(len(secrets))
    ]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret that the `threshold` shares of lowest x determine; a bad share gives a wrong secret.

    Raises:
        RemoteProtocolError: there are fewer shares, or they are not of one even length, or an x is not in
            1..65535.
    """
    if threshold < 1:
        raise LocalProtocolError(f"a threshold of {threshold} is not possible")
    if len(shares) < threshold:
        raise RemoteProtocolError(f"{len(shares)} shares do not reach the threshold of {threshold}")
    xs = sorted(shares)[:threshold]
    size_bytes = len(shares[xs[0]])
    if size_bytes % 2 or any(len(shares[x]) != size_bytes for x in xs):
        raise RemoteProtocolError("shares of one secret must have one even length")
    if xs[0] < 1 or xs[-1] > field.ORDER:
        raise RemoteProtocolError("the points of shares must be in 1..65535")
    exp, log = field.tables()
    weights = field.log_weights_at_zero(np.array(xs, np.uint16))
    values = np.frombuffer(b"".join(shares[x] for x in xs), "<u2").reshape(threshold, -1)
    return field.exclusive_or(exp[log[values] + weights[:, None]], axis=0).astype("<u2").tobytes()
