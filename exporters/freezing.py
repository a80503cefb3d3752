"""Which part of a model is trained, and how the rest is stored."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

import torch

from edge_sdk.errors import ExportError

Patterns: TypeAlias = str | Sequence[str]
"""Names of a state_dict, where * stands for anything: "head.*", ["*.lora_a", "*.lora_b"]."""

FrozenStorage = Literal["float32", "int8"]

_LEVELS = 127


def freeze_all_but(model: torch.nn.Module, patterns: Patterns) -> None:
    """Train the parameters that some pattern matches, and no other; keep other batch norms' statistics as they are.

    Raises:
        ExportError: a pattern matches nothing that can be trained.
    """
    wanted = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]

    def matches(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in wanted)

    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = get_close_matches(pattern, names, 3, 0.4) or names[:3]
            raise ExportError(
                f"no parameter is called {pattern!r}",
                hint=f"name those to train as in state_dict, such as {', '.join(near)}; * stands for anything",
            )
    # A tied parameter has several names, each of which may be meant.
    trained = {id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False) if matches(name)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, torch.nn.modules.batchnorm._NormBase) and not matches(f"{prefix}running_mean"):
            module.eval()


def quantise(model: torch.nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Round the frozen matrices of a model to 8 bits, in place, each row (output channel) on a scale of its own.

    Returns:
        int8 numbers and float32 scales by parameter name; the model's weights are now their products.

    Raises:
        ExportError: nothing is frozen that could be rounded.
    """
    stored = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or parameter.ndim < 2:
            continue
        rows = parameter.detach().reshape(len(parameter), -1)
        scales = rows.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / _LEVELS
        numbers = (rows / scales[:, None]).round().clamp(-_LEVELS, _LEVELS).to(torch.int8).reshape(parameter.shape)
        parameter.data = numbers.float() * scales.reshape(-1, *[1] * (parameter.ndim - 1))
        stored[name] = (numbers, scales)
    if not stored:
        raise ExportError(
            "there is no frozen matrix to store in int8",
            hint='say what to train, as in trainable="head.*", or leave frozen="float32"',
        )
    return stored
