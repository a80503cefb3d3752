"""A device without I/O loops: messages and time in, publications and training jobs out, everything durable in between.

The agent carries out what the pure session decides: it authenticates, journals each accepted event before its effects,
fetches blobs, repeats what may be lost, installs models. The asyncio driver and the simulator's in-memory fleet drive
the same object. It holds no socket, reads no clock, and never trains inside a call: training is handed out as a job.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
from edge_sdk.events import Event, Refused, Trained, Uploaded
from edge_sdk.identity import Identity
from edge_sdk.privacy.subsampled import Sampling
from edge_sdk.protocol import chunks, codec, session, topics
from edge_sdk.protocol.limits import (
    BLOB_MAX_BYTES,
    EXPIRY_CHUNK_S,
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
from edge_sdk.runtime.downloads import Download, Downloads
from edge_sdk.runtime.frames import Frames, Outgoing
from edge_sdk.runtime.learner import Bundle, Learner, TrainingJob, Update
from edge_sdk.runtime.membership import Membership
from edge_sdk.secagg import modular, suite

log = logging.getLogger("edge.device")

WORKER = 0
RETRY_MAX_S = 86_400.0
"""A rejected device comes again after a day at the latest, whatever it was told."""
NO_CONSENT = "no consent"


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient the agent is.

    Attributes:
        resend_s: a message that brought no answer is repeated after this long, up to twice as long by jitter.
    """

    resend_s: float = 10.0


