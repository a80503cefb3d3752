"""The LSTM as it is recorded: step by step, with a gradient of few operators for each step's cell.

Graphs have no loops, so what a step costs is multiplied by the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

Tensor = torch.Tensor


class _Cell(torch.autograd.Function):
    """[batch, 4 * width] sums of input, forget, cell and output gate, and the state, to the output and the next state.

    With a = i * g and b = f * state, the slopes by the gates' sums are a - a * i, b - b * f, i - a * g and h - h * o.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = gates.chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        a, b = i * g, f * state
        after = a + b
        curve = after.tanh()
        h = o * curve
        ctx.save_for_backward(i, f, g, o, a, b, curve, h)
        return h, after

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o, a, b, curve, h = ctx.saved_tensors
        of_h, of_after = gradients
        of_after = of_h * (o - h * curve) + of_after
        of_gates = [of_after * (a - a * i), of_after * (b - b * f), of_after * (i - a * g), of_h * (h - h * o)]
        return torch.cat(of_gates, 1), of_after * f


def lstm(
    input: Tensor,
    hx: Any,
    params: Any,
    has_biases: bool,
    num_layers: Any,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool = False,
) -> Any:
    """torch.lstm, but for packed sequences, examples without a batch, and projections."""
    if not isinstance(hx, Sequence) or input.dim() != 3 or hx[0].shape != hx[1].shape:
        return NotImplemented
    directions, each = 2 if bidirectional else 1, 4 if has_biases else 2
    found = input.transpose(0, 1) if batch_first else input
    lasts: list[tuple[Tensor, Tensor]] = []
    for layer in range(num_layers):
        if layer and dropout and train:
            found = F.dropout(found, dropout)
        # Where the batch comes first, what leaves the last layer is put so at once.
        dim = 1 if batch_first and layer == num_layers - 1 else 0
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            weights = params[each * place : each * (place + 1)]
            steps, last = _layer(found, hx[0][place], hx[1][place], weights, backwards=direction == 1)
            outputs.append(torch.stack(steps, dim))
            lasts.append(last)
        found = torch.cat(outputs, 2) if bidirectional else outputs[0]
    h, c = (torch.stack(states) for states in zip(*lasts, strict=True))
    return found, h, c


def _layer(
    input: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor], *, backwards: bool
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """The outputs of one layer in one direction for [length, batch, inputs], and its last output and state."""
    inner, outer, *biases = weights
    projected = F.linear(input, inner, *biases[:1])
    for bias in biases[1:]:
        projected = projected + bias
    found = []
    for gates in reversed(projected.unbind()) if backwards else projected.unbind():
        h, c = _Cell.apply(torch.addmm(gates, h, outer.t()), c)
        found.append(h)
    return found[::-1] if backwards else found, (h, c)
