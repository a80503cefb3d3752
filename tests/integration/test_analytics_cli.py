"""`edge signer query`, `edge run create --analytics` and what `edge run show` says, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.cli import EXIT_FAILED, main
from edge_sdk.signing import private_key_to_pem, public_key_to_pem
from tests.integration.exported import SIGNER, small


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    (tmp_path / "signer.key").write_bytes(private_key_to_pem(SIGNER))
    (tmp_path / "signer.key").chmod(0o600)
    (tmp_path / "signer.pub").write_bytes(public_key_to_pem(SIGNER.public_key()))
    (tmp_path / "model.edge").write_bytes(small().to_bytes())
    return tmp_path


def edge(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out + said.err


def sign(keys: Path, text: str, *options: str | Path) -> tuple[str | Path, ...]:
    return ("signer", "query", text, "--signer", keys / "signer.key", "--out", keys / "asked.query", *options)


def create(keys: Path, *options: str | Path) -> tuple[str | Path, ...]:
    asked = ("--analytics", keys / "asked.query", "--signer", keys / "signer.pub", "--home", keys / "home")
    return ("run", "create", "labels", *asked, "--devices", "50", "--epsilon", "2", *options)


def test_a_histogram_is_signed_asked_and_shown(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = edge(capsys, *sign(keys, "histogram:field=y,low=0,high=10,bins=10"))
    assert (code, "10 numbers from each device" in said) == (0, True)
    code, said = edge(capsys, *create(keys))
    assert code == 0
    assert "run labels: 1 rounds with 50 devices of 'labels'" in said
    assert "edge device run --analytics" in said
    code, said = edge(capsys, "run", "show", "labels", "--home", keys / "home")
    assert (code, "Asks: histogram:field=y,high=10.0,bins=10" in said) == (0, True)


def test_an_evaluation_takes_the_model_it_was_signed_for(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = edge(capsys, *sign(keys, "evaluate:high=5"))
    assert (code, "needs --bundle" in said) == (EXIT_FAILED, True)
    assert edge(capsys, *sign(keys, "evaluate:high=5", "--bundle", keys / "model.edge"))[0] == 0
    code, said = edge(capsys, *create(keys))
    assert (code, "pass its --bundle too" in said) == (EXIT_FAILED, True)
    (keys / "other").write_bytes(bytes(small().layout.size_bytes))
    code, said = edge(capsys, *create(keys, "--bundle", keys / "model.edge", "--checkpoint", keys / "other"))
    assert (code, "signed for another bundle or checkpoint" in said) == (EXIT_FAILED, True)
    assert edge(capsys, *create(keys, "--bundle", keys / "model.edge"))[0] == 0


def test_what_is_wrong_is_told(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = edge(capsys, *sign(keys, "median:field=y"))
    assert (code, "unknown kind of query 'median'" in said) == (EXIT_FAILED, True)
    code, said = edge(capsys, *create(keys))
    assert (code, "cannot read the query" in said) == (EXIT_FAILED, True)
    (keys / "asked.query").write_bytes(b"hello")
    code, said = edge(capsys, *create(keys))
    assert (code, "this is no query" in said) == (EXIT_FAILED, True)
    code, said = edge(capsys, *sign(keys, "count"))
    assert (code, "exists already" in said) == (EXIT_FAILED, True)
    code, said = edge(capsys, "run", "create", "x", "--signer", keys / "signer.pub", "--devices", "50")
    assert (code, "needs --bundle to train, or --analytics to ask" in said) == (EXIT_FAILED, True)
