"""The app developer's door: one object that owns a device's folder, collects, trains, predicts and accounts.

    edge = EdgeClient("~/.myapp/edge", coordinator="mqtts://fl.example.com:8883", enrol_token=token)
    taps = edge.examples("taps", x=f32(16), y=i64(), max_rows=2_000)
    edge.join("keyboard", examples=taps, eligibility=Eligibility())
    edge.consent.grant(purpose="improve typing", text_version="3")
    edge.start()
    taps.add(x=features, y=label)
    edge.model("keyboard").predict(x)

The folder holds `identity/` (key, certificate, registrar's certificate), `signer.pub` (who may sign models), the
example stores, the device's own journal and ledger, fetched blobs and installed models. Everything but `run`, `start`
and `async with` works without a network, and before the device is enrolled.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from edge_sdk.clock import Clock, SystemClock
from edge_sdk.credentials import (
    CA_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    load_ca,
    load_certificate,
    load_public_key,
)
from edge_sdk.errors import ArtifactError, ConfigError, IdentityError, StoreError, TransportError
from edge_sdk.events import Deferred, Event, OnEvent, Personalised
from edge_sdk.identity import Identity, certificate_id
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.inference.model import Model
from edge_sdk.inference.personal import PersonalModel
from edge_sdk.protocol.policy import DevicePolicy
from edge_sdk.runtime.blob_cache import BlobCache
from edge_sdk.runtime.broker_url import BrokerUrl, parse_broker_url
from edge_sdk.runtime.budget import Budget
from edge_sdk.runtime.carrier import Carrier, Errand
from edge_sdk.runtime.consent import Consent
from edge_sdk.runtime.device_store import DeviceStore
from edge_sdk.runtime.dial import TlsFiles
from edge_sdk.runtime.eligibility import Eligibility, SystemConditions
from edge_sdk.runtime.event_stream import EventStream
from edge_sdk.runtime.home import (
    BLOBS_FOLDER,
    DEVICE_FILE,
    IDENTITY_FOLDER,
    SIGNER_FILE,
    examples_file,
    models_folder,
    personal_folder,
    require_name,
)
from edge_sdk.runtime.home_lock import only_process_in
from edge_sdk.runtime.privacy_account import PrivacyAccount
from edge_sdk.training.example_key import KeyPlace
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.fields import Field
from edge_sdk.training.learner import LocalLearner
from edge_sdk.training.manifest import Runtime

if TYPE_CHECKING:
    from edge_sdk.runtime.agent import DeviceAgent, Pace
    from edge_sdk.runtime.driver import SpareWork
    from edge_sdk.runtime.enrolment import Renewal
    from edge_sdk.runtime.membership import Membership

log = logging.getLogger("edge.device")

REGISTRAR_PORT: Final = 8443

WITHDRAWING: Final = "withdrawing"
"""Stands in the device's store from the owner's word until all is erased."""

_RETRY_MIN_S: Final = 5.0
_RETRY_MAX_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class _Join:
    learner: LocalLearner
    eligibility: Eligibility | None


class EdgeClient:
    """One device.

    Args:
        home: the device's folder, created where missing; `~` is the user's.
        coordinator: mqtt(s)://host[:port] of the broker; not needed by who only predicts.
        enrol_token: from the fleet's operator, good for one device: with it a device that has no identity gets one
            when it first runs, and needs the token no more.
        enrol_url: the registrar's, https://host[:port]; the coordinator's host at port 8443 by default.
        registrar: the registrar's certificate, to pin; `registrar.crt` in `home` by default. Ship it in the app.
        signer: the public key that models must be signed with; `signer.pub` in `home` by default. Ship it in the app.
        policy: the device's own floors; the defaults ask for noise, secure aggregation and a cohort.
        runtime: what trains: "onnx", or "torchscript", "litert" or "executorch" where it is installed and bundles have
            its format.
        pace: how patient it is.
        clock: tells the time.
        on_event: is told what happens; see `edge_sdk.events`.
        budget: what training may take: processor, threads, time, traffic a day, memory.

    Attributes:
        consent: the owner's; nothing is trained until it is granted.
        privacy: what left the device, and what it cost.

    Raises:
        ConfigError: the coordinator's URL cannot be read.
        IdentityError: there is neither an identity nor a token, or the signer's key is missing.
        StoreError: the folder cannot be used.
    """

    def __init__(
        self,
        home: str | Path,
        coordinator: str = "",
        *,
        enrol_token: str = "",
        enrol_url: str = "",
        registrar: str | Path = "",
        signer: str | Path = "",
        policy: DevicePolicy | None = None,
        runtime: Runtime = "onnx",
        pace: Pace | None = None,
        clock: Clock | None = None,
        on_event: OnEvent | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.home = Path(home).expanduser()
        self._broker = parse_broker_url(coordinator) if coordinator else None
        self._token = enrol_token
        self._enrol_url = enrol_url or (_registrar_beside(self._broker) if self._broker else "")
        self._registrar = Path(registrar or self.home / CA_FILE)
        self._clock = clock or SystemClock()
        self._policy = policy or DevicePolicy()
        self._runtime: Runtime = runtime
        self._pace = pace
        self._budget = budget
        self._identity_folder = self.home / IDENTITY_FOLDER
        _finish_withdrawal(self.home)
        if not enrol_token and not (self._identity_folder / CERTIFICATE_FILE).exists():
            self._usable_identity()  # says what is missing
        self._signer = load_public_key(Path(signer or self.home / SIGNER_FILE))
        self._events = EventStream(on_event)
        with suppress(OSError):  # the store says what is wrong
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._store = DeviceStore(self.home / DEVICE_FILE)
        self.consent = Consent(self._store, self._clock, changed=lambda: self._carrier.wake())
        self.privacy = PrivacyAccount(self._store, self._policy)
        self._examples: dict[str, ExampleStore] = {}
        self._models: dict[str, InstalledModels] = {}
        self._joins: dict[str, _Join] = {}
        self._agent: DeviceAgent | None = None
        self._carrier = Carrier(self.home, self._take_part)

    # ---- what the app gives and gets

    def examples(
        self,
        name: str,
        /,
        *,
        max_rows: int | None = None,
        max_bytes: float | None = None,
        ttl_days: float | None = None,
        holdout: float | None = None,
        key: KeyPlace = "file",
        **fields: Field,
    ) -> ExampleStore:
        """The device's examples of that name, made where there are none.

        Args:
            name: 1 to 63 of a-z, 0-9 and '-'.
            max_rows, max_bytes, ttl_days, holdout, key: see `ExampleStore`.
            fields: what an example looks like: inputs by the model's names, and the target "y"; without them the
                examples that are there are opened.

        Raises:
            ConfigError: the name cannot be one.
            StoreError: the store cannot be opened, holds other examples, or is open already with other caps.
        """
        require_name(name, "examples")
        asked = {"max_rows": max_rows, "max_bytes": max_bytes, "ttl_days": ttl_days, "holdout": holdout}
        caps = {cap: value for cap, value in asked.items() if value is not None}
        store = self._examples.get(name)
        if store is None:
            path = examples_file(self.home, name)
            store = ExampleStore(path, fields or None, key=key, clock=self._clock, **caps)  # type: ignore[arg-type]
            self._examples[name] = store
        elif fields and dict(fields) != store.schema:
            raise StoreError(f"the examples {name!r} are open already, with other fields", hint="use another name")
        elif any(getattr(store.caps, cap) != value for cap, value in caps.items()):
            raise StoreError(
                f"the examples {name!r} are open already, with {store.caps}",
                hint="give caps where they are opened first",
            )
        return store

    def join(
        self,
        name: str,
        /,
        *,
        examples: ExampleStore | None = None,
        eligibility: Eligibility | None = None,
        bundle: str | Path | None = None,
        analytics: bool = False,
        personalise: bool = False,
    ) -> None:
        """Take part in a population's training, and serve its models; before the client runs.

        Args:
            name: the population's, which by default is the run's.
            examples: what to train on; None only serves.
            eligibility: when it trains, by the machine's power, network, load and room; None for always.
            bundle: a bundle shipped with the app, to predict with until a model is installed.
            analytics: whether it answers signed questions about these examples, as it trains: clipped, noised, masked.
            personalise: whether a copy of the model is tuned on these examples, to serve on this device only, and only
                while it does better on those held out; it is never uploaded.

        Raises:
            ConfigError: the name cannot be a population's, was joined already, or the client runs; or no examples are
                held out to judge a personal model by.
            ConfigError: the runtime cannot be kept to the budget's threads.
            ArtifactError: the runtime is not installed.
        """
        require_name(name, "a population")
        if name in self._joins or self._carrier.running:
            reason = "runs already" if self._carrier.running else f"has joined {name!r} already"
            raise ConfigError(f"this client {reason}", hint="join each population once, before run or start")
        if personalise and (examples is None or not examples.caps.holdout):
            raise ConfigError(
                "a personal model needs examples that it is not tuned on, to be judged by",
                hint="hold some out: edge.examples(..., holdout=0.2)",
            )
        learner = LocalLearner(
            self._signer,
            examples,
            self._models_of(name, bundle),
            analytics=analytics,
            runtime=self._runtime,
            budget=self._budget,
            personal=PersonalModel(personal_folder(self.home, name)) if personalise else None,
        )
        self._joins[name] = _Join(learner, eligibility)

    def model(self, name: str, /, *, bundle: str | Path | None = None) -> Model:
        """A population's model, joined or not: the newest good one that is installed, else the bundled one.

        Args:
            name: the population's.
            bundle: as in `join`.

        Raises:
            ConfigError: the name cannot be a population's.
        """
        require_name(name, "a population")
        return Model(self._models_of(name, bundle))

    def events(self) -> AsyncIterator[Event]:
        """What happens from now on, until the client is closed; see `edge_sdk.events`."""
        return self._events.read()

    def is_complete(self, name: str, /) -> bool:
        """Whether a joined population's task is over and its last model serves here; False before the client ran."""
        membership = self._agent.memberships.get(name) if self._agent is not None else None
        return membership is not None and membership.is_complete

    @property
    def device_id(self) -> str:
        """The name in the device's certificate; empty until it is enrolled.

        Raises:
            IdentityError: the certificate cannot be read.
        """
        path = self._identity_folder / CERTIFICATE_FILE
        return certificate_id(load_certificate(path)) if path.exists() else ""

    def objections(self) -> dict[str, tuple[str, ...]]:
        """What is against training on this machine now, in words, by population."""
        asked = {name: join.eligibility for name, join in self._joins.items() if join.eligibility is not None}
        if not asked:
            return {}
        conditions = SystemConditions(self.home).read()
        return {name: eligibility.objections(conditions) for name, eligibility in asked.items()}

    # ---- running

    def run(self, *, until: Callable[[], bool] | None = None) -> None:
        """Take part until `stop` is called from another thread, or the process gets SIGINT or SIGTERM.

        Args:
            until: asked every few seconds; it ends when this holds too.

        Raises:
            ConfigError: no coordinator was named, or this or another process runs this device already.
            IdentityError: the registrar refused the token, or the certificate cannot be used.
            StoreError: the device's store failed; nothing that it does not hold was sent.
        """
        self._require_broker()
        self._carrier.run(until or (lambda: False))

    def start(self) -> None:
        """Take part in a thread of its own, until `stop`.

        Raises:
            ConfigError: no coordinator was named, or this client runs already.
        """
        self._require_broker()
        self._carrier.start()

    def stop(self) -> None:
        """End `run` or `start`; an open round is taken up again by the next one.

        It waits for the end of what `start` began, unless it is called from there, by a callback.

        Raises:
            EdgeError: why what `start` began had ended by itself.
        """
        self._carrier.stop()

    def withdraw(self) -> None:
        """The owner wants out: stop, and erase what was given to this device, for good.

        Gone are examples and personal models with their keys, the device's identity, the open round with its update,
        receipts, logs, and everything that tells what was done when. What is kept: that consent was revoked; of the
        ledger what each task cost, so that budgets hold if the owner ever consents again; the installed global models,
        which still predict. What was uploaded is in sums of many devices and cannot be taken out.

        This client and its example stores are of no more use then, but for `model`. To take part again make another,
        with a new token. Killed half way, the next client made in this folder completes it. In a coroutine on the loop
        that runs this client, it is carried out when the `async with` block ends.

        Raises:
            ConfigError: another process runs this device.
            StoreError: something cannot be erased; it may be called again.
        """
        try:
            self._store.put(WITHDRAWING, "1", durable=True)
        finally:
            self.consent.revoke()  # also where nothing can be written: no training goes on in this process
        self._carrier.request_stop()
        if self._carrier.wait() and self._store.get(WITHDRAWING):
            with only_process_in(self.home):
                self._erase()

    def _erase(self) -> None:
        self._carrier.retire("the owner withdrew", "to take part again make another client, with a new token")
        for examples in self._examples.values():
            examples.close()
        _withdraw(self.home, self._store)

    async def __aenter__(self) -> Self:
        """Take part on this event loop, beside what else runs on it; leaving the block stops and closes."""
        self._require_broker()
        self._carrier.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await self._carrier.leave()
        finally:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and close the device's files.

        Raises:
            EdgeError: as for `stop`.
        """
        try:
            self.stop()
        finally:
            self._events.close()
            self._store.close()
            for examples in self._examples.values():
                examples.close()

    def _require_broker(self) -> BrokerUrl:
        if self._broker is None:
            raise ConfigError("it is not known where the coordinator is", hint='EdgeClient(home, "mqtts://host:8883")')
        return self._broker

    async def _take_part(self, errand: Errand) -> None:
        from edge_sdk.runtime.driver import DeviceLoop, mqtt

        identity = await self._identified(errand.stopped)
        if identity is not None:
            url, tls_files = self._require_broker(), self.tls_files
            self._agent = self._make_agent(identity)
            devices = DeviceLoop(
                [self._agent],
                mqtt(url, lambda _: tls_files if url.tls else None),
                clock=self._clock,
                objections=self.objections,
                renewals=self.renewals(),
                spare=self._spare_work,
            )
            errand.wake = devices.wake
            await devices.run(errand.stopped, errand.until)
        if self._store.get(WITHDRAWING):
            self._erase()

    def _spare_work(self) -> SpareWork | None:
        """A personal model to tune, where it is time to, and nothing is against training for its population."""
        if self._agent is None or not self.consent.granted:
            return None
        for name, join in self._joins.items():
            if not self._agent.memberships[name].objections and join.learner.should_tune():
                return partial(self._tune, asyncio.get_running_loop(), self._agent.memberships[name])
        return None

    def _tune(self, loop: asyncio.AbstractEventLoop, membership: Membership, should_stop: Callable[[], bool]) -> None:
        """Tune a personal model, in the training thread."""
        blobs = BlobCache(self.home / BLOBS_FOLDER)
        name = membership.population
        comparison = self._joins[name].learner.tune(
            lambda part: blobs.get(part.sha256), lambda: should_stop() or bool(membership.objections)
        )
        if comparison is not None:
            losses = (comparison.global_loss, comparison.personal_loss)
            event = Personalised(name, self._clock.now(), comparison.wins, comparison.examples, *losses)
            loop.call_soon_threadsafe(self._events.emit, event)

    async def _identified(self, stopped: asyncio.Event) -> Identity | None:
        """The device's identity, from the registrar where it has none or an expired one; None if stopped meanwhile."""
        pause_s = _RETRY_MIN_S
        while not stopped.is_set():
            try:
                return await asyncio.to_thread(self._identify)
            except (IdentityError, TransportError) as error:
                # An expired certificate cannot be renewed without the registrar either.
                if isinstance(error, IdentityError) and not isinstance(error.__cause__, TransportError):
                    raise
                log.warning("not enrolled yet: %s (%s)", error, error.hint)
                for name in self._joins:
                    self._events.emit(Deferred(name, self._clock.now(), f"not enrolled: {error}"))
            # Of many devices that found their registrar gone, each comes back at a time of its own.
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s * secrets.SystemRandom().uniform(0.5, 1.0)):
                    await stopped.wait()
            pause_s = min(_RETRY_MAX_S, 2 * pause_s)
        return None

    def _identify(self) -> Identity:
        from edge_sdk.runtime.enrolment import enrol

        folder = self._identity_folder
        if (folder / CERTIFICATE_FILE).exists() or not self._token:
            return self._usable_identity()
        ca = load_ca(self._registrar)
        return enrol(folder, self._enrol_url, token=self._token, ca=ca, now=self._clock.now())

    def _usable_identity(self) -> Identity:
        from edge_sdk.runtime.enrolment import usable_identity

        return usable_identity(self._identity_folder, now=self._clock.now())

    # ---- how it is wired, for those who drive many devices themselves

    def make_agent(self) -> DeviceAgent:
        """This device as the drivers drive it; it must be enrolled. An app needs none: see `run`.

        Raises:
            IdentityError: key or certificate are missing, wrong or expired.
        """
        return self._make_agent(self._usable_identity())

    @property
    def tls_files(self) -> TlsFiles:
        """The device's certificate as the broker sees it."""
        folder = self._identity_folder
        return TlsFiles(folder / CA_FILE, folder / CERTIFICATE_FILE, folder / KEY_FILE)

    def renewals(self) -> dict[str, Renewal]:
        """What renews this device's certificate while it runs; nothing where no registrar enrolled it."""
        from edge_sdk.runtime.enrolment import Renewal, registrar_url

        url = registrar_url(self._identity_folder)
        return {self.device_id: Renewal(self._identity_folder, url)} if url else {}

    def _make_agent(self, identity: Identity) -> DeviceAgent:
        for name in self._joins:
            try:
                self._models[name].require_whole(any_installed=self._store.number(f"installed_version/{name}") > 0)
            except (ArtifactError, StoreError) as error:
                log.warning("the model of %s is fetched again: %s", name, error)
                self._store.drop(f"installed_version/{name}")
        # What takes part is imported when it does: an app that collects or predicts opens sooner without it.
        from edge_sdk.runtime.agent import DeviceAgent

        return DeviceAgent(
            identity,
            {name: join.learner for name, join in self._joins.items()},
            self._store,
            BlobCache(self.home / BLOBS_FOLDER),
            policy=self._policy,
            random_bytes=os.urandom,
            pace=self._pace,
            consent=self.consent,
            on_event=self._events.emit,
            budget=self._budget,
            free_memory=SystemConditions(self.home).free_memory,
        )

    def _models_of(self, name: str, bundle: str | Path | None) -> InstalledModels:
        if name not in self._models:
            self._models[name] = InstalledModels(models_folder(self.home, name), signer=self._signer)
        if bundle is not None:
            self._models[name].bundled = Path(bundle).expanduser()
        return self._models[name]


def _finish_withdrawal(home: Path) -> None:
    """Complete what a process that was killed began, unless another is at it."""
    path = home / DEVICE_FILE
    if path.exists():
        with DeviceStore(path) as store:
            if store.get(WITHDRAWING):
                with suppress(ConfigError), only_process_in(home):
                    _withdraw(home, store)


def _withdraw(home: Path, store: DeviceStore) -> None:
    from edge_sdk.runtime.purge import withdraw

    withdraw(home, store)
    store.drop(WITHDRAWING)


def _registrar_beside(broker: BrokerUrl) -> str:
    """Where the registrar is if it runs on the broker's host."""
    host = f"[{broker.host}]" if ":" in broker.host else broker.host
    return f"https://{host}:{REGISTRAR_PORT}"
