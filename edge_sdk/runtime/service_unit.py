"""The systemd unit that keeps a device running: its text, where it belongs, and putting it there.

A unit of the system runs as a user of its own with the file system read-only around it; a unit of a person runs with
that person's rights. Both are held to a share of a core and of memory, give way to everything else, and are started
again when they fail.
"""

from __future__ import annotations

import importlib.resources
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_sdk.errors import ConfigError, StoreError

UNIT: Final = "edge-device.service"
SYSTEM_FOLDER: Final = Path("/etc/systemd/system")


@dataclass(frozen=True, slots=True)
class ServiceUnit:
    """What is to run, and within which bounds.

    Attributes:
        command: the program with its arguments, absolute.
        home: the device's folder, which it may write.
        user: whom a unit of the system runs as; empty for a unit of the calling person.
        memory_max: as systemd takes it, such as "512M".
        cpu_quota: share of one core, such as "50%".
    """

    command: Sequence[str]
    home: Path
    user: str = ""
    memory_max: str = "512M"
    cpu_quota: str = "50%"

    def text(self) -> str:
        """The unit file.

        Raises:
            ConfigError: something in it cannot stand in a unit file.
        """
        name = "system" if self.user else "user"
        template = importlib.resources.files("edge_sdk.runtime").joinpath(f"edge-device.{name}.service")
        values = {
            "COMMAND": " ".join(map(_quoted, self.command)),
            "HOME": _quoted(str(self.home)),
            "USER": self.user,
            "MEMORY_MAX": self.memory_max,
            "CPU_QUOTA": self.cpu_quota,
        }
        text = template.read_text(encoding="utf-8")
        for key, value in values.items():
            if "\n" in value or "\0" in value:
                raise ConfigError(f"{value!r} cannot stand in a systemd unit", hint="use names without line breaks")
            text = text.replace(f"@{key}@", value)
        return text

    @property
    def path(self) -> Path:
        """Where systemd looks for it."""
        if self.user:
            return SYSTEM_FOLDER / UNIT
        config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
        return Path(config) / "systemd" / "user" / UNIT

    @property
    def enable(self) -> str:
        """The command that starts it, now and at every boot."""
        return f"sudo systemctl enable --now {UNIT}" if self.user else f"systemctl --user enable --now {UNIT}"


def install(unit: ServiceUnit, path: Path) -> bool:
    """Write the unit, and let systemd read it if it runs here; returns whether it did.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(unit.text(), encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}",
            hint="run it with sudo" if unit.user else "check the folder's permissions",
        ) from error
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return False
    scope = [] if unit.user else ["--user"]
    done = subprocess.run([systemctl, *scope, "daemon-reload"], capture_output=True, check=False)
    return done.returncode == 0


def _quoted(word: str) -> str:
    """One word of a unit's command line: systemd's own quoting, with its specifiers and variables taken literally."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if not word or set(word) & set(" \t'\";\\") else escaped
