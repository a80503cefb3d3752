"""Layers that the exporter covers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from tests.integration.covered import Covered, Using, function, layer, real

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "LeakyReLU": lambda: nn.LeakyReLU(0.2),
    "LeakyReLU: in place": lambda: nn.LeakyReLU(inplace=True),
    "PReLU": lambda: nn.PReLU(8),
    "RReLU: in evaluation mode": lambda: nn.RReLU().eval(),
    "ELU": lambda: nn.ELU(0.7),
    "ELU: in place": lambda: nn.ELU(inplace=True),
    "SELU": nn.SELU,
    "CELU": lambda: nn.CELU(0.6),
    "GELU": nn.GELU,
    "GELU: tanh": lambda: nn.GELU("tanh"),
    "SiLU": nn.SiLU,
    "SiLU: in place": lambda: nn.SiLU(inplace=True),
    "Mish": nn.Mish,
    "Hardswish": nn.Hardswish,
    "Hardsigmoid": nn.Hardsigmoid,
    "Hardtanh": lambda: nn.Hardtanh(-0.5, 0.7),
    "Hardshrink": lambda: nn.Hardshrink(0.3),
    "Softshrink": lambda: nn.Softshrink(0.3),
    "Tanhshrink": nn.Tanhshrink,
    "Softplus": lambda: nn.Softplus(2, 1),
    "Softsign": nn.Softsign,
    "Sigmoid": nn.Sigmoid,
    "LogSigmoid": nn.LogSigmoid,
    "Tanh": nn.Tanh,
    "Threshold": lambda: nn.Threshold(0.1, 0.5),
    "GLU": nn.GLU,
    "Softmax": lambda: nn.Softmax(-1),
    "Softmin": lambda: nn.Softmin(-1),
    "LogSoftmax": lambda: nn.LogSoftmax(-1),
}
ACTIVATIONS = {f"nn.{name}": layer((8,), make) for name, make in _ACTIVATIONS.items()} | {
    "nn.PReLU: on maps": layer((3, 2, 2), lambda: nn.PReLU(3)),
    "nn.Softmax2d": layer((8, 2, 2), nn.Softmax2d),
}

CONVOLUTIONS = {
    "nn.Conv1d": layer((4, 9), lambda: nn.Conv1d(4, 4, 3, 2, 2, 2, groups=2)),
    "nn.Conv1d: same": layer((3, 7), lambda: nn.Conv1d(3, 4, 3, padding="same")),
    "nn.Conv1d: circular": layer((3, 7), lambda: nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular")),
    "nn.Conv1d: reflect": layer((3, 7), lambda: nn.Conv1d(3, 4, 3, padding=1, padding_mode="reflect")),
    "nn.Conv2d": layer((2, 5, 5), lambda: nn.Conv2d(2, 3, 3, 2, bias=False)),
    "nn.Conv2d: replicate": layer((2, 4, 4), lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate")),
    "nn.Conv3d": layer((2, 3, 4, 4), lambda: nn.Conv3d(2, 3, 2, stride=2, padding=1)),
    "nn.ConvTranspose1d": layer((4, 5), lambda: nn.ConvTranspose1d(4, 6, 4, 2, 1, groups=2)),
    "nn.ConvTranspose2d": layer((3, 3, 4), lambda: nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1)),
    "nn.ConvTranspose3d": layer((2, 2, 2, 2), lambda: nn.ConvTranspose3d(2, 3, 2, 2)),
    "nn.Unfold": layer((2, 4, 4), lambda: nn.Unfold(2, padding=1, stride=2)),
    "nn.Fold": layer((18, 16), lambda: nn.Fold((4, 4), 3, padding=1)),
    "nn.PixelShuffle": layer((4, 3, 3), lambda: nn.PixelShuffle(2)),
    "nn.PixelUnshuffle": layer((2, 4, 4), lambda: nn.PixelUnshuffle(2)),
    "nn.ChannelShuffle": layer((4, 3, 3), lambda: nn.ChannelShuffle(2)),
    "channels_last": function((2, 3, 3), lambda x: x.contiguous(memory_format=torch.channels_last).relu()),
}

POOLING = {
    "nn.MaxPool1d": layer((3, 7), lambda: nn.MaxPool1d(3, 2, 1)),
    "nn.MaxPool2d": layer((2, 5, 5), lambda: nn.MaxPool2d(3, 2, 1)),
    "nn.MaxPool3d": layer((2, 4, 4, 4), lambda: nn.MaxPool3d(2)),
    "nn.AvgPool1d": layer((3, 7), lambda: nn.AvgPool1d(3, 2, 1)),
    "nn.AvgPool2d": layer((2, 4, 5), lambda: nn.AvgPool2d(2)),
    "nn.AvgPool2d: ceil_mode": layer((2, 6, 6), lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    "nn.AvgPool2d: count_include_pad=False": layer((2, 5, 5), lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
    "nn.AvgPool2d: divisor_override": layer((2, 4, 4), lambda: nn.AvgPool2d(2, divisor_override=3)),
    "nn.AvgPool3d": layer((2, 4, 4, 4), lambda: nn.AvgPool3d(2)),
    "nn.AdaptiveAvgPool1d": layer((2, 7), lambda: nn.AdaptiveAvgPool1d(3)),
    "nn.AdaptiveAvgPool2d": layer((2, 5, 4), lambda: nn.AdaptiveAvgPool2d((3, None))),
    "nn.AdaptiveAvgPool3d": layer((2, 4, 4, 5), lambda: nn.AdaptiveAvgPool3d(2)),
    "nn.AdaptiveMaxPool1d": layer((2, 7), lambda: nn.AdaptiveMaxPool1d(3)),
    "nn.AdaptiveMaxPool2d": layer((2, 5, 4), lambda: nn.AdaptiveMaxPool2d((2, 3))),
    "nn.AdaptiveMaxPool3d": layer((2, 4, 4, 4), lambda: nn.AdaptiveMaxPool3d(2)),
    "nn.LPPool1d": layer((2, 6), lambda: nn.LPPool1d(2, 2)),
    "nn.LPPool2d": layer((2, 4, 4), lambda: nn.LPPool2d(2, 2)),
}

RESAMPLING = (
    {
        "nn.ZeroPad2d": layer((2, 4, 4), lambda: nn.ZeroPad2d((-1, 0, 1, -2))),
        "nn.ConstantPad2d": layer((2, 4, 4), lambda: nn.ConstantPad2d((1, 0, 2, 1), 0.3)),
        "nn.ReflectionPad1d": layer((2, 5), lambda: nn.ReflectionPad1d((2, 1))),
        "nn.ReflectionPad2d": layer((2, 4, 4), lambda: nn.ReflectionPad2d((1, 2, 0, 1))),
        "nn.ReflectionPad3d": layer((2, 3, 3, 3), lambda: nn.ReflectionPad3d(1)),
        "nn.ReplicationPad1d": layer((2, 5), lambda: nn.ReplicationPad1d((2, 1))),
        "nn.ReplicationPad2d": layer((2, 4, 4), lambda: nn.ReplicationPad2d((1, 2, 3, 1))),
        "nn.ReplicationPad3d": layer((2, 3, 3, 3), lambda: nn.ReplicationPad3d(1)),
        "nn.CircularPad1d": layer((2, 5), lambda: nn.CircularPad1d((2, 1))),
        "nn.CircularPad2d": layer((2, 4, 4), lambda: nn.CircularPad2d(1)),
        "nn.CircularPad3d": layer((2, 3, 3, 3), lambda: nn.CircularPad3d(1)),
        "nn.Upsample: nearest": layer((2, 3, 3), lambda: nn.Upsample(scale_factor=2)),
        "nn.Upsample: nearest, in 1 dimension": layer((2, 4), lambda: nn.Upsample(7)),
        "nn.Upsample: nearest, in 3 dimensions": layer((2, 2, 2, 2), lambda: nn.Upsample(scale_factor=2)),
        "nn.Upsample: linear": layer((2, 4), lambda: nn.Upsample(scale_factor=2, mode="linear")),
        "nn.Upsample: bilinear": layer((2, 3, 3), lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
        "nn.Upsample: bilinear, align_corners": layer(
            (2, 3, 3), lambda: nn.Upsample((5, 7), mode="bilinear", align_corners=True)
        ),
        "nn.Upsample: trilinear": layer((2, 2, 2, 2), lambda: nn.Upsample(scale_factor=2, mode="trilinear")),
        "nn.Upsample: bicubic": layer((2, 4, 4), lambda: nn.Upsample(scale_factor=2, mode="bicubic")),
        "nn.Upsample: bicubic, align_corners": layer(
            (2, 4, 4), lambda: nn.Upsample((5, 6), mode="bicubic", align_corners=True)
        ),
    }
    | {
        f"F.interpolate: {name}": function(shape, lambda x, settings=settings: F.interpolate(x, **settings))  # type: ignore[misc]
        for name, shape, settings in (
            ("smaller", (2, 5, 4), {"size": (3, 2), "mode": "bilinear"}),
            ("scale_factor=1.7", (2, 4, 4), {"scale_factor": 1.7, "mode": "bilinear"}),
            ("nearest-exact", (2, 4, 4), {"size": (5, 3), "mode": "nearest-exact"}),
            ("area", (2, 5, 4), {"size": (3, 2), "mode": "area"}),
            ("antialias", (2, 5, 4), {"size": (3, 2), "mode": "bilinear", "antialias": True}),
            ("bicubic, antialias", (2, 5, 4), {"size": (3, 2), "mode": "bicubic", "antialias": True}),
        )
    }
    | {
        "F.pad": function(
            (2, 4, 4), lambda x: F.pad(x, (1, 1, 1, 0), mode="circular") + F.pad(x, (2, 0, 0, 1), value=2)
        ),
        "F.grid_sample": function(
            (4, 3, 3), lambda x: F.grid_sample(x[:, :2], 0.6 * x[:, 2:].permute(0, 2, 3, 1), align_corners=False)
        ),
        "F.affine_grid": function(
            (2, 4), lambda x: F.affine_grid(F.pad(x[:, :, :2], (0, 1)), [len(x), 2, 3, 3], align_corners=False)
        ),
    }
)

NORMALISATION = {
    "nn.LayerNorm": layer((3, 4), lambda: nn.LayerNorm((3, 4), bias=False)),
    "nn.RMSNorm": layer((3, 4), lambda: nn.RMSNorm(4)),
    "nn.GroupNorm": layer((4,), lambda: nn.GroupNorm(2, 4)),
    "nn.BatchNorm1d": layer((4,), lambda: nn.BatchNorm1d(4)),
    "nn.BatchNorm2d": layer((4, 3, 3), lambda: nn.BatchNorm2d(4)),
    "nn.BatchNorm3d": layer((2, 2, 2, 2), lambda: nn.BatchNorm3d(2)),
    "nn.InstanceNorm1d": layer((4, 5), lambda: nn.InstanceNorm1d(4)),
    "nn.InstanceNorm2d": layer((4, 3, 3), lambda: nn.InstanceNorm2d(4, affine=True)),
    "nn.LocalResponseNorm": layer((4, 3, 3), lambda: nn.LocalResponseNorm(2)),
    "parametrizations.weight_norm": layer((4,), lambda: parametrizations.weight_norm(nn.Linear(4, 3))),
}


def tokens(count: int) -> Tensor:
    """Rows of five tokens out of 11."""
    return torch.randint(0, 11, (count, 5))


def _embedding(use: Callable[[Any, Tensor], Any] = lambda e, x: e(x), **settings: Any) -> Covered:
    return Covered(lambda: Using(nn.Embedding(11, 4, **settings), use), tokens)


def _bag(use: Callable[[Any, Tensor], Any] = lambda e, x: e(x), **settings: Any) -> Covered:
    return Covered(lambda: Using(nn.EmbeddingBag(11, 4, **settings), use), tokens)


class _Tied(nn.Module):
    """A language model that reads tokens by the weight that it writes them with."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.write = nn.Embedding(11, 4), nn.Linear(4, 11, bias=False)
        self.write.weight = self.read.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.write(torch.tanh(self.read(x))).transpose(1, 2))


