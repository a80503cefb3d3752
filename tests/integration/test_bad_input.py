"""What is refused at the command line: one message that names the thing, one remedy, and nothing half written."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from coordinator.registrar.folder import init_folder, issue_logged, open_folder
from coordinator.service.tasks import list_tasks
from coordinator.store.database import Database
from device_sim.fleet import FleetFolders, device_ids
from edge_sdk.cli import EXIT_FAILED, main
from edge_sdk.clock import SystemClock
from edge_sdk.credentials import CA_FILE, KEY_FILE, certificate_files, private_key_file, write_folder
from edge_sdk.identity import Role
from edge_sdk.runtime.home import examples_file
from edge_sdk.signing import new_private_key
from edge_sdk.training.backends import BACKENDS
from edge_sdk.training.examples import ExampleStore

Refused = Callable[..., str]
DAY_S = 86_400.0
NOWHERE = "mqtt://127.0.0.1:1"

pytestmark = pytest.mark.usefixtures("quiet_log")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs `edge`, and returns what it says is wrong."""

    def run(*arguments: str | Path) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == EXIT_FAILED
        said = capsys.readouterr()
        assert "serves" not in said.out
        error, hint = said.err.splitlines()
        assert error.startswith("edge: error: ")
        assert hint.startswith("  hint: ")
        return error.removeprefix("edge: error: ")

    return run


def run_device(home: Path, *options: str | Path) -> tuple[str | Path, ...]:
    return ("device", "run", "--home", home, "--broker", NOWHERE, "--population", "digits", *options)


def create_run(folders: FleetFolders, *options: str | Path) -> tuple[str | Path, ...]:
    signed = ("--bundle", folders.bundle, "--signer", folders.signer_public)
    return ("run", "create", "digits", "--home", folders.coordinator, *signed, *options)


# ---- brokers and ports


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost", "the broker URL 'localhost' has no scheme"),
        ("http://localhost", "cannot begin with http://"),
        ("mqtt://", "names no host"),
        ("mqtt://localhost:99999", "is not one of 1 to 65535"),
    ],
)
def test_a_broker_url_that_is_none(url: str, said: str, prepared: FleetFolders, refused: Refused) -> None:
    assert said in refused("coordinator", "serve", "--home", prepared.coordinator, "--broker", url)
    home = prepared.device(device_ids(1)[0])
    assert said in refused("device", "run", "--home", home, "--population", "digits", "--broker", url)
    assert said in refused("demo", "--work", prepared.work, "--broker", url)


def test_a_broker_that_is_not_there(folders: FleetFolders, refused: Refused) -> None:
    serve = ("coordinator", "serve", "--home", folders.coordinator, "--broker")
    assert refused(*serve, NOWHERE) == f"the broker at {NOWHERE} refuses connections"
    assert "host name 'nobody.invalid' is unknown" in refused(*serve, "mqtt://nobody.invalid")


def test_a_port_that_is_taken_or_none(folders: FleetFolders, refused: Refused) -> None:
    serve = ("coordinator", "serve", "--home", folders.coordinator, "--port")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused(*serve, str(port)).startswith(f"port {port} on 127.0.0.1 cannot be used")
    assert refused(*serve, "99999") == "99999 is no port"


# ---- models and bundles

