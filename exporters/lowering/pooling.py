"""Rules for pooling and its gradients."""

from __future__ import annotations

import math

import numpy as np

from exporters.graph import Shape
from exporters.lowering.site import Result, Rule, Site


def _pair(s: Site, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
    values = s.ints(name) or default
    return values * 2 if len(values) == 1 else values


def _max_pool(s: Site) -> tuple[Result | None, ...]:
    kernel = _pair(s, "kernel_size")
    # torch gives positions within each plane, ONNX within the whole tensor. Only the gradient below reads
    # them, and it takes ONNX's. Where several are largest, both take the first.
    return s.b.op_many(
        "MaxPool",
        2,
        _planes(s, "self"),
        kernel_shape=kernel,
        strides=_pair(s, "stride", kernel),
        pads=_pair(s, "padding") * 2,
        dilations=_pair(s, "dilation"),
        ceil_mode=int(s.flag("ceil_mode")),
    )


def _max_pool_backward(s: Site) -> str:
    kernel = _pair(s, "kernel_size")
    stride, padding, dilation = _pair(s, "stride", kernel), _pair(s, "padding"), _pair(s, "dilation")
    gradient, indices, x = s.tensor("grad_output"), s.tensor("indices"), s.tensor("self")
    whole = s.b.op("Shape", x)
    apart = all(s >= k and d == 1 for s, k, d in zip(stride, kernel, dilation, strict=True))
    if apart and not any(padding) and not s.flag("ceil_mode"):
        return s.b.op("MaxUnpool", gradient, indices, whole, kernel_shape=kernel, strides=stride)
    # Windows overlap: a position may be the largest of several, whose gradients add up.
    flat = s.b.int64s([-1])
    length = s.b.op("Reshape", s.b.op("Size", x), flat)
    zeros = s.b.op("Expand", s.b.scalar(0, s.output().dtype), length)
    spread = s.b.op(
        "ScatterElements",
        zeros,
        s.b.op("Reshape", indices, flat),
        s.b.op("Reshape", gradient, flat),
        axis=0,
        reduction="add",
    )
    return s.b.op("Reshape", spread, whole)


def _planes(s: Site, name: str) -> str:
    if len(s.shape(name)) != 4:
        raise s.refuse("its input has no batch dimension")
    return s.tensor(name)


def _check_average(s: Site) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    kernel = _pair(s, "kernel_size")
    stride, padding = _pair(s, "stride", kernel), _pair(s, "padding")
    if s.flag("ceil_mode") or s.has("divisor_override"):
        raise s.refuse("ceil_mode or divisor_override")
    if any(padding) and not s.flag("count_include_pad"):
        raise s.refuse("padding with count_include_pad=False")
    return kernel, stride, padding


def _average_pool(s: Site) -> str:
    kernel, stride, padding = _check_average(s)
    return s.b.op(
        "AveragePool",
        _planes(s, "self"),
        kernel_shape=kernel,
        strides=stride,
        pads=padding * 2,
        count_include_pad=1,
    )


def _average_pool_backward(s: Site) -> str:
    kernel, stride, padding = _check_average(s)
    batch, *rest = s.output().shape
    channels, *size = s.fixed(tuple(rest))
    return _spread(s, s.tensor("grad_output"), (batch, channels), tuple(size), kernel, stride, padding)


def _spread(
    s: Site,
    gradient: str,
    lead: Shape,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> str:
    """Give every position of each window its share of the window's gradient."""
    out = s.fixed(s.shape("grad_output")[2:])
    dtype = s.output().dtype
    share = 1 / math.prod(kernel)
    if stride == kernel and not any(padding):
        scaled = s.b.op("Mul", gradient, s.b.scalar(share, dtype))
        apart = s.b.reshape(scaled, (*lead, out[0], 1, out[1], 1))
        ones = (1, 1, 1, kernel[0], 1, kernel[1])
        covered = (out[0] * kernel[0], out[1] * kernel[1])
        result = s.b.reshape(s.b.op("Expand", apart, s.b.int64s(ones)), (*lead, *covered))
        rest = [whole - part for whole, part in zip(size, covered, strict=True)]
        return s.b.op("Pad", result, s.b.int64s([0, 0, 0, 0, 0, 0, *rest])) if any(rest) else result
    (channels,) = s.fixed(lead[1:])
    extra = tuple(
        whole - ((o - 1) * t - 2 * p + k) for whole, o, t, p, k in zip(size, out, stride, padding, kernel, strict=True)
    )
    weight = s.b.constant(np.full((channels, 1, *kernel), share, np.dtype(dtype)))
    return s.b.op(
        "ConvTranspose",
        gradient,
        weight,
        kernel_shape=kernel,
        strides=stride,
        pads=padding * 2,
        group=channels,
        output_padding=extra,
    )


def _adaptive_matrix(size: int, out: int, dtype: str) -> np.ndarray[tuple[int, ...], np.dtype[np.floating]]:
    """The linear map of adaptive averaging from `size` to `out` positions, [size, out]."""
    matrix = np.zeros((size, out), np.dtype(dtype))
    for position in range(out):
        first, last = position * size // out, -(-(position + 1) * size // out)
        matrix[first:last, position] = 1 / (last - first)
    return matrix


def _adaptive_pool(s: Site) -> str:
    size, out = s.fixed(s.shape("self")[-2:]), s.fixed(s.output().shape[-2:])
    x = _planes(s, "self")
    if all(whole % part == 0 for whole, part in zip(size, out, strict=True)):
        kernel = tuple(whole // part for whole, part in zip(size, out, strict=True))
        return s.b.op("AveragePool", x, kernel_shape=kernel, strides=kernel)
    rows = s.b.constant(_adaptive_matrix(size[0], out[0], s.output().dtype).T.copy())
    columns = s.b.constant(_adaptive_matrix(size[1], out[1], s.output().dtype))
    return s.b.op("MatMul", rows, s.b.op("MatMul", x, columns))


def _adaptive_pool_backward(s: Site) -> str:
    size, out = s.fixed(s.output().shape[-2:]), s.fixed(s.shape("grad_output")[-2:])
    gradient = s.tensor("grad_output")
    if all(whole % part == 0 for whole, part in zip(size, out, strict=True)):
        kernel = tuple(whole // part for whole, part in zip(size, out, strict=True))
        return _spread(s, gradient, s.output().shape[:2], size, kernel, kernel, (0, 0))
    rows = s.b.constant(_adaptive_matrix(size[0], out[0], s.output().dtype))
    columns = s.b.constant(_adaptive_matrix(size[1], out[1], s.output().dtype).T.copy())
    return s.b.op("MatMul", rows, s.b.op("MatMul", gradient, columns))


RULES: dict[str, Rule] = {
    "aten.max_pool2d_with_indices.default": _max_pool,
    "aten.max_pool2d_with_indices_backward.default": _max_pool_backward,
    "aten.avg_pool2d.default": _average_pool,
    "aten.avg_pool2d_backward.default": _average_pool_backward,
    "aten._adaptive_avg_pool2d.default": _adaptive_pool,
    "aten._adaptive_avg_pool2d_backward.default": _adaptive_pool_backward,
}
