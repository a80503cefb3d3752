"""What the two ends say to each other, as frozen values.

The normative text is `schema/PROTOCOL.md`; the byte layout is `schema/messages.fbs`, and `codec` turns one into
the other. Nothing here knows of frames, signatures, topics or time. Sizes are bytes, durations seconds, indices
count the devices of a roster from 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

from edge_sdk.privacy.noise import Mechanism

Digest = NewType("Digest", bytes)
"""A SHA-256 value, 32 bytes."""

RoundId = NewType("RoundId", bytes)
"""16 random bytes that name one round and are never used again."""

PublicKey = NewType("PublicKey", bytes)
"""A raw X25519 public key, 32 bytes."""

Signature = NewType("Signature", bytes)
"""A raw r || s ECDSA P-256 signature, 64 bytes."""

Bitmap = NewType("Bitmap", bytes)
"""One bit an index, least significant bit of byte 0 first; unused bits of the last byte are zero."""

NO_ROUND = RoundId(bytes(16))
"""Stands where a round id would, and no round is open."""

DeviceId = NewType("DeviceId", str)
"""The common name of a device's certificate."""


class TaskState(IntEnum):
    """Whether a task takes check-ins."""

    OPEN = 1
    PAUSED = 2
    COMPLETE = 3


class RejectionReason(IntEnum):
    """Why a check-in was not taken; the device may come again after the retry window."""

    ROUND_FULL = 1
    TASK_CLOSED = 2
    UNKNOWN_TASK = 3
    STALE_ANNOUNCEMENT = 4
    ROUND_IN_PROGRESS = 5
    SITTING_OUT = 6


class DeclineReason(IntEnum):
    """Why a device will not take part in a planned round."""

    SUITE_UNSUPPORTED = 1
    TASK_NOT_ALLOWED = 2
    COHORT_TOO_SMALL = 3
    NOISE_TOO_SMALL = 4
    EPSILON_TOO_LARGE = 5
    PARTICIPATION_CAP = 6
    PLAN_MALFORMED = 7
    BUNDLE_INVALID = 8
    NOT_ENOUGH_EXAMPLES = 9
    TRAINING_FAILED = 10
    ROSTER_UNSOUND = 11
    SURVIVORS_UNSOUND = 12
    ROUND_ALREADY_JOINED = 13
    OVER_TIME_BUDGET = 14
    OVER_TRAFFIC_BUDGET = 15
    OVER_MEMORY_BUDGET = 16


class AbandonReason(IntEnum):
    """Why a round ended without a release."""

    NONE = 0
    TOO_FEW_CHECK_INS = 1
    TOO_FEW_KEYS = 2
    TOO_FEW_SHARES = 3
    TOO_FEW_REPORTS = 4
    TOO_FEW_ANSWERS = 5
    BAD_SHARES = 6
    CANCELLED = 7
    BUDGET_EXHAUSTED = 8
    RESTARTED_DIFFERENTLY = 9
    AGGREGATE_UNUSABLE = 10
    COORDINATOR_FAILED = 11
    NO_QUORUM = 12


class ReceiptStatus(IntEnum):
    """What became of a masked input."""

    ACCEPTED = 1
    DUPLICATE = 2
    LATE = 3
    BAD_DIGEST = 4


