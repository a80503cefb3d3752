"""Choose noise, scale and bits for a task, so that its rounds together cost at most epsilon at delta.

Formulas after Kairouz, Liu and Steinke 2021 (rounding, modulus, discrete Gaussian) and Agarwal, Kairouz and Liu 2021
(Skellam).
Knows no rounds and no ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from coordinator.privacy.clipping import bit_share
from coordinator.privacy.modulus import OVERFLOW_CHANCE, deviations, overflow_chance, signal_variance
from edge_sdk.errors import PrivacyError
from edge_sdk.privacy.accounting import ORDERS, Release, epsilon_of, honest_reports, renyi_divergences
from edge_sdk.privacy.encode import EncodingParameters
from edge_sdk.privacy.noise import MAXIMUM_VARIANCE, Mechanism, draw_error
from edge_sdk.privacy.quantize import rounded_norm_bound
from edge_sdk.secagg.modular import MAXIMUM_BITS, MINIMUM_BITS

QUANTISATION_COST = 0.02
"""The smallest modulus is chosen whose noise multiplier is within this of the Gaussian mechanism's."""

_MARGIN = 1e-6  # relative, of epsilon, so that another accountant's last digits do not overdraw the budget
_LARGEST_DRAW_ERROR = 0.01  # share of delta that the sampler's error may take
_NOISELESS_STEPS = 32.0  # integer steps per root-mean-square coordinate where noise is off
_FINEST_STEPS, _FINEST_NORM = 16.0, 1000.0  # with noise more only makes the tables larger
_LARGEST_MULTIPLIER = 1e4
_LARGEST_EPSILON = 50.0


@dataclass(frozen=True, slots=True)
class PrivacyPlan:
    """The noise and the encoding of a task's rounds.

    Attributes:
        mechanism: of the noise; NONE where it is off.
        noise_multiplier: z, the standard deviation of the noise that is counted on, over the clip norm;
            0 where noise is off.
        bits: b of the modulus 2^b.
        clip_bit: a, the size of the coordinate of adaptive clipping; 0 for none.
        scale: s, integer steps per unit.
        norm_bound: D2, the largest 2-norm of a rounded update.
        honest_reports: devices whose noise is counted on, min_reports - floor(corrupt_share * max_devices), or one.
        device_variance: variance of the integer noise that each device adds, ceil(V / honest_reports).
        variance: V' = device_variance * honest_reports, at least V = (z C s)^2.
        epsilon: what `rounds` releases cost at the task's delta; infinity where noise is off.
    """

    mechanism: Mechanism
    noise_multiplier: float
    bits: int
    clip_bit: float
    scale: float
    norm_bound: float
    honest_reports: int
    device_variance: int
    variance: int
    epsilon: float

    def parameters(self, dimension: int, clip_norm: float) -> EncodingParameters:
        """The encoding of updates of that many coordinates and that norm at most, as they were calibrated for."""
        return EncodingParameters(
            dimension=dimension,
            bits=self.bits,
            clip_norm=clip_norm,
            clip_bit=self.clip_bit,
            scale=self.scale,
            norm_bound=self.norm_bound,
            mechanism=self.mechanism,
            device_variance=self.device_variance,
        )


