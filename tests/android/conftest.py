"""The APK, built once, and its code."""

from __future__ import annotations

from pathlib import Path

import pytest

from android_demo.tools.build_apk import DEMO, Built, build
from android_demo.tools.commands import run
from android_demo.tools.dex_to_jar import dex_to_jar
from tests.integration import jvm
from tests.integration.conftest import now
from tests.shared import made_once

__all__ = ["now"]  # a fixture


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The signed APK of this working tree; with ONNX Runtime for phones where Maven can fetch it."""
    with jvm.maven():
        return made_once(tmp_path_factory, "apk", lambda _: build())


@pytest.fixture(scope="session")
def apk_code(built: Built, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The classpath of a JVM that runs the APK's own dex, translated back into a jar.

    Beside it are only what calls the app here, Kotlin's library, and ONNX Runtime's for desktops.
    """
    jar = tmp_path_factory.mktemp("apk") / "app.jar"
    assert dex_to_jar(built.dex, jar) > 500
    target = DEMO / "app" / "target"
    with jvm.maven():
        maven = ["mvn", "--quiet", "--batch-mode", "-f", str(DEMO / "pom.xml"), "--projects", "app", "--also-make"]
        run("compile", [*maven, "process-test-classes"])
        [driver] = jvm.copied(target / "test-classes")
        needed = (target / "classpath.txt").read_text().strip().split(":")
    stdlib, runtime = (
        next(path for path in needed if Path(path).name.startswith(f"{name}-"))
        for name in ("kotlin-stdlib", "onnxruntime")
    )
    # The driver calls functions of Kotlin's library that the app does not, so that the APK lacks them.
    return f"{stdlib}:{jar}:{driver}:{runtime}"
