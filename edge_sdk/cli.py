"""The `edge` command: finds the verbs that installed packages offer, runs one, and prints its errors.

A verb is an entry point in the group `edge_sdk.verbs`: its name is the verb, its value a function

    def add_verb(subparsers: Subparsers) -> None:
        parser = subparsers.add_parser("device", help="run a device on this machine")
        parser.add_argument("--home", type=Path, required=True)
        parser.set_defaults(handler=run_device)     # (argparse.Namespace) -> int | None, the exit code

The module behind it must be light to import (argparse, no numpy): `edge --help` imports all of them. A
handler imports what it needs when it runs, and raises `EdgeError` for all that a person can mend.

An entry point may name the extra that its handler needs, as in `pkg.cli:add_verb [coordinator]`. Where that
extra is not installed the verb is listed with the remedy, and its module is not imported. Knows nothing of
any verb.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points, version
from typing import TypeAlias

from edge_sdk.errors import ConfigError, EdgeError

DISTRIBUTION = "edge-sdk"
VERB_GROUP = "edge_sdk.verbs"

EXIT_FAILED = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Handler: TypeAlias = Callable[[argparse.Namespace], int | None]

# One line of `Requires-Dist` that belongs to an extra: `sqlalchemy<3,>=2.0; extra == 'coordinator'`.
_REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)[^;]*;.*\bextra\s*==\s*['\"](?P<extra>[^'\"]+)['\"]")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `edge` command.

    Args:
        argv: the arguments after the program's name; the process's own by default.

    Returns:
        The exit code: 0, the verb's own, 2 for an error a person can mend, 130 after Ctrl-C.

    Raises:
        EdgeError: only where the environment says EDGE_DEBUG=1, for its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed = _parser(arguments).parse_args(arguments)
        handler: Handler = parsed.handler
        code = handler(parsed) or 0
        # Flushed here, so that a reader that went away is met inside this try and not at exit.
        sys.stdout.flush()
    except EdgeError as error:
        if os.environ.get("EDGE_DEBUG") == "1":
            raise
        _print_error(error)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("edge: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `edge ... | head` closed the pipe. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return code


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge", description="Federated learning and inference on edge devices.")
    parser.add_argument("-V", "--version", action="version", version=f"edge {version(DISTRIBUTION)}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in _wanted(arguments):
        _add(verb, subparsers)
    return parser


def _wanted(arguments: Sequence[str]) -> list[EntryPoint]:
    """Return the one verb that the arguments name; else all, for help or for the error that lists them."""
    verbs = {verb.name: verb for verb in entry_points(group=VERB_GROUP)}
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    return [verbs[named]] if named in verbs else [verbs[name] for name in sorted(verbs)]


def _add(verb: EntryPoint, subparsers: Subparsers) -> None:
    missing = [(extra, names) for extra in verb.extras if (names := list(_missing(extra)))]
    if missing:
        extra, names = missing[0]
        remedy = f"pip install '{DISTRIBUTION}[{extra}]'"
        _add_unavailable(
            verb.name,
            subparsers,
            summary=f"(needs: {remedy})",
            error=ConfigError(
                f"edge {verb.name} needs packages that are not installed: {', '.join(names)}", hint=remedy
            ),
        )
        return
    try:
        add_verb = verb.load()
    except (ImportError, AttributeError) as error:
        # A verb that another package offers and that is broken must not take the others with it.
        _add_unavailable(
            verb.name,
            subparsers,
            summary=f"(cannot be loaded: {error})",
            error=ConfigError(f"edge {verb.name} cannot be loaded from {verb.value}: {error}"),
        )
        return
    add_verb(subparsers)


def _add_unavailable(name: str, subparsers: Subparsers, *, summary: str, error: EdgeError) -> None:
    def refuse(_: argparse.Namespace) -> int:
        raise error

    # Takes any arguments, -h too, so that every use of the verb says what is missing.
    parser = subparsers.add_parser(name, help=summary.replace("%", "%%"), add_help=False, prefix_chars="\0")
    parser.add_argument("ignored", nargs="*")
    parser.set_defaults(handler=refuse)


def _missing(extra: str) -> Iterator[str]:
    """Name the distributions that an extra of this one asks for and of which no version is installed."""
    for requirement in distribution(DISTRIBUTION).requires or []:
        match = _REQUIREMENT.match(requirement)
        if match is not None and match["extra"] == extra and not _installed(match["name"]):
            yield match["name"]


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _print_error(error: EdgeError) -> None:
    print(f"edge: error: {error}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {error.hint}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
