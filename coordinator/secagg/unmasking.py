"""The server's last stage: rebuild the secrets that the survivors' shares allow, and take the masks off.

Of a device in U3 the self seed is rebuilt, of one that dropped after share_keys the mask key; never both
of one device, which is for the caller's state machine to hold. Knows no messages and no state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from coordinator.secagg.decoding import bad_shares
from edge_sdk.errors import LocalProtocolError, RemoteProtocolError
from edge_sdk.secagg import client, field, modular, shamir
from edge_sdk.secagg.keys import KeyPair

_FOLDS = 2


def rebuild_self_seed(shares: Mapping[int, bytes], threshold: int, commitment: bytes, ctx: bytes, index: int) -> bytes:
    """Return device `index`'s self seed b_u from its neighbours' shares by x, checked against H(b_u).

    Raises:
        RemoteProtocolError: too few of the shares are good; see `_rebuild` for what is tried.
    """
    return _rebuild(shares, threshold, lambda seed: client.commitment(ctx, index, seed) == commitment)


def rebuild_mask_key(shares: Mapping[int, bytes], threshold: int, mask_public: bytes) -> bytes:
    """Return a dropped device's mask key s_sk from its neighbours' shares by x, checked against s_pk.

    It equals the device's key but for the bits that X25519 ignores, should a bad share have changed those.

    Raises:
        RemoteProtocolError: too few of the shares are good; see `_rebuild` for what is tried.
    """
    return _rebuild(shares, threshold, lambda key: KeyPair.from_private(key).public == mask_public)


def mask_seeds(
    ctx: bytes,
    root: bytes,
    survivors_digest: bytes,
    self_seeds: Mapping[int, bytes],
    dropped: Mapping[int, tuple[bytes, Mapping[int, bytes]]],
) -> list[tuple[bytes, int]]:
    """Return the (seed, sign) of every mask that is still in the sum of the survivors' vectors.

    Subtracting them (adding with the sign returned) unmasks. The list may be dealt out to processes that
    each add their part into a zero vector.

    Args:
        self_seeds: b_u by index, one for every device in U3.
        dropped: for each device in U2 but not in U3, its mask key and the mask public keys of its
            neighbours in U3 by index.
    """
    if both := self_seeds.keys() & dropped.keys():
        raise LocalProtocolError(f"devices {sorted(both)} are taken both for alive and for dropped")
    masks = [(seed, -1) for seed in self_seeds.values()]
    for index, (mask_private, live_neighbours) in dropped.items():
        pair = KeyPair.from_private(mask_private)
        for neighbour, public in live_neighbours.items():
            seed, sign = client.pairwise_mask(pair.agree(public), ctx, root, survivors_digest, neighbour, index)
            masks.append((seed, -sign))
    return masks


def unmask(
    accumulator: modular.Words,
    bits: int,
    ctx: bytes,
    root: bytes,
    survivors_digest: bytes,
    self_seeds: Mapping[int, bytes],
    dropped: Mapping[int, tuple[bytes, Mapping[int, bytes]]],
) -> modular.Words:
    """Return the sum modulo 2^bits of the survivors' plain vectors, as a new vector; see `mask_seeds`.

    Args:
        accumulator: the sum of the masked vectors of the devices in U3, in the work dtype.
        survivors_digest: H(U2), as the devices used it.
    """
    total = accumulator.astype(modular.work_dtype(bits))
    modular.add_masks(total, mask_seeds(ctx, root, survivors_digest, self_seeds, dropped))
    return modular.reduce(total, bits)


def _rebuild(shares: Mapping[int, bytes], threshold: int, is_right: Callable[[bytes], bool]) -> bytes:
    """Return the secret that `is_right` accepts, trying at most 3 + len(shares) subsets of the shares.

    First the lowest, then those that error location leaves (at most half the redundancy bad), then all
    but each run of neighbouring points (a single bad share among threshold+1).
    """
    usable = {x: share for x, share in shares.items() if len(share) == client.SECRET_BYTES and 1 <= x <= field.ORDER}
    if threshold >= 1:
        for subset in _subsets(usable, threshold):
            secret = shamir.combine(subset, threshold)
            if is_right(secret):
                return secret
    raise RemoteProtocolError(
        f"not enough good shares: {len(shares)} came, {threshold} good ones are needed",
        hint="the round cannot be unmasked; abandon it",
    )


def _subsets(shares: Mapping[int, bytes], threshold: int) -> Iterator[Mapping[int, bytes]]:
    spare = len(shares) - threshold
    if spare < 0:
        return
    yield shares
    if spare == 0:
        return
    for attempt in range(_FOLDS):
        bad = bad_shares(shares, threshold, attempt)
        if bad and len(bad) <= spare:
            yield {x: share for x, share in shares.items() if x not in bad}
    xs = sorted(shares)
    for start in range(len(xs)):
        kept = (xs + xs)[start : start + threshold]
        yield {x: shares[x] for x in kept}
