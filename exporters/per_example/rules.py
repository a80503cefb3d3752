"""How the gradients of single examples follow from that of an operation's output: a rule for each autograd node.

A rule sees the node where a parameter meets the examples, what it saved in the forward pass, and the gradient of
the loss by its output. It gives every example's gradient of the parameter, in factors where that is less work.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn import functional as F

from edge_sdk.errors import ExportError
from exporters.per_example.forms import Gradients, Products, Rows, Tensor, Whole

Node: TypeAlias = Any
"""A node of autograd's graph; torch has no public type that knows what a node saves."""

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Meeting:
    """Where a parameter, or a view of it, meets the examples.

    Attributes:
        node: the operation in autograd's graph.
        slot: which of its operands is the parameter.
        shape: that operand's shape.
        gradient: the gradient of the loss by the operation's output.
        batch: how many examples there are.
    """

    node: Node
    slot: int
    shape: Shape
    gradient: Tensor
    batch: int

    def by_example(self, tensor: Tensor, lead: Sequence[int]) -> Tensor:
        """[batch, positions, ...] of a tensor whose leading dimensions are `lead`, apart or joined into one."""
        axis = example_axis(lead, self.batch)
        if axis is None:
            raise self.refused("no dimension there counts the examples")
        rest = tensor.shape[len(lead) if tensor.shape[: len(lead)] == tuple(lead) else 1 :]
        if axis:
            tensor = tensor.reshape(*lead, *rest).movedim(axis, 0)
        return tensor.reshape(self.batch, -1, *rest)

    def folded(self, tensor: Tensor) -> Tensor:
        """[batch, ...] of a tensor that may have several rows for each example, one after another: their sum."""
        return tensor if len(tensor) == self.batch else self.by_example(tensor, tensor.shape[:1]).sum(1)

    def reduced(self, tensor: Tensor) -> Whole:
        """Sum a tensor of the output's shape to the operand's, against broadcasting, but keep examples apart."""
        wide = (1,) * (tensor.ndim - len(self.shape)) + self.shape
        # Where the operand has a size of its own, examples cannot lie: each would have its own parameter.
        axis = example_axis([size if one == 1 else 0 for size, one in zip(tensor.shape, wide, strict=True)], self.batch)
        if axis is None:
            raise self.refused("it does not act on all examples alike")
        rest = wide[:axis] + wide[axis + 1 :]
        tensor = tensor.movedim(axis, 0)
        over = [1 + i for i, (size, one) in enumerate(zip(tensor.shape[1:], rest, strict=True)) if size != one]
        tensor = self.folded(tensor.sum(over) if over else tensor)
        return Whole(tensor.reshape(self.batch, *self.shape))

    def refused(self, why: str) -> ExportError:
        """The error for a parameter that the caller names."""
        return refused(self.node, why)


def refused(node: Node, why: str) -> ExportError:
    """The error for a use of a parameter, which the caller names."""
    return ExportError(
        f"its use in {node.name().rstrip('0123456789').removesuffix('Backward')} cannot be private: {why}",
        hint="freeze the parameter, or use layers that example-level privacy knows (see docs/dp-sgd.md)",
    )


Rule: TypeAlias = Callable[[Meeting], Gradients]

# Below, one product for all taps of a kernel beats one for each (measured).
_FEW_CHANNELS = 8


def example_axis(shape: Sequence[int], batch: int) -> int | None:
    """The dimension that counts examples, or the first where each example has several rows of it in a row."""
    if batch in shape:
        return list(shape).index(batch)
    return 0 if shape and shape[0] and shape[0] % batch == 0 else None


def output_shape(node: Node, output: int = 0) -> Shape:
    """The shape of what an operation gave."""
    return tuple(node._input_metadata[output].shape)


def introduces_examples(node: Node, batch: int) -> bool:
    """Whether a view of a parameter has been given a dimension that counts examples."""
    match node.name():
        case "ExpandBackward0":
            before = tuple(node._saved_self_sym_sizes)
            after = output_shape(node)
            before = (1,) * (len(after) - len(before)) + before
            return any(now == batch != then for now, then in zip(after, before, strict=True))
        case "RepeatBackward0":
            return batch in node._saved_repeats
        case "EmbeddingBackward0":
            return batch in node._saved_indices.shape
        case _:
            return False


def _right(m: Meeting, left: Tensor) -> Gradients:
    """The right factor of a matrix product, whose rows are the examples' positions."""
    lead: Sequence[int] = m.gradient.shape[:-1]
    source = m.node.next_functions[m.slot - 1][0]
    if len(lead) == 1 and source is not None and source.name() in RESHAPES:
        # The model joins the dimensions itself, and leaves them so.
        before = tuple(source._saved_self_sym_sizes)
        lead = before[:-1] if before[-1:] == left.shape[1:] else lead
    return Products(m.by_example(m.gradient, lead), m.by_example(left, lead), Tensor.t)


def _left(m: Meeting, right: Tensor) -> Gradients:
    """The left factor, where the columns are the examples' positions."""
    rows, columns = m.gradient.t(), right.t()
    return Products(m.by_example(rows, rows.shape[:1]), m.by_example(columns, rows.shape[:1]))


