"""What keeps a device from taking part, looked for one thing at a time; each finding says what to do about it.

Reads, connects and computes, but changes nothing. One check never hides another: whatever it meets becomes its finding.
"""

from __future__ import annotations

import asyncio
import email.utils
import http.client
import os
import shutil
import sqlite3
import ssl
import stat
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge_sdk.credentials import (
    CA_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    load_ca,
    load_certificate,
    load_identity,
    load_public_key,
)
from edge_sdk.errors import ConfigError, EdgeError, IdentityError, StoreError, TrainingError
from edge_sdk.identity import utc_text
from edge_sdk.inference.installed import InstalledModel, InstalledModels
from edge_sdk.protocol import topics
from edge_sdk.protocol.messages import DeviceId
from edge_sdk.runtime.blob_cache import BlobCache
from edge_sdk.runtime.broker_url import BrokerUrl
from edge_sdk.runtime.device_store import DeviceStore, require_ledger
from edge_sdk.runtime.dial import TlsFiles
from edge_sdk.runtime.eligibility import MIB, Eligibility, SystemConditions
from edge_sdk.runtime.enrolment import is_due, registrar_url
from edge_sdk.runtime.home import (
    BLOBS_FOLDER,
    DEVICE_FILE,
    IDENTITY_FOLDER,
    MODELS_FOLDER,
    SIGNER_FILE,
    examples_files,
)
from edge_sdk.runtime.home_lock import only_process_in
from edge_sdk.runtime.mqtt import MqttTransport
from edge_sdk.sqlite_file import FAILURES, is_damage
from edge_sdk.training.artifact import parse_head
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.graphs import runtime_name
from edge_sdk.training.learner import LocalLearner

DAY_S: Final = 86_400.0
CLOCK_OFF_S: Final = 60.0
"""A clock that is wrong by more is told."""
_ANSWER_S: Final = 10.0
_POPULATION: Final = "doctor"


