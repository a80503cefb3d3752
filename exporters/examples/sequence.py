"""Sequence models of the zoo: language models, a vision transformer, LoRA, and a temporal convolution."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class RecurrentLanguageModel(nn.Module):
    """Predicts each next token with an LSTM or a GRU.

    Args:
        recurrent: of width `width` to `hidden`, batch first.
    """

    def __init__(self, recurrent: nn.LSTM | nn.GRU, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, recurrent.input_size)
        self.recurrent = recurrent
        self.head = nn.Linear(recurrent.hidden_size, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[batch, length] token numbers to [batch, length, vocabulary] scores."""
        scores: torch.Tensor = self.head(self.recurrent(self.embedding(tokens))[0])
        return scores


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, length, width] to the same."""
        batch, length, width = x.shape
        joined: torch.Tensor = self.qkv(x)
        # [3, batch, heads, length, width of a head]
        q, k, v = joined.reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        y: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return y


class TransformerBlock(nn.Module):
    """Attention and a two-layer net, each behind a layer norm and beside a residual connection."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, length, width] to the same."""
        x = x + self.attention(self.norm1(x))
        y: torch.Tensor = x + self.mlp(self.norm2(x))
        return y


class Gpt(nn.Module):
    """A small GPT (Radford et al. 2019): predicts each next token."""

    def __init__(self, vocabulary: int, length: int, width: int = 128, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, causal=True) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[batch, length] token numbers to [batch, length, vocabulary] scores."""
        x = self.tokens(tokens) + self.positions
        scores: torch.Tensor = self.head(self.norm(self.blocks(x)))
        return scores


class LoraLinear(nn.Module):
    """A frozen linear layer and a trained low-rank change to it (Hu et al. 2021); none at the start."""

    def __init__(self, base: nn.Linear, rank: int = 8, alpha: float = 16.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] to [..., outputs]."""
        y: torch.Tensor = self.base(x)
        return y + F.linear(F.linear(x, self.down), self.up) * self.scale


def with_lora(model: Gpt) -> Gpt:
    """Freeze a GPT and give the attention of every block low-rank changes to train."""
    model.requires_grad_(False)
    for block in model.blocks:
        attention = block.attention
        if isinstance(attention, Attention):
            attention.qkv = LoraLinear(attention.qkv)  # type: ignore[assignment]
            attention.out = LoraLinear(attention.out)  # type: ignore[assignment]
    return model


class VisionTransformer(nn.Module):
    """A ViT (Dosovitskiy et al. 2021) for square 3-channel images, with a class token."""

    def __init__(self, side: int, patch: int, width: int, heads: int, layers: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.summary = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn((side // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, causal=False) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 3, side, side] to [batch, classes] scores."""
        patches: torch.Tensor = self.patches(images)
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.summary.expand(len(tokens), -1, -1), tokens], dim=1) + self.positions
        scores: torch.Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return scores


class CausalBlock(nn.Module):
    """Two dilated convolutions that see only the past, beside a residual connection (Bai et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.past = (kernel - 1) * dilation
        self.conv1 = nn.Conv1d(inputs, outputs, kernel, dilation=dilation)
        self.conv2 = nn.Conv1d(outputs, outputs, kernel, dilation=dilation)
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, inputs, length] to [batch, outputs, length]."""
        y = F.relu(self.conv1(F.pad(x, (self.past, 0))))
        y = F.relu(self.conv2(F.pad(y, (self.past, 0))))
        return F.relu(y + self.shortcut(x))


class TemporalConvolution(nn.Module):
    """A temporal convolutional network that classifies a sequence, as of motion sensors."""

    def __init__(self, channels: int, width: int, layers: int, classes: int, kernel: int = 3) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(CausalBlock(width if layer else channels, width, kernel, 2**layer) for layer in range(layers))
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels, length] to [batch, classes] scores, from the last position."""
        scores: torch.Tensor = self.head(self.blocks(x)[..., -1])
        return scores
