"""What a device insists on, whatever a coordinator plans: its floors, and the check of a plan against them.

Pure. The device computes epsilon from the plan's own noise parameters; the plan's claim is only compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from edge_sdk.errors import ConfigError, PrivacyError
from edge_sdk.privacy.accounting import ORDERS, Release, epsilon_of, honest_reports, renyi_divergences
from edge_sdk.privacy.encode import EncodingParameters
from edge_sdk.privacy.subsampled import Sampling, sampled_epsilon
from edge_sdk.protocol.limits import COHORT_MAX
from edge_sdk.protocol.messages import DeclineReason, Plan
from edge_sdk.secagg import suite

MAX_DIMENSION = 1 << 27


@dataclass(frozen=True, slots=True)
class DevicePolicy:
    """The device's own floors; a weaker plan is declined with its reason.

    Attributes:
        tasks: the tasks it takes part in; empty means any.
        min_reports: the fewest devices in a sum that may hold this device's update.
        epsilon_at_most: the largest device-level epsilon over all that ever left this device, whatever the task;
            infinity allows noise off.
        delta_at_most: the delta at which epsilon is computed.
        participations_at_most: how often it takes part in one task, whatever the plan allows.
        all_participations_at_most: how often it takes part in its life, in all tasks together.
        corrupt_share_at_least: the share of colluding devices that a plan must assume.
        example_epsilon_at_most: the largest example-level epsilon that this device's own noise leaves to any of its
            examples, over all it ever trained; infinity takes bundles that do not protect each example.
        local_noise: count on this device's own noise only, as if all others worked with the coordinator: local
            differential privacy.
        min_examples: the fewest examples worth training on.

    Raises:
        ConfigError: a floor is out of range.
    """

    tasks: frozenset[str] = frozenset()
    min_reports: int = 20
    epsilon_at_most: float = 10.0
    delta_at_most: float = 1e-5
    participations_at_most: int = 1_000
    all_participations_at_most: int = 10_000
    corrupt_share_at_least: float = 0.05
    example_epsilon_at_most: float = math.inf
    local_noise: bool = False
    min_examples: int = 1

    def __post_init__(self) -> None:
        # Comparisons with NaN are false, so that it would let every plan pass.
        if not self.epsilon_at_most > 0 or not 0 < self.delta_at_most < 1:
            raise ConfigError(
                f"a policy of epsilon {self.epsilon_at_most} at delta {self.delta_at_most} protects nothing",
                hint="choose a positive epsilon (infinity allows noise off) and 0 < delta < 1",
            )
        if not self.example_epsilon_at_most > 0:
            raise ConfigError(
                f"an example-level epsilon of {self.example_epsilon_at_most} allows no training",
                hint="choose a positive one (infinity takes bundles without example-level noise)",
            )
        if not 0 <= self.corrupt_share_at_least < 0.5:
            raise ConfigError(
                f"a policy cannot ask for {self.corrupt_share_at_least} colluding devices",
                hint="choose a share from 0 to below 0.5",
            )
        for name in ("min_reports", "participations_at_most", "all_participations_at_most", "min_examples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"a policy's {name} is {getattr(self, name)}", hint="choose 1 or more")

    def counted(self, release: Release) -> Release:
        """A release with the noise that this device counts on."""
        return replace(release, honest=1) if self.local_noise else release


@dataclass(frozen=True, slots=True)
class Spending:
    """What left this device before, by its own ledger.

    Attributes:
        participations: how often it took part in the plan's task.
        releases: into which sums its updates went, of all tasks, each with how often.
    """

    participations: int = 0
    releases: tuple[tuple[Release, int], ...] = ()

    @property
    def all_participations(self) -> int:
        """How often it took part in any task."""
        return sum(count for _, count in self.releases)


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a plan is declined."""

    reason: DeclineReason
    detail: str


def honest_survivors(plan: Plan) -> int:
    """The devices whose noise is counted on: those of the smallest sum, less all colluders of the largest roster.

    With local noise it is one, whichever.
    """
    return 1 if plan.local_noise else honest_reports(plan.min_reports, plan.goal_count, plan.corrupt_share)


def encoding_of(plan: Plan) -> EncodingParameters:
    """The encoding that a plan prescribes.

    Raises:
        PrivacyError: its numbers are out of range.
    """
    return EncodingParameters(
        dimension=plan.dimension,
        bits=plan.bits,
        clip_norm=plan.clip_norm,
        clip_bit=plan.clip_bit,
        scale=plan.scale,
        norm_bound=plan.norm_bound,
        mechanism=plan.mechanism,
        device_variance=plan.device_variance,
    )


def release_of(plan: Plan) -> Release:
    """The release that a participation in this round counts as; variance 0 where the plan adds no noise."""
    return Release(
        mechanism=plan.mechanism,
        norm_bound=plan.norm_bound,
        length=encoding_of(plan).length,
        device_variance=plan.device_variance,
        honest=honest_survivors(plan),
    )


def composed_epsilon(releases: Iterable[tuple[Release, int]], delta: float) -> float:
    """Device-level epsilon of so many of each release together; infinity if one had no noise, 0 for none."""
    total = np.zeros(len(ORDERS))
    for release, count in releases:
        if count and release.variance == 0:
            return math.inf
        if count:
            total += count * renyi_divergences(release)
    return epsilon_of(total, delta) if total.any() else 0.0


