"""Models of several inputs: tuples, dicts, nested ones, tokens, masks and mixed types, from export to prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edge_sdk.errors import ExportError, TrainingError
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.inference.predictor import Predictor
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.evaluation import evaluate
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.parity import replay_parity
from edge_sdk.training.plan import TrainingPlan, batches
from exporters.arguments import ExampleInputs
from tests.integration.exported import SIGNER, Array, exported, flat, labels

PLAN = TrainingPlan(epochs=4, batch_size=4, learning_rate=0.05)
COUNT = 20


class _Recommender(nn.Module):
    """A user's and an item's number, and what is measured of them: two types of integers and floats."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items, self.head = nn.Embedding(9, 4), nn.Embedding(7, 4), nn.Linear(11, 3)

    def forward(self, user: torch.Tensor, item: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(torch.cat([self.users(user), self.items(item), measured], 1)))


class _Reader(nn.Module):
    """Tokens with a mask of those that count, given as one dict, and a scale beside."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, batch: dict[str, torch.Tensor], scale: torch.Tensor | None = None) -> torch.Tensor:
        mask = batch["mask"].float()[..., None]
        mean = (self.tokens(batch["tokens"]) * mask).sum(1) / mask.sum(1).clamp(min=1)
        return torch.as_tensor(self.head(mean if scale is None else mean * scale[:, None]))


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor], *others: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.first(pair[0]) + self.second(pair[1]) + sum(others))


def _tokens(*shape: int, high: int = 9, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.randint(0, high, (COUNT, *shape), dtype=dtype)


def _mask() -> torch.Tensor:
    mask = torch.rand(COUNT, 5) < 0.7
    mask[:, 0] = True
    return mask


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], ExampleInputs], list[str]]] = {
    "a tensor": (lambda: nn.Linear(4, 3), lambda: torch.randn(COUNT, 4), ["x"]),
    "a tuple of one": (lambda: nn.Linear(4, 3), lambda: (torch.randn(COUNT, 4),), ["x"]),
    "a tuple": (
        _Recommender,
        lambda: (_tokens(), _tokens(high=7, dtype=torch.int32), torch.randn(COUNT, 3)),
        ["user", "item", "measured"],
    ),
    "a dict": (
        _Recommender,
        lambda: {"measured": torch.randn(COUNT, 3), "item": _tokens(high=7), "user": _tokens()},
        ["measured", "item", "user"],
    ),
    "a nested dict": (
        _Reader,
        lambda: ({"tokens": _tokens(5), "mask": _mask()}, torch.rand(COUNT)),
        ["batch.tokens", "batch.mask", "scale"],
    ),
    "a nested dict by keyword": (
        _Reader,
        lambda: {"batch": {"tokens": _tokens(5), "mask": _mask()}},
        ["batch.tokens", "batch.mask"],
    ),
    "a nested tuple and more": (
        _Pair,
        lambda: ((torch.randn(COUNT, 4), torch.randn(COUNT, 5)), torch.randn(COUNT, 3), torch.randn(COUNT, 3)),
        ["pair.0", "pair.1", "others.0", "others.1"],
    ),
}


def _chosen(inputs: Any, rows: Any) -> Any:
    if isinstance(inputs, torch.Tensor):
        return inputs[rows]
    if isinstance(inputs, dict):
        return {name: _chosen(item, rows) for name, item in inputs.items()}
    return tuple(_chosen(item, rows) for item in inputs)


def _called(model: nn.Module, inputs: Any) -> torch.Tensor:
    if isinstance(inputs, dict):
        return torch.as_tensor(model(**inputs))
    return torch.as_tensor(model(*inputs) if isinstance(inputs, tuple) else model(inputs))


def _leaves(inputs: Any) -> list[Array]:
    if isinstance(inputs, torch.Tensor):
        return [inputs.numpy()]
    return [leaf for item in (inputs.values() if isinstance(inputs, dict) else inputs) for leaf in _leaves(item)]


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_are_those_of_pytorch(name: str) -> None:
    build, make, names = CASES[name]
    torch.manual_seed(6)
    model, inputs, y = build(), make(), labels(COUNT, 3)
    artifact = exported(model, inputs, y)
    # Keyword arguments are in the order of forward's parameters.
    expected = ["user", "item", "measured"] if name == "a dict" else names
    assert [spec.name for spec in artifact.manifest.inputs] == expected
    by_name = dict(zip(names, _leaves(inputs), strict=True))
    assert {spec.name: spec.dtype for spec in artifact.manifest.inputs} == {
        name: array.dtype.name for name, array in by_name.items()
    }
    examples = {**by_name, "y": y.numpy(), "what no model takes": np.zeros(COUNT)}
    checkpoint = artifact.checkpoint()
    result = BundleTrainer(artifact).train(checkpoint, examples, PLAN, seed=b"s")
    assert (result.steps, result.examples) == (20, COUNT)

    optimizer = torch.optim.SGD(model.parameters(), PLAN.learning_rate)
    for rows in batches(PLAN, COUNT, b"s"):
        optimizer.zero_grad()
        F.cross_entropy(_called(model, _chosen(inputs, rows)), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = checkpoint + result.update
    np.testing.assert_allclose(after, flat(model), atol=2e-6)
    with torch.no_grad():
        served = _called(model, inputs)
    np.testing.assert_allclose(Predictor(artifact, after).predict(by_name), served.numpy(), atol=1e-5)
    found = evaluate(artifact, after, examples)
    assert found.loss == pytest.approx(float(F.cross_entropy(served, y)), rel=1e-5)
    assert replay_parity(artifact).ok


def _recommender() -> tuple[Artifact, dict[str, Array]]:
    torch.manual_seed(6)
    inputs = CASES["a tuple"][1]()
    by_name = dict(zip(("user", "item", "measured"), _leaves(inputs), strict=True))
    return exported(_Recommender(), inputs, labels(COUNT, 3)), by_name


def test_a_device_stores_trains_installs_and_predicts_by_name(tmp_path: Path) -> None:
    artifact, by_name = _recommender()
    y = labels(COUNT, 3).numpy()
    signer = SIGNER.public_key()
    with ExampleStore.create_for(tmp_path / "examples.sqlite", {"y": y, **by_name}) as store:
        store.add_many({**by_name, "y": y})
        store.add(user=3, item=2, measured=np.zeros(3, np.float32), y=1)
        result = BundleTrainer(artifact).train(artifact.checkpoint(), store.arrays(), PLAN, seed=b"s")
        assert result.examples == COUNT + 1
        models = InstalledModels(tmp_path / "models", signer=signer)
        models.install(artifact, 1, artifact.checkpoint() + result.update)
        assert np.array_equal(models.predictor().predict(by_name), models.predictor().predict(**by_name))
        assert models.predictor().predict(**by_name).shape == (COUNT, 3)


def test_predictions_of_other_inputs_are_refused() -> None:
    artifact, by_name = _recommender()
    predictor = Predictor(artifact, artifact.checkpoint())
    with pytest.raises(TrainingError, match="takes several inputs: user, item, measured"):
        predictor.predict(by_name["user"])
    with pytest.raises(TrainingError, match=r"takes user, item, measured; item is not among the fields user, measured"):
        predictor.predict(user=by_name["user"], measured=by_name["measured"])
    with pytest.raises(TrainingError, match="is not among the fields"):
        predictor.predict()
    with pytest.raises(TrainingError, match="have different numbers of rows: 20 of user, 19 of item, 20 of measured"):
        predictor.predict(**{**by_name, "item": by_name["item"][1:]})
    with pytest.raises(TrainingError, match=r"item is int64\[20\], the model takes int32\[batch\]"):
        predictor.predict(**{**by_name, "item": by_name["item"].astype(np.int64)})


def test_examples_of_other_fields_are_refused() -> None:
    artifact, by_name = _recommender()
    trainer, y = BundleTrainer(artifact), labels(COUNT, 3).numpy()
    with pytest.raises(TrainingError, match=r"measured, y; y is not among the fields user, item, measured"):
        trainer.train(artifact.checkpoint(), by_name, PLAN, seed=b"")
    with pytest.raises(TrainingError, match="19 rows of user but 20 of y"):
        trainer.train(artifact.checkpoint(), {**by_name, "user": by_name["user"][1:], "y": y}, PLAN, seed=b"")


class _Named(nn.Module):
    """Takes what it is told by any name."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, **given: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(sum(given.values())))


