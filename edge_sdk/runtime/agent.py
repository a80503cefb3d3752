"""A device without I/O loops: messages and time in, publications and training jobs out, everything durable in between.

The agent carries out what the pure session decides: it authenticates, journals each accepted event before its effects,
fetches blobs, repeats what may be lost, installs models. The asyncio driver and the simulator's in-memory fleet drive
the same object. It holds no socket, reads no clock, and never trains inside a call: training is handed out as a job.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from edge_sdk import __version__
from edge_sdk.errors import (
    ArtifactError,
    BudgetExceeded,
    EdgeError,
    IdentityError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    StoreError,
    TrainingError,
)
from edge_sdk.events import Deferred, Event, Installed, Refused, Trained, Uploaded
from edge_sdk.identity import Identity, verify_certificate
from edge_sdk.privacy.subsampled import Sampling
from edge_sdk.protocol import chunks, codec, session, topics
from edge_sdk.protocol.limits import (
    BLOB_MAX_BYTES,
    CHUNK_DEFAULT_BYTES,
    CHUNK_DIGEST_BYTES,
    CONTROL_FRAME_MAX_BYTES,
    EXPIRY_CHUNK_S,
    EXPIRY_CONTROL_UP_S,
    LARGE_FRAME_MAX_BYTES,
)
from edge_sdk.protocol.messages import (
    NO_ROUND,
    Announcement,
    BlobRef,
    CheckIn,
    Decline,
    DeclineReason,
    DeviceId,
    Digest,
    Large,
    Message,
    Outcome,
    Plan,
    Pull,
    Quorum,
    Receipt,
    Rejection,
    Roster,
    ShareDelivery,
    Survivors,
    TaskState,
)
from edge_sdk.protocol.policy import (
    DevicePolicy,
    Objection,
    composed_epsilon,
    encoding_of,
    example_objection,
    release_of,
)
from edge_sdk.runtime import journal
from edge_sdk.runtime.blob_cache import BlobCache
from edge_sdk.runtime.budget import Budget, Traffic, next_day
from edge_sdk.runtime.consent import Consent
from edge_sdk.runtime.device_store import DeviceStore, JournalEntry, Participation
from edge_sdk.secagg import modular, suite
from edge_sdk.signing import verify_raw

log = logging.getLogger("edge.device")

WORKER = 0
RETRY_MAX_S = 86_400.0
"""A rejected device comes again after a day at the latest, whatever it was told."""
NO_CONSENT = "no consent"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message for the broker."""

    topic: str
    payload: bytes
    expiry_s: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """A fetched bundle: its head, and how to read those of its parts that the learner asked for.

    `read` may be called from any thread; it raises StoreError for a part that is gone or was damaged.
    """

    head: bytes = field(repr=False)
    read: Callable[[BlobRef], bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Train by this plan from this checkpoint; the result goes to `trained` or `failed`."""

    plan: Plan
    bundle: Bundle
    checkpoint: bytes = field(repr=False)
    seed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Update:
    """What training came to.

    Attributes:
        values: float32 little-endian in layout order.
        sampling: what it releases of each example, where the bundle adds noise for each.
    """

    values: bytes = field(repr=False)
    sampling: Sampling | None = None


class Learner(Protocol):
    """Training and serving on this device, as the agent needs them."""

    @property
    def runtime_version(self) -> str:
        """What runs the graphs, such as "onnxruntime 1.31.1"."""
        ...

    @property
    def example_count(self) -> int:
        """Examples that could be trained on now."""
        ...

    def parts(self, head: bytes) -> tuple[BlobRef, ...]:
        """Authenticate a bundle's head, and name the parts of the bundle that this device needs.

        Raises:
            ArtifactError: not signed by a pinned signer, tampered with, or without something this device needs.
        """
        ...

    def check(self, bundle: Bundle, checkpoint: bytes) -> int:
        """Authenticate the bundle, see that this runtime computes it right; return the layout's dimension.

        Raises:
            ArtifactError: not signed by a pinned signer, tampered with, or not for this runtime.
        """
        ...

    def sampling(self, bundle: Bundle, plan: Plan) -> Sampling | None:
        """What training by this plan would release of each example now; None where nothing protects each.

        Raises:
            ArtifactError: as for `check`.
        """
        ...

    def memory_bytes(self, head: bytes, plan: Plan) -> int:
        """About how much memory training by this plan takes, as the bundle of that head predicts.

        Raises:
            ArtifactError: as for `parts`.
        """
        ...

    def train(self, job: TrainingJob, should_stop: Callable[[], bool] | None = None) -> Update:
        """Train. `should_stop` is asked before every step.

        Raises:
            TrainingError: it failed, or was asked to stop.
            BudgetExceeded: it took longer than the device allows.
        """
        ...

    def install(self, version: int, bundle: Bundle, checkpoint: bytes) -> None:
        """Serve predictions from this model from now on.

        Raises:
            ArtifactError, StoreError: it cannot be served; the last one stays.
        """
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient the agent is.

    Attributes:
        resend_s: a message that brought no answer is repeated after this long, up to twice as long by jitter.
    """

    resend_s: float = 10.0


class DeviceAgent:
    """One device's part in one population.

    Args:
        identity: the device's key, certificate and pinned registrar.
        population: whose announcements it follows.
        store, blobs: what it must not forget.
        learner: training and serving.
        policy: the device's own floors.
        random_bytes: secret randomness from the operating system.
        pace: see there.
        consent: the owner's; None where there is no owner to ask, as in a simulation.
        on_event: is told what happens, once it is durable; must return at once.
        budget: of traffic and memory; time and processor are the learner's.
        free_memory: bytes that the machine has left; None where it cannot tell.
    """

    def __init__(
        self,
        identity: Identity,
        population: str,
        store: DeviceStore,
        blobs: BlobCache,
        learner: Learner,
        *,
        policy: DevicePolicy,
        random_bytes: Callable[[int], bytes],
        pace: Pace | None = None,
        consent: Consent | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
        budget: Budget | None = None,
        free_memory: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.device_id = DeviceId(identity.id)
        self.population = population
        self.store = store
        self.policy = policy
        self._identity = identity
        self._blobs = blobs
        self.learner = learner
        self._random_bytes = random_bytes
        self._pace = pace or Pace()
        self._consent = consent
        self._on_event = on_event
        self._budget = budget or Budget()
        self._traffic = Traffic(self._budget, store)
        self._free_memory = free_memory
        self._environment = session.Environment(
            device_id=identity.id,
            certificate=identity.certificate_der,
            sign=identity.sign,
            verify_peer=self._verify_peer,
            policy=policy,
        )
        self._state: session.State = session.Waiting()
        self._position = 0
        self._announcement: Announcement | None = None
        self._coordinator: bytes | None = None
        self._checked_in = False
        self._left = False  # the announced round, by declining or otherwise
        self._not_before = 0.0
        self._saving_until = 0.0  # what was to be sent and received was more than today allows
        self._release_waits = False
        self._needs: tuple[Digest, int] | None = None  # a bundle, and the memory that its training takes
        self.objections: tuple[str, ...] = ()
        self._deferred = ""
        self._resend_at: float | None = None
        self._downloads: dict[bytes, _Download] = {}
        self._job: TrainingJob | None = None
        self._out: list[Outgoing] = []
        self.installed_version = store.number("installed_version")

    # ---- what the driver calls

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The topics that the driver subscribes to."""
        return topics.device_subscriptions(self.device_id, self.population)

    @property
    def state(self) -> session.State:
        """Where the session stands, for status displays and tests."""
        return self._state

    @property
    def announcement(self) -> Announcement | None:
        """The newest announcement heard."""
        return self._announcement

    def start(self, now: float) -> tuple[Outgoing, ...]:
        """Fold the journal of a round that was open when the process ended, and take it up again."""
        self._coordinator = self.store.content("coordinator")
        self._fold(self.store.journal(), now)
        base = session.base_of(self._state)
        if base is not None and now < base.expires_at:
            self._carry_out(session.resume(self._state), now)
        return self.tick(now)

    def _fold(self, entries: Sequence[JournalEntry], now: float) -> None:
        """Set the state that the journal gives, or leave a round that this process cannot take up again.

        Another version, policy or certificate than the one that wrote the journal may not come to the same state.
        """
        rid, problem = NO_ROUND, ""
        for entry in entries:
            try:
                event = journal.to_event(entry)
                if isinstance(event, session.PlanReceived):
                    rid = event.plan.rid
                self._state, _ = session.step(self._environment, self._state, event, entry.at, entry.entropy)
            except (ProtocolError, StoreError) as error:
                problem = str(error)
                break
            self._position = entry.position + 1
        if isinstance(self._state, session.Ended):
            problem = self._state.detail
        if problem:
            log.warning("%s cannot take its open round up again: %s", self.device_id, problem)
            self.store.end_round(rid, now, committed=False, detail=problem)
            self._state, self._position = session.Waiting(), 0

    def connected(self, now: float) -> tuple[Outgoing, ...]:
        """The broker is reachable (again): repeat at once what may have been lost."""
        for download in self._downloads.values():
            download.assembly.connection_lost()
        self._resend_at = now if self._awaiting_answer else self._resend_at
        return self.tick(now)

    def receive(self, topic: str, payload: bytes, now: float) -> tuple[Outgoing, ...]:
        """Take in one message. What is not authentic or has no place is logged and changes nothing."""
        self._traffic.count(now, received=len(payload))
        try:
            match topics.parse(topic):
                case topics.TaskTopic():
                    self._announced(payload, now)
                case topics.ControlDown(device_id) if device_id == self.device_id:
                    self._control(payload, now)
                case topics.ChunkDown(device_id) if device_id == self.device_id:
                    self._chunk(payload, now)
                case other:
                    raise RemoteProtocolError(f"nothing is expected on {other}")
        except (RemoteProtocolError, IdentityError) as error:
            hint = f" ({error.hint})" if error.hint else ""
            log.info("%s refused a message on %s: %s%s", self.device_id, topic[:200], error, hint)
        return self.tick(now)

    def tick(self, now: float) -> tuple[Outgoing, ...]:
        """Let time pass."""
        base = session.base_of(self._state)
        if base is not None and now >= base.expires_at:
            self._apply(session.Tick(), now)
        elif base is not None and not self._consented:
            detail = "the device's owner no longer agrees"
            self._apply(session.Failed(DeclineReason.TASK_NOT_ALLOWED, detail), now)
        self._consider(now)
        if self._release_waits and now >= self._saving_until:
            self._fetch_release(now)
        self._request(now)
        if self._awaiting_answer and self._resend_at is not None and now >= self._resend_at:
            self._repeat(now)
        out, self._out = tuple(self._out), []
        self._traffic.count(now, sent=sum(len(message.payload) for message in out))
        return out

    def consider_conditions(self, objections: tuple[str, ...], now: float) -> tuple[Outgoing, ...]:
        """Say what is against training now, in words; while anything is, the device joins no round."""
        if objections != self.objections:
            log.info("%s %s", self.device_id, f"waits: {', '.join(objections)}" if objections else "may train again")
            self.objections = objections
            self._defer(", ".join(objections), now)
        return self.tick(now)

    @property
    def between_rounds(self) -> bool:
        """Whether it has neither joined a round nor offered itself to one."""
        return isinstance(self._state, session.Waiting) and not self._awaiting_answer

    def adopt(self, identity: Identity) -> None:
        """Go on with a renewed certificate and its key. A round is signed with one key from its begin to its end.

        Raises:
            LocalProtocolError: not between rounds.
            IdentityError: the certificate is another device's.
        """
        if not self.between_rounds:
            raise LocalProtocolError("a certificate is changed between rounds only")
        if identity.id != self.device_id:
            raise IdentityError(f"the certificate of {identity.id!r} is not this device's, {self.device_id!r}")
        self._identity = identity
        self._environment = replace(self._environment, certificate=identity.certificate_der, sign=identity.sign)

    def clock_set_back(self, now: float) -> tuple[Outgoing, ...]:
        """The clock was put back: what waits for a time of the old clock would wait for ever."""
        self._not_before = min(self._not_before, now)
        self._saving_until = min(self._saving_until, next_day(now))
        return self.connected(now)

    def take_job(self) -> TrainingJob | None:
        """The training to run beside the loop, once."""
        job, self._job = self._job, None
        return job

    def trained(self, job: TrainingJob, update: Update, now: float) -> tuple[Outgoing, ...]:
        """A job ended well."""
        if session.round_id(self._state) == job.plan.rid:
            # There may be more examples than when the plan came.
            refusal = self._example_objection(update.sampling)
            if refusal is not None:
                self._apply(session.Failed(refusal.reason, refusal.detail), now)
                return self.tick(now)
            if update.sampling is not None:
                self.store.count_examples(job.plan.rid, update.sampling)
            self._on_event(Trained(self.population, now, job.plan.round_number, self.learner.example_count))
            self._apply(session.Trained(update.values), now)
        return self.tick(now)

    def _example_objection(self, sampling: Sampling | None) -> Objection | None:
        return example_objection(sampling, self.policy, self.store.samplings())

    def failed(self, job: TrainingJob, error: EdgeError, now: float) -> tuple[Outgoing, ...]:
        """A job ended badly."""
        if session.round_id(self._state) == job.plan.rid:
            slow = isinstance(error, BudgetExceeded)
            reason = DeclineReason.OVER_TIME_BUDGET if slow else DeclineReason.TRAINING_FAILED
            self._apply(session.Failed(reason, str(error)), now)
        return self.tick(now)

    def next_deadline(self) -> float | None:
        """When `tick` is next needed if nothing comes."""
        base = session.base_of(self._state)
        times: list[float | None] = [d.assembly.next_deadline for d in self._downloads.values()]
        times.append(base.expires_at if base else None)
        times.append(self._resend_at if self._awaiting_answer else None)
        times.append(self._saving_until if self._release_waits else None)
        if self._is_asked and not self._hindrance:
            times.append(self._not_before)
        return min((t for t in times if t is not None), default=None)

    # ---- what comes in

    def _announced(self, payload: bytes, now: float) -> None:
        frame = codec.read_frame(payload)
        peer = verify_certificate(frame.certificate, self._identity.ca, "coordinator", now)
        if not verify_raw(peer.public_key, frame.signature, frame.signed_for(codec.BROADCAST)):
            raise RemoteProtocolError("an announcement whose signature is not the coordinator's")
        message = codec.parse_for_device(frame)
        if not isinstance(message, Announcement) or message.population != self.population:
            raise RemoteProtocolError("not an announcement to this population")
        if not topics.is_id(message.task):
            raise RemoteProtocolError(f"an announcement of a task that cannot be named {message.task[:80]!r}")
        if message.sequence < self.store.number(f"sequence/{message.task}"):
            raise RemoteProtocolError("an announcement older than one already heard")
        if self._coordinator != frame.certificate:
            self._coordinator = frame.certificate
            self.store.put("coordinator", frame.certificate.hex())
        known = self._announcement
        if known is not None and known.task == message.task and known.sequence == message.sequence:
            return
        self.store.put(f"sequence/{message.task}", str(message.sequence))
        self._announcement = message
        if message.state is TaskState.PAUSED:
            log.info("%s waits: the operator's run %s is paused", self.device_id, message.task)
        self._checked_in = False
        self._left = self.store.has_ended(message.rid)
        self._not_before = max(now, self._saving_until)
        self._release_waits = False
        base = session.base_of(self._state)
        if base is not None and message.task == base.plan.task and message.rid != base.plan.rid:
            self._apply(session.Superseded(), now)
        if message.state is TaskState.COMPLETE and message.model_version > self.installed_version:
            self._fetch_release(now)

    def _fetch_release(self, now: float) -> None:
        """Fetch the model that a finished task announces, or wait for the day whose traffic allows it."""
        found = self._announcement
        if found is not None:
            self._release_waits = False
            self._fetch((found.bundle, found.checkpoint), now)

    def _control(self, payload: bytes, now: float, *, large: bool = False) -> None:
        if self._coordinator is None:
            raise RemoteProtocolError("a message before any announcement: whose is it?")
        frame = codec.read_frame(payload, large=large)
        peer = verify_certificate(self._coordinator, self._identity.ca, "coordinator", now)
        if not verify_raw(peer.public_key, frame.signature, frame.signed_for(self.device_id)):
            raise RemoteProtocolError("the signature is not the coordinator's")
        message = codec.parse_for_device(frame)
        match message:
            case Plan():
                self._planned(message, frame.body, now)
            case Roster() | ShareDelivery() | Survivors() | Quorum() | Receipt() | Outcome():
                if message.rid == session.round_id(self._state):
                    self._apply(session.Received(message), now, frame.body)
            case Rejection():
                self._rejected(message, now)
            case Pull():
                self._serve(message)
                self._schedule_resend(now)  # The coordinator is at work on the offer: another would start it anew.
            case Large():
                if message.frame.size_bytes > LARGE_FRAME_MAX_BYTES:
                    raise RemoteProtocolError(f"a frame of {message.frame.size_bytes} bytes is over the limit")
                # One at a time: what this device lacks is the newest, and its memory is bounded.
                for digest in [d for d, download in self._downloads.items() if download.frame_of_coordinator]:
                    if digest != message.frame.sha256:
                        del self._downloads[digest]
                self._download(message.frame, frame_of_coordinator=True)
            case Announcement():
                raise RemoteProtocolError("an announcement on a device's own topic")

    def _planned(self, plan: Plan, body: bytes, now: float) -> None:
        if session.round_id(self._state) not in (None, plan.rid):
            raise RemoteProtocolError("a plan while another round is under way")
        if session.round_id(self._state) is None and self.store.has_ended(plan.rid):
            raise RemoteProtocolError("a plan of a round that this device already left")
        found = self._announcement
        if found is None or (found.rid, found.task) != (plan.rid, plan.task):
            raise RemoteProtocolError("a plan of a round that is not announced")
        if not self._consented:
            self._decline(plan, DeclineReason.TASK_NOT_ALLOWED, "the device's owner does not agree", now)
            return
        if self.learner.example_count < self.policy.min_examples:
            self._decline(plan, DeclineReason.NOT_ENOUGH_EXAMPLES, "too few examples on this device", now)
            return
        digest = Digest(suite.digest(body))
        self._apply(session.PlanReceived(plan, digest, self.store.spending(plan.task)), now, body)

    def _decline(self, plan: Plan, reason: DeclineReason, detail: str, now: float) -> None:
        """Refuse a plan that the session is not even asked about."""
        self._leave(plan, now, committed=False, declined=reason, detail=detail)
        self._send(Decline(plan.rid, reason, detail))

    def _rejected(self, message: Rejection, now: float) -> None:
        if self._announcement is None or message.task != self._announcement.task:
            return
        self._checked_in = False
        share = int.from_bytes(self._random_bytes(4), "little") / 2**32
        after_s, spread_s = (
            min(max(0.0, seconds), RETRY_MAX_S) for seconds in (message.retry_after_s, message.retry_spread_s)
        )
        self._not_before = now + after_s + share * spread_s
        reason = message.reason.name.lower()
        log.info("%s was rejected: %s", self.device_id, reason)
        self._defer(reason, now)

    # ---- the session

    def _apply(self, event: session.Event, now: float, body: bytes = b"") -> None:
        """Step the session; journal the event before anything of it is carried out.

        Args:
            event: what happened.
            now: seconds since the epoch.
            body: of the message in the event, as it came.
        """
        entropy = self._random_bytes(32)
        before = self._state
        after, effects = session.step(self._environment, before, event, now, entropy)
        if after is before:
            self._carry_out(effects, now)
            return
        if isinstance(after, session.Ended):
            self._leave(after.plan, now, committed=after.committed, declined=after.declined, detail=after.detail)
        else:
            kind, payload = journal.from_event(event, body)
            # What was said must never be unsaid, not even by a power cut: a device that forgot could say another thing.
            durable = any(isinstance(effect, session.Send) for effect in effects)
            spent = self._participation(after, effects, now)
            self.store.append(JournalEntry(self._position, now, kind, payload, entropy), spent, durable=durable)
            if spent is not None:
                self._on_event(
                    Uploaded(self.population, now, spent.round_number, spent.sent_bytes, spent.epsilon, spent.delta)
                )
            self._state = after
            self._position += 1
        self._carry_out(effects, now)

    def _leave(self, plan: Plan, now: float, *, committed: bool, declined: DeclineReason | None, detail: str) -> None:
        self.store.end_round(plan.rid, now, committed=committed, detail=detail)
        self._traffic.keep()
        log.info("%s left round %d: %s", self.device_id, plan.round_number, detail)
        if declined is not None:
            self._on_event(Refused(self.population, now, plan.round_number, declined.name.lower(), detail))
        self._state, self._position = session.Waiting(), 0
        for download in self._downloads.values():
            download.parts.close()
        self._downloads.clear()
        self._job = None
        self._left = self._left or (self._announcement is not None and self._announcement.rid == plan.rid)

    def _participation(
        self, after: session.State, effects: tuple[session.Effect, ...], now: float
    ) -> Participation | None:
        spend = next((e for e in effects if isinstance(e, session.Spend)), None)
        vector = session.masked_vector(after)
        if spend is None or vector is None:
            return None
        plan = spend.plan
        consent = self._consent.newest if self._consent is not None else None
        release = release_of(plan)
        releases = (*(p.release for p in self.store.participations(plan.task)), release)
        spent = composed_epsilon(((self.policy.counted(one), 1) for one in releases), plan.delta)
        return Participation(
            rid=plan.rid,
            task=plan.task,
            round_number=plan.round_number,
            at=now,
            epsilon=spent,
            delta=plan.delta,
            sent_bytes=len(vector[1]),
            sent_sha256=vector[0],
            release=release,
            purpose=consent.purpose if consent is not None else "",
        )

    def _carry_out(self, effects: tuple[session.Effect, ...], now: float) -> None:
        for effect in effects:
            match effect:
                case session.Send(message):
                    self._send(message)
                    self._schedule_resend(now)
                case session.Fetch(blobs):
                    self._fetch(blobs, now)
                case session.Train(plan, seed):
                    self._train(plan, seed, now)
                case session.Spend():
                    pass  # Written with the journal entry, in one transaction.

    def _train(self, plan: Plan, seed: bytes, now: float) -> None:
        try:
            bundle, checkpoint = self._read(plan.bundle, plan.checkpoint)
        except StoreError as error:
            # Gone or damaged since it was checked: nothing of the round can be saved.
            self._apply(session.Failed(DeclineReason.TRAINING_FAILED, str(error)), now)
        else:
            self._job = TrainingJob(plan, bundle, checkpoint, seed)

    # ---- blobs

    def _saves(self, blobs: Sequence[BlobRef], now: float) -> Objection | None:
        """Why these are not fetched today, and the round's update not sent after them; None where they are."""
        missing = sum(b.size_bytes for b in blobs if b.sha256 not in self._downloads and not self._blobs.has(b))
        missing += sum(download.assembly.missing_bytes for download in self._downloads.values())
        base = session.base_of(self._state)
        if base is not None:
            missing += modular.packed_bytes(encoding_of(base.plan).length, base.plan.bits)
        refusal = self._traffic.objection(missing, now)
        if refusal is not None:
            self._saving_until = self._not_before = next_day(now)
            self._defer(refusal.detail, now)
        return refusal

    def _declined(self, refusal: Objection | None, now: float) -> bool:
        """Leave the round where there is a refusal; tell whether there was."""
        if refusal is not None:
            self._apply(session.Failed(refusal.reason, refusal.detail), now)
        return refusal is not None

    def _fetch(self, blobs: tuple[BlobRef, ...], now: float) -> None:
        for blob in blobs:
            if blob.size_bytes > BLOB_MAX_BYTES:
                self._apply(session.Failed(DeclineReason.BUNDLE_INVALID, "a blob larger than any device takes"), now)
                return
        try:
            refusal = self._saves(blobs, now)
            if refusal is not None:
                self._release_waits = session.base_of(self._state) is None
                self._declined(refusal, now)
                return
            for blob in blobs:
                if not self._blobs.has(blob):
                    self._download(blob)
            for download in [d for d in self._downloads.values() if d.assembly.complete]:
                self._whole(download, now)
        except RemoteProtocolError as error:
            # What had come before a restart is not what was promised; it was dropped and is pulled anew.
            log.info("%s: %s", self.device_id, error)
        except StoreError as error:
            # No room for it, for example: this round is lost for the device, not the device.
            log.warning("%s cannot fetch: %s", self.device_id, error)
            self._apply(session.Failed(DeclineReason.BUNDLE_INVALID, str(error)), now)
        self._arrived(now)

    def _download(self, blob: BlobRef, *, frame_of_coordinator: bool = False) -> None:
        if blob.sha256 in self._downloads:
            return
        parts: chunks.PartStore
        if frame_of_coordinator:
            parts = chunks.MemoryParts(blob.size_bytes, CHUNK_DEFAULT_BYTES)
        else:
            parts = self._blobs.spool.parts(blob.sha256, blob.size_bytes, CHUNK_DEFAULT_BYTES)
        assembly = chunks.Assembly(blob.sha256, blob.size_bytes, CHUNK_DEFAULT_BYTES, parts)
        self._downloads[blob.sha256] = _Download(assembly, parts, frame_of_coordinator)

    def _request(self, now: float) -> None:
        # A device that only serves has never checked in: the coordinator learns here who asks.
        stranger = isinstance(self._state, session.Waiting) and not self._checked_in
        certificate = self._identity.certificate_der if stranger else b""
        for download in self._downloads.values():
            ranges = download.assembly.requests(now)
            if ranges:
                firsts = tuple(first for first, _ in ranges)
                counts = tuple(count for _, count in ranges)
                pull = Pull(Digest(download.assembly.sha256), CHUNK_DEFAULT_BYTES, firsts, counts)
                self._send(pull, certificate=certificate)

    def _chunk(self, payload: bytes, now: float) -> None:
        digest = chunks.blob_of(payload)
        download = next((d for d in self._downloads.values() if d.assembly.sha256.startswith(digest)), None)
        if download is None or len(digest) < CHUNK_DIGEST_BYTES:
            raise RemoteProtocolError("a chunk that was not asked for")
        download.assembly.receive(payload, now)
        if not download.assembly.complete:
            return
        self._whole(download, now)

    def _whole(self, download: _Download, now: float) -> None:
        data = download.assembly.finish()
        del self._downloads[download.assembly.sha256]
        download.parts.remove()
        if download.frame_of_coordinator:
            self._control(data, now, large=True)
        else:
            try:
                self._blobs.put(data)
            except StoreError as error:
                log.warning("%s cannot keep what it fetched: %s", self.device_id, error)
                self._apply(session.Failed(DeclineReason.BUNDLE_INVALID, str(error)), now)
            self._arrived(now)

    def _arrived(self, now: float) -> None:
        """Go on where bundle and checkpoint are now all here; where the bundle's head is, fetch what it names."""
        state, found = self._state, self._announcement
        if isinstance(state, session.Preparing):
            plan = state.base.plan
            try:
                if self._declined(self._memory_objection(plan), now):
                    return
                if self._complete(plan.bundle, plan.checkpoint, now):
                    self._check(plan)
                    bundle = self._read(plan.bundle, plan.checkpoint)[0]
                    if self._declined(self._example_objection(self.learner.sampling(bundle, plan)), now):
                        return
                    self._install(plan.model_version, plan.bundle, plan.checkpoint, now)
                    self._apply(session.Ready(), now)
            except (ArtifactError, StoreError, TrainingError) as error:
                self._apply(session.Failed(DeclineReason.BUNDLE_INVALID, str(error)), now)
        elif found is not None and found.state is TaskState.COMPLETE:
            try:
                if self._complete(found.bundle, found.checkpoint, now):
                    self._install(found.model_version, found.bundle, found.checkpoint, now)
            except (ArtifactError, StoreError, TrainingError) as error:
                log.warning("%s keeps its model: %s", self.device_id, error)

    def _memory_objection(self, plan: Plan) -> Objection | None:
        """Why the plan's training is too large for this device, as soon as the bundle's head tells."""
        if not self._blobs.has(plan.bundle):
            return None
        needed = self.learner.memory_bytes(self._blobs.get(plan.bundle.sha256), plan)
        self._needs = (plan.bundle.sha256, needed)
        return self._budget.memory_objection(needed, self._free_memory())

    def _complete(self, bundle: BlobRef, checkpoint: BlobRef, now: float) -> bool:
        """Whether the bundle with all parts needed here and the checkpoint have come; asks for parts that were not."""
        if not self._blobs.has(bundle):
            return False
        parts = self.learner.parts(self._blobs.get(bundle.sha256))
        if sum(part.size_bytes for part in parts) > BLOB_MAX_BYTES:
            raise ArtifactError("the bundle is larger than any device takes")
        lacking = tuple(part for part in parts if not self._blobs.has(part))
        new = tuple(part for part in lacking if part.sha256 not in self._downloads)
        if new:
            self._fetch(new, now)  # which comes back here
            return False
        if lacking or not self._blobs.has(checkpoint):
            return False
        self._blobs.retain({blob.sha256 for blob in (bundle, checkpoint, *parts)})
        return True

    def _read(self, bundle: BlobRef, checkpoint: BlobRef) -> tuple[Bundle, bytes]:
        read = self._blobs.get
        return Bundle(read(bundle.sha256), lambda part: read(part.sha256)), read(checkpoint.sha256)

    def _check(self, plan: Plan) -> None:
        dimension = self.learner.check(*self._read(plan.bundle, plan.checkpoint))
        if dimension != plan.dimension:
            raise ArtifactError(f"the bundle trains {dimension} parameters; the plan says {plan.dimension}")

    def _install(self, version: int, bundle: BlobRef, checkpoint: BlobRef, now: float) -> None:
        if version <= self.installed_version and self.store.get("installed_sha256") == checkpoint.sha256.hex():
            return
        self.learner.install(version, *self._read(bundle, checkpoint))
        self.installed_version = version
        self.store.put("installed_version", str(version))
        self.store.put("installed_sha256", checkpoint.sha256.hex())
        self._on_event(Installed(self.population, now, version))

    def _serve(self, pull: Pull) -> None:
        held = session.masked_vector(self._state)
        if held is None or pull.sha256 != held[0] or len(pull.firsts) != len(pull.counts):
            raise RemoteProtocolError("a pull of something that is not offered")
        topic = topics.build(topics.ChunkUp(WORKER, self.device_id))
        ranges = tuple(zip(pull.firsts, pull.counts, strict=True))
        for frame in chunks.frames(held[0], held[1], pull.chunk_bytes, ranges):
            self._out.append(Outgoing(topic, frame, EXPIRY_CHUNK_S))

    # ---- checking in and repeating

    @property
    def _consented(self) -> bool:
        return self._consent is None or self._consent.granted

    def _defer(self, reason: str, now: float) -> None:
        """Say why it does not take part now, once for each reason in a row."""
        if reason and reason != self._deferred:
            self._on_event(Deferred(self.population, now, reason))
        self._deferred = reason

    @property
    def _is_asked(self) -> bool:
        """Whether there is a round to offer itself to."""
        found = self._announcement
        return (
            isinstance(self._state, session.Waiting)
            and found is not None
            and found.state is TaskState.OPEN
            and found.rid != NO_ROUND
            and not self._checked_in
            and not self._left
            and not self.objections
            and (not self.policy.tasks or found.task in self.policy.tasks)
        )

    @property
    def _hindrance(self) -> str:
        """What the device lacks for any round; empty where nothing."""
        if not self._consented:
            return NO_CONSENT
        if self.learner.example_count < self.policy.min_examples:
            return "too few examples"
        if self._announcement is not None and self._needs is not None:
            bundle, needed = self._needs
            refusal = self._budget.memory_objection(needed, self._free_memory())
            if refusal is not None and bundle == self._announcement.bundle.sha256:
                return refusal.detail
        return ""

    def _consider(self, now: float) -> None:
        if not self._is_asked or now < self._not_before:
            return
        hindrance = self._hindrance
        if not hindrance and self._saves((), now) is not None:
            return
        self._defer(hindrance, now)
        if not hindrance:
            self._checked_in = True
            self._check_in()
            self._schedule_resend(now)

    def _check_in(self) -> None:
        found = self._announcement
        if found is not None:
            message = CheckIn(found.task, found.rid, __version__, self.learner.runtime_version)
            self._send(message, certificate=self._identity.certificate_der)

    @property
    def _awaiting_answer(self) -> bool:
        if isinstance(self._state, session.Waiting):
            return self._checked_in and not self._left
        return session.pending(self._state) is not None

    def _repeat(self, now: float) -> None:
        message = session.pending(self._state)
        if message is not None:
            self._send(message)
        elif isinstance(self._state, session.Waiting):
            self._check_in()
        self._schedule_resend(now)

    def _schedule_resend(self, now: float) -> None:
        # Jitter, so that a fleet that lost its broker does not answer in one breath.
        share = int.from_bytes(self._random_bytes(2), "little") / 2**16
        self._resend_at = now + self._pace.resend_s * (1.0 + share)

    def _send(self, message: Message, *, certificate: bytes = b"") -> None:
        frame = codec.write_frame(message, self.device_id, self._identity.sign, certificate=certificate)
        if len(frame) > CONTROL_FRAME_MAX_BYTES:
            raise LocalProtocolError(f"a {type(message).__name__} of {len(frame)} bytes does not fit a control frame")
        topic = topics.build(topics.ControlUp(self.device_id))
        self._out.append(Outgoing(topic, frame, EXPIRY_CONTROL_UP_S))

    def _verify_peer(self, certificate: bytes, message: bytes, signature: bytes, now: float) -> str:
        peer = verify_certificate(certificate, self._identity.ca, "device", now)
        if not _has_signed(_Key(certificate, peer.public_key), message, signature):
            raise IdentityError(f"the signature is not {peer.id}'s")
        return peer.id


@dataclass(frozen=True, slots=True)
class _Key:
    """A public key, known by the certificate that it stands in."""

    certificate: bytes
    public_key: ec.EllipticCurvePublicKey = field(compare=False)


@lru_cache(maxsize=1024)
def _has_signed(key: _Key, message: bytes, signature: bytes) -> bool:
    """A roster that comes again, or to another device of this process, is not computed again."""
    return verify_raw(key.public_key, signature, message)


@dataclass(frozen=True, slots=True)
class _Download:
    assembly: chunks.Assembly
    parts: chunks.PartStore
    frame_of_coordinator: bool
