"""The bundle file (.edge): one signed container of graphs, checkpoint, parity vector and manifest.

    offset  size  content
    0       8     b"EDGEBNDL"
    8       2     format version, little-endian, 1
    10      2     zero
    12      4     manifest length in bytes, little-endian, at most 1 MiB
    16      32    signer key id: SHA-256 of the signer's public key (SubjectPublicKeyInfo, DER)
    48      64    raw ECDSA P-256 SHA-256 signature r||s over bytes[0:48] || manifest
    112           manifest, canonical JSON
    then          parts, each on a 64-byte boundary; zero bytes fill the gaps, and nothing follows the last

Reading authenticates, then checks sizes and hashes, then parses. Every byte is covered: by the signature, by
a part's SHA-256, or by the rule that gaps are zero. Knows nothing of ONNX or of training.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from edge_sdk.errors import ArtifactError
from edge_sdk.signing import SIGNATURE_BYTES, key_id, verify_raw
from edge_sdk.training.layout import Layout, Vector
from edge_sdk.training.manifest import (
    CHECKPOINT_PART,
    FROZEN_PART,
    Manifest,
    PartSpec,
    decode_manifest,
    encode_manifest,
)

MAGIC = b"EDGEBNDL"
FORMAT_VERSION = 1
MANIFEST_LIMIT_BYTES = 1 << 20
BUNDLE_LIMIT_BYTES = 1 << 30

_HEADER = struct.Struct("<8sHHI32s")
_PREFIX_BYTES = _HEADER.size + SIGNATURE_BYTES
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """A bundle that has been read: its manifest, its bytes, and whether its signature was checked.

    Two artifacts are the same if their `sha256` is.
    """

    manifest: Manifest
    content: bytes = field(repr=False)
    sha256: bytes
    signer_key_id: bytes
    verified: bool

    @property
    def layout(self) -> Layout:
        """The order of the trainable parameters."""
        return self.manifest.layout

    @property
    def size_bytes(self) -> int:
        """Size of the whole bundle."""
        return len(self.content)

    def part(self, name: str) -> bytes:
        """Copy a part's bytes out of the bundle.

        Raises:
            ArtifactError: there is no such part.
        """
        spec = self.manifest.part(name)
        manifest_length = int.from_bytes(self.content[12:16], "little")
        start = _align(_PREFIX_BYTES + manifest_length) + spec.offset
        return self.content[start : start + spec.size_bytes]

    def checkpoint(self) -> Vector:
        """The parameters the model was exported with: a new 1-D float32 array in layout order.

        Raises:
            TrainingError: they are not finite.
        """
        return self.manifest.layout.decode(self.part(CHECKPOINT_PART), "the bundle's checkpoint")

    def frozen(self) -> Vector:
        """The parameters that are never trained: a new 1-D float32 array in the frozen layout's order.

        Raises:
            TrainingError: they are not finite.
        """
        if not self.manifest.frozen.size:
            return self.manifest.frozen.decode(b"")
        return self.manifest.frozen.decode(self.part(FROZEN_PART), "the bundle's frozen part")

    def require_verified(self) -> None:
        """Refuse an artifact that was opened without its signer's key.

        Raises:
            ArtifactError: the signature was not checked.
        """
        if not self.verified:
            raise ArtifactError(
                "this bundle was opened without checking its signature",
                hint="open it with read_artifact(path, signer=<the model signer's public key>)",
            )


class Sign(Protocol):
    """Signs a message and gives the raw 64-byte signature."""

    def __call__(self, message: bytes, /) -> bytes: ...


def read_artifact(path: str | os.PathLike[str], *, signer: ec.EllipticCurvePublicKey) -> Artifact:
    """Read a bundle from a file and verify it against the pinned signer's public key.

    Raises:
        ArtifactError: the file cannot be read, or see `parse_artifact`.
    """
    return _parse_file(path, signer)


def parse_artifact(content: bytes, *, signer: ec.EllipticCurvePublicKey) -> Artifact:
    """Verify a bundle's bytes against the pinned signer's public key, and read them.

    Raises:
        ArtifactError: not a bundle, truncated, of a newer format, signed by another key, tampered with, or
            malformed.
    """
    return _parse(content, signer)


def inspect_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Read a bundle WITHOUT checking who signed it, to look at it; nothing will train or predict with it.

    Raises:
        ArtifactError: the file cannot be read, is no bundle, truncated, damaged or of a newer format.
    """
    return _parse_file(path, None)