class DeviceAgent:
    """One device: a part in one or several populations, in one round at a time.

    While one population's round keeps it busy it offers itself to no other; of several that ask, to the one that it
    offered itself to longest ago. So budgets are spent by one round at a time, and training never competes.

    Args:
        identity: the device's key, certificate and pinned registrar.
        learners: training and serving, by the population whose announcements it follows.
        store, blobs: what it must not forget.
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
        learners: Mapping[str, Learner],
        store: DeviceStore,
        blobs: BlobCache,
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
        self.memberships = {name: Membership(name, learner, store, on_event) for name, learner in learners.items()}
        self.store = store
        self.policy = policy
        self._frames = Frames(identity)
        self._blobs = blobs
        self._random_bytes = random_bytes
        self._pace = pace or Pace()
        self._consent = consent
        self._on_event = on_event
        self._budget = budget or Budget()
        self._traffic = Traffic(self._budget, store)
        self._saving_until = 0.0  # what was to be sent and received was more than today allows
        self._free_memory = free_memory
        self._environment = self._environment_of(identity)
        self._state: session.State = session.Waiting()
        self._position = 0
        self._current: Membership | None = None  # whose round it is in
        self._newest: Membership | None = None  # which announced last
        self._resend_at: float | None = None
        self._downloads = Downloads(blobs.spool)
        self._job: TrainingJob | None = None
        self._out: list[Outgoing] = []

    # ---- what the driver calls

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The topics that the driver subscribes to."""
        return topics.device_subscriptions(self.device_id, *self.memberships)

    @property
    def state(self) -> session.State:
        """Where the session stands, for status displays and tests."""
        return self._state

    @property
    def announcement(self) -> Announcement | None:
        """The newest announcement heard, of any population."""
        return self._newest.announcement if self._newest is not None else None

    def start(self, now: float) -> tuple[Outgoing, ...]:
        """Fold the journal of a round that was open when the process ended, and take it up again."""
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
                    self._current = self._membership_of(event.plan)
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
            self._state, self._position, self._current = session.Waiting(), 0, None

    def _membership_of(self, plan: Plan) -> Membership:
        found = next((m for m in self.memberships.values() if m.task == plan.task), None)
        if found is None:
            raise StoreError(
                f"the open round is of task {plan.task!r}, which this device no longer follows",
                hint="join its population again to take part in it",
            )
        return found

    def connected(self, now: float) -> tuple[Outgoing, ...]:
        """The broker is reachable (again): repeat at once what may have been lost."""
        self._downloads.connection_lost()
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
        self._catch_up(now)
        self._consider(now)
        self._request(now)
        if self._awaiting_answer and self._resend_at is not None and now >= self._resend_at:
            self._repeat(now)
        out, self._out = tuple(self._out), []
        return out

    def sent(self, size_bytes: int, now: float) -> None:
        """So much of what it gave out was taken by the network."""
        self._traffic.count(now, sent=size_bytes)

    def keep_traffic(self) -> None:
        """Write down what was received and sent lately, before the process ends."""
        self._traffic.keep()

    def consider_conditions(self, objections: Mapping[str, tuple[str, ...]], now: float) -> tuple[Outgoing, ...]:
        """Say what is against training now, in words, by population; while anything is, it joins no round there."""
        for membership in self.memberships.values():
            found = objections.get(membership.population, ())
            if found != membership.objections:
                words = f"waits: {', '.join(found)}" if found else "may train again"
                log.info("%s %s", self.device_id, words)
                membership.objections = found
                membership.defer(", ".join(found), now)
        return self.tick(now)

    def is_paused(self, job: TrainingJob) -> bool:
        """Whether a job should wait before its next step; may be asked from any thread."""
        return bool(self.memberships[job.population].objections)

    def train(self, job: TrainingJob, should_stop: Callable[[], bool] | None = None) -> Update:
        """Carry a job out, in whichever thread; the result goes to `trained` or `failed`.

        Raises:
            EdgeError: it failed, or was asked to stop.
        """
        return self.memberships[job.population].learner.train(job, should_stop)

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
        self._frames = Frames(identity)
        self._environment = self._environment_of(identity)

    def _environment_of(self, identity: Identity) -> session.Environment:
        return session.Environment(
            device_id=identity.id,
            certificate=identity.certificate_der,
            sign=identity.sign,
            verify_peer=self._frames.verify_peer,
            policy=self.policy,
        )

    def clock_set_back(self, now: float) -> tuple[Outgoing, ...]:
        """The clock was put back: what waits for a time of the old clock would wait for ever."""
        self._saving_until = min(self._saving_until, next_day(now))
        for membership in self.memberships.values():
            membership.not_before = min(membership.not_before, now)
            membership.offered_at = min(membership.offered_at, now)
        return self.connected(now)

    def take_job(self) -> TrainingJob | None:
        """The training to run beside the loop, once."""
        job, self._job = self._job, None
        return job

    def trained(self, job: TrainingJob, update: Update, now: float) -> tuple[Outgoing, ...]:
        """A job ended well."""
        if session.round_id(self._state) == job.plan.rid:
            # There may be more examples than when the plan came.
            if self._declined(self._example_objection(update.sampling), now):
                return self.tick(now)
            if update.sampling is not None:
                self.store.count_examples(job.plan.rid, update.sampling)
            examples = self.memberships[job.population].learner.example_count
            self._on_event(Trained(job.population, now, job.plan.round_number, examples))
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
        times: list[float | None] = list(self._downloads.deadlines())
        times.append(base.expires_at if base else None)
        times.append(self._resend_at if self._awaiting_answer else None)
        if base is None:
            if any(membership.wants_model for membership in self.memberships.values()) and not self._downloads:
                times.append(self._saving_until)
            free_at = self._offered.offer_expires_at if self._offered is not None else -math.inf
            times += [max(m.not_before, free_at) for m in self._asking() if not self._hindrance(m)]
        return min((t for t in times if t is not None), default=None)

    # ---- what comes in

    def _announced(self, payload: bytes, now: float) -> None:
        message, certificate = self._frames.announcement(payload, now)
        membership = self.memberships.get(message.population)
        if membership is None:
            raise RemoteProtocolError("not an announcement to a population of this device's")
        if not membership.hear(message, certificate, now):
            return
        self._newest = membership
        membership.not_before = max(now, self._saving_until)
        if message.state is TaskState.PAUSED:
            log.info("%s waits: the operator's run %s is paused", self.device_id, message.task)
        base = session.base_of(self._state)
        if base is not None and message.task == base.plan.task and message.rid != base.plan.rid:
            self._apply(session.Superseded(), now)

    def _control(self, payload: bytes, now: float, *, large: bool = False) -> None:
        frame = codec.read_frame(payload, large=large)
        heard = self._coordinated_by(frame, now)
        message = codec.parse_for_device(frame)
        match message:
            case Plan():
                self._planned(message, frame.body, heard, now)
            case Roster() | ShareDelivery() | Survivors() | Quorum() | Receipt() | Outcome():
                if message.rid == session.round_id(self._state) and self._current in heard:
                    self._apply(session.Received(message), now, frame.body)
            case Rejection():
                for membership in heard:
                    self._rejected(membership, message, now)
            case Pull():
                self._serve(message)
                self._schedule_resend(now)  # The coordinator is at work on the offer: another would start it anew.
            case Large():
                if message.frame.size_bytes > LARGE_FRAME_MAX_BYTES:
                    raise RemoteProtocolError(f"a frame of {message.frame.size_bytes} bytes is over the limit")
                self._downloads.want_frame(message.frame)
            case Announcement():
                raise RemoteProtocolError("an announcement on a device's own topic")

    def _coordinated_by(self, frame: codec.Frame, now: float) -> list[Membership]:
        """The populations whose coordinator signed a frame to this device.

        Raises:
            RemoteProtocolError, IdentityError: nobody's did, or its certificate is not good now.
        """
        certificates = dict.fromkeys(m.coordinator for m in self.memberships.values() if m.coordinator is not None)
        if not certificates:
            raise RemoteProtocolError("a message before any announcement: whose is it?")
        signer = self._frames.signer_of(frame, certificates, now)
        return [m for m in self.memberships.values() if m.coordinator == signer]

    def _planned(self, plan: Plan, body: bytes, heard: Sequence[Membership], now: float) -> None:
        current = session.round_id(self._state)
        if current is None and self.store.has_ended(plan.rid):
            raise RemoteProtocolError("a plan of a round that this device already left")
        announced = next((m for m in heard if m.announces(plan.rid, plan.task)), None)
        if announced is None or (current == plan.rid and announced is not self._current):
            raise RemoteProtocolError("a plan of a round that is not announced")
        if current not in (None, plan.rid):
            if announced is self._current:
                raise RemoteProtocolError("a plan while another round is under way")
            self._decline_beside(announced, plan, now)
            return
        self._current = announced
        if not self._consented:
            self._decline(plan, DeclineReason.TASK_NOT_ALLOWED, "the device's owner does not agree", now)
            return
        if announced.learner.example_count < self.policy.min_examples:
            self._decline(plan, DeclineReason.NOT_ENOUGH_EXAMPLES, "too few examples on this device", now)
            return
        digest = Digest(suite.digest(body))
        self._apply(session.PlanReceived(plan, digest, self.store.spending(plan.task)), now, body)

    def _decline(self, plan: Plan, reason: DeclineReason, detail: str, now: float) -> None:
        """Refuse a plan that the session is not even asked about."""
        self._leave(plan, now, committed=False, declined=reason, detail=detail)
        self._send(Decline(plan.rid, reason, detail))

    def _decline_beside(self, membership: Membership, plan: Plan, now: float) -> None:
        """Refuse a plan that comes late, in another population's round: nobody is to wait for the device."""
        reason, detail = DeclineReason.ROUND_ALREADY_JOINED, "another population's round is under way"
        log.info("%s declines round %d of %s: %s", self.device_id, plan.round_number, plan.task, detail)
        membership.leave(plan)
        self._on_event(Refused(membership.population, now, plan.round_number, reason.name.lower(), detail))
        self._send(Decline(plan.rid, reason, detail))

    def _rejected(self, membership: Membership, message: Rejection, now: float) -> None:
        if membership.announcement is None or message.task != membership.task:
            return
        membership.checked_in = False
        share = int.from_bytes(self._random_bytes(4), "little") / 2**32
        after_s, spread_s = (
            min(max(0.0, seconds), RETRY_MAX_S) for seconds in (message.retry_after_s, message.retry_spread_s)
        )
        membership.not_before = now + after_s + share * spread_s
        reason = message.reason.name.lower()
        log.info("%s was rejected: %s", self.device_id, reason)
        membership.defer(reason, now)

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
            if spent is not None and self._current is not None:
                cost = (spent.sent_bytes, spent.epsilon, spent.delta)
                self._on_event(Uploaded(self._current.population, now, spent.round_number, *cost))
            self._state = after
            self._position += 1
        self._carry_out(effects, now)

    def _leave(self, plan: Plan, now: float, *, committed: bool, declined: DeclineReason | None, detail: str) -> None:
        self.store.end_round(plan.rid, now, committed=committed, detail=detail)
        self._traffic.keep()
        log.info("%s left round %d: %s", self.device_id, plan.round_number, detail)
        if declined is not None and self._current is not None:
            population = self._current.population
            self._on_event(Refused(population, now, plan.round_number, declined.name.lower(), detail))
        self._state, self._position, self._current = session.Waiting(), 0, None
        self._downloads.close()
        self._job = None
        for membership in self.memberships.values():
            membership.leave(plan)

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
        if self._current is None:
            return
        try:
            bundle, checkpoint = self._read(plan.bundle, plan.checkpoint)
        except StoreError as error:
            # Gone or damaged since it was checked: nothing of the round can be saved.
            self._apply(session.Failed(DeclineReason.TRAINING_FAILED, str(error)), now)
        else:
            self._job = TrainingJob(plan, bundle, checkpoint, seed, self._current.population)

    # ---- blobs

    def _saves(self, blobs: Sequence[BlobRef], now: float) -> Objection | None:
        """Why these are not fetched today, and the round's update not sent after them; None where they are."""
        missing = sum(b.size_bytes for b in blobs if b.sha256 not in self._downloads and not self._blobs.has(b))
        missing += self._downloads.missing_bytes
        base = session.base_of(self._state)
        if base is not None:
            missing += modular.packed_bytes(encoding_of(base.plan).length, base.plan.bits)
        refusal = self._traffic.objection(missing, now)
        if refusal is not None:
            self._saving_until = next_day(now)
            for membership in self.memberships.values():
                membership.not_before = max(membership.not_before, self._saving_until)
                membership.defer(refusal.detail, now)
        return refusal

    def _declined(self, refusal: Objection | None, now: float) -> bool:
        """Leave the round where there is a refusal; tell whether there was."""
        if refusal is not None:
            self._apply(session.Failed(refusal.reason, refusal.detail), now)
        return refusal is not None

    def _fetch(self, blobs: tuple[BlobRef, ...], now: float) -> None:
        for blob in blobs:
            if blob.size_bytes > BLOB_MAX_BYTES:
                self._fetch_failed("a blob larger than any device takes", now)
                return
        try:
            refusal = self._saves(blobs, now)
            if refusal is not None:
                self._declined(refusal, now)
                return
            for blob in blobs:
                if not self._blobs.has(blob):
                    self._downloads.want(blob)
            for download in self._downloads.whole():
                # One that came before may have ended the round, and with it the others.
                if download.assembly.sha256 in self._downloads:
                    self._whole(download, now)
        except RemoteProtocolError as error:
            # What had come before a restart is not what was promised; it was dropped and is pulled anew.
            log.info("%s: %s", self.device_id, error)
        except StoreError as error:
            # No room for it, for example: this round is lost for the device, not the device.
            log.warning("%s cannot fetch: %s", self.device_id, error)
            self._fetch_failed(str(error), now)
        self._arrived(now)

    def _fetch_failed(self, detail: str, now: float) -> None:
        """What was fetched for a round ends it; what was fetched to serve is wanted again at the next announcement."""
        if isinstance(self._state, session.Waiting):
            for membership in self.memberships.values():
                membership.wants_model = False
        else:
            self._apply(session.Failed(DeclineReason.BUNDLE_INVALID, detail), now)

    def _catch_up(self, now: float) -> None:
        """Between rounds, fetch the models of tasks that are complete, on a day whose traffic allows it."""
        if not isinstance(self._state, session.Waiting) or self._downloads:
            return
        for membership in self.memberships.values():
            found = membership.announcement
            if membership.wants_model and found is not None and now >= self._saving_until:
                self._fetch((found.bundle, found.checkpoint), now)

    def _request(self, now: float) -> None:
        # A device that only serves has never checked in: the coordinator learns here who asks.
        stranger = isinstance(self._state, session.Waiting) and not self._awaiting_answer
        for pull in self._downloads.requests(now):
            self._send(pull, certified=stranger)

    def _chunk(self, payload: bytes, now: float) -> None:
        download = self._downloads.receive(payload, now)
        if download is not None:
            self._whole(download, now)

    def _whole(self, download: Download, now: float) -> None:
        data = self._downloads.finish(download)
        if download.is_frame:
            self._control(data, now, large=True)
        else:
            try:
                self._blobs.put(data)
            except StoreError as error:
                log.warning("%s cannot keep what it fetched: %s", self.device_id, error)
                self._fetch_failed(str(error), now)
            self._arrived(now)

    def _arrived(self, now: float) -> None:
        """Go on where bundle and checkpoint are now all here; where the bundle's head is, fetch what it names."""
        state, current = self._state, self._current
        if isinstance(state, session.Preparing) and current is not None:
            plan = state.base.plan
            try:
                if self._declined(self._memory_objection(current, plan), now):
                    return
                if self._complete(current, plan.bundle, plan.checkpoint, now):
                    bundle, checkpoint = self._read(plan.bundle, plan.checkpoint)
                    dimension = current.learner.check(bundle, checkpoint)
                    if dimension != plan.dimension:
                        raise ArtifactError(f"the bundle trains {dimension} parameters; the plan says {plan.dimension}")
                    if self._declined(self._example_objection(current.learner.sampling(bundle, plan)), now):
                        return
                    current.install(plan.model_version, bundle, plan.checkpoint, checkpoint, now)
                    self._apply(session.Ready(), now)
            except (ArtifactError, StoreError, TrainingError) as error:
                self._apply(session.Failed(DeclineReason.BUNDLE_INVALID, str(error)), now)
            return
        for membership in self.memberships.values():
            found = membership.announcement
            if not membership.wants_model or found is None:
                continue
            try:
                if self._complete(membership, found.bundle, found.checkpoint, now):
                    membership.wants_model = False
                    bundle, checkpoint = self._read(found.bundle, found.checkpoint)
                    membership.install(found.model_version, bundle, found.checkpoint, checkpoint, now)
            except (ArtifactError, StoreError, TrainingError) as error:
                membership.wants_model = False
                log.warning("%s keeps its model: %s", self.device_id, error)

    def _memory_objection(self, membership: Membership, plan: Plan) -> Objection | None:
        """Why the plan's training is too large for this device, as soon as the bundle's head tells."""
        if not self._blobs.has(plan.bundle):
            return None
        needed = membership.learner.memory_bytes(self._blobs.get(plan.bundle.sha256), plan)
        membership.needs = (plan.bundle.sha256, needed)
        return self._budget.memory_objection(needed, self._free_memory())

    def _complete(self, membership: Membership, bundle: BlobRef, checkpoint: BlobRef, now: float) -> bool:
        """Whether the bundle with all parts needed here and the checkpoint have come; asks for parts that were not."""
        if not self._blobs.has(bundle):
            return False
        parts = membership.learner.parts(self._blobs.get(bundle.sha256))
        if sum(part.size_bytes for part in parts) > BLOB_MAX_BYTES:
            raise ArtifactError("the bundle is larger than any device takes")
        lacking = tuple(part for part in parts if not self._blobs.has(part))
        new = tuple(part for part in lacking if part.sha256 not in self._downloads)
        if new:
            self._fetch(new, now)  # which comes back here
            return False
        if lacking or not self._blobs.has(checkpoint):
            return False
        membership.keep(frozenset(blob.sha256 for blob in (bundle, checkpoint, *parts)))
        self._blobs.retain({digest for one in self.memberships.values() for digest in one.blobs})
        return True

    def _read(self, bundle: BlobRef, checkpoint: BlobRef) -> tuple[Bundle, bytes]:
        read = self._blobs.get
        return Bundle(read(bundle.sha256), lambda part: read(part.sha256)), read(checkpoint.sha256)

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

    def _asking(self) -> list[Membership]:
        """Populations whose round the device could join; the one it offered itself to longest ago comes first."""
        if not isinstance(self._state, session.Waiting):
            return []
        found = [m for m in self.memberships.values() if m.is_asked]
        return sorted(found, key=lambda m: m.offered_at)

    def _hindrance(self, membership: Membership) -> str:
        """What the device lacks for any round; empty where nothing."""
        if not self._consented:
            return NO_CONSENT
        if self.policy.tasks and membership.task not in self.policy.tasks:
            return f"task {membership.task!r} is not among those allowed"
        if membership.learner.example_count < self.policy.min_examples:
            return "too few examples"
        if membership.announcement is not None and membership.needs is not None:
            bundle, needed = membership.needs
            refusal = self._budget.memory_objection(needed, self._free_memory())
            if refusal is not None and bundle == membership.announcement.bundle.sha256:
                return refusal.detail
        return ""

    @property
    def _offered(self) -> Membership | None:
        """To whom the device offered itself, waiting for an answer."""
        if not isinstance(self._state, session.Waiting):
            return None
        return next((m for m in self.memberships.values() if m.checked_in and not m.left), None)

    def _consider(self, now: float) -> None:
        """Offer the device to whom it is due, unless it waits for another's answer."""
        for membership in self._asking():
            if now < membership.not_before:
                continue
            hindrance = self._hindrance(membership)
            if not hindrance and self._saves((), now) is not None:
                continue
            membership.defer(hindrance, now)
            offered = self._offered
            if hindrance or (offered is not None and now < offered.offer_expires_at):
                continue
            if offered is not None:
                offered.checked_in = False
            membership.checked_in, membership.offered_at = True, now
            self._check_in(membership)
            self._schedule_resend(now)

    def _check_in(self, membership: Membership) -> None:
        found = membership.announcement
        if found is not None:
            message = CheckIn(found.task, found.rid, __version__, membership.learner.runtime_version)
            self._send(message, certified=True)

    @property
    def _awaiting_answer(self) -> bool:
        if isinstance(self._state, session.Waiting):
            return self._offered is not None
        return session.pending(self._state) is not None

    def _repeat(self, now: float) -> None:
        message = session.pending(self._state)
        if message is not None:
            self._send(message)
        elif (offered := self._offered) is not None:
            self._check_in(offered)
        self._schedule_resend(now)

    def _schedule_resend(self, now: float) -> None:
        # Jitter, so that a fleet that lost its broker does not answer in one breath.
        share = int.from_bytes(self._random_bytes(2), "little") / 2**16
        self._resend_at = now + self._pace.resend_s * (1.0 + share)

    def _send(self, message: Message, *, certified: bool = False) -> None:
        self._out.append(self._frames.write(message, certified=certified))