def calibrate(
    *,
    clip_norm: float,
    dimension: int,
    min_reports: int,
    max_devices: int,
    rounds: int,
    epsilon: float,
    delta: float,
    corrupt_share: float,
    mechanism: Mechanism = Mechanism.SKELLAM,
    local_noise: bool = False,
    adaptive_clipping: bool = False,
    bits: int | None = None,
) -> PrivacyPlan:
    """Return the plan with the least noise that keeps the promise.

    Args:
        clip_norm: C, the largest 2-norm of an update.
        dimension: coordinates of an update.
        min_reports: n_min, the fewest reports ever released together.
        max_devices: the most reports in one sum; the modulus holds them.
        rounds: K, the most releases that one device takes part in.
        epsilon: device-level budget for all of them; infinity turns noise off.
        delta: at which epsilon holds.
        corrupt_share: gamma, the share of a roster whose noise is not counted on.
        mechanism: the noise to add, where there is any.
        local_noise: each device adds all of it, so that no other's is counted on.
        adaptive_clipping: whether devices also say, under the same noise, if they were within the clip norm.
        bits: fix the modulus instead of choosing the smallest that costs at most QUANTISATION_COST.

    Raises:
        PrivacyError: an argument is out of range, or no modulus up to 32 bits keeps the promise.
    """
    counts = (dimension, min_reports, max_devices, rounds)
    if min(counts) < 1 or min_reports > max_devices:
        raise PrivacyError(
            f"dimension, min_reports, max_devices and rounds of {counts} are unusable",
            hint="all are at least 1, and min_reports is at most max_devices",
        )
    if not (math.isfinite(clip_norm) and clip_norm > 0 and 0 < delta < 1 and 0 <= corrupt_share < 1):
        raise PrivacyError(
            f"clip norm {clip_norm}, delta {delta} and corrupt share {corrupt_share} are unusable",
            hint="give clip_norm > 0, 0 < delta < 1 and 0 <= corrupt_share < 1",
        )
    if not 0 < epsilon <= _LARGEST_EPSILON and not epsilon == math.inf:
        raise PrivacyError(
            f"an epsilon of {epsilon} promises nothing or cannot be kept",
            hint=f"give 0 < epsilon <= {_LARGEST_EPSILON:g}, or turn the noise off explicitly",
        )
    if bits is not None and not MINIMUM_BITS <= bits <= MAXIMUM_BITS:
        raise PrivacyError(f"a modulus of {bits} bits is not supported", hint="use 8 to 32 bits")
    honest = 1 if local_noise else honest_reports(min_reports, max_devices, corrupt_share)
    search = _Search(mechanism, dimension + adaptive_clipping, honest, max_devices, rounds, epsilon, delta)
    choices = range(MINIMUM_BITS, MAXIMUM_BITS + 1) if bits is None else range(bits, bits + 1)
    if math.isinf(epsilon):
        least_scale = search.noiseless_scale() if bits is None else 0.0
        plans = (search.without_noise(choice, least_scale) for choice in choices)
    else:
        gaussian = gaussian_multiplier(rounds=rounds, epsilon=epsilon, delta=delta)
        largest = gaussian * (1 + QUANTISATION_COST) if bits is None else _LARGEST_MULTIPLIER
        plans = (search.with_noise(choice, gaussian, largest) for choice in choices)
    plan = next((plan for plan in plans if plan is not None), None)
    if plan is None:
        raise PrivacyError(
            f"no modulus of {choices[0]} to {choices[-1]} bits keeps epsilon {epsilon:g} at delta {delta:g}",
            hint="raise epsilon or min_reports, or lower rounds or max_devices",
        )
    noise = plan.noise_multiplier * math.sqrt(min_reports / honest)
    share = bit_share(noise, min_reports) if adaptive_clipping else 0.0
    of_update = math.sqrt(1 - share * share)
    norm = clip_norm / of_update
    return replace(
        plan,
        noise_multiplier=plan.noise_multiplier / of_update,
        clip_bit=norm * share,
        scale=plan.scale / norm,
    )


def gaussian_multiplier(*, rounds: int, epsilon: float, delta: float) -> float:
    """Return the noise multiplier of a trusted server's Gaussian noise, which no distributed one undercuts.

    Raises:
        PrivacyError: no noise keeps epsilon at delta.
    """
    orders = np.array(ORDERS, np.float64)
    z = _least(lambda z: _fits(epsilon_of(rounds * orders / (2 * z * z), delta), epsilon))
    if z is None:
        raise PrivacyError(f"no noise keeps epsilon {epsilon:g} at delta {delta:g}", hint="raise epsilon")
    return z


def _fits(epsilon: float, budget: float) -> bool:
    return epsilon <= budget * (1 - _MARGIN)


