"""Runs code that was written for float32 in float64: the reference that exported steps are held against.

`model.double()` alone does not do it: models make masks, positions and first states as they run, and losses hold
weights, all float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


class _Widening(TorchFunctionMode):
    """Gives every function float64 for float32, tensors and dtypes alike."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        return tree_map(_wide, func(*tree_map(_wide, args), **tree_map(_wide, dict(kwargs or {}))))


@contextmanager
def in_float64() -> Iterator[None]:
    """Compute in float64 what is written for float32."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widening():
            yield
    finally:
        torch.set_default_dtype(default)


def _wide(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.dtype == torch.float32 else value
    return torch.float64 if value is torch.float32 else value
