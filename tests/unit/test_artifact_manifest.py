"""The manifest: JSON that is signed is still checked for shape and sense."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edge_sdk.errors import ArtifactError
from edge_sdk.training.artifact import parse_artifact
from edge_sdk.training.layout import Layout, LayoutEntry
from edge_sdk.training.manifest import (
    BatchRange,
    Feedback,
    Manifest,
    ParitySpec,
    ParityStep,
    PartSpec,
    TensorSpec,
    check_manifest,
    decode_manifest,
    encode_manifest,
)
from tests.unit import handmade

FROZEN = TensorSpec("frozen:w", "frozen", "float32", (3,))


def whole() -> Manifest:
    """A manifest with its parts, as a bundle holds it."""
    return parse_artifact(handmade.bundle(), signer=handmade.SIGNER.public_key()).manifest


def test_a_manifest_survives_its_json() -> None:
    assert decode_manifest(encode_manifest(whole())) == whole()


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"null", b"{", b"\xff", b"{}", b'{"name":NaN}', b'{"name":1,"name":1}', b"[" * 100_000],
)
def test_what_is_no_manifest_is_refused(text: bytes) -> None:
    with pytest.raises(ArtifactError, match="manifest is malformed"):
        decode_manifest(text)


def _without_name(tree: dict[str, Any]) -> None:
    del tree["name"]


def _extra(tree: dict[str, Any]) -> None:
    tree["more"] = 1


def _number_name(tree: dict[str, Any]) -> None:
    tree["name"] = 7


def _true_batch(tree: dict[str, Any]) -> None:
    tree["batch"]["maximum"] = True


def _odd_role(tree: dict[str, Any]) -> None:
    tree["graphs"][0]["inputs"][0]["role"] = "spy"


def _text_shape(tree: dict[str, Any]) -> None:
    tree["target"]["shape"] = "3"


def _real_offset(tree: dict[str, Any]) -> None:
    tree["parts"][0]["offset"] = 0.0


@pytest.mark.parametrize(
    "change", [_without_name, _extra, _number_name, _true_batch, _odd_role, _text_shape, _real_offset]
)
def test_fields_have_their_types(change: Callable[[dict[str, Any]], None]) -> None:
    tree = json.loads(encode_manifest(whole()))
    change(tree)
    with pytest.raises(ArtifactError, match="manifest is malformed"):
        decode_manifest(json.dumps(tree).encode())


def test_a_number_may_be_written_without_a_point() -> None:
    tree = json.loads(encode_manifest(whole()))
    tree["optimizer"]["default_learning_rate"] = 1
    assert decode_manifest(json.dumps(tree).encode()).optimizer.default_learning_rate == 1.0


def _graph_changed(manifest: Manifest, **changes: Any) -> Manifest:
    train, *others = manifest.graphs
    return replace(manifest, graphs=(replace(train, **changes), *others))


def _with_frozen(manifest: Manifest, size_bytes: int, *frozen: TensorSpec) -> Manifest:
    return replace(manifest, frozen=frozen, parts=(*manifest.parts, PartSpec("frozen", 0, size_bytes, "")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: replace(m, batch=BatchRange(4, 2)), "batch range"),
        (lambda m: replace(m, batch=BatchRange(0, 2)), "batch range"),
        (lambda m: replace(m, layout=Layout(())), "nothing to train"),
        (lambda m: replace(m, layout=Layout((LayoutEntry("w", (3,)),))), "checkpoint does not have"),
        (lambda m: replace(m, frozen=(FROZEN,)), "no part 'frozen'"),
        (lambda m: _with_frozen(m, 12, FROZEN, FROZEN), "size of its tensors"),
        (lambda m: _with_frozen(m, 24, FROZEN, FROZEN), "names a tensor twice"),
        (lambda m: _with_frozen(m, 12, replace(FROZEN, role="slot")), "holds something else"),
        (lambda m: _graph_changed(m, inputs=(*m.graphs[0].inputs, FROZEN)), "takes frozen:w, which is no field"),
        (lambda m: replace(m, graphs=m.graphs[:2]), "one train, one evaluate and one infer"),
        (lambda m: replace(m, parts=m.parts + m.parts[:1]), "two parts have one name"),
        (lambda m: replace(m, parts=m.parts[1:]), "no part"),
        (lambda m: replace(m, parity=ParitySpec(0, m.parity.steps)), "parity vector is empty"),
        (lambda m: replace(m, parity=ParitySpec(3, ())), "parity vector is empty"),
        (
            lambda m: replace(m, parity=ParitySpec(3, (ParityStep(0, 0.1, 0, 1.0, 1.0),))),
            "does not take the batches",
        ),
        (lambda m: replace(m, parity=ParitySpec(1, m.parity.steps)), "size its steps need"),
        (lambda m: replace(m, formats=()), "must have the format onnx"),
        (lambda m: replace(m, formats=(*m.formats, replace(m.formats[0], name="litert"))), "no part 'train.tflite'"),
        (
            lambda m: replace(m, formats=(replace(m.formats[0], batch=BatchRange(1, 65)),)),
            "batches that the model",
        ),
        (lambda m: _graph_changed(m, inputs=m.graphs[0].inputs * 2), "names a tensor twice"),
        (lambda m: _graph_changed(m, inputs=m.graphs[0].inputs[1:]), "lacks a parameter"),
        (lambda m: _graph_changed(m, inputs=m.graphs[0].inputs[::-1]), "does not follow the layout"),
        (lambda m: _graph_changed(m, feedback=()), "feed back every parameter"),
        (lambda m: _graph_changed(m, feedback=(Feedback("loss", "x"),)), "does not fit"),
        (
            lambda m: _graph_changed(m, outputs=(TensorSpec("loss", "loss", "complex64", ()),)),
            "unknown dtype",
        ),
        (lambda m: _graph_changed(m, outputs=(TensorSpec("loss", "loss", "float32", (-1,)),)), "negative dimension"),
    ],
)
def test_contradictions_are_named(change: Callable[[Manifest], Manifest], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        check_manifest(change(whole()))
