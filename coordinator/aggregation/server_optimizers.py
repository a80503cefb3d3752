"""Server optimizers as pairs of pure functions: the mean update is treated as a pseudo-gradient.

After Reddi et al. 2021, "Adaptive Federated Optimization", and McMahan et al. 2017 for FedAvg. What they do with a mean
is post-processing: it costs no privacy. They know nothing of rounds, devices or stores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError, StoreError

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """What an optimizer carries from round to round.

    Attributes:
        steps: how many means were applied.
        slots: vectors of the model's dimension, float32; how many depends on the optimizer.
    """

    steps: int
    slots: tuple[Vector, ...]


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """A server optimizer.

    Attributes:
        name: as in the specification string.
        slot_count: vectors in its state.
        update: (mean, state, step number from 1) -> (what to add to the parameters, new slots).
    """

    name: str
    slot_count: int
    update: Callable[[Vector, tuple[Vector, ...], int], tuple[Vector, tuple[Vector, ...]]]

    def init(self, parameters: Vector) -> OptimizerState:
        """The state before the first round, for parameters of this shape."""
        return OptimizerState(0, tuple(np.zeros(parameters.size, np.float32) for _ in range(self.slot_count)))

    def apply(self, parameters: Vector, mean: Vector, state: OptimizerState) -> tuple[Vector, OptimizerState]:
        """The parameters after a round whose mean update was `mean`, and the new state; the inputs stay as they are."""
        step, slots = self.update(mean, state.slots, state.steps + 1)
        return (parameters + step).astype(np.float32), OptimizerState(state.steps + 1, slots)

    def dump(self, state: OptimizerState) -> bytes:
        """The state as bytes: the step count as u64, then the slots, float32, little-endian."""
        return state.steps.to_bytes(8, "little") + b"".join(slot.astype("<f4").tobytes() for slot in state.slots)

    def load(self, data: bytes, dimension: int) -> OptimizerState:
        """The inverse of `dump`.

        Raises:
            StoreError: the bytes are not this optimizer's state for such a model.
        """
        if len(data) != 8 + 4 * dimension * self.slot_count:
            raise StoreError(
                f"{len(data)} bytes are not a state of {self.name} for {dimension} parameters",
                hint="restore the work folder, or create the task anew",
            )
        values = np.frombuffer(data, "<f4", offset=8).astype(np.float32)
        slots = tuple(values[i * dimension : (i + 1) * dimension] for i in range(self.slot_count))
        return OptimizerState(int.from_bytes(data[:8], "little"), slots)


def fedavg(*, learning_rate: float = 1.0, decay: float = 1.0) -> ServerOptimizer:
    """Add the mean, scaled by a rate that decays by a factor each round."""

    def update(mean: Vector, slots: tuple[Vector, ...], step: int) -> tuple[Vector, tuple[Vector, ...]]:
        return np.float32(learning_rate * decay ** (step - 1)) * mean, slots

    return ServerOptimizer("fedavg", 0, update)


def fedavgm(*, learning_rate: float = 1.0, momentum: float = 0.9) -> ServerOptimizer:
    """Momentum over the means."""
    rate, beta = np.float32(learning_rate), np.float32(momentum)

    def update(mean: Vector, slots: tuple[Vector, ...], step: int) -> tuple[Vector, tuple[Vector, ...]]:
        velocity = beta * slots[0] + mean
        return rate * velocity, (velocity,)

    return ServerOptimizer("fedavgm", 1, update)


def fedadam(
    *, learning_rate: float = 0.1, beta1: float = 0.9, beta2: float = 0.99, epsilon: float = 1e-3
) -> ServerOptimizer:
    """Adam over the means, with bias correction."""

    def update(mean: Vector, slots: tuple[Vector, ...], step: int) -> tuple[Vector, tuple[Vector, ...]]:
        first = (beta1 * slots[0] + (1 - beta1) * mean).astype(np.float32)
        second = (beta2 * slots[1] + (1 - beta2) * mean * mean).astype(np.float32)
        corrected = first / (1 - beta1**step)
        spread = np.sqrt(second / (1 - beta2**step)) + epsilon
        return (learning_rate * corrected / spread).astype(np.float32), (first, second)

    return ServerOptimizer("fedadam", 2, update)


_MAKERS: Mapping[str, Callable[..., ServerOptimizer]] = {"fedavg": fedavg, "fedavgm": fedavgm, "fedadam": fedadam}


def server_optimizer(specification: str) -> ServerOptimizer:
    """The optimizer of a specification such as "fedavgm:learning_rate=1,momentum=0.9".

    Raises:
        ConfigError: an unknown name, an unknown option or a value that is no number.
    """
    name, _, rest = specification.partition(":")
    maker = _MAKERS.get(name)
    if maker is None:
        raise ConfigError(f"unknown server optimizer {name!r}", hint=f"choose one of {', '.join(_MAKERS)}")
    try:
        options = {key: float(value) for key, value in (part.split("=") for part in rest.split(",") if part)}
        return maker(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the server optimizer {specification!r} cannot be read: {error}",
            hint='write it as name:option=number,..., such as "fedavgm:learning_rate=1,momentum=0.9"',
        ) from error
