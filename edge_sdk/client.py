"""The app developer's door: one object that owns a device's folder and wires the agent to its ports.

    schema = {"x": f32(1, 8, 8), "y": i64()}
    client = EdgeClient(Path("~/.myapp/edge").expanduser(), population="digits", schema=schema)
    client.examples.add(x=image, y=label)
    client.consent.grant(purpose="reading digits", text_version="1")
    client.predict(images)
    asyncio.run(client.run("mqtt://broker:1883"))

The folder holds `identity/` (key, certificate, registrar's certificate), `signer.pub` (who may sign models), the
example store, the device's own journal and ledger, fetched blobs and installed models.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from edge_sdk.clock import Clock, SystemClock
from edge_sdk.credentials import CA_FILE, CERTIFICATE_FILE, KEY_FILE, load_public_key
from edge_sdk.errors import StoreError
from edge_sdk.events import Event, OnEvent
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.protocol.policy import DevicePolicy
from edge_sdk.runtime.agent import DeviceAgent, Pace
from edge_sdk.runtime.blob_cache import BlobCache
from edge_sdk.runtime.broker_url import parse_broker_url
from edge_sdk.runtime.budget import Budget
from edge_sdk.runtime.consent import Consent
from edge_sdk.runtime.device_store import DeviceStore
from edge_sdk.runtime.dial import TlsFiles
from edge_sdk.runtime.eligibility import Eligibility, SystemConditions
from edge_sdk.runtime.enrolment import Renewal, registrar_url, usable_identity
from edge_sdk.runtime.event_stream import EventStream
from edge_sdk.runtime.home_lock import only_process_in
from edge_sdk.runtime.privacy_account import PrivacyAccount
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.fields import Schema
from edge_sdk.training.learner import LocalLearner
from edge_sdk.training.manifest import Runtime
from edge_sdk.training.trainer import Rows

IDENTITY_FOLDER = "identity"
SIGNER_FILE = "signer.pub"
EXAMPLES_FILE = "examples.sqlite"
DEVICE_FILE = "device.sqlite"


class EdgeClient:
    """One device.

    Args:
        home: the device's folder, with `identity/` and `signer.pub` in it.
        population: whose tasks it takes part in.
        schema: the fields of its examples, as models name them; without it the example store that is there is used,
            if there is one.
        policy: the device's own floors; the defaults ask for noise, secure aggregation and a cohort.
        eligibility: when it trains, by the machine's power, network, load and room; None for always.
        analytics: whether it answers signed questions about its examples, as it trains: clipped, noised and masked.
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
        IdentityError: key, certificate or signer are missing, wrong or expired.
        StoreError: the folder cannot be used.
        ArtifactError: the runtime is not installed.
    """

    def __init__(
        self,
        home: Path,
        *,
        population: str,
        schema: Schema | None = None,
        policy: DevicePolicy | None = None,
        eligibility: Eligibility | None = None,
        analytics: bool = False,
        runtime: Runtime = "onnx",
        pace: Pace | None = None,
        clock: Clock | None = None,
        on_event: OnEvent | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.home = home
        self._clock = clock or SystemClock()
        self._events = EventStream(on_event)
        self._eligibility = eligibility
        self.identity = usable_identity(home / IDENTITY_FOLDER, now=self._clock.now())
        signer = load_public_key(home / SIGNER_FILE)
        path = home / EXAMPLES_FILE
        self._examples = ExampleStore(path, schema) if schema is not None or path.exists() else None
        self.store = DeviceStore(home / DEVICE_FILE)
        self.consent = Consent(self.store, self._clock)
        policy = policy or DevicePolicy()
        self.privacy = PrivacyAccount(self.store, policy)
        models = InstalledModels(home / "models", signer=signer)
        self.learner = LocalLearner(signer, self._examples, models, analytics=analytics, runtime=runtime, budget=budget)
        self.agent = DeviceAgent(
            self.identity,
            population,
            self.store,
            BlobCache(home / "blobs"),
            self.learner,
            policy=policy,
            random_bytes=os.urandom,
            pace=pace,
            consent=self.consent,
            on_event=self._events.emit,
            budget=budget,
            free_memory=SystemConditions(home).free_memory,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the device's files."""
        self._events.close()
        self.store.close()
        if self._examples is not None:
            self._examples.close()

    @property
    def examples(self) -> ExampleStore:
        """The app's examples on this device.

        Raises:
            StoreError: the device only serves.
        """
        if self._examples is None:
            raise StoreError(f"{self.home} holds no examples", hint="pass a schema to make an example store")
        return self._examples

    def predict(self, inputs: NDArray[Any] | Rows | None = None, /, **named: NDArray[Any]) -> NDArray[Any]:
        """The newest installed model's output for a batch: an array for a model of one input, else arrays by name.

        Raises:
            ArtifactError: no model is installed yet, or it cannot be used.
        """
        return self.learner.predict(inputs, **named)

    def events(self) -> AsyncIterator[Event]:
        """What happens from now on, until the client is closed; see `edge_sdk.events`."""
        return self._events.read()

    def objections(self) -> tuple[str, ...]:
        """What is against training on this machine now, in words; empty where nothing is."""
        if self._eligibility is None:
            return ()
        return self._eligibility.objections(SystemConditions(self.home).read())

    @property
    def tls_files(self) -> TlsFiles:
        """The device's certificate as the broker sees it."""
        folder = self.home / IDENTITY_FOLDER
        return TlsFiles(folder / CA_FILE, folder / CERTIFICATE_FILE, folder / KEY_FILE)

    def renewals(self) -> dict[str, Renewal]:
        """What renews this device's certificate while it runs; nothing where no registrar enrolled it."""
        folder = self.home / IDENTITY_FOLDER
        url = registrar_url(folder)
        return {self.identity.id: Renewal(folder, url)} if url else {}

    async def run(self, broker: str, *, stop: asyncio.Event | None = None) -> None:
        """Take part until `stop` is set.

        Args:
            broker: mqtt(s)://host[:port].

        Raises:
            ConfigError: the URL cannot be read, or another process runs this device.
            StoreError: the device's store failed; nothing that it does not hold was sent.
        """
        from edge_sdk.runtime.driver import mqtt, run_devices

        url = parse_broker_url(broker)
        transports = mqtt(url, lambda agent: self.tls_files if url.tls else None)
        with only_process_in(self.home):
            await run_devices(
                [self.agent],
                transports,
                stop=stop or asyncio.Event(),
                clock=self._clock,
                objections=self.objections,
                renewals=self.renewals(),
            )