MODELS = """
import torch
from exporters import ModelSpec

def _spec(model, **others):
    x, y = torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
    loss = torch.nn.functional.cross_entropy
    return ModelSpec(model, loss, (x,), y, **{"name": "it", **others})

def batch_norm():
    return _spec(torch.nn.Sequential(torch.nn.BatchNorm1d(4, momentum=None), torch.nn.Linear(4, 3)))

def unnamed():
    return _spec(torch.nn.Linear(4, 3), version=3)

def wrong():
    return 3

def broken():
    return 1 / 0
"""


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("models_of_a_test:batch_norm", "BatchNorm1d)"),
        ("models_of_a_test:unnamed", "version is 3, which is no text"),
        ("models_of_a_test:wrong", "gives int, not a ModelSpec"),
        ("models_of_a_test:broken", "fails at line 20 of models_of_a_test.py: ZeroDivisionError"),
        ("models_of_a_test:build", "has no function build"),
        ("models_of_a_test", "does not name a function"),
        ("malformed_of_a_test:build", "SyntaxError: invalid syntax (malformed_of_a_test.py, line 1)"),
        ("nobody_s_module:build", "cannot import nobody_s_module"),
    ],
)
def test_a_model_that_cannot_be_exported(
    target: str,
    said: str,
    prepared: FleetFolders,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "models_of_a_test.py").write_text(MODELS, encoding="utf-8")
    (tmp_path / "malformed_of_a_test.py").write_text("def build(: pass", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "models_of_a_test", raising=False)
    out = tmp_path / "out.edge"
    assert said in refused("export", target, "--signer", prepared.signer_key, "--out", out)
    assert not out.exists()


def test_a_key_or_a_place_that_an_export_cannot_use(prepared: FleetFolders, tmp_path: Path, refused: Refused) -> None:
    assert "is not an unencrypted PEM private key" in refused(
        "export", "--signer", prepared.signer_public, "--out", tmp_path / "out.edge"
    )
    out = tmp_path / "none" / "out.edge"
    assert refused("export", "--signer", prepared.signer_key, "--out", out).startswith(f"cannot write {out}")
    assert not list(tmp_path.iterdir())


def _flipped(bundle: bytes) -> bytes:
    return bundle[:20_000] + bytes([bundle[20_000] ^ 1]) + bundle[20_001:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_flipped, "was damaged or tampered with: part"),
        (lambda bundle: bundle[:9_000], "is truncated"),
        (lambda bundle: bundle[:8] + b"\2" + bundle[9:], "has format version 2, this SDK reads up to 1"),
        (lambda bundle: b"hello", "does not begin with EDGEBNDL"),
    ],
    ids=["tampered", "truncated", "newer", "none"],
)
def test_a_bundle_that_is_not_as_it_was_signed(
    change: Callable[[bytes], bytes], said: str, folders: FleetFolders, refused: Refused
) -> None:
    folders.bundle.write_bytes(change(folders.bundle.read_bytes()))
    inspected = refused("inspect", folders.bundle, "--signer", folders.signer_public)
    assert inspected.startswith(f"{folders.bundle}: ")
    assert said in inspected
    assert said in refused(*create_run(folders, "--devices", "30"))
    assert not (folders.coordinator / "coordinator.sqlite").exists()


def test_a_bundle_of_another_signer(folders: FleetFolders, tmp_path: Path, refused: Refused) -> None:
    assert main(["signer", "init", "--out", str(tmp_path / "other")]) == 0
    shutil.copy(tmp_path / "other" / "signer.pub", folders.signer_public)
    assert "not by the pinned signer" in refused("inspect", folders.bundle, "--signer", folders.signer_public)
    assert "not by the pinned signer" in refused(*create_run(folders, "--devices", "30"))


# ---- runs


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--devices 30 --epsilon banana", "--epsilon banana is no budget"),
        ("--devices 30 --epsilon nan", "--epsilon nan is no budget"),
        ("--devices 30 --epsilon inf", "--epsilon inf is no budget"),
        ("--devices 30 --epsilon 0.0001", "no noise keeps epsilon"),
        ("--devices 5 --min-reports 50", "--min-reports 50 does not go with --devices 5"),
        ("--devices 30 --min-reports 0", "--min-reports 0 does not go with --devices 30"),
        ("--devices 0", "with 0 devices"),
        ("--devices 100000", "a round of 100000 devices cannot be masked"),
        ("--devices 30 --rounds 0", "a run of 0 rounds"),
        ("--devices 30 --participation-cap 0", "0 rounds for each"),
        ("--devices 30 --delta 2", "delta 2"),
        ("--devices 30 --dropout-share 0.9", "dropout_share 0.9"),
        ("--devices 30 --batch-size 5000", "--batch-size 5000 is out of the bundle's range"),
        ("--devices 30 --learning-rate nan", "learning_rate is nan"),
        ("--devices 30 --proximal -1", "proximal is -1"),
        ("--devices 30 --proximal 0.1", "--proximal 0.1 needs a bundle whose gradients can be corrected"),
        ("--devices 30 --server-optimizer banana", "unknown server optimizer 'banana'"),
        ("--devices 30 --stage-timeout 0", "advertise_timeout_s is 0"),
        ("--devices 30 --selection-timeout -1", "selection_timeout_s is -1"),
        ("--devices 30 --evaluation nothing.npz", "cannot read examples from nothing.npz"),
    ],
)
def test_a_run_that_cannot_be(options: str, said: str, folders: FleetFolders, refused: Refused) -> None:
    assert said in refused(*create_run(folders, *options.split()))
    assert not (folders.coordinator / "coordinator.sqlite").exists()