class _Positioned(nn.Module):
    """Tokens after one of the model's own, with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.first = nn.Embedding(11, 4), nn.Parameter(torch.randn(1, 1, 4))
        self.places, self.positions = nn.Embedding(8, 4), nn.Parameter(torch.randn(1, 8, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.read(x) + self.places(torch.arange(x.shape[1]))
        return torch.cat([self.first.expand(len(x), -1, -1), y], 1) + self.positions[:, : x.shape[1] + 1]


EMBEDDINGS = {
    "nn.Embedding": _embedding(),
    "nn.Embedding: padding_idx": _embedding(padding_idx=-1),
    "nn.Embedding: sparse": _embedding(sparse=True),
    "nn.Embedding: weight[x]": _embedding(lambda e, x: e.weight[x]),
    "nn.Embedding: positions": Covered(_Positioned, tokens),
    "nn.Embedding: tied to the last layer": Covered(_Tied, tokens, tokens, F.cross_entropy),
    "nn.EmbeddingBag: sum": _bag(mode="sum"),
    "nn.EmbeddingBag: mean": _bag(mode="mean", padding_idx=2),
    "nn.EmbeddingBag: max": _bag(mode="max"),
    "nn.EmbeddingBag: max, padding_idx": _bag(mode="max", padding_idx=2),
    "nn.EmbeddingBag: per_sample_weights": _bag(lambda e, x: e(x, per_sample_weights=x / 11), mode="sum"),
}


class _Words(nn.Module):
    """Sentences filled up with token 0, read by a recurrent layer and told by `use(outputs, tokens)`."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor], recurrent: nn.Module) -> None:
        super().__init__()
        self.read, self.recurrent = nn.Embedding(11, 4, padding_idx=0), recurrent
        self.head, self._use = nn.LazyLinear(5), use
        self(tokens(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self._use(self.recurrent(self.read(x))[0], x)))