class Verdict(StrEnum):
    """How it is."""

    GOOD = "ok"
    DOUBT = "warn"
    BAD = "FAIL"
    UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        verdict: BAD keeps the device from taking part, DOUBT will or may, UNKNOWN could not be looked at.
        what: what was looked at.
        detail: what was found.
        hint: what to do about it; empty where there is nothing to do.
    """

    verdict: Verdict
    what: str
    detail: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Patient:
    """A device to look at.

    Attributes:
        home: its folder.
        now: seconds since the epoch, by this machine's clock.
        broker: to try; None leaves that out.
        eligibility: when it may train; None for always.
        pinned: the signer's public key; None for the one in its folder.
    """

    home: Path
    now: float
    broker: BrokerUrl | None = None
    eligibility: Eligibility | None = None
    pinned: Path | None = None

    @property
    def signer(self) -> Path:
        """The key that models must be signed with."""
        return self.pinned or self.home / SIGNER_FILE

    @property
    def identity(self) -> Path:
        """The identity folder."""
        return self.home / IDENTITY_FOLDER


def examine(patient: Patient) -> Iterator[Finding]:
    """Look at everything, one finding after the other as they are made; without a home there is nothing else to see."""
    for what, check in _CHECKS:
        try:
            found = check(patient, what)
        except EdgeError as error:
            found = Finding(Verdict.BAD, what, str(error), error.hint)
        yield found
        if check is _home and found.verdict is Verdict.BAD:
            return


# ---- who it is


def _home(patient: Patient, what: str) -> Finding:
    home = patient.home
    try:
        status = home.stat()
    except OSError as error:
        raise ConfigError(f"{home}: {error.strerror}", hint="name the device's folder with --home") from error
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{home} is no folder", hint="name the device's folder with --home")
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(
            f"{home} cannot be written by this user", hint=f"chown it to user {os.getuid()}, or mount it to write"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        return Finding(Verdict.DOUBT, what, f"{home} can be written by others (mode {mode:04o})", f"chmod 700 {home}")
    return Finding(Verdict.GOOD, what, str(home))


def _key(patient: Patient, what: str) -> Finding:
    # The certificate's dates are the next check: here it is judged at a time at which it was valid.
    begin = load_certificate(patient.identity / CERTIFICATE_FILE).not_valid_before_utc.timestamp()
    identity = load_identity(patient.identity, role="device", now=begin + 1)
    return Finding(Verdict.GOOD, what, f"{patient.identity / KEY_FILE} is that of the certificate of {identity.id}")


def _certificate(patient: Patient, what: str) -> Finding:
    certificate = load_certificate(patient.identity / CERTIFICATE_FILE)
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    registrar = registrar_url(patient.identity)
    if patient.now < begin:
        raise ConfigError(
            f"not valid before {utc_text(begin)}", hint=f"set this machine's clock, which says {utc_text(patient.now)}"
        )
    renewed = (
        f"edge device run renews it from {registrar}" if registrar else "edge device renew --registrar https://..."
    )
    if patient.now > end:
        raise ConfigError(
            f"expired {(patient.now - end) / DAY_S:.0f} days ago, at {utc_text(end)}",
            hint=f"{renewed}; or this machine's clock is wrong: it says {utc_text(patient.now)}",
        )
    detail = f"valid until {utc_text(end)[:10]}, {(end - patient.now) / DAY_S:.0f} days"
    if is_due(certificate, patient.now):
        return Finding(Verdict.DOUBT, what, f"{detail}; it is time to renew it", renewed)
    if not registrar:
        return Finding(
            Verdict.GOOD, what, f"{detail}; nothing renews it by itself", "edge device renew --registrar https://..."
        )
    return Finding(Verdict.GOOD, what, f"{detail}; renewed from {registrar}")


def _signer(patient: Patient, what: str) -> Finding:
    if not patient.signer.exists():
        raise IdentityError(
            f"{patient.signer} is missing",
            hint="copy the models' signer's public key there; or, if the app pins one elsewhere, name it with --signer",
        )
    load_public_key(patient.signer)
    return Finding(Verdict.GOOD, what, f"{patient.signer}: models must be signed with it")


# ---- whom it talks to


def _clock(patient: Patient, what: str) -> Finding:
    registrar = registrar_url(patient.identity)
    said = utc_text(patient.now)
    if registrar:
        theirs = _date_of(registrar, patient.identity / CA_FILE)
        if theirs is not None:
            off_s = patient.now - theirs
            if abs(off_s) > CLOCK_OFF_S:
                side = "ahead of" if off_s > 0 else "behind"
                raise ConfigError(
                    f"the clock says {said}, {abs(off_s):,.0f} s {side} the registrar's",
                    hint="set it: timedatectl set-ntp true",
                )
            return Finding(Verdict.GOOD, what, f"{said}, as the registrar's")
    synchronized = _told("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if synchronized == "yes":
        return Finding(Verdict.GOOD, what, f"{said}, set by NTP")
    hint = "compare it with a clock that you trust; timedatectl set-ntp true lets the network set it"
    return Finding(Verdict.UNKNOWN, what, f"{said}; nobody here confirms it", hint)


def _date_of(registrar: str, ca: Path) -> float | None:
    """The registrar's clock by its answers; None where it does not answer. Certificates are not judged by dates."""
    parts = urllib.parse.urlsplit(registrar)
    pinned = load_ca(ca).public_bytes(serialization.Encoding.PEM).decode()
    context = ssl.create_default_context(cadata=pinned)
    # By a clock that is wrong every certificate may seem out of its time; who answers is checked all the same.
    context.verify_flags |= _NO_CHECK_TIME
    connection = http.client.HTTPSConnection(
        parts.hostname or "", parts.port or 443, timeout=_ANSWER_S, context=context
    )
    try:
        connection.request("HEAD", "/")
        date = email.utils.parsedate_to_datetime(connection.getresponse().getheader("Date", ""))
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return date.timestamp()