def test_a_runtime_that_is_not_installed(home: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> NoReturn:
        raise PackageNotFoundError("ai-edge-litert")

    monkeypatch.setitem(BACKENDS, "litert", replace(BACKENDS["litert"], version=missing))
    said = refused(*run_device(home, "--runtime", "litert"))
    assert said == "the runtime litert needs ai-edge-litert, which is not installed"


def test_names_with_spaces(folders: FleetFolders, home: Path, refused: Refused) -> None:
    assert refused(*create_run(folders, "--devices", "30", "--population", "my own")).startswith("'my own' cannot name")
    said = refused("device", "run", "--home", home, "--broker", NOWHERE, "--population", "my own")
    assert said == "'my own' cannot name a population"
    assert not (home / "device.sqlite").exists()


def test_held_out_examples_of_another_shape(folders: FleetFolders, tmp_path: Path, refused: Refused) -> None:
    np.savez(tmp_path / "large.npz", x=np.zeros((3, 28, 28), np.float32), y=np.zeros(3, np.int64))
    said = refused(*create_run(folders, "--devices", "30", "--evaluation", tmp_path / "large.npz"))
    assert said.startswith(f"{tmp_path / 'large.npz'} does not fit the bundle: x is float32[3, 28, 28]")


def test_a_run_that_is_there_or_is_not(folders: FleetFolders, refused: Refused) -> None:
    missing = refused("run", "list", "--home", folders.coordinator)
    assert missing == f"{folders.coordinator} is not a coordinator's work folder"
    assert main([str(word) for word in create_run(folders, "--devices", "30")]) == 0
    assert refused(*create_run(folders, "--devices", "30")) == "the run 'digits' already uses that name or population"
    for action in ("show", "resume"):
        assert refused("run", action, "nope", "--home", folders.coordinator) == "there is no run 'nope'"
    database = Database.in_folder(folders.coordinator)
    assert [task.task for task in list_tasks(database)] == ["digits"]
    database.close()


def test_what_devices_would_decline_is_said_at_once(folders: FleetFolders, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(word) for word in create_run(folders, "--devices", "3", "--epsilon", "off")]) == 0
    assert "edge device run --min-reports 3 --epsilon any" in capsys.readouterr().out


# ---- identities


def reissue(folders: FleetFolders, home: Path, *, role: Role = "device", issued_days_ago: float = 0.0) -> None:
    """Give a device's folder another key and certificate of the same registrar."""
    authority, key = open_folder(folders.registrar), new_private_key()
    certificate = issue_logged(
        folders.registrar,
        authority,
        key.public_key(),
        identity_id="late",
        role=role,
        now=SystemClock().now() - issued_days_ago * DAY_S,
        lifetime_days=90,
    )
    shutil.rmtree(home / "identity")
    files = [private_key_file(KEY_FILE, key), *certificate_files(certificate, authority.certificate)]
    write_folder(home / "identity", files)


def _expire(folders: FleetFolders, home: Path) -> None:
    reissue(folders, home, issued_days_ago=100)


def _become_coordinator(folders: FleetFolders, home: Path) -> None:
    reissue(folders, home, role="coordinator")


