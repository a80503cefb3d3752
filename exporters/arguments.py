"""How a model's forward is called with named tensors: one is "x", several have the names of forward's parameters.

Tensors inside a tuple or a dict that forward takes whole are named after it: "batch.tokens", "pair.0".
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from edge_sdk.errors import ExportError

ExampleInputs: TypeAlias = torch.Tensor | tuple[Any, ...] | Mapping[str, Any]
"""One tensor, a tuple of forward's arguments, or a dict of its keyword arguments; each a tensor, or some nested."""

ONLY = "x"

_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


@dataclass(frozen=True, slots=True, eq=False)
class Arguments:
    """The arguments of a call of forward, with names where its tensors go."""

    positional: tuple[Any, ...] = (ONLY,)
    keywords: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in order."""
        return tuple(_leaves((self.positional, self.keywords)))

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for a call with these tensors."""
        return _replaced(self.positional, tensors.__getitem__), _replaced(self.keywords, tensors.__getitem__)


def read_arguments(model: torch.nn.Module, inputs: ExampleInputs) -> tuple[Arguments, dict[str, torch.Tensor]]:
    """Name the tensors of a call of a model's forward.

    Returns:
        How to call it, and the tensors by name.

    Raises:
        ExportError: forward takes other arguments, or something in them is no tensor or has no name.
    """
    args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    kwargs = {}
    if isinstance(inputs, Mapping):
        args, kwargs = (), dict(inputs)
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise ExportError(
            f"the model's forward cannot be called with the example inputs: {error}",
            hint="pass one tensor, a tuple of forward's arguments, or a dict of its keyword arguments",
        ) from error
    tensors: dict[str, torch.Tensor] = {}
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            bound.arguments[name] = {key: _named(key, item, tensors) for key, item in value.items()}
        else:
            bound.arguments[name] = _named(name, value, tensors)
    arguments = Arguments(bound.args, bound.kwargs)
    if len(tensors) == 1:
        (tensor,) = tensors.values()
        return Arguments(_replaced(bound.args, lambda _: ONLY), _replaced(bound.kwargs, lambda _: ONLY)), {ONLY: tensor}
    return arguments, tensors


def _named(name: str, value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Put names in the places of tensors, and the tensors under them into `tensors`."""
    match value:
        case torch.Tensor():
            if not _NAME.fullmatch(name) or name in tensors:
                raise ExportError(
                    f"an input cannot have the name {name!r}",
                    hint="use letters, digits and underscores, each name once",
                )
            tensors[name] = value
            return name
        case tuple() | list():
            return tuple(_named(f"{name}.{index}", item, tensors) for index, item in enumerate(value))
        case Mapping():
            return {key: _named(f"{name}.{key}", item, tensors) for key, item in value.items()}
        case _:
            raise ExportError(
                f"input {name} is a {type(value).__name__}, not a tensor",
                hint="pass tensors only; let a wrapping module give forward its other arguments",
            )


def _leaves(structure: Any) -> Iterator[str]:
    if isinstance(structure, str):
        yield structure
    else:
        for item in structure.values() if isinstance(structure, Mapping) else structure:
            yield from _leaves(item)


def _replaced(structure: Any, function: Callable[[str], Any]) -> Any:
    """The structure with something in the place of each name."""
    if isinstance(structure, str):
        return function(structure)
    if isinstance(structure, Mapping):
        return {key: _replaced(item, function) for key, item in structure.items()}
    return tuple(_replaced(item, function) for item in structure)
