"""A federated classification task made up from a seed, of any number of devices, each with examples of its own.

A point is a device's own centre plus noise, and its label what a fixed random network says of it, but for one in
twenty that is drawn at random; so devices see different parts of the space, and different labels. As for the digits,
everything is drawn by a numpy generator: this is simulation. The model is a small network with 866 parameters.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from device_sim.datasets import Examples, FederatedDataset
from exporters.spec import ModelSpec

FEATURES, HIDDEN, CLASSES = 24, 26, 8
EXAMPLES_EACH = 20
TEST_DEVICES = 200
_CENTRE_SPREAD = 0.7
_WRONG_LABELS = 0.05


def generated_data(devices: int, *, seed: int) -> FederatedDataset:
    """The examples of so many devices; those held out are of other devices. More devices mean more examples."""
    teacher = np.random.default_rng(7)
    first, second = teacher.normal(size=(FEATURES, 12)), teacher.normal(size=(12, CLASSES))

    def holding(device: int) -> Examples:
        draws = np.random.default_rng([seed, device])
        x = draws.normal(size=FEATURES) * _CENTRE_SPREAD + draws.normal(size=(EXAMPLES_EACH, FEATURES))
        y: NDArray[np.int64] = np.argmax(np.maximum(x @ first, 0) @ second, axis=1)
        wrong = draws.random(EXAMPLES_EACH) < _WRONG_LABELS
        y[wrong] = draws.integers(CLASSES, size=int(wrong.sum()))
        return {"x": x.astype(np.float32), "y": y}

    shards = tuple(holding(device) for device in range(devices))
    return FederatedDataset(
        _together(shards), _together(tuple(map(holding, range(10**6, 10**6 + TEST_DEVICES)))), shards
    )


def _together(parts: tuple[Examples, ...]) -> Examples:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def build() -> ModelSpec:
    """The model at its initial weights, the same every time; like the digits', its last layer begins at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden, head = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        points = torch.randn(16, FEATURES)
    return ModelSpec(
        model=nn.Sequential(hidden, nn.ReLU(), head),
        loss=nn.functional.cross_entropy,
        example_inputs=(points,),
        example_target=torch.arange(16) % CLASSES,
        name="generated",
    )
