"""The app developer's door: what an app calls, offline and with a real coordinator, registrar and broker."""

from __future__ import annotations

import asyncio
import math
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from coordinator.registrar.tokens import make_tokens
from device_sim.fleet import FleetFolders, make_authorities, make_devices
from edge_sdk import DevicePolicy, EdgeClient, Eligibility, f32, i64
from edge_sdk.cli import main
from edge_sdk.clock import SystemClock
from edge_sdk.errors import ArtifactError, ConfigError, IdentityError, StoreError
from edge_sdk.events import Deferred, Event, Installed, Trained, Uploaded
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.runtime import eligibility
from edge_sdk.runtime.eligibility import Conditions
from edge_sdk.signing import new_private_key, public_key_to_pem
from edge_sdk.training.trainer import Rows
from tests.integration.commands import Command
from tests.integration.exported import images, small
from tests.integration.test_inference_models import KEY, checkpoint
from tests.integration.test_registrar_server import Served
from tests.shared import free_port

LIMIT_S = 100.0
NOWHERE = "mqtt://127.0.0.1:9"
LENIENT = DevicePolicy(min_reports=3, epsilon_at_most=math.inf)
X, Y = np.zeros((4, 1, 8, 8), np.float32), np.arange(4)


@pytest.fixture
def folders(tmp_path: Path) -> FleetFolders:
    """A fleet of three, each with four examples called "digits"."""
    made = FleetFolders(tmp_path / "fleet")
    now = SystemClock().now()
    make_authorities(made, now)
    rng = np.random.default_rng(3)
    shards: dict[str, Rows] = {f"phone-{n}": {"x": rng.random((4, 1, 8, 8), np.float32), "y": Y} for n in range(3)}
    make_devices(made, shards, now)
    return made


@pytest.fixture
def home(folders: FleetFolders) -> Path:
    return folders.device("phone-0")


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


# ---- offline


def test_examples_are_collected_by_name(home: Path) -> None:
    with EdgeClient(home) as edge:
        taps = edge.examples("taps", x=f32(1, 8, 8), y=i64(), max_rows=2)
        for number in range(3):
            taps.add(x=X[0], y=number)
        assert edge.examples("taps") is taps
        with pytest.raises(StoreError, match="other fields"):
            edge.examples("taps", x=f32(2))
        assert edge.examples("taps", max_rows=2) is taps
        with pytest.raises(StoreError, match="max_rows=2"):
            edge.examples("taps", max_rows=3)
    with EdgeClient(home) as edge:
        assert edge.examples("taps").arrays()["y"].tolist() == [1, 2]
        assert len(edge.examples("digits")) == 4
        with pytest.raises(StoreError, match="no examples"):
            edge.examples("none")


@pytest.mark.parametrize("name", ["", "My Taps", "../taps", "a" * 64])
def test_names_are_checked(home: Path, name: str) -> None:
    with EdgeClient(home) as edge:
        for call in (edge.examples, edge.join, edge.model):
            with pytest.raises(ConfigError, match="cannot name"):
                call(name)


def test_a_population_is_joined_once(home: Path) -> None:
    with EdgeClient(home) as edge:
        edge.join("keyboard")
        with pytest.raises(ConfigError, match="has joined 'keyboard' already"):
            edge.join("keyboard")


def test_who_names_no_coordinator_only_predicts(home: Path) -> None:
    with EdgeClient(home) as edge:
        for begin in (edge.run, edge.start):
            with pytest.raises(ConfigError, match="where the coordinator is"):
                begin()


def test_a_folder_of_the_user_is_found(monkeypatch: pytest.MonkeyPatch, folders: FleetFolders) -> None:
    monkeypatch.setenv("HOME", str(folders.device("phone-0").parent))
    with EdgeClient("~/phone-0") as edge:
        assert edge.device_id == "phone-0"
        assert edge.objections() == {}


def test_without_identity_and_token_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"no identity: .*identity\.crt is missing") as refused:
        EdgeClient(tmp_path)
    assert "enrol_token" in refused.value.hint
    # An app that lets it through shows the hint as well.
    assert f"hint: {refused.value.hint}" in "".join(traceback.format_exception(refused.value))


def test_the_bundled_model_serves_until_one_is_installed(home: Path, tmp_path: Path) -> None:
    (home / "signer.pub").write_bytes(public_key_to_pem(KEY))
    bundle = tmp_path / "small.edge"
    bundle.write_bytes(small().to_bytes())
    x, _ = images(3)
    with EdgeClient(home) as edge:
        with pytest.raises(ArtifactError, match="no model is installed yet"):
            edge.model("keyboard").predict(x)
        model = edge.model("keyboard", bundle=bundle)
        bundled = model.predict(x)
        assert model.version == 0
        # Another process may install; the same object predicts with it from then on.
        InstalledModels(home / "models" / "keyboard", signer=KEY).install(small(), 5, checkpoint(5))
        assert model.version == 5
        assert not np.array_equal(model.predict(x), bundled)
        for path in (home / "models" / "keyboard").glob("*.checkpoint"):
            path.write_bytes(b"damaged")
    with EdgeClient(home) as edge:
        assert np.array_equal(edge.model("keyboard", bundle=bundle).predict(x), bundled)
        bundle.write_bytes(b"no bundle")
    with EdgeClient(home) as edge, pytest.raises(ArtifactError, match="installed checkpoint of version 5"):
        edge.model("keyboard", bundle=bundle).predict(x)


