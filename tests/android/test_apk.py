"""The APK that people install: what it must fulfil, and that the gates which say so can fail."""

from __future__ import annotations

import re
import shutil
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from android_demo.tools import apk_file, build_apk, gates
from android_demo.tools.build_apk import Built
from android_demo.tools.commands import BuildError, run
from tests.integration import jvm

VERSION = build_apk.read_versions()["onnxruntime"]
LIBRARIES = ("libonnxruntime.so", "libonnxruntime4j_jni.so")

# Maven, ProGuard and dx, on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_apk_passes_its_gates_and_holds_what_the_app_needs(built: Built) -> None:
    assert gates.problems(built.apk, built.expected) == []
    names = {entry.name for entry in apk_file.entries(built.apk)}
    assert {"AndroidManifest.xml", "resources.arsc", "classes.dex"} <= names
    assert {"assets/digits.edge", "assets/signer.pub"} <= names
    # The private half of the publisher's key stays at home.
    assert not any(name.endswith((".key", ".p12")) for name in names)


def test_the_dex_holds_what_the_manifest_and_native_code_name(built: Built) -> None:
    listing = run("dexdump", ["dexdump", built.dex])
    for name in ("edge/demo/MainActivity", "edge/demo/DemoApplication", "edge/android/TrainingJobService"):
        assert f"'L{name};'" in listing
    assert "'Lai/onnxruntime/OrtSession;'" in listing
    # What native code makes by name, the rules for ProGuard name: with their constructors.
    with zipfile.ZipFile(desktop_runtime()) as jar:
        native = jar.read("ai/onnxruntime/native/linux-x64/libonnxruntime4j_jni.so")
    named = {name.decode() for name in re.findall(rb"\0(ai/onnxruntime/\w+)(?=\0)", native)}
    assert len(named) > 10
    for name in named - {"ai/onnxruntime/OnnxValue"}:
        pattern = rf"Class descriptor  : 'L{name};'.*?Direct methods(.*?)Virtual methods"
        [methods] = re.findall(pattern, listing, re.DOTALL)
        assert "'<init>'" in methods, name


def test_a_tampered_apk_does_not_verify(built: Built, tmp_path: Path) -> None:
    content = bytearray(built.apk.read_bytes())
    offset = next(entry.offset for entry in apk_file.entries(built.apk) if entry.name == "classes.dex")
    content[offset + 100] ^= 1
    (tmp_path / "tampered.apk").write_bytes(content)
    [problem] = gates.signature_problems(tmp_path / "tampered.apk", 26)
    assert "does not verify" in problem


def test_an_apk_with_libraries_of_real_size_is_aligned_and_within_its_budget(built: Built, tmp_path: Path) -> None:
    # Those of the desktop's runtime for the same processor: about the size of the phone's, and not for installing.
    with zipfile.ZipFile(desktop_runtime()) as jar:
        folder = "ai/onnxruntime/native/linux-aarch64/"
        libraries = {
            f"lib/arm64-v8a/{Path(name).name}": jar.read(name) for name in jar.namelist() if name.startswith(folder)
        }
    libraries = {name: content for name, content in libraries.items() if name.endswith(".so")}
    assert sum(map(len, libraries.values())) > 20_000_000
    apk = tmp_path / "large.apk"
    build_apk.sign(apk_file.contents(built.apk) | libraries, apk, min_sdk=built.expected.min_sdk)
    expected = gates.Expected(built.expected.application, 26, 35, ("arm64-v8a",))
    assert gates.problems(apk, expected) == []
    # It is installed as it is, so that Android maps the libraries out of it.
    assert apk.stat().st_size > 20_000_000


def test_gate_finds_libraries_on_small_pages_and_compressed_ones(tmp_path: Path) -> None:
    apk = tmp_path / "bad.apk"
    with zipfile.ZipFile(apk, "w") as file:
        file.writestr("lib/arm64-v8a/libsmall.so", elf_library(page_bytes=4096))
        file.writestr(zipfile.ZipInfo("lib/arm64-v8a/libpacked.so"), elf_library(), zipfile.ZIP_DEFLATED)
    problems = " ".join(gates.alignment_problems(apk))
    assert "libsmall.so begins at" in problems
    assert "libsmall.so was linked for pages of 4096 bytes" in problems
    assert "libpacked.so is compressed" in problems


def test_writer_aligns_whatever_comes_before(tmp_path: Path) -> None:
    apk = tmp_path / "good.apk"
    apk_file.write_apk(
        apk,
        {
            "a": b"odd",
            "lib/arm64-v8a/liba.so": elf_library(),
            "lib/arm64-v8a/libb.so": elf_library(),
            "resources.arsc": b"123",
        },
    )
    assert gates.alignment_problems(apk) == []
    assert apk_file.contents(apk)["a"] == b"odd"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("INTERNET", "CAMERA"), "the permission android.permission.CAMERA is not on the list"),
        (("INTERNET", "CAMERA"), "the permission android.permission.INTERNET is missing"),
        (("sdkVersion:'26'", "sdkVersion:'21'"), "the manifest lacks minSdk 26"),
        (("targetSdkVersion:'35'", "targetSdkVersion:'30'"), "the manifest lacks targetSdk 35"),
        (("launchable-activity", "x"), "the manifest lacks an activity to launch"),
        (("package: name='edge.demo'", "package: name='other'"), "the manifest lacks application edge.demo"),
        (("application:", "application-debuggable\napplication:"), "the app is debuggable"),
    ],
)
def test_gate_reads_the_manifest(built: Built, change: tuple[str, str], problem: str) -> None:
    badging = run("badging", ["aapt", "dump", "badging", built.apk])
    assert gates.badging_problems(badging, built.expected) == []
    assert change[0] in badging
    assert problem in gates.badging_problems(badging.replace(*change), built.expected)


