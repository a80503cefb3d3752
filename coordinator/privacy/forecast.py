"""What a configuration costs and promises, before anyone runs it.

Everything follows from the task's configuration: the graph from the cohort, the noise from the promise, the bytes from
the very messages that a round sends, encoded here with empty content. Knows no store, no device and no bundle's bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from coordinator.aggregation.server_optimizers import robust_rule, server_optimizer
from coordinator.config import TaskConfig
from coordinator.privacy.calibration import gaussian_multiplier
from edge_sdk.protocol import codec
from edge_sdk.protocol.limits import (
    CHUNK_DEFAULT_BYTES,
    CHUNK_HEADER_BYTES,
    CONTROL_FRAME_MAX_BYTES,
    INLINE_UPDATE_MAX_BYTES,
)
from edge_sdk.protocol.messages import (
    AbandonReason,
    AdvertiseKeys,
    BlobRef,
    CheckIn,
    Consistency,
    Digest,
    MaskedInput,
    Message,
    Neighbour,
    Outcome,
    Plan,
    PublicKey,
    Quorum,
    Receipt,
    ReceiptStatus,
    Roster,
    RoundId,
    ShareDelivery,
    ShareKeys,
    Signature,
    Survivors,
    UnmaskingShares,
    bitmap,
)
from edge_sdk.protocol.policy import composed_epsilon, encoding_of, honest_survivors, release_of
from edge_sdk.secagg import modular
from edge_sdk.secagg.client import BOX_BYTES, SHARE_BYTES
from edge_sdk.secagg.graph import GraphParameters
from edge_sdk.secagg.quorum import QuorumParameters

CERTIFICATE_BYTES = 412
"""Of a device's certificate as the registrar here issues it."""

_VERSIONS = ("0.1.0", "onnxruntime 1.31.1")  # as devices say them; a byte more or less changes nothing

