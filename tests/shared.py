"""What the processes of one test run share: things made once for all of them, and ports that are each one's own."""

from __future__ import annotations

import fcntl
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # "gw0" and so on; none where one process runs all tests

# Below those that the system gives to whoever asks for any: nobody takes one between two of its uses in a test.
_ports = count(20_000 + 500 * (int(_WORKER.removeprefix("gw") or 0) % 24))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], T]) -> T:
    """What `make` gives, called in the first process that asks; the others read what it gave.

    Args:
        factory: of the session.
        name: of what is made, and of the folder that `make` gets for its files.
        make: what it gives can be pickled; it must not be changed.
    """
    base = factory.getbasetemp()
    folder = (base.parent if _WORKER else base) / f"shared-{name}"
    made = folder / "made.pickle"
    with one_at_a_time(folder.with_suffix(".lock")):
        if made.exists():
            found: T = pickle.loads(made.read_bytes())  # noqa: S301  # this run's own
            return found
        folder.mkdir()
        found = make(folder)
        made.write_bytes(pickle.dumps(found))
    return found


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Of all processes that name this file, one is in the `with` block."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def free_port() -> int:
    """A port on the loopback address that nobody listens on, and that this process has not given out before."""
    for port in _ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("there is always another number")
