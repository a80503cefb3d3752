"""Specifications such as "adam:beta2=0.99,amsgrad=true": a name, and settings of what has that name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from edge_sdk.errors import ExportError

_Record = TypeVar("_Record")


def read_specification(text: str, known: Mapping[str, _Record], what: str) -> _Record:
    """The record of that name with the settings that the text gives it.

    Args:
        text: a name, perhaps a colon and settings with commas between them.
        known: frozen dataclasses by name.
        what: names their kind in errors, as in "optimizer".

    Raises:
        ExportError: an unknown name, an unknown setting, or a value that it cannot have.
    """
    name, _, rest = text.partition(":")
    found: Any = known.get(name)
    if found is None:
        raise ExportError(f"there is no {what} {name!r}", hint=f"use one of {', '.join(sorted(known))}")
    settings = {}
    for setting in rest.split(",") if rest else ():
        key, _, value = setting.partition("=")
        settings[key] = _value(found, key, value)
        if settings[key] is None:
            raise ExportError(
                f"{what} {name} cannot have {setting!r}",
                hint=f"write it as {name}:setting=value,...; its settings are "
                + ", ".join(f"{field.name}={getattr(found, field.name)}" for field in fields(found)),
            )
    changed: _Record = replace(found, **settings)
    return changed


def _value(record: Any, key: str, text: str) -> Any:
    """A setting's value from its text; None if there is no such setting or value."""
    if key not in {field.name for field in fields(record)}:
        return None
    kind = type(getattr(record, key))
    if kind is bool:
        return {"true": True, "false": False}.get(text)
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        return None
