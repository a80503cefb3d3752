"""What an APK must fulfil before anybody may have it. Each gate gives what is wrong, in words; none means it passed."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from android_demo.tools import apk_file
from android_demo.tools.commands import BuildError, run

PERMISSIONS = frozenset(
    {
        "android.permission.INTERNET",
        "android.permission.ACCESS_NETWORK_STATE",
        "android.permission.RECEIVE_BOOT_COMPLETED",
    }
)
"""All that the app may ask for. A library cannot add another one unseen."""

DEX_BYTES_MOST = 1_048_576
DEX_METHODS_MOST = 10_000
"""Of the whole client, coroutines and ONNX Runtime's classes; a dex file holds 65,536 methods at most."""

DOWNLOAD_BYTES_MOST = 12_000_000
"""Of an APK with the runtime for one processor."""

_PERMISSION = re.compile(r"uses-permission(?:-sdk-\d+)?: name='([^']+)'")


@dataclass(frozen=True, slots=True)
class Expected:
    """What the build set out to make: as in gradle/libs.versions.toml."""

    application: str
    min_sdk: int
    target_sdk: int
    abis: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Budget:
    """One number that is held."""

    what: str
    value: int
    most: int

    def __str__(self) -> str:
        return f"{self.what}: {self.value:,} of at most {self.most:,} ({self.value / self.most:.0%})"


def problems(apk: Path, expected: Expected) -> list[str]:
    """Everything that is wrong with a signed APK.

    Raises:
        BuildError: a tool is missing, or the file is no APK.
    """
    return [
        *signature_problems(apk, expected.min_sdk),
        *badging_problems(run("badging", ["aapt", "dump", "badging", apk]), expected),
        *alignment_problems(apk),
        *dex_problems(apk_file.read(apk, "classes.dex")),
        *[f"over budget: {budget}" for budget in budgets(apk) if budget.value > budget.most],
    ]


def budgets(apk: Path) -> list[Budget]:
    """Sizes that a person pays for, and the format's limits."""
    dex = apk_file.read(apk, "classes.dex")
    return [
        Budget("dex, bytes", len(dex), DEX_BYTES_MOST),
        Budget("dex, methods", apk_file.dex_methods(dex), DEX_METHODS_MOST),
        Budget("download, bytes", apk_file.compressed_bytes(apk), DOWNLOAD_BYTES_MOST),
    ]


def signature_problems(apk: Path, min_sdk: int) -> list[str]:
    """Signed in both schemes that Android 8 and newer check, whole and unchanged."""
    try:
        said = run("signature", ["apksigner", "verify", "--verbose", "--min-sdk-version", str(min_sdk), apk])
    except BuildError as error:
        return [f"the signature does not verify: {error}"]
    return [
        f"not signed in scheme {scheme}"
        for scheme in ("v2", "v3")
        if not re.search(rf"^Verified using {scheme} scheme.*: true$", said, re.MULTILINE)
    ]


def badging_problems(badging: str, expected: Expected) -> list[str]:
    """The manifest, as `aapt dump badging` reads it."""
    wanted = {
        f"application {expected.application}": f"package: name='{expected.application}'",
        f"minSdk {expected.min_sdk}": f"sdkVersion:'{expected.min_sdk}'",
        f"targetSdk {expected.target_sdk}": f"targetSdkVersion:'{expected.target_sdk}'",
        "an activity to launch": "launchable-activity:",
    }
    found = [f"the manifest lacks {what}" for what, text in wanted.items() if text not in badging]
    asked = set(_PERMISSION.findall(badging))
    found += [f"the permission {name} is not on the list" for name in sorted(asked - PERMISSIONS)]
    found += [f"the permission {name} is missing" for name in sorted(PERMISSIONS - asked)]
    native = re.search(r"^native-code: (.*)$", badging, re.MULTILINE)
    abis = set(re.findall(r"'([^']+)'", native.group(1))) if native else set()
    if abis != set(expected.abis):
        found.append(f"native code for {sorted(abis)}, not for {sorted(expected.abis)}")
    if "application-debuggable" in badging:
        found.append("the app is debuggable")
    return found


def alignment_problems(apk: Path) -> list[str]:
    """What Android maps is stored, begins on its boundary, and libraries were linked for pages of 16 KiB."""
    found = []
    for entry in apk_file.entries(apk):
        if not apk_file.is_mapped(entry.name):
            continue
        alignment = apk_file.alignment_of(entry.name)
        if not entry.stored:
            found.append(f"{entry.name} is compressed")
        if entry.offset % alignment:
            found.append(f"{entry.name} begins at {entry.offset}, which is no multiple of {alignment}")
        if entry.name.endswith(".so"):
            page = apk_file.page_bytes_of_library(apk_file.read(apk, entry.name))
            if page < apk_file.PAGE_BYTES:
                found.append(f"{entry.name} was linked for pages of {page} bytes, not {apk_file.PAGE_BYTES}")
    return found


def dex_problems(dex: bytes) -> list[str]:
    """No call that Android 8 cannot link."""
    with tempfile.NamedTemporaryFile(suffix=".dex") as file:
        file.write(dex)
        file.flush()
        listing = run("dexdump", ["dexdump", "-d", file.name])
    # Lambdas that were not rewritten; the platform has no LambdaMetafactory.
    customs = len(re.findall(r"\binvoke-custom\b", listing))
    if "|[" not in listing:
        return ["dexdump listed no code"]
    return [f"{customs} invoke-custom instructions, which Android cannot link"] if customs else []
