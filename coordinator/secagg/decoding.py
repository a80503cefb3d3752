"""Locate bad Shamir shares by their inconsistency, without knowing the secret.

The shares of one symbol are a word of a Reed-Solomon code over GF(2^16). The symbols of each share are
folded into one by a random combination, so that a bad share is bad in the fold too (but for 2^-16), and
Berlekamp and Massey's algorithm finds up to half the redundancy of errors. Knows no protocol.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_sdk.secagg import field
from edge_sdk.secagg.field import Elements
from edge_sdk.secagg.suite import Stream, digest, label

_FOLD = label("fold")


def bad_shares(shares: Mapping[int, bytes], threshold: int, attempt: int = 0) -> set[int] | None:
    """Return the x of the bad shares, or None where there are more than (len(shares)-threshold)//2.

    Args:
        shares: x in 1..65535 to share, all of one even length.
        attempt: another value folds with other coefficients.
    """
    points = np.array(sorted(shares), np.uint16)
    data = b"".join(shares[x] for x in points.tolist())
    values = np.frombuffer(data, "<u2").astype(np.uint16).reshape(len(points), -1)
    seed = digest(_FOLD, attempt.to_bytes(4, "little"), points.astype("<u2").tobytes(), data)
    coefficients = Stream(seed).uint16(values.shape[1])
    folded = field.exclusive_or(field.multiply(values, coefficients[None, :]), axis=1)
    locator = _locator(_syndromes(points, folded, threshold))
    roots = points[_evaluate(locator, field.inverse(points)) == 0]
    return set(roots.tolist()) if len(roots) == len(locator) - 1 else None


def _syndromes(points: Elements, values: Elements, threshold: int) -> Elements:
    """Return sum of w_i y_i x_i^j for j below the redundancy, w_i the multipliers of the dual code.

    They are all zero exactly if the values lie on one polynomial of degree below the threshold.
    """
    exp, _ = field.tables()
    multipliers = exp[(field.ORDER - field.log_differences(points)) % field.ORDER]
    powers = exp[field.log_powers(points, len(points) - threshold)]
    terms = field.multiply(powers, field.multiply(values, multipliers)[:, None])
    return field.exclusive_or(terms, axis=0)


def _locator(syndromes: Elements) -> Elements:
    """Return the shortest feedback polynomial of the syndromes, constant term first (Massey 1969)."""
    count = len(syndromes)
    current = np.zeros(count + 1, np.uint16)
    current[0] = 1
    previous, previous_discrepancy = current.copy(), current[:1]
    length, shift = 0, 1
    for position in range(count):
        window = syndromes[position - length : position + 1][::-1]
        discrepancy = field.exclusive_or(field.multiply(current[: length + 1], window), axis=0).reshape(1)
        if not discrepancy[0]:
            shift += 1
            continue
        factor = field.multiply(discrepancy, field.inverse(previous_discrepancy))
        updated = current.copy()
        updated[shift:] ^= field.multiply(previous[: count + 1 - shift], factor)
        if 2 * length <= position:
            previous, previous_discrepancy = current, discrepancy
            length, shift = position + 1 - length, 1
        else:
            shift += 1
        current = updated
    return current[: length + 1]


def _evaluate(polynomial: Elements, points: Elements) -> Elements:
    exp, _ = field.tables()
    powers = exp[field.log_powers(points, len(polynomial))]
    return field.exclusive_or(field.multiply(powers, polynomial[None, :]), axis=1)
