"""Typical mistakes in a gradient, planted into the lowering of a deep network of ReLUs: the certificate refuses each.

Float32 flips some units of such networks, so the certificate allows for that. Here it allows the most that it ever
does, whatever PyTorch errs by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edge_sdk.errors import ExportError
from exporters import reference
from exporters.lowering import RULES
from exporters.lowering.builder import Tensor
from exporters.lowering.site import Result, Site
from tests.integration.exported import exported, labels

Change = Callable[[Site, str], str]

_CONVOLUTION, _LINEAR = "aten.convolution_backward.default", "aten.mm.default"


class _Net(nn.Module):
    """Eight convolutions with batch norms, skips and ReLUs, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(7))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(7))
        self.hidden, self.last = nn.Linear(8 * 4 * 4, 10), nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x))
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(x + norm(layer(x)))
        return torch.as_tensor(self.last(F.relu(self.hidden(F.max_pool2d(x, 2).flatten(1)))))


def _export(optimizer: str) -> None:
    torch.manual_seed(0)
    exported(_Net(), torch.randn(8, 1, 8, 8), labels(8), optimizer=optimizer)


@pytest.fixture(autouse=True)
def _most_lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if PyTorch itself erred as much as anything."""

    def most(noise: float, least: float, most: float) -> float:
        return most

    monkeypatch.setattr(reference, "_times", most)


def _planted(monkeypatch: pytest.MonkeyPatch, operator: str, result: int, at: int, change: Change) -> Callable[[], int]:
    """Change one result of the operator's call number `at`; tells how many were changed."""
    rule, calls, changed = RULES[operator], count(), count()

    def wrong(site: Site) -> Result | tuple[Result | None, ...] | None:
        found = rule(site)
        results = list(found) if isinstance(found, tuple) else [found]
        chosen = results[result]
        if chosen is not None and next(calls) == at:
            next(changed)
            if isinstance(chosen, Tensor):
                results[result] = replace(chosen, name=change(site, chosen.name))
            else:
                results[result] = change(site, chosen)
        return tuple(results) if isinstance(found, tuple) else results[0]

    monkeypatch.setitem(RULES, operator, wrong)
    return lambda: next(changed)


def _scaled(factor: float) -> Change:
    return lambda s, name: s.b.op("Mul", name, s.b.scalar(factor, "float32"))


def _transposed(*axes: int) -> Change:
    return lambda s, name: s.b.transpose(name, list(axes))


def _shifted(s: Site, name: str) -> str:
    """One pixel down."""
    kept = s.b.op("Slice", name, s.b.int64s([0]), s.b.int64s([-1]), s.b.int64s([2]))
    return s.b.op("Pad", kept, s.b.int64s([0, 0, 1, 0, 0, 0, 0, 0]))


def _plain_scale(s: Site, name: str) -> str:
    """A batch norm's gradient as if its mean and variance were constants."""
    scale = s.b.op("Mul", s.tensor("weight"), s.tensor("save_invstd"))
    return s.b.op("Mul", s.tensor("grad_out"), s.b.reshape(scale, (8, 1, 1)))


# Autograd goes from the last layer to the first.
PLANTED: dict[str, tuple[str, int, int, Change]] = {
    "weight gradient of one layer negated": (_CONVOLUTION, 1, 3, _scaled(-1.0)),
    "weight gradient of one layer a tenth too large": (_CONVOLUTION, 1, 3, _scaled(1.1)),
    "weight gradient with inputs and outputs swapped": (_CONVOLUTION, 1, 2, _transposed(1, 0, 2, 3)),
    "weight gradient with height and width swapped": (_CONVOLUTION, 1, 2, _transposed(0, 1, 3, 2)),
    "bias gradient dropped": (_CONVOLUTION, 2, 7, _scaled(0.0)),
    "input gradient of one layer negated": (_CONVOLUTION, 0, 3, _scaled(-1.0)),
    "input gradient padded off by one": (_CONVOLUTION, 0, 3, _shifted),
    "input gradient with the kernel turned round": (_CONVOLUTION, 0, 3, _transposed(0, 1, 3, 2)),
    "weight gradient padded off by one": (_CONVOLUTION, 1, 3, _shifted),
    "gradient of a linear layer's weight transposed": (_LINEAR, 0, 1, _transposed(1, 0)),
    "gradient of a linear layer's bias dropped": ("aten.sum.dim_IntList", 0, 0, _scaled(0.0)),
    "one branch of a skip forgotten": ("aten.add.Tensor", 0, 10, lambda s, _: s.tensor("other")),
    "the other branch forgotten": ("aten.add.Tensor", 0, 10, lambda s, _: s.tensor("self")),
    "ReLU that lets everything through": (
        "aten.threshold_backward.default",
        0,
        4,
        lambda s, _: s.tensor("grad_output"),
    ),
    "batch norm without the gradients of its statistics": (
        "aten.native_batch_norm_backward.default",
        0,
        2,
        _plain_scale,
    ),
    "gradient of a batch norm's bias dropped": ("aten.native_batch_norm_backward.default", 2, 2, _scaled(0.0)),
    "loss divided by the wrong number": ("aten.nll_loss_backward.default", 0, 0, _scaled(0.9)),
}


def test_the_net_itself_is_certified() -> None:
    _export("sgd")


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [*((name, "sgd") for name in PLANTED), *((name, "adam") for name in list(PLANTED)[::4])],
)
def test_a_wrong_gradient_is_refused(name: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = _planted(monkeypatch, *PLANTED[name])
    with pytest.raises(ExportError, match="does not match float64 autograd at step"):
        _export(optimizer)
    assert changed() == 1