def _lengths(x: Tensor) -> Tensor:
    return (x != 0).sum(1).clamp(min=1)


def _last(y: Tensor, x: Tensor) -> Tensor:
    return y[torch.arange(len(y)), _lengths(x) - 1]


def _gathered(y: Tensor, x: Tensor) -> Tensor:
    return y.gather(1, (_lengths(x) - 1).view(-1, 1, 1).expand(-1, 1, y.shape[2])).squeeze(1)


def _mean(y: Tensor, x: Tensor) -> Tensor:
    mask = (torch.arange(x.shape[1]) < _lengths(x)[:, None]).unsqueeze(-1)
    return (y * mask).sum(1) / mask.sum(1)


def _padded(use: Callable[[Tensor, Tensor], Tensor], make: Callable[[], nn.Module]) -> Covered:
    return Covered(lambda: _Words(use, make()), tokens, lambda count: torch.arange(count) % 5, F.cross_entropy)


def _recurrent(
    make: Callable[[], nn.Module], use: Callable[[Any, Tensor], Any] = lambda m, x: m(x)[0], length: int = 3
) -> Covered:
    return layer((length, 4), make, use)


def _state(x: Tensor, start: int) -> Tensor:
    return x[:, start : start + 1, :3].transpose(0, 1).contiguous()


