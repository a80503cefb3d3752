"""The server's last stage: expand the masks that are still in the survivors' sum, and take them off.

The masks are summed apart, batch by batch, by whoever works: each batch gives one vector, so that memory is a few
vectors however many devices there are. Knows no messages and no state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from coordinator.secagg.work import HERE, Workers, dealt
from edge_sdk.errors import LocalProtocolError
from edge_sdk.secagg import client, modular
from edge_sdk.secagg.keys import KeyPair

_WORDS_IN_A_BATCH = 1 << 28
"""About a tenth of a second of work: much more than it costs to send a vector back."""


@dataclass(frozen=True, slots=True)
class Masking:
    """What every mask of a round depends on.

    Attributes:
        bits: of the modulus.
        ctx, root: of the round and of its roster.
        sharers_digest: H(U2), as the devices used it.
    """

    bits: int
    ctx: bytes
    root: bytes
    sharers_digest: bytes


@dataclass(frozen=True, slots=True)
class Dropped:
    """A device in U2 but not in U3: its mask key, and its neighbours in U3 as (index, mask public key)."""

    index: int
    mask_private: bytes = field(repr=False)
    live_neighbours: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class MaskBatch:
    """Masks to be summed: the self seeds of devices in U3, and all pairwise masks of dropped ones."""

    masking: Masking
    length: int
    self_seeds: tuple[bytes, ...] = field(repr=False)
    dropped: tuple[Dropped, ...]


def unmask(
    total: modular.Words,
    masking: Masking,
    self_seeds: Mapping[int, bytes],
    dropped: Sequence[Dropped],
    workers: Workers = HERE,
) -> modular.Words:
    """Return the sum modulo 2^bits of the survivors' plain vectors, as a new vector.

    Args:
        total: the sum of the masked vectors of the devices in U3, in the work dtype.
        self_seeds: b_u by index, one for every device in U3.
        dropped: every device in U2 but not in U3.
    """
    if both := self_seeds.keys() & {device.index for device in dropped}:
        raise LocalProtocolError(f"devices {sorted(both)} are taken both for alive and for dropped")
    unmasked = total.astype(modular.work_dtype(masking.bits))
    for part in workers.each(sum_of_masks, _batches(masking, len(total), tuple(self_seeds.values()), dropped)):
        unmasked += part
    return modular.reduce(unmasked, masking.bits)


def sum_of_masks(batch: MaskBatch) -> modular.Words:
    """Return what must be added to the masked sum to take the masks of this batch off, in the work dtype."""
    part = np.zeros(batch.length, modular.work_dtype(batch.masking.bits))
    modular.add_masks(part, list(_masks(batch)))
    return part


def _masks(batch: MaskBatch) -> Iterator[tuple[bytes, int]]:
    masking = batch.masking
    for seed in batch.self_seeds:
        yield seed, -1
    for device in batch.dropped:
        pair = KeyPair.from_private(device.mask_private)
        for neighbour, public in device.live_neighbours:
            seed, sign = client.pairwise_mask(
                pair.agree(public), masking.ctx, masking.root, masking.sharers_digest, neighbour, device.index
            )
            yield seed, -sign


def _batches(masking: Masking, length: int, seeds: Sequence[bytes], dropped: Sequence[Dropped]) -> Iterator[MaskBatch]:
    # The longest first, so that no worker is left alone at the end with much to do.
    items: list[bytes | Dropped] = [*dropped, *seeds]
    for batch in dealt(items, _masks_of, max(1, _WORDS_IN_A_BATCH // max(1, length))):
        some = tuple(item for item in batch if isinstance(item, bytes))
        yield MaskBatch(masking, length, some, tuple(item for item in batch if isinstance(item, Dropped)))


def _masks_of(item: bytes | Dropped) -> int:
    return len(item.live_neighbours) if isinstance(item, Dropped) else 1
