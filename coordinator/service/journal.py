"""Round events as journal rows, and back: the bytes from which a restart folds its state.

Knows the events and the codec; the rows are written by whoever holds a transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import assert_never

from coordinator.rounds import events, transitions
from coordinator.rounds.events import CheckedIn, Event, From, Released, Stopped, Tick, TurnedAway
from coordinator.rounds.states import RoundConfig, State
from edge_sdk.errors import StoreError
from edge_sdk.protocol import codec
from edge_sdk.protocol.messages import AbandonReason, MaskedInput, Message


@dataclass(frozen=True, slots=True)
class Row:
    """One accepted event."""

    position: int
    at: float
    kind: str
    device_id: str
    payload: bytes


FIELDS = tuple(field.name for field in fields(Row))
"""The columns of a row."""


def to_row(position: int, event: Event, now: float) -> Row:
    """The row of an event that changed the state. A masked input's vector is in the running sum, not here."""
    match event:
        case CheckedIn(device_id, certificate):
            return Row(position, now, "check_in", device_id, certificate)
        case TurnedAway(device_id):
            return Row(position, now, "turned_away", device_id, b"")
        case From(device_id, message):
            stored: Message = replace(message, inline=b"") if isinstance(message, MaskedInput) else message
            return Row(position, now, type(stored).__name__, device_id, codec.encode(stored))
        case Tick():
            return Row(position, now, "tick", "", b"")
        case Released():
            return Row(position, now, "released", "", b"")
        case Stopped(reason):
            return Row(position, now, "stopped", "", bytes([reason]))
        case _:
            assert_never(event)


_STAGE_MESSAGES = {kind.__name__: kind for kind in events.STAGE_MESSAGES}


def to_event(row: Row) -> Event:
    """The event of a row.

    Raises:
        StoreError: the row is not one that `to_row` writes.
    """
    match row.kind:
        case "check_in":
            return CheckedIn(row.device_id, row.payload)
        case "turned_away":
            return TurnedAway(row.device_id)
        case "tick":
            return Tick()
        case "released":
            return Released()
        case "stopped":
            return Stopped(AbandonReason(row.payload[0]))
        case name if name in _STAGE_MESSAGES:
            message = codec.decode(_STAGE_MESSAGES[name], row.payload)
            return From(row.device_id, message)  # type: ignore[arg-type]  # the names are those of stage messages
        case _:
            raise StoreError(f"the journal holds an unknown event {row.kind!r}", hint="use the version that wrote it")


def fold(config: RoundConfig, opened_at: float, rows: Iterable[Row], verify: events.VerifyPeer) -> State:
    """The state of a round after its journal; effects were carried out or derive from the state."""
    state = transitions.open_round(config, opened_at)
    for row in rows:
        state, _ = transitions.step(state, to_event(row), row.at, verify)
    return state
