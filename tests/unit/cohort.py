"""A round held still at any stage: pure sessions and the pure round, for tests that change one message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from coordinator.rounds import closing, events, outbox, transitions
from coordinator.rounds.events import CheckedIn, From
from coordinator.rounds.states import (
    Cohort,
    Endorsing,
    Entry,
    Pacing,
    Releasing,
    Reporting,
    RoundConfig,
    Selecting,
    Sharing,
    Unmasking,
)
from edge_sdk.errors import IdentityError
from edge_sdk.identity import verify_certificate
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.protocol import codec, session
from edge_sdk.protocol.messages import (
    AdvertiseKeys,
    BlobRef,
    Consistency,
    Digest,
    Endorsement,
    MaskedInput,
    Message,
    Plan,
    PublicKey,
    Quorum,
    Roster,
    RoundId,
    ShareDelivery,
    ShareKeys,
    Signature,
    Survivors,
    UnmaskingShares,
)
from edge_sdk.protocol.policy import DevicePolicy, Spending, encoding_of
from edge_sdk.secagg import client, modular, suite
from edge_sdk.signing import verify_raw
from tests.simulation import world
from tests.simulation.world import START, authority, device_name, identity, known_update

NOW = START
M = TypeVar("M", bound=Message)

PLAN = Plan(
    rid=RoundId(bytes(range(16))),
    suite=suite.SUITE,
    task="task",
    round_number=1,
    model_version=1,
    bundle=BlobRef(Digest(suite.digest(b"bundle")), 6),
    checkpoint=BlobRef(Digest(suite.digest(b"checkpoint")), 10),
    goal_count=20,
    min_reports=4,
    corrupt_share=0.05,
    dropout_share=0.3,
    consistency=Consistency.THRESHOLD,
    dimension=20,
    bits=16,
    mechanism=Mechanism.SKELLAM,
    local_noise=False,
    clip_norm=1.0,
    clip_bit=0.0,
    scale=50.0,
    norm_bound=60.0,
    device_variance=4_000,
    noise_multiplier=1.0,
    epsilon=8.0,
    delta=1e-5,
    participation_cap=3,
    epochs=1,
    batch_size=8,
    max_steps=10,
    learning_rate=0.1,
    expires_after_s=100.0,
    proximal=0.0,
)
POLICY = DevicePolicy(min_reports=2)


def make_environment(name: str, policy: DevicePolicy = POLICY) -> session.Environment:
    """What the agent gives a session, without the agent."""
    who = identity(name)

    def verify(certificate: bytes, message: bytes, signature: bytes, now: float) -> str:
        peer = verify_certificate(certificate, authority().certificate, "device", now)
        if not verify_raw(peer.public_key, signature, message):
            raise IdentityError(f"the signature is not {peer.id}'s")
        return peer.id

    return session.Environment(who.id, who.certificate_der, who.sign, verify, policy)


def verify_device(certificate: bytes, message: bytes, signature: bytes, now: float) -> bool:
    """What the engine gives the transitions."""
    try:
        peer = verify_certificate(certificate, authority().certificate, "device", now)
    except IdentityError:
        return False
    return verify_raw(peer.public_key, signature, message)


def entropy(name: str, step: int) -> bytes:
    """The same "random" bytes each time."""
    return suite.digest(name.encode(), step.to_bytes(4, "little"))


def round_config(plan: Plan = PLAN) -> RoundConfig:
    digest = Digest(suite.digest(codec.encode(plan)))
    context = suite.context(plan.rid, digest, suite.digest(plan.bundle.sha256, plan.checkpoint.sha256))
    return RoundConfig(plan, digest, context, plan.min_reports, Pacing())


@dataclass
class Member:
    """One device's session."""

    name: str
    environment: session.Environment
    state: session.State = field(default_factory=session.Waiting)
    steps: int = 0

    def step(self, event: session.Event, now: float | None = None) -> tuple[session.Effect, ...]:
        """Step the session; the state holds where it raises."""
        now = world.START if now is None else now
        self.state, effects = session.step(self.environment, self.state, event, now, entropy(self.name, self.steps))
        self.steps += 1
        return effects

    def hears(self, message: Any, now: float | None = None) -> tuple[session.Effect, ...]:
        return self.step(session.Received(message), now)


