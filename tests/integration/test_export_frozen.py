"""What is trained is chosen by name; all else is frozen, in float32 or in 8 bits."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edge_sdk.errors import ArtifactError, ExportError
from edge_sdk.inference.predictor import Predictor
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.plan import TrainingPlan, batches
from exporters.examples.zoo import token_cross_entropy
from exporters.freezing import Patterns
from exporters.rounding import rounding_effect
from tests.integration.exported import exported, flat, labels, repacked, rows, trained_eagerly

PLAN = TrainingPlan(epochs=4, batch_size=4, learning_rate=0.05)
COUNT = 20


class _Adapted(nn.Module):
    """A linear layer with a low-rank change of it beside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, width)
        self.lora_a = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.lora_b = nn.Parameter(torch.zeros(width, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.base(x) + x @ self.lora_a.T @ self.lora_b.T)


class _Reader(nn.Module):
    """Tokens through adapted layers and norms to a head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(40, 32)
        self.layers = nn.ModuleList([_Adapted(32), _Adapted(32)])
        self.norms = nn.ModuleList([nn.LayerNorm(32), nn.LayerNorm(32)])
        self.head = nn.Linear(32, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + torch.tanh(layer(norm(x)))
        return torch.as_tensor(self.head(x.mean(1)))


def _images() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )


def _tokens() -> torch.Tensor:
    return torch.randint(0, 40, (COUNT, 6))


def _pixels() -> torch.Tensor:
    return torch.randn(COUNT, 3, 6, 6)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor], Patterns | None, list[str]]] = {
    "head": (_Reader, _tokens, "head.*", ["head.weight", "head.bias"]),
    "adapters": (
        _Reader,
        _tokens,
        ["*.lora_a", "*.lora_b"],
        [f"layers.{index}.lora_{which}" for index in range(2) for which in "ab"],
    ),
    "norms": (
        _Reader,
        _tokens,
        ["norms.*"],
        [f"norms.{index}.{which}" for index in range(2) for which in ("weight", "bias")],
    ),
    "one by one": (_Reader, _tokens, ("tokens.weight", "head.bias"), ["tokens.weight", "head.bias"]),
    "the last layer of images": (_images, _pixels, "4.*", ["4.weight", "4.bias"]),
    "batch norm with its statistics": (
        _images,
        _pixels,
        "1.*",
        ["1.weight", "1.bias", "1.running_mean", "1.running_var"],
    ),
}


def _train(artifact: Artifact, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Train both for twenty steps, and see that they agree."""
    result = BundleTrainer(artifact).train(artifact.checkpoint(), rows(x, y), PLAN, seed=b"s")
    assert result.steps == 20
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], PLAN.learning_rate)
    for chosen in batches(PLAN, COUNT, b"s"):
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    tensors = model.state_dict()
    expected = np.concatenate([tensors[entry.name].numpy().reshape(-1) for entry in artifact.layout.entries])
    moved = float(np.abs(expected - artifact.checkpoint()).max())
    assert moved > 1e-4
    np.testing.assert_allclose(artifact.checkpoint() + result.update, expected, atol=1e-6 + 1e-4 * moved)


@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_named_trains_as_in_pytorch_and_nothing_else(name: str, storage: str) -> None:
    build, make, patterns, learned = CASES[name]
    torch.manual_seed(8)
    model, x, y = build(), make(), labels(COUNT)
    given = copy.deepcopy(model)
    artifact = exported(model, x, y, trainable=patterns, frozen=storage)
    assert [entry.name for entry in artifact.layout.entries] == learned
    assert all(map(torch.equal, given.state_dict().values(), model.state_dict().values()))

    # What the bundle holds frozen is what the model has, rounded or not.
    frozen = artifact.frozen()
    held = {key.partition(":")[2] for key in frozen}
    parameters = dict(model.named_parameters())
    assert held == set(parameters) - set(learned)
    for parameter_name, parameter in parameters.items():
        parameter.requires_grad_(parameter_name in learned)
        if parameter_name in learned:
            continue
        exact = parameter.detach().numpy()
        if storage == "float32" or parameter.ndim < 2:
            assert np.array_equal(frozen[f"frozen:{parameter_name}"], exact)
            continue
        numbers, scales = frozen[f"quantised:{parameter_name}"], frozen[f"scale:{parameter_name}"]
        assert numbers.dtype == np.int8
        stored = numbers.astype(np.float32) * scales.reshape(-1, *[1] * (numbers.ndim - 1))
        assert np.abs(stored - exact).max() <= 0.5 * scales.max() * 1.001
        parameter.data = torch.from_numpy(stored)
    if "running_mean" not in " ".join(learned):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    _train(artifact, model, x, y)


def test_int8_takes_a_quarter() -> None:
    torch.manual_seed(8)
    sizes = {
        storage: exported(_Reader(), _tokens(), labels(COUNT), trainable="*.lora_?", frozen=storage)
        .manifest.part("frozen")
        .size_bytes
        for storage in ("float32", "int8")
    }
    assert sizes["int8"] < 0.35 * sizes["float32"]


def test_predictions_are_those_of_the_rounded_weights() -> None:
    torch.manual_seed(8)
    model, x = _Reader().eval(), _tokens()
    artifact = exported(model, x, labels(COUNT), trainable="head.*", frozen="int8")
    with torch.no_grad():
        exact = model(x).numpy()
    found = Predictor(artifact, artifact.checkpoint()).predict(x.numpy())
    error = np.abs(found - exact).max()
    assert 0 < error < 0.05 * np.abs(exact).max()
    assert "DequantizeLinear" in artifact.manifest.format("onnx").operators


