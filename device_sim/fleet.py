"""A fleet's folders on one machine: registrar, signer, coordinator and devices, each with what it owns in the field.

work/registrar    the certificate authority
work/signer       the model-signing key
work/coordinator  the coordinator's work folder
work/devices/ID   a device's folder: identity, signer.pub, example store
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coordinator.registrar.authority import DEFAULT_LIFETIME_DAYS, Authority
from coordinator.registrar.folder import init_folder, issue_logged, open_folder
from edge_sdk.credentials import NewFile, private_key_file, save_identity, write_folder
from edge_sdk.errors import ConfigError
from edge_sdk.identity import Identity, Role, make_identity
from edge_sdk.runtime.home import IDENTITY_FOLDER, SIGNER_FILE, examples_file
from edge_sdk.runtime.home_lock import LOCK_FILE, only_process_in
from edge_sdk.signing import new_private_key, public_key_to_pem
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.trainer import Rows

EXAMPLES = "digits"
"""What a device's examples are called, and the population that the demo trains with them."""


@dataclass(frozen=True, slots=True)
class FleetFolders:
    """Where everything is.

    Args:
        work: the folder of it all.
    """

    work: Path

    @property
    def registrar(self) -> Path:
        return self.work / "registrar"

    @property
    def signer_key(self) -> Path:
        return self.work / "signer" / "signer.key"

    @property
    def signer_public(self) -> Path:
        return self.work / "signer" / "signer.pub"

    @property
    def coordinator(self) -> Path:
        return self.work / "coordinator"

    @property
    def evaluation(self) -> Path:
        return self.work / "coordinator" / "test.npz"

    @property
    def bundle(self) -> Path:
        return self.work / "digits.edge"

    @property
    def logs(self) -> Path:
        return self.work / "logs"

    def device(self, device_id: str) -> Path:
        return self.work / "devices" / device_id


def device_ids(count: int) -> tuple[str, ...]:
    """device-0000, device-0001, ..."""
    return tuple(f"device-{number:04d}" for number in range(count))


def make_authorities(folders: FleetFolders, now: float) -> None:
    """Make the registrar, the model signer and the coordinator's identity, as three separate parties.

    Raises:
        IdentityError: a folder cannot be written or is not empty.
    """
    authority = init_folder(folders.registrar, name="Demo Registrar", now=now)
    key = new_private_key()
    public = NewFile("signer.pub", public_key_to_pem(key.public_key()), secret=False)
    write_folder(folders.signer_key.parent, [private_key_file("signer.key", key), public])
    folders.coordinator.mkdir(parents=True, exist_ok=True)
    save_identity(folders.coordinator / IDENTITY_FOLDER, _issue(folders, authority, "coordinator", "coordinator", now))


def make_devices(folders: FleetFolders, shards: Mapping[str, Rows], now: float) -> None:
    """Make each device's folder: its own key and certificate, the pinned signer, and its examples.

    Raises:
        IdentityError, StoreError: a folder cannot be written.
    """
    authority = open_folder(folders.registrar)
    signer = folders.signer_public.read_bytes()

    def make(identity: Identity, shard: Rows) -> None:
        home = folders.device(identity.id)
        home.mkdir(parents=True, exist_ok=True)
        save_identity(home / IDENTITY_FOLDER, identity)
        (home / SIGNER_FILE).write_bytes(signer)
        with ExampleStore.create_for(examples_file(home, EXAMPLES), shard) as store:
            store.add_many(shard)

    # Nearly all of it is waiting for the disk, which serves many as fast as one.
    pool = ThreadPoolExecutor(16)
    try:
        made = [
            pool.submit(make, _issue(folders, authority, device_id, "device", now), shard)
            for device_id, shard in shards.items()
        ]
        for future in made:
            future.result()
    finally:
        # Whoever interrupts this does not want the rest of them made.
        pool.shutdown(cancel_futures=True)


def _issue(folders: FleetFolders, authority: Authority, identity_id: str, role: Role, now: float) -> Identity:
    key = new_private_key()
    certificate = issue_logged(
        folders.registrar,
        authority,
        key.public_key(),
        identity_id=identity_id,
        role=role,
        now=now,
        lifetime_days=DEFAULT_LIFETIME_DAYS,
    )
    return make_identity(key, certificate, authority.certificate, role=role, now=now)


def split_over(items: Sequence[str], parts: int) -> Iterator[tuple[str, ...]]:
    """Deal items out to `parts` processes, as evenly as can be."""
    for part in range(parts):
        yield tuple(items[part::parts])


@contextmanager
def fresh_work_folder(work: Path, marker: str, text: str) -> Iterator[None]:
    """Make a work folder, or empty this program's own, and hold it in a `with` block.

    Args:
        work: the folder.
        marker: a file that only this program writes there.
        text: its content.

    Raises:
        ConfigError: the folder holds other things, is in use, or cannot be written.
    """
    try:
        if work.exists() and not (work / marker).is_file() and any(work.iterdir()):
            raise ConfigError(
                f"{work} is not empty and not a work folder of this command", hint="name another with --work"
            )
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(work, error) from error
    with only_process_in(work):
        try:
            # The marker first and never gone: a folder that was emptied by half is still known as ours.
            write_whole(work / marker, text)
            for entry in work.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name not in (marker, LOCK_FILE):
                    entry.unlink()
        except OSError as error:
            raise unusable(work, error) from error
        yield


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is either as before or whole, whenever the process may be killed."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def unusable(work: Path, error: OSError) -> ConfigError:
    """What to tell somebody whose work folder cannot be used."""
    return ConfigError(
        f"cannot use {work} as a work folder: {error.strerror or error}",
        hint="name one that this user may write with --work, on a disk with some space",
    )
