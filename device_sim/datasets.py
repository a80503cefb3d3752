"""Handwritten digits, dealt out to devices that each see little and few classes of it.

The 1,797 images of 8x8 pixels come with scikit-learn (UCI "Optical Recognition of Handwritten Digits"), so that nothing
is downloaded. Everything is drawn from a seed by a numpy generator: this is simulation. Knows nothing of training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError

Examples: TypeAlias = dict[str, NDArray[Any]]
"""x, float32[n, 1, 8, 8] in -1.5..1.5, and y, int64[n] in 0..9."""

CLASSES = 10
EXAMPLES_EACH = 7
"""Examples a device has on average; fleets too large for that share them, so that some devices hold equal ones."""

FEWEST_EXAMPLES = 2
_TEST_SHARE = 0.2
_SIZE_SPREAD = 0.35  # of the logarithm of a device's share of the examples


@dataclass(frozen=True, slots=True, eq=False)
class FederatedDataset:
    """Examples by device, and some held out at the coordinator.

    Attributes:
        train: all examples that devices hold.
        test: held out.
        shards: one per device.
    """

    train: Examples = field(repr=False)
    test: Examples = field(repr=False)
    shards: tuple[Examples, ...] = field(repr=False)


def federated_digits(devices: int, *, seed: int = 0, alpha: float = 0.7) -> FederatedDataset:
    """Deal the digits out to `devices`, label-skewed; see `deal`.

    Args:
        devices: how many.
        seed: of the held-out examples and of the deal.
        alpha: of the Dirichlet distribution of a device's labels: 0.1 is about one class a device, 100 all alike.

    Raises:
        ConfigError: no devices, or an alpha that is not positive.
    """
    train, test = digits(seed=seed)
    parts = deal(train["y"], devices, alpha=alpha, seed=seed)
    return FederatedDataset(train, test, tuple({name: rows[part] for name, rows in train.items()} for part in parts))


def digits(*, seed: int = 0) -> tuple[Examples, Examples]:
    """The digits as (train, test); a fifth of each class is held out."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = ((images.reshape(-1, 1, 8, 8) / 16 - 0.5) * 3).astype(np.float32)
    y = labels.astype(np.int64)
    generator = np.random.default_rng([seed, 1])
    shuffled = [generator.permutation(np.flatnonzero(y == label)) for label in range(CLASSES)]
    held_out = [round(len(rows) * _TEST_SHARE) for rows in shuffled]
    test = np.sort(np.concatenate([rows[:count] for rows, count in zip(shuffled, held_out, strict=True)]))
    train = np.sort(np.concatenate([rows[count:] for rows, count in zip(shuffled, held_out, strict=True)]))
    return {"x": x[train], "y": y[train]}, {"x": x[test], "y": y[test]}


def deal(labels: NDArray[np.int64], devices: int, *, alpha: float, seed: int) -> tuple[NDArray[np.int64], ...]:
    """Deal rows out to devices, each with its own mix of labels (Hsu et al. 2019) and its own number of rows.

    Up to len(labels) / EXAMPLES_EACH devices, every row goes to exactly one of them; beyond that, each device draws
    rows with replacement, EXAMPLES_EACH of them on average.

    Args:
        labels: of the rows, 0 to CLASSES - 1.
        devices: how many.
        alpha: of the symmetric Dirichlet distribution that each device's mix of labels is drawn from.
        seed: the same seed deals the same rows.

    Returns:
        Row numbers, one array per device, FEWEST_EXAMPLES or more in each.

    Raises:
        ConfigError: no devices, or an alpha that is not positive.
    """
    if devices < 1 or not alpha > 0:
        raise ConfigError(
            f"cannot deal examples to {devices} devices with alpha {alpha}", hint="give devices >= 1 and alpha > 0"
        )
    generator = np.random.default_rng([seed, 2])
    shared = devices * EXAMPLES_EACH > len(labels)
    total = devices * EXAMPLES_EACH if shared else len(labels)
    weights = generator.lognormal(sigma=_SIZE_SPREAD, size=devices)
    sizes = FEWEST_EXAMPLES + generator.multinomial(total - devices * FEWEST_EXAMPLES, weights / weights.sum())
    piles = [list(generator.permutation(np.flatnonzero(labels == label))) for label in range(CLASSES)]
    parts = []
    for size in sizes.tolist():
        mix = generator.dirichlet(np.full(CLASSES, alpha))
        rows = []
        for _ in range(size):
            # A pile that is used up leaves the choice to the others, whatever the mix wanted.
            left = np.array([len(pile) > 0 for pile in piles])
            chances = (mix + 1e-9) * left
            pile = piles[int(generator.choice(CLASSES, p=chances / chances.sum()))]
            rows.append(pile[int(generator.integers(len(pile)))] if shared else pile.pop())
        parts.append(np.sort(np.array(rows, np.int64)))
    return tuple(parts)
