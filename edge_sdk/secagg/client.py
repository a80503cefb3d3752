"""The device's stages of a secure aggregation round (SA-1), as functions of bytes.

What a device advertises, how it shares its two secrets with its neighbours, how it masks its vector, and
how it opens the shares that it holds for others. Knows no messages, signatures or state: the session
decides when each may happen, and that nothing is answered twice. Indices travel as u32, little-endian.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray

from edge_sdk.errors import LocalProtocolError, RemoteProtocolError
from edge_sdk.secagg import modular, shamir
from edge_sdk.secagg.keys import KEY_BYTES, KeyPair
from edge_sdk.secagg.suite import Stream, derive, digest, hkdf, label

SECRET_BYTES = 32
SHARE_BYTES = SECRET_BYTES
BOX_BYTES = 2 * SHARE_BYTES + 16
_NONCE = bytes(12)  # every box has a key of its own, used once
_ADVERTISEMENT = label("advertise-keys")
_STATEMENT = label("masked-input")
_ENDORSEMENT = label("endorsement")
_COMMITMENT = label("self-seed")
_SHARE = label("share")
_MASK = label("mask")


@dataclass(frozen=True, slots=True)
class RoundKeys:
    """A device's two ephemeral pairs of one round: `c`, the channel, and `s`, the masks."""

    channel: KeyPair
    mask: KeyPair


@dataclass(frozen=True, slots=True)
class Peer:
    """Another device of the roster and its two public keys, authenticated by the caller."""

    index: int
    channel_public: bytes
    mask_public: bytes


@dataclass(frozen=True, slots=True)
class SealedShares:
    """What a device sends at share_keys: H(b_u), and for each neighbour, by index, its 80-byte box."""

    commitment: bytes
    boxes: tuple[tuple[int, bytes], ...] = field(repr=False)


def round_keys(entropy: bytes) -> RoundKeys:
    """Return the two pairs that 32 random bytes give."""
    return RoundKeys(
        channel=KeyPair.from_private(derive(entropy, "channel key")),
        mask=KeyPair.from_private(derive(entropy, "mask key")),
    )


def advertisement(ctx: bytes, channel_public: bytes, mask_public: bytes) -> bytes:
    """Return the bytes that a device signs with its identity key at advertise_keys."""
    return _ADVERTISEMENT + ctx + channel_public + mask_public


def statement(ctx: bytes, root: bytes, index: int, sharers_digest: bytes) -> bytes:
    """Return the bytes that a device signs with its identity key to say for which U2 it masked."""
    return _STATEMENT + ctx + root + _u32(index) + sharers_digest


def endorsement(ctx: bytes, survivors_digest: bytes) -> bytes:
    """Return the bytes that a member of the committee signs with its identity key at stage 5a."""
    return _ENDORSEMENT + ctx + survivors_digest


def roster_leaf(
    index: int, certificate_der: bytes, channel_public: bytes, mask_public: bytes, signature: bytes
) -> bytes:
    """Return one device's leaf of the roster's Merkle tree.

    index u32 || c_pk (32) || s_pk (32) || certificate length u32 || certificate || signature.
    """
    if (len(channel_public), len(mask_public)) != (KEY_BYTES, KEY_BYTES):
        raise RemoteProtocolError("an X25519 public key in the roster is not 32 bytes")
    return b"".join(
        (
            _u32(index),
            channel_public,
            mask_public,
            _u32(len(certificate_der)),
            certificate_der,
            signature,
        )
    )


def commitment(ctx: bytes, index: int, self_seed: bytes) -> bytes:
    """Return H(b_u), by which the coordinator checks a rebuilt self seed."""
    return digest(_COMMITMENT, ctx, _u32(index), self_seed)


