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

All before the parts is the head. It holds every part's SHA-256, so its own SHA-256 names the whole bundle, and a
device can fetch the head first, and then of the parts what it needs and lacks. Reading authenticates, then checks
sizes and hashes, then parses. Every byte is covered: by the signature, by a part's SHA-256, or by the rule that gaps
are zero. Knows nothing of ONNX or of training.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
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
    tensor_bytes,
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
    """A bundle that has been read: its manifest, the parts that are here, and whether its signature was checked.

    Two artifacts are of the same bundle if their `sha256` is.

    Attributes:
        head: header, signature and manifest as they were read.
        parts: content by name; on a device, of those parts that it needs.
        sha256: of the head, which names all parts by theirs.
    """

    manifest: Manifest
    head: bytes = field(repr=False)
    parts: Mapping[str, bytes] = field(repr=False)
    sha256: bytes
    signer_key_id: bytes
    verified: bool

    @property
    def layout(self) -> Layout:
        """The order of the trainable parameters."""
        return self.manifest.layout

    @property
    def size_bytes(self) -> int:
        """Size of the whole bundle as a file."""
        last = self.manifest.parts[-1:]
        return sum([_align(len(self.head)), *(part.offset + part.size_bytes for part in last)])

    def part(self, name: str) -> bytes:
        """A part's bytes.

        Raises:
            ArtifactError: the bundle has no such part, or it is not here.
        """
        spec = self.manifest.part(name)
        if name not in self.parts:
            raise ArtifactError(
                f"part {name} ({spec.size_bytes:,} bytes) of the bundle is not on this device",
                hint="fetch it by its SHA-256, or open the whole .edge file",
            )
        return self.parts[name]

    def with_parts(self, contents: Iterable[bytes]) -> Artifact:
        """The same bundle with these parts, each known by its hash; at most those that the manifest lists.

        Raises:
            ArtifactError: one is no part of this bundle.
        """
        names: dict[str, list[str]] = {}
        for spec in self.manifest.parts:
            names.setdefault(spec.sha256, []).append(spec.name)
        held = dict(self.parts)
        for content in contents:
            found = names.get(hashlib.sha256(content).hexdigest())
            if found is None:
                raise _tampered(f"a part of {len(content):,} bytes")
            held |= dict.fromkeys(found, content)
        return replace(self, parts=held)

    def to_bytes(self) -> bytes:
        """The whole bundle as a file.

        Raises:
            ArtifactError: a part is not here.
        """
        return _join(self.head, [self.part(spec.name) for spec in self.manifest.parts])

    def checkpoint(self) -> Vector:
        """The parameters the model was exported with: a new 1-D float32 array in layout order.

        Raises:
            TrainingError: they are not finite.
        """
        return self.manifest.layout.decode(self.part(CHECKPOINT_PART), "the bundle's checkpoint")

    def frozen(self) -> dict[str, npt.NDArray[Any]]:
        """What is never trained: new arrays by their names in graphs.

        Raises:
            ArtifactError: they are not finite.
        """
        tensors, offset = {}, 0
        content = self.part(FROZEN_PART) if self.manifest.frozen else b""
        for spec in self.manifest.frozen:
            dtype = np.dtype(spec.dtype)
            data = content[offset : offset + tensor_bytes(spec)]
            array = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape([dim or 0 for dim in spec.shape])
            if dtype.kind == "f" and not np.isfinite(array).all():
                raise ArtifactError(f"{spec.name} of the bundle holds NaN or infinity", hint="export the model again")
            tensors[spec.name] = array
            offset += len(data)
        return tensors

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


def parse_head(head: bytes, *, signer: ec.EllipticCurvePublicKey) -> Artifact:
    """Verify a bundle's head against the pinned signer's public key: an artifact without its parts yet.

    Raises:
        ArtifactError: see `parse_artifact`; or bytes follow the manifest.
    """
    artifact = _parse_head(head, signer)
    if len(head) != len(artifact.head):
        raise _tampered(f"its end ({len(head) - len(artifact.head):,} bytes follow the manifest)")
    return artifact


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
    return _join(header + sign(header + encoded) + encoded, [parts[name] for name in sorted(parts)])


def _join(head: bytes, parts: Iterable[bytes]) -> bytes:
    bundle = bytearray(head)
    for part in parts:
        bundle += bytes(_align(len(bundle)) - len(bundle)) + part
    return bytes(bundle)


def _parse_file(path: str | os.PathLike[str], signer: ec.EllipticCurvePublicKey | None) -> Artifact:
    content = _read_file(path)
    try:
        return _parse(content, signer)
    except ArtifactError as error:
        raise ArtifactError(f"{os.fspath(path)}: {error}", hint=error.hint) from error


def _parse(content: bytes, signer: ec.EllipticCurvePublicKey | None) -> Artifact:
    artifact = _parse_head(content, signer)
    return replace(artifact, parts=_cut_parts(content, len(artifact.head), artifact.manifest))


def _parse_head(content: bytes, signer: ec.EllipticCurvePublicKey | None) -> Artifact:
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
    head = content[: _PREFIX_BYTES + manifest_length]
    encoded = head[_PREFIX_BYTES:]
    if signer is not None:
        signature = head[_HEADER.size : _PREFIX_BYTES]
        if not verify_raw(signer, signature, head[: _HEADER.size] + encoded):
            raise _tampered("its header, signature or manifest")
    manifest = decode_manifest(encoded)
    return Artifact(manifest, head, {}, hashlib.sha256(head).digest(), signer_key_id, signer is not None)


def _cut_parts(content: bytes, end: int, manifest: Manifest) -> dict[str, bytes]:
    """Check that the parts cover the rest of the file in order, with zero gaps, and match their hashes."""
    start, parts = _align(end), {}
    for part in manifest.parts:
        if part.offset != _align(end) - start or part.size_bytes < 0:
            raise _tampered(f"the place of part {part.name}")
        first = start + part.offset
        if len(content) < first + part.size_bytes:
            raise _truncated(f"part {part.name} is cut off")
        if any(content[end:first]):
            raise _tampered(f"the padding before part {part.name}")
        end = first + part.size_bytes
        parts[part.name] = content[first:end]
        if hashlib.sha256(parts[part.name]).hexdigest() != part.sha256:
            raise _tampered(f"part {part.name}")
    if len(content) != end:
        raise _tampered(f"its end ({len(content) - end:,} bytes follow the last part)")
    return parts


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
