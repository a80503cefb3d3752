"""What one way of running graphs offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt

from edge_sdk.training.manifest import GraphSpec

Run: TypeAlias = Callable[[Mapping[str, npt.NDArray[Any]]], list[npt.NDArray[Any]]]
"""Runs a graph: every input by name, to the outputs in the manifest's order. Threads may share it."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One way of running graphs.

    Attributes:
        title: how people call it.
        package: what pip installs for it.
        version: the installed release's; raises ImportError where there is none.
        load: opens a graph from its part's bytes, to run on so many threads; raises ImportError where the package is
            missing.
        threads: whether it can be kept to a number of threads; where not, one number holds for a whole process.
        failures: what `load` and what it gives raise where the graph or what it is fed is wrong.
    """

    title: str
    package: str
    version: Callable[[], str]
    load: Callable[[bytes, GraphSpec, int], Run]
    failures: Callable[[], tuple[type[Exception], ...]]
    threads: bool = False


def release_of(package: str) -> str:
    """The installed release of a package; raises ImportError where there is none."""
    from importlib.metadata import version  # slow to import, and few devices have a backend that asks

    return version(package)