def _mm(m: Meeting) -> Gradients:
    return _left(m, m.node._saved_mat2) if m.slot == 0 else _right(m, m.node._saved_self)


def _addmm(m: Meeting) -> Gradients:
    if m.node._saved_alpha != 1 or m.node._saved_beta != 1:
        raise m.refused("alpha or beta is not 1")
    match m.slot:
        case 0:
            return m.reduced(m.gradient)
        case 1:
            return _left(m, m.node._saved_mat2)
        case _:
            return _right(m, m.node._saved_mat1)


def _bmm(m: Meeting) -> Gradients:
    """Several matrices, each of which meets all examples."""
    if m.slot == 0:
        rows, columns = m.gradient.transpose(1, 2), m.node._saved_mat2.transpose(1, 2)
    else:
        rows, columns = m.node._saved_self, m.gradient
    # [batch, matrices, positions, ...]
    rows, columns = (m.by_example(each.transpose(0, 1), each.shape[1:2]).transpose(1, 2) for each in (rows, columns))
    if m.shape[0] == 1:
        return Products(rows[:, 0], columns[:, 0], lambda matrix: matrix[None])
    return Whole(rows.transpose(2, 3) @ columns)


def _embedding(m: Meeting) -> Gradients:
    node, lead = m.node, m.node._saved_indices.shape
    if node._saved_scale_grad_by_freq or node._saved_sparse:
        raise m.refused("scale_grad_by_freq and sparse gradients join examples")
    index, value = m.by_example(node._saved_indices, lead), m.by_example(m.gradient, lead)
    padding = node._saved_padding_idx
    if 0 <= padding < m.shape[0]:
        value = value * (index != padding).to(value.dtype)[:, :, None]
    return Rows(index, value, m.shape[0])


def _layer_norm(m: Meeting) -> Gradients:
    if m.slot == 2:
        return m.reduced(m.gradient)
    normal = (m.node._saved_input - m.node._saved_result1) * m.node._saved_result2
    return m.reduced(m.gradient * normal)


def _batch_norm(m: Meeting) -> Gradients:
    """With running statistics, which do not depend on the batch."""
    node = m.node
    if node._saved_training:
        raise m.refused("it normalises by the whole batch, so that each example's gradient depends on the others")
    gradient = m.gradient
    if m.slot == 1:
        shape = (1, -1) + (1,) * (gradient.ndim - 2)
        reciprocal = torch.rsqrt(node._saved_running_var + node._saved_eps)
        gradient = gradient * (node._saved_input - node._saved_running_mean.reshape(shape)) * reciprocal.reshape(shape)
    return _channels(m, gradient)


def _group_norm(m: Meeting) -> Gradients:
    """By sums over each channel that the gradient of the input needs too, written alike so that they are made once."""
    node, count, channels = m.node, len(m.gradient), m.gradient.shape[1]
    gradient = m.gradient.reshape(count, channels, 1, -1)
    if m.slot == 2:
        return Whole(m.folded(gradient.sum(3, keepdim=True).reshape(count, channels)))
    rows = node._saved_input.reshape(count, node._saved_group, 1, -1)
    centred = (rows - rows.mean(3, keepdim=True)).reshape(gradient.shape)
    sums = (gradient * centred).sum(3, keepdim=True).reshape(count, node._saved_group, -1, 1)
    return Whole(m.folded((sums * node._saved_result2.reshape(count, -1, 1, 1)).reshape(count, channels)))


def _channels(m: Meeting, gradient: Tensor) -> Gradients:
    """A bias, or another number for each channel."""
    sums = gradient.reshape(*gradient.shape[:2], -1).sum(2)
    return Whole(m.folded(sums))


def _convolution(m: Meeting) -> Gradients:
    node = m.node
    if m.slot == 2:
        return _channels(m, m.gradient)
    # In a transposed convolution, input and output have changed places.
    wide, narrow = node._saved_input, m.gradient
    if node._saved_transposed:
        wide, narrow = narrow, wide
    outputs, channels, *kernel = m.shape
    positions, taps = tuple(narrow.shape[2:]), math.prod(kernel)
    count, groups = len(wide), node._saved_groups
    if groups == outputs == wide.shape[1]:
        # With the positions in front, what a tap sees is a few long runs of memory, and sums are over whole rows.
        front = narrow.movedim((0, 1), (-2, -1))
        parts = _parts(wide.movedim((0, 1), (-2, -1)), 0, positions, tuple(kernel), node)
        over = tuple(range(len(kernel)))
        whole = torch.stack([(front * part).sum(over) for part in parts])
        return Whole(m.folded(whole.movedim(0, 2).reshape(count, *m.shape)))
    parts = [part.flatten(2) for part in _parts(wide, 2, positions, tuple(kernel), node)]
    rows = narrow.flatten(2)
    if groups > 1:
        columns = torch.stack(parts, 2).reshape(count, groups, channels * taps, -1)
        whole = rows.reshape(count, groups, -1, rows.shape[2]) @ columns.transpose(2, 3)
        return Whole(m.folded(whole.reshape(count, *m.shape)))
    products = Products(
        m.by_example(rows.transpose(1, 2), (count,)).flatten(1, 2),
        m.by_example(torch.stack(parts, 2).flatten(1, 2).transpose(1, 2), (count,)).flatten(1, 2),
        lambda matrix: matrix.reshape(m.shape),
    )
    if products.multiplied and channels >= _FEW_CHANNELS:
        # Without columns, which take as much memory as the input times the taps.
        by_tap = torch.stack([rows @ part.transpose(1, 2) for part in parts], 1)
        return Whole(m.folded(by_tap), lambda each: each.permute(1, 2, 0).reshape(m.shape))
    return products


