"""From a masked sum to a new model: take off the masks, decode, apply the server optimizer, evaluate.

The heavy part of a round, run beside the loop that talks to devices. It reads a frozen state and returns a value; what
becomes durable, and when, is the engine's business. The only place that sees the unmasked (noised) sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregation.server_optimizers import server_optimizer
from coordinator.config import TaskConfig
from coordinator.rounds.outbox import live
from coordinator.rounds.states import Unmasking
from coordinator.secagg import unmasking
from coordinator.secagg.rebuilding import NotRebuilt, Owner, rebuild_all
from coordinator.secagg.unmasking import Dropped, Masking
from coordinator.secagg.work import HERE, Workers
from edge_sdk.errors import EdgeError, RemoteProtocolError, WorkerError
from edge_sdk.privacy.encode import decode
from edge_sdk.protocol.checks import sharers_digest
from edge_sdk.protocol.messages import AbandonReason
from edge_sdk.protocol.policy import encoding_of
from edge_sdk.secagg.client import SHARE_BYTES
from edge_sdk.secagg.modular import Words


@dataclass(frozen=True, slots=True)
class ReleaseJob:
    """What the release needs.

    Attributes:
        rid: the round.
        config: the task's.
        unmasking: the round with enough answers.
        total: the sum of the masked vectors modulo 2^bits.
        parameters: the checkpoint that devices started from, float32 in layout order.
        optimizer_state: as the server optimizer left it.
        bundle: the artifact's head and its parts, for evaluation.
    """

    rid: bytes
    config: TaskConfig
    unmasking: Unmasking
    total: Words
    parameters: NDArray[np.float32]
    optimizer_state: bytes
    bundle: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """A new model, ready to be stored.

    Attributes:
        rid, parameters, optimizer_state, reports: what was released, and of how many.
        loss, accuracy: on the held-out examples.
        warning: for people.
        within: the share of updates that were within the clip norm, noise included, where devices said so.
        liars: devices that gave bad shares.
    """

    rid: bytes
    parameters: NDArray[np.float32]
    optimizer_state: bytes
    reports: int
    loss: float | None
    accuracy: float | None
    warning: str
    within: float | None = None
    liars: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReleaseFailed:
    """Nothing can be released from this round.

    Attributes:
        rid, reason: of the round.
        detail: for people.
        liars: devices that gave bad shares.
        spoilers: devices whose own secrets could not be rebuilt.
    """

    rid: bytes
    reason: AbandonReason
    detail: str
    liars: tuple[str, ...] = ()
    spoilers: tuple[str, ...] = ()


def release(job: ReleaseJob, workers: Workers = HERE) -> ReleaseResult | ReleaseFailed:
    """Do the job; every failure is a value, as the loop must go on."""
    cohort = job.unmasking.cohort
    try:
        total, caught = unmask(job.unmasking, job.total, workers)
    except NotRebuilt as error:
        # Where most secrets failed, it was their holders.
        few = 2 * len(error.owners) < len(job.unmasking.shared)
        spoilers = cohort.names(error.owners) if few else ()
        return ReleaseFailed(job.rid, AbandonReason.BAD_SHARES, str(error), cohort.names(error.liars), spoilers)
    except WorkerError as error:
        return ReleaseFailed(job.rid, AbandonReason.COORDINATOR_FAILED, str(error))
    liars = cohort.names(caught)
    plan = job.unmasking.config.plan
    reports = len(job.unmasking.reported)
    try:
        decoded = decode(total, encoding_of(plan), job.unmasking.config.context, reports)
    except RemoteProtocolError as error:
        return ReleaseFailed(job.rid, AbandonReason.AGGREGATE_UNUSABLE, str(error))
    mean = decoded.mean
    optimizer = server_optimizer(job.config.server_optimizer)
    parameters, state = optimizer.apply(job.parameters, mean, optimizer.load(job.optimizer_state, mean.size))
    if not np.all(np.isfinite(parameters)):
        return ReleaseFailed(job.rid, AbandonReason.AGGREGATE_UNUSABLE, "the new parameters are not finite")
    loss, accuracy, warning = None, None, ""
    if job.config.evaluation:
        try:
            loss, accuracy = evaluate(job.bundle, job.config.signer, parameters, Path(job.config.evaluation))
        except (EdgeError, OSError, KeyError, ValueError) as error:
            # The devices' work is good whatever becomes of the operator's test set.
            warning = f"the evaluation failed: {error}"
    stored = optimizer.dump(state)
    return ReleaseResult(job.rid, parameters, stored, reports, loss, accuracy, warning, decoded.within, liars)


def unmask(state: Unmasking, total: Words, workers: Workers = HERE) -> tuple[Words, frozenset[int]]:
    """The sum of the survivors' vectors without masks, modulo 2^bits, and the holders caught with bad shares.

    Raises:
        NotRebuilt: too few good shares came to rebuild some device's secret.
        WorkerError: the work could not be done.
    """
    config, cohort = state.config, state.cohort
    survivors = live(state)
    # A share's point is the holder's index + 1.
    shares: dict[int, dict[int, bytes]] = {index: {} for index in state.shared}
    for holder, answer in state.answers.items():
        for position, owner in enumerate(answer.indices):
            shares[owner][holder + 1] = answer.shares[SHARE_BYTES * position : SHARE_BYTES * (position + 1)]
    public = [entry.message.mask_public for entry in cohort.entries]
    owners = [
        Owner(index, index in survivors, message.commitment if index in survivors else public[index], shares[index])
        for index, message in state.shared.items()
    ]
    secrets = rebuild_all(owners, cohort.parameters.threshold, config.context, workers)
    dropped = [
        Dropped(
            index,
            secrets.by_owner[index],
            tuple((other, public[other]) for other in cohort.neighbours[index] if other in survivors),
        )
        for index in sorted(state.shared.keys() - survivors)
    ]
    masking = Masking(config.plan.bits, config.context, cohort.root, sharers_digest(state.survivors.sharers))
    self_seeds = {index: secrets.by_owner[index] for index in survivors}
    return unmasking.unmask(total, masking, self_seeds, dropped, workers), secrets.liars


def evaluate(
    bundle: tuple[bytes, ...], signer: str, parameters: NDArray[np.float32], path: Path
) -> tuple[float, float | None]:
    """Loss and accuracy of a checkpoint on held-out examples at the coordinator's side."""
    from edge_sdk.signing import public_key_from_pem
    from edge_sdk.training.artifact import parse_head
    from edge_sdk.training.evaluation import evaluate as run

    with np.load(path) as data:
        examples = dict(data)
    head, *parts = bundle
    artifact = parse_head(head, signer=public_key_from_pem(signer.encode())).with_parts(parts)
    found = run(artifact, parameters, examples)
    return found.loss, found.accuracy
