"""The `edge` command: finding verbs, running one, and what is printed when that fails."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution
from types import ModuleType

import pytest

from edge_sdk import cli
from edge_sdk.errors import ConfigError, EdgeError

# What no verb may import to say what it is. (The standard library's own weight is not ours to cut.)
HEAVY = (
    *("amqtt", "cryptography", "dp_accounting", "flatbuffers", "matplotlib", "numpy", "onnx", "onnxruntime"),
    *("onnxscript", "paho", "rich", "scipy", "sklearn", "sqlalchemy", "torch"),
)
VERBS = ("registrar", "signer", "coordinator", "run", "broker", "device", "inspect", "export", "demo", "sim")

Offer = Callable[..., None]


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Make the command find these verbs and no others: name -> handler, or an entry point's value."""
    module = ModuleType("edge_test_verbs")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def provide(**verbs: Callable[[argparse.Namespace], int | None] | str) -> None:
        points = []
        for name, verb in verbs.items():
            if isinstance(verb, str):
                points.append(EntryPoint(name, verb, cli.VERB_GROUP))
                continue

            def add_verb(
                subparsers: cli.Subparsers,
                name: str = name,
                handler: Callable[[argparse.Namespace], int | None] = verb,
            ) -> None:
                parser = subparsers.add_parser(name, help=f"what {name} does")
                parser.add_argument("--count", type=int)
                parser.set_defaults(handler=handler)

            setattr(module, name, add_verb)
            points.append(EntryPoint(name, f"edge_test_verbs:{name}", cli.VERB_GROUP))
        monkeypatch.setattr(cli, "entry_points", lambda group: points if group == cli.VERB_GROUP else [])

    return provide


def uninstall(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make these distributions look as if they were not installed."""

    def find(name: str) -> Distribution:
        if name in names:
            raise PackageNotFoundError(name)
        return distribution(name)

    monkeypatch.setattr(cli, "distribution", find)


def test_help_lists_the_verbs(offer: Offer, capsys: pytest.CaptureFixture[str]) -> None:
    offer(two=lambda _: None, one=lambda _: None)
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "one" in out
    assert out.index("what one does") < out.index("what two does")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"edge {distribution('edge-sdk').version}\n"


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_a_handlers_result_is_the_exit_code(offer: Offer, returned: int | None, code: int) -> None:
    seen = []

    def handler(arguments: argparse.Namespace) -> int | None:
        seen.append(arguments.count)
        return returned

    offer(verb=handler)
    assert cli.main(["verb", "--count", "7"]) == code
    assert seen == [7]


def test_only_the_named_verb_is_imported(offer: Offer) -> None:
    offer(verb=lambda _: None, broken="edge_test_missing:add_verb")
    assert cli.main(["verb"]) == 0
    assert "edge_test_missing" not in sys.modules


def test_an_error_is_printed_with_its_hint(offer: Offer, capsys: pytest.CaptureFixture[str]) -> None:
    def handler(_: argparse.Namespace) -> int:
        raise ConfigError("the port 99999 is too large", hint="choose one below 65536")

    offer(verb=handler)
    assert cli.main(["verb"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "edge: error: the port 99999 is too large\n  hint: choose one below 65536\n"


def test_an_error_without_a_hint_is_one_line(offer: Offer, capsys: pytest.CaptureFixture[str]) -> None:
    def handler(_: argparse.Namespace) -> int:
        raise EdgeError("nothing can be done")

    offer(verb=handler)
    assert cli.main(["verb"]) == 2
    assert capsys.readouterr().err == "edge: error: nothing can be done\n"


def test_debugging_shows_the_traceback(offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(_: argparse.Namespace) -> int:
        raise ConfigError("wrong")

    offer(verb=handler)
    monkeypatch.setenv("EDGE_DEBUG", "1")
    with pytest.raises(ConfigError, match="wrong"):
        cli.main(["verb"])


def test_a_bug_is_not_hidden(offer: Offer) -> None:
    def handler(_: argparse.Namespace) -> int:
        raise KeyError("bug")

    offer(verb=handler)
    with pytest.raises(KeyError):
        cli.main(["verb"])


def test_interrupting_is_one_line(offer: Offer, capsys: pytest.CaptureFixture[str]) -> None:
    def handler(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    offer(verb=handler)
    assert cli.main(["verb"]) == 130
    assert capsys.readouterr().err == "edge: interrupted\n"


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["verb", "--count", "many"], ["--unknown", "verb"]])
def test_usage_errors_exit_with_2(offer: Offer, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    offer(verb=lambda _: None)
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: edge" in capsys.readouterr().err


def test_a_verb_whose_extra_is_missing_is_listed_with_the_remedy(
    offer: Offer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uninstall(monkeypatch, "sqlalchemy", "rich")
    offer(verb=lambda _: None, run="edge_test_missing:add_verb [coordinator]")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    assert "run (needs: pip install 'edge-sdk[coordinator]')" in help_text
    assert "what verb does" in help_text


@pytest.mark.parametrize("arguments", [[], ["create", "--rounds", "3"], ["--help"], ["-h"], ["--", "x"]])
def test_running_a_verb_whose_extra_is_missing_says_so(
    offer: Offer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    uninstall(monkeypatch, "sqlalchemy", "rich")
    offer(run="edge_test_missing:add_verb [coordinator]")
    assert cli.main(["run", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("edge: error: edge run needs packages that are not installed: ")
    assert set(lines[0].rpartition(": ")[2].split(", ")) == {"sqlalchemy", "rich"}
    assert lines[1:] == ["  hint: pip install 'edge-sdk[coordinator]'"]


def test_a_verb_whose_extra_is_there_is_loaded(offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall(monkeypatch, "torch")
    offer(verb=lambda _: 5, run="edge_test_verbs:verb [coordinator]")
    module = sys.modules["edge_test_verbs"]

    def add_verb(subparsers: cli.Subparsers) -> None:
        subparsers.add_parser("run").set_defaults(handler=lambda _: 7)

    module.verb = add_verb  # type: ignore[attr-defined]
    assert cli.main(["run"]) == 7


@pytest.mark.parametrize("value", ["edge_test_missing:add_verb", "edge_test_verbs:missing"])
def test_a_broken_verb_leaves_the_others(offer: Offer, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    offer(verb=lambda _: None, broken=value)
    assert cli.main(["verb"]) == 0
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    assert "cannot be loaded" in capsys.readouterr().out
    assert cli.main(["broken", "--any", "argument"]) == 2
    assert f"edge broken cannot be loaded from {value}" in capsys.readouterr().err


def test_every_verb_of_this_distribution_is_there_and_light() -> None:
    script = (
        "import sys\n"
        "from edge_sdk.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        f"    print('HEAVY', *sorted(set(sys.modules) & set({HEAVY!r})))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    text, _, heavy = done.stdout.rpartition("HEAVY")
    assert heavy.split() == []
    assert "cannot be loaded" not in text
    for verb in VERBS:
        assert f"\n    {verb} " in text


def test_a_reader_that_went_away_is_not_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = (
        "from argparse import Namespace\n"
        "from edge_sdk import cli\n"
        "from importlib.metadata import EntryPoint\n"
        "import sys, types\n"
        "module = types.ModuleType('edge_test_verbs')\n"
        "module.add = lambda s: s.add_parser('verb').set_defaults(handler=lambda _: print('x'))\n"
        "sys.modules['edge_test_verbs'] = module\n"
        "cli.entry_points = lambda group: [EntryPoint('verb', 'edge_test_verbs:add', group)]\n"
        "sys.exit(cli.main(['verb']))\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