RECURRENT = {
    "nn.LSTM": _recurrent(lambda: nn.LSTM(4, 3), lambda m, x: m(x.transpose(0, 1))[0].transpose(0, 1)),
    "nn.LSTM: bidirectional, two layers": _recurrent(
        lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True)
    ),
    "nn.LSTM: last state": _recurrent(
        lambda: nn.LSTM(4, 3, num_layers=2, batch_first=True),
        lambda m, x: (m(x)[1][0] * m(x)[1][1]).transpose(0, 1),
    ),
    "nn.LSTM: first state": _recurrent(
        lambda: nn.LSTM(4, 3, batch_first=True), lambda m, x: m(x, (_state(x, 0), _state(x, 1)))[0]
    ),
    "nn.LSTM: first state of zeros": _recurrent(
        lambda: nn.LSTM(4, 3, batch_first=True),
        lambda m, x: m(x, (torch.zeros(1, len(x), 3), torch.zeros(1, len(x), 3)))[0],
    ),
    "nn.LSTM: proj_size": _recurrent(lambda: nn.LSTM(4, 3, proj_size=2, batch_first=True)),
    "nn.LSTM: bias=False": _recurrent(lambda: nn.LSTM(4, 3, bias=False, batch_first=True)),
    "nn.LSTM: padded sequences, last step": _padded(_last, lambda: nn.LSTM(4, 3, batch_first=True)),
    "nn.LSTM: padded sequences, mean": _padded(_mean, lambda: nn.LSTM(4, 3, batch_first=True, bidirectional=True)),
    "nn.GRU": _recurrent(lambda: nn.GRU(4, 3, num_layers=2, bidirectional=True, batch_first=True)),
    "nn.GRU: first and last state": _recurrent(
        lambda: nn.GRU(4, 3, batch_first=True), lambda m, x: m(x, _state(x, 0))[1].transpose(0, 1)
    ),
    "nn.GRU: padded sequences": _padded(_gathered, lambda: nn.GRU(4, 3, batch_first=True)),
    "nn.RNN": _recurrent(lambda: nn.RNN(4, 3, batch_first=True)),
    "nn.RNN: relu, bidirectional, two layers": _recurrent(
        lambda: nn.RNN(4, 3, num_layers=2, nonlinearity="relu", bidirectional=True, batch_first=True)
    ),
    "nn.LSTMCell": _recurrent(lambda: nn.LSTMCell(4, 3), lambda m, x: m(x[:, 1], m(x[:, 0]))[0], 2),
    "nn.GRUCell": _recurrent(lambda: nn.GRUCell(4, 3), lambda m, x: m(x[:, 1], m(x[:, 0])), 2),
    "nn.RNNCell": _recurrent(lambda: nn.RNNCell(4, 3), lambda m, x: m(x[:, 1], m(x[:, 0])), 2),
}

CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)


def _padding(x: Tensor) -> Tensor:
    """Which of five positions are filled up: a number of examples have only two that count, others three."""
    return torch.arange(5) >= (2 + (x[:, 0, :1].detach() > 0).long())


def _multi(use: Callable[[Any, Tensor], Any], **settings: Any) -> Covered:
    return Covered(lambda: Using(nn.MultiheadAttention(4, 2, **{"batch_first": True, **settings}), use), real(5, 4))


def _dot(use: Callable[..., Tensor], heads: tuple[int, ...] = (3, 2, 4, 3)) -> Covered:
    return function(heads, lambda x: use(*x.unbind(1)))


def _transformer(make: Callable[[], nn.Module], use: Callable[[Any, Tensor], Any] = lambda m, x: m(x)) -> Covered:
    return Covered(lambda: Using(make(), use), real(5, 4))


def _encoder(**settings: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, **settings)


ATTENTION = {
    "F.scaled_dot_product_attention": _dot(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3)),
    "F.scaled_dot_product_attention: causal": _dot(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    ),
    "F.scaled_dot_product_attention: boolean mask": _dot(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(4, 4, dtype=torch.bool).tril())
    ),
    "F.scaled_dot_product_attention: float mask": _dot(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=torch.linspace(-1, 1, 16).view(4, 4))
    ),
    "F.scaled_dot_product_attention: mask for each example": _dot(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=(q[:, :1, :1, :1] < k[..., :1].mT) | True)
    ),
    "F.scaled_dot_product_attention: rows that see nothing": _dot(
        lambda q, k, v: F.scaled_dot_product_attention(
            q, k, v, attn_mask=torch.tensor([[True] * 4] * 3 + [[False] * 4])
        )
    ),
    "F.scaled_dot_product_attention: grouped queries": function(
        (8, 4, 3), lambda x: F.scaled_dot_product_attention(x[:, :4], x[:, 4:6], x[:, 6:], enable_gqa=True)
    ),
    "nn.MultiheadAttention": _multi(lambda m, x: m(x, x, x)[0]),
    "nn.MultiheadAttention: need_weights=False": _multi(lambda m, x: m(x, x, x, need_weights=False)[0]),
    "nn.MultiheadAttention: its weights": _multi(
        lambda m, x: m(x, x, x, average_attn_weights=False)[1].sum(1) + m(x, x, x)[1] + m(x, x, x)[0][..., :1]
    ),
    "nn.MultiheadAttention: attn_mask": _multi(lambda m, x: m(x, x, x, attn_mask=CAUSAL)[0]),
    "nn.MultiheadAttention: causal": _multi(
        lambda m, x: m(x, x, x, attn_mask=CAUSAL, is_causal=True, need_weights=False)[0]
    ),
    "nn.MultiheadAttention: key_padding_mask": _multi(
        lambda m, x: m(x, x, x, key_padding_mask=_padding(x), need_weights=False)[0]
    ),
    "nn.MultiheadAttention: both masks": _multi(
        lambda m, x: m(x, x, x, key_padding_mask=_padding(x), attn_mask=CAUSAL < 0)[0]
    ),
    "nn.MultiheadAttention: other keys": _multi(lambda m, x: m(x, x[..., :3], x[..., 1:3])[0], kdim=3, vdim=2),
    "nn.MultiheadAttention: batch second": _multi(
        lambda m, x: m(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1), batch_first=False
    ),
    "nn.MultiheadAttention: bias_kv": _multi(
        lambda m, x: m(x, x, x)[0], add_bias_kv=True, add_zero_attn=True, bias=False
    ),
    "nn.TransformerEncoderLayer": _transformer(_encoder),
    "nn.TransformerEncoderLayer: norm_first, gelu": _transformer(lambda: _encoder(norm_first=True, activation="gelu")),
    "nn.TransformerEncoder: causal": _transformer(
        lambda: nn.TransformerEncoder(_encoder(), 2), lambda m, x: m(x, mask=CAUSAL, is_causal=True)
    ),
    "nn.TransformerEncoder: padding": _transformer(
        lambda: nn.TransformerEncoder(_encoder(), 2), lambda m, x: m(x, src_key_padding_mask=_padding(x))
    ),
    "nn.TransformerDecoderLayer": _transformer(
        lambda: nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
        lambda m, x: m(x, 2 * x, tgt_mask=CAUSAL, tgt_is_causal=True),
    ),
    "nn.Transformer": _transformer(
        lambda: nn.Transformer(4, 2, 1, 1, 8, dropout=0.0, batch_first=True), lambda m, x: m(x, 2 * x)
    ),
}


