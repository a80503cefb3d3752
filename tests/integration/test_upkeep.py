"""Looking after a device at the command line: its log, its doctor, opting out, erasing it, and running as a service."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.registrar.folder import issue_logged, open_folder
from coordinator.service.broker import start_broker
from device_sim.fleet import FleetFolders
from edge_sdk.cli import EXIT_FAILED, main
from edge_sdk.client import EdgeClient
from edge_sdk.clock import SystemClock
from edge_sdk.credentials import KEY_FILE, certificate_files, load_public_key, private_key_file, write_folder
from edge_sdk.errors import StoreError, TrainingError
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.runtime import doctor, purge
from edge_sdk.runtime.blob_cache import BlobCache
from edge_sdk.runtime.device_store import DeviceStore
from edge_sdk.runtime.eligibility import Conditions, Eligibility, SystemConditions
from edge_sdk.runtime.enrolment import REGISTRAR_FILE
from edge_sdk.runtime.home import examples_file, models_folder
from edge_sdk.runtime.home_lock import only_process_in
from edge_sdk.runtime.service_unit import ServiceUnit
from edge_sdk.signing import new_private_key
from edge_sdk.training.artifact import Artifact, read_artifact
from tests.integration.commands import Command
from tests.integration.test_registrar_server import Served
from tests.shared import free_port
from tests.unit.test_device_store_files import entry, participation

DAY_S = 86_400.0
NOWHERE = "mqtt://127.0.0.1:1"

pytestmark = pytest.mark.usefixtures("quiet_log")


Say = Callable[..., tuple[int, str]]


@pytest.fixture
def edge(capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs `edge device ...`; returns its exit code and all that it says."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["device", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def lines_of(said: str) -> dict[str, str]:
    """Of the doctor's screen, each finding by its name: verdict and detail."""
    found = re.findall(r"^(ok|warn|FAIL|-) +(\w+) +(.*)$", said, re.MULTILINE)
    return {what: f"{verdict} {detail}" for verdict, what, detail in found}


# ---- the doctor


def test_a_device_in_good_health(edge: Say, home: Path, tmp_path: Path) -> None:
    with start_broker(tmp_path / "mqtt", kind="mosquitto") as broker:
        code, said = edge("doctor", "--home", home, "--broker", str(broker.url))
    found = lines_of(said)
    assert code == 0
    assert list(found) == [what for what, _ in doctor._CHECKS]
    assert found["broker"].startswith("warn mqtt://")
    assert found["runtime"].startswith("ok onnxruntime ")
    assert found["model"] == "ok none is installed yet"
    assert re.match(r"ok \d+ examples", found["examples"])
    assert "valid until" in found["certificate"]
    assert said.endswith("nothing keeps the device from taking part\n")
    # It looked and left nothing.
    assert not (home / "device.sqlite").exists()


def reissue(folders: FleetFolders, home: Path, days_ago: float) -> None:
    key, authority = new_private_key(), open_folder(folders.registrar)
    certificate = issue_logged(
        folders.registrar,
        authority,
        key.public_key(),
        identity_id="late",
        role="device",
        now=SystemClock().now() - days_ago * DAY_S,
        lifetime_days=30,
    )
    shutil.rmtree(home / "identity")
    files = [private_key_file(KEY_FILE, key), *certificate_files(certificate, authority.certificate)]
    write_folder(home / "identity", files)


def _expire(folders: FleetFolders, home: Path) -> None:
    reissue(folders, home, 33)


def _age(folders: FleetFolders, home: Path) -> None:
    reissue(folders, home, 25)


def _come_from_the_future(folders: FleetFolders, home: Path) -> None:
    reissue(folders, home, -400)


def _open_the_key(folders: FleetFolders, home: Path) -> None:
    (home / "identity" / KEY_FILE).chmod(0o644)


def _lose_the_signer(folders: FleetFolders, home: Path) -> None:
    (home / "signer.pub").unlink()


def _damage_the_ledger(folders: FleetFolders, home: Path) -> None:
    (home / "device.sqlite").write_bytes(b"SQLite format 3\0" + bytes(5000))


def _block_the_examples(folders: FleetFolders, home: Path) -> None:
    path = examples_file(home, "digits")
    path.unlink()
    path.mkdir()


def _damage_the_examples(folders: FleetFolders, home: Path) -> None:
    path = examples_file(home, "digits")
    path.write_bytes(path.read_bytes()[:5000])


def _damage_the_registrars_url(folders: FleetFolders, home: Path) -> None:
    (home / "identity" / REGISTRAR_FILE).write_text("https://localhost:84\0\0")


