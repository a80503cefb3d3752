"""Convolutions of many geometries, forward and all gradients, lowered alone and compared with float64."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch

from exporters.lowering import RULES, Lowered, depthwise
from exporters.lowering.geometry import Geometry
from exporters.record import record

Tensors = Mapping[str, torch.Tensor]
BATCHES = (2, 3)


class Case(NamedTuple):
    """A convolution: channels in and out, spatial size, and settings, one a spatial dimension."""

    channels: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False

    @property
    def settings(self) -> tuple[object, ...]:
        """What torch calls stride, padding, dilation, transposed, output_padding, groups."""
        extra = [stride - 1 for stride in self.stride] if self.transposed else [0] * len(self.size)
        return (list(self.stride), list(self.padding), list(self.dilation), self.transposed, extra, self.groups)

    def tensors(self, batch: int) -> dict[str, torch.Tensor]:
        """Input, weight, bias and the gradient of the output."""
        ends = (self.channels, self.outputs) if self.transposed else (self.outputs, self.channels)
        x = torch.randn(batch, self.channels, *self.size)
        weight = torch.randn(ends[0], ends[1] // self.groups, *self.kernel)
        bias = torch.randn(self.outputs)
        y = torch.ops.aten.convolution(x, weight, bias, *self.settings)
        return {"x": x, "weight": weight, "bias": bias, "gradient": torch.randn(y.shape)}

    def run(self, named: Tensors) -> dict[str, torch.Tensor]:
        """The convolution and its three gradients."""
        x, weight, bias, gradient = (named[name] for name in ("x", "weight", "bias", "gradient"))
        y = torch.ops.aten.convolution(x, weight, bias, *self.settings)
        mask = [True, True, True]
        found = torch.ops.aten.convolution_backward(gradient, x, weight, [self.outputs], *self.settings, mask)
        return dict(zip(("y", "dx", "dweight", "dbias"), (y, *found), strict=True))

    def check(self) -> None:
        """Lower it, run it with another batch than those it was traced with, and compare."""
        graph = record(
            self.run,
            (self.tensors(BATCHES[0]), self.tensors(BATCHES[1])),
            BATCHES,
            supported=RULES.keys(),
            model=torch.nn.Identity(),
        )
        outputs = ("y", "dx", "dweight", "dbias")
        model = Lowered(graph, "x").model(outputs, ("x", "weight", "bias", "gradient"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        inputs = self.tensors(5)
        found = session.run(outputs, {name: tensor.numpy() for name, tensor in inputs.items()})
        expected = self.run({name: tensor.double() for name, tensor in inputs.items()})
        for name, value in zip(outputs, found, strict=True):
            reference = expected[name].numpy()
            np.testing.assert_allclose(value, reference, atol=1e-5 * max(1.0, np.abs(reference).max()), err_msg=name)


def _fits(case: Case) -> bool:
    reach = (d * (k - 1) + 1 for d, k in zip(case.dilation, case.kernel, strict=True))
    if case.transposed:
        return all(pad < span for pad, span in zip(case.padding, reach, strict=True))
    spans = zip(case.size, case.padding, reach, strict=True)
    return all(size + 2 * pad >= span for size, pad, span in spans)


def _sweep(channels: int, outputs: int, groups: int, transposed: bool) -> Iterator[Case]:
    """Settings drawn at random, most of them of images."""
    draw = random.Random(f"{channels} {groups} {transposed}")
    while True:
        rank = draw.choice((1, 2, 2, 2, 3))
        size, kernel, stride, padding, dilation = (
            tuple(draw.randint(*limits) for _ in range(rank)) for limits in ((4, 10), (1, 5), (1, 3), (0, 2), (1, 2))
        )
        yield Case(channels, outputs, size, kernel, stride, padding, dilation, groups, transposed)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more, and lose much where other tests run beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("channels", "outputs", "groups"),
    [(4, 6, 1), (6, 4, 2), (5, 5, 5), (3, 6, 3)],
    ids=["dense", "grouped", "depthwise", "depthwise with two outputs a channel"],
)
def test_convolutions_match_float64(channels: int, outputs: int, groups: int, transposed: bool) -> None:
    torch.manual_seed(11)
    if transposed:
        channels, outputs = outputs, channels
    fitting = filter(_fits, _sweep(channels, outputs, groups, transposed))
    for case in itertools.islice(fitting, 30):
        case.check()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("channels", "outputs"), [(4, 4), (4, 2), (2, 4)])
@pytest.mark.parametrize(
    ("size", "kernel", "padding", "dilation"),
    [
        ((9, 8), (3, 3), (1, 1), (1, 1)),
        ((12, 9), (2, 5), (0, 3), (2, 1)),
        ((20,), (3,), (2,), (2,)),
        ((5, 4), (1, 1), (0, 0), (1, 1)),
        ((9, 8), (9, 6), (4, 2), (1, 1)),
    ],
)
def test_convolutions_of_stride_one_either_way(
    transposed: bool,
    channels: int,
    outputs: int,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> None:
    """They are transposed convolutions too, which are chosen where that is faster."""
    torch.manual_seed(11)
    Case(channels, outputs, size, kernel, (1,) * len(size), padding, dilation, 1, transposed).check()


@pytest.mark.parametrize(
    ("case", "small", "short"),
    [
        (Case(3, 3, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), 3), True, True),
        (Case(3, 3, (9, 9), (3, 3), (1, 1), (1, 1), (1, 1), 3), False, True),
        (Case(3, 3, (16, 16), (5, 5), (2, 2), (2, 2), (1, 1), 3), False, True),
        (Case(3, 3, (16, 16), (5, 5), (1, 1), (2, 2), (1, 1), 3), False, True),  # as transposed, and below not
        (Case(3, 3, (17, 18), (3, 3), (1, 1), (1, 1), (1, 1), 3), False, True),
        (Case(3, 3, (17, 18), (3, 3), (1, 1), (1, 2), (1, 1), 3, transposed=True), False, True),
        (Case(3, 3, (10, 14), (3, 3), (3, 1), (1, 0), (1, 2), 3), False, True),
        (Case(2, 2, (2, 70), (5, 3), (1, 1), (4, 1), (2, 1), 2), False, True),  # taps that meet no row at all
        (Case(2, 2, (4, 130), (3, 3), (1, 1), (1, 1), (1, 1), 2), False, False),
        (Case(2, 2, (140,), (3,), (1,), (2,), (2,), 2), False, False),
    ],
)
def test_depthwise_convolutions_of_every_way(case: Case, small: bool, short: bool) -> None:
    torch.manual_seed(12)
    out = tuple(case.run(case.tensors(1))["y"].shape[2:])
    c = case
    geometry = Geometry(
        c.stride, c.padding, c.dilation, c.groups, 1, c.channels, c.outputs, c.kernel, c.size, out
    )  # fmt: skip
    assert (depthwise.is_small(geometry), depthwise.has_short_rows(geometry)) == (small, short)
    case.check()
