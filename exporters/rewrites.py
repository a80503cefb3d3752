"""Functions of torch that are recorded as another formula, because torch computes them or their gradient in a way
that no graph can follow: it looks at values to choose a path, or calls a kernel that nothing takes apart.

Each formula gives the same values and the same gradients; the reference that a step is held against is torch's own
function, so a formula that is wrong never passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from exporters.recurrent import lstm

Tensor = torch.Tensor


class Rewriting(TorchFunctionMode):
    """Calls the formulas below in place of the functions they stand for."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        formula = _FORMULAS.get(func)
        if formula is not None:
            found = formula(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        return func(*args, **(kwargs or {}))


def _scanned(join: Callable[[Tensor, Tensor], Tensor], neutral: float) -> Callable[..., Tensor]:
    """What has been joined so far, at each position along a dimension, in log2(n) joins."""

    def scan(input: Tensor, dim: int) -> Tensor:
        shift, found = 1, input
        while shift < input.shape[dim]:
            kept = found.narrow(dim, 0, input.shape[dim] - shift)
            before = torch.full_like(found.narrow(dim, 0, shift), neutral)
            found, shift = join(found, torch.cat([before, kept], dim)), 2 * shift
        return found

    return scan


def _product(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The product of neighbours, again and again: its gradient divides by nothing, so zeros do no harm."""
    if dim is None:
        return NotImplemented if input.dim() > 1 else _product(input, 0)
    found = input
    while found.shape[dim] > 1:
        if found.shape[dim] % 2:
            found = torch.cat([found, torch.ones_like(found.narrow(dim, 0, 1))], dim)
        one, two = found.chunk(2, dim)
        found = one * two
    return found if keepdim else found.squeeze(dim)


def _whole_extreme(reduce: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def extreme(input: Tensor, *others: Any, **named: Any) -> Any:
        return reduce(input) if not others and not named else NotImplemented

    return extreme


def _sign(input: Tensor) -> Tensor:
    # The gradient of sgn, for complex numbers, is a tensor without elements.
    return torch.sign(input)


def _over_batch(input: Tensor, dim: int | Sequence[int] | None) -> bool:
    return dim is None or 0 in {axis % input.dim() for axis in ((dim,) if isinstance(dim, int) else dim)}


def _variance(input: Tensor, *args: Any, **named: Any) -> Any:
    """Over the batch, where torch's gradient holds a number that is one over the examples less one."""
    dim, correction, keepdim = _spread_arguments(*args, **named)
    if not _over_batch(input, dim):
        return NotImplemented
    dims = tuple(range(input.dim())) if dim is None else dim
    count = math.prod(input.shape[axis] for axis in ((dims,) if isinstance(dims, int) else dims))
    centred = input - input.mean(dims, keepdim=True)
    return (centred * centred).sum(dims, keepdim=keepdim) / (count - correction)


def _deviation(input: Tensor, *args: Any, **named: Any) -> Any:
    found = _variance(input, *args, **named)
    if found is NotImplemented:
        return NotImplemented
    # Where nothing deviates the gradient is zero, not infinite.
    some = found > 0
    return torch.where(some, found, 1.0).sqrt() * some


def _spread_arguments(
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Any, float, bool]:
    """The arguments of var and std, which may begin with `unbiased`."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1.0 if unbiased in (None, True) else 0.0
    return dim, int(correction), keepdim


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Any:
    if num_classes < 0:
        return NotImplemented
    return (tensor.unsqueeze(-1) == torch.arange(num_classes)).long()


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found: Tensor = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return found if bias is None else found + bias


def _distances(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, dim=-1)
    return found


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    # A sparse gradient says no more than a dense one.
    return (
        F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq) if sparse else NotImplemented
    )


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """Bags of one length: rows of an embedding, added up."""
    if input.dim() != 2 or offsets is not None or max_norm is not None or scale_grad_by_freq:
        return NotImplemented
    rows = F.embedding(input, weight, padding_idx)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    if padding_idx is None:
        return rows.amax(1) if mode == "max" else rows.sum(1) if mode == "sum" else rows.mean(1)
    real = (input != padding_idx % weight.shape[0]).unsqueeze(-1)
    count = real.sum(1)
    if mode == "max":
        return torch.where(count > 0, rows.masked_fill(~real, -math.inf).amax(1), 0.0)
    total = (rows * real).sum(1)
    return total if mode == "sum" else total / count.clamp(min=1)


def _leaky(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Any:
    return NotImplemented if training else F.leaky_relu(input, (lower + upper) / 2)


def _bucket(input: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Any:
    if boundaries.dim() != 1:
        return NotImplemented
    value = input.unsqueeze(-1)
    found = (value >= boundaries if right else value > boundaries).sum(-1)
    return found.int() if out_int32 else found


def _search(
    sorted_sequence: Tensor,
    input: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Any:
    if sorter is not None:
        return NotImplemented
    return _bucket(input, sorted_sequence, out_int32=out_int32, right=right or side == "right")


def _grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Any:
    if input.dim() != 4:
        return NotImplemented
    modes, paddings = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")
    if mode not in modes or padding_mode not in paddings:
        return NotImplemented
    return torch._decomp.decompositions._grid_sampler_2d(
        input, grid, modes.index(mode), paddings.index(padding_mode), bool(align_corners)
    )


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax of the last dimension of scores + mask, and 0 where the mask is -inf, in whole rows of it too.

    Exponents stay above those whose exponential is a denormal number, which takes processors ten times as long.
    """
    scores = scores + mask
    floor = scores.amax(-1, keepdim=True).clamp(min=-1e30) - 80
    return torch.softmax(torch.maximum(scores, floor), -1) * (mask > -math.inf)


class _Attention(torch.autograd.Function):
    """Attention [..., length, width], whose gradient passes over [..., length, length] as seldom as it can.

    The sum over a row of weights times their gradients, which softmax's gradient needs, is that over a row of outputs
    times theirs (Dao et al. 2022, appendix B).
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float
    ) -> Tensor:
        flat = [tensor.reshape(-1, *tensor.shape[-2:]) for tensor in (query, key, value)]
        scores = torch.bmm(flat[0], flat[1].transpose(1, 2)) * scale
        if mask is None:
            weights = torch.softmax(scores, -1)
        else:
            whole = (*query.shape[:-1], key.shape[-2])
            weights = _masked_softmax(scores.reshape(whole), mask).reshape(scores.shape)
        kept = F.dropout(torch.ones_like(weights), dropout) if dropout else None
        used = weights if kept is None else weights * kept
        output = torch.bmm(used, flat[2])
        ctx.save_for_backward(*flat, weights, used, output)
        ctx.kept, ctx.scale, ctx.shapes = kept, scale, (query.shape, key.shape, value.shape)
        return output.reshape(*query.shape[:-1], value.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, used, output = ctx.saved_tensors
        gradient = gradients[0].reshape(output.shape)
        of_value = torch.bmm(used.transpose(1, 2), gradient)
        of_weights = torch.bmm(gradient, value.transpose(1, 2))
        if ctx.kept is not None:
            of_weights = of_weights * ctx.kept
        of_scores = weights * (of_weights - (gradient * output).sum(-1, keepdim=True))
        of_query = torch.bmm(of_scores, key) * ctx.scale
        of_key = torch.bmm(of_scores.transpose(1, 2), query) * ctx.scale
        found = (of_query, of_key, of_value)
        return *(part.reshape(shape) for part, shape in zip(found, ctx.shapes, strict=True)), None, None, None


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    batched = query.dim() > 2 and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    if not batched or enable_gqa or (attn_mask is not None and (is_causal or attn_mask.requires_grad)):
        return NotImplemented
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, -math.inf)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _Attention.apply(query, key, value, attn_mask, scale, dropout_p)


def _joined(values: Tensor, reduction: str) -> Tensor:
    return values.mean() if reduction == "mean" else values.sum() if reduction == "sum" else values


def _gaussian_nll(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """torch's own, which first looks whether some variance is negative."""
    if isinstance(var, float):
        var = torch.full_like(input, var)
    elif var.dim() == input.dim() - 1:
        var = var.unsqueeze(-1)
    # The floor is not part of the gradient.
    floored = var + (var.detach().clamp(min=eps) - var.detach())
    values = 0.5 * (floored.log() + (input - target) ** 2 / floored)
    return _joined(values + 0.5 * math.log(2 * math.pi) if full else values, reduction)


def _multi_margin(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    if input.dim() != 2 or size_average is not None or reduce is not None:
        return NotImplemented
    own = (target.unsqueeze(1) == torch.arange(input.shape[1])).to(input.dtype)
    short = (margin - (input * own).sum(1, keepdim=True) + input).clamp(min=0)
    values = short if p == 1 else short * short
    if weight is not None:
        values = values * weight[target].unsqueeze(1)
    return _joined((values * (1 - own)).sum(1) / input.shape[1], reduction)


_FORMULAS: dict[Any, Callable[..., Any]] = {
    torch.prod: _product,
    Tensor.prod: _product,
    torch.cumprod: _scanned(torch.mul, 1.0),
    Tensor.cumprod: _scanned(torch.mul, 1.0),
    torch.logcumsumexp: _scanned(torch.logaddexp, -math.inf),
    Tensor.logcumsumexp: _scanned(torch.logaddexp, -math.inf),
    torch.max: _whole_extreme(torch.amax),
    Tensor.max: _whole_extreme(torch.amax),
    torch.min: _whole_extreme(torch.amin),
    Tensor.min: _whole_extreme(torch.amin),
    torch.sgn: _sign,
    Tensor.sgn: _sign,
    torch.var: _variance,
    Tensor.var: _variance,
    torch.std: _deviation,
    Tensor.std: _deviation,
    F.one_hot: _one_hot,
    torch.bilinear: _bilinear,
    torch.cdist: _distances,
    torch._weight_norm: _weight_norm,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    torch.rrelu: _leaky,
    F.rrelu: _leaky,
    torch.bucketize: _bucket,
    torch.searchsorted: _search,
    F.grid_sample: _grid_sample,
    F.scaled_dot_product_attention: _attention,
    torch.lstm: lstm,
    F.gaussian_nll_loss: _gaussian_nll,
    F.multi_margin_loss: _multi_margin,
}
