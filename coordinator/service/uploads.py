"""Masked vectors on their way in, chunk by chunk, when they are too large to travel inside their message.

The coordinator pulls: it decides how many transfers run at once and how much of each is outstanding, so its memory is
bounded however many devices offer. Parts live in memory: after a restart the device offers again and the transfer
starts anew, which costs bytes but never correctness.
"""

from __future__ import annotations

from collections.abc import Set

from edge_sdk.errors import RemoteProtocolError
from edge_sdk.protocol import chunks
from edge_sdk.protocol.limits import CHUNK_DEFAULT_BYTES
from edge_sdk.protocol.messages import Digest, MaskedInput, Pull

MAX_TRANSFERS = 32
STALLED_AFTER_S = 30.0


class _Transfer:
    __slots__ = ("assembly", "message", "since")

    def __init__(self, message: MaskedInput, now: float) -> None:
        size_bytes = message.vector.size_bytes
        parts = chunks.MemoryParts(size_bytes, CHUNK_DEFAULT_BYTES)
        self.assembly = chunks.Assembly(message.vector.sha256, size_bytes, CHUNK_DEFAULT_BYTES, parts)
        self.message = message
        self.since = now


class Uploads:
    """The transfers of one coordinator process.

    Args:
        worker: its number in the chunk topics.
    """

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self._transfers: dict[str, _Transfer] = {}

    def offer(self, device_id: str, message: MaskedInput, now: float) -> None:
        """A device offers a vector; it is pulled now, or the device offers again later."""
        transfer = self._transfers.get(device_id)
        if transfer is None or transfer.message != message:
            self._evict(now)
            if len(self._transfers) >= MAX_TRANSFERS and transfer is None:
                return
            self._transfers[device_id] = _Transfer(message, now)
        else:
            # Offered again: the device lost its connection, and with it what was under way.
            transfer.assembly.connection_lost()

    def chunk(self, device_id: str, frame: bytes, now: float) -> tuple[MaskedInput, bytes] | None:
        """A chunk came; returns the offer and the whole vector once it is complete and its digest holds."""
        transfer = self._transfers.get(device_id)
        if transfer is None:
            raise RemoteProtocolError(f"a chunk from {device_id}, which has no transfer")
        if transfer.assembly.receive(frame, now):
            transfer.since = now
        if not transfer.assembly.complete:
            return None
        del self._transfers[device_id]
        return transfer.message, transfer.assembly.finish()

    def requests(self, now: float) -> list[tuple[str, Pull]]:
        """The pulls to send now."""
        found = []
        for device_id, transfer in self._transfers.items():
            ranges = transfer.assembly.requests(now)
            if ranges:
                firsts = tuple(first for first, _ in ranges)
                counts = tuple(count for _, count in ranges)
                digest = Digest(transfer.assembly.sha256)
                found.append((device_id, Pull(digest, CHUNK_DEFAULT_BYTES, firsts, counts)))
        return found

    def next_deadline(self) -> float | None:
        """When a pull may have to be repeated."""
        times = [t.assembly.next_deadline for t in self._transfers.values()]
        return min((t for t in times if t is not None), default=None)

    def forget(self, device_ids: Set[str]) -> None:
        """These devices' round is over."""
        for device_id in device_ids & self._transfers.keys():
            del self._transfers[device_id]

    def _evict(self, now: float) -> None:
        for device_id in [d for d, t in self._transfers.items() if now - t.since > STALLED_AFTER_S]:
            del self._transfers[device_id]
