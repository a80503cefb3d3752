"""What `pip install edge-sdk` must do without any extra: its dependencies are few, and a device runs on them alone."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from device_sim.fleet import FleetFolders, device_ids
from edge_sdk.cli import main

ALLOWED = {
    "cffi",
    "cryptography",
    "edge-sdk",
    "flatbuffers",
    "numpy",
    "onnxruntime",
    "packaging",
    "paho-mqtt",
    "protobuf",
    "pycparser",
    "typing-extensions",  # of cryptography, on older Pythons
    # onnxruntime's until 1.22
    "coloredlogs",
    "humanfriendly",
    "mpmath",
    "sympy",
}

# Refuses to import whatever a base install has not.
ALONE = """
import importlib.abc, runpy, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is no part of a base install")
sys.meta_path.insert(0, Refuse())
"""


def closure() -> set[str]:
    """The distributions that `pip install edge-sdk` brings here."""
    found: set[str] = set()
    todo = ["edge-sdk"]
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for line in metadata.distribution(name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                todo.append(needed.name)
    return found


def blocked() -> set[str]:
    """The top-level modules of everything else that is installed here."""
    wanted = closure()
    owners = metadata.packages_distributions()
    names = {re.sub(r"[-_.]+", "-", name).lower() for names in owners.values() for name in names}
    assert "torch" in names, "this test proves something only where more is installed"
    return {
        module
        for module, distributions in owners.items()
        if not any(re.sub(r"[-_.]+", "-", name).lower() in wanted for name in distributions)
    }


def alone(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `edge` as on a machine with a base install."""
    program = f"BLOCKED = {sorted(blocked())!r}\n{ALONE}\nsys.argv = ['edge', *sys.argv[1:]]\n"
    program += "from edge_sdk.cli import main\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_a_device_needs_a_handful_of_packages_and_no_torch() -> None:
    found = closure()
    assert found <= ALLOWED
    assert "torch" in blocked()
    assert "sqlalchemy" in blocked()


def test_a_device_runs_on_a_base_install_alone(tmp_path: Path) -> None:
    folders = FleetFolders(tmp_path / "hand")
    assert main(["sim", "prepare", "--devices", "2", "--work", str(folders.work)]) == 0
    assert main(["export", "--signer", str(folders.signer_key), "--out", str(folders.bundle)]) == 0
    home = folders.device(device_ids(1)[0])
    for command, said in [
        (("device", "doctor", "--home", home), "nothing keeps the device from taking part"),
        (("device", "status", "--home", home), "nothing left it"),
        (("device", "service", "--home", home, "--", "--broker", "mqtts://h", "--population", "p"), "ExecStart="),
        (("verify", folders.bundle, "--signer", folders.signer_public), ""),
        (("bench", folders.bundle, "--signer", folders.signer_public), ""),
        (("--help",), "device"),
    ]:
        done = alone(*command)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert said in done.stdout
    refused = alone("coordinator", "serve", "--home", home)
    assert refused.returncode != 0


@pytest.mark.parametrize("unit", ["edge-device.system.service", "edge-device.user.service"])
def test_the_package_holds_what_the_service_is_made_of(unit: str) -> None:
    import edge_sdk.runtime

    assert Path(str(edge_sdk.runtime.__file__)).with_name(unit).is_file()
