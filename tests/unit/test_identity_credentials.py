"""Identity folders: what is written, and what is said of a folder that is wrong."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest

from coordinator.registrar.authority import DAY_S, Authority, create_authority, issue_identity
from edge_sdk.credentials import (
    CA_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    NewFile,
    certificate_file,
    load_ca,
    load_certificate,
    load_identity,
    load_private_key,
    load_public_key,
    save_identity,
    write_folder,
)
from edge_sdk.errors import IdentityError
from edge_sdk.identity import Identity, certificate_id, verify_certificate
from edge_sdk.signing import public_key_to_pem


@pytest.fixture
def identity(authority: Authority, now: float) -> Identity:
    return issue_identity(authority, identity_id="dev-1", role="device", now=now)


@pytest.fixture
def folder(tmp_path: Path, identity: Identity) -> Path:
    save_identity(tmp_path / "identities" / "dev-1", identity)
    return tmp_path / "identities" / "dev-1"


def test_a_saved_identity_is_loaded(folder: Path, identity: Identity, now: float) -> None:
    loaded = load_identity(folder, role="device", now=now)

    assert (loaded.id, loaded.role, loaded.not_after) == ("dev-1", "device", identity.not_after)
    assert loaded.certificate_der == identity.certificate_der
    assert loaded.ca == identity.ca
    assert loaded.sign(b"message") == identity.sign(b"message")
    assert verify_certificate(loaded.certificate_der, identity.ca, "device", now).id == "dev-1"


def test_only_the_owner_can_read_the_key(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600
    assert [path.name for path in folder.parent.iterdir()] == ["dev-1"], "no half-made folder is left behind"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_key_open_to_others_is_refused(folder: Path, now: float, mode: int) -> None:
    (folder / KEY_FILE).chmod(mode)
    with pytest.raises(IdentityError, match=f"can be used by others \\(mode 0{mode:o}\\)") as caught:
        load_identity(folder, role="device", now=now)
    assert f"chmod 600 {folder / KEY_FILE}" in caught.value.hint


@pytest.mark.parametrize("name", [KEY_FILE, CERTIFICATE_FILE, CA_FILE])
def test_a_missing_file_is_named(folder: Path, now: float, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(IdentityError, match=f"{name} is missing"):
        load_identity(folder, role="device", now=now)


@pytest.mark.parametrize("name", [KEY_FILE, CERTIFICATE_FILE, CA_FILE])
@pytest.mark.parametrize("content", [b"", b"nonsense", bytes(70_000)], ids=["empty", "nonsense", "large"])
def test_a_damaged_file_is_named(folder: Path, now: float, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(IdentityError, match=name):
        load_identity(folder, role="device", now=now)


def test_a_certificate_with_any_byte_wrong_is_read_or_refused(folder: Path, identity: Identity) -> None:
    path, whole = folder / CERTIFICATE_FILE, identity.certificate_der
    refused = 0
    for at in range(len(whole)):
        damaged = whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :]
        path.write_bytes(ssl.DER_cert_to_PEM_cert(damaged).encode())
        try:
            certificate = load_certificate(path)
            certificate_id(certificate)
            assert certificate.not_valid_before_utc != certificate.not_valid_after_utc
        except IdentityError:
            refused += 1
    assert 0 < refused < len(whole), "some bytes are the signature's, which nobody reads here"


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="cannot read"):
        load_certificate(tmp_path)


def test_problems_of_the_identity_name_the_folder(folder: Path, now: float) -> None:
    problems = {
        f"identity in {folder}: .*expired": ("device", now + 91 * DAY_S),
        f"identity in {folder}: .*not valid before": ("device", now - 2 * DAY_S),
        f"identity in {folder}: .*for the role device, not broker": ("broker", now),
    }
    for problem, (role, when) in problems.items():
        with pytest.raises(IdentityError, match=problem) as caught:
            load_identity(folder, role="broker" if role == "broker" else "device", now=when)
        assert caught.value.hint


def test_files_of_two_identities_do_not_go_together(
    folder: Path, tmp_path: Path, authority: Authority, now: float
) -> None:
    save_identity(tmp_path / "dev-2", issue_identity(authority, identity_id="dev-2", role="device", now=now))
    (tmp_path / "dev-2" / KEY_FILE).replace(folder / KEY_FILE)
    with pytest.raises(IdentityError, match="private key does not belong to the certificate of 'dev-1'"):
        load_identity(folder, role="device", now=now)


def test_the_pinned_registrar_decides(folder: Path, now: float) -> None:
    stranger = create_authority("a stranger", now=now).certificate
    (folder / CA_FILE).write_bytes(certificate_file(CA_FILE, stranger).content)
    with pytest.raises(IdentityError, match="not by the registrar 'CN=a stranger'"):
        load_identity(folder, role="device", now=now)


def test_a_leaf_cannot_be_pinned(folder: Path) -> None:
    with pytest.raises(IdentityError, match="not a registrar's certificate") as caught:
        load_ca(folder / CERTIFICATE_FILE)
    assert "edge registrar init" in caught.value.hint


def test_a_public_key_is_loaded(tmp_path: Path, identity: Identity) -> None:
    path = tmp_path / "signer.pub"
    path.write_bytes(public_key_to_pem(identity.private_key.public_key()))
    assert load_public_key(path) == identity.private_key.public_key()


def test_a_folder_is_never_overwritten(folder: Path, identity: Identity) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(IdentityError, match=f"{folder} exists already"):
        save_identity(folder, identity)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["dev-1"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    write_folder(tmp_path / "new", [NewFile("a", b"1", secret=True)])
    assert (tmp_path / "new" / "a").read_bytes() == b"1"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(IdentityError, match="cannot write"):
        write_folder(tmp_path / "file" / "folder", [])


def test_secrets_are_not_shown(folder: Path) -> None:
    assert repr(NewFile("a", b"secret", secret=True)) == "NewFile(name='a', secret=True)"
    assert "PRIVATE" not in repr(load_private_key(folder / KEY_FILE))
