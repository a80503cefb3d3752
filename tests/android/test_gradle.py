"""Gradle is for Android Studio and is not run here; Maven is. These tests hold the two to each other."""

from __future__ import annotations

import re
import tomllib
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from android_demo.tools.build_apk import APPLICATION, DEMO, VERSIONS

MAVEN = "{http://maven.apache.org/POM/4.0.0}"
ANDROID = "{http://schemas.android.com/apk/res/android}"
MODULES = ("edge-client", "edge-android", "app")

# What Maven calls them.
PROPERTIES = {
    "minSdk": "android.min.sdk",
    "targetSdk": "android.target.sdk",
    "kotlin": "kotlin.version",
    "coroutines": "coroutines.version",
    "bouncycastle": "bouncycastle.version",
    "flatbuffers": "flatbuffers.version",
    "onnxruntime": "onnxruntime.version",
    "junit": "junit.version",
    "robolectric": "robolectric.version",
}


@pytest.fixture
def catalog() -> dict[str, Any]:
    """gradle/libs.versions.toml."""
    return tomllib.loads(VERSIONS.read_text(encoding="utf-8"))


def pom(*module: str) -> ET.Element:
    return ET.parse(DEMO.joinpath(*module, "pom.xml")).getroot()  # noqa: S314 - our own file


def gradle(*module: str) -> str:
    return DEMO.joinpath(*module, "build.gradle.kts").read_text(encoding="utf-8")


def text(element: ET.Element, path: str) -> str:
    return element.findtext("/".join(MAVEN + name for name in path.split("/")), "")


def test_maven_builds_with_the_versions_of_the_catalog(catalog: dict[str, Any]) -> None:
    properties = {child.tag.removeprefix(MAVEN): child.text for child in pom().find(f"{MAVEN}properties") or []}
    assert {name: properties[maven] for name, maven in PROPERTIES.items()} == {
        name: catalog["versions"][name] for name in PROPERTIES
    }


def test_libraries_are_the_same_artifacts(catalog: dict[str, Any]) -> None:
    managed = {
        f"{text(found, 'groupId')}:{text(found, 'artifactId')}": text(found, "version")
        for found in pom().iter(f"{MAVEN}dependency")
    }
    for name, library in catalog["libraries"].items():
        if name == "onnxruntime-android":
            # tools/build_apk.py takes it, by the version of onnxruntime.
            assert library["version"]["ref"] == "onnxruntime"
            continue
        assert managed[library["module"]] == "${" + PROPERTIES[library["version"]["ref"]] + "}"


def test_modules_are_the_same() -> None:
    maven = [found.text for found in pom().iter(f"{MAVEN}module")]
    included = re.findall(r'":([a-z-]+)"', (DEMO / "settings.gradle.kts").read_text(encoding="utf-8"))
    # tools compiles nothing; Gradle has the real classes that robolectric-shim stands for.
    assert [name for name in maven if name not in {"tools", "robolectric-shim"}] == included == list(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_source_folders_are_the_same_and_there(module: str) -> None:
    maven = {found.text or "" for found in pom(module).iter(f"{MAVEN}sourceDir")}
    # R.java is made by aapt2 here, and by the Android plugin there.
    maven.discard("${project.build.directory}/r")
    given = set(re.findall(r'(?:kotlin|java)\.srcDir\("([^"]+)"\)', gradle(module)))
    assert given == maven
    assert all((DEMO / module / folder).is_dir() for folder in given)


@pytest.mark.parametrize("module", MODULES)
def test_dependencies_between_modules_are_the_same(module: str) -> None:
    maven = {text(found, "artifactId") for found in pom(module).iter(f"{MAVEN}dependency")} & set(MODULES)
    assert set(re.findall(r'project\(":([a-z-]+)"\)', gradle(module))) == maven


@pytest.mark.parametrize("module", MODULES)
def test_gradle_names_only_what_the_catalog_has(module: str, catalog: dict[str, Any]) -> None:
    libraries = {f"libs.{name.replace('-', '.')}" for name in catalog["libraries"]}
    versions = {f"libs.versions.{name}" for name in catalog["versions"]}
    plugins = {f"libs.plugins.{name.replace('-', '.')}" for name in catalog["plugins"]}
    used = set(re.findall(r"\b(libs(?:\.\w+)+?)(?:\.get\(\))?(?=[).\s])(?!\.\w)", gradle(module)))
    assert used
    assert used <= libraries | versions | plugins


def test_the_manifest_leaves_versions_to_the_build_and_names_what_gradle_names() -> None:
    manifest = ET.parse(DEMO / "app/src/main/AndroidManifest.xml").getroot()  # noqa: S314 - our own file
    assert manifest.find("uses-sdk") is None
    script = gradle("app")
    assert f'namespace = "{APPLICATION}"' in script
    assert f'applicationId = "{APPLICATION}"' in script
    assert manifest.get("package") == APPLICATION
    assert f"versionCode = {manifest.get(ANDROID + 'versionCode')}" in script
    assert f'versionName = "{manifest.get(ANDROID + "versionName")}"' in script
    for name in ("minSdk", "targetSdk"):
        assert f"{name} = libs.versions.{name}.get().toInt()" in script


def test_the_app_keeps_nothing_in_backups_and_shows_nothing_unencrypted() -> None:
    manifest = ET.parse(DEMO / "app/src/main/AndroidManifest.xml").getroot()  # noqa: S314 - our own file
    application = manifest.find("application")
    assert application is not None
    assert application.get(ANDROID + "allowBackup") == "false"
    assert application.get(ANDROID + "usesCleartextTraffic") == "false"
    [service] = application.findall("service")
    assert service.get(ANDROID + "permission") == "android.permission.BIND_JOB_SERVICE"
