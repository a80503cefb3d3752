"""Server optimizers: what each does with a mean, that they survive a restart to the bit, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from coordinator.aggregation.server_optimizers import OptimizerState, ServerOptimizer, server_optimizer
from edge_sdk.errors import ConfigError, StoreError

SPECIFICATIONS = [
    "fedavg",
    "fedavg:learning_rate=2,decay=0.5",
    "fedavgm:learning_rate=0.5,momentum=0.8",
    "fedadam:learning_rate=0.15,beta1=0.5,beta2=0.9,epsilon=0.004,decay=0.97",
    "fedyogi:learning_rate=0.1",
]


def means(count: int, dimension: int = 5) -> list[NDArray[np.float32]]:
    return list(np.random.default_rng(3).normal(size=(count, dimension)).astype(np.float32))


def run(optimizer: ServerOptimizer, updates: list[NDArray[np.float32]]) -> tuple[NDArray[np.float32], OptimizerState]:
    parameters = np.zeros(len(updates[0]), np.float32)
    state = optimizer.init(parameters)
    for mean in updates:
        parameters, state = optimizer.apply(parameters, mean, state)
    return parameters, state


def test_plain_averaging_adds_the_mean() -> None:
    parameters = np.array([1.0, -2.0], np.float32)
    optimizer = server_optimizer("fedavg")
    moved, state = optimizer.apply(parameters, np.array([0.5, 0.25], np.float32), optimizer.init(parameters))
    np.testing.assert_array_equal(moved, np.array([1.5, -1.75], np.float32))
    assert state.steps == 1


def test_a_decaying_rate_halves_every_round() -> None:
    parameters, _ = run(server_optimizer("fedavg:learning_rate=2,decay=0.5"), [np.ones(1, np.float32)] * 3)
    assert parameters[0] == 2 + 1 + 0.5


def test_momentum_remembers() -> None:
    parameters, _ = run(server_optimizer("fedavgm:momentum=0.5"), [np.ones(1, np.float32)] * 3)
    assert parameters[0] == 1 + 1.5 + 1.75


def test_adam_is_the_textbooks() -> None:
    rate, beta1, beta2, epsilon, decay = 0.15, 0.5, 0.9, 0.004, 0.97
    parameters, first, second = np.zeros(5), np.zeros(5), np.zeros(5)
    updates = means(6)
    for step, mean in enumerate(updates, start=1):
        first = beta1 * first + (1 - beta1) * mean
        second = beta2 * second + (1 - beta2) * mean.astype(np.float64) ** 2
        corrected = np.sqrt(second / (1 - beta2**step)) + epsilon
        parameters += rate * decay ** (step - 1) * first / (1 - beta1**step) / corrected
    found, _ = run(server_optimizer(SPECIFICATIONS[3]), updates)
    np.testing.assert_allclose(found, parameters, rtol=1e-5)


def test_adams_first_step_has_the_rates_length_whatever_the_means() -> None:
    optimizer = server_optimizer("fedadam:learning_rate=0.1,epsilon=1e-9")
    parameters, _ = run(optimizer, [np.array([100.0, -0.01], np.float32)])
    np.testing.assert_allclose(parameters, [0.1, -0.1], rtol=1e-4)


def test_yogi_forgets_a_large_mean_more_slowly_than_adam() -> None:
    spike = [np.full(1, 10.0, np.float32)] + [np.full(1, 0.1, np.float32)] * 20
    _, adam = run(server_optimizer("fedadam:beta2=0.9"), spike)
    _, yogi = run(server_optimizer("fedyogi:beta2=0.9"), spike)
    assert yogi.slots[1][0] > 5 * adam.slots[1][0] > 0


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_a_mean_of_zero_moves_nothing(name: str) -> None:
    parameters, _ = run(server_optimizer(name), [np.zeros(3, np.float32)] * 4)
    np.testing.assert_array_equal(parameters, np.zeros(3))


@pytest.mark.parametrize("specification", SPECIFICATIONS)
def test_a_state_from_the_store_goes_on_as_if_nothing_had_happened(specification: str) -> None:
    updates = means(6)
    whole, _ = run(server_optimizer(specification), updates)
    parameters, state = run(server_optimizer(specification), updates[:3])
    again = server_optimizer(specification)
    state = again.load(server_optimizer(specification).dump(state), len(parameters))
    for mean in updates[3:]:
        parameters, state = again.apply(parameters, mean, state)
    assert parameters.tobytes() == whole.tobytes()
    assert parameters.dtype == np.float32


@pytest.mark.parametrize("specification", SPECIFICATIONS)
def test_applying_leaves_its_inputs_alone(specification: str) -> None:
    optimizer = server_optimizer(specification)
    parameters, mean = means(2)
    state = optimizer.init(parameters)
    before = parameters.tobytes(), mean.tobytes(), optimizer.dump(state)
    optimizer.apply(parameters, mean, state)
    assert (parameters.tobytes(), mean.tobytes(), optimizer.dump(state)) == before


def test_the_state_of_another_model_is_refused() -> None:
    optimizer = server_optimizer("fedadam")
    data = optimizer.dump(optimizer.init(np.zeros(5, np.float32)))
    with pytest.raises(StoreError, match="fedadam for 6 parameters"):
        optimizer.load(data, 6)
    with pytest.raises(StoreError, match="fedavg"):
        server_optimizer("fedavg").load(data, 5)


@pytest.mark.parametrize(
    ("specification", "said"),
    [
        ("sgd", "unknown server optimizer 'sgd'"),
        ("", "unknown server optimizer ''"),
        ("fedavg:momentum=0.9", "unexpected keyword argument 'momentum'"),
        ("fedavg:learning_rate=fast", "could not convert"),
        ("fedavg:learning_rate", "cannot be read"),
        ("fedavg:learning_rate=0", "learning_rate 0.0"),
        ("fedavg:learning_rate=nan", "learning_rate nan"),
        ("fedavg:decay=1.5", "decay 1.5"),
        ("fedavgm:momentum=1", "momentum is 1.0"),
        ("fedadam:beta2=-0.1", "beta2 is -0.1"),
        ("fedyogi:epsilon=0", "epsilon is 0.0"),
    ],
)
def test_a_bad_specification_is_refused_with_a_remedy(specification: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        server_optimizer(specification)
    assert caught.value.hint
