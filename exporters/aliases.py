"""What views of a tensor become when one of them is changed in place: the graph knows values, not memory.

A change is carried up, from the view that was written to the tensor that owns the memory; other views of it are
taken anew when they are next read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

aten = torch.ops.aten

_SCATTERS = {
    aten.select.int: aten.select_scatter.default,
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.diagonal.default: aten.diagonal_scatter.default,
    aten.as_strided.default: aten.as_strided_scatter.default,
}
_SAME_ORDER = (
    aten.view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.alias.default,
    aten.detach.default,
    aten.expand.default,
)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """How a tensor is seen: `func(base, *args)`."""

    base: torch.Tensor
    func: Any
    args: tuple[Any, ...]

    def taken(self) -> torch.Tensor:
        """What is seen of the base as it is now."""
        tensor: torch.Tensor = self.func(self.base, *self.args)
        return tensor

    def put_back(self, changed: torch.Tensor) -> torch.Tensor | None:
        """The base after what is seen of it changed to this; None where that is not known."""
        scatter = _SCATTERS.get(self.func)
        if scatter is not None:
            result: torch.Tensor = scatter(self.base, changed, *self.args)
            return result
        if self.func is aten.permute.default:
            dims = [dim % changed.ndim for dim in self.args[0]]
            return changed.permute([dims.index(axis) for axis in range(changed.ndim)])
        if self.func is aten.t.default:
            return changed.t()
        if self.func is aten.transpose.int:
            return changed.transpose(*self.args)
        if self.func in _SAME_ORDER and changed.numel() == self.base.numel():
            return changed.reshape(self.base.shape)
        return None


def views(func: Any, args: tuple[Any, ...], results: Sequence[Any]) -> list[tuple[torch.Tensor, View]]:
    """The tensors among an operator's results that are views of its first argument, and how they are."""
    if not args or not any(returned.alias_info for returned in func._schema.returns):
        return []
    base, *rest = args
    if func is aten.unbind.int:
        dim = rest[0] if rest else 0
        return [(tensor, View(base, aten.select.int, (dim, index))) for index, tensor in enumerate(results)]
    if func in (aten.split.Tensor, aten.split_with_sizes.default):
        dim, start, found = (rest[1] if len(rest) > 1 else 0), 0, []
        for tensor in results:
            end = start + tensor.shape[dim]
            found.append((tensor, View(base, aten.slice.Tensor, (dim, start, end))))
            start = end
        return found
    return [(tensor, View(base, func, tuple(rest))) for tensor in results if tensor is not base]


def overlap(one: torch.Tensor, two: torch.Tensor) -> Literal["same", "partly", "apart"]:
    """How the memory of two tensors lies to each other."""
    if one.untyped_storage().data_ptr() != two.untyped_storage().data_ptr() or not one.numel():
        return "apart"
    places = [(tensor.shape, tensor.stride(), tensor.storage_offset()) for tensor in (one, two)]
    if places[0] == places[1]:
        return "same"
    elements = torch.arange(one.untyped_storage().nbytes() // one.element_size())
    seen = [elements.as_strided(*place).reshape(-1) for place in places]
    return "partly" if bool(torch.isin(*seen).any()) else "apart"