def _parts(wide: Tensor, first: int, positions: Shape, kernel: Shape, node: Node) -> list[Tensor]:
    """What each tap of a kernel sees at each position; positions are the dimensions of `wide` from `first` on."""
    rank = len(kernel)
    before, after = tuple(wide.shape[:first]), tuple(wide.shape[first + rank :])
    stride, padding, dilation = (
        tuple(given) * rank if len(given) == 1 else tuple(given)
        for given in (node._saved_stride, node._saved_padding, node._saved_dilation)
    )
    # Elements that one tap sees lie a stride apart. With these side by side, a tap's part is one plain slice.
    reach = [p + d * (k - 1) // s for p, d, k, s in zip(positions, dilation, kernel, stride, strict=True)]
    sizes = wide.shape[first : first + rank]
    ends = [r * s - size - pad for r, s, size, pad in zip(reach, stride, sizes, padding, strict=True)]
    around = [0] * (2 * len(after)) + [n for pair in list(zip(padding, ends, strict=True))[::-1] for n in pair]
    if any(around):
        wide = F.pad(wide, around)
    strided = max(stride) > 1
    if strided:
        wide = wide.reshape(*before, *(n for pair in zip(reach, stride, strict=True) for n in pair), *after)
    parts = []
    for tap in itertools.product(*(range(extent) for extent in kernel)):
        offsets = [t * d for t, d in zip(tap, dilation, strict=True)]
        part = wide
        if strided:
            for axis in range(rank):
                part = part.narrow(first + 2 * axis + 1, offsets[axis] % stride[axis], 1)
            part = part.reshape(*before, *reach, *after)
        for axis in range(rank):
            part = part.narrow(first + axis, offsets[axis] // stride[axis], positions[axis])
        parts.append(part)
    return parts


def _added(m: Meeting) -> Gradients:
    return m.reduced(m.gradient if m.slot == 0 or m.node._saved_alpha == 1 else m.gradient * m.node._saved_alpha)


def _subtracted(m: Meeting) -> Gradients:
    return m.reduced(m.gradient if m.slot == 0 else m.gradient * -m.node._saved_alpha)


def _multiplied(m: Meeting) -> Gradients:
    return m.reduced(m.gradient * (m.node._saved_other if m.slot == 0 else m.node._saved_self))


def _prelu(m: Meeting) -> Gradients:
    x = m.node._saved_self
    return m.reduced(m.gradient * x.clamp(max=0))


def _where(m: Meeting) -> Gradients:
    chosen = m.node._saved_condition if m.slot == 0 else ~m.node._saved_condition
    return m.reduced(m.gradient * chosen.to(m.gradient.dtype))


def _expanded(m: Meeting) -> Gradients:
    return m.reduced(m.gradient)


def _repeated(m: Meeting) -> Gradients:
    repeats = tuple(m.node._saved_repeats)
    if repeats[0] == m.batch and set(repeats[1:]) <= {1}:
        return Whole(m.gradient.reshape(m.batch, *m.shape))
    return m.reduced(m.gradient)


RULES: dict[str, Rule] = {
    "AddBackward0": _added,
    "AddmmBackward0": _addmm,
    "BmmBackward0": _bmm,
    "ConvolutionBackward0": _convolution,
    "EmbeddingBackward0": _embedding,
    "ExpandBackward0": _expanded,
    "MmBackward0": _mm,
    "MulBackward0": _multiplied,
    "NativeBatchNormBackward0": _batch_norm,
    "NativeGroupNormBackward0": _group_norm,
    "NativeLayerNormBackward0": _layer_norm,
    "PreluKernelBackward0": _prelu,
    "RepeatBackward0": _repeated,
    "SubBackward0": _subtracted,
    "WhereBackward0": _where,
}
"""Operations in which a parameter may meet the examples."""

VIEWS = frozenset(
    f"{name}Backward0"
    for name in (
        "Alias",
        "Clone",
        "Embedding",
        "Expand",
        "Permute",
        "ReshapeAlias",
        "Repeat",
        "Select",
        "Slice",
        "Split",
        "SplitWithSizes",
        "Squeeze",
        "T",
        "Transpose",
        "Unbind",
        "UnsafeView",
        "Unsqueeze",
        "View",
    )
) | {"SqueezeBackward1", "SqueezeBackward2"}
"""Operations that only turn, cut, reshape or pick from a parameter, before it meets the examples."""

RESHAPES = frozenset({"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"})
"""Those that put a matrix product's rows back into the dimensions they came from."""
