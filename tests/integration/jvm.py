"""Devices of the Kotlin client, each in a JVM of its own, as the Python tests start, read and kill them."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.shared import one_at_a_time

MODULE = Path(__file__).parents[2] / "android_demo" / "edge-client"
_SOURCES = ("pom.xml", "src")


def maven() -> AbstractContextManager[None]:
    """Of all test processes, one at a time runs Maven: it rewrites the modules' folders."""
    folder = MODULE.parent / "build"
    folder.mkdir(exist_ok=True)
    return one_at_a_time(folder / "maven.lock")


@cache
def classpath() -> str:
    """The compiled client with its tests and what they need; built with Maven where it is not there or is old.

    It is this process's own copy: what another process builds meanwhile changes nothing under a running client.
    """
    target = MODULE / "target"
    listed = target / "test.classpath"
    with maven():
        if not listed.exists() or listed.stat().st_mtime < _newest():
            program = shutil.which("mvn")
            if program is None:
                raise AssertionError(
                    "Maven and a JDK are needed for the Kotlin client: make setup, or see CONTRIBUTING.md"
                )
            pom = str(MODULE.parent / "pom.xml")
            subprocess.run([program, "-q", "-B", "-f", pom, "-pl", "edge-client", "process-test-classes"], check=True)
            listed.touch()
        return ":".join([*copied(target / "classes", target / "test-classes"), listed.read_text()])


def copied(*folders: Path) -> list[str]:
    """Copies of folders, which go when this process ends."""
    place = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, place)
    return [str(shutil.copytree(folder, place / folder.name)) for folder in folders]


def _newest() -> float:
    files = [path for name in _SOURCES for path in (MODULE / name, *(MODULE / name).rglob("*"))]
    return max(path.stat().st_mtime for path in files)


class Jvm:
    """A running Java program; killed at the end of a `with` block if it still runs."""

    def __init__(
        self,
        main: str,
        *arguments: str | Path,
        environment: Mapping[str, str] | None = None,
        code: str | None = None,
    ) -> None:
        """Start `main` of the classpath `code`, the client with its tests by default."""
        self.said: list[str] = []
        java = shutil.which("java")
        assert java is not None, "a JDK is needed for the Kotlin client: make setup"
        # A small heap and the simplest collector: there are several of these beside each other.
        self._process = subprocess.Popen(
            [java, "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", code or classpath(), main,
             *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def wait_for(self, text: str) -> str:
        """Read until a line holds `text`, and return that line."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line.rstrip("\n"))
            if text in line:
                return self.said[-1]
        raise AssertionError(f"it ended without saying {text!r}: {self.said}")

    def rest(self) -> list[str]:
        """Read until it ends by itself; all that it said."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line.rstrip("\n"))
        return self.said

    def kill(self) -> None:
        """End it with SIGKILL, as a power cut would."""
        self._process.kill()
        self._process.wait()
