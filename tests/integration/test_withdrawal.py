"""The owner withdraws: what is erased, what is kept so that budgets hold, and that no kill leaves half of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from device_sim.fleet import FleetFolders, make_authorities, make_devices
from edge_sdk import EdgeClient
from edge_sdk.clock import SystemClock
from edge_sdk.errors import ConfigError, IdentityError, StoreError
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.privacy.subsampled import Sampling
from edge_sdk.runtime import purge
from edge_sdk.runtime.device_store import DeviceStore
from edge_sdk.runtime.home import examples_file, models_folder
from edge_sdk.runtime.home_lock import only_process_in
from edge_sdk.signing import public_key_to_pem
from tests.integration.exported import images, small
from tests.integration.test_inference_models import KEY, checkpoint
from tests.unit.test_device_store_files import entry, participation

NOWHERE = "mqtt://127.0.0.1:9"
SECRET = np.full((1, 8, 8), 0.123, np.float32)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A device that has seen something of life: examples, two tasks, an open round, a model, a log."""
    folders = FleetFolders(tmp_path)
    now = SystemClock().now()
    make_authorities(folders, now)
    make_devices(folders, {"phone": {"x": SECRET[np.newaxis], "y": np.arange(1)}}, now)
    made = folders.device("phone")
    (made / "signer.pub").write_bytes(public_key_to_pem(KEY))
    with DeviceStore(made / "device.sqlite") as store:
        for position, (number, task) in enumerate(((1, "first"), (2, "second"), (3, "second"))):
            store.append(entry(position), participation(number, task))
            store.count_examples(bytes([number]) * 16, Sampling(1.0, 0.1, 10))
        store.append(entry(9, b"an update that waits" * 10))
        store.count_traffic(20_000, 5, 5)
        store.put("coordinator/keyboard", "00")
    InstalledModels(models_folder(made, "keyboard"), signer=KEY).install(small(), 5, checkpoint(5))
    for folder in ("blobs", "logs", "personal"):
        (made / folder).mkdir(exist_ok=True)
        (made / folder / "something").write_bytes(b"something")
    with EdgeClient(made) as edge:
        edge.consent.grant(purpose="better typing", text_version="3")
    return made


def assert_erased(home: Path) -> None:
    assert {path.name for path in home.iterdir()} - {"in-use.lock"} <= {
        "device.sqlite",
        "device.sqlite.begun",
        "device.sqlite-wal",
        "device.sqlite-shm",
        "models",
        "signer.pub",
    }
    for path in home.glob("device.sqlite*"):
        for trace in (b"an update that waits", bytes([2]) * 16):
            assert trace not in path.read_bytes()
    with DeviceStore(home / "device.sqlite") as store:
        assert store.journal() == []
        assert store.outcomes() == {}
        assert store.traffic(20_000) == (0, 0)
        assert store.get("withdrawing") is None
        assert store.get("coordinator/keyboard") is None
        assert {(p.round_number, p.at, p.sent_bytes, p.purpose) for p in store.participations()} == {(0, 0.0, 0, "")}


def test_what_was_given_is_erased_and_what_was_spent_stays(home: Path) -> None:
    with EdgeClient(home, NOWHERE) as edge:
        before = edge.privacy.spent()
        assert len(edge.privacy.receipts()) == 3
        taps = edge.examples("digits")
        edge.withdraw()
        assert edge.privacy.receipts() == ()
        assert edge.privacy.spent() == before
        assert {task: spent.participations for task, spent in before.tasks.items()} == {"first": 1, "second": 2}
        assert not edge.consent.granted
        assert [change.granted for change in edge.consent.history()] == [True, False]
        assert edge.model("keyboard").predict(images(2)[0]).shape == (2, 10)
        with pytest.raises(StoreError):
            taps.add(x=SECRET, y=1)
        for begin in (edge.run, edge.start):
            with pytest.raises(ConfigError, match="the owner withdrew"):
                begin()
        edge.withdraw()
    assert_erased(home)
    with DeviceStore(home / "device.sqlite") as store:
        assert sum(sampling.steps for sampling in store.samplings()) == 30
    with pytest.raises(IdentityError, match=r"identity\.crt is missing"):
        EdgeClient(home)


def test_a_device_that_runs_in_a_thread_is_stopped_first(home: Path) -> None:
    with EdgeClient(home, NOWHERE) as edge:
        edge.join("keyboard", examples=edge.examples("digits"))
        edge.start()
        edge.withdraw()
        assert not edge._carrier.running
    assert_erased(home)


def test_another_thread_may_withdraw_from_run(home: Path) -> None:
    with EdgeClient(home, NOWHERE) as edge:
        begun = threading.Event()

        def withdraw() -> None:
            assert begun.wait(60)
            edge.withdraw()

        def never() -> bool:
            begun.set()
            return False

        owner = threading.Thread(target=withdraw)
        owner.start()
        edge.run(until=never)
        owner.join()
    assert_erased(home)


@pytest.mark.parametrize("turns", [0, 1, 50])
def test_in_the_apps_own_loop_it_is_done_when_the_block_ends(home: Path, turns: int) -> None:
    async def main() -> None:
        async with EdgeClient(home, NOWHERE) as edge:
            for _ in range(turns):
                await asyncio.sleep(0)
            edge.withdraw()
            assert not edge.consent.granted

    asyncio.run(main())
    assert_erased(home)


def test_where_another_process_runs_the_device_it_is_told_and_kept_in_mind(home: Path) -> None:
    with EdgeClient(home) as edge:
        with only_process_in(home), pytest.raises(ConfigError, match="in use by another process"):
            edge.withdraw()
        assert not edge.consent.granted
        assert examples_file(home, "digits").exists()
    with pytest.raises(IdentityError):
        EdgeClient(home)
    assert_erased(home)


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Lets erasing fail at a step, counted from 0."""
    remove = purge._remove

    def die_at(at: int) -> None:
        steps = iter(range(100))

        def step(path: Path) -> None:
            if next(steps) == at:
                raise OSError(5, "Input/output error", str(path))
            remove(path)

        monkeypatch.setattr(purge, "_remove", step)

    yield die_at
    monkeypatch.undo()


@pytest.mark.parametrize("at", range(6))
def test_one_that_was_cut_off_is_completed_by_the_next_client(
    home: Path, at: int, mortal: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mortal(at)
    edge = EdgeClient(home)
    with pytest.raises(StoreError, match="cannot be erased"):
        edge.withdraw()
    edge.close()
    monkeypatch.undo()
    # Nothing that is left could act: the key is overwritten before anything else.
    key = home / "identity" / "identity.key"
    assert not key.exists() or set(key.read_bytes()) == {0}
    with pytest.raises(IdentityError):
        EdgeClient(home)
    assert_erased(home)