@dataclass(frozen=True, slots=True)
class _Search:
    """What does not change while bits and noise are looked for; what a device sends has a norm of 1 at most."""

    mechanism: Mechanism
    length: int
    honest_reports: int
    max_devices: int
    rounds: int
    epsilon: float
    delta: float

    def with_noise(self, bits: int, least: float, largest: float) -> PrivacyPlan | None:
        """Return the plan of the least noise multiplier in the range given, or None."""
        if not self._room(bits):
            return None
        z = _least(lambda z: self._serves(self._plan(z, bits)), least, largest)
        plan = self._plan(z, bits) if z is not None else None
        return plan if plan and plan.noise_multiplier <= largest * (1 + _MARGIN) else None

    def without_noise(self, bits: int, least_scale: float) -> PrivacyPlan | None:
        """Return the plan without noise, or None where the modulus leaves too small a scale."""
        if not self._room(bits):
            return None
        plan = self._plan(0.0, bits)
        return plan if plan.scale >= least_scale and self._holds(plan) else None

    def _serves(self, plan: PrivacyPlan) -> bool:
        """Return whether a plan keeps the promise, and its modulus the sum with the noise it ended with."""
        return self._holds(plan) and _fits(plan.epsilon, self.epsilon)

    def _holds(self, plan: PrivacyPlan) -> bool:
        chance = overflow_chance(
            bits=plan.bits,
            signal=plan.scale**2 * self._signal,
            length=self.length,
            devices=self.max_devices,
            mechanism=plan.mechanism,
            device_variance=plan.device_variance,
        )
        return chance <= OVERFLOW_CHANCE

    @property
    def _signal(self) -> float:
        return signal_variance(1.0, self.length, self.max_devices)

    def _plan(self, z: float, bits: int) -> PrivacyPlan:
        scale = self._scale(z, bits)
        total = math.ceil((z * scale) ** 2)
        device_variance = -(-total // self.honest_reports)
        variance = device_variance * self.honest_reports
        norm_bound = rounded_norm_bound(1.0, scale, self.length)
        mechanism = self.mechanism if variance else Mechanism.NONE
        release = Release(mechanism, norm_bound, self.length, device_variance, self.honest_reports)
        return PrivacyPlan(
            mechanism=mechanism,
            noise_multiplier=math.sqrt(variance) / scale,
            bits=bits,
            clip_bit=0.0,
            scale=scale,
            norm_bound=norm_bound,
            honest_reports=self.honest_reports,
            device_variance=device_variance,
            variance=variance,
            epsilon=self._epsilon(release) if variance else math.inf,
        )

    def _room(self, bits: int) -> float:
        """Return what rounding alone leaves of the squared modulus: zero where that is nothing."""
        return max(0.0, 4.0**bits - self.max_devices * deviations(self.length) ** 2)

    def _scale(self, z: float, bits: int) -> float:
        """Return s from 2^b >= 2 k_s s sqrt(n^2/m + n (z^2/n_h + 1/(4 s^2))), n = max_devices.

        No more than is of use, and no more than keeps the devices' noise within the sampler's tables.
        """
        spread = math.sqrt(self._signal + self.max_devices * z * z / self.honest_reports)
        scale = math.sqrt(self._room(bits)) / (2 * deviations(self.length) * spread)
        if not z:
            return min(scale, self.noiseless_scale())
        finest = max(_FINEST_STEPS * math.sqrt(self.length), _FINEST_NORM)
        # A little less than the tables hold, since the device's variance is rounded up.
        largest = math.sqrt((MAXIMUM_VARIANCE - 1) * self.honest_reports) / z
        return min(scale, finest, largest * (1 - _MARGIN))

    def noiseless_scale(self) -> float:
        """Return the scale that rounds finely enough where there is no noise to hide the rounding."""
        return _NOISELESS_STEPS * math.sqrt(self.length)

    def _epsilon(self, release: Release) -> float:
        """Return the cost of all rounds at delta less the sampler's error; infinity if that is too much."""
        draws = self.rounds * self.max_devices * self.length
        log_error = math.log(draws * draw_error(release.device_variance)) + math.log1p(math.exp(-self.epsilon))
        error = math.exp(min(log_error + self.epsilon, 0.0))
        if error > _LARGEST_DRAW_ERROR * self.delta:
            return math.inf
        return epsilon_of(self.rounds * renyi_divergences(release), self.delta - error)


def _least(serves: Callable[[float], bool], lowest: float = 1e-3, highest: float = _LARGEST_MULTIPLIER) -> float | None:
    """Return the least value in the range that serves, to 1e-9 relative, or None if the highest does not."""
    if not serves(highest):
        return None
    if serves(lowest):
        return lowest
    while highest / lowest > 1 + 1e-9:
        middle = math.sqrt(lowest * highest)
        if serves(middle):
            highest = middle
        else:
            lowest = middle
    return highest
