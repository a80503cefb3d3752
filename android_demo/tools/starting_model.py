"""The digits model that the app comes with: the example that `edge export` knows, trained on scikit-learn's digits.

    edge export android_demo.tools.starting_model:build --out digits.edge --signer signer.key

So the app recognises drawings before the first round; what it learns in rounds, it learns on top of this.
"""

from __future__ import annotations

import torch
from torch import nn

from device_sim.datasets import digits
from exporters.examples.digits import build as untrained
from exporters.spec import ModelSpec

_EPOCHS = 30
_BATCH = 128
_JITTER = 0.3  # standard deviation of what is added to pixels in -1.5..1.5: a finger is no pen


def build() -> ModelSpec:
    """The trained model, the same every time on one machine; seconds."""
    spec = untrained()
    train, _ = digits()
    images, labels = torch.from_numpy(train["x"]), torch.from_numpy(train["y"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        optimizer = torch.optim.Adam(spec.model.parameters(), lr=1e-2)
        for _ in range(_EPOCHS):
            for rows in torch.split(torch.randperm(len(labels)), _BATCH):
                noisy = (images[rows] + _JITTER * torch.randn_like(images[rows])).clamp(-1.5, 1.5)
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(spec.model(noisy), labels[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return spec
