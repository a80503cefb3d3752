"""The fields of an example: what each is called, its dtype and the shape of one row. Knows no file.

schema = {"x": f32(1, 8, 8), "y": i64()}
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import StoreError

ROW_MAX_BYTES = 256 << 20
"""Of all fields of an example together: a row is sealed and read in one."""

NUMBERS = "biuf"
"""Kinds of dtypes that examples may have: booleans, integers with and without sign, floats."""

_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an example: the dtype's name, such as "float32", and the shape of one row."""

    dtype: str
    shape: tuple[int, ...] = ()

    @staticmethod
    def of_rows(rows: NDArray[Any]) -> Field:
        """The field that these rows have, the first dimension being the rows."""
        return Field(rows.dtype.name, tuple(rows.shape[1:]))

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


Schema: TypeAlias = Mapping[str, Field]
"""What an example looks like: its fields by name."""


def f16(*shape: int) -> Field:
    """A field of float16: `f16(3)` a vector of 3, `f16()` one number."""
    return Field("float16", shape)


def f32(*shape: int) -> Field:
    """A field of float32: `f32(16)` a vector of 16, `f32(1, 8, 8)` an image, `f32()` one number."""
    return Field("float32", shape)


def f64(*shape: int) -> Field:
    """A field of float64, shaped like `f32`."""
    return Field("float64", shape)


def u8(*shape: int) -> Field:
    """A field of uint8, such as the pixels of an image: `u8(28, 28)`."""
    return Field("uint8", shape)


def i32(*shape: int) -> Field:
    """A field of int32: `i32(128)` a text of 128 tokens."""
    return Field("int32", shape)


def i64(*shape: int) -> Field:
    """A field of int64: `i64()` a class."""
    return Field("int64", shape)


def bool_(*shape: int) -> Field:
    """A field of truth values: `bool_(128)` a mask of 128."""
    return Field("bool", shape)


def in_words(schema: Schema) -> str:
    """A schema for a person: "x float32[2, 3] and y int64[]"."""
    return " and ".join(f"{name} {field}" for name, field in schema.items())


def check_schema(schema: Schema) -> None:
    """Refuse what no store can hold.

    Raises:
        StoreError: no fields, a name that is none, a dtype that is not of numbers, or a dimension below one.
    """
    if not schema or len({name.lower() for name in schema}) != len(schema):
        raise StoreError("an example has no fields, or two of one name", hint='name its fields, such as "x" and "y"')
    for name, field in schema.items():
        if not _NAME.fullmatch(name):
            raise StoreError(f"a field cannot be called {name!r}", hint="use letters, digits, underscores and points")
        if not isinstance(field, Field):
            raise StoreError(f"{name} is {field!r:.80}, not a field", hint="give one such as f32(16) or i64()")
        try:
            dtype = np.dtype(field.dtype)
        except TypeError:
            dtype = None
        if dtype is None or dtype.name != field.dtype or dtype.kind not in NUMBERS:
            raise StoreError(
                f"{name} cannot be of the type {field.dtype!r}", hint='name a type of numbers, such as "float32"'
            )
        shape: tuple[Any, ...] = field.shape  # an app may not check types
        if not all(isinstance(dimension, int) and dimension > 0 for dimension in shape):
            raise StoreError(
                f"{name} cannot have the shape {field.shape} a row", hint="give positive whole numbers, such as f32(16)"
            )
    size = sum(np.dtype(field.dtype).itemsize * math.prod(field.shape) for field in schema.values())
    if size > ROW_MAX_BYTES:
        raise StoreError(
            f"an example of {in_words(schema)} takes {size:,} bytes, more than {ROW_MAX_BYTES:,}",
            hint="keep less of it, or store paths to files of your own",
        )
