"""Server optimizers as pairs of pure functions: the mean update is treated as a pseudo-gradient.

After Reddi et al. 2021, "Adaptive Federated Optimization", and McMahan et al. 2017 for FedAvg. What they do with a mean
is post-processing: it costs no privacy. They know nothing of rounds, devices or stores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregation.robust import RULES, Rule
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
    """A server optimizer: `init`, then `apply` once a round.

    Attributes:
        name: as in the specification string.
        slot_count: vectors in its state.
        groups: rounds that make one change of the model; a device takes part in at most one of them.
        update: (mean, state, step number from 1) -> (what to add to the parameters, new slots).
    """

    name: str
    slot_count: int
    update: Callable[[Vector, tuple[Vector, ...], int], tuple[Vector, tuple[Vector, ...]]]
    groups: int = 1

    def completes(self, rounds: int) -> bool:
        """Whether after so many rounds no mean waits for others to be combined with."""
        return rounds % self.groups == 0

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


def average() -> ServerOptimizer:
    """The mean of all rounds' means, for analytics: from zeros, the parameters are what was asked for."""

    def update(mean: Vector, slots: tuple[Vector, ...], step: int) -> tuple[Vector, tuple[Vector, ...]]:
        change = (mean - slots[0]) / np.float32(step)
        return change, (slots[0] + change,)

    return ServerOptimizer("average", 1, update)


def fedavg(*, learning_rate: float = 1.0, decay: float = 1.0) -> ServerOptimizer:
    """Add the mean, scaled by a rate that decays by a factor each round."""
    _check_rate(learning_rate, decay)

    def update(mean: Vector, slots: tuple[Vector, ...], step: int) -> tuple[Vector, tuple[Vector, ...]]:
        return np.float32(learning_rate * decay ** (step - 1)) * mean, slots

    return ServerOptimizer("fedavg", 0, update)


def fedavgm(*, learning_rate: float = 1.0, momentum: float = 0.9, decay: float = 1.0) -> ServerOptimizer:
    """Momentum over the means, and a rate that decays by a factor each round."""
    _check_rate(learning_rate, decay)
    _check_share("momentum", momentum)

    def update(mean: Vector, slots: tuple[Vector, ...], step: int) -> tuple[Vector, tuple[Vector, ...]]:
        velocity = np.float32(momentum) * slots[0] + mean
        return np.float32(learning_rate * decay ** (step - 1)) * velocity, (velocity,)

    return ServerOptimizer("fedavgm", 1, update)


def fedadam(
    *,
    learning_rate: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.99,
    epsilon: float = 1e-3,
    decay: float = 1.0,
) -> ServerOptimizer:
    """Adam over the means, with bias correction and a rate that decays by a factor each round.

    `epsilon` (tau in the paper) keeps coordinates that hardly moved from moving far; give it the size of the noise on
    the mean or more.
    """

    def second_moment(second: Vector, square: Vector) -> Vector:
        return np.float32(beta2) * second + np.float32(1 - beta2) * square

    return _adaptive("fedadam", second_moment, learning_rate, beta1, beta2, epsilon, decay)


def fedyogi(
    *,
    learning_rate: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.99,
    epsilon: float = 1e-3,
    decay: float = 1.0,
) -> ServerOptimizer:
    """As `fedadam`, with Yogi's second moment, which forgets large means no faster than small ones."""

    def second_moment(second: Vector, square: Vector) -> Vector:
        step: Vector = np.float32(1 - beta2) * square * np.sign(second - square)
        return second - step

    return _adaptive("fedyogi", second_moment, learning_rate, beta1, beta2, epsilon, decay)


def _adaptive(
    name: str,
    second_moment: Callable[[Vector, Vector], Vector],
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    decay: float,
) -> ServerOptimizer:
    _check_rate(learning_rate, decay)
    _check_share("beta1", beta1)
    _check_share("beta2", beta2)
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"epsilon is {epsilon}", hint="give a positive epsilon, such as 1e-3")

    def update(mean: Vector, slots: tuple[Vector, ...], step: int) -> tuple[Vector, tuple[Vector, ...]]:
        first = np.float32(beta1) * slots[0] + np.float32(1 - beta1) * mean
        second = second_moment(slots[1], mean * mean)
        # A rounding error below zero has no root.
        deviation: Vector = np.sqrt(np.maximum(second, 0) / np.float32(1 - beta2**step))
        rate = np.float32(learning_rate * decay ** (step - 1) / (1 - beta1**step))
        return rate * first / (deviation + np.float32(epsilon)), (first, second)

    return ServerOptimizer(name, 2, update)