_NO_CHECK_TIME: Final = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which Python has no name."""


def _broker(patient: Patient, what: str) -> Finding:
    url = patient.broker
    if url is None:
        return Finding(Verdict.UNKNOWN, what, "not asked for", "name it with --broker")
    identity = load_identity(patient.identity, role="device", now=patient.now)
    folder = patient.identity
    tls = TlsFiles(folder / CA_FILE, folder / CERTIFICATE_FILE, folder / KEY_FILE) if url.tls else None
    try:
        # Two clients of one id would evict each other: a device that runs is not disturbed.
        with only_process_in(patient.home):
            asyncio.run(_connected(url, identity.id, tls))
    except ConfigError as error:
        return Finding(Verdict.UNKNOWN, what, f"{error}: not tried beside it", "see edge device logs")
    if not url.tls:
        return Finding(
            Verdict.DOUBT, what, f"{url} lets this device in, without TLS", "use mqtts:// outside of a test network"
        )
    return Finding(Verdict.GOOD, what, f"{url} lets this device in, over TLS")


async def _connected(url: BrokerUrl, device_id: str, tls: TlsFiles | None) -> None:
    wanted = topics.device_subscriptions(DeviceId(device_id), _POPULATION)
    transport = MqttTransport(url, device_id, wanted, lambda topic, payload: None, tls=tls)
    await transport.start(_ANSWER_S)
    await transport.stop()


# ---- what it holds and runs on


def _ledger(patient: Patient, what: str) -> Finding:
    path = patient.home / DEVICE_FILE
    if not path.exists():
        require_ledger(path)
        return Finding(Verdict.GOOD, what, "it has never run: nothing left it")
    damage = _damage(path)
    if damage:
        raise StoreError(
            f"{path} is damaged: {damage}",
            hint="restore it from a backup; without one: edge device purge, and enrol anew as another device",
        )
    with DeviceStore(path) as store:
        count = len(store.participations())
        return Finding(Verdict.GOOD, what, f"{count} participations on record")


def _examples(patient: Patient, what: str) -> Finding:
    paths = examples_files(patient.home)
    if not paths:
        return Finding(Verdict.DOUBT, what, "none: this device only serves", "add some, or edge device run --examples")
    counts = {}
    for path in paths:
        damage = _damage(path)
        if damage:
            raise StoreError(f"{path} is damaged: {damage}", hint="remove it; the app fills it again")
        with ExampleStore(path) as store:
            counts[path.stem] = len(store)
    words = ", ".join(f"{count} examples of {name}" for name, count in counts.items())
    if not all(counts.values()):
        return Finding(Verdict.DOUBT, what, f"{words}: without any it joins no round", "let the app add examples")
    return Finding(Verdict.GOOD, what, words)


def _damage(path: Path) -> str:
    """What SQLite finds wrong with a file; empty where nothing is. The file is opened for reading only.

    Raises:
        StoreError: it cannot be looked at, which says nothing of what is in it.
    """
    try:
        connection = sqlite3.connect(f"file:{urllib.parse.quote(str(path))}?mode=ro", uri=True)
        try:
            (told,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except FAILURES as error:
        if not is_damage(str(error)):
            raise StoreError(
                f"{path} cannot be read: {error}", hint="check the disk's free space and the file's permissions"
            ) from error
        return str(error)
    return "" if told == "ok" else str(told)


def _runtime(patient: Patient, what: str) -> Finding:
    return Finding(Verdict.GOOD, what, runtime_name("onnx"))


def _model(patient: Patient, what: str) -> Finding:
    signer = load_public_key(patient.signer)
    found = []
    for folder in sorted((patient.home / MODELS_FOLDER).glob("*/")):
        models = InstalledModels(folder, signer=signer)
        models.require_whole()
        current = models.current()
        if current is not None:
            found.append(_replayed(patient, signer, models, current, f"version {current.version} of {folder.name}"))
    return Finding(Verdict.GOOD, what, "; ".join(found) or "none is installed yet")


def _replayed(
    patient: Patient,
    signer: ec.EllipticCurvePublicKey,
    models: InstalledModels,
    current: InstalledModel,
    name: str,
) -> str:
    """Load what serves; replay the certificate of its training steps where their graphs are still here."""
    models.predictor()
    served = f"{name} predicts"
    blobs = BlobCache(patient.home / BLOBS_FOLDER)
    try:
        head = models.head(current)
        artifact = parse_head(head, signer=signer)
        wanted = LocalLearner(signer, None, models).parts(head)
        artifact = artifact.with_parts(blobs.get(part.sha256) for part in wanted)
    except StoreError:
        return f"{served}; its training graphs are not kept here, and not replayed"
    try:
        BundleTrainer(artifact)
    except TrainingError as error:
        raise TrainingError(
            f"{served}, but training computes other values here: {error}",
            hint="pip install --upgrade onnxruntime; edge verify shows the differences",
        ) from error
    return f"{served}, and its training steps are those that were certified"


# ---- whether now


def _room(patient: Patient, what: str) -> Finding:
    now, floor = SystemConditions(patient.home).read(), patient.eligibility or Eligibility()
    memory, disk = now.free_memory_bytes, now.free_disk_bytes
    detail = f"{_mib(memory)} of memory and {_mib(disk)} of disk free"
    if memory is not None and memory < floor.memory_at_least_bytes:
        hint = f"close programs; training waits until {_mib(floor.memory_at_least_bytes)} are free"
        return Finding(Verdict.DOUBT, what, detail, hint)
    if disk is not None and disk < floor.disk_at_least_bytes:
        hint = f"make room; training waits until {_mib(floor.disk_at_least_bytes)} are free"
        return Finding(Verdict.DOUBT, what, detail, hint)
    return Finding(Verdict.GOOD, what, detail)


def _mib(size: int | None) -> str:
    return "an unknown amount" if size is None else f"{size / MIB:,.0f} MiB"


def _power(patient: Patient, what: str) -> Finding:
    now = SystemConditions(patient.home).read()
    if now.charging is None:
        return Finding(Verdict.GOOD, what, "no battery: it hangs on a wall")
    battery = "" if now.battery is None else f", battery at {now.battery:.0%}"
    if now.charging:
        return Finding(Verdict.GOOD, what, f"on external power{battery}")
    return Finding(Verdict.DOUBT, what, f"on battery{battery}", "plug it in; --only-when charging waits for that")


def _network(patient: Patient, what: str) -> Finding:
    metered = SystemConditions(patient.home).read().metered
    if metered is None:
        return Finding(Verdict.UNKNOWN, what, "nobody here knows whether it is metered (no NetworkManager)")
    if metered:
        return Finding(
            Verdict.DOUBT, what, "metered", "a round may be megabytes; --only-when unmetered waits for another network"
        )
    return Finding(Verdict.GOOD, what, "not metered")


def _eligible(patient: Patient, what: str) -> Finding:
    if patient.eligibility is None:
        return Finding(Verdict.GOOD, what, "it trains whenever it is asked to")
    found = patient.eligibility.objections(SystemConditions(patient.home).read())
    if found:
        return Finding(Verdict.DOUBT, what, f"waits: {', '.join(found)}", "it goes on by itself when that is over")
    return Finding(Verdict.GOOD, what, "nothing is against training now")


def _told(program: str, *arguments: str) -> str:
    """What another program says; empty where it is not here or fails."""
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


_CHECKS: Final[tuple[tuple[str, Callable[[Patient, str], Finding]], ...]] = (
    ("home", _home),
    ("key", _key),
    ("certificate", _certificate),
    ("signer", _signer),
    ("clock", _clock),
    ("broker", _broker),
    ("ledger", _ledger),
    ("examples", _examples),
    ("runtime", _runtime),
    ("model", _model),
    ("room", _room),
    ("power", _power),
    ("network", _network),
    ("training", _eligible),
)
