"""Build the demo app into a signed APK with Maven, aapt2, ProGuard, dx and apksigner: no Gradle, no Google Maven.

    python -m android_demo.tools.build_apk                        for phones: arm64-v8a
    python -m android_demo.tools.build_apk --abi x86_64           for an emulator
    python -m android_demo.tools.build_apk --aar FILE             with this onnxruntime-android

The APK is signed with a debug key that is made on first use, so that it can be installed with `adb install`; a store
wants it signed with the app's own. Everything is written below android_demo/build and the modules' target folders.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from android_demo.tools import apk_file, gates
from android_demo.tools.commands import BuildError, run

DEMO = Path(__file__).resolve().parent.parent
REPOSITORY = DEMO.parent
BUILD = DEMO / "build"
TARGET = DEMO / "app" / "target"
VERSIONS = DEMO / "gradle" / "libs.versions.toml"

APPLICATION = "edge.demo"
ABIS = ("arm64-v8a", "x86_64")

_LIBRARIES = ("libonnxruntime.so", "libonnxruntime4j_jni.so")

_PASSWORD = "android"  # noqa: S105 - as every debug key has it
_MODEL_SOURCES = ("android_demo/tools/starting_model.py", "exporters/examples/digits.py")


@dataclass(frozen=True, slots=True)
class Runtime:
    """ONNX Runtime for phones.

    Attributes:
        classes: its jar, in place of the one for desktops.
        libraries: native libraries by their names in an APK.
    """

    classes: Path
    libraries: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Built:
    """A signed APK that passed its gates.

    Attributes:
        jar: what went into its dex.
        dex: it.
        lacking: why it holds no ONNX Runtime for phones; None where it does.
    """

    apk: Path
    jar: Path
    dex: Path
    expected: gates.Expected
    lacking: str | None


def build(abi: str = ABIS[0], *, aar: Path | None = None, require_runtime: bool = False) -> Built:
    """Build, sign and check the APK.

    Args:
        abi: the processor it is for.
        aar: the onnxruntime-android package; by default Maven fetches it.
        require_runtime: fail where that package cannot be had, instead of building an app that cannot predict.

    Raises:
        BuildError: a step failed, or a gate found something.
    """
    BUILD.mkdir(exist_ok=True)
    versions = read_versions()
    runtime, lacking = None, None
    try:
        runtime = read_runtime(aar or _fetch_runtime(versions["onnxruntime"]), abi, versions["onnxruntime"])
    except BuildError as error:
        if require_runtime or aar is not None:
            raise
        lacking = str(error).splitlines()[0]
    assets = make_assets()
    classpath, platform, tools = _compile()
    jar = _shrink(_with_runtime(classpath, runtime), platform, tools, BUILD / "classes.jar", "rules.pro")
    dex = _dex(jar, tools, versions["minSdk"])
    content = apk_file.contents(TARGET / "base.apk")
    content |= {f"assets/{path.name}": path.read_bytes() for path in assets}
    content |= {"classes.dex": dex.read_bytes()} | (runtime.libraries if runtime else {})
    apk = BUILD / f"edge-demo-{'no-runtime' if runtime is None else abi}.apk"
    sign(content, apk, min_sdk=int(versions["minSdk"]))
    expected = gates.Expected(
        APPLICATION, int(versions["minSdk"]), int(versions["targetSdk"]), (abi,) if runtime else ()
    )
    found = gates.problems(apk, expected)
    if found:
        raise BuildError(f"{apk.name} does not pass: " + "; ".join(found))
    return Built(apk, jar, dex, expected, lacking)


def build_whole_client(folder: Path) -> Path:
    """The dex of the last build once more, but with all of the client in it, for tests that call what the app does not.

    Raises:
        BuildError: a step failed, or nothing was built.
    """
    if not (TARGET / "classpath.txt").exists():
        raise BuildError("nothing was built yet", hint="python -m android_demo.tools.build_apk")
    classpath, platform, tools = _compiled()
    jar = _shrink(classpath, platform, tools, folder / "whole.jar", "rules.pro", "whole.pro")
    return _dex(jar, tools, read_versions()["minSdk"])


def read_versions() -> dict[str, str]:
    """The versions of gradle/libs.versions.toml."""
    data: dict[str, Any] = tomllib.loads(VERSIONS.read_text(encoding="utf-8"))
    return {name: str(version) for name, version in data["versions"].items()}


def read_runtime(aar: Path, abi: str, version: str) -> Runtime:
    """Take the classes and the native libraries for one processor out of an onnxruntime-android package.

    Args:
        version: that the app is compiled against.

    Raises:
        BuildError: it is no such package, has nothing for this processor, lacks a library, or is of another version.
    """
    folder = BUILD / "runtime"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(aar) as package:
            classes = folder / "onnxruntime-android.jar"
            classes.write_bytes(package.read("classes.jar"))
            libraries = {
                f"lib/{abi}/{Path(name).name}": package.read(name)
                for name in package.namelist()
                if name.startswith(f"jni/{abi}/") and name.endswith(".so")
            }
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise BuildError(
            f"{aar} is no Android package: {error}", hint="give onnxruntime-android-VERSION.aar"
        ) from error
    if not libraries:
        raise BuildError(f"{aar.name} has no libraries for {abi}", hint=f"choose one of {', '.join(ABIS)}")
    absent = [name for name in _LIBRARIES if f"lib/{abi}/{name}" not in libraries]
    if absent:
        raise BuildError(
            f"{aar.name} lacks {', '.join(absent)} for {abi}", hint=f"give onnxruntime-android-{version}.aar, whole"
        )
    # The name that the linker gives to what the library exports.
    found = re.search(rb"\0VERS_([0-9.]+)\0", libraries[f"lib/{abi}/{_LIBRARIES[0]}"])
    if found and found[1].decode() != version:
        raise BuildError(
            f"{aar.name} holds ONNX Runtime {found[1].decode()}, the app is compiled against {version}",
            hint=f"give onnxruntime-android-{version}.aar, or change the version in {VERSIONS.name} and pom.xml",
        )
    return Runtime(classes, libraries)


def make_assets() -> list[Path]:
    """The signed model that the app comes with, and its publisher's public key; made where missing or outdated."""
    keys, assets = BUILD / "signer", BUILD / "assets"
    model, public = assets / "digits.edge", assets / "signer.pub"
    assets.mkdir(exist_ok=True)
    if not (keys / "signer.key").exists():
        shutil.rmtree(keys, ignore_errors=True)
        run("signer", [sys.executable, "-m", "edge_sdk.cli", "signer", "init", "--out", keys])
        model.unlink(missing_ok=True)
    newest = max((REPOSITORY / name).stat().st_mtime for name in _MODEL_SOURCES)
    if not model.exists() or model.stat().st_mtime < newest:
        export = [sys.executable, "-m", "edge_sdk.cli", "export", "android_demo.tools.starting_model:build"]
        run("model", [*export, "--out", model, "--signer", keys / "signer.key"])
    shutil.copyfile(keys / "signer.pub", public)
    return [model, public]


