"""The APK that people install: what it must fulfil, and that the gates which say so can fail."""

from __future__ import annotations

import re
import struct
import zipfile
from pathlib import Path

import pytest

from android_demo.tools import apk_file, build_apk, gates
from android_demo.tools.build_apk import Built
from android_demo.tools.commands import BuildError, run

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
        build_apk.read_runtime(tmp_path / "text.aar", "arm64-v8a")
    with zipfile.ZipFile(tmp_path / "other.aar", "w") as package:
        package.writestr("classes.jar", b"")
        package.writestr("jni/x86/libonnxruntime.so", b"")
    with pytest.raises(BuildError, match="no libraries for arm64-v8a"):
        build_apk.read_runtime(tmp_path / "other.aar", "arm64-v8a")


def desktop_runtime() -> Path:
    """The jar of ONNX Runtime that the build compiles against."""
    classpath = (build_apk.TARGET / "classpath.txt").read_text().split(":")
    return next(Path(path) for path in classpath if Path(path).name.startswith("onnxruntime-"))


def elf_library(page_bytes: int = 16384) -> bytes:
    """The beginning of a 64-bit library with one segment to load."""
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 183, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    )
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 120, 120, page_bytes)
