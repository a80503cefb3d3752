"""`edge privacy`: the forecast against what a run really did, and the auditor's report against forgery."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.admin.privacy_cli import add_privacy_verb, forecast_lines
from coordinator.config import TaskConfig
from coordinator.privacy.clipping import AdaptiveClipping
from coordinator.privacy.forecast import forecast
from coordinator.privacy.report import make_report, report_text, verify_report
from coordinator.registrar.authority import create_authority, issue_identity
from edge_sdk.clock import SystemClock
from edge_sdk.credentials import save_identity
from edge_sdk.errors import ConfigError, EdgeError, IdentityError
from tests.simulation.world import World, fresh_folder, task_config

DEVICES = 30


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_privacy_verb(parser.add_subparsers())
    parsed = parser.parse_args(["privacy", *arguments])
    code: int = parsed.handler(parsed)
    return code


def finished(folder: Path, config: TaskConfig) -> World:
    """A run that ended, in a work folder of a coordinator whose certificate is valid today."""
    now = SystemClock().now()
    authority = create_authority("Auditors' Registrar", now=now)
    identity = issue_identity(authority, identity_id="coordinator", role="coordinator", now=now)
    world = World(folder, DEVICES, config=config)
    world.run()
    save_identity(folder / "identity", identity)
    return world


@pytest.mark.parametrize("dimension", [50, 40_000])
def test_the_forecast_counts_the_bytes_that_devices_really_send(dimension: int) -> None:
    with fresh_folder() as folder:
        config = task_config(DEVICES, rounds=1, epsilon=8.0, dimension=dimension)
        found = forecast(config)
        with World(folder, DEVICES, config=config) as world:
            world.run()
            (view,) = world.rounds
    # Check-ins come before the round knows its devices, and are counted to none.
    assert view.bytes_up / DEVICES == pytest.approx(found.traffic.up_bytes, rel=0.05, abs=620)
    # The first round brings the bundle too, a few bytes here, and asks for each blob once.
    assert view.bytes_down / DEVICES == pytest.approx(found.traffic.down_bytes, rel=0.05, abs=400)


def test_the_forecast_tells_what_the_devices_will_compute() -> None:
    config = task_config(200, epsilon=8.0, participation_cap=11, dimension=1370, min_reports=140)
    found = forecast(config)
    assert found.epsilons[0][0] == 1
    count, epsilon = found.epsilons[-1]
    assert count == 11
    assert epsilon == pytest.approx(config.encoding.epsilon, rel=1e-3)
    assert [epsilon for _, epsilon in found.epsilons] == sorted(epsilon for _, epsilon in found.epsilons)
    # Noise of 140 reports of which 130 are counted on: a little more than a trusted server's.
    assert found.central_ratio is not None
    assert math.sqrt(140 / 130) < found.central_ratio < 1.1
    assert found.noise_to_signal == pytest.approx(
        config.encoding.noise_multiplier * math.sqrt(1370 / (140 * found.honest_reports))
    )


def test_a_forecast_without_noise_says_so_in_capitals() -> None:
    lines = forecast_lines(forecast(task_config(20)))
    assert any("NO NOISE" in line for line in lines)
    assert all(len(line) <= 80 for line in lines)


def test_plan_prints_lines_that_fit_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for dimension, devices in (("1000000", "10000"), ("10", "20")):
        assert run("plan", "--dimension", dimension, "--devices", devices, "--epsilon", "2") == 0
        lines = capsys.readouterr().out.splitlines()
        assert any("threshold" in line for line in lines)
        assert max(len(line) for line in lines) <= 80


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--dimension", "0", "--devices", "50"], "dimension is 0"),
        (["--dimension", "10", "--devices", "1"], "cannot be"),
        (["--dimension", "10", "--devices", "50", "--epsilon", "inf"], "no budget"),
        (["--dimension", "10", "--devices", "4", "--epsilon", "0.0001"], "no modulus|no noise"),
        (["--bundle", "nowhere.edge", "--devices", "50"], "cannot read bundle"),
    ],
)
def test_plan_refuses_what_cannot_be(options: list[str], error: str) -> None:
    with pytest.raises(EdgeError, match=error):
        run("plan", *options)


def test_a_report_is_made_verified_and_found_out_when_it_is_forged(capsys: pytest.CaptureFixture[str]) -> None:
    with fresh_folder() as folder:
        config = task_config(DEVICES, rounds=2, epsilon=8.0)
        with finished(folder, config):
            out, registrar = folder / "report", folder / "identity" / "registrar.crt"
            assert run("report", config.task, "--home", str(folder), "--out", str(out)) == 0
            capsys.readouterr()
            assert run("verify", str(out), "--registrar", str(registrar)) == 0
            told = capsys.readouterr().out
            assert "2 releases, signed by coordinator" in told
            assert "WRONG" not in told
            text = (out / "report.md").read_text()
            assert "noise multiplier" in text
            assert "## Not promised" in text

            with pytest.raises(IdentityError, match="exists already"):
                run("report", config.task, "--home", str(folder), "--out", str(out))

            content = (out / "report.json").read_bytes()
            (out / "report.json").write_bytes(content.replace(b'"releases":2', b'"releases":3'))
            with pytest.raises(ConfigError, match="not signed by coordinator"):
                run("verify", str(out), "--registrar", str(registrar))

            forged = _changed(content, lambda report: report["spent"].update(epsilon=0.5))
            assert "epsilon is told as 0.5" in forged
            forged = _changed(content, lambda report: report["ledger"][0]["event"].update(device_variance=10**9))
            assert "the ledger's noise is not the plan's" in forged
            forged = _changed(content, lambda report: report["ledger"][1].update(rid="00" * 16))
            assert "the plan is of another round" in forged
            forged = _changed(content, lambda report: report["ledger"][0]["event"].update(reports=1))
            assert "1 reports were released" in forged
            forged = _changed(content, lambda report: report["promise"].update(epsilon_budget=0.1))
            assert "more than the budget of 0.1" in forged


def _changed(content: bytes, change: object) -> str:
    report = json.loads(content)
    assert callable(change)
    change(report)
    return "; ".join(verify_report(json.dumps(report).encode()).complaints)


def test_choices_of_privacy_are_told_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            "plan",
            *[
                "--dimension",
                "10",
                "--devices",
                "50",
                "--local-noise",
                "--adaptive-clipping",
                "0.6",
                "--clip-norm",
                "2",
            ],
        )
        == 0
    )
    told = capsys.readouterr().out
    assert "a device's own only" in told
    assert "2 at first, then the norm that 60% are within" in told
    assert (
        run("plan", *["--dimension", "10", "--devices", "50", "--mechanism", "discrete_gaussian", "--bits", "20"]) == 0
    )
    told = capsys.readouterr().out
    assert "discrete gaussian" in told
    assert "2^20" in told
    config = task_config(DEVICES, epsilon=8.0)
    privacy = replace(config.privacy, local_noise=True, adaptive_clipping=AdaptiveClipping(0.6))
    text = report_text(make_report(replace(config, privacy=privacy), [], [], coordinator="c", now=0.0))
    assert "| noise counted on | of each device alone |" in text
    assert "1 at first, then the norm that 60% are within" in text


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": 1}', b"\xff"])
def test_what_is_no_report_is_told_so(content: bytes) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        verify_report(content)


def test_a_report_of_another_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="format 2"):
        verify_report(b'{"format": 2}')


def test_a_folder_without_a_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a coordinator's work folder"):
        run("report", "digits", "--home", str(tmp_path), "--out", str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="cannot read"):
        run("verify", str(tmp_path), "--registrar", str(tmp_path / "registrar.crt"))
