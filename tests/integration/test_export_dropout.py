"""Dropout in the exported step: its masks follow from a seed, and are those that torch computes by the same formula."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edge_sdk.errors import ExportError
from edge_sdk.inference.predictor import Predictor
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.evaluation import evaluate
from edge_sdk.training.plan import SEED_LIMIT, TrainingPlan, batches, step_seed
from exporters.lowering import RULES, Lowered
from exporters.randomness import Seeded, keep
from exporters.record import record
from tests.integration.exported import exported, flat, labels, rows

PLAN = TrainingPlan(epochs=4, batch_size=4, learning_rate=0.05)


class _Attending(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)
        self.head, self.need_weights = nn.Linear(8, 10), need_weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed, _ = self.attention(x, x, x, need_weights=self.need_weights)
        return torch.as_tensor(self.head(mixed.mean(1)))


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.LSTM(6, 8, num_layers=2, dropout=0.3, batch_first=True), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(self.recurrent(x)[0][:, -1]))


class _Functional(nn.Module):
    def __init__(self, always: bool) -> None:
        super().__init__()
        self.first, self.second, self.always = nn.Linear(12, 32), nn.Linear(32, 10), always

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.second(F.dropout(self.first(x), 0.4, self.always or self.training)))


def _dense(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), *layers, nn.Linear(32, 10))


def _conv(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.Flatten(), nn.Linear(128, 10))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dropout": (lambda: _dense(nn.ReLU(), nn.Dropout(0.3)), (12,)),
    "two in a row": (lambda: _dense(nn.Dropout(0.3), nn.Dropout(0.1)), (12,)),
    "in place": (lambda: _dense(nn.Dropout(0.5, inplace=True)), (12,)),
    "functional": (lambda: _Functional(False), (12,)),
    "alpha": (lambda: _dense(nn.SELU(), nn.AlphaDropout(0.3)), (12,)),
    "1d": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.Dropout1d(0.4), nn.Flatten(), nn.Linear(32, 10)),
        (3, 6),
    ),
    "2d": (lambda: _conv(nn.Dropout2d(0.4)), (3, 6, 6)),
    "attention": (lambda: _Attending(False), (5, 8)),
    "attention with weights": (lambda: _Attending(True), (5, 8)),
    "transformer layer": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), nn.Flatten(), nn.Linear(40, 10)
        ),
        (5, 8),
    ),
    "recurrent": (_Recurrent, (4, 6)),
}


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_are_those_of_pytorch(name: str) -> None:
    build, shape = CASES[name]
    torch.manual_seed(2)
    model, x, y = build(), torch.randn(20, *shape), labels(20)
    artifact = exported(model, x, y)
    assert [tensor.name for tensor in artifact.manifest.graph("train").inputs if tensor.role == "seed"] == ["seed"]
    assert not [tensor for tensor in artifact.manifest.graph("infer").inputs if tensor.role == "seed"]
    checkpoint = artifact.checkpoint()
    result = BundleTrainer(artifact).train(checkpoint, rows(x, y), PLAN, seed=b"s")

    optimizer = torch.optim.SGD(model.parameters(), PLAN.learning_rate)
    for step, chosen in enumerate(batches(PLAN, 20, b"s")):
        optimizer.zero_grad()
        with Seeded(torch.tensor(step_seed(b"s", step))):
            loss = F.cross_entropy(model(x[chosen]), y[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert result.steps == 20
    after = checkpoint + result.update
    np.testing.assert_allclose(after, flat(model), atol=5e-6)

    model.eval()
    with torch.no_grad():
        served = model(x)
    np.testing.assert_allclose(Predictor(artifact, after).predict(x.numpy()), served.numpy(), atol=1e-5)
    assert evaluate(artifact, after, rows(x, y)).loss == pytest.approx(float(F.cross_entropy(served, y)), rel=1e-5)


def test_another_seed_leaves_out_others() -> None:
    torch.manual_seed(2)
    x, y = torch.randn(8, 12), labels(8)
    artifact = exported(_dense(nn.Dropout(0.5)), x, y)
    plan = TrainingPlan(epochs=1, batch_size=8, learning_rate=0.1)
    updates = [
        BundleTrainer(artifact).train(artifact.checkpoint(), rows(x, y), plan, seed=seed).update
        for seed in (b"a", b"a", b"b")
    ]
    assert np.array_equal(updates[0], updates[1])
    # The batch holds the same eight examples, in another order, so only the masks can tell.
    assert np.abs(updates[0] - updates[2]).max() > 1e-3


@pytest.mark.parametrize("layers", [[nn.Dropout(0.0)], [nn.Dropout(0.3).eval()]])
def test_a_dropout_that_leaves_nothing_out_needs_no_seed(layers: list[nn.Module]) -> None:
    artifact = exported(_dense(*layers), torch.randn(8, 12), labels(8))
    assert "seed" not in {tensor.role for tensor in artifact.manifest.graph("train").inputs}


def test_dropout_in_evaluation_is_refused_by_name() -> None:
    with pytest.raises(ExportError, match=r"\(_Functional\).*draws random numbers that no seed is given for") as caught:
        exported(_Functional(True), torch.randn(8, 12), labels(8))
    assert "self.training" in caught.value.hint


@pytest.mark.parametrize("noise", ["rand_like", "bernoulli", "normal"])
def test_other_randomness_is_refused_by_name(noise: str) -> None:
    def draw(x: torch.Tensor) -> torch.Tensor:
        if noise == "rand_like":
            return torch.rand_like(x)
        return torch.bernoulli(torch.sigmoid(x)) if noise == "bernoulli" else torch.normal(x, 1.0)

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.head(x + draw(x) if self.training else x))

    with pytest.raises(ExportError, match=r"\(Noisy\).*draws random numbers"):
        exported(Noisy(), torch.randn(8, 12), labels(8))


@pytest.mark.parametrize("size", [(None,), (None, 3), (None, 5, 7), (5, None, 3), (None, 1, 1), (2, None)])
def test_masks_are_bit_for_bit_those_of_torch(size: tuple[int | None, ...]) -> None:
    def masks(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        shape = [len(inputs["x"]) if dim is None else dim for dim in size]
        return {
            f"m{site}": torch.ops.edge_sdk.keep(inputs["seed"], site, shape, share)
            for site, share in enumerate((0.7, 0.5, 0.0, 1e-9))
        }

    graph = record(
        masks,  # type: ignore[arg-type]
        ({"x": torch.zeros(4), "seed": torch.tensor(1)}, {"x": torch.zeros(7), "seed": torch.tensor(1)}),
        (4, 7),
        supported=RULES.keys(),
        model=nn.Identity(),
    )
    model = Lowered(graph, "x").model(tuple(graph.outputs), ("x", "seed"))
    runtime = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for seed in (0, 1, 12345, SEED_LIMIT - 1):
        found = runtime.run(None, {"x": np.zeros(1000, np.float32), "seed": np.array(seed, np.int64)})
        for site, share in enumerate((0.7, 0.5, 0.0, 1e-9)):
            shape = [1000 if dim is None else dim for dim in size]
            assert np.array_equal(found[site], keep(torch.tensor(seed), site, shape, share).numpy())


def test_masks_look_random() -> None:
    """Shares, and correlations between neighbours, dropouts and seeds, within five standard errors."""
    count = 1 << 18
    masks = [
        (keep(torch.tensor(seed), site, [count], 0.7).double() - 0.7) / 0.21**0.5
        for seed in (0, 1, 2, SEED_LIMIT - 1)
        for site in range(4)
    ]
    bound = 5 / count**0.5
    for index, mask in enumerate(masks):
        assert abs(float(mask.mean())) < bound
        for lag in (1, 2, 16, 64, 768):
            assert abs(float((mask[lag:] * mask[:-lag]).mean())) < bound
        for other in masks[:index]:
            assert abs(float((mask * other).mean())) < bound
    over_seeds = torch.stack([keep(torch.tensor(seed), 0, [64], 0.5).double() for seed in range(1000)])
    assert float((over_seeds.mean(0) - 0.5).abs().max()) < 5 * 0.5 / 1000**0.5


def test_seeds_of_steps_are_what_any_language_computes() -> None:
    assert [step_seed(b"seed", step) for step in range(3)] == [1421939943, 1668493606, 149251226]
