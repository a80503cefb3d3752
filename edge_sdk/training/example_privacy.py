"""What a bundle's promise to each example amounts to on a device with so many of them. Knows no runtime.

How many examples a device holds counts as public: it decides the sampling rate and the number of steps.
"""

from __future__ import annotations

import math

from edge_sdk.privacy.subsampled import Sampling, sampled_epsilon
from edge_sdk.training.manifest import ExamplePrivacy
from edge_sdk.training.plan import TrainingPlan


def sampling_rate(privacy: ExamplePrivacy, examples: int) -> float:
    """Chance of each example to be in a step's sample: on average the lot size, or all if there are fewer."""
    return min(1.0, privacy.lot_size / examples)


def sampled_steps(privacy: ExamplePrivacy, plan: TrainingPlan, examples: int) -> int:
    """Steps of a plan: so many that each example is drawn once an epoch on average, at most the plan's cap."""
    steps = plan.epochs * steps_an_epoch(privacy, examples)
    return steps if plan.max_steps is None else min(steps, plan.max_steps)


def steps_an_epoch(privacy: ExamplePrivacy, examples: int) -> int:
    """Steps in which each example is drawn once on average."""
    return math.ceil(examples / privacy.lot_size)


def example_epsilon(privacy: ExamplePrivacy, examples: int, steps: int, delta: float) -> float:
    """The least epsilon for which so many steps are (epsilon, delta)-DP for each of so many examples.

    Rounds of training on the same examples add up: `steps` is of all of them.

    Raises:
        PrivacyError: delta is not in (0, 1).
    """
    return sampled_epsilon([Sampling(privacy.noise_multiplier, sampling_rate(privacy, examples), steps)], delta)


def sampling_of(privacy: ExamplePrivacy, plan: TrainingPlan, examples: int) -> Sampling:
    """What training by a plan releases of each of so many examples."""
    return Sampling(privacy.noise_multiplier, sampling_rate(privacy, examples), sampled_steps(privacy, plan, examples))
