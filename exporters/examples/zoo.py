"""The models that exports are tested and timed on, each with its loss and examples, the same every time.

    edge export exporters.examples.zoo:lenet --out lenet.edge --signer signer.key

Examples are made up: they show shapes and ranges, and can be learned by heart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import nn
from torch.nn import functional as F

from exporters.examples import recommend, sequence, vision
from exporters.spec import ModelSpec

SEED, EXAMPLES = 3, 16
CLASSES, VOCABULARY, LENGTH = 10, 1000, 32


def _seeded(build: Callable[[], ModelSpec]) -> Callable[[], ModelSpec]:
    """Let a builder draw weights and examples that are its own, and leave torch's generator as it was."""

    @wraps(build)
    def seeded() -> ModelSpec:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return build()

    return seeded


def token_cross_entropy(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean over all tokens: [batch, length, vocabulary] scores, [batch, length] token numbers."""
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten())


def _classifier(name: str, model: nn.Module, *shape: int, learning_rate: float | None = None) -> ModelSpec:
    return ModelSpec(
        model=model,
        loss=F.cross_entropy,
        example_inputs=(torch.randn(EXAMPLES, *shape),),
        example_target=torch.arange(EXAMPLES) % CLASSES,
        name=name,
        learning_rate=learning_rate,
    )


def _language_model(name: str, model: nn.Module, length: int, learning_rate: float | None = None) -> ModelSpec:
    tokens = torch.randint(VOCABULARY, (EXAMPLES, length + 1))
    return ModelSpec(
        model=model,
        loss=token_cross_entropy,
        example_inputs=(tokens[:, :-1].contiguous(),),
        example_target=tokens[:, 1:].contiguous(),
        name=name,
        learning_rate=learning_rate,
    )


@_seeded
def mlp() -> ModelSpec:
    """Three linear layers on 784 features; 235,146 parameters."""
    layers = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, CLASSES)]
    return _classifier("mlp", nn.Sequential(*layers), 784)


@_seeded
def lenet() -> ModelSpec:
    """LeNet-5 on 28x28 grey images."""
    return _classifier("lenet", vision.lenet(CLASSES), 1, 28, 28)


@_seeded
def resnet() -> ModelSpec:
    """A GroupNorm ResNet on 32x32 colour images."""
    return _classifier("resnet", vision.resnet(classes=CLASSES), 3, 32, 32)


@_seeded
def mobilenet_v2() -> ModelSpec:
    """MobileNetV2 blocks on 32x32 colour images."""
    return _classifier("mobilenet_v2", vision.mobilenet_v2(CLASSES), 3, 32, 32)


@_seeded
def mobilenet_v3() -> ModelSpec:
    """MobileNetV3 blocks on 32x32 colour images."""
    return _classifier("mobilenet_v3", vision.mobilenet_v3(CLASSES), 3, 32, 32)


@_seeded
def resnet_batch_norm() -> ModelSpec:
    """The ResNet with batch norms, whose running statistics are learned too."""
    return _classifier("resnet_batch_norm", vision.resnet(classes=CLASSES, norm=nn.BatchNorm2d), 3, 32, 32)


@_seeded
def mobilenet_v2_batch_norm() -> ModelSpec:
    """The MobileNetV2 blocks with batch norms, whose running statistics are learned too."""
    return _classifier("mobilenet_v2_batch_norm", vision.mobilenet_v2(CLASSES, norm=nn.BatchNorm2d), 3, 32, 32)


@_seeded
def autoencoder() -> ModelSpec:
    """A convolutional autoencoder on 28x28 grey images."""
    images = (torch.rand(EXAMPLES, 1, 28, 28) < 0.2).float()
    return ModelSpec(vision.autoencoder(), F.mse_loss, (images,), images, name="autoencoder", learning_rate=2.0)


@_seeded
def temporal_convolution() -> ModelSpec:
    """Four dilated causal blocks on 64 samples of six motion sensors."""
    model = sequence.TemporalConvolution(channels=6, width=32, layers=4, classes=CLASSES)
    return _classifier("temporal_convolution", model, 6, 64)


@_seeded
def lstm() -> ModelSpec:
    """An LSTM language model, 16 tokens of 1,000."""
    recurrent = nn.LSTM(64, 128, batch_first=True)
    return _language_model("lstm", sequence.RecurrentLanguageModel(recurrent, VOCABULARY), 16, learning_rate=1.0)


@_seeded
def gru() -> ModelSpec:
    """A GRU language model, 16 tokens of 1,000."""
    recurrent = nn.GRU(64, 128, batch_first=True)
    return _language_model("gru", sequence.RecurrentLanguageModel(recurrent, VOCABULARY), 16, learning_rate=1.0)


@_seeded
def gpt() -> ModelSpec:
    """A two-layer GPT, 32 tokens of 1,000; 656,896 parameters."""
    return _language_model("gpt", sequence.Gpt(VOCABULARY, LENGTH), LENGTH)


@_seeded
def lora() -> ModelSpec:
    """The GPT frozen, with low-rank changes of its attention to train."""
    return _language_model("lora", sequence.with_lora(sequence.Gpt(VOCABULARY, LENGTH)), LENGTH, learning_rate=5.0)


@_seeded
def vit() -> ModelSpec:
    """A three-layer vision transformer on 32x32 colour images in patches of four."""
    return _classifier("vit", sequence.VisionTransformer(32, 4, 96, 4, 3, CLASSES), 3, 32, 32)


@_seeded
def wide_and_deep() -> ModelSpec:
    """A recommender: two numbers, a bag of up to six numbers, and four floats; 30,854 parameters."""
    users, items, genres, context = 500, 1000, 20, 4
    model = recommend.WideAndDeep(users, items, genres, context)
    bags = torch.randint(1, genres, (EXAMPLES, 6)) * (torch.rand(EXAMPLES, 6) < 0.5)
    return ModelSpec(
        model=model,
        loss=F.binary_cross_entropy_with_logits,
        example_inputs={
            "user": torch.randint(users, (EXAMPLES,)),
            "item": torch.randint(items, (EXAMPLES,)),
            "genres": bags,
            "context": torch.randn(EXAMPLES, context),
        },
        example_target=(torch.arange(EXAMPLES) % 2).float(),
        name="wide_and_deep",
        learning_rate=0.5,
    )


ZOO: dict[str, Callable[[], ModelSpec]] = {
    build.__name__: build
    for build in (
        mlp,
        lenet,
        resnet,
        mobilenet_v2,
        mobilenet_v3,
        resnet_batch_norm,
        mobilenet_v2_batch_norm,
        autoencoder,
        temporal_convolution,
        lstm,
        gru,
        gpt,
        lora,
        vit,
        wide_and_deep,
    )
}
"""Every builder, by its model's name."""
