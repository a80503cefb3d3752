"""Merkle trees over a list of byte strings, as in RFC 6962 section 2.1.

A leaf is hashed with a 0x00 prefix and a node with 0x01, so that neither can pass for the other. Knows
nothing of what the leaves mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from edge_sdk.errors import LocalProtocolError
from edge_sdk.secagg.suite import DIGEST_BYTES, digest

_LEAF, _NODE = b"\0", b"\1"


def root(leaves: Sequence[bytes]) -> bytes:
    """Return the 32-byte root of one or more leaves."""
    return _levels(leaves)[-1][0]


def proofs(leaves: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    """Return for every leaf its audit path, the sibling hashes from the bottom up."""
    levels = _levels(leaves)
    return [
        tuple(level[sibling] for level, sibling in _siblings(levels, index) if sibling < len(level))
        for index in range(len(leaves))
    ]


def verify(root: bytes, leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bool:
    """Return whether `leaf` is number `index` of the `size` leaves under `root`."""
    if not 0 <= index < size:
        return False
    node, used = digest(_LEAF, leaf), 0
    while size > 1:
        if index ^ 1 < size:
            if used == len(proof) or len(proof[used]) != DIGEST_BYTES:
                return False
            # A device checks dozens of these in a round, so no helper is called for a node.
            pair = proof[used] + node if index & 1 else node + proof[used]
            node = hashlib.sha256(_NODE + pair).digest()
            used += 1
        index, size = index >> 1, (size + 1) >> 1
    return node == root and used == len(proof)


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """Return the hashes of every level, leaves first; an odd last node moves up unchanged."""
    if not leaves:
        raise LocalProtocolError("a Merkle tree needs at least one leaf")
    levels = [[digest(_LEAF, leaf) for leaf in leaves]]
    while len(level := levels[-1]) > 1:
        above = [digest(_NODE, level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        levels.append(above + level[len(level) & ~1 :])
    return levels


def _siblings(levels: list[list[bytes]], index: int) -> list[tuple[list[bytes], int]]:
    return [(level, (index >> height) ^ 1) for height, level in enumerate(levels[:-1])]
