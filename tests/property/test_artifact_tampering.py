"""No changed byte of a bundle gets past its reader, and nothing but ArtifactError comes out of it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_sdk.errors import ArtifactError
from edge_sdk.training.artifact import parse_artifact
from tests.unit import handmade

BUNDLE = handmade.bundle()
SIGNER = handmade.SIGNER.public_key()


@given(place=st.integers(0, len(BUNDLE) - 1), mask=st.integers(1, 255))
@example(place=0, mask=1)
@example(place=9, mask=128)
@example(place=10, mask=1)
@example(place=48, mask=1)
@example(place=111, mask=255)
@example(place=112, mask=1)
@example(place=len(BUNDLE) - 1, mask=1)
def test_any_flipped_byte_is_refused(place: int, mask: int) -> None:
    changed = bytearray(BUNDLE)
    changed[place] ^= mask
    with pytest.raises(ArtifactError):
        parse_artifact(bytes(changed), signer=SIGNER)


def test_every_single_byte_is_covered() -> None:
    for place in range(len(BUNDLE)):
        changed = bytearray(BUNDLE)
        changed[place] ^= 0x40
        with pytest.raises(ArtifactError):
            parse_artifact(bytes(changed), signer=SIGNER)


@given(length=st.integers(0, len(BUNDLE) - 1))
def test_any_truncation_is_refused(length: int) -> None:
    with pytest.raises(ArtifactError):
        parse_artifact(BUNDLE[:length], signer=SIGNER)


@given(tail=st.binary(min_size=1, max_size=200))
def test_anything_appended_is_refused(tail: bytes) -> None:
    with pytest.raises(ArtifactError):
        parse_artifact(BUNDLE + tail, signer=SIGNER)


@given(first=st.integers(0, len(BUNDLE)), last=st.integers(0, len(BUNDLE)), place=st.integers(0, len(BUNDLE)))
def test_any_moved_stretch_is_refused(first: int, last: int, place: int) -> None:
    stretch = BUNDLE[min(first, last) : max(first, last)]
    changed = BUNDLE[:place] + stretch + BUNDLE[place + len(stretch) :]
    if changed != BUNDLE:
        with pytest.raises(ArtifactError):
            parse_artifact(changed, signer=SIGNER)


@given(content=st.binary(max_size=400))
def test_noise_is_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError):
        parse_artifact(content, signer=SIGNER)
    with pytest.raises(ArtifactError):
        parse_artifact(BUNDLE[:16] + content, signer=SIGNER)
