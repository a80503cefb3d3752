"""The bundle container: what is read back, and what is refused with which words."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.errors import ArtifactError
from edge_sdk.signing import new_private_key, sign_raw
from edge_sdk.training.artifact import (
    FORMAT_VERSION,
    MANIFEST_LIMIT_BYTES,
    inspect_artifact,
    pack_bundle,
    parse_artifact,
    parse_head,
    read_artifact,
)
from edge_sdk.training.manifest import Tool, encode_manifest
from tests.unit import handmade

SIGNER = handmade.SIGNER.public_key()


def test_a_bundle_reads_back_as_it_was_packed(tmp_path: Path) -> None:
    path = tmp_path / "toy.edge"
    path.write_bytes(handmade.bundle())
    artifact = read_artifact(path, signer=SIGNER)
    assert artifact.verified
    assert artifact.sha256 == hashlib.sha256(artifact.head).digest()
    assert artifact.to_bytes() == path.read_bytes()
    assert artifact.size_bytes == path.stat().st_size
    assert {part.name: artifact.part(part.name) for part in artifact.manifest.parts} == handmade.parts()
    assert replace(artifact.manifest, parts=()) == handmade.manifest()
    assert artifact.checkpoint().tolist() == list(np.arange(8.0))
    assert artifact.frozen() == {}


def test_parts_lie_on_64_byte_boundaries() -> None:
    content = handmade.bundle()
    for part in parse_artifact(content, signer=SIGNER).manifest.parts:
        data = handmade.parts()[part.name]
        if data and any(data):
            assert content.index(data) % 64 == 0


def test_packing_is_deterministic() -> None:
    assert handmade.bundle() == handmade.bundle()


def test_the_bytes_are_not_shown_by_repr() -> None:
    assert "content" not in repr(parse_artifact(handmade.bundle(), signer=SIGNER))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a bundle"),
        (b"PK\x03\x04 a zip file", "not a bundle"),
        (b"EDGEBND", "truncated"),
        (handmade.bundle()[:111], "truncated"),
        (handmade.bundle()[:500], "manifest is cut off"),
        (handmade.bundle()[:-1], "part train.onnx is cut off"),
        (handmade.bundle() + b"\0", "1 bytes follow the last part"),
    ],
)
def test_what_is_no_whole_bundle_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ArtifactError, match=words) as caught:
        parse_artifact(content, signer=SIGNER)
    assert caught.value.hint


def test_another_signer_is_refused() -> None:
    with pytest.raises(ArtifactError, match="signed by unknown key"):
        parse_artifact(handmade.bundle(key=new_private_key()), signer=SIGNER)


def test_a_forged_key_id_does_not_help() -> None:
    """Naming the pinned signer is not signing."""
    stranger = new_private_key()
    content = pack_bundle(
        handmade.manifest(),
        handmade.parts(),
        signer_key_id=hashlib.sha256(b"").digest(),
        sign=lambda message: sign_raw(stranger, message),
    )
    forged = content[:16] + handmade.bundle()[16:48] + content[48:]
    with pytest.raises(ArtifactError, match="tampered with: its header, signature or manifest"):
        parse_artifact(forged, signer=SIGNER)


def test_a_newer_format_is_told_from_a_damaged_one() -> None:
    content = bytearray(handmade.bundle())
    content[8:10] = (FORMAT_VERSION + 1).to_bytes(2, "little")
    with pytest.raises(ArtifactError, match="format version 2, this SDK reads up to 1"):
        parse_artifact(bytes(content), signer=SIGNER)


def test_a_changed_part_is_named() -> None:
    content = handmade.bundle().replace(b"train graph", b"train grapH")
    with pytest.raises(ArtifactError, match=r"part train\.onnx does not match"):
        parse_artifact(content, signer=SIGNER)


def test_padding_is_covered() -> None:
    content = bytearray(handmade.bundle())
    place = content.index(b"evaluate graph") - 1
    assert content[place] == 0
    content[place] = 1
    with pytest.raises(ArtifactError, match="the padding before part"):
        parse_artifact(bytes(content), signer=SIGNER)


def test_inspection_reads_but_never_vouches(tmp_path: Path) -> None:
    path = tmp_path / "toy.edge"
    path.write_bytes(handmade.bundle(key=new_private_key()))
    artifact = inspect_artifact(path)
    assert not artifact.verified
    with pytest.raises(ArtifactError, match="without checking its signature"):
        artifact.require_verified()


def test_a_missing_file_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot read bundle"):
        read_artifact(tmp_path / "none.edge", signer=SIGNER)


def test_an_oversized_manifest_is_not_packed() -> None:
    crowd = tuple(Tool(f"tool {number}", "1") for number in range(MANIFEST_LIMIT_BYTES // 20))
    with pytest.raises(ArtifactError, match="the manifest has"):
        handmade.bundle(replace(handmade.manifest(), tools=crowd))


def test_an_oversized_manifest_length_is_refused_before_anything_is_read() -> None:
    content = bytearray(handmade.bundle())
    content[12:16] = (MANIFEST_LIMIT_BYTES + 1).to_bytes(4, "little")
    with pytest.raises(ArtifactError, match="its header does not match"):
        parse_artifact(bytes(content), signer=SIGNER)


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ArtifactError, match="no part 'extra'"):
        parse_artifact(handmade.bundle(), signer=SIGNER).part("extra")


def test_a_manifest_of_nonsense_is_refused_though_it_is_signed() -> None:
    with pytest.raises(ArtifactError, match="manifest is malformed"):
        parse_artifact(handmade.bundle(replace(handmade.manifest(), graphs=())), signer=SIGNER)


def test_manifest_bytes_are_canonical() -> None:
    encoded = encode_manifest(handmade.manifest())
    assert b", " not in encoded
    assert encoded.startswith(b'{"batch":{"maximum":64,"minimum":1},"classes":2,')


def test_a_head_alone_names_the_bundle_and_takes_its_parts_one_by_one() -> None:
    whole = parse_artifact(handmade.bundle(), signer=SIGNER)
    head = parse_head(whole.head, signer=SIGNER)
    assert (head.sha256, head.manifest, head.size_bytes) == (whole.sha256, whole.manifest, whole.size_bytes)
    with pytest.raises(ArtifactError, match=r"part train.onnx .* is not on this device"):
        head.part("train.onnx")
    with pytest.raises(ArtifactError, match="is not on this device"):
        head.to_bytes()
    with pytest.raises(ArtifactError, match="it has no part 'else'"):
        head.part("else")
    some = head.with_parts([whole.part("train.onnx")])
    assert some.part("train.onnx") == whole.part("train.onnx")
    assert some.with_parts(whole.parts.values()).to_bytes() == whole.to_bytes()


def test_what_is_no_part_of_a_bundle_is_not_taken_for_one() -> None:
    whole = parse_artifact(handmade.bundle(), signer=SIGNER)
    with pytest.raises(ArtifactError, match="tampered"):
        parse_head(whole.head, signer=SIGNER).with_parts([whole.part("train.onnx") + b"x"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda head: head + bytes(16), "16 bytes follow the manifest"),
        (lambda head: head[:-1], "manifest is cut off"),
        (lambda head: head[:-1] + b" ", "does not match"),
        (lambda head: b"", "not a bundle"),
    ],
)
def test_a_head_is_taken_as_it_was_signed_or_not_at_all(change: Callable[[bytes], bytes], words: str) -> None:
    head = parse_artifact(handmade.bundle(), signer=SIGNER).head
    with pytest.raises(ArtifactError, match=words):
        parse_head(change(head), signer=SIGNER)
