"""A device's part in one population: what it last heard, whether it may take part now, and which model it serves.

Holds no session: a device follows several populations and is in one round at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from edge_sdk.errors import RemoteProtocolError
from edge_sdk.events import Deferred, Event, Installed
from edge_sdk.protocol import topics
from edge_sdk.protocol.messages import NO_ROUND, Announcement, BlobRef, Digest, Plan, RoundId, TaskState
from edge_sdk.runtime.device_store import DeviceStore
from edge_sdk.runtime.learner import Bundle, Learner

log = logging.getLogger("edge.device")

_OFFER_MIN_S: Final = 10.0
_OFFER_MAX_S: Final = 600.0


class Membership:
    """One population that a device follows.

    Args:
        population: its name.
        learner: training and serving for it.
        store: where what must outlive the process is kept.
        on_event: is told when a model is installed, or why the device does not take part now.

    Attributes:
        announcement: the newest heard in this process, or None.
        coordinator: the certificate (DER) that announces to it, or None.
        task: the newest task announced, also before this process; empty where none ever was.
        installed_version: of the model that serves; 0 where none.
        objections: what is against training for it now, in words.
        not_before: when the device may offer itself, seconds since the epoch.
        checked_in: it offered itself to the announced round, and has no answer.
        offered_at: when it last did.
        left: the announced round is over for the device, by declining or otherwise.
        wants_model: the announced task is complete, and its model is not installed here.
        needs: a bundle, and the memory that its training takes in bytes; None where it is not known.
    """

    def __init__(
        self, population: str, learner: Learner, store: DeviceStore, on_event: Callable[[Event], None]
    ) -> None:
        self.population = population
        self.learner = learner
        self._store = store
        self._on_event = on_event
        self.announcement: Announcement | None = None
        self.coordinator = store.content(f"coordinator/{population}")
        self.task = store.get(f"task/{population}") or ""
        self.installed_version = installed_version(store, population)
        kept = store.content(f"blobs/{population}") or b""
        self.blobs = frozenset(Digest(kept[at : at + 32]) for at in range(0, len(kept), 32))
        self.objections: tuple[str, ...] = ()
        self.not_before = 0.0
        self.checked_in = False
        self.offered_at = 0.0
        self.left = False
        self.wants_model = False
        self.needs: tuple[Digest, int] | None = None
        self._deferred = ""

    def hear(self, message: Announcement, certificate: bytes, now: float) -> bool:
        """Take in an authenticated announcement; False where it is the one that was heard last.

        Raises:
            RemoteProtocolError: its task cannot be named, or it is older than one already heard.
        """
        if not topics.is_id(message.task):
            raise RemoteProtocolError(f"an announcement of a task that cannot be named {message.task[:80]!r}")
        if message.sequence < self._store.number(f"sequence/{message.task}"):
            raise RemoteProtocolError("an announcement older than one already heard")
        if self.coordinator != certificate:
            self.coordinator = certificate
            self._store.put(f"coordinator/{self.population}", certificate.hex())
        known = self.announcement
        if known is not None and (known.task, known.sequence) == (message.task, message.sequence):
            return False
        self._store.put(f"sequence/{message.task}", str(message.sequence))
        if self.task != message.task:
            self.task = message.task
            self._store.put(f"task/{self.population}", message.task)
        self.announcement = message
        self.checked_in = False
        self.left = self._store.has_ended(message.rid)
        self.not_before = now
        self.wants_model = message.state is TaskState.COMPLETE and message.model_version > self.installed_version
        return True

    def announces(self, rid: RoundId, task: str) -> bool:
        """Whether this round is the announced one."""
        found = self.announcement
        return found is not None and (found.rid, found.task) == (rid, task)

    @property
    def is_asked(self) -> bool:
        """Whether there is a round to offer itself to, and nothing about the moment is against it."""
        found = self.announcement
        return (
            found is not None
            and found.state is TaskState.OPEN
            and found.rid != NO_ROUND
            and not self.checked_in
            and not self.left
            and not self.objections
        )

    @property
    def is_complete(self) -> bool:
        """Whether the announced task is over, and its last model serves."""
        found = self.announcement
        return found is not None and found.state is TaskState.COMPLETE and self.installed_version >= found.model_version

    @property
    def offer_expires_at(self) -> float:
        """Until when an offer that brings no answer keeps the device from others: the round's selection is over."""
        window_s = self.announcement.selection_window_s if self.announcement is not None else 0.0
        return self.offered_at + min(_OFFER_MAX_S, max(_OFFER_MIN_S, window_s))

    def leave(self, plan: Plan) -> None:
        """A round is over for the device."""
        self.left = self.left or (self.announcement is not None and self.announcement.rid == plan.rid)

    def defer(self, reason: str, now: float) -> None:
        """Say why the device does not take part now, once for each reason in a row."""
        if reason and reason != self._deferred:
            self._on_event(Deferred(self.population, now, reason))
        self._deferred = reason

    def keep(self, blobs: frozenset[Digest]) -> None:
        """Remember which blobs this population's newest model is made of."""
        if blobs != self.blobs:
            self.blobs = blobs
            self._store.put(f"blobs/{self.population}", b"".join(sorted(blobs)).hex())

    def install(self, version: int, bundle: Bundle, checkpoint: BlobRef, content: bytes, now: float) -> None:
        """Serve a model that is here and checked, unless it serves already or is older.

        Raises:
            ArtifactError, StoreError: it cannot be served; the last one stays.
        """
        key = f"installed_sha256/{self.population}"
        if version <= self.installed_version and self._store.get(key) == checkpoint.sha256.hex():
            return
        self.learner.install(version, bundle, content)
        self.installed_version = version
        self._store.put(f"installed_version/{self.population}", str(version))
        self._store.put(key, checkpoint.sha256.hex())
        self._on_event(Installed(self.population, now, version))


def installed_version(store: DeviceStore, population: str) -> int:
    """The version of the model that serves a population; 0 where none."""
    return store.number(f"installed_version/{population}")
