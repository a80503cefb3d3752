"""Image models of the zoo: real architectures at sizes that a phone trains, normalised over groups of channels or not.

`norm` makes a norm for so many channels: `nn.BatchNorm2d`, or `group_norm`, which needs no state and no large batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]


def group_norm(channels: int) -> nn.GroupNorm:
    """Over each of four groups of channels of each example."""
    return nn.GroupNorm(4, channels)


def lenet(classes: int = 10) -> nn.Sequential:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, for 1x28x28 images; 120,382 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


class BasicBlock(nn.Module):
    """The basic block of a ResNet (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm = group_norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, inputs, height, width] to [batch, outputs, height / stride, width / stride]."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet(width: int = 16, classes: int = 10, norm: Norm = group_norm) -> nn.Sequential:
    """A ResNet of three basic blocks, for 3-channel images of 32 pixels and up; 78,042 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        norm(width),
        nn.ReLU(),
        BasicBlock(width, width, 1, norm),
        BasicBlock(width, 2 * width, 2, norm),
        BasicBlock(2 * width, 4 * width, 2, norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


class SqueezeExcite(nn.Module):
    """Scales each channel by what all channels' means say (Hu et al. 2018), as MobileNetV3 does it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, max(channels // 4, 8), 1)
        self.expand = nn.Conv2d(max(channels // 4, 8), channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels, height, width] to the same."""
        scale = F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))
        return x * F.hardsigmoid(self.expand(scale))


class InvertedResidual(nn.Module):
    """A MobileNet block: widen, filter each channel by itself, perhaps squeeze and excite, narrow."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        excite: bool = False,
        activation: type[nn.Module] = nn.ReLU6,
        norm: Norm = group_norm,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), norm(hidden), activation()]
        layers += [
            nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False),
            norm(hidden),
            activation(),
        ]
        if excite:
            layers.append(SqueezeExcite(hidden))
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), norm(outputs)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, inputs, height, width] to [batch, outputs, height / stride, width / stride]."""
        y: torch.Tensor = self.layers(x)
        return x + y if self.residual else y


def mobilenet_v2(classes: int = 10, norm: Norm = group_norm) -> nn.Sequential:
    """Five blocks of MobileNetV2 (Sandler et al. 2018), for 3-channel images of 32 pixels and up; 27,210 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        norm(16),
        nn.ReLU6(),
        InvertedResidual(16, 16, 16, norm=norm),
        InvertedResidual(16, 64, 24, stride=2, norm=norm),
        InvertedResidual(24, 96, 24, norm=norm),
        InvertedResidual(24, 96, 32, stride=2, norm=norm),
        InvertedResidual(32, 128, 32, norm=norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


def mobilenet_v3(classes: int = 10) -> nn.Sequential:
    """Five blocks of MobileNetV3-Small (Howard et al. 2019), for 3-channel images of 32 pixels and up."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        group_norm(16),
        nn.Hardswish(),
        InvertedResidual(16, 16, 16, excite=True, activation=nn.ReLU),
        InvertedResidual(16, 72, 24, stride=2, activation=nn.ReLU),
        InvertedResidual(24, 88, 24, activation=nn.ReLU),
        InvertedResidual(24, 96, 40, kernel=5, stride=2, excite=True, activation=nn.Hardswish),
        InvertedResidual(40, 240, 40, kernel=5, excite=True, activation=nn.Hardswish),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(40, 128),
        nn.Hardswish(),
        nn.Linear(128, classes),
    )


def autoencoder(width: int = 16, code: int = 32) -> nn.Sequential:
    """A convolutional autoencoder for 1x28x28 images with values in 0..1."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 49, code),
        nn.Linear(code, 2 * width * 49),
        nn.ReLU(),
        nn.Unflatten(1, (2 * width, 7, 7)),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 1, 4, 2, 1),
        nn.Sigmoid(),
    )
