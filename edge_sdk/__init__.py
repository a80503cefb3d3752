"""What runs on a device, and the protocol that both ends speak."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sdk.client import EdgeClient as EdgeClient
    from edge_sdk.protocol.policy import DevicePolicy as DevicePolicy
    from edge_sdk.runtime.budget import Budget as Budget
    from edge_sdk.runtime.eligibility import Eligibility as Eligibility
    from edge_sdk.training.fields import Field as Field
    from edge_sdk.training.fields import bool_ as bool_
    from edge_sdk.training.fields import f16 as f16
    from edge_sdk.training.fields import f32 as f32
    from edge_sdk.training.fields import f64 as f64
    from edge_sdk.training.fields import i32 as i32
    from edge_sdk.training.fields import i64 as i64
    from edge_sdk.training.fields import u8 as u8

__version__ = "0.1.0"

_HOMES = {
    "DevicePolicy": "edge_sdk.protocol.policy",
    "Budget": "edge_sdk.runtime.budget",
    "EdgeClient": "edge_sdk.client",
    "Eligibility": "edge_sdk.runtime.eligibility",
    **dict.fromkeys(("Field", "bool_", "f16", "f32", "f64", "i32", "i64", "u8"), "edge_sdk.training.fields"),
}

__all__ = [
    "Budget",
    "DevicePolicy",
    "EdgeClient",
    "Eligibility",
    "Field",
    "__version__",
    "bool_",
    "f16",
    "f32",
    "f64",
    "i32",
    "i64",
    "u8",
]


def __getattr__(name: str) -> Any:
    # Lazy, so that `edge --help` and the pure packages load none of it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
