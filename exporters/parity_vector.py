"""Make a bundle's parity vector: a few certified steps with what they gave, by which devices test their runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.training.layout import Layout
from edge_sdk.training.manifest import BatchRange, ParitySpec, ParityStep
from edge_sdk.training.parity import ParityValues, encode_parity, parity_weights
from exporters.drawing import Examples, nearest_size
from exporters.private_step import CLIP_NORM, WEIGHT, PrivateStep
from exporters.replay import Graphs, Replayer
from exporters.step import LOSS, NEXT, SEED, TARGET, Step

_PARITY_BATCHES = (4, 1, 3)
_PARITY_SAMPLES = 1024
# Another processor rounds otherwise, and the parity vector's steps follow each other.
_DEVICE_SLACK = 10.0


def make_parity(
    step: Step, graphs: Graphs, examples: Examples, *, learning_rate: float, layout: Layout, batch: BatchRange
) -> tuple[ParitySpec, bytes]:
    """Make the parity vector and its part, of batches of such sizes.

    Raises:
        ExportError: a step differs from float64 by more than its tolerance, or cannot run.
    """
    replayer = Replayer(step, graphs, examples)
    initial = {name: tensor.numpy() for name, tensor in step.initial_state().items()}
    stride = -(-layout.size // _PARITY_SAMPLES)
    state, steps, values = dict(initial), [], []
    allowance = np.zeros(layout.size)
    # The device reads the rate as float64 from the manifest and feeds it as float32.
    for index, size in enumerate(nearest_size(size, batch) for size in _PARITY_BATCHES):
        fixed = state | _settings(step, size)
        compared = replayer.compare(fixed, size, learning_rate, f"step {index + 1} of the parity vector")
        state |= compared.after
        names = [NEXT + entry.tensor for entry in layout.entries]
        expected = np.concatenate([compared.found[name].reshape(-1) for name in names])
        allowance += np.concatenate([compared.allowed[name].reshape(-1) for name in names])
        steps.append(
            ParityStep(
                size,
                learning_rate,
                int(compared.inputs[SEED]),
                float(compared.found[LOSS]),
                _DEVICE_SLACK * (index + 1) * float(compared.allowed[LOSS]),
            )
        )
        values.append(
            ParityValues(
                {name: compared.inputs[name] for name in (*step.arguments.names, TARGET)},
                expected[::stride].astype(np.float32),
                (_DEVICE_SLACK * allowance[::stride]).astype(np.float32),
            )
        )
    return ParitySpec(stride, tuple(steps)), encode_parity(values)


def _settings(step: Step, batch: int) -> dict[str, npt.NDArray[Any]]:
    """What a device feeds besides examples and state when it replays a parity step, where training is private."""
    if not isinstance(step, PrivateStep):
        return {}
    return {WEIGHT: parity_weights(batch), CLIP_NORM: np.array(step.privacy.clip_norm, np.float32)}
