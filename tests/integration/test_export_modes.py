"""Training runs the model in training mode; evaluation and inference run it in evaluation mode."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from edge_sdk.inference.predictor import Predictor
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.evaluation import evaluate
from edge_sdk.training.plan import TrainingPlan
from tests.integration.exported import exported, labels, rows, trained_eagerly

PLAN = TrainingPlan(epochs=5, batch_size=5, learning_rate=0.05)


class _TwoFaced(nn.Module):
    """Twice as large in training, and by another path."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        hidden = torch.tanh(hidden) * 2 if self.training else torch.sigmoid(hidden)
        return torch.as_tensor(self.second(hidden))


def test_each_graph_is_of_its_own_mode() -> None:
    torch.manual_seed(0)
    model, x, y = _TwoFaced(), torch.randn(20, 12), labels(20)
    artifact = exported(model, x, y)
    result = BundleTrainer(artifact).train(artifact.checkpoint(), rows(x, y), PLAN, seed=b"s")
    assert result.steps == 20
    after, _ = trained_eagerly(
        model, F.cross_entropy, lambda p: torch.optim.SGD(p, PLAN.learning_rate), x.numpy(), y.numpy(), PLAN, b"s"
    )
    np.testing.assert_allclose(artifact.checkpoint() + result.update, after, atol=1e-6)
    model.eval()
    with torch.no_grad():
        served = model(x)
    np.testing.assert_allclose(Predictor(artifact, after).predict(x.numpy()), served.numpy(), atol=1e-6)
    found = evaluate(artifact, after, rows(x, y))
    np.testing.assert_allclose(found.loss, float(F.cross_entropy(served, y)), rtol=1e-5)