def sign(content: dict[str, bytes], apk: Path, *, min_sdk: int) -> None:
    """Write an APK and sign it in schemes v2 and v3 with the debug key.

    Raises:
        BuildError: it cannot be signed.
    """
    store = BUILD / "debug.p12"
    if not store.exists():
        name = ["-dname", "CN=edge-sdk debug", "-keyalg", "EC", "-groupname", "secp256r1", "-validity", "10000"]
        secret = ["-storepass", _PASSWORD, "-storetype", "PKCS12", "-alias", "debug"]
        run("debug key", ["keytool", "-genkeypair", "-keystore", store, *secret, *name])
    unsigned = apk.with_suffix(".unsigned")
    apk_file.write_apk(unsigned, content)
    # v4 is a file of its own, for incremental installation only; v1 is for Android 6 and older.
    schemes: list[str] = ["--v1-signing-enabled=false", "--v2-signing-enabled=true", "--v3-signing-enabled=true"]
    key: list[str | Path] = ["--ks", store, "--ks-pass", f"pass:{_PASSWORD}", "--ks-key-alias", "debug"]
    limits = ["--min-sdk-version", str(min_sdk), "--v4-signing-enabled=false"]
    run("sign", ["apksigner", "sign", *key, *limits, *schemes, "--out", apk, unsigned])
    unsigned.unlink()


def _fetch_runtime(version: str) -> Path:
    folder = BUILD / "aar"
    aar = folder / f"onnxruntime-android-{version}.aar"
    if not aar.exists():
        artifact = f"com.microsoft.onnxruntime:onnxruntime-android:{version}:aar"
        try:
            goal = "org.apache.maven.plugins:maven-dependency-plugin:copy"
            where = [f"-Dartifact={artifact}", f"-DoutputDirectory={folder}"]
            run("runtime", [*_maven("--non-recursive"), goal, *where])
        except BuildError as error:
            raise BuildError(
                f"Maven cannot fetch {artifact}", hint="download it by hand and pass it with --aar FILE"
            ) from error
    return aar