def pack_bundle(manifest: Manifest, parts: Mapping[str, bytes], *, signer_key_id: bytes, sign: Sign) -> bytes:
    """Lay out, hash and sign a bundle; `manifest.parts` is replaced by what is packed.

    The same parts, manifest and key give the same bytes, since signing is deterministic.

    Raises:
        ArtifactError: the manifest is larger than 1 MiB.
    """
    specs, offset = [], 0
    for name in sorted(parts):
        specs.append(PartSpec(name, offset, len(parts[name]), hashlib.sha256(parts[name]).hexdigest()))
        offset = _align(offset + len(parts[name]))
    encoded = encode_manifest(replace(manifest, parts=tuple(specs)))
    if len(encoded) > MANIFEST_LIMIT_BYTES:
        raise ArtifactError(
            f"the manifest has {len(encoded)} bytes, at most {MANIFEST_LIMIT_BYTES} are allowed",
            hint="merge parameters: the model has too many separate tensors",
        )
    header = _HEADER.pack(MAGIC, FORMAT_VERSION, 0, len(encoded), signer_key_id)
    bundle = bytearray(header + sign(header + encoded) + encoded)
    for name in sorted(parts):
        bundle += bytes(_align(len(bundle)) - len(bundle)) + parts[name]
    return bytes(bundle)


def _parse_file(path: str | os.PathLike[str], signer: ec.EllipticCurvePublicKey | None) -> Artifact:
    content = _read_file(path)
    try:
        return _parse(content, signer)
    except ArtifactError as error:
        raise ArtifactError(f"{os.fspath(path)}: {error}", hint=error.hint) from error


def _parse(content: bytes, signer: ec.EllipticCurvePublicKey | None) -> Artifact:
    if content[: len(MAGIC)] != MAGIC[: len(content)] or not content:
        raise ArtifactError(
            "this is not a bundle: it does not begin with EDGEBNDL",
            hint="pass a .edge file made by `edge export`",
        )
    if len(content) < _PREFIX_BYTES:
        raise _truncated(f"its header needs {_PREFIX_BYTES} bytes, {len(content)} are there")
    _, version, zero, manifest_length, signer_key_id = _HEADER.unpack_from(content)
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"the bundle has format version {version}, this SDK reads up to {FORMAT_VERSION}",
            hint="update edge-sdk on this device, or export with an older one",
        )
    if signer is not None and not hmac.compare_digest(signer_key_id, key_id(signer)):
        raise ArtifactError(
            f"the bundle was signed by unknown key {signer_key_id.hex()[:16]}, "
            f"not by the pinned signer {key_id(signer).hex()[:16]}",
            hint="sign the bundle with the pinned signer's key, or pin the right public key",
        )
    if version != FORMAT_VERSION or zero != 0 or manifest_length > MANIFEST_LIMIT_BYTES:
        raise _tampered("its header")
    if len(content) < _PREFIX_BYTES + manifest_length:
        raise _truncated("its manifest is cut off")
    encoded = content[_PREFIX_BYTES : _PREFIX_BYTES + manifest_length]
    if signer is not None:
        signature = content[_HEADER.size : _PREFIX_BYTES]
        if not verify_raw(signer, signature, content[: _HEADER.size] + encoded):
            raise _tampered("its header, signature or manifest")
    manifest = decode_manifest(encoded)
    _check_parts(content, _PREFIX_BYTES + manifest_length, manifest)
    return Artifact(manifest, content, hashlib.sha256(content).digest(), signer_key_id, signer is not None)


def _check_parts(content: bytes, end: int, manifest: Manifest) -> None:
    """Check that the parts cover the rest of the file in order, with zero gaps, and match their hashes."""
    start = _align(end)
    for part in manifest.parts:
        if part.offset != _align(end) - start or part.size_bytes < 0:
            raise _tampered(f"the place of part {part.name}")
        first = start + part.offset
        if len(content) < first + part.size_bytes:
            raise _truncated(f"part {part.name} is cut off")
        if any(content[end:first]):
            raise _tampered(f"the padding before part {part.name}")
        end = first + part.size_bytes
        if hashlib.sha256(memoryview(content)[first:end]).hexdigest() != part.sha256:
            raise _tampered(f"part {part.name}")
    if len(content) != end:
        raise _tampered(f"its end ({len(content) - end:,} bytes follow the last part)")


def _read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(BUNDLE_LIMIT_BYTES + 1)
    except OSError as error:
        raise ArtifactError(
            f"cannot read bundle {os.fspath(path)}: {error.strerror or error}", hint="check the path"
        ) from error
    if len(content) > BUNDLE_LIMIT_BYTES:
        raise ArtifactError(f"{os.fspath(path)} is larger than a bundle may be", hint="pass a .edge file")
    return content


def _align(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _truncated(why: str) -> ArtifactError:
    return ArtifactError(f"the bundle is truncated: {why}", hint="fetch or copy the bundle again")


def _tampered(what: str) -> ArtifactError:
    return ArtifactError(
        f"the bundle was damaged or tampered with: {what} does not match",
        hint="do not use it; fetch it again from its publisher",
    )
