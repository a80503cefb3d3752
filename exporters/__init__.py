"""PyTorch models -> signed training bundles. The home of torch; nothing here runs on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporters.exporter import export as export
    from exporters.spec import ModelSpec as ModelSpec

__all__ = ["ModelSpec", "export"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line can list its verbs without importing torch.
    if name == "export":
        from exporters.exporter import export

        return export
    if name == "ModelSpec":
        from exporters.spec import ModelSpec

        return ModelSpec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
