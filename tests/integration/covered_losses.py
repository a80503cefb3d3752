"""Losses that the exporter covers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributions as D
from torch.nn import functional as F

from tests.integration.covered import loss, real

WEIGHTS = torch.linspace(0.5, 2, 5)


def _labels(count: int) -> Tensor:
    return torch.arange(count) * 3 % 5


def _maps(count: int) -> Tensor:
    return torch.arange(count * 6).view(count, 2, 3) % 5


def _words(count: int) -> Tensor:
    return torch.arange(count * 3).view(count, 3) % 5


def _shares(count: int) -> Tensor:
    return torch.rand(count, 5)


def _distributions(count: int) -> Tensor:
    return torch.rand(count, 5).softmax(1)


def _signs(count: int) -> Tensor:
    return (torch.arange(count) % 2 * 2 - 1).float()


def _all_signs(count: int) -> Tensor:
    return torch.randn(count, 5).sign()


def _unlikely(distribution: D.Distribution, y: Tensor) -> Tensor:
    return -torch.as_tensor(distribution.log_prob(y)).mean()


LOSSES = {
    "F.cross_entropy": loss(F.cross_entropy, _labels),
    "F.cross_entropy: sum": loss(lambda o, y: F.cross_entropy(o, y, reduction="sum"), _labels),
    "F.cross_entropy: none": loss(
        lambda o, y: (F.cross_entropy(o, y, reduction="none") * torch.arange(len(y))).mean(), _labels
    ),
    "F.cross_entropy: weight": loss(nn.CrossEntropyLoss(weight=WEIGHTS), _labels),
    "F.cross_entropy: weight, sum": loss(lambda o, y: F.cross_entropy(o, y, weight=WEIGHTS, reduction="sum"), _labels),
    "F.cross_entropy: weight, none": loss(
        lambda o, y: F.cross_entropy(o, y, weight=WEIGHTS, reduction="none").square().sum(), _labels
    ),
    "F.cross_entropy: label_smoothing": loss(
        lambda o, y: F.cross_entropy(o, y, weight=WEIGHTS, label_smoothing=0.1), _labels
    ),
    "F.cross_entropy: ignore_index": loss(
        lambda o, y: F.cross_entropy(o, y, ignore_index=1, weight=WEIGHTS, label_smoothing=0.1), _labels
    ),
    "F.cross_entropy: probabilities": loss(
        lambda o, y: F.cross_entropy(o, y, weight=WEIGHTS, label_smoothing=0.1), _distributions
    ),
    "F.cross_entropy: maps": loss(lambda o, y: F.cross_entropy(o, y, weight=WEIGHTS), _maps, (5, 2, 3)),
    "F.cross_entropy: tokens": loss(
        lambda o, y: F.cross_entropy(o.reshape(-1, 5), y.reshape(-1), ignore_index=2), _words, (3, 5)
    ),
    "F.cross_entropy: next tokens": loss(
        lambda o, y: F.cross_entropy(o[:, :-1].reshape(-1, 5), y[:, 1:].reshape(-1)), _words, (3, 5)
    ),
    "F.cross_entropy: between the examples of a batch": loss(
        lambda o, y: F.cross_entropy(F.normalize(o) @ F.normalize(y).T / 0.5, torch.arange(len(o))), real(5)
    ),
    "F.nll_loss": loss(lambda o, y: F.nll_loss(o.log_softmax(1), y, weight=WEIGHTS), _labels),
    "F.nll_loss: maps": loss(
        lambda o, y: F.nll_loss(o.log_softmax(1), y, weight=WEIGHTS, ignore_index=2), _maps, (5, 2, 3)
    ),
    "F.nll_loss: by gather": loss(lambda o, y: -o.log_softmax(1).gather(1, y[:, None]).mean(), _labels),
    "F.nll_loss: by index": loss(lambda o, y: -o.log_softmax(1)[torch.arange(len(y)), y].mean(), _labels),
    "F.binary_cross_entropy": loss(
        lambda o, y: F.binary_cross_entropy(o.sigmoid(), y, weight=WEIGHTS, reduction="sum"), _shares
    ),
    "F.binary_cross_entropy_with_logits": loss(F.binary_cross_entropy_with_logits, _shares),
    "F.binary_cross_entropy_with_logits: weight": loss(
        lambda o, y: F.binary_cross_entropy_with_logits(o, y, weight=WEIGHTS, reduction="sum"), _shares
    ),
    "F.binary_cross_entropy_with_logits: pos_weight": loss(
        lambda o, y: F.binary_cross_entropy_with_logits(o, y, weight=WEIGHTS, pos_weight=WEIGHTS), _shares
    ),
    "F.mse_loss": loss(F.mse_loss, real(5)),
    "F.mse_loss: none": loss(lambda o, y: F.mse_loss(o, y, reduction="none").mean(), real(5)),
    "F.mse_loss: weight": loss(lambda o, y: F.mse_loss(o, y, weight=WEIGHTS.expand(len(o), 5)), real(5)),
    "F.l1_loss": loss(lambda o, y: F.l1_loss(o, y, reduction="sum"), real(5)),
    "F.smooth_l1_loss": loss(lambda o, y: F.smooth_l1_loss(o, y, beta=0.5), real(5)),
    "F.smooth_l1_loss: beta=0": loss(lambda o, y: F.smooth_l1_loss(o, y, beta=0.0), real(5)),
    "F.huber_loss": loss(lambda o, y: F.huber_loss(o, y, reduction="none", delta=0.3).sum(), real(5)),
    "F.kl_div": loss(lambda o, y: F.kl_div(o.log_softmax(1), y, reduction="batchmean"), _distributions),
    "F.kl_div: log_target": loss(
        lambda o, y: F.kl_div(o.log_softmax(1), y.log(), reduction="batchmean", log_target=True), _distributions
    ),
    "F.poisson_nll_loss": loss(F.poisson_nll_loss, _shares),
    "F.poisson_nll_loss: full": loss(
        lambda o, y: F.poisson_nll_loss(o.exp(), 4 * y, log_input=False, full=True), _shares
    ),
    "F.gaussian_nll_loss": loss(
        lambda o, y: F.gaussian_nll_loss(o[:, :2], y[:, :2], F.softplus(o[:, 2:4]), full=True), real(5)
    ),
    "torch.distributions.Normal": loss(
        lambda o, y: _unlikely(D.Normal(o[:, 0], F.softplus(o[:, 1])), y[:, 0]), real(5)
    ),
    "torch.distributions.Laplace": loss(
        lambda o, y: _unlikely(D.Laplace(o[:, 0], F.softplus(o[:, 1])), y[:, 0]), real(5)
    ),
    "torch.distributions.StudentT": loss(
        lambda o, y: _unlikely(D.StudentT(2 + F.softplus(o[:, 2]), o[:, 0], F.softplus(o[:, 1])), y[:, 0]),
        real(5),
    ),
    "torch.distributions.NegativeBinomial": loss(
        lambda o, y: _unlikely(D.NegativeBinomial(F.softplus(o[:, 0]), logits=o[:, 1]), y[:, 0].mul(9).floor()),
        _shares,
    ),
    "torch.distributions.Gamma": loss(
        lambda o, y: _unlikely(D.Gamma(F.softplus(o[:, 0]), F.softplus(o[:, 1])), y[:, 0] + 0.1), _shares
    ),
    "torch.distributions.Beta": loss(
        lambda o, y: _unlikely(D.Beta(o[:, 0].exp(), o[:, 1].exp()), 0.1 + 0.8 * y[:, 0]), _shares
    ),
    "torch.distributions.Categorical": loss(lambda o, y: _unlikely(D.Categorical(logits=o), y), _labels),
    "torch.distributions.kl_divergence": loss(
        lambda o, y: D.kl_divergence(D.Normal(o, 1.0), D.Normal(y, 2.0)).mean(), real(5)
    ),
    "F.hinge_embedding_loss": loss(F.hinge_embedding_loss, _all_signs),
    "F.soft_margin_loss": loss(F.soft_margin_loss, _all_signs),
    "F.multi_margin_loss": loss(F.multi_margin_loss, _labels),
    "F.multi_margin_loss: weight": loss(
        lambda o, y: F.multi_margin_loss(o, y, p=2, weight=WEIGHTS, margin=0.5), _labels
    ),
    "F.multilabel_soft_margin_loss": loss(lambda o, y: F.multilabel_soft_margin_loss(o, (y > 0.5).float()), _shares),
    "F.margin_ranking_loss": loss(lambda o, y: F.margin_ranking_loss(o[:, 0], o[:, 1], y, margin=0.2), _signs),
    "F.cosine_embedding_loss": loss(lambda o, y: F.cosine_embedding_loss(o[:, :2], o[:, 2:4], y, margin=0.1), _signs),
    "F.triplet_margin_loss": loss(
        lambda o, y: F.triplet_margin_loss(o[:, :2], o[:, 2:4], y[:, :2], swap=True), real(5)
    ),
    "F.triplet_margin_with_distance_loss": loss(
        lambda o, y: F.triplet_margin_with_distance_loss(o[:, :2], o[:, 2:4], y[:, :2]), real(5)
    ),
    "focal loss": loss(lambda o, y: ((1 - torch.exp(-F.cross_entropy(o, y, reduction="none"))) ** 2).mean(), _labels),
    "dice loss": loss(lambda o, y: 1 - (2 * (o.sigmoid() * y).sum(1) / (o.sigmoid() + y).sum(1)).mean(), _shares),
    "log-cosh loss": loss(lambda o, y: torch.log(torch.cosh(o - y)).mean(), real(5)),
    "quantile loss": loss(lambda o, y: torch.maximum(0.3 * (y - o), -0.7 * (y - o)).mean(), real(5)),
    "masked mean": loss(lambda o, y: ((o - y) ** 2 * (y > 0)).sum() / (y > 0).sum().clamp(min=1), real(5)),
    "sums of losses": loss(lambda o, y: F.mse_loss(o, y) + 0.1 * o.abs().sum(1).mean(), real(5)),
}