def seal_shares(
    keys: RoundKeys,
    self_seed: bytes,
    ctx: bytes,
    root: bytes,
    index: int,
    peers: Iterable[Peer],
    threshold: int,
    entropy: bytes,
) -> SealedShares:
    """Share the self seed b_u and the mask key s_sk among the neighbours, one box each.

    Neighbour v's shares are those at x = v+1. Both secrets share the points; the polynomials come from
    `entropy`, 32 bytes of this use alone. A device holds no share of its own, so that `threshold` counts
    neighbours' shares.
    """
    if len(self_seed) != SECRET_BYTES:
        raise LocalProtocolError(f"a self seed is 32 bytes, not {len(self_seed)}")
    neighbours = sorted(peers, key=lambda peer: peer.index)
    of_seed, of_key = shamir.split(
        (self_seed, keys.mask.private),
        threshold,
        [peer.index + 1 for peer in neighbours],
        Stream(derive(entropy, "share polynomials")),
    )
    boxes = []
    for peer in neighbours:
        key = _box_key(keys, ctx, root, sender=index, receiver=peer.index, public=peer.channel_public)
        shares = of_seed[peer.index + 1] + of_key[peer.index + 1]
        data = _associated_data(ctx, root, sender=index, receiver=peer.index)
        boxes.append((peer.index, ChaCha20Poly1305(key).encrypt(_NONCE, shares, data)))
    return SealedShares(commitment(ctx, index, self_seed), tuple(boxes))


def open_box(keys: RoundKeys, ctx: bytes, root: bytes, my_index: int, peer: Peer, box: bytes) -> tuple[bytes, bytes]:
    """Return the shares of a neighbour's self seed and of its mask key that it sealed for this device.

    Raises:
        RemoteProtocolError: the box was not sealed by this peer for this device in this round and roster.
    """
    if len(box) != BOX_BYTES:
        raise RemoteProtocolError(f"a box of shares is {len(box)} bytes, not {BOX_BYTES}")
    key = _box_key(keys, ctx, root, sender=peer.index, receiver=my_index, public=peer.channel_public)
    data = _associated_data(ctx, root, sender=peer.index, receiver=my_index)
    try:
        shares = ChaCha20Poly1305(key).decrypt(_NONCE, box, data)
    except InvalidTag as error:
        raise RemoteProtocolError(f"the box of shares from device {peer.index} does not open") from error
    return shares[:SECRET_BYTES], shares[SECRET_BYTES:]


def mask(
    vector: NDArray[np.integer[Any]],
    bits: int,
    self_seed: bytes,
    keys: RoundKeys,
    ctx: bytes,
    root: bytes,
    sharers_digest: bytes,
    index: int,
    peers: Iterable[Peer],
) -> modular.Words:
    """Return the vector masked for upload, reduced modulo 2^bits, as a new vector in the work dtype.

    Adds the mask of the self seed and, for each neighbour in U2, the pairwise mask, with sign +1 where
    this device's index is the lower one.

    Args:
        sharers_digest: H(U2), so that masks of devices shown different U2 do not cancel.
        peers: the neighbours that are in U2.
    """
    masked = vector.astype(modular.work_dtype(bits))
    masks = [(self_seed, 1)]
    for peer in peers:
        secret = keys.mask.agree(peer.mask_public)
        masks.append(pairwise_mask(secret, ctx, root, sharers_digest, index, peer.index))
    modular.add_masks(masked, masks)
    return modular.reduce(masked, bits)


def pairwise_mask(
    secret: bytes, ctx: bytes, root: bytes, sharers_digest: bytes, index: int, peer_index: int
) -> tuple[bytes, int]:
    """Return the seed of the mask between two devices and the sign with which device `index` adds it."""
    if index == peer_index:
        raise LocalProtocolError(f"device {index} has no mask with itself")
    low, high = min(index, peer_index), max(index, peer_index)
    seed = hkdf(secret, salt=ctx, info=_MASK + root + sharers_digest + _u32(low) + _u32(high))
    return seed, 1 if index == low else -1


def _box_key(keys: RoundKeys, ctx: bytes, root: bytes, *, sender: int, receiver: int, public: bytes) -> bytes:
    """The root enters too: a second roster for one round would otherwise use a key and nonce twice."""
    info = _SHARE + root + _u32(sender) + _u32(receiver)
    return hkdf(keys.channel.agree(public), salt=ctx, info=info)


def _associated_data(ctx: bytes, root: bytes, *, sender: int, receiver: int) -> bytes:
    return ctx + root + _u32(sender) + _u32(receiver)


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")