def objection(plan: Plan, policy: DevicePolicy, spending: Spending) -> Objection | None:
    """Why this device will not follow the plan, or None.

    The epsilon compared with the policy's is that of all the device released before and of all it may yet release
    under this plan, so that no sequence of plans, each within bounds, adds up to more.

    Args:
        plan: authenticated and parsed.
        policy: the device's floors.
        spending: what left the device before.
    """
    malformed = _malformed(plan)
    if malformed:
        return Objection(DeclineReason.PLAN_MALFORMED, malformed)
    if plan.suite != suite.SUITE:
        return Objection(DeclineReason.SUITE_UNSUPPORTED, f"suite {plan.suite}; this device has {suite.SUITE}")
    if policy.tasks and plan.task not in policy.tasks:
        return Objection(DeclineReason.TASK_NOT_ALLOWED, f"task {plan.task!r} is not among those allowed")
    if plan.min_reports < policy.min_reports:
        return Objection(
            DeclineReason.COHORT_TOO_SMALL,
            f"the plan releases sums of {plan.min_reports} devices; this device asks for {policy.min_reports}",
        )
    if plan.corrupt_share < policy.corrupt_share_at_least:
        return Objection(
            DeclineReason.COHORT_TOO_SMALL,
            f"the plan assumes {plan.corrupt_share:.0%} colluding devices; this device asks for "
            f"{policy.corrupt_share_at_least:.0%}",
        )
    cap = min(plan.participation_cap, policy.participations_at_most)
    if spending.participations >= cap:
        return Objection(DeclineReason.PARTICIPATION_CAP, f"took part {spending.participations} times of at most {cap}")
    left = policy.all_participations_at_most - spending.all_participations
    if left < 1:
        return Objection(
            DeclineReason.PARTICIPATION_CAP,
            f"took part {spending.all_participations} times in all tasks of at most "
            f"{policy.all_participations_at_most}",
        )
    if math.isinf(policy.epsilon_at_most):
        return None
    release = release_of(plan)
    if release.variance == 0:
        return Objection(DeclineReason.NOISE_TOO_SMALL, "the plan adds no noise; this device asks for some")
    planned = (release, min(cap - spending.participations, left))
    counted = [(policy.counted(one), count) for one, count in (*spending.releases, planned)]
    epsilon = composed_epsilon(counted, policy.delta_at_most)
    if epsilon > policy.epsilon_at_most:
        return Objection(
            DeclineReason.EPSILON_TOO_LARGE,
            f"with this plan all releases would cost epsilon {epsilon:.2f} at delta {policy.delta_at_most:g}; "
            f"this device allows {policy.epsilon_at_most:g}" + " by its own noise alone" * policy.local_noise,
        )
    return None


def example_objection(sampling: Sampling | None, policy: DevicePolicy, spent: Iterable[Sampling]) -> Objection | None:
    """Why this device will not train on its examples so, or None.

    Args:
        sampling: what the training would release of each example; None where nothing protects each.
        policy: the device's floors.
        spent: what was released of its examples before, whatever the task.
    """
    if math.isinf(policy.example_epsilon_at_most):
        return None
    if sampling is None:
        return Objection(
            DeclineReason.NOISE_TOO_SMALL, "the bundle adds no noise for each example; this device asks for some"
        )
    epsilon = sampled_epsilon([*spent, sampling], policy.delta_at_most)
    if epsilon <= policy.example_epsilon_at_most:
        return None
    return Objection(
        DeclineReason.EPSILON_TOO_LARGE,
        f"with this training each example would have cost epsilon {epsilon:.2f} at delta {policy.delta_at_most:g}; "
        f"this device allows {policy.example_epsilon_at_most:g}",
    )


def _malformed(plan: Plan) -> str:
    for name, value in (("learning_rate", plan.learning_rate), ("expires_after_s", plan.expires_after_s)):
        if not (math.isfinite(value) and value > 0):
            return f"{name} is {value}"
    if not (math.isfinite(plan.proximal) and plan.proximal >= 0):
        return f"proximal is {plan.proximal}"
    counts = {
        "goal_count": plan.goal_count,
        "min_reports": plan.min_reports,
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "max_steps": plan.max_steps,
        "participation_cap": plan.participation_cap,
    }
    for name, count in counts.items():
        if count < 1:
            return f"{name} is {count}"
    if not plan.min_reports <= plan.goal_count <= COHORT_MAX:
        return f"min_reports is {plan.min_reports}, goal_count {plan.goal_count}"
    if not 0 < plan.delta < 1:
        return f"delta is {plan.delta}"
    if plan.dimension > MAX_DIMENSION:
        return f"dimension is {plan.dimension}"
    if not (0 <= plan.corrupt_share < 0.5 and 0 <= plan.dropout_share < 0.5):
        return f"corrupt_share is {plan.corrupt_share}, dropout_share {plan.dropout_share}"
    try:
        encoding_of(plan)
    except PrivacyError as error:
        return str(error)
    return ""