def _check_rate(learning_rate: float, decay: float) -> None:
    if not (math.isfinite(learning_rate) and learning_rate > 0 and 0 < decay <= 1):
        raise ConfigError(
            f"learning_rate {learning_rate} and decay {decay} are unusable",
            hint="give learning_rate > 0 and 0 < decay <= 1",
        )


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{name} is {value}", hint=f"give 0 <= {name} < 1")


_MAKERS: Mapping[str, Callable[..., ServerOptimizer]] = {
    "fedavg": fedavg,
    "fedavgm": fedavgm,
    "fedadam": fedadam,
    "fedyogi": fedyogi,
    "average": average,
}


def robust(rule: Rule, groups: int, inner: ServerOptimizer) -> ServerOptimizer:
    """Keep the means of `groups` rounds, then hand their robust combination to `inner`; the model rests meanwhile."""
    waiting = groups - 1

    def update(mean: Vector, slots: tuple[Vector, ...], step: int) -> tuple[Vector, tuple[Vector, ...]]:
        held, own = slots[:waiting], slots[waiting:]
        place = (step - 1) % groups
        if place < waiting:
            return np.zeros_like(mean), (*held[:place], mean, *held[place + 1 :], *own)
        combined = rule(np.stack([*held, mean]))
        change, own = inner.update(combined, own, step // groups)
        return change, (*(np.zeros_like(mean) for _ in held), *own)

    return ServerOptimizer(f"robust {inner.name}", inner.slot_count + waiting, update, groups)


def server_optimizer(specification: str) -> ServerOptimizer:
    """The optimizer of a specification such as "fedavgm:learning_rate=1,momentum=0.9".

    A robust rule stands before it: "median:groups=5>fedavgm:learning_rate=1".

    Raises:
        ConfigError: an unknown name, an unknown option or a value that is no number.
    """
    found = robust_rule(specification)
    if found is None:
        return _made(_MAKERS, "server optimizer", specification)
    return robust(*found, server_optimizer(specification.partition(">")[2]))


def robust_rule(specification: str) -> tuple[Rule, int] | None:
    """The robust rule before a server optimizer and how many groups it combines, or None.

    Raises:
        ConfigError: it cannot be read, or combines fewer groups than it needs.
    """
    text, separator, rest = specification.partition(">")
    if not separator:
        return None
    if ">" in rest:
        raise ConfigError(f"{specification!r} combines twice", hint=_ROBUST)
    groups = 0

    def maker(make: Callable[..., Rule]) -> Callable[..., Rule]:
        def made(**options: float) -> Rule:
            nonlocal groups
            groups = int(options.pop("groups", 0))
            if not 3 <= groups <= _GROUPS_MAX:
                raise ConfigError(f"{text!r} combines {groups} groups", hint=f"give groups=3 to {_GROUPS_MAX}")
            return make(groups, **{name: int(value) for name, value in options.items()})

        return made

    rule = _made({name: maker(make) for name, make in RULES.items()}, "robust rule", text)
    return rule, groups


_GROUPS_MAX = 100
_ROBUST = 'write it as rule:groups=number,..., such as "trimmed_mean:groups=5,trim=1>fedavg:learning_rate=1"'

T = TypeVar("T")


def _made(makers: Mapping[str, Callable[..., T]], what: str, specification: str) -> T:
    name, _, rest = specification.partition(":")
    maker = makers.get(name)
    if maker is None:
        raise ConfigError(f"unknown {what} {name!r}", hint=f"choose one of {', '.join(makers)}")
    try:
        options = {key: float(value) for key, value in (part.split("=") for part in rest.split(",") if part)}
        return maker(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the {what} {specification!r} cannot be read: {error}",
            hint='write it as name:option=number,..., such as "fedavgm:learning_rate=1,momentum=0.9"',
        ) from error