class _Straight(torch.autograd.Function):
    """A step whose gradient passes through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 0.5


def _constant_mean(x: Tensor) -> Tensor:
    with torch.no_grad():
        mean = x.mean(-1, keepdim=True)
    return x - mean


def _rotated(x: Tensor) -> Tensor:
    angles = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.1])
    a, b = x[..., ::2], x[..., 1::2]
    turned = torch.stack([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)
    return turned.flatten(-2)


OTHERS = {
    "nn.Linear": layer((2, 3, 4), lambda: nn.Linear(4, 5, bias=False)),
    "nn.Bilinear": layer((2, 4), lambda: nn.Bilinear(4, 4, 5), lambda m, x: m(x[:, 0], x[:, 1])),
    "nn.Flatten": layer((12,), lambda: nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Flatten(), nn.Identity())),
    "nn.CosineSimilarity": layer((2, 4), nn.CosineSimilarity, lambda m, x: m(x[:, 0], x[:, 1])),
    "nn.PairwiseDistance": layer((2, 4), nn.PairwiseDistance, lambda m, x: m(x[:, 0], x[:, 1])),
    "rotary positions": function((5, 4), _rotated),
    "torch.no_grad": function((5, 4), _constant_mean),
    "Tensor.detach": function((8,), lambda x: x + (torch.round(x) - x).detach()),
    "torch.autograd.Function": function((8,), _Straight.apply),
    "torch.utils.checkpoint": layer(
        (4,), lambda: nn.Linear(4, 4), lambda m, x: checkpoint(lambda y: m(y).tanh(), x, use_reentrant=False)
    ),
}