class Consistency(IntEnum):
    """What keeps a coordinator from unmasking with two sets of survivors."""

    THRESHOLD = 1
    QUORUM = 2


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A named byte string: its SHA-256 and its size."""

    sha256: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Announcement:
    """Retained, to every device of a population: a task, its newest model, and its open round.

    `rid` is NO_ROUND and `round_number` 0 where no round is open.
    """

    sequence: int
    population: str
    task: str
    state: TaskState
    rid: RoundId
    round_number: int
    rounds: int
    selection_window_s: float
    model_version: int
    bundle: BlobRef
    checkpoint: BlobRef


@dataclass(frozen=True, slots=True)
class Rejection:
    """To one device: not this time; come again within [retry_after_s, retry_after_s + retry_spread_s)."""

    task: str
    reason: RejectionReason
    retry_after_s: float
    retry_spread_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Stage 0, byte for byte the same to every device of a cohort: what the round computes and promises."""

    rid: RoundId
    suite: int
    task: str
    round_number: int
    model_version: int
    bundle: BlobRef
    checkpoint: BlobRef
    goal_count: int
    min_reports: int
    corrupt_share: float
    dropout_share: float
    consistency: Consistency
    dimension: int
    bits: int
    mechanism: Mechanism
    local_noise: bool
    clip_norm: float
    clip_bit: float
    scale: float
    norm_bound: float
    device_variance: int
    noise_multiplier: float
    epsilon: float
    delta: float
    participation_cap: int
    epochs: int
    batch_size: int
    max_steps: int
    learning_rate: float
    expires_after_s: float
    proximal: float


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another device of the roster, neighbour or member of the committee, with what proves that it stands there."""

    index: int
    certificate: bytes
    channel_public: PublicKey
    mask_public: PublicKey
    signature: Signature
    proof: bytes


@dataclass(frozen=True, slots=True)
class Roster:
    """Stage 2: the Merkle root over all who advertised, this device's own proof in it, and its neighbours.

    `committee` and `quorum` are 0 where the threshold alone keeps the survivors one set.
    """

    rid: RoundId
    root: Digest
    size: int
    index: int
    degree: int
    threshold: int
    proof: bytes
    neighbours: tuple[Neighbour, ...]
    committee: int = 0
    quorum: int = 0


@dataclass(frozen=True, slots=True)
class ShareDelivery:
    """Stage 4, down: who shared (U2) and the boxes addressed to this device, 80 bytes for each index."""

    rid: RoundId
    sharers: Bitmap
    indices: tuple[int, ...]
    boxes: bytes


@dataclass(frozen=True, slots=True)
class Survivors:
    """Stage 5: who shared (U2) and whose masked input is in the sum (U3)."""

    rid: RoundId
    root: Digest
    sharers: Bitmap
    survivors: Bitmap


@dataclass(frozen=True, slots=True)
class Quorum:
    """Stage 5b: the survivors, as a quorum of the committee endorsed them, and for what U2 the neighbours masked.

    `endorsements` are 64 bytes for each member, `statements` 64 for each index: the neighbours in U3.
    """

    rid: RoundId
    root: Digest
    sharers: Bitmap
    survivors: Bitmap
    members: tuple[Neighbour, ...]
    endorsements: bytes
    indices: tuple[int, ...]
    statements: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of the masked input with this digest. Only this, never a broker's word, means delivered."""

    rid: RoundId
    sha256: Digest
    status: ReceiptStatus


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a round."""

    rid: RoundId
    committed: bool
    reason: AbandonReason
    reports: int


@dataclass(frozen=True, slots=True)
class Large:
    """Stands for a signed frame too large for one message: pull it, then read it as if it had come."""

    frame: BlobRef


@dataclass(frozen=True, slots=True)
class CheckIn:
    """A device offers itself for the round that an announcement opened."""

    task: str
    rid: RoundId
    sdk_version: str
    runtime_version: str


@dataclass(frozen=True, slots=True)
class AdvertiseKeys:
    """Stage 1: the round's public keys, signed over the context so that neighbours can check them."""

    rid: RoundId
    channel_public: PublicKey
    mask_public: PublicKey
    signature: Signature


@dataclass(frozen=True, slots=True)
class ShareKeys:
    """Stage 3: the commitment to the self seed and one 80-byte box for each neighbour index."""

    rid: RoundId
    commitment: Digest
    indices: tuple[int, ...]
    boxes: bytes


@dataclass(frozen=True, slots=True)
class MaskedInput:
    """Stage 4, up: the masked vector, inline where it is small, else to be pulled by its digest.

    `statement` is the device's signature over the U2 that it masked for, where a quorum needs it; else empty.
    """

    rid: RoundId
    vector: BlobRef
    inline: bytes
    statement: bytes = b""


@dataclass(frozen=True, slots=True)
class Endorsement:
    """Stage 5a, up: a member of the committee signs the survivors that it was shown, and never others."""

    rid: RoundId
    survivors_digest: Digest
    signature: Signature


@dataclass(frozen=True, slots=True)
class UnmaskingShares:
    """Stage 6: for each neighbour in U2 its share, 32 bytes: of the self seed if it survived, else of the mask key."""

    rid: RoundId
    survivors_digest: Digest
    indices: tuple[int, ...]
    shares: bytes


@dataclass(frozen=True, slots=True)
class Decline:
    """A device refuses a plan or cannot go on with it."""

    rid: RoundId
    reason: DeclineReason
    detail: str


@dataclass(frozen=True, slots=True)
class Pull:
    """The receiver of a blob asks for chunks firsts[i] .. firsts[i] + counts[i] - 1, for every i."""

    sha256: Digest
    chunk_bytes: int
    firsts: tuple[int, ...]
    counts: tuple[int, ...]


ToDevice = (
    Announcement | Rejection | Plan | Roster | ShareDelivery | Survivors | Quorum | Receipt | Outcome | Large | Pull
)
ToCoordinator = CheckIn | AdvertiseKeys | ShareKeys | MaskedInput | Endorsement | UnmaskingShares | Decline | Pull
Message = ToDevice | ToCoordinator


def bitmap(indices: frozenset[int] | set[int], size: int) -> Bitmap:
    """The bitmap of a set of indices below `size`."""
    out = bytearray((size + 7) // 8)
    for index in indices:
        out[index >> 3] |= 1 << (index & 7)
    return Bitmap(bytes(out))


def members(bits: Bitmap, size: int) -> frozenset[int] | None:
    """The indices set in a bitmap over `size` devices, or None where its length or its unused bits are wrong."""
    if len(bits) != (size + 7) // 8:
        return None
    found = frozenset(i for i in range(len(bits) * 8) if bits[i >> 3] >> (i & 7) & 1)
    return found if not found or max(found) < size else None
