"""A device's part in one round, as a pure state machine: (state, event, now, entropy) -> (state, effects).

From the accepted plan to the outcome, by the stages of SA-1 (schema/PROTOCOL.md). Each stage is a frozen state that
holds what the next one needs and nothing else. Secrets come from `entropy`, 32 fresh bytes from the operating
system with every step, so a journal of (event, now, entropy) replays a session byte for byte: that is how a
restarted device resumes, and why it can never answer twice with different sets. The module knows no clock, socket,
disk or log, and does no training: effects say what should happen, later events say that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import RemoteProtocolError, TrainingError
from edge_sdk.privacy.encode import encode
from edge_sdk.protocol.checks import (
    Unsound,
    committee_of,
    require_quorum,
    require_sound_delivery,
    require_sound_roster,
    require_sound_survivors,
    sharers_digest,
    survivors_digest,
)
from edge_sdk.protocol.limits import INLINE_UPDATE_MAX_BYTES
from edge_sdk.protocol.messages import (
    AdvertiseKeys,
    Bitmap,
    BlobRef,
    Consistency,
    Decline,
    DeclineReason,
    Digest,
    Endorsement,
    MaskedInput,
    Message,
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
    members,
)
from edge_sdk.protocol.policy import DevicePolicy, Spending, encoding_of, objection
from edge_sdk.secagg import client, modular, suite
from edge_sdk.secagg.client import BOX_BYTES


@dataclass(frozen=True, slots=True)
class Environment:
    """What a session may lean on: who the device is and how it checks its peers.

    Attributes:
        device_id: the common name in its certificate.
        certificate: its certificate, DER.
        sign: its identity key's signature over given bytes, 64 bytes, deterministic.
        verify_peer: (certificate DER, message, signature, now) -> the device id that the registrar vouches for;
            raises IdentityError where the certificate or the signature is not good.
        policy: the device's own floors.
    """

    device_id: str
    certificate: bytes
    sign: Callable[[bytes], bytes]
    verify_peer: Callable[[bytes, bytes, bytes, float], str]
    policy: DevicePolicy


# ---- events


@dataclass(frozen=True, slots=True)
class PlanReceived:
    """An authenticated plan, the digest of its body's bytes, and what left the device before."""

    plan: Plan
    digest: Digest
    spending: Spending


@dataclass(frozen=True, slots=True)
class Ready:
    """Bundle and checkpoint are here, verified."""


@dataclass(frozen=True, slots=True)
class Trained:
    """Training ended; the update is float32 in layout order, little-endian bytes."""

    update: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """The device cannot go on."""

    reason: DeclineReason
    detail: str


@dataclass(frozen=True, slots=True)
class Received:
    """An authenticated message of the coordinator's that carries a round id."""

    message: Roster | ShareDelivery | Survivors | Quorum | Receipt | Outcome


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """The coordinator announced a later round, so this one is over, however it ended."""


Event = PlanReceived | Ready | Trained | Failed | Received | Tick | Superseded


# ---- effects


@dataclass(frozen=True, slots=True)
class Send:
    """Send this to the coordinator, and again until the session moves on."""

    message: Message


@dataclass(frozen=True, slots=True)
class Fetch:
    """Make these blobs present and verified, then say Ready."""

    blobs: tuple[BlobRef, ...]


@dataclass(frozen=True, slots=True)
class Train:
    """Train by the plan from its checkpoint, then say Trained or Failed. `seed` orders the examples."""

    plan: Plan
    seed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Spend:
    """The masked input is about to leave: enter this participation in the device's own ledger."""

    plan: Plan


Effect = Send | Fetch | Train | Spend


# ---- states


@dataclass(frozen=True, slots=True)
class Base:
    """What holds for the whole round."""

    plan: Plan
    context: bytes
    expires_at: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """No round."""