def _rows() -> torch.Tensor:
    return torch.randn(COUNT, 4)


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (nn.Linear(4, 3), lambda: (_rows(), _rows()), "cannot be called with the example inputs: too many positional"),
        (nn.Linear(4, 3), lambda: {"x": _rows()}, "cannot be called with the example inputs: missing a required"),
        (nn.Linear(4, 3), lambda: (), "cannot be called with the example inputs: missing a required"),
        (_Named(), dict, "there are no example inputs"),
        (_Named(), lambda: {"y": _rows(), "z": _rows()}, "an input of the model is called 'y'"),
        (_Named(), lambda: {"seed": _rows(), "z": _rows()}, "an input of the model is called 'seed'"),
        (_Named(), lambda: {"a:b": _rows(), "z": _rows()}, "an input cannot have the name 'a:b'"),
        (_Recommender(), lambda: (_tokens(), _tokens(high=7), 3), "input measured is a int, not a tensor"),
        (_Recommender(), lambda: (_tokens(), _tokens(high=7), None), "input measured is a NoneType, not a tensor"),
        (
            _Recommender(),
            lambda: (_tokens(), _tokens(high=7)[1:], torch.randn(COUNT, 3)),
            "19 examples in item, but 20",
        ),
        (_Recommender(), lambda: (_tokens(), _tokens(high=7), _rows()[:1]), "1 examples in measured, but 20"),
        (_Recommender(), lambda: (_tokens(), _tokens(high=7), _rows()[:, :3].half()), "input measured has dtype"),
    ],
)
def test_wrong_example_inputs_are_refused(model: nn.Module, inputs: Callable[[], Any], words: str) -> None:
    with pytest.raises(ExportError, match=words) as caught:
        exported(model, inputs(), labels(COUNT, 3))
    assert caught.value.hint


def test_an_input_that_does_nothing_is_refused() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, used: torch.Tensor, unused: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.head(used))

    with pytest.raises(ExportError, match="does not depend on input unused"):
        exported(Idle(), (_rows(), _rows()), labels(COUNT, 3))


def test_large_integers_are_divided_exactly() -> None:
    """Through floats, as exporters are known to do it, the last digits would be lost."""

    class Buckets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(8, 3)

        def forward(self, number: torch.Tensor) -> torch.Tensor:
            down = torch.div(number, 3, rounding_mode="trunc") - 3 * (number // 9)
            return torch.as_tensor(self.rows(down % 8))

    torch.manual_seed(6)
    numbers = torch.randint(2**60, 2**62, (COUNT,))
    model = Buckets()
    artifact = exported(model, numbers, labels(COUNT, 3))
    found = Predictor(artifact, artifact.checkpoint()).predict(numbers.numpy())
    assert np.array_equal(found, model(numbers).detach().numpy())
