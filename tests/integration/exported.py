"""Exports models for tests, with one signing key, and trains them with plain PyTorch for comparison."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from edge_sdk.signing import key_id, new_private_key, sign_raw
from edge_sdk.training.artifact import Artifact, pack_bundle, parse_artifact
from edge_sdk.training.layout import Vector
from edge_sdk.training.manifest import Manifest
from edge_sdk.training.plan import TrainingPlan, batches
from exporters import export
from exporters.arguments import ExampleInputs
from exporters.optimizers import Optimizer

# Small tensors gain nothing from more, and lose much where other tests run beside.
torch.set_num_threads(1)

SIGNER = new_private_key()

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Array = np.ndarray[Any, Any]


def exported(
    model: nn.Module,
    x: ExampleInputs,
    y: torch.Tensor,
    loss: Loss = nn.functional.cross_entropy,
    optimizer: str | Optimizer = "sgd",
    **settings: Any,
) -> Artifact:
    """Export to a file that is gone afterwards; the artifact stays."""
    with TemporaryDirectory() as folder:
        return export(
            model,
            loss,
            example_inputs=x,
            example_target=y,
            path=Path(folder, "model.edge"),
            signer=SIGNER,
            optimizer=optimizer,
            **settings,
        )


def known_entropy() -> Callable[[int], bytes]:
    """Random bytes that are anything but secret: the same for every training."""
    numbers = itertools.count()
    return lambda count: hashlib.shake_256(next(numbers).to_bytes(4, "little")).digest(count)


def labels(count: int, classes: int = 10) -> torch.Tensor:
    """Class indices."""
    return torch.arange(count) * 7 % classes


def small_net(seed: int = 0) -> nn.Sequential:
    """A small convolutional net for 8x8 grey images and ten classes."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10))


@lru_cache
def small() -> Artifact:
    """`small_net` exported for plain gradient descent, once for all tests."""
    model = small_net()
    return exported(model, torch.randn(8, 1, 8, 8), labels(8), name="small")


def repacked(
    change: Callable[[Manifest], Manifest], artifact: Artifact | None = None, /, **replaced: bytes
) -> Artifact:
    """The small bundle, or another, with a changed manifest or part, signed again by its rightful signer."""
    artifact = artifact or small()
    parts = {part.name: artifact.part(part.name) for part in artifact.manifest.parts} | replaced
    content = pack_bundle(
        change(artifact.manifest),
        parts,
        signer_key_id=key_id(SIGNER.public_key()),
        sign=lambda message: sign_raw(SIGNER, message),
    )
    return parse_artifact(content, signer=SIGNER.public_key())


def images(count: int, seed: int = 1) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Examples for `small_net`."""
    random = np.random.default_rng(seed)
    return (
        random.standard_normal((count, 1, 8, 8)).astype(np.float32),
        random.integers(10, size=count).astype(np.int64),
    )


def rows(x: torch.Tensor | Array | Mapping[str, torch.Tensor], y: torch.Tensor | Array) -> dict[str, Array]:
    """Examples for a model of one input, or of several by name."""
    inputs = {name: np.asarray(value) for name, value in x.items()} if isinstance(x, Mapping) else {"x": np.asarray(x)}
    return inputs | {"y": np.asarray(y)}


def trained_eagerly(
    model: nn.Module,
    loss: Loss,
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    x: Array | Mapping[str, Array],
    y: Array,
    plan: TrainingPlan,
    seed: bytes,
    *,
    max_gradient_norm: float | None = None,
) -> tuple[Vector, list[float]]:
    """Train the model itself with torch.optim on the same batches: its flat parameters after, and the losses."""
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make(parameters)
    losses = []
    for rows in batches(plan, len(y), seed):
        optimizer.zero_grad()
        if isinstance(x, Mapping):
            output = model(**{name: torch.from_numpy(value[rows]) for name, value in x.items()})
        else:
            output = model(torch.from_numpy(x[rows]))
        value = loss(output, torch.from_numpy(y[rows]))
        value.backward()  # type: ignore[no-untyped-call]
        if max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_gradient_norm)
        optimizer.step()
        losses.append(value.item() * len(rows))
    return flat(model), losses


def flat(model: nn.Module) -> Vector:
    """A model's trainable parameters as one vector."""
    parts = [parameter.detach().numpy().reshape(-1) for parameter in model.parameters() if parameter.requires_grad]
    return np.concatenate(parts)
