"""Programs that the build of the app calls: found, run, and their failures told in one line with what to do."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


class BuildError(Exception):
    """A step of the build failed: what, and what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def run(step: str, command: Sequence[str | Path], *, timeout_s: float = 600) -> str:
    """Run a program to its end; gives what it said on both outputs.

    Raises:
        BuildError: it is not installed, failed, or took longer.
    """
    program = str(command[0])
    if shutil.which(program) is None:
        raise BuildError(f"{step}: {program} is not installed", hint="tools/setup_android.sh installs it where it may")
    try:
        done = subprocess.run(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{step}: {program} took longer than {timeout_s:.0f} s") from error
    if done.returncode != 0:
        raise BuildError(f"{step}: {program} ended with {done.returncode}\n{_last_lines(done.stdout)}")
    return done.stdout


def _last_lines(text: str, count: int = 25) -> str:
    return "\n".join("    " + line for line in text.strip().splitlines()[-count:])
