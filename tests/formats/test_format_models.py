"""Models of the zoo as LiteRT and ExecuTorch: each trains there, and ends where PyTorch itself ends."""

from __future__ import annotations

import pytest

from edge_sdk.training.manifest import BatchRange, Runtime
from edge_sdk.training.parity import replay_parity
from tests.integration.zoo_training import BATCH, train_as_pytorch

# Compilers take minutes for the larger models.
pytestmark = pytest.mark.timeout(3600)

MODELS = ("mlp", "lenet", "mobilenet_v3", "autoencoder", "temporal_convolution", "lstm", "lora", "vit")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("runtime", ["litert", "executorch"])
def test_a_model_of_the_zoo_trains_as_in_pytorch(name: str, runtime: Runtime) -> None:
    artifact = train_as_pytorch(name, runtime, formats=("onnx", runtime), compiled_batch=BATCH)
    assert artifact.manifest.format(runtime).batch == BatchRange(BATCH if runtime == "litert" else 1, BATCH)
    assert replay_parity(artifact, runtime).ok
