"""What runs on a device, and the protocol that both ends speak."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sdk.client import EdgeClient as EdgeClient
    from edge_sdk.protocol.policy import DevicePolicy as DevicePolicy
    from edge_sdk.training.examples import Field as Field

__version__ = "0.1.0"

_HOMES = {
    "DevicePolicy": "edge_sdk.protocol.policy",
    "EdgeClient": "edge_sdk.client",
    "Field": "edge_sdk.training.examples",
}

__all__ = ["DevicePolicy", "EdgeClient", "Field", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `edge --help` and the pure packages load none of it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