def _damage_the_model(folders: FleetFolders, home: Path) -> None:
    install_model(folders, home)
    for checkpoint in models_folder(home, "digits").glob("*.checkpoint"):
        checkpoint.write_bytes(b"damaged")


def _open_the_home(folders: FleetFolders, home: Path) -> None:
    home.chmod(0o777)


def _lose_the_home(folders: FleetFolders, home: Path) -> None:
    shutil.rmtree(home)


@pytest.mark.parametrize(
    ("spoil", "what", "said", "hint"),
    [
        (_expire, "certificate", "FAIL expired 3 days ago", "this machine's clock is wrong: it says"),
        (_age, "certificate", "warn valid until", "edge device renew"),
        (_come_from_the_future, "certificate", "FAIL not valid before", "set this machine's clock"),
        (_open_the_key, "key", "FAIL the private key", "chmod 600"),
        (_lose_the_signer, "signer", "FAIL", "name it with --signer"),
        (_damage_the_ledger, "ledger", "FAIL", "restore it from a backup"),
        (_block_the_examples, "examples", "FAIL", "check the disk's free space"),
        (_damage_the_examples, "examples", "FAIL", "remove it; the app fills it again"),
        (_damage_the_registrars_url, "certificate", "FAIL cannot read", "write the registrar's https:// URL"),
        (_damage_the_model, "model", "FAIL the installed checkpoint of version 3 was damaged", "install it anew"),
        (_open_the_home, "home", "warn", "chmod 700"),
        (_lose_the_home, "home", "FAIL", "--home"),
    ],
)
def test_what_is_wrong_is_found_named_and_mended_by_its_hint(
    spoil: Callable[[FleetFolders, Path], None],
    what: str,
    said: str,
    hint: str,
    edge: Say,
    folders: FleetFolders,
    home: Path,
) -> None:
    spoil(folders, home)
    code, screen = edge("doctor", "--home", home)
    found = lines_of(screen)
    assert found[what].startswith(said)
    assert hint in screen
    assert len(found) == (1 if what == "home" and "FAIL" in said else len(doctor._CHECKS)), "one check hides another"
    assert code == (1 if "FAIL" in said else 0)


def install_model(folders: FleetFolders, home: Path) -> None:
    """Install the bundle as a round does: the model, and the blobs that training needs."""
    DeviceStore(home / "device.sqlite").close()
    signer = load_public_key(folders.signer_public)
    artifact = read_artifact(folders.bundle, signer=signer)
    InstalledModels(models_folder(home, "digits"), signer=signer).install(artifact, 3, artifact.checkpoint())
    blobs = BlobCache(home / "blobs")
    for part in artifact.parts.values():
        blobs.put(part)