def _pin_another_registrar(folders: FleetFolders, home: Path) -> None:
    other = folders.work / "other-registrar"
    init_folder(other, name="Other", now=SystemClock().now())
    shutil.copy(other / CA_FILE, home / "identity" / CA_FILE)


def _open_the_key(folders: FleetFolders, home: Path) -> None:
    (home / "identity" / KEY_FILE).chmod(0o644)


def _lose_the_signer(folders: FleetFolders, home: Path) -> None:
    (home / "signer.pub").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_expire, "the certificate of 'late' expired"),
        (_become_coordinator, "is for the role coordinator, not device"),
        (_pin_another_registrar, "not by the registrar 'CN=Other'"),
        (_open_the_key, "can be used by others (mode 0644)"),
        (_lose_the_signer, "signer.pub is missing"),
    ],
)
def test_an_identity_that_cannot_be_used(
    spoil: Callable[[FleetFolders, Path], None], said: str, folders: FleetFolders, home: Path, refused: Refused
) -> None:
    spoil(folders, home)
    assert said in refused(*run_device(home))
    assert not (home / "device.sqlite").exists()
    # Its owner still sees what left it.
    assert main(["device", "status", "--home", str(home)]) == 0


def test_a_device_cannot_serve_as_coordinator(folders: FleetFolders, home: Path, refused: Refused) -> None:
    assert "is for the role device, not coordinator" in refused("coordinator", "serve", "--home", home)


# ---- a device's options and examples


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--epsilon banana", "--epsilon banana is no budget"),
        ("--epsilon nan", "--epsilon nan is no budget"),
        ("--epsilon inf", "--epsilon inf is no budget"),
        ("--epsilon -1", "--epsilon -1 is no budget"),
        ("--min-reports -1", "min_reports is -1"),
    ],
)
def test_a_policy_that_protects_nothing(options: str, said: str, home: Path, refused: Refused) -> None:
    assert said in refused(*run_device(home, *options.split()))


X, Y = np.zeros((5, 1, 8, 8), np.float32), np.zeros(5, np.int64)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X}, "lacks an array x or y"),
        ({"x": X, "y": Y[:4]}, "x of shape (5, 1, 8, 8), y of shape (4,)"),
        ({"x": X[:0], "y": Y[:0]}, "x of shape (0, 1, 8, 8)"),
        ({"x": np.float32(1), "y": np.int64(1)}, "x of shape ()"),
        ({"x": np.array(["a", "b"]), "y": Y[:2]}, "holds <U1, not numbers"),
        ({"x": np.array([{}, 1], dtype=object), "y": Y[:2]}, "is not an .npz file of numbers"),
        ({"x": X + np.nan, "y": Y}, "holds NaN or infinity"),
    ],
    ids=["no y", "lengths", "empty", "scalars", "text", "objects", "nan"],
)
def test_examples_that_cannot_be_used(
    arrays: dict[str, np.ndarray], said: str, home: Path, tmp_path: Path, refused: Refused
) -> None:
    (examples_file(home, "digits")).unlink()
    np.savez(tmp_path / "given.npz", **arrays)  # type: ignore[arg-type]  # a stub that takes a flag for an array
    assert said in refused(*run_device(home, "--examples", tmp_path / "given.npz"))
    assert not (examples_file(home, "digits")).exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\3\4 and no more"])
def test_a_file_that_holds_no_examples(content: bytes, home: Path, tmp_path: Path, refused: Refused) -> None:
    (examples_file(home, "digits")).unlink()
    path = tmp_path / "given.npz"
    path.write_bytes(content)
    assert refused(*run_device(home, "--examples", path)) == f"{path} is not an .npz file of numbers"
    assert "cannot read examples" in refused(*run_device(home, "--examples", tmp_path / "none.npz"))


