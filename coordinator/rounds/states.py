"""The states of a round, frozen, and what can be read off them.

selection -> configuration (advertise_keys, share_keys) -> reporting (masked_input) -> unmasking -> released. A state
holds what has been accepted so far; vectors never enter it, only their digests (the running sum is the driver's).
Knows no clock, store, broker or log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_sdk.protocol.messages import (
    AbandonReason,
    AdvertiseKeys,
    Bitmap,
    Digest,
    Endorsement,
    MaskedInput,
    Plan,
    ShareKeys,
    Survivors,
    UnmaskingShares,
)
from edge_sdk.secagg.graph import GraphParameters


@dataclass(frozen=True, slots=True)
class Pacing:
    """How long a round waits.

    Attributes:
        selection_timeout_s: from the announcement to the end of selection.
        advertise_timeout_s, share_timeout_s, report_timeout_s, unmask_timeout_s: of each stage.
        quiet_s: a stage with nearly all of those expected closes early once nobody new came for so long.
        backoff_s, backoff_limit_s: after an abandoned round the next one opens so much later; it doubles with each in
            a row, up to the limit.
        sit_out_s: so long a device that declined waits, or one that spoiled a round; it doubles each time.
    """

    selection_timeout_s: float = 600.0
    advertise_timeout_s: float = 60.0
    share_timeout_s: float = 60.0
    report_timeout_s: float = 1_200.0
    unmask_timeout_s: float = 60.0
    quiet_s: float = 5.0
    backoff_s: float = 5.0
    backoff_limit_s: float = 600.0
    sit_out_s: float = 300.0


@dataclass(frozen=True, slots=True)
class RoundConfig:
    """All that a round needs, fixed when it opens.

    Attributes:
        plan: the same to every device; its goal_count and min_reports are the round's.
        plan_digest: SHA-256 of the plan's body bytes, which enters every device's context.
        context: H(suite || rid || plan_digest || model), as the devices compute it.
        min_check_ins: the fewest check-ins worth a round.
        pacing: the stages' time limits.
    """

    plan: Plan
    plan_digest: Digest
    context: bytes
    min_check_ins: int
    pacing: Pacing


@dataclass(frozen=True, slots=True)
class Entry:
    """One device of a roster."""

    device_id: str
    certificate: bytes
    message: AdvertiseKeys


@dataclass(frozen=True, slots=True)
class Cohort:
    """The roster (U1): who advertised, in index order, with the tree and the graph over them."""

    entries: tuple[Entry, ...]
    index_of: Mapping[str, int]
    root: Digest
    proofs: tuple[bytes, ...] = field(repr=False)
    parameters: GraphParameters
    neighbours: tuple[tuple[int, ...], ...] = field(repr=False)
    committee: frozenset[int] = field(default=frozenset(), repr=False)
    quorum: int = 0
    _grid: NDArray[np.int32] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_grid", np.array(self.neighbours, np.int32))

    @property
    def size(self) -> int:
        return len(self.entries)

    def names(self, indices: Iterable[int]) -> tuple[str, ...]:
        """The device ids at these indices, in order."""
        return tuple(self.entries[index].device_id for index in sorted(indices))

    def neighbours_among(self, indices: Iterable[int]) -> NDArray[np.int64]:
        """For each device of the roster, how many of its neighbours are among these."""
        among = np.zeros(self.size, bool)
        among[list(indices)] = True
        counted: NDArray[np.int64] = among[self._grid].sum(axis=1)
        return counted


@dataclass(frozen=True, slots=True)
class Selecting:
    """Check-ins are taken until the goal count is reached; those turned away are not waited for."""

    config: RoundConfig
    opened_at: float
    last_at: float
    checked_in: Mapping[str, bytes]
    turned_away: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Advertising:
    """Stage 1: the plan is out, keys come in."""

    config: RoundConfig
    opened_at: float
    last_at: float
    selected: Mapping[str, bytes]
    gone: frozenset[str]
    advertised: Mapping[str, AdvertiseKeys]


@dataclass(frozen=True, slots=True)
class Sharing:
    """Stage 3: the roster is out, shares come in."""

    config: RoundConfig
    opened_at: float
    last_at: float
    selected: int
    cohort: Cohort
    gone: frozenset[int]
    shared: Mapping[int, ShareKeys]


@dataclass(frozen=True, slots=True)
class Reporting:
    """Stage 4: boxes are out, masked inputs come in; U2 is fixed."""

    config: RoundConfig
    opened_at: float
    last_at: float
    selected: int
    cohort: Cohort
    gone: frozenset[int]
    shared: Mapping[int, ShareKeys]
    sharers: Bitmap
    reported: Mapping[int, MaskedInput]


@dataclass(frozen=True, slots=True)
class Endorsing:
    """Stage 5a, with a quorum: U3 is fixed and shown to the committee, whose signatures come in."""

    config: RoundConfig
    opened_at: float
    last_at: float
    selected: int
    cohort: Cohort
    gone: frozenset[int]
    shared: Mapping[int, ShareKeys]
    reported: Mapping[int, MaskedInput]
    survivors: Survivors
    endorsements: Mapping[int, Endorsement]


@dataclass(frozen=True, slots=True)
class Unmasking:
    """Stage 6: U3 is fixed and out, shares of secrets come in. `endorsements` are a quorum's, where one is needed."""

    config: RoundConfig
    opened_at: float
    last_at: float
    selected: int
    cohort: Cohort
    gone: frozenset[int]
    shared: Mapping[int, ShareKeys]
    reported: Mapping[int, MaskedInput]
    survivors: Survivors
    endorsements: Mapping[int, Endorsement]
    answers: Mapping[int, UnmaskingShares]


