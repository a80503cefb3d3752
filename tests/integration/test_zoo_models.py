"""The zoo: every model is exported, trains on stock ONNX Runtime, and ends where PyTorch itself ends."""

from __future__ import annotations

import pytest
import torch

from exporters.examples.zoo import ZOO
from tests.integration.zoo_training import train_as_pytorch


@pytest.mark.parametrize("name", ZOO)
def test_a_model_of_the_zoo_trains_as_in_pytorch(name: str) -> None:
    train_as_pytorch(name)


def test_the_zoo_is_the_same_every_time() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, two = ZOO["mlp"](), ZOO["mlp"]()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(map(torch.equal, one.example_inputs, two.example_inputs))
    assert all(map(torch.equal, one.model.parameters(), two.model.parameters()))
