"""Clipped gradients of single examples, summed, from one backward pass: book-keeping, without vmap.

Autograd has written down where each parameter meets the examples. At every such place, one example's gradient is a
product of what the forward pass saved and of the gradient by the place's output. So one backward pass as far as those
outputs gives the norm of each example's gradient, and then the sum over examples, each weighted by its clip factor:
"ghost clipping" (Li et al. 2022, "Large Language Models Can Be Strong Differentially Private Learners") and
"book-keeping" (Bu et al. 2023, "Differentially Private Optimization on Large Model at Small Cost").

A parameter used in a way that no rule knows is refused, so that no part of a gradient can be missed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add

import torch
from torch.autograd.graph import GradientEdge

from edge_sdk.errors import ExportError
from exporters.per_example.forms import Gradients
from exporters.per_example.rules import (
    RESHAPES,
    RULES,
    VIEWS,
    Meeting,
    Node,
    Shape,
    introduces_examples,
    output_shape,
    refused,
)


@dataclass(frozen=True, slots=True)
class _View:
    """A parameter as some operation sees it: itself, or turned, cut or reshaped."""

    parameter: str
    shape: Shape = field(compare=False)
    chain: tuple[tuple[Node, int], ...] = field(compare=False)
    """The operations that made it, the parameter's own node first, each with the number of its output."""
    key: tuple[object, ...]
    """Equal for views of a parameter that show the same: a loop over time makes them anew at every step."""

    def pulled_back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient by the parameter, from that by the view."""
        for node, output in reversed(self.chain[1:]):
            # Called as autograd calls it, but for the import of sympy that its front door costs.
            gradients = [None] * len(node._input_metadata)
            found = node(*gradients[:output], gradient, *gradients[output + 1 :])
            gradient = found if isinstance(found, torch.Tensor) else found[0]
        return gradient


@dataclass(frozen=True, slots=True, eq=False)
class _Use:
    """A view of a parameter, an operation in which it meets the examples, and which operand it is there."""

    view: _View
    node: Node
    slot: int


class _Graph:
    """Autograd's graph of a loss, read from the parameters' end."""

    def __init__(self, loss: torch.Tensor, batch: int) -> None:
        self._batch = batch
        self._readers: defaultdict[tuple[Node, int], list[tuple[Node, int]]] = defaultdict(list)
        self._leaves: dict[int, Node] = {}
        if loss.grad_fn is None:
            return
        waiting, seen = [loss.grad_fn], {loss.grad_fn}
        while waiting:
            node: Node = waiting.pop()
            if hasattr(node, "variable"):
                self._leaves[id(node.variable)] = node
            for slot, (source, output) in enumerate(node.next_functions):
                if source is not None:
                    self._readers[source, output].append((node, slot))
                    if source not in seen:
                        seen.add(source)
                        waiting.append(source)

    def uses(self, name: str, parameter: torch.Tensor) -> Iterator[_Use]:
        """All places where a parameter meets the examples; none if the loss does not depend on it."""
        leaf = self._leaves.get(id(parameter))
        if leaf is not None:
            yield from self._uses(_View(name, tuple(parameter.shape), ((leaf, 0),), ()))

    def output(self, node: Node) -> GradientEdge:
        """An operation's output: of a matrix product, with the rows in the dimensions that they were joined from."""
        readers = self._readers[node, 0]
        if node.name() in ("MmBackward0", "AddmmBackward0") and len(readers) == 1:
            (reader, _), *_ = readers
            before, after = output_shape(node), output_shape(reader)
            if reader.name() in RESHAPES and len(after) > 2 and after[-1] == before[-1]:
                return GradientEdge(reader, 0)
        return GradientEdge(node, 0)

    def _uses(self, view: _View) -> Iterator[_Use]:
        for node, slot in self._readers[view.chain[-1]]:
            if node.name() in VIEWS and not introduces_examples(node, self._batch):
                for output in range(len(node._input_metadata)):
                    shape = output_shape(node, output)
                    key = (*view.key, _settings(node), output, shape)
                    yield from self._uses(_View(view.parameter, shape, (*view.chain, (node, output)), key))
            else:
                yield _Use(view, node, slot)


