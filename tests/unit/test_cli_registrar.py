"""`edge registrar` and `edge signer`, as a person types them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from coordinator.registrar.folder import read_log
from edge_sdk.cli import main
from edge_sdk.clock import SystemClock
from edge_sdk.credentials import (
    CA_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    REQUEST_FILE,
    load_identity,
    load_private_key,
    load_public_key,
)


@pytest.fixture
def registrar(tmp_path: Path) -> Path:
    assert main(["registrar", "init", "--out", str(tmp_path / "registrar"), "--name", "ours"]) == 0
    return tmp_path / "registrar"


def issue(registrar: Path, out: Path, *arguments: str) -> int:
    return main(["registrar", "issue", "--registrar", str(registrar), "--out", str(out), *arguments])


def test_a_new_key_makes_a_whole_identity(registrar: Path, tmp_path: Path) -> None:
    out = tmp_path / "device"
    assert issue(registrar, out, "--role", "device", "--new-key", "--id", "dev-1", "--days", "2") == 0

    now = SystemClock().now()
    identity = load_identity(out, role="device", now=now)
    assert identity.id == "dev-1"
    assert 1.9 * 86_400 < identity.not_after - now < 2.1 * 86_400


def test_a_requests_key_never_travels(registrar: Path, tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "issued"
    assert main(["registrar", "request", "--id", "dev-1", "--out", str(home)]) == 0
    assert issue(registrar, out, "--role", "device", "--csr", str(home / REQUEST_FILE)) == 0
    assert {path.name for path in out.iterdir()} == {CERTIFICATE_FILE, CA_FILE}

    for path in out.iterdir():
        path.replace(home / path.name)
    assert load_identity(home, role="device", now=SystemClock().now()).id == "dev-1"


def test_an_id_beside_a_request_must_agree(registrar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["registrar", "request", "--id", "dev-1", "--out", str(tmp_path / "home")])
    request = str(tmp_path / "home" / REQUEST_FILE)
    assert issue(registrar, tmp_path / "a", "--role", "device", "--csr", request, "--id", "dev-2") == 2
    assert "the request is for 'dev-1', not 'dev-2'" in capsys.readouterr().err
    assert issue(registrar, tmp_path / "b", "--role", "device", "--csr", request, "--id", "dev-1") == 0


def test_nothing_is_overwritten_and_what_is_refused_is_not_issued(
    registrar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "device"
    out.mkdir()
    assert issue(registrar, out, "--role", "device", "--new-key", "--id", "dev-1") == 2
    assert f"{out} exists already" in capsys.readouterr().err
    assert main(["registrar", "init", "--out", str(registrar)]) == 2
    assert read_log(registrar) == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--new-key"], "--new-key needs --id"),
        (["--new-key", "--id", "Dev_1"], "cannot be an id"),
        (["--new-key", "--id", "dev-1", "--days", "0"], "cannot be valid for 0 days"),
        (["--csr", "missing.csr"], "cannot read missing.csr"),
    ],
)
def test_problems_are_told(
    registrar: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    problem: str,
) -> None:
    assert issue(registrar, tmp_path / "out", "--role", "device", *arguments) == 2
    captured = capsys.readouterr().err
    assert problem in captured
    assert "hint: " in captured
    assert not (tmp_path / "out").exists()


def test_a_registrar_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registrar", "list", "--registrar", str(tmp_path)]) == 2
    assert "registrar.key is missing" in capsys.readouterr().err


def test_a_lost_key_is_replaced_only_on_purpose(
    registrar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    who = ["--role", "device", "--new-key", "--id", "dev-1"]
    assert issue(registrar, tmp_path / "a", *who) == 0
    assert issue(registrar, tmp_path / "b", *who) == 2
    assert "--replace" in capsys.readouterr().err
    assert issue(registrar, tmp_path / "b", *who, "--replace") == 0


def test_the_list_shows_what_was_issued(registrar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    issue(registrar, tmp_path / "a", "--role", "coordinator", "--new-key", "--id", "coordinator")
    issue(registrar, tmp_path / "b", "--role", "broker", "--new-key", "--id", "broker", "--host", "example.org")
    capsys.readouterr()
    assert main(["registrar", "list", "--registrar", str(registrar)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["coordinator", "coordinator"], ["broker", "broker"]]


def test_a_signer_is_a_pair_of_keys(tmp_path: Path) -> None:
    out = tmp_path / "signer"
    assert main(["signer", "init", "--out", str(out)]) == 0
    assert load_private_key(out / "signer.key").public_key() == load_public_key(out / "signer.pub")
    assert stat.S_IMODE((out / "signer.key").stat().st_mode) == 0o600
    assert main(["signer", "init", "--out", str(out)]) == 2


def test_keys_are_not_printed(registrar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    issue(registrar, tmp_path / "a", "--role", "device", "--new-key", "--id", "dev-1")
    main(["signer", "init", "--out", str(tmp_path / "signer")])
    captured = capsys.readouterr()
    assert "PRIVATE" not in captured.out + captured.err
    assert str(tmp_path / "a" / KEY_FILE) not in captured.err