def said(effects: Iterable[session.Effect], kind: type[M]) -> M:
    """The one message of a kind among the effects."""
    (message,) = [e.message for e in effects if isinstance(e, session.Send) and isinstance(e.message, kind)]
    return message


class Round:
    """A cohort of honest devices and an honest coordinator, moved on stage by stage.

    Each method returns the members' messages of that stage by name. What the coordinator says to one member next
    is in `roster`, `delivery` and `survivors`.
    """

    def __init__(self, size: int = 8, plan: Plan = PLAN, policy: DevicePolicy = POLICY) -> None:
        self.config = round_config(plan)
        self.plan = plan
        self.members = {name: Member(name, make_environment(name, policy)) for name in map(device_name, range(size))}
        self.now = world.START
        self.state = transitions.open_round(self.config, self.now)
        self.vectors: dict[str, modular.Words] = {}

    def __getitem__(self, index: int) -> Member:
        """The member at an index of the roster; names sort as they were given."""
        return self.members[device_name(index)]

    def index(self, name: str) -> int:
        return sorted(self.members).index(name)

    @property
    def cohort(self) -> Cohort:
        """The roster, once it is made."""
        state = self.state
        if isinstance(state, Releasing):
            state = state.unmasking
        assert isinstance(state, Sharing | Reporting | Endorsing | Unmasking)
        return state.cohort

    def tell(self, name: str, message: events.StageMessage, now: float | None = None) -> tuple[events.Effect, ...]:
        """The coordinator hears a stage message."""
        now = self.now if now is None else now
        self.state, effects = transitions.step(self.state, From(name, message), now, verify_device)
        return effects

    def tick(self, now: float) -> tuple[events.Effect, ...]:
        self.state, effects = transitions.step(self.state, events.Tick(), now, verify_device)
        return effects

    def select(self) -> None:
        for name, member in self.members.items():
            event = CheckedIn(name, member.environment.certificate)
            self.state, _ = transitions.step(self.state, event, self.now, verify_device)
        if isinstance(self.state, Selecting):
            self.tick(self.now + self.config.pacing.selection_timeout_s)

    def advertise(self) -> dict[str, AdvertiseKeys]:
        """Stage 1: every member joins, trains and advertises."""
        messages = {}
        for name, member in self.members.items():
            member.step(session.PlanReceived(self.plan, self.config.plan_digest, Spending()))
            messages[name] = said(member.step(session.Ready()), AdvertiseKeys)
            update = known_update(self.index(name), self.plan.dimension)
            member.step(session.Trained(update.astype("<f4").tobytes()))
        return messages

    def share(self, who: Iterable[str] | None = None) -> dict[str, ShareKeys]:
        """Stage 3: members hear their rosters."""
        names = self.members if who is None else who
        return {name: said(self.members[name].hears(self.roster(name)), ShareKeys) for name in names}

    def report(self, who: Iterable[str] | None = None) -> dict[str, MaskedInput]:
        """Stage 4: members hear of U2 and get their boxes."""
        names = self.members if who is None else who
        return {name: said(self.members[name].hears(self.delivery(name)), MaskedInput) for name in names}

    def endorse(self) -> dict[str, Endorsement]:
        """Stage 5a: those of the committee who reported hear of U3."""
        assert isinstance(self.state, Endorsing)
        names = [device_name(index) for index in sorted(self.cohort.committee & self.state.reported.keys())]
        return {name: said(self.members[name].hears(self.survivors), Endorsement) for name in names}

    def answer(self, who: Iterable[str] | None = None) -> dict[str, UnmaskingShares]:
        """Stage 6: members hear of U3, with a quorum where the plan asks for one."""
        names = self.members if who is None else who
        by_quorum = self.plan.consistency is Consistency.QUORUM
        return {
            name: said(self.members[name].hears(self.quorum(name) if by_quorum else self.survivors), UnmaskingShares)
            for name in names
        }

    def until_advertised(self) -> Round:
        self.select()
        for name, message in self.advertise().items():
            self.tell(name, message)
        assert isinstance(self.state, Sharing)
        return self

    def until_shared(self, who: Iterable[str] | None = None) -> Round:
        self.until_advertised()
        for name, message in self.share(who).items():
            self.tell(name, message)
        if isinstance(self.state, Sharing):
            self.tick(self.state.opened_at + self.config.pacing.share_timeout_s)
        return self

    def until_reported(self, who: Iterable[str] | None = None) -> Round:
        self.until_shared()
        for name, message in self.report(who).items():
            vector = modular.unpack(message.inline, encoding_of(self.plan).length, self.plan.bits)
            self.vectors[name] = vector
            self.tell(name, message)
        if isinstance(self.state, Reporting):
            self.tick(self.state.opened_at + self.config.pacing.report_timeout_s)
        return self

    def until_endorsed(self, who: Iterable[str] | None = None) -> Round:
        self.until_reported(who)
        for name, message in self.endorse().items():
            self.tell(name, message)
        return self

    def total(self) -> modular.Words:
        """The sum of the masked vectors."""
        total = np.zeros(encoding_of(self.plan).length, modular.work_dtype(self.plan.bits))
        for vector in self.vectors.values():
            total += vector
        return total

    # ---- what the honest coordinator says to one member

    def roster(self, name: str, cohort: Cohort | None = None) -> Roster:
        state = Sharing(self.config, self.now, self.now, 0, cohort or self.cohort, frozenset(), {})
        return outbox.roster_for(state, self.index(name))

    def delivery(self, name: str) -> ShareDelivery:
        assert isinstance(self.state, Reporting)
        return outbox.delivery_for(self.state, self.index(name))

    @property
    def survivors(self) -> Survivors:
        state = self.state.unmasking if isinstance(self.state, Releasing) else self.state
        assert isinstance(state, Endorsing | Unmasking)
        return state.survivors

    def quorum(self, name: str) -> Quorum:
        state = self.state.unmasking if isinstance(self.state, Releasing) else self.state
        assert isinstance(state, Unmasking)
        return outbox.quorum_for(state, self.index(name))

    # ---- what a hostile one may say

    def forged_roster(self, name: str, change: Callable[[list[Entry]], None]) -> Roster:
        """A roster that holds together, over entries that were changed."""
        entries = list(self.cohort.entries)
        change(entries)
        return self.roster(name, closing.make_cohort(self.config, tuple(entries)))

    def entry(self, name: str, *, keys: client.RoundKeys | None = None, context: bytes | None = None) -> Entry:
        """An entry of a device, well signed with its own identity key."""
        who = identity(name)
        keys = keys or client.round_keys(entropy(name, 99))
        return signed_entry(name, who.certificate_der, keys, context or self.config.context, who.sign)


def signed_entry(
    name: str, certificate: bytes, keys: client.RoundKeys, context: bytes, sign: Callable[[bytes], bytes]
) -> Entry:
    """An entry with an advertisement signed by whoever signs."""
    channel, mask = PublicKey(keys.channel.public), PublicKey(keys.mask.public)
    signature = Signature(sign(client.advertisement(context, channel, mask)))
    return Entry(name, certificate, AdvertiseKeys(PLAN.rid, channel, mask, signature))


def planned(**changes: Any) -> Plan:
    """The plan with some fields changed."""
    return replace(PLAN, **changes)


def fields_of(state: session.State) -> Mapping[str, Any]:
    """A state's own fields, for looking at them."""
    return {name: getattr(state, name) for name in type(state).__dataclass_fields__}