def _compile() -> tuple[list[Path], Path, str]:
    """Compile all modules; gives what runs on the phone, the platform's jar and the classpath of the build's tools."""
    for module in ("app", "edge-android", "edge-client"):
        # Of a source that is gone the compiler leaves the classes.
        shutil.rmtree(DEMO / module / "target" / "classes", ignore_errors=True)
    run("compile", [*_maven("--also-make", "--projects", "app,tools"), "-DskipTests", "process-classes"])
    return _compiled()


def _compiled() -> tuple[list[Path], Path, str]:
    classpath = [Path(name) for name in (TARGET / "classpath.txt").read_text().split(os.pathsep)]
    platform = Path((TARGET / "platform.txt").read_text().strip())
    return [TARGET / "classes", *classpath], platform, (DEMO / "tools/target/classpath.txt").read_text().strip()


def _with_runtime(classpath: Sequence[Path], runtime: Runtime | None) -> list[Path]:
    if runtime is None:
        return list(classpath)
    others = [path for path in classpath if not path.name.startswith("onnxruntime-")]
    return [*others, runtime.classes]


def _shrink(classpath: Sequence[Path], platform: Path, tools: str, out: Path, *files: str) -> Path:
    out.unlink(missing_ok=True)
    home = Path(run("java", ["java", "-XshowSettings:properties", "-version"]).split("java.home = ")[1].splitlines()[0])
    modules = [home / "jmods" / f"{name}.jmod" for name in ("java.base", "java.logging")]
    missing = [str(path) for path in modules if not path.exists()]
    if missing:
        raise BuildError(f"{home} is no JDK: {', '.join(missing)} is missing", hint="install a JDK, 17 or newer")
    rules = [f"-injars '{path}'(!META-INF/**,**.class)" for path in classpath]
    rules += [f"-libraryjars '{path}'(!**.jar;!module-info.class)" for path in modules]
    rules += [f"-libraryjars '{platform}'(android/**.class,dalvik/**.class,org/json/**.class)", f"-outjars '{out}'"]
    rules += [f"-include '{DEMO / 'tools' / file}'" for file in files]
    config = out.with_suffix(".pro")
    config.write_text("\n".join([*rules, ""]), encoding="utf-8")
    run("shrink", ["java", "-Xmx1500m", "-cp", tools, "proguard.ProGuard", f"@{config}"])
    return out


def _dex(jar: Path, tools: str, min_sdk: str) -> Path:
    dex = jar.with_suffix(".dex")
    dex.unlink(missing_ok=True)
    dexer = ["java", "-Xmx1500m", "-cp", tools, "com.android.dx.command.Main"]
    run("dex", [*dexer, "--dex", f"--min-sdk-version={min_sdk}", f"--output={dex}", jar])
    return dex


def _maven(*arguments: str) -> list[str]:
    return ["mvn", "--quiet", "--batch-mode", "-f", str(DEMO / "pom.xml"), *arguments]


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, and say what was built and how much of its budgets it takes."""
    parser = argparse.ArgumentParser(prog="build_apk", description="Build the demo app into a signed APK.")
    parser.add_argument("--abi", choices=ABIS, default=ABIS[0], help="the processor it is for (default: %(default)s)")
    parser.add_argument("--aar", type=Path, metavar="FILE", help="onnxruntime-android; by default Maven fetches it")
    parser.add_argument("--require-runtime", action="store_true", help="fail where onnxruntime-android cannot be had")
    options = parser.parse_args(arguments)
    try:
        built = build(options.abi, aar=options.aar, require_runtime=options.require_runtime)
    except BuildError as error:
        print(f"build_apk: error: {error}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return 1
    print(built.apk)
    print(f"  {built.apk.stat().st_size:,} bytes, signed in schemes v2 and v3 with a debug key")
    for budget in gates.budgets(built.apk):
        print(f"  {budget}")
    if built.lacking is not None:
        print(f"build_apk: warning: this APK draws and stores, but cannot predict or train: {built.lacking}")
        print("  hint: pass the package with --aar FILE; --require-runtime makes this an error")
    return 0


if __name__ == "__main__":
    sys.exit(main())
