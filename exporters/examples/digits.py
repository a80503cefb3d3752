"""A small convolutional net for handwritten digits: 8x8 grey images scaled to -1.5..1.5, ten classes, 1,370 parameters.

    edge export exporters.examples.digits:build --out digits.edge --signer signer.key

To export another model, write a function like `build` and name it instead.
"""

from __future__ import annotations

import torch
from torch import nn

from exporters.spec import ModelSpec

IMAGE_SIDE = 8
CLASSES = 10


def build() -> ModelSpec:
    """The model at its initial weights, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolution = nn.Conv2d(1, 8, kernel_size=3, padding=1)
        head = nn.Linear(8 * (IMAGE_SIDE // 2) ** 2, CLASSES)
        model = nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), head)
        # Kept small on purpose: private updates are clipped, and large initial weights would only be unlearnt.
        nn.init.normal_(convolution.weight, std=0.33)
        for parameter in (convolution.bias, head.weight, head.bias):
            if parameter is not None:
                nn.init.zeros_(parameter)
        images = torch.rand(16, 1, IMAGE_SIDE, IMAGE_SIDE) * 3 - 1.5
    return ModelSpec(
        model=model,
        loss=nn.functional.cross_entropy,
        example_inputs=(images,),
        example_target=torch.arange(16) % CLASSES,
        name="digits",
    )
