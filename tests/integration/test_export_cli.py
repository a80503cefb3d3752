"""`edge export` and `edge inspect`, as a person runs them."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sdk.errors import ArtifactError, ConfigError, ExportError
from edge_sdk.signing import new_private_key, private_key_to_pem, public_key_to_pem
from edge_sdk.training.cli import add_bench_verb, add_inspect_verb, add_verify_verb
from exporters.cli import add_export_verb, load_spec
from tests.integration.exported import SIGNER, small


def run(*arguments: str) -> int:
    """Parse and run one command."""
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(required=True)
    add_export_verb(subparsers)
    add_inspect_verb(subparsers)
    add_verify_verb(subparsers)
    add_bench_verb(subparsers)
    parsed = parser.parse_args(arguments)
    return int(parsed.handler(parsed) or 0)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with a signing key."""
    key = new_private_key()
    (tmp_path / "signer.key").write_bytes(private_key_to_pem(key))
    (tmp_path / "signer.key").chmod(0o600)
    (tmp_path / "signer.pub").write_bytes(public_key_to_pem(key.public_key()))
    return tmp_path


def test_the_default_model_is_exported_and_inspected(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(keys / "digits.edge")
    assert run("export", "--out", bundle, "--signer", str(keys / "signer.key")) == 0
    assert "20 steps match float64 autograd" in capsys.readouterr().out
    assert run("inspect", bundle, "--signer", str(keys / "signer.pub")) == 0
    shown = capsys.readouterr().out
    for words in (
        "signature   valid",
        "digits version 1",
        "float32[batch, 1, 8, 8]",
        "int64[batch], 10 classes",
        "1,370 trained, 0 frozen",
        "0.weight [8, 1, 3, 3]",
        "memory      about ",
        "requires ONNX Runtime",
        "Transpose, Where",
        "parity      ok; 3 steps",
    ):
        assert words in shown


def test_a_bundle_is_verified_and_measured(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, key = str(keys / "small.edge"), str(keys / "theirs.pub")
    (keys / "small.edge").write_bytes(small().to_bytes())
    (keys / "theirs.pub").write_bytes(public_key_to_pem(SIGNER.public_key()))
    assert run("verify", bundle, "--signer", key) == 0
    shown = capsys.readouterr().out
    assert "parts whole" in shown
    assert "parity      ok" in shown
    assert run("bench", bundle, "--signer", key, "--batch", "4", "--batch", "64", "--steps", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["4", "64"]
    assert all(float(line.split()[1]) > 0 for line in lines[2:4])
    for wrong in (("--batch", "0"), ("--batch", "100000"), ("--steps", "0")):
        with pytest.raises(ConfigError, match="cannot be measured"):
            run("bench", bundle, "--signer", key, *wrong)
    whole = (keys / "small.edge").read_bytes()
    (keys / "small.edge").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="tampered"):
        run("verify", bundle, "--signer", key)


def test_a_private_bundle_says_what_it_costs(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, privacy = str(keys / "private.edge"), "example:clip_norm=0.5,noise_multiplier=2,lot_size=100"
    assert run("export", "--privacy", privacy, "--out", bundle, "--signer", str(keys / "signer.key")) == 0
    assert run("inspect", bundle, "--signer", str(keys / "signer.pub")) == 0
    shown = capsys.readouterr().out
    assert "gradients clipped to 0.5, noise multiplier 2, Poisson samples of 100 on average" in shown
    assert "epochs in all, with 2,000 examples on the device and delta 5e-05" in shown
    assert "parity      ok; 3 steps" in shown


def test_without_a_key_nothing_is_run(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (keys / "small.edge").write_bytes(small().to_bytes())
    assert run("inspect", str(keys / "small.edge")) == 0
    shown = capsys.readouterr().out
    assert "NOT CHECKED" in shown
    assert "parity      not replayed" in shown


def test_another_key_is_an_error(keys: Path) -> None:
    (keys / "small.edge").write_bytes(small().to_bytes())
    with pytest.raises(ArtifactError, match="unknown key"):
        run("inspect", str(keys / "small.edge"), "--signer", str(keys / "signer.pub"))


def test_a_model_of_ones_own(keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (keys / "my_own_model.py").write_text(
        "import torch\n"
        "from exporters import ModelSpec\n"
        "def build():\n"
        "    return ModelSpec(torch.nn.Linear(3, 2), torch.nn.functional.mse_loss,\n"
        "                     (torch.randn(5, 3),), torch.randn(5, 2), 'line', version='7')\n"
        "def other():\n"
        "    return 3\n"
    )
    monkeypatch.chdir(keys)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert run("export", "my_own_model:build", "--optimizer", "adam", "--out", "l.edge", "--signer", "signer.key") == 0
    assert "line version 7, 8 parameters" in capsys.readouterr().out
    command = ("export", "my_own_model:build", "--out", "l.edge", "--signer", "signer.key", "--trainable", "b*")
    with pytest.raises(ExportError, match="no parameter is called 'nothing'"):
        run(*command, "--trainable", "nothing")
    assert run(*command, "--frozen", "int8") == 0
    printed = capsys.readouterr().out
    assert "line version 7, 2 parameters" in printed
    assert re.search(r"int8: on the examples, outputs move by at most \d\.\d\d% of the largest$", printed, re.MULTILINE)
    assert run("inspect", "l.edge") == 0
    assert "2 trained, 6 frozen (float32, int8)" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="gives int, not a ModelSpec"):
        load_spec("my_own_model:other")
    with pytest.raises(ConfigError, match="has no function absent"):
        load_spec("my_own_model:absent")
    with pytest.raises(ExportError, match="no optimizer 'lion'"):
        run("export", "my_own_model:build", "--optimizer", "lion", "--out", "x.edge", "--signer", "signer.key")


def test_what_names_no_function_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not name a function"):
        load_spec("my_models.digits")
    with pytest.raises(ConfigError, match="cannot import no_such_module_here"):
        load_spec("no_such_module_here:build")


def test_adding_the_verbs_imports_nothing_heavy() -> None:
    code = (
        "import argparse, sys\n"
        "from exporters.cli import add_export_verb\n"
        "from edge_sdk.training.cli import add_inspect_verb\n"
        "subparsers = argparse.ArgumentParser().add_subparsers()\n"
        "add_export_verb(subparsers), add_inspect_verb(subparsers)\n"
        "assert not {'torch', 'numpy', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
