"""What happens to a round, and what it wants done: events, effects, and the faults that devices are refused for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from coordinator.rounds.states import (
    State,
)
from edge_sdk.protocol.messages import (
    AbandonReason,
    AdvertiseKeys,
    Decline,
    Endorsement,
    MaskedInput,
    Message,
    ShareKeys,
    UnmaskingShares,
)

VerifyPeer = Callable[[bytes, bytes, bytes, float], bool]
"""(certificate DER, message, signature, now) -> whether a good certificate's key signed the message."""


class Fault(StrEnum):
    """Why something a device sent was not taken; counted by name."""

    NOT_SELECTED = "not_selected"
    WRONG_ROUND = "wrong_round"
    WRONG_STAGE = "wrong_stage"
    BAD_SIGNATURE = "bad_signature"
    BAD_KEY = "bad_key"
    NOT_THE_NEIGHBOURS = "not_the_neighbours"
    CHANGED_ITS_MIND = "changed_its_mind"
    WRONG_SIZE = "wrong_size"
    WRONG_SURVIVORS = "wrong_survivors"
    BAD_SHARES = "bad_shares"


STAGE_MESSAGES = (AdvertiseKeys, ShareKeys, MaskedInput, Endorsement, UnmaskingShares, Decline)
"""What a device says inside a round."""

StageMessage = AdvertiseKeys | ShareKeys | MaskedInput | Endorsement | UnmaskingShares | Decline


# ---- events


@dataclass(frozen=True, slots=True)
class CheckedIn:
    """A device whose certificate is good offers itself."""

    device_id: str
    certificate: bytes


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """A device offered itself that sits out: it is not to be waited for."""

    device_id: str


@dataclass(frozen=True, slots=True)
class From:
    """An authenticated stage message. A masked input comes here only when its vector is here, verified."""

    device_id: str
    message: StageMessage


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class Released:
    """The masks are off and the new model is stored."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The round cannot go on."""

    reason: AbandonReason


Event = CheckedIn | TurnedAway | From | Tick | Released | Stopped


# ---- effects


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to one device."""

    device_id: str
    message: Message


@dataclass(frozen=True, slots=True)
class Accumulate:
    """Add this device's vector to the running sum, in the transaction that records the event."""

    device_id: str


@dataclass(frozen=True, slots=True)
class Release:
    """Take off the masks, decode, apply the server optimizer, then say Released or Stopped."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Count a device's fault."""

    device_id: str
    fault: Fault


Effect = Send | Accumulate | Release | Refuse
Step: TypeAlias = tuple[State, tuple[Effect, ...]]
"""The next state, and what should happen."""