@pytest.mark.parametrize("tokens", [False, True], ids=["a class an example", "a class a token"])
def test_the_effect_of_rounding_is_told(tokens: bool) -> None:
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 10))
    x, y = torch.randn(16, 5), labels(16)
    if tokens:
        x, y = torch.randn(16, 3, 5), y[:, None].expand(16, 3).contiguous()
    artifact = exported(
        model, x, y, token_cross_entropy if tokens else F.cross_entropy, trainable="2.bias", frozen="int8"
    )
    effect = rounding_effect(model, x, artifact)
    with torch.no_grad():
        exact = model(x).numpy()
    found = Predictor(artifact, artifact.checkpoint()).predict(x.numpy())
    assert 0 < effect.difference == pytest.approx(np.abs(found - exact).max() / np.abs(exact).max())
    assert effect.classified == y.numel()
    assert effect.agreeing == (found.argmax(-1) == exact.argmax(-1)).sum() >= 0.8 * y.numel()
    assert "classes stay the same" in str(effect)


def test_rounding_that_changes_classes_is_told() -> None:
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    with torch.no_grad():
        # 0.7 steps of 1/127 are rounded to one, with which the second class wins.
        first.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.7 / 127]]))
        second.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        second.bias.copy_(torch.tensor([0.8 / 127, 0.0]))
    model = nn.Sequential(first, second)
    x = torch.ones(4, 2)
    artifact = exported(model, x, labels(4, 2), trainable="1.bias", frozen="int8")
    effect = rounding_effect(model, x, artifact)
    assert (effect.agreeing, effect.classified) == (0, 4)
    assert str(effect) == "outputs move by at most 0.23% of the largest; 0 of 4 classes stay the same"


def test_names_win_over_requires_grad() -> None:
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))
    model[0].requires_grad_(False)
    x, y = torch.randn(12, 12), labels(12)
    assert [entry.name for entry in exported(model, x, y).layout.entries] == ["2.weight", "2.bias"]
    artifact = exported(model, x, y, trainable="0.*")
    assert [entry.name for entry in artifact.layout.entries] == ["0.weight", "0.bias"]
    assert [spec.name for spec in artifact.manifest.frozen] == ["frozen:2.weight", "frozen:2.bias"]


def test_requires_grad_decides_where_no_names_are_given() -> None:
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))
    model[0].requires_grad_(False)
    x, y = torch.randn(12, 12), labels(12)
    artifact = exported(model, x, y)
    result = BundleTrainer(artifact).train(artifact.checkpoint(), rows(x, y), PLAN, seed=b"")
    after, _ = trained_eagerly(
        model, F.cross_entropy, lambda p: torch.optim.SGD(p, PLAN.learning_rate), x.numpy(), y.numpy(), PLAN, b""
    )
    assert after.size == flat(model).size == artifact.layout.size
    np.testing.assert_allclose(artifact.checkpoint() + result.update, after, atol=1e-6)


def test_a_tied_parameter_is_found_by_each_of_its_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.middle = nn.Embedding(40, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 40, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.head(self.middle(self.tokens(tokens)).mean(1)))

    torch.manual_seed(8)
    x, y = _tokens(), labels(COUNT, 40)
    for pattern in ("tokens.*", "head.*"):
        assert [entry.name for entry in exported(Tied(), x, y, trainable=pattern).layout.entries] == ["tokens.weight"]
    artifact = exported(Tied(), x, y, trainable="middle.*", frozen="int8")
    assert [spec.name for spec in artifact.manifest.frozen] == ["quantised:tokens.weight", "scale:tokens.weight"]


def test_names_that_match_nothing_are_refused_with_others_like_them() -> None:
    with pytest.raises(ExportError, match=r"no parameter is called 'heads\.weight'") as caught:
        exported(_Reader(), _tokens(), labels(COUNT), trainable=["norms.*", "heads.weight"])
    assert "head.weight" in caught.value.hint
    with pytest.raises(ExportError, match="no parameter is called 'adapters") as caught:
        exported(_Reader(), _tokens(), labels(COUNT), trainable="adapters.*")
    assert "such as" in caught.value.hint
    with pytest.raises(ExportError, match="no trainable parameter"):
        exported(_Reader(), _tokens(), labels(COUNT), trainable=[])


def test_int8_without_anything_frozen_is_refused() -> None:
    with pytest.raises(ExportError, match="no frozen matrix") as caught:
        exported(_Reader(), _tokens(), labels(COUNT), frozen="int8")
    assert "trainable" in caught.value.hint
    with pytest.raises(ExportError, match="'int4' is no way to store"):
        exported(_Reader(), _tokens(), labels(COUNT), frozen="int4")


def test_a_frozen_part_that_is_not_finite_is_refused() -> None:
    torch.manual_seed(8)
    artifact = exported(_Reader(), _tokens(), labels(COUNT), trainable="head.*")
    spoilt = bytearray(artifact.part("frozen"))
    spoilt[:4] = np.array(np.nan, "<f4").tobytes()
    with pytest.raises(ArtifactError, match=r"frozen:tokens\.weight of the bundle holds NaN"):
        repacked(lambda manifest: manifest, artifact, frozen=bytes(spoilt)).frozen()


def test_a_matrix_of_zeros_is_stored_as_such() -> None:
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))
    nn.init.zeros_(model[0].weight)  # type: ignore[arg-type]
    artifact = exported(model, torch.randn(12, 12), labels(12), trainable="2.*", frozen="int8")
    assert not artifact.frozen()["quantised:0.weight"].any()
    assert np.isfinite(artifact.frozen()["scale:0.weight"]).all()
