"""What simulations share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.world import fresh_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A fresh folder for one world's stores."""
    with fresh_folder() as path:
        yield path
