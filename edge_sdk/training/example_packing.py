"""An example as one run of bytes: its fields in the order of the schema, little-endian. Knows no file and no key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_sdk.errors import StoreError
from edge_sdk.training.fields import Field, Schema
from edge_sdk.training.trainer import Rows

_HOLDS = {"b": "b", "i": "biu", "u": "biu", "f": "biuf"}
"""Which kinds of numbers a kind of field takes."""


class Packing:
    """Packs examples of one schema.

    Attributes:
        size_bytes: of a packed example.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = dict(schema)
        self._dtype = np.dtype(
            [(name, np.dtype(field.dtype).newbyteorder("<"), field.shape) for name, field in schema.items()]
        )
        self.size_bytes = self._dtype.itemsize

    def one(self, fields: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
        """One example as rows. Plain numbers and lists of them are converted where no value changes but by rounding.

        Raises:
            StoreError: not the schema's fields, or a value that one cannot hold.
        """
        self._check_names(fields)
        return {name: _converted(name, value, self._schema[name])[np.newaxis] for name, value in fields.items()}

    def pack(self, rows: Rows, most: int) -> NDArray[Any]:
        """Rows as a structured array, at most that many of the last; `tobytes` of each is the packed example.

        Raises:
            StoreError: not the schema's fields, dtypes and shapes, fields of different lengths, or not finite.
        """
        self._check_names(rows)
        arrays = {name: _array(name, rows[name], field) for name, field in self._schema.items()}
        for name, array in arrays.items():
            _check_rows(name, array, self._schema[name])
        if len({len(array) for array in arrays.values()}) > 1:
            counts = ", ".join(f"{len(array)} of {name}" for name, array in arrays.items())
            raise StoreError(
                f"the fields have different numbers of rows: {counts}", hint="give each example all fields"
            )
        kept = {name: array[-most:] for name, array in arrays.items()}
        packed = np.empty(len(next(iter(kept.values()))), self._dtype)
        for name, array in kept.items():
            packed[name] = array
        return packed

    def unpack(self, packed: Iterable[bytes]) -> dict[str, NDArray[Any]]:
        """The rows of packed examples, each of `size_bytes`."""
        found = np.frombuffer(b"".join(packed), self._dtype)
        return {name: found[name].astype(field.dtype) for name, field in self._schema.items()}

    def _check_names(self, fields: Mapping[str, Any]) -> None:
        if set(fields) != set(self._schema):
            raise StoreError(
                f"an example has the fields {', '.join(self._schema)}; given are {', '.join(fields) or 'none'}",
                hint="give every field by its name",
            )


def _converted(name: str, value: ArrayLike, field: Field) -> NDArray[Any]:
    array = _array(name, value, field)
    # An array says what its numbers are; what has no dtype of its own takes the field's.
    if (isinstance(value, np.ndarray) and value.shape) or array.dtype.kind not in _HOLDS[np.dtype(field.dtype).kind]:
        return array
    with np.errstate(over="ignore"):  # to infinity, which is refused
        converted = array.astype(field.dtype)
    if converted.dtype.kind != "f" and (converted != array).any():
        raise StoreError(
            f"{name} holds {array.min()} to {array.max()}, which {field.dtype} cannot", hint="use a wider type"
        )
    return converted


def _array(name: str, value: ArrayLike, field: Field) -> NDArray[Any]:
    # Arrays of other classes only: numpy imports what it knows of masks when first asked.
    if isinstance(value, np.ndarray) and type(value) is not np.ndarray and np.ma.is_masked(value):
        raise StoreError(
            f"{name} holds masked values, which a store of examples has no place for",
            hint="leave such examples out, or fill them: value.filled(0)",
        )
    try:
        return np.asarray(value)
    except ValueError as error:
        raise StoreError(f"{name} is no array of numbers: {error}", hint=f"give {field}") from error


def _check_rows(name: str, rows: NDArray[Any], field: Field) -> None:
    if rows.ndim == 0:
        raise StoreError(f"{name} is one value, not rows of them", hint="give arrays whose first dimension is the rows")
    if Field.of_rows(rows) != field:
        raise StoreError(
            f"{name} is {Field.of_rows(rows)} a row; the store holds {field}",
            hint="convert the examples, or use another store",
        )
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise StoreError(f"{name} holds NaN or infinity", hint="leave such examples out")
