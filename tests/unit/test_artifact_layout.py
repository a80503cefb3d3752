"""The flat layout of parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_sdk.errors import ArtifactError, TrainingError
from edge_sdk.training.layout import Layout, LayoutEntry, encode_vector

LAYOUT = Layout((LayoutEntry("w", (2, 3)), LayoutEntry("scale", ()), LayoutEntry("b", (2,), "buffer")))


def test_sizes_and_offsets() -> None:
    assert LAYOUT.size == 9
    assert LAYOUT.size_bytes == 36
    assert LAYOUT.offsets == (0, 6, 7)
    assert Layout(()).offsets == ()


def test_flatten_and_unflatten_are_inverse() -> None:
    vector = np.arange(9, dtype=np.float32)
    tensors = LAYOUT.unflatten(vector)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "parameter:w": (2, 3),
        "parameter:scale": (),
        "buffer:b": (2,),
    }
    assert LAYOUT.flatten(tensors).tolist() == vector.tolist()


def test_unflatten_gives_views() -> None:
    vector = np.zeros(9, np.float32)
    LAYOUT.unflatten(vector)["buffer:b"][:] = 5
    assert vector.tolist() == [0] * 7 + [5, 5]


def test_bytes_round_trip_into_a_new_array() -> None:
    vector = np.arange(9, dtype=np.float32)
    decoded = LAYOUT.decode(encode_vector(vector))
    assert decoded.tolist() == vector.tolist()
    decoded[0] = 1  # It can be written to.


@pytest.mark.parametrize(
    ("vector", "words"),
    [
        (np.zeros(8, np.float32), "8 elements, this model has 9"),
        (np.zeros(9), "float64, not 1-D float32"),
        (np.zeros((3, 3), np.float32), "2-D float32"),
        (np.full(9, np.nan, np.float32), "NaN"),
        (np.full(9, np.inf, np.float32), "infinity"),
    ],
)
def test_a_vector_of_another_kind_is_refused(vector: np.ndarray[Any, Any], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        LAYOUT.unflatten(vector)


def test_bytes_of_another_length_are_refused() -> None:
    with pytest.raises(TrainingError, match="35 bytes, this model needs 36"):
        LAYOUT.decode(bytes(35))


def test_tensors_that_do_not_fit_are_refused() -> None:
    tensors = LAYOUT.unflatten(np.zeros(9, np.float32))
    w = tensors["parameter:w"]
    with pytest.raises(TrainingError, match="b is missing"):
        LAYOUT.flatten({"parameter:w": w, "parameter:scale": tensors["parameter:scale"], "parameter:b": w})
    with pytest.raises(TrainingError, match=r"b is float32\[6\]"):
        LAYOUT.flatten(tensors | {"buffer:b": w.reshape(-1)})
    with pytest.raises(TrainingError, match="w is float64"):
        LAYOUT.flatten({**tensors, "parameter:w": w.astype(np.float64)})


def test_a_layout_names_each_tensor_once() -> None:
    with pytest.raises(ArtifactError, match="twice"):
        Layout((LayoutEntry("w", ()), LayoutEntry("w", ())))
    with pytest.raises(ArtifactError, match="not at all"):
        Layout((LayoutEntry("", ()),))
    with pytest.raises(ArtifactError, match="negative"):
        Layout((LayoutEntry("w", (-1,)),))
