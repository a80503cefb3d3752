"""Every layer, function and loss that the docs call covered: exported, which replays 20 steps against float64.

What is told apart here is whether an operator can be exported and computes the right thing; `test_export_models`
trains whole models freely, and compares with PyTorch in float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.plan import TrainingPlan
from tests.integration.covered import examples, listed
from tests.integration.covered_cases import CASES, TABLES
from tests.integration.exported import exported, rows, trained_eagerly

TWENTY_STEPS = TrainingPlan(epochs=10, batch_size=6, learning_rate=0.05)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", CASES)
def test_it_trains_as_in_float64(name: str) -> None:
    model, x, y = examples(CASES[name], 9)
    assert 0 < exported(model, x, y, CASES[name].loss).manifest.format("onnx").replay.worst < 1


@pytest.mark.parametrize(
    "name",
    [
        "nn.ConvTranspose2d",
        "nn.Upsample: bilinear",
        "F.grid_sample",
        "nn.EmbeddingBag: mean",
        "nn.LSTM: padded sequences, mean",
        "nn.MultiheadAttention: both masks",
        "nn.TransformerEncoder: padding",
        "F.cross_entropy: ignore_index",
        "parts changed in place",
    ],
)
def test_twenty_free_steps_stay_with_pytorch(name: str) -> None:
    model, x, y = examples(CASES[name], 12)
    artifact = exported(model, x, y, CASES[name].loss)
    start = artifact.checkpoint()
    result = BundleTrainer(artifact).train(start, rows(x, y), TWENTY_STEPS, seed=b"order")
    assert result.steps == 20

    def make(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, TWENTY_STEPS.learning_rate)

    after, _ = trained_eagerly(model, CASES[name].loss, make, x.numpy(), y.numpy(), TWENTY_STEPS, b"order")
    moved = float(np.abs(after - start).max())
    assert moved > 1e-3
    np.testing.assert_allclose(start + result.update, after, atol=1e-6 + 1e-4 * moved)


def test_the_docs_list_what_is_covered() -> None:
    page = Path(__file__, "../../../docs/exporting.md").resolve().read_text()
    assert sum(map(len, TABLES.values())) == len(CASES)
    table = listed(TABLES)
    assert table in page, f"put this into docs/exporting.md:\n{table}"
