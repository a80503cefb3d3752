"""The APK, built once."""

from __future__ import annotations

import pytest

from android_demo.tools.build_apk import Built, build
from tests.integration.conftest import now

__all__ = ["now"]  # a fixture


@pytest.fixture(scope="session")
def built() -> Built:
    """The signed APK of this working tree; with ONNX Runtime for phones where Maven can fetch it."""
    return build()