def clipped_sum(
    loss: torch.Tensor,
    parameters: Mapping[str, torch.Tensor],
    *,
    weight: torch.Tensor,
    clip_norm: float | torch.Tensor,
    mean: bool,
) -> dict[str, torch.Tensor]:
    """Sum over examples i of weight[i] * g[i] * min(1, clip_norm / ||g[i]||), g[i] the gradient of i's own loss.

    The norm is that of all parameters together.

    Args:
        loss: a scalar with its autograd graph: the mean or the sum of the examples' own losses.
        parameters: the leaves it was computed from, by name.
        weight: float [batch].
        clip_norm: a positive number, or a 0-d tensor of it.
        mean: whether the loss is the mean, else the sum.

    Returns:
        A tensor for each parameter that the loss depends on, of its shape.

    Raises:
        ExportError: a parameter is used in a way that no rule knows; it names the parameter.
    """
    batch = len(weight)
    graph = _Graph(loss, batch)
    uses = [use for name, parameter in parameters.items() for use in graph.uses(name, parameter)]
    nodes = list(dict.fromkeys(use.node for use in uses))
    found = torch.autograd.grad(loss, [graph.output(node) for node in nodes], retain_graph=True)
    by_output = dict(zip(nodes, found, strict=True))
    with torch.no_grad():
        parts: defaultdict[_View, list[Gradients]] = defaultdict(list)
        for use in uses:
            parts[use.view].append(_gradients(use, by_output[use.node], batch))
        gradients = {view: _joined(view, each) for view, each in parts.items()}
        norms = torch.sqrt(reduce(add, (each.squares() for each in gradients.values())))
        # The gradient of a mean is that of the example's own loss divided by the batch size.
        factors = weight * (clip_norm / norms).clamp(max=float(batch) if mean else 1.0)
        sums = {}
        for name, parameter in parameters.items():
            views = [view for view in gradients if view.parameter == name]
            _check_views(parameter, views)
            if views:
                sums[name] = reduce(add, (view.pulled_back(gradients[view].weighted(factors)) for view in views))
        return sums


def _gradients(use: _Use, gradient: torch.Tensor, batch: int) -> Gradients:
    rule = RULES.get(use.node.name())
    try:
        if rule is None:
            raise refused(use.node, "single examples' gradients are not known there")
        return rule(Meeting(use.node, use.slot, use.view.shape, gradient, batch))
    except ExportError as error:
        raise ExportError(f"parameter {use.view.parameter}: {error}", hint=error.hint) from error


def _joined(view: _View, parts: Sequence[Gradients]) -> Gradients:
    first, *others = parts
    if not others:
        return first
    if any(type(part) is not type(first) for part in others):
        raise _tied(view)
    return first.joined(others)


def _check_views(parameter: torch.Tensor, views: Sequence[_View]) -> None:
    """Views of a parameter must show each of its elements at most once, or the norms above are wrong."""
    if not any(view.key for view in views):
        return
    shown = reduce(add, (view.pulled_back(torch.ones(view.shape, dtype=parameter.dtype)) for view in views))
    if bool((shown > 1).any()) or int(shown.sum()) != sum(math.prod(view.shape) for view in views):
        raise _tied(views[0])


def _tied(view: _View) -> ExportError:
    return ExportError(
        f"parameter {view.parameter} is tied: parts of the model share it, or parts of it, in different ways",
        hint="give each part a parameter of its own, or freeze this one",
    )


def _settings(node: Node) -> tuple[object, ...]:
    """What tells a view from others of its kind; one that picks by a tensor is like no other."""
    saved = {name: getattr(node, name) for name in dir(node) if name.startswith("_saved_")}
    if any(isinstance(value, torch.Tensor) for value in saved.values()):
        return (node,)
    return (node.name(), *saved.items())