def test_a_bundle_of_another_signer_does_not_serve(home: Path, tmp_path: Path) -> None:
    (home / "signer.pub").write_bytes(public_key_to_pem(new_private_key().public_key()))
    bundle = tmp_path / "small.edge"
    bundle.write_bytes(small().to_bytes())
    with EdgeClient(home) as edge, pytest.raises(ArtifactError, match="signed by unknown key"):
        edge.model("keyboard", bundle=bundle).predict(images(1)[0])


def test_each_population_has_its_own_eligibility(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eligibility.SystemConditions, "read", lambda self: Conditions(charging=False, metered=True))
    with EdgeClient(home) as edge:
        edge.join("careless")
        edge.join("cautious", eligibility=Eligibility())
        edge.join("metered", eligibility=Eligibility(charging=False, idle=False))
        assert edge.objections() == {
            "cautious": ("not charging", "the network is metered"),
            "metered": ("the network is metered",),
        }


# ---- starting and stopping


def test_it_starts_once_and_stops_and_starts_again(home: Path) -> None:
    with EdgeClient(home, NOWHERE) as edge:
        edge.join("keyboard")
        for _ in range(2):
            edge.start()
            with pytest.raises(ConfigError, match="runs already"):
                edge.start()
            with pytest.raises(ConfigError, match="runs already"):
                edge.join("other")
            edge.stop()
        edge.stop()


def test_a_callback_may_stop_what_calls_it(home: Path) -> None:
    def stop(event: Event) -> None:
        stopped.append(event)
        edge.stop()

    stopped: list[Event] = []
    edge = EdgeClient(home, NOWHERE, on_event=stop)
    edge.join("keyboard", examples=edge.examples("digits"))
    with edge:
        edge.start()
        thread = edge._carrier._thread
        assert thread is not None
        while (carrying := edge._carrier._errand) is None:
            pass
        carrying.loop.call_soon_threadsafe(edge._events.emit, Deferred("keyboard", 1.0, "a reason"))
        thread.join()
    assert stopped == [Deferred("keyboard", 1.0, "a reason")]


def test_a_folder_that_it_makes_is_its_owners_only(tmp_path: Path, folders: FleetFolders) -> None:
    with EdgeClient(tmp_path / "new" / "edge", enrol_token="t", signer=folders.signer_public) as edge:  # noqa: S106
        assert edge.home.stat().st_mode & 0o077 == 0
        assert not edge.is_complete("keyboard")


def test_a_second_one_in_the_same_folder_is_told(home: Path) -> None:
    with EdgeClient(home, NOWHERE) as edge, EdgeClient(home, NOWHERE) as second:
        edge.run(until=lambda: _is_refused(second))
        # The first ended, and so the second may run; what refused it is told by stop.
        second.run(until=lambda: True)


def _is_refused(second: EdgeClient) -> bool:
    second.start()
    with pytest.raises(ConfigError, match="in use by another process"):
        second.stop()
    return True


def test_a_failure_in_the_background_is_raised_where_it_is_stopped(home: Path) -> None:
    async def main() -> None:
        async with EdgeClient(home, NOWHERE) as edge:
            assert edge._carrier._task is not None
            await asyncio.wait([edge._carrier._task])

    edge = EdgeClient(home, NOWHERE)
    (home / "identity" / "identity.crt").write_text("garbage", encoding="utf-8")
    edge.start()
    assert edge._carrier._thread is not None
    edge._carrier._thread.join()
    with pytest.raises(IdentityError, match="not a PEM certificate"):
        edge.stop()
    edge.close()
    with pytest.raises(IdentityError, match="not a PEM certificate"):
        asyncio.run(main())


# ---- enrolment


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.close()


def fresh(served: Served, folders: FleetFolders, token: str, **options: str) -> tuple[EdgeClient, list[Event]]:
    """A device out of its box, with what its app ships."""
    told: list[Event] = []
    certificate = served.folder / "registrar.crt"
    edge = EdgeClient(
        folders.work / "new",
        NOWHERE,
        enrol_token=token,
        enrol_url=options.get("enrol_url", served.url),
        registrar=certificate,
        signer=folders.signer_public,
        on_event=told.append,
    )
    edge.join("keyboard", examples=edge.examples("taps", x=f32(1, 8, 8), y=i64()))
    return edge, told


