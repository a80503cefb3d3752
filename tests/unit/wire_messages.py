"""Messages for tests, made from their types: samples, Hypothesis strategies, and JSON for the golden files."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

import edge_sdk.schema
from edge_sdk.protocol import codec, messages
from edge_sdk.protocol.messages import Message
from edge_sdk.secagg.suite import Stream, digest

KINDS: tuple[type[Message], ...] = tuple(codec.KINDS.values())
LENGTHS = {messages.Digest: 32, messages.RoundId: 16, messages.PublicKey: 32, messages.Signature: 64}
_BITS = {"ubyte": 8, "uint16": 16, "uint32": 32, "uint64": 64}


@cache
def schema() -> dict[str, dict[str, str]]:
    """The tables of messages.fbs: by name their fields' types, in order."""
    text = (Path(edge_sdk.schema.__path__[0]) / "messages.fbs").read_text()
    text = re.sub(r"//.*", "", text)
    return {
        name: dict(re.findall(r"(\w+)\s*:\s*([\w\[\]]+)\s*;", body))
        for name, body in re.findall(r"table (\w+)\s*\{([^}]*)\}", text)
    }


def hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, vars(messages))


def wire_type(kind: Any, name: str) -> str:
    """The .fbs type of a field; of one in a column, that of its entries."""
    tables = schema()
    table = tables.get(kind.__name__) or tables[kind.__name__ + "s"]
    return table[name].strip("[]")


# ---- building a message field by field


def build(kind: Any, value_of: Callable[[str, Any, str], Any]) -> Any:
    """A message whose leaves are value_of(name, type, wire type)."""
    values = {}
    for name, hint in hints(kind).items():
        if dataclasses.is_dataclass(hint):
            values[name] = build(hint, value_of)
        else:
            values[name] = value_of(name, hint, wire_type(kind, name))
    return kind(**values)


def sample(kind: Any, *, entries: int = 3) -> Any:
    """A message full of distinct values, the same each time."""

    def value_of(name: str, hint: Any, wire: str) -> Any:
        stream = Stream(digest(kind.__name__.encode(), name.encode()))
        if hint in LENGTHS:
            return stream.bytes(LENGTHS[hint])
        if hint in (bytes, messages.Bitmap):
            return stream.bytes(10 * entries)
        if _is_tuple(hint):
            item = hint.__args__[0]
            if item is int:
                return tuple(stream.uint16(entries).tolist())
            return tuple(dataclasses.replace(sample(item), index=n) for n in range(entries))
        if hint is str:
            return f"{name}-é"
        if hint is bool:
            return True
        if hint is float:
            return stream.below(1 << 40) / 1024
        if issubclass(hint, IntEnum):
            return list(hint)[-1]
        return stream.below(1 << _BITS[wire])

    return build(kind, value_of)


def smallest(kind: Any) -> Any:
    """A message of empty, zero and first values."""

    def value_of(name: str, hint: Any, wire: str) -> Any:
        if hint in LENGTHS:
            return bytes(LENGTHS[hint])
        if hint in (bytes, messages.Bitmap):
            return b""
        if _is_tuple(hint):
            return ()
        if issubclass(hint, IntEnum):
            return next(iter(hint))
        return hint()

    return build(kind, value_of)


def largest(kind: Any) -> Any:
    """A message of the largest numbers, infinity included."""

    def value_of(name: str, hint: Any, wire: str) -> Any:
        if hint is float:
            return math.inf
        if hint is int:
            return (1 << _BITS[wire]) - 1
        if _is_tuple(hint) and hint.__args__[0] is int:
            return (0, (1 << 32) - 1)
        return getattr(sample(kind), name, None) if name in hints(kind) else sample(messages.BlobRef).sha256

    return build(kind, value_of)


def strategy(kind: Any) -> st.SearchStrategy[Any]:
    """All messages of a kind."""
    return st.builds(kind, **{name: _strategy(kind, name, hint) for name, hint in hints(kind).items()})


def _strategy(kind: Any, name: str, hint: Any) -> st.SearchStrategy[Any]:
    if dataclasses.is_dataclass(hint):
        return strategy(hint)
    if hint in LENGTHS:
        return st.binary(min_size=LENGTHS[hint], max_size=LENGTHS[hint])
    if hint in (bytes, messages.Bitmap):
        return st.binary(max_size=200)
    if _is_tuple(hint):
        item = hint.__args__[0]
        return st.lists(st.integers(0, (1 << 32) - 1) if item is int else strategy(item), max_size=5).map(tuple)
    if hint is str:
        return st.text(st.characters(codec="utf-8"), max_size=40)
    if hint is bool:
        return st.booleans()
    if hint is float:
        return st.floats(allow_nan=False)
    if issubclass(hint, IntEnum):
        return st.sampled_from(hint)
    return st.integers(0, (1 << _BITS[wire_type(kind, name)]) - 1)


def _is_tuple(hint: Any) -> bool:
    return isinstance(hint, types.GenericAlias) and hint.__origin__ is tuple


# ---- as JSON


def to_json(value: Any) -> Any:
    """Bytes in hexadecimal, enums as numbers, infinity as a word."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [to_json(entry) for entry in value]
    if isinstance(value, IntEnum):
        return int(value)
    return "infinity" if isinstance(value, float) and math.isinf(value) else value


def from_json(kind: Any, data: Any) -> Any:
    """The inverse of `to_json` for a value of this type."""
    if dataclasses.is_dataclass(kind):
        return typing.cast(Any, kind)(**{name: from_json(hint, data[name]) for name, hint in hints(kind).items()})
    if _is_tuple(kind):
        return tuple(from_json(kind.__args__[0], entry) for entry in data)
    if kind in (bytes, messages.Bitmap) or kind in LENGTHS:
        return bytes.fromhex(data)
    return kind(math.inf if data == "infinity" else data)
