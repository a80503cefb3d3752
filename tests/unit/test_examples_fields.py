"""Fields of examples, as apps write them."""

from __future__ import annotations

from typing import Any

import pytest

import edge_sdk
from edge_sdk import Field, bool_, f16, f32, f64, i32, i64, u8
from edge_sdk.errors import StoreError
from edge_sdk.training.fields import check_schema, in_words


def test_a_helper_for_each_type() -> None:
    assert (f32(16), f32(1, 8, 8), i64()) == (
        Field("float32", (16,)),
        Field("float32", (1, 8, 8)),
        Field("int64"),
    )
    assert [make(2).dtype for make in (f16, f64, u8, i32, bool_)] == ["float16", "float64", "uint8", "int32", "bool"]
    assert {"f16", "f32", "f64", "u8", "i32", "i64", "bool_"} <= set(edge_sdk.__all__)
    assert in_words({"x": f32(2, 3), "y": i64()}) == "x float32[2, 3] and y int64[]"


@pytest.mark.parametrize("wrong", [f32(0), f32(-1), Field("float32", (2.5,)), f32("16")])  # type: ignore[arg-type]
def test_a_shape_is_of_positive_whole_numbers(wrong: Field) -> None:
    with pytest.raises(StoreError, match="x cannot have the shape"):
        check_schema({"x": wrong, "y": i64()})


@pytest.mark.parametrize("wide", [f32(10**9), f64(1 << 40), u8(1 << 29)])
def test_a_row_that_no_device_could_hold_is_refused(wide: Field) -> None:
    with pytest.raises(StoreError, match="more than 268,435,456"):
        check_schema({"x": wide, "y": i64()})


@pytest.mark.parametrize("wrong", [f32, "float32", 16])
def test_what_is_no_field_is_named(wrong: Any) -> None:
    with pytest.raises(StoreError, match="not a field") as caught:
        check_schema({"x": wrong, "y": i64()})
    assert "f32(16)" in caught.value.hint
