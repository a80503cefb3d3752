"""Session events as entries of the device's journal, and back: the bytes from which a restart folds its state.

A message is kept as the bytes that came, so that nothing is encoded twice. Knows the events and the codec, no store.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from edge_sdk.errors import StoreError
from edge_sdk.privacy.accounting import Release
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.protocol import codec, session
from edge_sdk.protocol.messages import Digest, Outcome, Plan, Quorum, Receipt, Roster, ShareDelivery, Survivors
from edge_sdk.protocol.policy import Spending
from edge_sdk.runtime.device_store import JournalEntry
from edge_sdk.secagg import suite

_RECEIVED = {kind.__name__: kind for kind in (Roster, ShareDelivery, Survivors, Quorum, Receipt, Outcome)}


def from_event(event: session.Event, body: bytes) -> tuple[str, bytes]:
    """The kind and payload of an accepted event.

    Args:
        event: one that does not end the round; those that do are never kept.
        body: of the message in the event, as it came; empty for an event without one.
    """
    match event:
        case session.PlanReceived():
            spending = json.dumps(asdict(event.spending)).encode()
            return "plan", len(spending).to_bytes(4, "little") + spending + body
        case session.Ready():
            return "ready", b""
        case session.Trained(update):
            return "trained", update
        case session.Received(message):
            return type(message).__name__, body
        case session.Failed() | session.Tick() | session.Superseded():
            raise AssertionError("an event that only ends a round is never journaled")


def to_event(entry: JournalEntry) -> session.Event:
    """The event of an entry.

    Raises:
        StoreError: the entry is not one that `from_event` gives.
        RemoteProtocolError: the message in it cannot be read.
    """
    match entry.kind:
        case "plan":
            return _plan_received(entry.payload)
        case "ready":
            return session.Ready()
        case "trained":
            return session.Trained(entry.payload)
        case name if name in _RECEIVED:
            message = codec.decode(_RECEIVED[name], entry.payload)
            return session.Received(message)  # type: ignore[arg-type]  # the names are those of round messages
        case _:
            raise StoreError(
                f"the device's journal holds an unknown event {entry.kind!r}",
                hint="use the version that wrote it",
            )


def _plan_received(payload: bytes) -> session.PlanReceived:
    at = 4 + int.from_bytes(payload[:4], "little")
    try:
        data = json.loads(payload[4:at])
        releases = tuple((_release(**release), count) for release, count in data["releases"])
        spending = Spending(data["participations"], releases)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"the device's journal holds a plan that cannot be read: {error}", hint="use the version that wrote it"
        ) from error
    body = payload[at:]
    return session.PlanReceived(codec.decode(Plan, body), Digest(suite.digest(body)), spending)


def _release(mechanism: int, **values: Any) -> Release:
    return Release(mechanism=Mechanism(mechanism), **values)
