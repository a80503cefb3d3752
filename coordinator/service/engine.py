"""The coordinator without I/O loops: bytes and time in, publications and jobs out, everything durable in between.

    receive(batch, now) / tick(now) / finished(result, now) -> publications

A batch of messages is authenticated, applied to the rounds, made durable in ONE transaction, and only then
answered. The asyncio driver and the simulator's in-memory fleet drive the same object. No socket, no clock.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from cryptography import x509

from coordinator.config import TaskConfig
from coordinator.rounds import closing, events, outbox, transitions
from coordinator.rounds.events import CheckedIn, Effect, From, Refuse, Release, Send, TurnedAway
from coordinator.rounds.states import Releasing, Selecting
from coordinator.service.release import ReleaseFailed, ReleaseJob, ReleaseResult
from coordinator.service.task_runner import TaskRunner
from coordinator.service.uploads import Uploads
from coordinator.store import tables
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from edge_sdk.errors import IdentityError, RemoteProtocolError
from edge_sdk.identity import Identity, verify_certificate
from edge_sdk.protocol import chunks, codec, topics
from edge_sdk.protocol.limits import (
    CONTROL_FRAME_MAX_BYTES,
    EXPIRY_CHUNK_S,
    EXPIRY_CONTROL_DOWN_S,
)
from edge_sdk.protocol.messages import (
    AbandonReason,
    BlobRef,
    CheckIn,
    DeviceId,
    Digest,
    Large,
    MaskedInput,
    Message,
    Outcome,
    Pull,
    Rejection,
    RejectionReason,
    RoundId,
    TaskState,
)
from edge_sdk.protocol.policy import encoding_of
from edge_sdk.secagg import modular, suite
from edge_sdk.signing import verify_raw

log = logging.getLogger("edge.coordinator")

_RETRY_WINDOW_S = (5.0, 30.0)
_BLOBS_CACHED = 16
_NOTE_DEVICES_EVERY_S = 3600.0


@dataclass(frozen=True, slots=True)
class Publication:
    """One message for the broker."""

    topic: str
    payload: bytes
    retain: bool = False
    expiry_s: int | None = None


@dataclass(slots=True)
class _Device:
    """What is remembered of a device between messages."""

    certificate: bytes
    noted_at: float = 0.0
    task: str | None = None


class Coordinator:
    """All tasks of one coordinator process.

    Args:
        database, blobs: the store.
        identity: the coordinator's key and certificate.
        ca: the registrar's certificate, which devices are checked against.
        random_bytes: secret randomness from the operating system.
        worker: this process's number in the chunk topics.
    """

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        identity: Identity,
        *,
        ca: x509.Certificate,
        random_bytes: Callable[[int], bytes],
        worker: int = 0,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._identity = identity
        self._ca = ca
        self._random_bytes = random_bytes
        self._runners: dict[str, TaskRunner] = {}
        self._devices: dict[str, _Device] = {}
        self._uploads = Uploads(worker, blobs.spool)
        self._large: dict[bytes, str] = {}
        self._cache: OrderedDict[bytes, bytes] = OrderedDict()
        self._seen: dict[str, CheckIn] = {}
        self._jobs: list[ReleaseJob] = []
        self._out: list[Publication] = []
        self._announced: dict[str, int] = {}

    # ---- what the driver calls

    def start(self, now: float) -> tuple[Publication, ...]:
        """Load every open task and publish its current phase again."""
        self._load_devices()
        self._load_tasks(now)
        for runner in self._runners.values():
            if isinstance(runner.state, Releasing):
                self._jobs.append(runner.release_job())
        return self.republish(now)

    def republish(self, now: float) -> tuple[Publication, ...]:
        """Publish every announcement and current phase again, byte for byte: the broker may have lost them."""
        self._announced.clear()
        for runner in self._runners.values():
            if runner.state is not None:
                for device_id, message in outbox.outbox(runner.state):
                    self._devices[device_id].task = runner.config.task
                    self._send(device_id, message)
        return self.tick(now)

    def receive(self, batch: Sequence[tuple[str, bytes]], now: float) -> tuple[Publication, ...]:
        """Take in messages as (topic, payload); a fault in one is counted and costs the others nothing."""
        for topic, payload in batch:
            try:
                self._receive(topic, payload, now)
            except (RemoteProtocolError, IdentityError) as error:
                log.debug("refused on %s: %s", topic[:200], error)
        return self._commit(now)

    def tick(self, now: float) -> tuple[Publication, ...]:
        """Let time pass: stages close, rounds open, lost chunks are asked for again, new tasks are found."""
        self._load_tasks(now)
        for runner in self._runners.values():
            if runner.state is not None:
                due = closing.deadline(runner.state)
                if due is not None and now >= due:
                    self._carry_out(runner, runner.apply(events.Tick(), now))
        for device_id, pull in self._uploads.requests(now):
            self._send(device_id, pull)
        return self._commit(now)

    def finished(self, result: ReleaseResult | ReleaseFailed, now: float) -> tuple[Publication, ...]:
        """A release job ended."""
        for runner in self._runners.values():
            plan = runner.plan
            if plan is not None and plan.rid == result.rid:
                self._carry_out(runner, runner.released(result, now))
        return self._commit(now)

    def take_jobs(self) -> tuple[ReleaseJob, ...]:
        """Release jobs to run beside the loop; each ends in `finished`."""
        jobs, self._jobs = tuple(self._jobs), []
        return jobs

    def next_deadline(self) -> float | None:
        """When `tick` is next needed, apart from the driver's own look for new tasks."""
        times = [self._uploads.next_deadline()]
        for runner in self._runners.values():
            times.append(runner.opens_at if runner.state is None else closing.deadline(runner.state))
        return min((t for t in times if t is not None), default=None)

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The topics that the driver subscribes to."""
        return topics.coordinator_subscriptions(self._uploads.worker)

    @property
    def idle(self) -> bool:
        """Whether every task has ended."""
        return all(r.state is None and r.task_state is not TaskState.OPEN for r in self._runners.values())

    # ---- loading

    def _load_devices(self) -> None:
        def read(connection: sa.Connection) -> Iterable[tuple[str, bytes]]:
            c = tables.devices.c
            return [(d, cert) for d, cert in connection.execute(sa.select(c.device_id, c.certificate))]

        for device_id, certificate in self._database.run_tx("read the devices", read):
            self._devices[device_id] = _Device(certificate)

    def _load_tasks(self, now: float) -> None:
        def read(connection: sa.Connection) -> list[tuple[str, str]]:
            # Those that ended too: devices that were away still ask for their last model.
            query = sa.select(tables.tasks.c.task, tables.tasks.c.config)
            return [(name, config) for name, config in connection.execute(query)]

        for name, config in self._database.run_tx("read the tasks", read):
            if name not in self._runners:
                runner = TaskRunner(TaskConfig.from_json(config), self._database, self._blobs, self._verify_peer)
                runner.load(now)
                self._runners[name] = runner
                log.info("task %s: model version %d", name, runner.model_version)

    def _verify_peer(self, certificate: bytes, message: bytes, signature: bytes, now: float) -> bool:
        try:
            peer = verify_certificate(certificate, self._ca, "device", now)
        except IdentityError:
            return False
        return verify_raw(peer.public_key, signature, message)

    # ---- one message

    def _receive(self, topic: str, payload: bytes, now: float) -> None:
        match topics.parse(topic):
            case topics.ControlUp(device_id):
                self._count_up(device_id, len(payload))
                self._control(device_id, self._authenticated(device_id, payload, now), now)
            case topics.ChunkUp(_, device_id):
                self._count_up(device_id, len(payload))
                self._chunk(device_id, payload, now)
            case other:
                raise RemoteProtocolError(f"nothing is expected on {other}")

    def _authenticated(self, device_id: DeviceId, payload: bytes, now: float) -> codec.Frame:
        frame = codec.read_frame(payload)
        known = self._devices.get(device_id)
        certificate = frame.certificate or (known.certificate if known else b"")
        if not certificate:
            raise RemoteProtocolError(f"{device_id} is not known and showed no certificate")
        peer = verify_certificate(certificate, self._ca, "device", now)
        if peer.id != device_id:
            raise RemoteProtocolError(f"the certificate of {peer.id} on the topic of {device_id}")
        if not verify_raw(peer.public_key, frame.signature, frame.signed_for(device_id)):
            raise RemoteProtocolError(f"the signature is not {device_id}'s")
        if known is None:
            self._devices[device_id] = _Device(certificate)
        elif certificate != known.certificate:
            known.certificate, known.noted_at = certificate, 0.0
        return frame

    def _control(self, device_id: DeviceId, frame: codec.Frame, now: float) -> None:
        message = codec.parse_for_coordinator(frame)
        match message:
            case CheckIn():
                self._check_in(device_id, message, now)
            case Pull():
                self._serve(device_id, message)
            case MaskedInput():
                self._offered(device_id, message, now)
            case _:
                runner = self._runner_of(message.rid)
                if runner is None:
                    self._send_outcome(device_id, message.rid)
                else:
                    self._carry_out(runner, runner.apply(From(device_id, message), now))

    def _check_in(self, device_id: DeviceId, message: CheckIn, now: float) -> None:
        runner = self._runners.get(message.task)
        reason: RejectionReason | None = None
        if runner is None:
            reason = RejectionReason.UNKNOWN_TASK
        elif runner.plan is None:
            reason = RejectionReason.TASK_CLOSED
        elif message.rid != runner.plan.rid:
            reason = RejectionReason.STALE_ANNOUNCEMENT
        if reason is not None or runner is None:
            self._send(device_id, Rejection(message.task, reason or RejectionReason.UNKNOWN_TASK, *_RETRY_WINDOW_S))
            return
        device = self._devices[device_id]
        benched_s = wait_s = runner.bench.wait_s(device_id, now)
        if device_id in runner.grouped:
            wait_s = max(wait_s, runner.config.pacing.selection_timeout_s)
        if wait_s > 0 and isinstance(runner.state, Selecting):
            if benched_s > 0 and device_id not in runner.state.turned_away:
                self._carry_out(runner, runner.apply(TurnedAway(device_id), now))
            self._send(device_id, Rejection(message.task, RejectionReason.SITTING_OUT, wait_s, wait_s / 10))
            return
        device.task = message.task
        if now - device.noted_at > _NOTE_DEVICES_EVERY_S:
            device.noted_at = now
            self._seen[device_id] = message
        self._carry_out(runner, runner.apply(CheckedIn(device_id, device.certificate), now))

    def _offered(self, device_id: DeviceId, message: MaskedInput, now: float) -> None:
        runner = self._runner_of(message.rid)
        if runner is None or runner.state is None:
            self._send_outcome(device_id, message.rid)
            return
        refusal = transitions.refusal_of_input(runner.state, device_id, message, now, self._verify_peer)
        if refusal:
            self._carry_out(runner, refusal)
            return
        if message.inline:
            if not _is(message.vector, message.inline):
                raise RemoteProtocolError(f"{device_id}'s masked input is not what its digest says")
            self._take_vector(runner, device_id, message, message.inline, now)
            return
        whole = self._uploads.offer(device_id, message, now)
        if whole is not None:
            self._take_vector(runner, device_id, message, whole, now)
        for target, pull in self._uploads.requests(now):
            self._send(target, pull)

    def _chunk(self, device_id: DeviceId, payload: bytes, now: float) -> None:
        arrived = self._uploads.chunk(device_id, payload, now)
        if arrived is not None:
            message, data = arrived
            runner = self._runner_of(message.rid)
            if runner is not None:
                self._take_vector(runner, device_id, message, data, now)
        for target, pull in self._uploads.requests(now):
            self._send(target, pull)

    def _take_vector(
        self, runner: TaskRunner, device_id: DeviceId, message: MaskedInput, data: bytes, now: float
    ) -> None:
        plan = runner.plan
        if plan is None:
            return
        vector = modular.unpack(data, encoding_of(plan).length, plan.bits)
        self._carry_out(runner, runner.apply(From(device_id, message), now, vector))

    def _serve(self, device_id: DeviceId, pull: Pull) -> None:
        data = self._blob_for(device_id, pull.sha256)
        ranges = tuple(zip(pull.firsts, pull.counts, strict=True)) if len(pull.firsts) == len(pull.counts) else ()
        topic = topics.build(topics.ChunkDown(device_id))
        for frame in chunks.frames(pull.sha256, data, pull.chunk_bytes, ranges):
            self._count_down(device_id, len(frame))
            self._out.append(Publication(topic, frame, expiry_s=EXPIRY_CHUNK_S))

    def _blob_for(self, device_id: DeviceId, digest: Digest) -> bytes:
        """A blob that this device may have: an open task's bundle or model, or its own large frame."""
        if self._large.get(digest) == device_id:
            return self._large_frame(device_id, digest)
        public = {
            ref.sha256 for r in self._runners.values() for ref in (r.config.bundle, *r.config.parts, r.checkpoint)
        }
        plans = {r.plan.checkpoint.sha256 for r in self._runners.values() if r.plan is not None}
        if digest not in public | plans:
            raise RemoteProtocolError(f"{device_id} asks for a blob that is not offered: {digest.hex()}")
        data = self._cache.get(digest)
        if data is None:
            data = self._cache[digest] = self._blobs.get(digest)
            if len(self._cache) > _BLOBS_CACHED:
                self._cache.popitem(last=False)
        return data

    def _large_frame(self, device_id: DeviceId, digest: Digest) -> bytes:
        """Write a frame again that a Large stands for: of thousands of devices, all at once are too many to keep."""
        runner = self._runner_for(device_id)
        if runner is not None and runner.state is not None:
            for message in outbox.outbox_for(runner.state, device_id):
                frame = codec.write_frame(message, device_id, self._identity.sign)
                if suite.digest(frame) == digest:
                    return frame
        raise RemoteProtocolError(f"{device_id} asks for a frame of a stage that is over: {digest.hex()}")

    # ---- carrying out and sending

    def _carry_out(self, runner: TaskRunner, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(device_id, message):
                    self._send(device_id, message)
                case Release():
                    self._jobs.append(runner.release_job())
                case Refuse(device_id, fault):
                    runner.count(fault)
                    log.debug("%s: %s", device_id, fault)
                case _:
                    raise AssertionError(effect)
        if runner.state is None:
            self._forget(runner.config.task)

    def _send(self, device_id: str, message: Message) -> None:
        frame = codec.write_frame(message, device_id, self._identity.sign)
        if len(frame) > CONTROL_FRAME_MAX_BYTES:
            reference = BlobRef(Digest(suite.digest(frame)), len(frame))
            self._large[reference.sha256] = device_id
            frame = codec.write_frame(Large(reference), device_id, self._identity.sign)
        self._count_down(device_id, len(frame))
        topic = topics.build(topics.ControlDown(DeviceId(device_id)))
        self._out.append(Publication(topic, frame, expiry_s=EXPIRY_CONTROL_DOWN_S))

    def _send_outcome(self, device_id: DeviceId, rid: RoundId) -> None:
        """A straggler of a round that ended hears how; anything else is nobody's round."""

        def read(connection: sa.Connection) -> tuple[str, int, float | None] | None:
            r = tables.rounds.c
            row = connection.execute(sa.select(r.phase, r.reason, r.closed_at).where(r.rid == rid)).one_or_none()
            return None if row is None else (row.phase, row.reason, row.closed_at)

        found = self._database.run_tx("read a round", read)
        if found is None:
            raise RemoteProtocolError(f"{device_id} speaks of an unknown round")
        phase, reason, closed_at = found
        # A round that ended in this very batch is not recorded yet; the device will ask again.
        if closed_at is not None:
            self._send(device_id, Outcome(rid, phase == "committed", AbandonReason(reason), 0))

    def _announce(self, runner: TaskRunner) -> None:
        announcement = runner.announcement()
        frame = codec.write_frame(
            announcement, codec.BROADCAST, self._identity.sign, certificate=self._identity.certificate_der
        )
        topic = topics.build(topics.TaskTopic(runner.config.population))
        self._out.append(Publication(topic, frame, retain=True))

    def _commit(self, now: float) -> tuple[Publication, ...]:
        """Open rounds that are due, make everything durable, and only then let anything out."""
        for runner in self._runners.values():
            if runner.wants_round(now):
                runner.open_round(RoundId(self._random_bytes(16)), now)
                self._forget(runner.config.task)
        writes = [write for runner in self._runners.values() for write in runner.take_writes()]
        seen, self._seen = self._seen, {}
        writes += [self._device_write(d, m, now) for d, m in seen.items()]
        if writes:
            self._database.run_tx("record what happened", lambda c: [write(c) for write in writes])
        for name, runner in self._runners.items():
            if self._announced.get(name) != runner.sequence:
                self._announced[name] = runner.sequence
                self._announce(runner)
        out, self._out = tuple(self._out), []
        return out

    def _device_write(self, device_id: str, message: CheckIn, now: float) -> Callable[[sa.Connection], object]:
        table = tables.devices
        values = {
            "certificate": self._devices[device_id].certificate,
            "sdk_version": message.sdk_version[:64],
            "runtime_version": message.runtime_version[:64],
            "last_seen_at": now,
        }

        def write(connection: sa.Connection) -> None:
            changed = connection.execute(table.update().where(table.c.device_id == device_id).values(**values))
            if changed.rowcount == 0:
                connection.execute(table.insert().values(device_id=device_id, first_seen_at=now, **values))

        return write

    # ---- small things

    def _forget(self, task: str) -> None:
        """A task's round is over: what was under way for its devices is not any more."""
        gone = {device_id for device_id, device in self._devices.items() if device.task == task}
        self._large = {digest: owner for digest, owner in self._large.items() if owner not in gone}
        self._uploads.forget(gone)

    def _runner_of(self, rid: RoundId) -> TaskRunner | None:
        return next((r for r in self._runners.values() if r.plan is not None and r.plan.rid == rid), None)

    def _runner_for(self, device_id: str) -> TaskRunner | None:
        device = self._devices.get(device_id)
        return None if device is None or device.task is None else self._runners.get(device.task)

    def _count_up(self, device_id: str, size_bytes: int) -> None:
        runner = self._runner_for(device_id)
        if runner is not None:
            runner.statistics.bytes_up += size_bytes

    def _count_down(self, device_id: str, size_bytes: int) -> None:
        runner = self._runner_for(device_id)
        if runner is not None:
            runner.statistics.bytes_down += size_bytes


def _is(reference: BlobRef, data: bytes) -> bool:
    return len(data) == reference.size_bytes and suite.digest(data) == reference.sha256