def test_a_device_enrols_when_it_first_runs(served: Served, folders: FleetFolders) -> None:
    (token,) = make_tokens(served.folder, 1, expires_at=served.now + 1_000, identity_id="")
    edge, _ = fresh(served, folders, token)
    with edge:
        edge.examples("taps").add(x=X[0], y=1)
        assert edge.device_id == ""
        edge.run(until=lambda: True)
        name = edge.device_id
        assert name.startswith("d")
    # The token is spent, and not needed again.
    edge, _ = fresh(served, folders, token)
    with edge:
        edge.run(until=lambda: True)
        assert edge.device_id == name
        assert len(edge.examples("taps")) == 1


def test_a_token_that_is_refused_is_told(served: Served, folders: FleetFolders) -> None:
    edge, _ = fresh(served, folders, "nonsense")
    with edge, pytest.raises(IdentityError, match="the registrar refused"):
        edge.run()


def test_a_registrar_that_is_away_is_waited_for(served: Served, folders: FleetFolders) -> None:
    edge, told = fresh(served, folders, "token", enrol_url=f"https://localhost:{free_port()}")

    async def main() -> None:
        async with edge:
            async for event in edge.events():
                assert isinstance(event, Deferred)
                assert event.reason.startswith("not enrolled: cannot reach the registrar")
                break

    asyncio.run(main())
    assert len(told) == 1
    with EdgeClient(folders.device("phone-0"), "mqtts://[::1]:8883") as other:
        assert other._enrol_url == "https://[::1]:8443"


# ---- with a coordinator


def test_devices_take_part_in_two_populations_over_one_connection(folders: FleetFolders, running: ExitStack) -> None:
    assert main(["export", "--signer", str(folders.signer_key), "--out", str(folders.bundle)]) == 0
    for name in ("letters", "numbers"):
        create = (
            f"run create {name} --home {folders.coordinator} --bundle {folders.bundle} --signer {folders.signer_public}"
            " --devices 3 --min-reports 3 --rounds 1 --epsilon off"
        )
        assert main(create.split()) == 0
    port = free_port()
    serving = running.enter_context(Command("coordinator", "serve", "--home", folders.coordinator, "--port", str(port)))
    serving.wait_for("Ctrl-C stops it")
    told: list[Event] = []

    def device(number: int) -> EdgeClient:
        edge = EdgeClient(
            folders.device(f"phone-{number}"), f"mqtt://127.0.0.1:{port}", policy=LENIENT, on_event=told.append
        )
        for name in ("letters", "numbers"):
            # What judges a personal model is fetched too, though here is nothing yet to judge by.
            edge.join(name, examples=edge.examples("digits", holdout=0.2), personalise=name == "letters")
        edge.consent.grant(purpose="reading", text_version="1")
        return edge

    def is_over(edge: EdgeClient) -> bool:
        return edge.is_complete("letters") and edge.is_complete("numbers")

    async def beside_an_app(edge: EdgeClient) -> None:
        async with edge, asyncio.timeout(LIMIT_S):
            async for event in edge.events():
                if isinstance(event, Installed) and is_over(edge):
                    break
        # Its files are closed; what they hold is read anew below.

    threaded = running.enter_context(device(0))
    threaded.start()
    other = running.enter_context(device(1))
    in_loop = threading.Thread(target=lambda: asyncio.run(beside_an_app(device(2))))
    in_loop.start()
    other.run(until=lambda: is_over(other))
    in_loop.join()
    threaded.stop()
    threaded.run(until=lambda: is_over(threaded))
    for number in range(3):
        with EdgeClient(folders.device(f"phone-{number}"), policy=LENIENT) as edge:
            receipts = edge.privacy.receipts()
            assert {receipt.task for receipt in receipts} == {"letters", "numbers"}
            assert {(receipt.outcome, receipt.purpose) for receipt in receipts} == {("committed", "reading")}
            assert edge.privacy.spent().participations == 2
            for name in ("letters", "numbers"):
                assert edge.model(name).version == 2
                assert edge.model(name).predict(X).shape == (4, 10)
    # A model that a failing disk spoilt, or somebody deleted, is fetched again, though the device heard of its version
    # before.
    (folders.device("phone-0") / "models" / "letters" / "installed.json").write_bytes(b"\xc9" * 300)
    (folders.device("phone-0") / "models" / "numbers" / "installed.json").unlink()
    with device(0) as spoilt:
        assert [spoilt.model(name).version for name in ("letters", "numbers")] == [0, 0]
        spoilt.run(until=lambda: is_over(spoilt))
        assert [spoilt.model(name).version for name in ("letters", "numbers")] == [2, 2]
    kinds = {(type(event), event.population) for event in told}
    assert {(kind, name) for kind in (Trained, Uploaded, Installed) for name in ("letters", "numbers")} <= kinds