@dataclass(frozen=True, slots=True)
class Releasing:
    """Enough answers are in: the masks are being taken off."""

    unmasking: Unmasking


@dataclass(frozen=True, slots=True)
class Committed:
    """The mean was released and the new model stored."""

    releasing: Releasing


@dataclass(frozen=True, slots=True)
class Abandoned:
    """Nothing was released and nothing spent."""

    last: Selecting | Advertising | Sharing | Reporting | Endorsing | Unmasking | Releasing
    reason: AbandonReason


State = Selecting | Advertising | Sharing | Reporting | Endorsing | Unmasking | Releasing | Committed | Abandoned


@dataclass(frozen=True, slots=True)
class Counts:
    """How many devices reached each stage; a stage not reached counts 0.

    The dropouts of a stage are those before it less those in it.
    """

    checked_in: int
    selected: int
    advertised: int
    shared: int
    reported: int
    answered: int


def counts(state: State) -> Counts:
    """How far how many came."""
    match state:
        case Selecting():
            return Counts(len(state.checked_in), 0, 0, 0, 0, 0)
        case Advertising():
            selected = len(state.selected)
            return Counts(selected, selected, len(state.advertised), 0, 0, 0)
        case Sharing():
            return Counts(state.selected, state.selected, state.cohort.size, len(state.shared), 0, 0)
        case Reporting() | Endorsing():
            n = state.selected
            return Counts(n, n, state.cohort.size, len(state.shared), len(state.reported), 0)
        case Unmasking():
            n = state.selected
            return Counts(n, n, state.cohort.size, len(state.shared), len(state.reported), len(state.answers))
        case Releasing():
            return counts(state.unmasking)
        case Committed():
            return counts(state.releasing)
        case Abandoned():
            return counts(state.last)


def phase(state: State) -> str:
    """The phase's name, for people and for the store."""
    match state:
        case Selecting():
            return "selection"
        case Advertising() | Sharing():
            return "configuration"
        case Reporting():
            return "reporting"
        case Endorsing() | Unmasking() | Releasing():
            return "unmasking"
        case Committed():
            return "committed"
        case Abandoned():
            return "abandoned"


def config_of(state: State) -> RoundConfig:
    """The round's configuration."""
    match state:
        case Selecting() | Advertising() | Sharing() | Reporting() | Endorsing() | Unmasking():
            return state.config
        case Releasing():
            return state.unmasking.config
        case Committed():
            return state.releasing.unmasking.config
        case Abandoned():
            return config_of(state.last)


def survivors_fixed(state: State) -> Survivors | None:
    """U2 and U3 once they are fixed: what must be the same after a restart, or the round is abandoned."""
    match state:
        case Endorsing() | Unmasking():
            return state.survivors
        case Releasing():
            return state.unmasking.survivors
        case Committed():
            return state.releasing.unmasking.survivors
        case Abandoned():
            return survivors_fixed(state.last)
        case _:
            return None
