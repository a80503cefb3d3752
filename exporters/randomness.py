"""Dropout whose masks follow from a seed, so that a step can be repeated anywhere; `hashing` has the formula."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from exporters.hashing import WORD, bound, mixed, stirred, stride


def keep(seed: torch.Tensor, site: int, size: Sequence[int], share: float) -> torch.Tensor:
    """The mask of one dropout: a bool tensor of that size, each element true with that share.

    Args:
        seed: a 0-d int64 tensor, below 2**31.
        site: the number of the dropout in its forward pass.
        size: the mask's shape.
        share: from 0 to 1.
    """
    words = stirred((torch.arange(math.prod(size)) * stride(site) + mixed(seed)) & WORD)
    return (torch.where(words < 2**31, words, words - 2**32) < bound(share)).reshape(*size)


# An operator, so that it is recorded as one call.
_library: Any = torch.library.Library("edge_sdk", "DEF")  # type: ignore[no-untyped-call]  # torch's has no types
_library.define("keep(Tensor seed, int site, int[] size, float share) -> Tensor")
_library.impl("keep", keep, "CompositeExplicitAutograd")


class Seeded(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's has no types
    """Draws the masks of dropout from a seed; other randomness is left as it is."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # By default torch wraps the method below so that it imports torch._dynamo: two seconds for nothing.
        return False

    def __init__(self, seed: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seed = seed
        self._sites = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # All kinds of dropout draw by this one on processors.
        if func is not torch.ops.aten.bernoulli_.float:
            return func(*args, **(kwargs or {}))
        target, share = args[0], args[1] if len(args) > 1 else 0.5
        self._sites += 1
        return target.copy_(torch.ops.edge_sdk.keep(self._seed, self._sites - 1, list(target.shape), share))
