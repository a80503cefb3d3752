"""Clipped sums from one backward pass against plain autograd on each example alone, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from edge_sdk.errors import ExportError
from exporters.per_example import clipped_sum

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Build = Callable[[], nn.Module]

BATCH = 11  # No layer below has a dimension of that size, so that it must be the examples'.


def _of_tokens(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def _summed(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(output, target, reduction="sum")


class _First(nn.Module):
    """The first of what a layer gives; `by_time` for layers whose first dimension is time."""

    def __init__(self, layer: nn.Module, *, by_time: bool = False) -> None:
        super().__init__()
        self.layer, self.by_time = layer, by_time

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(x.transpose(0, 1) if self.by_time else x)[0]
        return found.transpose(0, 1) if self.by_time else found


class _Attention(nn.Module):
    """All ways in which multi-head attention projects its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True, bias=False)
        self.other = nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=5, add_bias_kv=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.own(x, x, x)[0]
        y = y + self.cross(y, x, x)[0]
        return torch.as_tensor(self.other(y, x[..., :6], x[..., :5])[0])


class _Bare(nn.Module):
    """Parameters of the model's own: scales, a class token, positions, a mask's token, a bias for some channels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.scale, self.gain = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.rand(8))
        self.token, self.hole = nn.Parameter(torch.rand(1, 1, 8)), nn.Parameter(torch.rand(8))
        self.positions, self.table = nn.Parameter(torch.rand(1, 6, 8)), nn.Embedding(9, 8)
        self.few, self.product = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.where(x.sum(-1, keepdim=True) > 0, self.hole, x)
        x = self.linear(x) * self.scale - self.gain
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.positions[:, : x.shape[1]] + self.table(torch.arange(x.shape[1]))
        x = torch.cat([x[..., :4] * self.few, x[..., 4:]], -1)
        return torch.as_tensor(x @ self.product)


class _Contracted(nn.Module):
    """Einstein sums with matrices on either side, and one matrix for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.rand(6, 8)), nn.Parameter(torch.rand(6, 6))
        self.heads, self.left = nn.Parameter(torch.rand(2, 3, 4)), nn.Parameter(torch.rand(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.einsum("oi,bti->bto", self.one, x)
        x = torch.tanh(torch.einsum("bti,io->bto", x, self.two))
        x = torch.einsum("bthi,hio->btho", x.reshape(*x.shape[:2], 2, 3), self.heads).flatten(-2)
        return (self.left @ x.sum(1).t()).t()


class _Adapter(nn.Module):
    """A low-rank adapter beside a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 6).requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.rand(2, 8)), nn.Parameter(torch.rand(6, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.base(x) + F.linear(F.linear(x, self.down), self.up) * 2.0)


class _Joined(nn.Module):
    """Time and examples joined into one dimension by the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.RNN(6, 8), nn.Linear(8, 5)
        self.frames = nn.Conv1d(1, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, steps, width = x.shape
        frames = self.frames(x.reshape(batch * steps, 1, width)).sum(1).reshape(x.shape)
        found = self.recurrent(frames.transpose(0, 1))[0]
        return torch.as_tensor(self.head(found.reshape(steps * batch, 8)).reshape(steps, batch, 5).transpose(0, 1))


class _Twice(nn.Module):
    """Layers that are used twice in the same way."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle, self.head = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.table(x) + self.table(x.flip(1)) * 0.5
        return torch.as_tensor(self.head(torch.tanh(self.middle(torch.tanh(self.middle(y))))))


def _frozen_norm() -> nn.Module:
    norm = nn.BatchNorm1d(5).eval()
    norm.running_mean, norm.running_var = torch.rand(5), torch.rand(5) + 0.5
    return nn.Sequential(nn.Linear(6, 5), norm)


@dataclass(frozen=True)
class Case:
    """A model, one example's shape or the number of tokens it knows, its classes, and its loss."""

    build: Build
    shape: tuple[int, ...]
    target: tuple[int, ...] = ()
    loss: Loss = F.cross_entropy
    tokens: int = 0

    def examples(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch with one example twice."""
        shape = (BATCH, *self.shape)
        x = torch.randint(self.tokens, shape) if self.tokens else torch.randn(shape, dtype=torch.float64)
        y = torch.randint(5, (BATCH, *self.target))
        x[3], y[3] = x[7], y[7]
        return x, y.double() if self.loss is _summed else y


def _convolutions(*layers: nn.Module, channels: int = 4) -> Build:
    return lambda: nn.Sequential(nn.Conv2d(3, channels, 1), nn.Tanh(), *layers, nn.Flatten(), nn.LazyLinear(5))


CASES = {
    "mlp": Case(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 5)), (6,)),
    "loss summed": Case(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)), (6,), (5,), _summed),
    "linear on tokens": Case(lambda: nn.Linear(6, 5), (4, 6), (4,), _of_tokens),
    "convolution": Case(_convolutions(nn.Conv2d(4, 6, 3, padding=1)), (3, 9, 8)),
    "convolution of many channels": Case(_convolutions(nn.Conv2d(12, 10, 3, 2), channels=12), (3, 9, 8)),
    "convolution of a small map": Case(_convolutions(nn.Conv2d(4, 40, 3, 4)), (3, 5, 5)),
    "convolution dilated": Case(_convolutions(nn.Conv2d(4, 6, (1, 3), (2, 1), (0, 2), (1, 2))), (3, 9, 8)),
    "convolution in groups": Case(_convolutions(nn.Conv2d(4, 6, 3, 2, 1, groups=2)), (3, 9, 8)),
    "convolution by channel": Case(_convolutions(nn.Conv2d(4, 4, 3, 2, 1, groups=4)), (3, 9, 8)),
    "convolution by channel, widening": Case(_convolutions(nn.Conv2d(4, 8, 3, groups=4)), (3, 9, 8)),
    "convolution by channel, dilated": Case(_convolutions(nn.Conv2d(4, 4, 3, 1, 2, 2, groups=4)), (3, 9, 8)),
    "convolution by channel, transposed": Case(_convolutions(nn.ConvTranspose2d(4, 4, 3, 2, 1, groups=4)), (3, 5, 4)),
    "convolution by channel, 1d": Case(
        lambda: nn.Sequential(nn.Conv1d(3, 3, 3, 2, groups=3), nn.Flatten(), nn.Linear(12, 5)), (3, 9)
    ),
    "convolution transposed": Case(_convolutions(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1)), (3, 5, 4)),
    "convolution transposed in groups": Case(_convolutions(nn.ConvTranspose2d(4, 6, 3, groups=2)), (3, 5, 4)),
    "convolution 1d": Case(lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(24, 5)), (3, 8)),
    "norms": Case(
        _convolutions(
            nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm((6, 6)), nn.RMSNorm(6), nn.PReLU(4)
        ),
        (3, 6, 6),
    ),
    "embedding": Case(
        lambda: nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Flatten(), nn.Linear(24, 5)), (6,), tokens=7
    ),
    "embedding of one token": Case(lambda: nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 5)), (), tokens=7),
    "lstm": Case(lambda: _First(nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)), (4, 6), (4,), _of_tokens),
    "gru": Case(lambda: _First(nn.GRU(6, 5), by_time=True), (4, 6), (4,), _of_tokens),
    "rnn": Case(lambda: _First(nn.RNN(6, 5, batch_first=True, bias=False)), (4, 6), (4,), _of_tokens),
    "lstm cell": Case(lambda: _First(nn.LSTMCell(6, 5)), (6,)),
    "attention": Case(_Attention, (4, 8), (4,), _of_tokens),
    "transformer": Case(
        lambda: nn.Sequential(
            nn.Embedding(9, 8), nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Linear(8, 5)
        ),
        (4,),
        (4,),
        _of_tokens,
        9,
    ),
    "bare parameters": Case(_Bare, (5, 8), (6,), _of_tokens),
    "einsum": Case(_Contracted, (4, 8)),
    "batch norm frozen": Case(_frozen_norm, (6,)),
    "adapter": Case(_Adapter, (8,)),
    "joined dimensions": Case(_Joined, (4, 6), (4,), _of_tokens),
    "used twice": Case(_Twice, (4,), (4,), _of_tokens, 7),
}


def _prepared(build: Build, x: torch.Tensor) -> nn.Module:
    model = build().double()
    model(x)  # Lazy layers learn their sizes.
    return model


def _alone(model: nn.Module, loss: Loss, x: torch.Tensor, y: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """The gradient of each example's loss, computed from nothing but that example."""
    found = []
    for row in range(len(x)):
        parameters = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}
        value = loss(functional_call(model, parameters, (x[row : row + 1],)), y[row : row + 1])
        gradients = torch.autograd.grad(value, list(parameters.values()))
        found.append(dict(zip(parameters, gradients, strict=True)))
    return found


def _norm(gradients: Mapping[str, torch.Tensor]) -> float:
    return float(torch.sqrt(torch.stack([(g * g).sum() for g in gradients.values()]).sum()))


def _together(
    model: nn.Module, loss: Loss, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, clip_norm: float
) -> dict[str, torch.Tensor]:
    leaves = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}
    value = loss(functional_call(model, leaves, (x,)), y)
    return clipped_sum(value, leaves, weight=weight, clip_norm=clip_norm, mean=loss is not _summed)


@pytest.mark.parametrize("name", CASES)
def test_the_clipped_sum_is_that_of_single_examples(name: str) -> None:
    """With a clip norm that half of the examples exceed, weights of which some are zero, and an example twice."""
    torch.manual_seed(1)
    case = CASES[name]
    x, y = case.examples()
    model = _prepared(case.build, x)
    single = _alone(model, case.loss, x, y)
    norms = [_norm(gradients) for gradients in single]
    clip_norm = sorted(norms)[len(norms) // 2]
    weight = torch.ones(len(x), dtype=torch.float64)
    weight[1], weight[4], weight[5] = 0, 0.5, 2
    found = _together(model, case.loss, x, y, weight, clip_norm)
    factors = [float(w) * min(1, clip_norm / norm) for w, norm in zip(weight, norms, strict=True)]
    assert found.keys() == single[0].keys()
    for key, value in found.items():
        expected = sum(f * gradients[key] for f, gradients in zip(factors, single, strict=True))
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12, msg=key)


def test_a_sum_of_no_weight_is_zero_and_an_unused_parameter_is_left_out() -> None:
    model = nn.Linear(3, 2).double()
    leaves = {"weight": model.weight, "other": nn.Parameter(torch.ones(2, dtype=torch.float64))}
    loss = F.cross_entropy(F.linear(torch.randn(4, 3, dtype=torch.float64), model.weight), torch.zeros(4).long())
    found = clipped_sum(loss, leaves, weight=torch.zeros(4, dtype=torch.float64), clip_norm=1.0, mean=True)
    assert found.keys() == {"weight"}
    assert not found["weight"].any()


def test_a_gradient_of_zero_needs_no_clipping() -> None:
    weight = nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
    loss = F.mse_loss(F.linear(torch.randn(4, 2, dtype=torch.float64), weight), torch.zeros(4, 3, dtype=torch.float64))
    found = clipped_sum(loss, {"w": weight}, weight=torch.ones(4, dtype=torch.float64), clip_norm=1.0, mean=True)
    assert torch.equal(found["w"], torch.zeros_like(weight))


class _Tied(nn.Module):
    """An embedding that also maps back to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.table(x) @ self.table.weight.t())


class _Overlapping(nn.Module):
    """A layer, and a part of its weight used again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(x)[:, :4] + F.linear(x, self.layer.weight[:4]))


class _Relative(nn.Module):
    """Positions that share entries of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(x + self.table(torch.tensor([0, 1, 1, 2])))


class _Curved(nn.Module):
    """A parameter that is changed before the examples meet it."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Parameter(torch.rand(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * F.softplus(self.depth)


@pytest.mark.parametrize(
    ("build", "shape", "complaint"),
    [
        (_Tied, None, "parameter table.weight is tied"),
        (_Overlapping, (8,), "parameter layer.weight is tied"),
        (_Relative, (4, 8), "parameter table.weight is tied"),
        (_Curved, (8,), "parameter depth: its use in Softplus"),
        (
            lambda: nn.BatchNorm1d(8),
            (8,),
            "parameter weight: its use in NativeBatchNorm cannot be private: .* whole batch",
        ),
        (lambda: nn.Bilinear(8, 8, 5), (8,), "parameter weight: its use in Trilinear"),
        (lambda: weight_norm(nn.Linear(8, 5)), (8,), "parametrizations.weight.original0: its use in WeightNorm"),
        (lambda: nn.Embedding(7, 8, scale_grad_by_freq=True), None, "parameter weight: its use in Embedding"),
    ],
)
def test_what_has_no_sound_rule_is_refused_by_name(build: Build, shape: tuple[int, ...] | None, complaint: str) -> None:
    x = torch.randint(7, (BATCH, 4)) if shape is None else torch.randn(BATCH, *shape, dtype=torch.float64)
    model = build().double()
    output = model(x, x) if isinstance(model, nn.Bilinear) else model(x)
    weight = torch.ones(BATCH, dtype=torch.float64)
    with pytest.raises(ExportError, match=complaint) as caught:
        clipped_sum(output.square().mean(), dict(model.named_parameters()), weight=weight, clip_norm=1.0, mean=True)
    assert caught.value.hint
