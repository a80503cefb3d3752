"""What all tests share: Hypothesis without time limits, and a registrar whose keys are made once."""

from __future__ import annotations

import pytest
from hypothesis import settings

from coordinator.registrar.authority import Authority, create_authority

# A slow machine is not a failing test.
settings.register_profile("edge", deadline=None, print_blob=True)
settings.load_profile("edge")


@pytest.fixture(scope="session")
def now() -> float:
    """The moment at which `authority` was made, in seconds since the epoch."""
    return 1_800_000_000.0


@pytest.fixture(scope="session")
def authority(now: float) -> Authority:
    """A registrar for tests whose clock stands near `now`."""
    return create_authority("test registrar", now=now)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Coverage is that of the tests of single parts: whole rounds cover too, but prove less, and take almost twice as
    long while they are traced."""
    for item in items:
        if item.path.parent.name in ("simulation", "integration", "android"):
            item.add_marker(pytest.mark.no_cover)
