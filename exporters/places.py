"""Finds out which module and which line of the user's code an operator comes from, gradients included.

A gradient comes from where its forward operator does: autograd numbers its nodes as the forward pass makes them,
and knows which node it is at during the backward pass.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from exporters.graph import Place

_OURS = str(Path(__file__).parent) + os.sep
_EXAMPLES = _OURS + "examples" + os.sep
_TORCH = str(Path(torch.__file__).parent) + os.sep

# Characters of a line of code in a message.
_SHOWN = 100


class Places:
    """Follows a model while it runs, and says where it is."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._names = {id(module): name or "the model" for name, module in model.named_modules()}
        self._modules: list[str] = []
        self._origins: dict[int, Place] = {}
        self._last = _next_number()
        self._latest = Place("", "")

    @contextmanager
    def following(self) -> Iterator[None]:
        """Notice which of the model's modules is running."""
        handles = [
            torch.nn.modules.module.register_module_forward_pre_hook(self._enter),
            torch.nn.modules.module.register_module_forward_hook(self._leave),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def here(self) -> Place:
        """Where the operator that is being dispatched comes from."""
        node: Any = torch._C._current_autograd_node()  # torch says that it always gives one
        place = None if node is None else self._origins.get(node._sequence_nr())
        if place is None:
            place = Place(self._modules[-1] if self._modules else "", _source())
        following = _next_number()
        # The newest node is this operator's; any between were made after the last one, for what that changed.
        self._origins |= dict.fromkeys(range(self._last, following), self._latest)
        if node is None and following > self._last:
            self._origins[following - 1] = place
        self._last, self._latest = following, place
        return place

    def _enter(self, module: torch.nn.Module, _: Any) -> None:
        if id(module) in self._names:
            self._modules.append(f"{self._names[id(module)]} ({type(module).__name__})")

    def _leave(self, module: torch.nn.Module, _: Any, __: Any) -> None:
        if id(module) in self._names:
            self._modules.pop()


def _next_number() -> int:
    return int(torch._C._autograd._get_sequence_nr())


def _source() -> str:
    """The deepest line that runs which is neither torch's nor ours; empty if that called us from outside."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_OURS) and frame.f_code.co_name == "record":
            return ""
        if not file.startswith(_TORCH) and (not file.startswith(_OURS) or file.startswith(_EXAMPLES)):
            text = linecache.getline(file, frame.f_lineno).strip()
            text = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
            shown = os.path.relpath(file) if file.startswith(os.getcwd() + os.sep) else file
            return f"{shown}:{frame.f_lineno}" + (f" `{text}`" if text else "")
        frame = frame.f_back
    return ""
