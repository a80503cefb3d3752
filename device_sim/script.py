"""What goes wrong in a simulated fleet, as values: who vanishes, who dies, and when.

Light, so that a process of devices knows its script without knowing the coordinator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from edge_sdk.protocol.messages import AdvertiseKeys, CheckIn, Endorsement, MaskedInput, ShareKeys, UnmaskingShares

STAGES: Mapping[str, type] = {
    "check_in": CheckIn,
    "advertise_keys": AdvertiseKeys,
    "share_keys": ShareKeys,
    "masked_input": MaskedInput,
    "endorsement": Endorsement,
    "unmasking": UnmaskingShares,
}
"""The messages at which a device can be made to vanish, by stage."""


@dataclass(frozen=True, slots=True)
class Vanish:
    """A device goes offline just before it sends this stage's message, until a later round is announced."""

    device_id: str
    round_number: int
    stage: str


@dataclass(frozen=True, slots=True)
class Reboot:
    """A device's process dies just after it sent this stage's message, and starts again a second later."""

    device_id: str
    round_number: int
    stage: str


@dataclass(frozen=True, slots=True)
class CrashCoordinator:
    """The coordinator's process dies instead of taking in the delivery of this number, and starts again at once."""

    delivery: int


Fault: TypeAlias = Vanish | Reboot | CrashCoordinator
