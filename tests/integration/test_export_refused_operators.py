"""Operators that no graph can hold are refused with the line that calls them, the reason and a way out."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from edge_sdk.errors import ExportError
from tests.integration.exported import exported, labels


class _Words(nn.Module):
    """Five tokens out of 11, in eight numbers each, through whatever is given."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor], layer: nn.Module) -> None:
        super().__init__()
        self.read, self.layer, self.head, self._use = nn.Embedding(11, 8), layer, nn.Linear(8, 10), use

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.read(x).mean(1) + self._use(self, x)))


def _packed(m: _Words, x: Tensor) -> Tensor:
    lengths = (x != 0).sum(1).clamp(min=1)
    packed = pack_padded_sequence(m.read(x), lengths, batch_first=True, enforce_sorted=False)
    return torch.as_tensor(m.layer(packed)[1][0][-1])


def _bags(m: _Words, x: Tensor) -> Tensor:
    return torch.as_tensor(m.layer(x.reshape(-1), torch.arange(len(x)) * 5))


def _rows(m: _Words, x: Tensor) -> Tensor:
    return torch.as_tensor(m.layer(x).sum(1))


def _autocast(m: _Words, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.as_tensor(m.layer(m.read(x).mean(1)))


def _squares(m: _Words, x: Tensor) -> Tensor:
    y = m.read(x)
    return torch.as_tensor(y.mT @ y + torch.eye(8))


def _unpooled(m: _Words, x: Tensor) -> Tensor:
    y, places = F.max_pool2d(m.read(x).unsqueeze(1), (1, 2), return_indices=True)
    return torch.as_tensor(nn.MaxUnpool2d((1, 2))(y, places).sum((1, 2)))


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[], nn.Module], str, str]] = {
    "packed sequences": (_packed, lambda: nn.LSTM(8, 8, batch_first=True), "_pack_padded_sequence.*lengths", "padded"),
    "bags by offsets": (_bags, lambda: nn.EmbeddingBag(11, 8), "_embedding_bag.*offsets", "padding_idx"),
    "max_norm": (_rows, lambda: nn.Embedding(11, 8, max_norm=1.0), "embedding_renorm.*max_norm", "norm"),
    "frequencies": (
        _rows,
        lambda: nn.Embedding(11, 8, scale_grad_by_freq=True),
        "embedding_dense_backward.*scale_grad_by_freq",
        "",
    ),
    "inverse": (lambda m, x: torch.linalg.inv(_squares(m, x)).sum(1), nn.Identity, "inv.*inverses", "outside forward"),
    "solver": (lambda m, x: torch.linalg.solve(_squares(m, x), m.read(x).mT).sum(2), nn.Identity, "solve", "outside"),
    "determinant": (lambda m, x: torch.linalg.det(_squares(m, x))[:, None], nn.Identity, "det", "outside forward"),
    "singular values": (lambda m, x: torch.linalg.svdvals(_squares(m, x)), nn.Identity, "svd", "outside forward"),
    "fourier": (lambda m, x: torch.fft.rfft(m.read(x).mean(1)).abs().sum(1, True), nn.Identity, "_fft_r2c", "cosines"),
    "half": (lambda m, x: m.read(x).half().float().sum(1), nn.Identity, "has dtype torch.float16", "autocast"),
    "autocast": (_autocast, lambda: nn.Linear(8, 8), "has dtype torch.bfloat16", "autocast"),
    "unpooling": (_unpooled, nn.Identity, "unpool.*positions of maxima", "ConvTranspose"),
    "item": (lambda m, x: m.read(x).sum(1) * m.read(x).sum().item(), nn.Identity, "values in the batch", "where"),
    "condition": (
        lambda m, x: m.read(x).sum(1) if m.read(x).sum() > 0 else m.read(x).mean(1),
        nn.Identity,
        "values in the batch",
        "where",
    ),
    "mask": (lambda m, x: m.read(x)[x > 3].sum(0, keepdim=True), nn.Identity, r"index\.Tensor.*values", "mask"),
    "nonzero": (lambda m, x: m.read(x).sum(1) * len(x.nonzero()), nn.Identity, "nonzero.*values", "where"),
    "unique": (lambda m, x: m.read(x).sum(1) * len(torch.unique(x)), nn.Identity, "unique.*values", "where"),
    "random numbers": (lambda m, x: torch.randn(len(x), 8), nn.Identity, "randn.*random numbers", "dropout|random"),
    "operator that runs": (
        lambda m, x: m.read(x).sum(1) + (1 if len(x) > 5 else m.read(x).amax()),
        nn.Identity,
        r"which operator runs \(aten\.\S+ or aten\.\S+\) depends on the batch size",
        "every example",
    ),
    "number": (
        lambda m, x: m.read(x).sum(1) * (1.0 / (len(x) + 1)),
        nn.Identity,
        "an argument of aten.mul",
        "every example",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_refused_by_name_and_line(name: str) -> None:
    use, make, words, hint = CASES[name]
    torch.manual_seed(0)
    with pytest.raises(ExportError) as caught:
        exported(_Words(use, make()), torch.randint(0, 11, (6, 5)), labels(6))
    assert re.search(rf"in [^,]+, \S*test_export_refused_operators\.py:\d+ `.+`: .*{words}", str(caught.value))
    assert re.search(hint, str(caught.value.hint))


def test_a_loss_is_refused_by_name_and_line() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        steps = output.view(-1, 2, 5).permute(1, 0, 2).log_softmax(2)
        return F.ctc_loss(steps, target[:, None] % 4 + 1, torch.full_like(target, 2), torch.ones_like(target))

    with pytest.raises(ExportError) as caught:
        exported(nn.Linear(12, 10), torch.randn(6, 12), labels(6), loss)
    assert re.search(
        r"in \S*test_export_refused_operators\.py:\d+ `return F\.ctc_loss\(.*`: aten\._ctc_loss", str(caught.value)
    )
