"""Rebuild the devices' secrets from shares of which some may be bad, in bounded time.

Of a device in U3 the self seed is rebuilt, of one that dropped after share_keys the mask key; never both of one
device, which is for the caller's state machine to hold. A rebuilt secret is checked against what its owner published,
so that a wrong one never passes. A holder whose share of one secret was found bad is suspected in all others: an
erasure costs half of what an error does, so each secret that falls helps with those that did not. Knows no messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.secagg.decoding import bad_shares
from coordinator.secagg.work import Workers, dealt
from edge_sdk.errors import RemoteProtocolError
from edge_sdk.secagg import client, shamir
from edge_sdk.secagg.field import ORDER
from edge_sdk.secagg.keys import KeyPair

_FOLDS = 2
_OWNERS_IN_A_BATCH = 256

PASSES = 8
"""How often what failed is tried again with what was learnt since."""

SWEEPS = 4_096
"""How many subsets of shares are tried by brute force in a round, where nothing else helps."""


class NotRebuilt(RemoteProtocolError):
    """Too few of the shares of some devices' secrets are good.

    Attributes:
        owners: those devices.
        liars: holders whose shares of other secrets were found bad.
    """

    def __init__(self, owners: frozenset[int], liars: frozenset[int]) -> None:
        shown = ", ".join(str(owner) for owner in sorted(owners)[:10])
        super().__init__(
            f"not enough good shares of the secrets of {len(owners)} devices: {shown}",
            hint="the round cannot be unmasked; abandon it",
        )
        self.owners = owners
        self.liars = liars


@dataclass(frozen=True, slots=True)
class Owner:
    """A device of U2, and what came of the one of its secrets that may be rebuilt.

    Attributes:
        index: in the roster.
        alive: whether it is in U3: then the secret is its self seed, else its mask key.
        check: H(b_u) of one alive, else s_pk.
        shares: by the point x = holder's index + 1.
    """

    index: int
    alive: bool
    check: bytes
    shares: Mapping[int, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """One secret, and the points of the shares that were found bad on the way."""

    index: int
    secret: bytes = field(repr=False)
    bad: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Secrets:
    """All secrets of a round by owner, and the holders caught with a bad share."""

    by_owner: Mapping[int, bytes] = field(repr=False)
    liars: frozenset[int]


def rebuild_all(owners: Sequence[Owner], threshold: int, ctx: bytes, workers: Workers) -> Secrets:
    """Rebuild every owner's secret.

    A mask key rebuilt equals the device's but for the bits that X25519 ignores, should a bad share have changed those.

    Raises:
        NotRebuilt: for some there are too few good shares, or too many bad ones for the work allowed.
    """
    found: dict[int, bytes] = {}
    accused: Counter[int] = Counter()

    def take(rebuilt: Iterable[Rebuilt]) -> bool:
        before = len(found)
        for one in rebuilt:
            found[one.index] = one.secret
            accused.update(one.bad)
        return len(found) > before

    def attempt(suspects: frozenset[int]) -> bool:
        missing = [owner for owner in owners if owner.index not in found]
        batches = [_Batch(part, threshold, ctx, suspects) for part in dealt(missing, lambda _: 1, _OWNERS_IN_A_BATCH)]
        return take(one for rebuilt in workers.each(_rebuild_batch, batches) for one in rebuilt)

    attempt(frozenset())
    sweep = _Sweep(threshold, ctx)
    for _ in range(PASSES):
        if len(found) == len(owners):
            break
        helped = bool(accused) and attempt(frozenset(accused))
        # An owner can frame honest holders of its own secret; few owners accuse those.
        helped |= attempt(frozenset(x for x, times in accused.items() if times > 1))
        if not helped:
            missing = (owner for owner in owners if owner.index not in found)
            if not take(one for one in map(sweep.rebuild, missing) if one is not None):
                break
    liars = frozenset(x - 1 for x in accused)
    if missing_owners := {owner.index for owner in owners} - found.keys():
        raise NotRebuilt(frozenset(missing_owners), liars)
    return Secrets(found, liars)


@dataclass(frozen=True, slots=True)
class _Batch:
    owners: tuple[Owner, ...]
    threshold: int
    ctx: bytes
    suspects: frozenset[int]


def _rebuild_batch(batch: _Batch) -> tuple[Rebuilt, ...]:
    """Those that could be rebuilt."""
    found = (_rebuild(owner, batch.threshold, batch.ctx, batch.suspects) for owner in batch.owners)
    return tuple(one for one in found if one is not None)


def _rebuild(owner: Owner, threshold: int, ctx: bytes, suspects: frozenset[int]) -> Rebuilt | None:
    """Try the shares as they are, then without those that error location finds (at most half the redundancy)."""
    shares = {x: share for x, share in _usable(owner).items() if x not in suspects}
    if not 1 <= threshold <= len(shares):
        return None
    secret = shamir.combine(shares, threshold)
    if _is_right(owner, secret, ctx):
        return Rebuilt(owner.index, secret)
    if len(shares) < threshold + 2:
        return None  # there is no redundancy to locate an error with
    for attempt in range(_FOLDS):
        bad = bad_shares(shares, threshold, attempt)
        if not bad or len(shares) - len(bad) < threshold:
            continue
        secret = shamir.combine({x: share for x, share in shares.items() if x not in bad}, threshold)
        if _is_right(owner, secret, ctx):
            return Rebuilt(owner.index, secret, frozenset(bad))
    return None


class _Sweep:
    """Tries each run of neighbouring points alone, so long as the round's allowance lasts."""

    def __init__(self, threshold: int, ctx: bytes) -> None:
        self._threshold = threshold
        self._ctx = ctx
        self._left = SWEEPS

    def rebuild(self, owner: Owner) -> Rebuilt | None:
        shares = _usable(owner)
        for subset in self._runs(shares):
            if self._left == 0:
                return None
            self._left -= 1
            secret = shamir.combine(subset, self._threshold)
            if _is_right(owner, secret, self._ctx):
                return Rebuilt(owner.index, secret, frozenset(self._strangers(subset, shares, secret)))
        return None

    def _runs(self, shares: Mapping[int, bytes]) -> Iterator[dict[int, bytes]]:
        xs = sorted(shares)
        if 1 <= self._threshold < len(xs):
            for start in range(len(xs)):
                yield {x: shares[x] for x in (xs + xs)[start : start + self._threshold]}

    def _strangers(self, good: dict[int, bytes], shares: Mapping[int, bytes], secret: bytes) -> Iterator[int]:
        """The points whose share does not give the same secret in place of a good one."""
        rest = dict(list(good.items())[1:])
        for x, share in shares.items():
            if x not in good and shamir.combine({**rest, x: share}, self._threshold) != secret:
                yield x


def _usable(owner: Owner) -> dict[int, bytes]:
    return {x: share for x, share in owner.shares.items() if len(share) == client.SECRET_BYTES and 1 <= x <= ORDER}


def _is_right(owner: Owner, secret: bytes, ctx: bytes) -> bool:
    if owner.alive:
        return client.commitment(ctx, owner.index, secret) == owner.check
    return KeyPair.from_private(secret).public == owner.check