def test_an_installed_bundle_is_replayed_on_this_runtime(
    edge: Say, folders: FleetFolders, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model(folders, home)
    found = lines_of(edge("doctor", "--home", home)[1])
    assert found["model"] == "ok version 3 of digits predicts, and its training steps are those that were certified"

    def other(artifact: Artifact) -> None:
        raise TrainingError("step 1: the loss differs")

    monkeypatch.setattr(doctor, "BundleTrainer", other)
    code, said = edge("doctor", "--home", home)
    assert code == 1
    assert "FAIL version 3 of digits predicts, but training computes other values here" in lines_of(said)["model"]
    assert "upgrade onnxruntime" in said
    shutil.rmtree(home / "blobs")
    assert "training graphs are not kept here" in lines_of(edge("doctor", "--home", home)[1])["model"]


def test_a_broker_that_is_away_and_a_device_that_runs(edge: Say, home: Path) -> None:
    code, said = edge("doctor", "--home", home, "--broker", NOWHERE)
    assert code == 1
    assert lines_of(said)["broker"] == f"FAIL the broker at {NOWHERE} refuses connections"
    with only_process_in(home):
        code, said = edge("doctor", "--home", home, "--broker", NOWHERE)
    assert code == 0
    assert "in use by another process: not tried beside it" in lines_of(said)["broker"]


def test_the_clock_is_held_against_the_registrars(edge: Say, tmp_path: Path, prepared: FleetFolders) -> None:
    served = Served(tmp_path)
    try:
        home = tmp_path / "one"
        served.enrol(home / "identity", served.token())
        assert (home / "identity" / REGISTRAR_FILE).read_text() == served.url
        shutil.copy(prepared.signer_public, home / "signer.pub")
        patient = doctor.Patient(home, SystemClock().now())
        assert "as the registrar's" in doctor._clock(patient, "clock").detail
        late = doctor.Patient(home, SystemClock().now() + 400 * DAY_S)
        (finding,) = [f for f in doctor.examine(late) if f.what == "clock"]
        assert finding.verdict is doctor.Verdict.BAD
        assert "s ahead of the registrar's" in finding.detail
        assert "set-ntp" in finding.hint
    finally:
        served.close()
    # Away: somebody else is asked, and nobody is believed.
    assert doctor._clock(patient, "clock").verdict in (doctor.Verdict.GOOD, doctor.Verdict.UNKNOWN)


def test_what_is_against_training_now_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = Conditions(charging=False, battery=0.5, metered=True, free_memory_bytes=0, free_disk_bytes=1 << 40)
    monkeypatch.setattr(SystemConditions, "read", lambda self: now)
    found = {f.what: f for f in doctor.examine(doctor.Patient(home, SystemClock().now(), eligibility=Eligibility()))}
    assert found["power"].detail == "on battery, battery at 50%"
    assert found["network"].detail == "metered"
    assert found["room"].verdict is doctor.Verdict.DOUBT
    assert found["training"].detail == "waits: not charging, the network is metered, 0 MiB of memory free"


# ---- logs, as processes


def test_a_running_devices_log_is_followed(home: Path) -> None:
    port = free_port()
    options = ("--broker", f"mqtt://127.0.0.1:{port}", "--population", "digits")
    with Command("device", "run", "--home", home, *options) as running:
        running.wait_for("Ctrl-C stops it")
        with Command("device", "logs", "--home", home, "--follow", "-n", "1000") as follower:
            assert "refuses connections" in follower.wait_for("it keeps trying")
            assert running.said
    assert not (home / "logs" / "device.log").stat().st_mode & 0o077


# ---- opting out


def test_opting_out_is_for_good_and_before_any_run_too(edge: Say, home: Path) -> None:
    code, said = edge("opt-out", "--home", home)
    assert code == 0
    assert "training is off on this device" in said
    options = ("--broker", NOWHERE, "--population", "digits", "--consent", "better digits")
    with Command("device", "run", "--home", home, *options) as running:
        assert "consent revoked at" in running.wait_for("it only serves")
    with EdgeClient(home) as client:
        assert not client.consent.granted
        client.consent.grant(purpose="better digits", text_version="1")
        assert edge("opt-out", "--home", home)[0] == 0
        assert not client.consent.granted, "a running device does not notice"
    assert "training is off: consent revoked" in edge("status", "--home", home)[1]


# ---- the owner's look


def test_an_app_that_logs_elsewhere_and_a_folder_that_is_not_there(edge: Say, home: Path) -> None:
    code, said = edge("logs", "--home", home)
    assert code == 0
    assert f"nothing is logged in {home}" in said
    for action in ("status", "logs", "opt-out", "doctor"):
        code, said = edge(action, "--home", home / "none")
        assert code != 0
        assert "name the device's folder with --home" in said


def test_who_withdrew_still_sees_what_was_spent(edge: Say, home: Path) -> None:
    with DeviceStore(home / "device.sqlite") as store:
        store.append(entry(0), participation(1, "keyboard"))
    with EdgeClient(home) as client:
        client.withdraw()
    code, said = edge("status", "--home", home)
    assert code == 0
    assert said.startswith("no identity: model version")
    assert "keyboard, before the owner withdrew: epsilon" in said


def test_a_ledger_that_is_gone_is_told_by_everybody(edge: Say, home: Path) -> None:
    EdgeClient(home).close()
    for path in home.glob("device.sqlite*"):
        if path.suffix != ".begun":
            path.unlink()
    for action in ("status", "doctor"):
        code, said = edge(action, "--home", home)
        assert code != 0
        assert "the record of what this device spent" in said
    assert not (home / "device.sqlite").exists()
    with pytest.raises(StoreError, match="has gone or was emptied"):
        EdgeClient(home)
    code, said = edge("purge", "--home", home, "--yes")
    assert code == 0, "which is the way out"
    assert not home.exists()


# ---- erasing


def test_everything_is_erased_and_what_is_not_ours_is_left(
    edge: Say, folders: FleetFolders, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model(folders, home)
    (home / "logs").mkdir()
    (home / "mine.txt").write_text("keep me")
    assert edge("purge", "--home", home)[0] == EXIT_FAILED  # nobody is there to be asked
    assert (home / "identity" / KEY_FILE).exists()
    with only_process_in(home):
        code, said = edge("purge", "--home", home, "--yes")
        assert code == EXIT_FAILED
        assert "in use by another process" in said
    code, said = edge("purge", "--home", home, "--yes")
    assert code == 0
    assert "device device-0000 will be erased" in said
    assert f"not the SDK's: {home / 'mine.txt'}" in said
    assert [path.name for path in home.iterdir()] == ["mine.txt"]
    assert edge("purge", "--home", home, "--yes") == (0, f"{home} holds nothing of a device\n")


@pytest.mark.parametrize(("typed", "erased"), [("device-0000", True), ("yes", False), ("", False)])
def test_whoever_is_asked_types_the_devices_name(
    edge: Say, home: Path, typed: str, erased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda prompt: typed)
    assert edge("purge", "--home", home)[0] == (0 if erased else 1)
    assert home.exists() != erased


@pytest.mark.parametrize("at", range(6))
def test_an_erasure_that_is_cut_off_never_leaves_an_identity_without_its_ledger(
    folders: FleetFolders, home: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model(folders, home)
    remove, steps = purge._remove, iter(range(100))

    def mortal(path: Path) -> None:
        if next(steps) == at:
            raise OSError(5, "Input/output error", str(path))
        remove(path)

    monkeypatch.setattr(purge, "_remove", mortal)
    with pytest.raises(StoreError, match="cannot be erased"):
        purge.purge(home)
    if (home / "identity" / KEY_FILE).exists():
        assert (home / "device.sqlite").exists()
        assert set((home / "identity" / KEY_FILE).read_bytes()) == {0}, "the key is of no use any more"
    monkeypatch.undo()
    assert purge.purge(home) == []
    assert not home.exists()


def test_a_key_that_is_a_link_is_not_followed(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "another.key"
    other.write_bytes(b"somebody else's")
    key = home / "identity" / KEY_FILE
    key.unlink()
    key.symlink_to(other)
    with pytest.raises(StoreError):
        purge.purge(home)
    assert other.read_bytes() == b"somebody else's"


# ---- as a service


def verify(path: Path) -> None:
    """Let systemd judge a unit, where it is installed."""
    program = shutil.which("systemd-analyze")
    if program is not None:
        done = subprocess.run([program, "verify", path], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("user", ["", "root"])
def test_the_unit_is_printed_as_it_would_run(edge: Say, home: Path, user: str, tmp_path: Path) -> None:
    odd = tmp_path / 'a "home" of 100%'
    shutil.move(home, odd)
    options = ("--broker", "mqtts://fl.example.com", "--population", "digits", "--consent", "better digits; $HOME")
    code, said = edge("service", "--home", odd, *(("--user", user) if user else ()), "--", *options)
    assert code == 0
    assert f'ExecStart={sys.executable} -m edge_sdk.cli device run --home "' in said
    assert 'a \\"home\\" of 100%%"' in said
    assert '"better digits; $$HOME"' in said
    for line in ("NoNewPrivileges=yes", "MemoryMax=512M", "CPUQuota=50%", "Nice=10"):
        assert line in said.splitlines()
    assert ("ProtectSystem=strict" in said.splitlines()) == bool(user)
    unit = tmp_path / "edge-device.service"
    unit.write_text(said)
    verify(unit)


def test_a_unit_is_written_where_systemd_looks(
    edge: Say, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    options = ("--broker", "mqtts://fl.example.com", "--population", "digits")
    code, said = edge("service", "--install", "--home", home, "--memory-max", "1G", "--", *options)
    assert code == 0
    path = tmp_path / "config" / "systemd" / "user" / "edge-device.service"
    assert f"wrote {path}; start it with: systemctl --user enable --now edge-device.service" in said
    assert "MemoryMax=1G" in path.read_text()
    verify(path)
    assert ServiceUnit((), home, "edge").path == Path("/etc/systemd/system/edge-device.service")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--population", "digits"), "the service could not run: the following arguments are required: --broker"),
        (("--broker", "http://x", "--population", "digits"), "mqtt"),
        (("--broker", NOWHERE, "--population", "digits", "--bogus"), "unrecognized arguments: --bogus"),
    ],
)
def test_a_service_that_could_not_start_is_refused(edge: Say, home: Path, options: tuple[str, ...], said: str) -> None:
    code, screen = edge("service", "--home", home, "--", *options)
    assert code == EXIT_FAILED
    assert said in screen


def test_names_with_line_breaks_are_no_part_of_a_unit(home: Path) -> None:
    with pytest.raises(Exception, match="cannot stand in a systemd unit"):
        ServiceUnit(("edge",), home, "root\nExecStart=/bin/sh").text()
