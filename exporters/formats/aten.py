"""Gradients that on-device compilers have no kernel for, in terms of convolutions, products and masks.

Each function has the name, the arguments and the results of the ATen operator that it stands for. Where torch has a
decomposition of its own, that is taken; here are those that it lacks, or that scatter, which LiteRT cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from exporters import hashing

Tensor = torch.Tensor
Indices = npt.NDArray[np.int64]
Sizes = Sequence[int]

_aten: Any = torch.ops.aten


def run(name: str, arguments: Mapping[str, Any]) -> Any:
    """Run the operator of that full name, or what computes the same from simpler ones.

    The arguments have the names and the order of the operator's schema.
    """
    own = _OWN.get(name)
    if own is not None:
        return own(*arguments.values())
    operator: Any = torch.ops
    for part in name.split("."):
        operator = getattr(operator, part)
    keywords = {argument.name for argument in operator._schema.arguments if argument.kwarg_only}
    if torch.Tag.core not in operator.tags or name in _TAKEN_APART:
        operator = torch._decomp.decomposition_table.get(operator, operator)
    return operator(
        *(value for key, value in arguments.items() if key not in keywords),
        **{key: value for key, value in arguments.items() if key in keywords},
    )


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
) -> Tensor:
    if not transposed:
        return _convolved(input, weight, stride, padding, dilation, groups, bias)
    sizes = [
        (size - 1) * step - 2 * pad + spread * (kernel - 1) + extra + 1
        for size, step, pad, spread, kernel, extra in zip(
            input.shape[2:], stride, padding, dilation, weight.shape[2:], output_padding, strict=True
        )
    ]
    result = _input_gradient(input, weight, sizes, stride, padding, dilation, groups)
    return result if bias is None else result + bias.reshape(-1, *[1] * len(sizes))


def _convolution_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias_sizes: Sizes | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    kernel = list(weight.shape[2:])
    of_input = of_weight = of_bias = None
    if output_mask[0] and transposed:
        of_input = _convolved(grad_output, weight, stride, padding, dilation, groups)
    elif output_mask[0]:
        of_input = _input_gradient(grad_output, weight, input.shape[2:], stride, padding, dilation, groups)
    if output_mask[1]:
        x, g = (grad_output, input) if transposed else (input, grad_output)
        of_weight = _weight_gradient(x, g, kernel, stride, padding, dilation, groups)
    if output_mask[2]:
        of_bias = grad_output.sum([0, *range(2, grad_output.ndim)])
    return of_input, of_weight, of_bias


def _input_gradient(
    gradient: Tensor, weight: Tensor, sizes: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """A transposed convolution, as the plain one of the gradient with zeros between and around."""
    kernel = weight.shape[2:]
    for axis, (size, step, pad, spread, taps) in enumerate(zip(sizes, stride, padding, dilation, kernel, strict=True)):
        before = spread * (taps - 1) - pad
        gradient = _spaced(gradient, axis + 2, step, before, size + spread * (taps - 1))
    # Flipped while flat: LiteRT's converter takes a flipped weight of four dimensions for an image, and turns it.
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).transpose(1, 2).flatten(0, 1)
    flipped = split.flip([-1]).reshape(-1, weight.shape[0] // groups, *kernel)
    return _convolved(gradient, flipped, [1] * len(kernel), [0] * len(kernel), dilation, groups)


def _weight_gradient(
    x: Tensor, gradient: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """The convolution of the input by the gradient, with examples as channels, stride and dilation exchanged."""
    batch, channels, *sizes = x.shape
    turned = x.reshape(batch, groups, channels // groups, *sizes).transpose(0, 2)
    turned = turned.reshape(channels // groups, groups * batch, *sizes)
    result = _convolved(turned, gradient.transpose(0, 1), dilation, padding, stride, groups)
    for axis, taps in enumerate(kernel):
        result = result.narrow(axis + 2, 0, taps)
    return result.transpose(0, 1)


def _convolved(
    x: Tensor,
    weight: Tensor,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
    bias: Tensor | None = None,
) -> Tensor:
    settings = (list(stride), list(padding), list(dilation), False, [0] * len(stride), groups)
    result: Tensor = _aten.convolution(x, weight, bias, *settings)
    return result


def _spaced(x: Tensor, axis: int, step: int, before: int, size: int) -> Tensor:
    """Put x's entries along an axis `step` apart, the first at `before`, into zeros of that size."""
    if step > 1:
        x = F.pad(x.unsqueeze(axis + 1), [0, 0] * (x.ndim - 1 - axis) + [0, step - 1]).flatten(axis, axis + 1)
    after = size - before - x.shape[axis]
    return _constant_pad_nd(x, [0, 0] * (x.ndim - 1 - axis) + [before, after], 0)