# Accuracy lost to noise on the digits task by noise / signal: docs/utility.md, the same rows.
_UTILITY = (
    (0.2, "1 point or less"),
    (0.5, "1 to 3 points"),
    (1.0, "4 to 5 points"),
    (2.4, "9 to 14 points"),
    (math.inf, "28 points or more: choose more devices, fewer trained parameters or a larger epsilon"),
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """One device's messages of a round, in bytes by message, without the headers of MQTT, TCP and TLS.

    The bundle is fetched once, by devices that do not have it yet, and is counted apart.
    """

    up: tuple[tuple[str, int], ...]
    down: tuple[tuple[str, int], ...]

    @property
    def up_bytes(self) -> int:
        """All that a device sends in a round."""
        return sum(size for _, size in self.up)

    @property
    def down_bytes(self) -> int:
        """All that a device receives in a round."""
        return sum(size for _, size in self.down)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a task's rounds cost and promise.

    Attributes:
        graph: degree and threshold of a full cohort.
        smallest_graph: those of the smallest roster that goes on, `min_reports` devices.
        committee, quorum: who may endorse a full cohort's survivors, and how many must; 0 where the threshold suffices.
        colluders: devices of a full cohort that may work with the coordinator.
        honest_reports: devices of the smallest sum whose noise is counted on.
        traffic: of one device in one round of a full cohort.
        epsilons: (participations, epsilon) at the task's delta; empty without noise.
        noise_to_signal: 2-norm of the noise in the mean of the smallest sum, over the clip norm.
        groups: rounds, each with other devices, whose means are combined robustly; 1 for none.
        robust_ratio: noise in that combination over what one cohort of all those devices would have had.
        central_ratio: noise in that mean over what a trusted server would add for the same promise; None without noise.
    """

    config: TaskConfig
    graph: GraphParameters
    smallest_graph: GraphParameters
    committee: int
    quorum: int
    colluders: int
    honest_reports: int
    traffic: Traffic
    epsilons: tuple[tuple[int, float], ...]
    noise_to_signal: float
    central_ratio: float | None
    groups: int
    robust_ratio: float

    @property
    def utility(self) -> str:
        """What noise of this size cost the digits task of docs/utility.md in accuracy."""
        return next(told for limit, told in _UTILITY if self.noise_to_signal <= limit)


def forecast(config: TaskConfig) -> Forecast:
    """Tell what a configuration costs and promises.

    Raises:
        PrivacyError: no graph or no noise keeps the promise.
    """
    privacy, encoding = config.privacy, config.encoding
    full = config.agreement(config.goal_count)
    plan = config.plan(
        RoundId(bytes(16)),
        round_number=1,
        model_version=1,
        checkpoint=_blob(4 * config.dimension),
        clip_norm=privacy.clip_norm,
    )
    honest = honest_survivors(plan)
    # The mean of m reports holds the variance of m devices, each (z C)^2 / honest, over m^2.
    noise = encoding.noise_multiplier / math.sqrt(config.min_reports * honest)
    central: float | None = None
    if encoding.device_variance:
        least = gaussian_multiplier(rounds=privacy.participation_cap, epsilon=privacy.epsilon, delta=privacy.delta)
        central = noise / (least / config.min_reports)
    return Forecast(
        config=config,
        graph=full.graph,
        smallest_graph=config.agreement(config.min_check_ins).graph,
        committee=full.committee,
        quorum=full.quorum,
        colluders=math.floor(privacy.corrupt_share * config.goal_count + 1e-9),
        honest_reports=honest,
        traffic=_traffic(config, plan, full),
        epsilons=tuple(_epsilons(plan)) if encoding.device_variance else (),
        noise_to_signal=noise * math.sqrt(config.dimension),
        central_ratio=central,
        groups=server_optimizer(config.server_optimizer).groups,
        robust_ratio=_robust_ratio(config),
    )


def _robust_ratio(config: TaskConfig) -> float:
    """Each group has the noise that one large cohort would have, in a mean of fewer; combining takes some off again."""
    found = robust_rule(config.server_optimizer)
    if found is None:
        return 1.0
    rule, groups = found
    # What the rule makes of pure noise, by trying it.
    noise = np.random.default_rng(0).normal(size=(groups, 1 << 14)).astype(np.float32)
    return groups * float(rule(noise).std())


def _epsilons(plan: Plan) -> Iterator[tuple[int, float]]:
    """Tell what one participation costs, and ever twice as many up to the cap."""
    release, cap, count = release_of(plan), plan.participation_cap, 1
    while count < cap:
        yield count, composed_epsilon(((release, count),), plan.delta)
        count *= 2
    yield cap, composed_epsilon(((release, cap),), plan.delta)


def _traffic(config: TaskConfig, plan: Plan, agreed: QuorumParameters) -> Traffic:
    rid, size, degree = plan.rid, config.goal_count, agreed.graph.degree
    indices = tuple(range(degree))
    digest, key, signature = Digest(bytes(32)), PublicKey(bytes(32)), Signature(bytes(64))
    everyone = bitmap(set(range(size)), size)
    proof = bytes(32 * math.ceil(math.log2(size)))
    peer = Neighbour(0, bytes(CERTIFICATE_BYTES), key, key, signature, proof)
    vector = modular.packed_bytes(encoding_of(plan).length, plan.bits)
    inline = bytes(vector if vector <= INLINE_UPDATE_MAX_BYTES else 0)
    by_quorum = plan.consistency is Consistency.QUORUM
    statement = signature if by_quorum else b""
    survivors: Message = Survivors(rid, digest, everyone, everyone)
    if by_quorum:
        members, signed = (peer,) * agreed.quorum, bytes(len(signature) * agreed.quorum)
        stated = bytes(len(signature) * degree)
        survivors = Quorum(rid, digest, everyone, everyone, members, signed, indices, stated)
    up: dict[str, int] = {
        "check-in": _frame(CheckIn(plan.task, rid, *_VERSIONS), CERTIFICATE_BYTES),
        "keys": _frame(AdvertiseKeys(rid, key, key, signature)),
        "shares": _frame(ShareKeys(rid, digest, indices, bytes(BOX_BYTES * degree))),
        "masked update": _frame(MaskedInput(rid, _blob(vector), inline, statement))
        + (0 if inline else _chunks(vector)),
        "unmasking": _frame(UnmaskingShares(rid, digest, indices, bytes(SHARE_BYTES * degree))),
    }
    down: dict[str, int] = {
        "plan": _frame(plan),
        "model": _chunks(plan.checkpoint.size_bytes),
        "roster": _frame(Roster(rid, digest, size, 0, degree, degree, proof, (peer,) * degree)),
        "shares": _frame(ShareDelivery(rid, everyone, indices, bytes(BOX_BYTES * degree))),
        "survivors": _frame(survivors),
        "receipt, outcome": _frame(Receipt(rid, digest, ReceiptStatus.ACCEPTED))
        + _frame(Outcome(rid, True, AbandonReason.NONE, size)),
    }
    return Traffic(tuple(up.items()), tuple(down.items()))


def _frame(message: Message, certificate_bytes: int = 0) -> int:
    """Tell how large a message is as it travels; one too large for a control frame is pulled in chunks."""
    frame = codec.write_frame(message, "*", lambda _: bytes(64), certificate=bytes(certificate_bytes))
    return len(frame) if len(frame) <= CONTROL_FRAME_MAX_BYTES else _chunks(len(frame))


def _chunks(size_bytes: int) -> int:
    """Tell how many bytes carry a blob."""
    return size_bytes + CHUNK_HEADER_BYTES * -(-size_bytes // CHUNK_DEFAULT_BYTES)


def _blob(size_bytes: int) -> BlobRef:
    return BlobRef(Digest(bytes(32)), size_bytes)