@dataclass(frozen=True, slots=True)
class Preparing:
    """The plan is accepted; bundle and checkpoint are on their way."""

    base: Base


@dataclass(frozen=True, slots=True)
class Advertised:
    """Stage 1 done: our keys are out, the roster is awaited."""

    base: Base
    seed: bytes = field(repr=False)
    keys: client.RoundKeys
    message: AdvertiseKeys
    update: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Shared:
    """Stage 3 done: our secrets are shared, the boxes of others are awaited."""

    base: Base
    seed: bytes = field(repr=False)
    keys: client.RoundKeys
    roster: Roster
    peers: tuple[client.Peer, ...]
    self_seed: bytes = field(repr=False)
    message: ShareKeys
    update: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Holding:
    """Boxes are open and U2 is known; only the update is missing."""

    shared: Shared
    sharers: Bitmap
    shares: Mapping[int, tuple[bytes, bytes]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reported:
    """Stage 4 done: the masked input is ready to be taken; the survivors are awaited."""

    holding: Holding
    vector: bytes = field(repr=False)
    message: MaskedInput
    receipt: ReceiptStatus | None


@dataclass(frozen=True, slots=True)
class Endorsed:
    """Stage 5a done, by a member of the committee: these survivors and no others; the quorum is awaited."""

    reported: Reported
    survivors: Survivors
    message: Endorsement


@dataclass(frozen=True, slots=True)
class Answered:
    """Stage 6 done, once and for all."""

    reported: Reported
    survivors: Survivors
    message: UnmaskingShares


@dataclass(frozen=True, slots=True)
class Ended:
    """The round is over for this device.

    Attributes:
        plan: the round's plan.
        committed: True where the coordinator said that the round was committed.
        declined: why this device left, None where it did not.
        detail: for people.
    """

    plan: Plan
    committed: bool
    declined: DeclineReason | None
    detail: str


State = Waiting | Preparing | Advertised | Shared | Holding | Reported | Endorsed | Answered | Ended
Step = tuple[State, tuple[Effect, ...]]


def base_of(state: State) -> Base | None:
    """The round that a state is in, or None."""
    match state:
        case Waiting() | Ended():
            return None
        case Holding():
            return state.shared.base
        case Reported():
            return state.holding.shared.base
        case Endorsed() | Answered():
            return state.reported.holding.shared.base
        case Preparing() | Advertised() | Shared():
            return state.base
        case _:
            assert_never(state)


def round_id(state: State) -> RoundId | None:
    """The id of the round that a state is in, or None."""
    base = base_of(state)
    return base.plan.rid if base else None


def pending(state: State) -> Message | None:
    """What the coordinator may not have yet: the message to repeat until the session moves on.

    Once the masked input is receipted, only its digest is repeated: it asks for the survivors, should they have been
    lost on their way.
    """
    match state:
        case Advertised() | Shared() | Endorsed() | Answered():
            return state.message
        case Reported():
            return state.message if state.receipt is None else replace(state.message, inline=b"")
        case Waiting() | Preparing() | Holding() | Ended():
            return None
        case _:
            assert_never(state)


def masked_vector(state: State) -> tuple[Digest, bytes] | None:
    """The packed masked vector and its digest, while the coordinator may pull it."""
    match state:
        case Reported():
            return state.message.vector.sha256, state.vector
        case Endorsed() | Answered():
            return masked_vector(state.reported)
        case _:
            return None


def resume(state: State) -> tuple[Effect, ...]:
    """The effects to carry out again after a restart: what a replayed journal leaves undone."""
    match state:
        case Preparing():
            return (Fetch((state.base.plan.bundle, state.base.plan.checkpoint)),)
        case Advertised() | Shared() if state.update is None:
            return (Train(state.base.plan, state.seed), Send(state.message))
        case Holding():
            return (Train(state.shared.base.plan, state.shared.seed),)
        case _:
            message = pending(state)
            return (Send(message),) if message else ()


def step(environment: Environment, state: State, event: Event, now: float, entropy: bytes) -> Step:
    """The next state and what should happen.

    Args:
        environment: identity, checks and policy.
        state: where the session stands.
        event: what happened.
        now: seconds since the epoch, by the device's clock.
        entropy: 32 fresh secret bytes; a replay passes the journal's.

    Raises:
        RemoteProtocolError: the coordinator's message has no place in this state; the state holds.
    """
    try:
        return _step(environment, state, event, now, entropy)
    except Unsound as refusal:
        return _decline(state, refusal.reason, refusal.detail)


def _step(environment: Environment, state: State, event: Event, now: float, entropy: bytes) -> Step:
    if isinstance(event, PlanReceived):
        return _join(environment, state, event, now)
    base = base_of(state)
    if base is None:
        return state, ()
    if now >= base.expires_at:
        return Ended(base.plan, False, None, "the round expired"), ()
    match event:
        case Tick():
            return state, ()
        case Superseded():
            return Ended(base.plan, False, None, "a later round was announced"), ()
        case Failed():
            raise Unsound(event.reason, event.detail)
        case Ready():
            return _advertise(environment, state, entropy)
        case Trained():
            return _trained(environment, state, event, entropy)
        case Received(message):
            if message.rid != base.plan.rid:
                raise RemoteProtocolError("a message of another round")
            match message:
                case Roster():
                    return _share(environment, state, message, now, entropy)
                case ShareDelivery():
                    return _hold(environment, state, message, entropy)
                case Survivors():
                    return _survivors(environment, state, message)
                case Quorum():
                    return _quorum(environment, state, message, now)
                case Receipt():
                    return _receipt(state, message)
                case Outcome():
                    detail = "committed" if message.committed else f"abandoned: {message.reason.name.lower()}"
                    return Ended(base.plan, message.committed, None, detail), ()
                case _:
                    assert_never(message)
        case _:
            assert_never(event)


def _decline(state: State, reason: DeclineReason, detail: str) -> Step:
    base = base_of(state)
    if base is None:
        return state, ()
    message = Decline(base.plan.rid, reason, detail[:200])
    return Ended(base.plan, False, reason, detail), (Send(message),)


def _join(environment: Environment, state: State, event: PlanReceived, now: float) -> Step:
    plan = event.plan
    current = round_id(state)
    if current == plan.rid:
        return _repeat(state)
    if current is not None:
        raise RemoteProtocolError("a plan while another round is under way")
    refusal = objection(plan, environment.policy, event.spending)
    if refusal is not None:
        message = Decline(plan.rid, refusal.reason, refusal.detail[:200])
        return Ended(plan, False, refusal.reason, refusal.detail), (Send(message),)
    model = suite.digest(plan.bundle.sha256, plan.checkpoint.sha256)
    context = suite.context(plan.rid, event.digest, model)
    base = Base(plan, context, now + plan.expires_after_s)
    return Preparing(base), (Fetch((plan.bundle, plan.checkpoint)),)


def _advertise(environment: Environment, state: State, entropy: bytes) -> Step:
    if not isinstance(state, Preparing):
        return state, ()
    base = state.base
    keys = client.round_keys(suite.derive(entropy, "round keys"))
    seed = suite.derive(entropy, "training order")
    channel, mask = PublicKey(keys.channel.public), PublicKey(keys.mask.public)
    signature = Signature(environment.sign(client.advertisement(base.context, channel, mask)))
    message = AdvertiseKeys(base.plan.rid, channel, mask, signature)
    return Advertised(base, seed, keys, message, None), (Send(message), Train(base.plan, seed))


def _share(environment: Environment, state: State, roster: Roster, now: float, entropy: bytes) -> Step:
    if not isinstance(state, Advertised):
        return _repeat(state)
    base, plan = state.base, state.base.plan
    require_sound_roster(
        plan,
        base.context,
        environment.device_id,
        environment.certificate,
        state.message,
        state.keys,
        roster,
        _verifier(environment, now),
    )
    peers = tuple(client.Peer(n.index, n.channel_public, n.mask_public) for n in roster.neighbours)
    self_seed = suite.derive(entropy, "self seed")
    sealed = client.seal_shares(
        state.keys,
        self_seed,
        base.context,
        roster.root,
        roster.index,
        peers,
        roster.threshold,
        suite.derive(entropy, "shares"),
    )
    message = ShareKeys(
        plan.rid,
        Digest(sealed.commitment),
        tuple(index for index, _ in sealed.boxes),
        b"".join(box for _, box in sealed.boxes),
    )
    # The proofs have served.
    known = replace(roster, proof=b"", neighbours=tuple(replace(n, proof=b"") for n in roster.neighbours))
    shared = Shared(base, state.seed, state.keys, known, peers, self_seed, message, state.update)
    return shared, (Send(message),)


def _verifier(environment: Environment, now: float) -> Callable[[bytes, bytes, bytes], str]:
    return lambda certificate, message, signature: environment.verify_peer(certificate, message, signature, now)


def _hold(environment: Environment, state: State, delivery: ShareDelivery, entropy: bytes) -> Step:
    if not isinstance(state, Shared):
        return _repeat(state)
    roster = state.roster
    senders = require_sound_delivery(state.base.plan, roster, delivery)
    peers = {peer.index: peer for peer in state.peers}
    shares = {}
    for position, index in enumerate(senders):
        box = delivery.boxes[BOX_BYTES * position : BOX_BYTES * (position + 1)]
        try:
            shares[index] = client.open_box(
                state.keys, state.base.context, roster.root, roster.index, peers[index], box
            )
        except RemoteProtocolError:
            continue  # A bad neighbour costs the round its share, not this device; the threshold allows for some.
    if len(shares) < roster.threshold:
        raise Unsound(DeclineReason.SURVIVORS_UNSOUND, f"only {len(shares)} boxes could be opened")
    holding = Holding(state, delivery.sharers, shares)
    return _report(environment, holding, state.update, entropy) if state.update is not None else (holding, ())


def _trained(environment: Environment, state: State, event: Trained, entropy: bytes) -> Step:
    match state:
        case Advertised() | Shared() if state.update is None:
            return replace(state, update=event.update), ()
        case Holding():
            return _report(environment, state, event.update, entropy)
        case _:
            return state, ()


def _report(environment: Environment, holding: Holding, update: bytes, entropy: bytes) -> Step:
    shared = holding.shared
    plan = shared.base.plan
    if len(update) != 4 * plan.dimension:
        raise Unsound(
            DeclineReason.TRAINING_FAILED,
            f"an update of {len(update)} bytes; the plan says {plan.dimension} float32 values",
        )
    values: NDArray[np.float32] = np.frombuffer(update, "<f4")
    try:
        encoded = encode(values, encoding_of(plan), shared.base.context, suite.derive(entropy, "encode"))
    except TrainingError as error:
        raise Unsound(DeclineReason.TRAINING_FAILED, str(error)) from error
    roster, masked_for = shared.roster, sharers_digest(holding.sharers)
    sharers = members(holding.sharers, roster.size) or frozenset()
    masked = client.mask(
        encoded,
        plan.bits,
        shared.self_seed,
        shared.keys,
        shared.base.context,
        roster.root,
        masked_for,
        roster.index,
        tuple(peer for peer in shared.peers if peer.index in sharers),
    )
    vector = modular.pack(masked, plan.bits)
    reference = BlobRef(Digest(suite.digest(vector)), len(vector))
    statement = b""
    if plan.consistency is Consistency.QUORUM:
        statement = environment.sign(client.statement(shared.base.context, roster.root, roster.index, masked_for))
    message = MaskedInput(plan.rid, reference, vector if len(vector) <= INLINE_UPDATE_MAX_BYTES else b"", statement)
    # The update has served: only its masked form stays in the state.
    reported = Reported(replace(holding, shared=replace(shared, update=None)), vector, message, None)
    return reported, (Spend(plan), Send(message))


def _receipt(state: State, receipt: Receipt) -> Step:
    if not isinstance(state, Reported) or receipt.sha256 != state.message.vector.sha256 or state.receipt is not None:
        return state, ()
    match receipt.status:
        case ReceiptStatus.ACCEPTED | ReceiptStatus.DUPLICATE:
            return replace(state, receipt=receipt.status), ()
        case ReceiptStatus.LATE:
            plan = state.holding.shared.base.plan
            return Ended(plan, False, None, "the masked input came too late"), ()
        case ReceiptStatus.BAD_DIGEST:
            return state, (Send(state.message),)
        case _:
            assert_never(receipt.status)


def _survivors(environment: Environment, state: State, survivors: Survivors) -> Step:
    """Where the threshold keeps the survivors one set they are answered, else endorsed by who may."""
    if isinstance(state, Endorsed | Answered):
        _require_same(state, survivors)
        return _repeat(state)
    if not isinstance(state, Reported):
        raise RemoteProtocolError("survivors before this device's masked input")
    shared = state.holding.shared
    base, roster = shared.base, shared.roster
    by_quorum = base.plan.consistency is Consistency.QUORUM
    if by_quorum and roster.index not in committee_of(base.context, roster.root, roster.size, roster.committee):
        raise RemoteProtocolError("survivors to endorse, by a device that is not on the committee")
    u3 = require_sound_survivors(base.plan, base.context, roster, state.holding.sharers, survivors)
    if not by_quorum:
        return _answer(state, survivors, u3)
    digest = survivors_digest(survivors)
    signature = Signature(environment.sign(client.endorsement(base.context, digest)))
    message = Endorsement(base.plan.rid, digest, signature)
    return Endorsed(state, survivors, message), (Send(message),)


def _quorum(environment: Environment, state: State, message: Quorum, now: float) -> Step:
    survivors = Survivors(message.rid, message.root, message.sharers, message.survivors)
    if isinstance(state, Endorsed | Answered):
        _require_same(state, survivors)
    if isinstance(state, Answered):
        return _repeat(state)
    reported = state.reported if isinstance(state, Endorsed) else state
    if not isinstance(reported, Reported):
        raise RemoteProtocolError("a quorum before this device's masked input")
    shared = reported.holding.shared
    base, roster = shared.base, shared.roster
    if base.plan.consistency is not Consistency.QUORUM:
        raise RemoteProtocolError("a quorum in a round that needs none")
    u3 = require_sound_survivors(base.plan, base.context, roster, reported.holding.sharers, survivors)
    require_quorum(base.context, environment.device_id, roster, survivors, message, _verifier(environment, now))
    return _answer(reported, survivors, u3)


def _require_same(state: Endorsed | Answered, survivors: Survivors) -> None:
    if survivors != state.survivors:
        raise RemoteProtocolError(
            "a second, different set of survivors: an attempt to learn both secrets of one device"
        )


def _answer(state: Reported, survivors: Survivors, u3: frozenset[int]) -> Step:
    holding = state.holding
    indices = tuple(sorted(holding.shares))
    # Of a survivor the self seed's share, of the gone the mask key's: never both of one device.
    shares = b"".join(holding.shares[i][0] if i in u3 else holding.shares[i][1] for i in indices)
    message = UnmaskingShares(holding.shared.base.plan.rid, survivors_digest(survivors), indices, shares)
    return Answered(state, survivors, message), (Send(message),)


def _repeat(state: State) -> Step:
    """A stage's message came again: the coordinator may lack ours, so it gets the same bytes once more."""
    message = pending(state)
    return state, (Send(message),) if message else ()