def _constant_pad_nd(self: Tensor, pad: Sizes, value: float) -> Tensor:
    """Padding by less than nothing cuts, which is a slice here: not every runtime knows that."""
    for axis, before, after in zip(range(self.ndim - 1, -1, -1), pad[::2], pad[1::2], strict=False):
        if before < 0 or after < 0:
            self = self.narrow(axis, max(-before, 0), self.shape[axis] + min(before, 0) + min(after, 0))
    return F.pad(self, [max(width, 0) for width in pad], value=value)


def _max_pool2d_with_indices(
    self: Tensor, kernel_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    """The largest of each window, and its flat place in the plane: the first of equals.

    LiteRT's converter turns planes and forgets that the places in them turn too.
    """
    pooled, _ = _aten.max_pool2d_with_indices(self, kernel_size, stride, padding, dilation, ceil_mode)
    places = _places(self, pooled, kernel_size, stride, padding, dilation)
    windows = _picked(self, places, torch.finfo(self.dtype).min)
    largest = windows.amax(-2, keepdim=True)
    outside = torch.full_like(windows, self.shape[-2] * self.shape[-1], dtype=torch.int64)
    first = torch.where(windows == largest, torch.from_numpy(places), outside).amin(-2)
    return largest.reshape(pooled.shape), first.reshape(pooled.shape)


def _max_pool2d_with_indices_backward(
    grad_output: Tensor,
    self: Tensor,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """For every place, the gradients of the windows whose largest it holds."""
    places = _places(self, grad_output, kernel_size, stride, padding, dilation)
    taps, windows = places.shape
    size = self.shape[-2] * self.shape[-1]
    # As a window finds each of its places, a place finds the windows that it lies in.
    found = np.full((taps, size + 1), windows)
    found[np.arange(taps)[:, None], places] = np.arange(windows)
    found = found[:, :size]
    mine = _picked(indices, found, -1) == torch.from_numpy(np.arange(size))
    gradients = _picked(grad_output, found, 0)
    return torch.where(mine, gradients, torch.zeros_like(gradients)).sum(-2).reshape(self.shape)


def _places(
    plane: Tensor, pooled: Tensor, kernel_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Indices:
    """The flat place that each tap of each window reads, as a table (taps, windows); the plane's size is outside."""
    height, width = plane.shape[-2:]
    kernel, steps = _pair(kernel_size), _pair(stride or kernel_size)
    rows, columns = (
        np.arange(count) * step - pad + np.arange(taps)[:, None] * spread
        for count, taps, step, pad, spread in zip(
            pooled.shape[-2:], kernel, steps, _pair(padding), _pair(dilation), strict=True
        )
    )
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return np.where(inside, rows * width + columns, height * width).reshape(kernel[0] * kernel[1], -1)


def _picked(planes: Tensor, places: Indices, outside: float) -> Tensor:
    """The values at a table of flat places in each plane; there is one more place, which holds `outside`."""
    flat = F.pad(planes.flatten(-2), [0, 1], value=outside)
    picked = flat.index_select(-1, torch.from_numpy(places.reshape(-1)))
    return picked.reshape(*picked.shape[:-1], *places.shape)


def _avg_pool2d_backward(
    grad_output: Tensor,
    self: Tensor,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    kernel, steps, pads = _pair(kernel_size), _pair(stride or kernel_size), _pair(padding)
    windows = [
        _windows(size, starts * step - pad, np.minimum(starts * step - pad + length, size + pad), count_include_pad)
        for size, starts, step, pad, length in zip(
            self.shape[-2:], map(np.arange, grad_output.shape[-2:]), steps, pads, kernel, strict=True
        )
    ]
    scale = 1.0 if divisor_override is None else math.prod(kernel) / divisor_override
    return _separable_backward(grad_output, *windows) * scale


def _adaptive_avg_pool2d_backward(grad_output: Tensor, self: Tensor) -> Tensor:
    windows = []
    for size, parts in zip(self.shape[-2:], grad_output.shape[-2:], strict=True):
        starts = np.arange(parts)
        windows.append(_windows(size, starts * size // parts, -(-(starts + 1) * size // parts), False))
    return _separable_backward(grad_output, *windows)


def _windows(size: int, starts: Indices, ends: Indices, count_outside: bool) -> Tensor:
    """The matrix (size, windows) that takes the mean of each window along an axis."""
    places = np.arange(size)[:, None]
    inside = (places >= starts) & (places < ends)
    return torch.from_numpy((inside / (ends - starts if count_outside else inside.sum(0))).astype(np.float32))


def _separable_backward(gradient: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The gradient of what takes means along rows and along columns."""
    return rows @ gradient @ columns.T


def _embedding_dense_backward(
    grad_output: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Tensor:
    rows = torch.arange(num_weights, dtype=indices.dtype)
    hot = (indices.reshape(-1, 1) == rows) & (rows != padding_idx)
    return hot.to(grad_output.dtype).T @ grad_output.reshape(-1, grad_output.shape[-1])


def _nll_loss_forward(
    self: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    hot = _hot(self, target, weight, ignore_index)
    picked, total = torch.where(hot != 0, self * hot, torch.zeros_like(self)), hot.sum()
    match reduction:
        case 0:
            return -picked.sum(1), total
        case 1:
            return -picked.sum() / total, total
        case _:
            return -picked.sum(), total


def _nll_loss_backward(
    grad_output: Tensor,
    self: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
) -> Tensor:
    gradient = grad_output.unsqueeze(1) if reduction == 0 else grad_output
    scaled = gradient / total_weight if reduction == 1 else gradient
    return -_hot(self, target, weight, ignore_index) * scaled


def _hot(scores: Tensor, target: Tensor, weight: Tensor | None, ignored: int) -> Tensor:
    """The weight of each label's class at its place, zeros elsewhere: nothing is gathered or scattered."""
    column = (-1, *[1] * (scores.ndim - 2))
    classes = torch.from_numpy(np.arange(scores.shape[1])).reshape(column)
    labels = target.unsqueeze(1)
    hot = ((labels == classes) & (labels != ignored)).to(scores.dtype)
    return hot if weight is None else hot * weight.reshape(column)


def _copy(self: Tensor, src: Tensor) -> Tensor:
    # `self` is memory that may never have been written.
    return src.to(self.dtype).broadcast_to(self.shape)


def _keep(seed: Tensor, site: int, size: Sizes, share: float) -> Tensor:
    """`exporters.hashing` in int32, which wraps around."""
    # Of one dimension, not none: ExecuTorch computes a lone int32 and a number in int64.
    start = _shifted(_stirred(seed.to(torch.int32).reshape(1)), hashing.SHIFTS[0])
    counters = torch.arange(math.prod(size), dtype=torch.int32) * _int32(hashing.stride(site)) + start
    return (_stirred(counters) < hashing.bound(share)).reshape(list(size))


def _stirred(x: Tensor) -> Tensor:
    for shift, factor in zip(hashing.SHIFTS, hashing.FACTORS, strict=True):
        x = _shifted(x, shift) * _int32(factor)
    return x


def _shifted(x: Tensor, count: int) -> Tensor:
    """x ^ x >> count, where the sign is a bit like others; LiteRT has neither that shift nor a bitwise and."""
    shifted = torch.div(x, 2**count, rounding_mode="floor") + (x < 0).to(torch.int32) * 2 ** (32 - count)
    return torch.bitwise_xor(x, shifted)


def _int32(value: int) -> int:
    return value - (value >> 31 << 32)


def _pair(sizes: Sizes) -> tuple[int, int]:
    return (sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


_OWN: dict[str, Callable[..., Any]] = {
    # Prims are for torch's own compilers. A recorded view fits the memory of the run that was recorded.
    **{f"prims.{name}.default": getattr(torch, name) for name in ("where", "eq", "ne", "lt", "le", "gt", "ge")},
    "aten.view.default": torch.reshape,
    "aten._unsafe_view.default": torch.reshape,
    "aten.convolution.default": _convolution,
    "aten.convolution_backward.default": _convolution_backward,
    "aten.max_pool2d_with_indices.default": _max_pool2d_with_indices,
    "aten.max_pool2d_with_indices_backward.default": _max_pool2d_with_indices_backward,
    "aten.avg_pool2d_backward.default": _avg_pool2d_backward,
    "aten._adaptive_avg_pool2d_backward.default": _adaptive_avg_pool2d_backward,
    "aten.embedding_dense_backward.default": _embedding_dense_backward,
    **{f"aten.nll_loss{kind}_forward.default": _nll_loss_forward for kind in ("", "2d")},
    **{f"aten.nll_loss{kind}_backward.default": _nll_loss_backward for kind in ("", "2d")},
    "aten.constant_pad_nd.default": _constant_pad_nd,
    "aten.copy.default": _copy,
    "edge_sdk.keep.default": _keep,
}

# LiteRT's converter loses the means and deviations that these give for their gradients.
_TAKEN_APART = {"aten.native_group_norm.default", "aten.native_layer_norm.default"}
