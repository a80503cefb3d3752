"""The APK's code, run: a dex made as the APK's is translated back into a jar, and the client runs from that.

That dex holds all of the client, the APK's what the app calls of it: tests call more (tools/whole.pro).
The whole federation needs nothing but that jar and ONNX Runtime's libraries for desktops. The golden files take the
library of Kotlin as a jar, since the APK holds only those of its functions that the app calls; the tests call others.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from android_demo.tools import build_apk
from android_demo.tools.build_apk import Built
from android_demo.tools.commands import run
from android_demo.tools.dex_to_jar import dex_to_jar
from coordinator.service.broker import RunningBroker
from tests.integration import jvm, test_jvm_training
from tests.integration.test_jvm_training import mosquitto
from tests.shared import made_once

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

__all__ = ["mosquitto"]  # a fixture


@pytest.fixture(scope="session")
def from_dex(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jar of the APK's code, and of what of the client the app does not call."""
    assert built.dex.exists()
    with jvm.maven():
        dex = made_once(tmp_path_factory, "whole", build_apk.build_whole_client)
    jar = tmp_path_factory.mktemp("dex") / "from-dex.jar"
    assert dex_to_jar(dex, jar) > 1000
    return jar


def test_golden_files_on_the_code_of_the_apk(from_dex: Path, tmp_path: Path) -> None:
    needed = jvm.classpath().split(":")
    stdlib = next(path for path in needed if Path(path).name.startswith("kotlin-stdlib-"))
    tests = next(path for path in needed if path.endswith("test-classes"))
    tools = (build_apk.DEMO / "tools/target/classpath.txt").read_text().strip().split(":")
    console = next(path for path in tools if "junit-platform-console-standalone" in path)
    log = tmp_path / "loaded.txt"
    java = ["java", f"-Xlog:class+load:file={log}", f"-Dedge.repository={build_apk.REPOSITORY}"]
    # JUnit's own assertions for Kotlin want the library too.
    java += ["-cp", f"{console}:{stdlib}", "org.junit.platform.console.ConsoleLauncher"]
    chosen = [f"--include-package=edge.{name}" for name in ("secagg", "privacy", "protocol")]
    options = ["--include-engine=junit-jupiter", "--details=summary", "--scan-classpath", tests, *chosen]
    said = run("golden files", [*java, "execute", *options, "--class-path", f"{from_dex}:{tests}"])
    counts = {name: int(count) for count, name in re.findall(r"\[\s*(\d+) tests (\w+)\s*\]", said)}
    assert counts["failed"] == 0
    assert counts["successful"] == counts["found"] > 400
    loaded = dict(re.findall(r"\] (\S+) source: (\S+)", log.read_text()))
    for name in ("edge.secagg.Suite", "edge.privacy.Encode", "edge.protocol.Codec"):
        assert loaded[name].endswith(str(from_dex))
    foreign = [source for name, source in loaded.items() if name.startswith("org.bouncycastle.")]
    assert foreign
    assert all(source.endswith(str(from_dex)) for source in foreign)


@pytest.mark.usefixtures("now")
def test_a_federation_with_clients_that_run_the_code_of_the_apk(
    from_dex: Path, tmp_path: Path, mosquitto: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = jvm.classpath().split(":")
    runtime = next(path for path in needed if Path(path).name.startswith("onnxruntime-"))
    monkeypatch.setattr(jvm, "classpath", lambda: f"{from_dex}:{runtime}")
    test_jvm_training.test_kotlin_clients_train_with_python_ones_and_serve_the_model(tmp_path, mosquitto)
