"""Whether the device's owner agreed to training: off until granted, kept over restarts, with every change on record.

Knows no round. Who asks it (the agent before it joins one, the ledger for the purpose) reads it each time, so that a
revocation in another process counts at once too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from edge_sdk.clock import Clock
from edge_sdk.errors import ConfigError, StoreError
from edge_sdk.runtime.device_store import DeviceStore

_KEY: Final = "consent"
_HISTORY_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class ConsentChange:
    """Consent was granted or revoked.

    Attributes:
        granted: False for a revocation.
        purpose: what the examples are used for, in the words that the owner was shown.
        text_version: which text the owner was shown.
        at: seconds since the epoch.
    """

    granted: bool
    purpose: str
    text_version: str
    at: float


class Consent:
    """The owner's consent to training on this device.

    Args:
        store: where it is kept.
        clock: dates each change.
        changed: called after each change.
    """

    def __init__(self, store: DeviceStore, clock: Clock, changed: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._clock = clock
        self._changed = changed
        self._revoked = False

    @property
    def granted(self) -> bool:
        """Whether training is allowed now."""
        if self._revoked:
            return False
        newest = self.newest
        return newest is not None and newest.granted

    @property
    def newest(self) -> ConsentChange | None:
        """The newest change; None where nobody was ever asked."""
        return next(reversed(self.history()), None)

    def history(self) -> tuple[ConsentChange, ...]:
        """All changes, oldest first; of very many the newest hundred.

        Raises:
            StoreError: the record cannot be read.
        """
        text = self._store.get(_KEY)
        try:
            return tuple(ConsentChange(**change) for change in json.loads(text or "[]"))
        except (TypeError, ValueError) as error:
            raise StoreError(
                f"the record of consent cannot be read: {text!r:.80}",
                hint="the file is damaged: restore it from a backup; training stays off until then",
            ) from error

    def grant(self, *, purpose: str, text_version: str) -> None:
        """Record that the owner agreed: training is on from now on.

        Args:
            purpose: what for, as the owner was told; receipts repeat it.
            text_version: of the text that the owner was shown.

        Raises:
            ConfigError: one of them is empty.
            StoreError: it cannot be written; training stays as it was.
        """
        if not purpose.strip() or not text_version.strip():
            raise ConfigError(
                "consent without a purpose or without the version of its text proves nothing",
                hint='say what the owner agreed to: grant(purpose="improve typing", text_version="3")',
            )
        self._add(ConsentChange(True, purpose, text_version, self._clock.now()))

    def revoke(self) -> None:
        """Record that the owner no longer agrees: the device leaves its open round and joins no other.

        What was uploaded before is in sums of many devices and cannot be taken out. `EdgeClient.withdraw` erases
        what is kept on the device too.

        Raises:
            StoreError: it cannot be written. Until this process ends it holds all the same.
        """
        self._revoked = True
        try:
            newest = self.newest
            if newest is None:
                # Kept too: what an installation grants at its first start must not overrule an owner who was first.
                self._add(ConsentChange(False, "", "", self._clock.now()))
            elif newest.granted:
                self._add(ConsentChange(False, newest.purpose, newest.text_version, self._clock.now()))
        except StoreError:
            self._changed()
            raise

    def _add(self, change: ConsentChange) -> None:
        kept = (*self.history(), change)[-_HISTORY_MAX:]
        self._store.put(_KEY, json.dumps([asdict(one) for one in kept]), durable=True)
        self._revoked = not change.granted
        self._changed()
