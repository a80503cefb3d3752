"""Masked vectors on their way in, chunk by chunk, when they are too large to travel inside their message.

The coordinator pulls: it decides how many transfers run at once and how much of each is outstanding, so its memory is
bounded however many devices offer. Parts wait in the spool: after a restart the device offers again, and only what is
missing is pulled.
"""

from __future__ import annotations

from collections.abc import Set

from edge_sdk.errors import RemoteProtocolError
from edge_sdk.protocol import chunks
from edge_sdk.protocol.limits import CHUNK_DEFAULT_BYTES
from edge_sdk.protocol.messages import Digest, MaskedInput, Pull
from edge_sdk.runtime.spool import Spool

MAX_TRANSFERS = 32
STALLED_AFTER_S = 30.0


class _Transfer:
    __slots__ = ("assembly", "message", "parts", "since")

    def __init__(self, message: MaskedInput, spool: Spool, now: float) -> None:
        digest, size_bytes = message.vector.sha256, message.vector.size_bytes
        self.parts = spool.parts(digest, size_bytes, CHUNK_DEFAULT_BYTES)
        self.assembly = chunks.Assembly(digest, size_bytes, CHUNK_DEFAULT_BYTES, self.parts)
        self.message = message
        self.since = now


class Uploads:
    """The transfers of one coordinator process.

    Args:
        worker: its number in the chunk topics.
        spool: where parts wait.
    """

    def __init__(self, worker: int, spool: Spool) -> None:
        self.worker = worker
        self._spool = spool
        self._transfers: dict[str, _Transfer] = {}

    def offer(self, device_id: str, message: MaskedInput, now: float) -> bytes | None:
        """A device offers a vector; it is pulled now, or the device offers again later.

        Returns:
            The vector, where all of it had come before a restart.
        """
        transfer = self._transfers.get(device_id)
        if transfer is None or transfer.message != message:
            self._evict(now)
            if len(self._transfers) >= MAX_TRANSFERS and transfer is None:
                return None
            self._close(device_id)
            self._transfers[device_id] = transfer = _Transfer(message, self._spool, now)
            if transfer.assembly.complete:
                return self._whole(device_id, transfer)
        else:
            # Offered again: the device lost its connection, and with it what was under way.
            transfer.assembly.connection_lost()
        return None

    def chunk(self, device_id: str, frame: bytes, now: float) -> tuple[MaskedInput, bytes] | None:
        """A chunk came; returns the offer and the whole vector once it is complete and its digest holds."""
        transfer = self._transfers.get(device_id)
        if transfer is None:
            raise RemoteProtocolError(f"a chunk from {device_id}, which has no transfer")
        if transfer.assembly.receive(frame, now):
            transfer.since = now
        if not transfer.assembly.complete:
            return None
        return transfer.message, self._whole(device_id, transfer)

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
            self._transfers.pop(device_id).parts.remove()

    def _whole(self, device_id: str, transfer: _Transfer) -> bytes:
        del self._transfers[device_id]
        try:
            return transfer.assembly.finish()
        finally:
            transfer.parts.remove()

    def _evict(self, now: float) -> None:
        for device_id in [d for d, t in self._transfers.items() if now - t.since > STALLED_AFTER_S]:
            self._close(device_id)

    def _close(self, device_id: str) -> None:
        transfer = self._transfers.pop(device_id, None)
        if transfer is not None:
            transfer.parts.close()