def test_a_store_that_was_left_empty_is_filled(home: Path, tmp_path: Path, refused: Refused) -> None:
    (examples_file(home, "digits")).unlink()
    ExampleStore.create_for(examples_file(home, "digits"), {"x": X, "y": Y}).close()
    np.savez(tmp_path / "given.npz", x=X, y=Y)
    (home / "device.sqlite").write_bytes(b"not a database, so that the command ends")
    refused(*run_device(home, "--examples", tmp_path / "given.npz"))
    with ExampleStore(examples_file(home, "digits")) as store:
        assert len(store) == 5


# ---- stores and disks


def _garble(path: Path) -> None:
    path.write_bytes(b"garbage" * 1_000)


def _write_newer_schema(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    connection.execute("INSERT INTO meta VALUES ('schema', '99')")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "said"), [(_garble, "file is not a database"), (_write_newer_schema, "has schema 99")]
)
def test_a_store_that_cannot_be_read(
    spoil: Callable[[Path], None], said: str, folders: FleetFolders, home: Path, refused: Refused
) -> None:
    spoil(folders.coordinator / "coordinator.sqlite")
    assert said in refused("run", "list", "--home", folders.coordinator)
    assert said in refused("run", "show", "digits", "--home", folders.coordinator)
    assert said in refused("coordinator", "serve", "--home", folders.coordinator, "--broker", NOWHERE)
    spoil(home / "device.sqlite")
    assert said in refused(*run_device(home))
    assert said in refused("device", "status", "--home", home)


def test_a_disk_without_room(folders: FleetFolders, home: Path, tmp_path: Path) -> None:
    """A process that may write no file beyond eight blocks meets what a full disk says."""

    def starved(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "edge_sdk.cli", *map(str, arguments)]
        shell = ["bash", "-c", 'ulimit -f 8; exec "$@"', "bash", *command]
        done = subprocess.run(shell, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == EXIT_FAILED, done.stderr
        error, hint = done.stderr.splitlines()
        assert "disk" in hint
        return error

    assert "coordinator.sqlite could not" in starved(*create_run(folders, "--devices", "30"))
    assert "device.sqlite" in starved(*run_device(home))
    out = tmp_path / "out.edge"
    assert f"cannot write {out}" in starved("export", "--signer", folders.signer_key, "--out", out)
    assert not list(tmp_path.glob("*.edge*"))
    work = tmp_path / "fleet"
    assert "cannot" in starved("sim", "prepare", "--work", work)
    # With room again the same folder serves.
    assert main(["sim", "prepare", "--devices", "2", "--work", str(work)]) == 0
    assert main([str(word) for word in create_run(folders, "--devices", "30")]) == 0


# ---- demos


@pytest.mark.parametrize(
    "options",
    [
        "--devices 3",
        "--devices 6000",
        "--rounds 0",
        "--processes 0",
        "--dropout 0.9",
        "--dropout nan",
        "--epsilon banana",
        "--epsilon inf",
        "--epsilon 100",
        "--epsilon 0.001",
    ],
)
def test_a_demo_that_cannot_be_leaves_the_last_one_alone(options: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "demo.json").write_text("{}", encoding="utf-8")
    (tmp_path / "report.json").write_text("{}", encoding="utf-8")
    option, value = options.split()
    assert refused("demo", option, value, "--work", tmp_path).startswith(f"{option} {value}")
    assert (tmp_path / "report.json").exists()


def test_a_folder_that_is_not_a_work_folder(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "thesis.txt").write_text("three years", encoding="utf-8")
    for command in ("demo", "sim prepare"):
        said = refused(*command.split(), "--work", tmp_path)
        assert said == f"{tmp_path} is not empty and not a work folder of this command"
        said = refused(*command.split(), "--work", tmp_path / "thesis.txt")
        assert said.startswith(f"cannot use {tmp_path / 'thesis.txt'} as a work folder")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("marker", [None, "", "[]", '{"banana": 1}'])
def test_nothing_to_resume(marker: str | None, tmp_path: Path, refused: Refused) -> None:
    if marker is not None:
        (tmp_path / "demo.json").write_text(marker, encoding="utf-8")
    assert refused("demo", "--resume", "--work", tmp_path) == f"there is no demo to resume in {tmp_path}"
