"""Functions that the exporter covers: elementwise, reductions, shapes, indexing, products."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.integration.covered import Covered, function

Function = Callable[[Tensor], Tensor]

PLACES = torch.tensor([2, 0, 2])


def _all(shape: tuple[int, ...], functions: dict[str, Function]) -> dict[str, Covered]:
    return {name: function(shape, apply) for name, apply in functions.items()}


def _positive(x: Tensor) -> Tensor:
    return x.abs() + 0.5


def _other(x: Tensor) -> Tensor:
    return x.flip(1)


ELEMENTWISE = _all(
    (8,),
    {
        "torch.add": lambda x: torch.add(x, _other(x), alpha=2),
        "torch.sub": lambda x: 1 - x,
        "torch.rsub": lambda x: torch.rsub(x, _other(x), alpha=2),
        "torch.mul": lambda x: x * x,
        "torch.mul: in place": lambda x: (x * 1).add_(2).mul_(0.5).sub_(x),
        "torch.div": lambda x: 1 / _positive(x),
        "torch.div: floor": lambda x: x * torch.div(x, 0.3, rounding_mode="floor"),
        "torch.div: trunc": lambda x: x * torch.div(x, 0.3, rounding_mode="trunc"),
        "torch.floor_divide": lambda x: x * torch.floor_divide(x.detach(), 0.3),
        "torch.remainder": lambda x: torch.remainder(x, 0.7),
        "torch.fmod": lambda x: torch.fmod(x, 0.7),
        "torch.pow": lambda x: x**4 + _positive(x) ** -1,
        "torch.pow: fractions": lambda x: _positive(x) ** 1.5,
        "torch.pow: of tensors": lambda x: _positive(x) ** x + 2.0**x,
        "torch.square": torch.square,
        "torch.exp": torch.exp,
        "torch.exp2": torch.exp2,
        "torch.expm1": torch.expm1,
        "torch.log": lambda x: _positive(x).log(),
        "torch.log2": lambda x: _positive(x).log2(),
        "torch.log10": lambda x: _positive(x).log10(),
        "torch.log1p": lambda x: x.abs().log1p(),
        "torch.sqrt": lambda x: _positive(x).sqrt(),
        "torch.rsqrt": lambda x: _positive(x).rsqrt(),
        "torch.reciprocal": lambda x: _positive(x).reciprocal(),
        "torch.abs": torch.abs,
        "torch.sign": lambda x: x * torch.sign(x) + torch.sgn(x),
        "torch.sin": torch.sin,
        "torch.cos": torch.cos,
        "torch.tan": lambda x: torch.tan(0.3 * x),
        "torch.asin": lambda x: torch.asin(0.5 * x),
        "torch.acos": lambda x: torch.acos(0.5 * x),
        "torch.atan": torch.atan,
        "torch.atan2": lambda x: torch.atan2(x, _other(x)),
        "torch.sinh": torch.sinh,
        "torch.cosh": torch.cosh,
        "torch.asinh": torch.asinh,
        "torch.acosh": lambda x: torch.acosh(_positive(x) + 1),
        "torch.atanh": lambda x: torch.atanh(0.5 * x),
        "torch.sinc": torch.sinc,
        "torch.erf": torch.erf,
        "torch.erfc": torch.erfc,
        "torch.lgamma": lambda x: torch.lgamma(_positive(x)) + torch.lgamma(x.tanh() * 0.4 - 0.5),
        "torch.logit": lambda x: torch.logit(x.sigmoid(), eps=0.1),
        "torch.floor": lambda x: x * torch.floor(3 * x),
        "torch.ceil": lambda x: x * torch.ceil(3 * x),
        "torch.round": lambda x: x * torch.round(3 * x),
        "torch.trunc": lambda x: x * torch.trunc(3 * x) + torch.frac(3 * x),
        "torch.clamp": lambda x: x.clamp(-0.3, 0.4),
        "torch.clamp: one side": lambda x: x.clamp(min=-0.2) + x.clamp(max=0.2),
        "torch.clamp: by tensors": lambda x: torch.clamp(x, _other(x) - 0.1, _other(x) + 0.1),
        "torch.maximum": lambda x: torch.maximum(x, 0.5 * _other(x)) + torch.fmax(x, -x * 0.3),
        "torch.minimum": lambda x: torch.minimum(x, 0.5 * _other(x)) + torch.fmin(x, -x * 0.3),
        "torch.where": lambda x: torch.where(x > 0, x, 0.1 * x) + torch.where(x < 0.5, x, 0.0),
        "Tensor.masked_fill": lambda x: x.masked_fill(x < 0, -1.0) + (x * 1).masked_fill_(x > 1, 0.5),
        "x[mask] = number": lambda x: _masked(x),
        "torch.lerp": lambda x: torch.lerp(x, _other(x), 0.3) + torch.lerp(x, _other(x), x.sigmoid()),
        "torch.addcmul": lambda x: torch.addcmul(x, _other(x), x, value=0.5),
        "torch.addcdiv": lambda x: torch.addcdiv(x, _other(x), _positive(x), value=0.5),
        "torch.hypot": lambda x: torch.hypot(x, _positive(x)),
        "torch.logaddexp": lambda x: torch.logaddexp(x, _other(x)),
        "torch.xlogy": lambda x: torch.xlogy(x, _positive(_other(x))),
        "torch.copysign": lambda x: torch.copysign(x, _other(x).detach()),
        "torch.nan_to_num": torch.nan_to_num,
        "torch.isnan": lambda x: torch.where(torch.isnan(x) | torch.isinf(x), 0.0, x),
        "torch.isfinite": lambda x: torch.where(torch.isfinite(x), x, 0.0),
        "comparisons": lambda x: x * ((x > 0.1) & (x <= 0.8) | ~(x >= -0.5) ^ (x != _other(x))),
        "torch.logical_and": lambda x: x * torch.logical_and(x > 0, _other(x)).logical_xor(x < 1).logical_not(),
        "integer arithmetic": lambda x: x * ((torch.arange(8) * 7 + 3) % 5 // 2 & 3),
        "torch.bucketize": lambda x: x * torch.bucketize(x.detach(), torch.tensor([-0.5, 0.0, 0.5])),
        "torch.searchsorted": lambda x: x * torch.searchsorted(torch.tensor([0.0, 0.5]), x.detach(), right=True),
        "F.normalize": lambda x: F.normalize(x, dim=1),
        "F.one_hot": lambda x: x * F.one_hot(x.detach().argmax(1), 8),
        "torch.deg2rad": torch.deg2rad,
    },
)

REDUCTIONS = _all(
    (3, 4),
    {
        "torch.sum": lambda x: x.sum(2) + x.sum((1, 2), keepdim=True).squeeze(2),
        "torch.mean": lambda x: x.mean(-1) * x.mean(),
        "torch.mean: over the batch": lambda x: x - x.mean(0),
        "torch.prod": lambda x: x.prod(2) + x.prod(1, keepdim=True)[:, 0, :3],
        "torch.amax": lambda x: x.amax(2) - x.amin((1, 2))[:, None],
        "torch.max": lambda x: x.max(2).values * x.max(),
        "torch.min": lambda x: x.min(1)[0] * x.min(),
        "torch.aminmax": lambda x: x.aminmax(dim=2).max,
        "torch.argmax": lambda x: x * x.argmax(2, keepdim=True) * x.argmin(1, keepdim=True),
        "torch.any": lambda x: x * (x > 0).any(2, keepdim=True) * (x > -1).all(2, keepdim=True),
        "torch.count_nonzero": lambda x: x * torch.count_nonzero(x > 0, dim=2)[..., None],
        "torch.cumsum": lambda x: x.cumsum(1),
        "torch.cumprod": lambda x: x.cumprod(2),
        "torch.logcumsumexp": lambda x: x.logcumsumexp(2),
        "torch.logsumexp": lambda x: x.logsumexp(2) + x.logsumexp((1, 2))[:, None],
        "torch.softmax": lambda x: x.softmax(1) + x.log_softmax(2),
        "torch.var": lambda x: x.var(2) + x.var((1, 2), unbiased=False)[:, None],
        "torch.var: over the batch": lambda x: x * x.var() + x.var(0, correction=0),
        "torch.std": lambda x: x.std(2) + torch.std(x, dim=(1, 2), correction=0)[:, None],
        "torch.std: over the batch": lambda x: x / (x.std(0, correction=0) + 1),
        "torch.var_mean": lambda x: torch.var_mean(x, 2)[0] + torch.std_mean(x, 2)[1],
        "torch.norm": lambda x: x.norm(dim=2) * x.norm(),
        "torch.norm: p=1": lambda x: x.norm(p=1, dim=2),
        "torch.norm: p=3": lambda x: x.norm(p=3, dim=2),
        "torch.norm: infinite": lambda x: x.norm(p=math.inf, dim=2),
        "torch.linalg.matrix_norm": torch.linalg.matrix_norm,
        "torch.nansum": lambda x: x.nansum(2) + x.nanmean(2),
        "torch.median": lambda x: x.median(2).values + x.kthvalue(2, dim=2).values,
        "torch.quantile": lambda x: torch.quantile(x, 0.3, dim=2),
        "torch.topk": lambda x: x.topk(2, 2).values - x.topk(2, 2, largest=False)[0],
        "torch.sort": lambda x: x.sort(2, descending=True).values + torch.sort(x, dim=1, stable=True)[0],
        "torch.argsort": lambda x: x.gather(2, x.argsort(2)) * x.argsort(1),
        "torch.dist": lambda x: x * torch.dist(x, _other(x)),
        "torch.renorm": lambda x: x.renorm(2, 0, 0.5),
        "torch.trace": lambda x: x * x[:, :, :3].diagonal(dim1=1, dim2=2).sum(-1)[:, None, None],
    },
)

SHAPES = _all(
    (3, 4),
    {
        "Tensor.reshape": lambda x: x.reshape(len(x), 4, 3).flatten(1).view(x.size(0), -1).view(-1, 2, 6),
        "Tensor.permute": lambda x: x.permute(0, 2, 1) + x.transpose(1, 2) + x.mT + x.movedim(2, 1),
        "Tensor.unsqueeze": lambda x: x.unsqueeze(1).squeeze(1) + x[:, None, ..., :][:, 0],
        "Tensor.expand": lambda x: x[:, :, None].expand(-1, -1, 2, -1) * x[:, :1].expand_as(x)[:, :, None],
        "Tensor.repeat": lambda x: x.repeat(1, 2, 3) + x.tile(2, 3),
        "torch.repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
        "torch.repeat_interleave: by counts": lambda x: x.repeat_interleave(torch.tensor([1, 2, 0]), dim=1),
        "torch.cat": lambda x: torch.cat([x, 2 * x], 1) + torch.hstack([x, x]),
        "torch.stack": lambda x: torch.stack([x, 2 * x], 1),
        "torch.split": lambda x: torch.split(x, 2, 1)[1] * torch.split(x, [1, 3], 2)[0],
        "torch.chunk": lambda x: x.chunk(2, 2)[0] * x.tensor_split(2, 2)[1],
        "torch.unbind": lambda x: x.unbind(1)[0] + x.unbind(1)[2],
        "Tensor.narrow": lambda x: x.narrow(2, 1, 2) * x.select(1, -1)[:, None, :2],
        "slices": lambda x: x[:, 1:, ::2] * x[:, :-1, -3:-1] + x[..., :1, :2],
        "torch.roll": lambda x: x.roll(1, 2) + x.roll((1, -2), (1, 2)),
        "torch.flip": lambda x: x.flip((1, 2)) * x.fliplr() + x.rot90(2, (1, 2)),
        "torch.tril": lambda x: x.tril() * 2 + x.triu(1),
        "torch.diagonal": lambda x: x.diagonal(dim1=1, dim2=2) + x.diagonal(1, 1, 2),
        "torch.diag_embed": torch.diag_embed,
        "Tensor.unfold": lambda x: x.unfold(2, 2, 1),
        "torch.meshgrid": lambda x: x * torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")[0],
        "torch.arange": lambda x: x * torch.arange(len(x))[:, None, None] / len(x) + torch.linspace(0, 1, 4),
        "torch.zeros": lambda x: x + torch.zeros(len(x), 3, 4) + torch.full_like(x, 2.0) * x.new_ones(len(x), 1, 1),
        "torch.eye": lambda x: x @ torch.eye(4),
        "parts changed in place": lambda x: _changed(x),
    },
)

INDEXING = _all(
    (3, 4),
    {
        "x[indices]": lambda x: x[:, [2, 0, 2]] + x[:, PLACES] + x[:, -1:],
        "x[indices]: in two dimensions": lambda x: x[:, PLACES, torch.tensor([1, 3, 0])],
        "x[indices]: that the model computes": lambda x: x[torch.arange(len(x)), x.argmax(1)[:, 0]],
        "x[indices]: apart from each other": lambda x: x.view(-1, 3, 2, 2)[:, PLACES, :, PLACES % 2].transpose(0, 1),
        "x[mask]: known beforehand": lambda x: x[:, torch.tensor([True, False, True])],
        "x[indices] = values": lambda x: _written(x),
        "torch.gather": lambda x: x.gather(2, torch.tensor([[[1, 0, 3]] * 3]).expand(len(x), -1, -1)),
        "torch.take_along_dim": lambda x: x.take_along_dim(x.argmax(2, keepdim=True), 2),
        "torch.scatter": lambda x: x.scatter(2, _columns(x), x[:, :, :2] * 2).scatter(2, _columns(x), 0.5),
        "torch.scatter_add": lambda x: torch.zeros(len(x), 3, 5).scatter_add(2, _columns(x), x[..., 1:3]),
        "torch.scatter_reduce": lambda x: x.scatter_reduce(2, _columns(x), x[:, :, :2], "sum"),
        "torch.index_select": lambda x: x.index_select(2, PLACES),
        "torch.index_add": lambda x: x.index_add(1, PLACES, 2 * x),
        "torch.index_copy": lambda x: x.index_copy(1, PLACES[:2], 2 * x[:, :2]),
        "torch.index_fill": lambda x: x.index_fill(1, PLACES[:2], 0.3),
        "torch.index_put": lambda x: x.index_put((torch.arange(len(x)), PLACES[:1]), x[:, 1], accumulate=True),
        "torch.select_scatter": lambda x: torch.select_scatter(x, 2 * x[:, 0], 1, 1),
        "torch.slice_scatter": lambda x: torch.slice_scatter(x, 2 * x[:, :1], 1, 1, 2),
    },
)

PRODUCTS = _all(
    (3, 4),
    {
        "torch.matmul": lambda x: x @ x.mT @ torch.ones(3, 2),
        "torch.matmul: of vectors": lambda x: x @ torch.ones(4) + x[:, 0] @ torch.linspace(0, 1, 12).view(4, 3),
        "torch.bmm": lambda x: torch.bmm(x, x.mT),
        "torch.baddbmm": lambda x: torch.baddbmm(x @ x.mT, x, x.mT, alpha=0.5, beta=2),
        "torch.addmm": lambda x: torch.addmm(x[:, 0, :2], x[:, 1], torch.ones(4, 2), alpha=2),
        "torch.einsum": lambda x: torch.einsum("bij,bkj,kl->bil", x, x, torch.ones(3, 2)),
        "torch.einsum: diagonals": lambda x: torch.einsum("bii->bi", x[:, :, :3]),
        "torch.einsum: dots": lambda x: torch.einsum("...ij,kj->...ik", x, torch.ones(5, 4)),
        "torch.tensordot": lambda x: torch.tensordot(x, torch.ones(4, 2), dims=1),
        "torch.inner": lambda x: torch.inner(x, torch.ones(2, 4)) + torch.linalg.vecdot(x, _other(x))[..., None],
        "torch.kron": lambda x: torch.kron(x, torch.ones(2, 2)),
        "torch.cross": lambda x: torch.linalg.cross(x.mT[:, :, :3], x.mT.roll(1, 2)),
        "torch.linalg.matrix_power": lambda x: torch.linalg.matrix_power(x[:, :, :3], 3),
        "torch.cov": lambda x: x[:, 0] * torch.cov(x.view(-1, 12).T, correction=0).sum(),
        "torch.cdist": lambda x: torch.cdist(x, 2 * x.flip(2) + 1),
        "torch.cdist: p=1": lambda x: torch.cdist(x, 2 * x.flip(2) + 1, p=1),
        "F.pairwise_distance": lambda x: F.pairwise_distance(x, x.flip(2)),
        "F.cosine_similarity": lambda x: F.cosine_similarity(x, x.flip(2), dim=2),
        "F.bilinear": lambda x: F.bilinear(x[:, 0], x[:, 1], torch.ones(2, 4, 4)),
        "products over the batch": lambda x: (x.view(-1, 12) @ x.view(-1, 12).T).softmax(1) @ x.view(-1, 12),
    },
)


def _columns(x: Tensor) -> Tensor:
    return torch.tensor([[[1, 0]] * 3]).expand(len(x), -1, -1)


def _masked(x: Tensor) -> Tensor:
    y = x * 2
    y[x < 0] = 0.3
    return y


def _changed(x: Tensor) -> Tensor:
    """Each change is seen through every other view, later and earlier ones."""
    y = x * 1
    row, turned = y[:, 1], y.mT
    y[:, 0] = 2 * x[:, 1]
    y[:, 1:, 2:] *= x[:, :2, :2]
    row.add_(1)
    y.diagonal(dim1=1, dim2=2).mul_(2)
    y.view(len(y), 12)[:, ::5] = 0.5
    return y * turned.mT + row[:, None]


def _written(x: Tensor) -> Tensor:
    y = x * 1
    y[:, PLACES[:2]] = x[:, :2] * 3
    y[:, PLACES[:2], PLACES[:2] + 1] += 1
    return y