def test_gate_finds_calls_that_android_cannot_link(built: Built, tmp_path: Path) -> None:
    source = tmp_path / "Late.java"
    source.write_text("class Late { Runnable run(int a) { return () -> System.out.println(a); } }")
    run("javac", ["javac", "--release", "8", "-Xlint:-options", "-d", tmp_path, source])
    tools = (build_apk.DEMO / "tools/target/classpath.txt").read_text().strip()
    dexer = ["java", "-cp", tools, "com.android.dx.command.Main", "--dex", "--no-strict"]
    run("dx", [*dexer, "--min-sdk-version=26", f"--output={tmp_path / 'late.dex'}", tmp_path / "Late.class"])
    [problem] = gates.dex_problems((tmp_path / "late.dex").read_bytes())
    assert "1 invoke-custom" in problem


def test_a_package_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.aar").write_text("no archive")
    with pytest.raises(BuildError, match="is no Android package"):
        build_apk.read_runtime(tmp_path / "text.aar", "arm64-v8a", VERSION)
    with zipfile.ZipFile(tmp_path / "other.aar", "w") as package:
        package.writestr("classes.jar", b"")
        package.writestr("jni/x86/libonnxruntime.so", b"")
    with pytest.raises(BuildError, match="no libraries for arm64-v8a"):
        build_apk.read_runtime(tmp_path / "other.aar", "arm64-v8a", VERSION)


@pytest.fixture
def elsewhere(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A build folder of its own, with the model and the keys of the usual one: what is built here is not for phones."""
    assert built.apk.exists()
    folder = tmp_path / "build"
    for name in ("signer", "assets"):
        shutil.copytree(build_apk.BUILD / name, folder / name)
    monkeypatch.setattr(build_apk, "BUILD", folder)
    with jvm.maven():
        yield folder


def test_a_package_of_the_runtime_goes_into_the_apk(elsewhere: Path, tmp_path: Path) -> None:
    aar = runtime_package(tmp_path / "onnxruntime-android.aar")
    made = build_apk.build("arm64-v8a", aar=aar, require_runtime=True)
    assert made.lacking is None
    assert made.apk == elsewhere / "edge-demo-arm64-v8a.apk"
    assert gates.problems(made.apk, made.expected) == []
    libraries = {entry.name: entry for entry in apk_file.entries(made.apk) if entry.name.startswith("lib/")}
    assert set(libraries) == {f"lib/arm64-v8a/{name}" for name in LIBRARIES}
    assert all(entry.stored and entry.offset % 16384 == 0 for entry in libraries.values())
    # Its classes go with its libraries, in place of those that the app was compiled against.
    shrunk = (elsewhere / "classes.pro").read_text()
    assert "onnxruntime-android.jar" in shrunk
    assert str(desktop_runtime()) not in shrunk
    assert "'Lai/onnxruntime/OrtSession;'" in run("dexdump", ["dexdump", made.dex])


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("package", "said"),
    [
        ({"version": "1.2.3"}, f"holds ONNX Runtime 1.2.3, the app is compiled against {VERSION}"),
        ({"libraries": LIBRARIES[:1]}, "lacks libonnxruntime4j_jni.so for arm64-v8a"),
        ({"abi": "x86_64"}, "has no libraries for arm64-v8a"),
        (None, "is no Android package"),
    ],
)
def test_a_package_that_does_not_fit_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], package: dict[str, Any] | None, said: str
) -> None:
    aar = tmp_path / "given.aar"
    if package is not None:
        runtime_package(aar, **package)
    assert build_apk.main(["--aar", str(aar)]) == 1
    heard = capsys.readouterr().err
    assert said in heard
    assert "hint: " in heard


@pytest.mark.usefixtures("elsewhere")
def test_a_runtime_that_is_required_and_cannot_be_had_ends_the_build(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No such version was ever published."""
    monkeypatch.setattr(build_apk, "read_versions", lambda: {"onnxruntime": "0.0.0"})
    assert build_apk.main(["--require-runtime"]) == 1
    heard = capsys.readouterr().err
    assert "Maven cannot fetch com.microsoft.onnxruntime:onnxruntime-android:0.0.0:aar" in heard
    assert "--aar FILE" in heard


def desktop_runtime() -> Path:
    """The jar of ONNX Runtime that the build compiles against."""
    classpath = (build_apk.TARGET / "classpath.txt").read_text().split(":")
    return next(Path(path) for path in classpath if Path(path).name.startswith("onnxruntime-"))


def runtime_package(
    path: Path, version: str = VERSION, abi: str = "arm64-v8a", libraries: Sequence[str] = LIBRARIES
) -> Path:
    """What onnxruntime-android is like: the real classes, and libraries that only look like some."""
    classes = path.with_suffix(".jar")
    with zipfile.ZipFile(desktop_runtime()) as jar, zipfile.ZipFile(classes, "w") as copy:
        for name in jar.namelist():
            if name.endswith(".class"):
                copy.writestr(name, jar.read(name))
    with zipfile.ZipFile(path, "w") as package:
        package.writestr("AndroidManifest.xml", '<manifest package="ai.onnxruntime"/>')
        package.write(classes, "classes.jar")
        for name in libraries:
            package.writestr(f"jni/{abi}/{name}", elf_library() + f"\0VERS_{version}\0".encode())
    return path


def elf_library(page_bytes: int = 16384) -> bytes:
    """The beginning of a 64-bit library with one segment to load."""
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 183, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    )
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 120, 120, page_bytes)
