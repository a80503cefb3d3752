"""The APK, built once."""

from __future__ import annotations

import pytest

from android_demo.tools.build_apk import Built, build
from tests.integration import jvm
from tests.integration.conftest import now
from tests.shared import made_once

__all__ = ["now"]  # a fixture


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The signed APK of this working tree; with ONNX Runtime for phones where Maven can fetch it."""
    with jvm.maven():
        return made_once(tmp_path_factory, "apk", lambda _: build())
