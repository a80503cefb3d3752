"""What a device's folder holds, by name. Opens nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edge_sdk.errors import ConfigError
from edge_sdk.protocol.topics import is_id

IDENTITY_FOLDER: Final = "identity"
SIGNER_FILE: Final = "signer.pub"
DEVICE_FILE: Final = "device.sqlite"
EXAMPLES_FOLDER: Final = "examples"
MODELS_FOLDER: Final = "models"
PERSONAL_FOLDER: Final = "personal"
BLOBS_FOLDER: Final = "blobs"


def examples_file(home: Path, name: str) -> Path:
    """Where a device keeps the examples of that name."""
    return home / EXAMPLES_FOLDER / f"{name}.sqlite"


def examples_files(home: Path) -> list[Path]:
    """All example stores of a device."""
    return sorted((home / EXAMPLES_FOLDER).glob("*.sqlite"))


def models_folder(home: Path, population: str) -> Path:
    """Where the models of a population are installed."""
    return home / MODELS_FOLDER / population


def personal_folder(home: Path, population: str) -> Path:
    """Where a device's own variant of a population's model is kept."""
    return home / PERSONAL_FOLDER / population


def require_name(name: str, what: str) -> None:
    """Refuse a name that cannot stand in a topic and in a path.

    Raises:
        ConfigError: it cannot.
    """
    if not is_id(name):
        raise ConfigError(
            f"{name[:80]!r} cannot name {what}",
            hint="use 1 to 63 of the characters a-z, 0-9 and '-', beginning with a letter or a digit",
        )
