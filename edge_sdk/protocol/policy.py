"""What a device insists on, whatever a coordinator plans: its floors, and the check of a plan against them.

Pure. The device computes epsilon from the plan's own noise parameters; the plan's claim is only compared with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_sdk.errors import PrivacyError
from edge_sdk.privacy.accounting import SkellamRelease, rdp_epsilon
from edge_sdk.privacy.encode import EncodingParameters
from edge_sdk.protocol.messages import DeclineReason, Mechanism, Plan
from edge_sdk.secagg import suite

MAX_DIMENSION = 1 << 27


@dataclass(frozen=True, slots=True)
class DevicePolicy:
    """The device's own floors; a weaker plan is declined with its reason.

    Attributes:
        tasks: the tasks it takes part in; empty means any.
        min_reports: the fewest devices in a sum that may hold this device's update.
        epsilon_at_most: the largest device-level epsilon over all participations; infinity allows noise off.
        delta_at_most: the delta at which epsilon is computed.
        participations_at_most: how often it takes part in one task, whatever the plan allows.
        corrupt_share_at_least: the share of colluding devices that a plan must assume.
        min_examples: the fewest examples worth training on.
    """

    tasks: frozenset[str] = frozenset()
    min_reports: int = 20
    epsilon_at_most: float = 10.0
    delta_at_most: float = 1e-5
    participations_at_most: int = 1_000
    corrupt_share_at_least: float = 0.05
    min_examples: int = 1


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a plan is declined."""

    reason: DeclineReason
    detail: str


def honest_survivors(plan: Plan) -> int:
    """The devices whose noise is counted on: the honest share of the smallest sum that may be released."""
    return math.ceil((1.0 - plan.corrupt_share) * plan.min_reports)


def encoding_of(plan: Plan) -> EncodingParameters:
    """The encoding that a plan prescribes.

    Raises:
        PrivacyError: its numbers are out of range.
    """
    return EncodingParameters(
        dimension=plan.dimension,
        bits=plan.bits,
        clip_norm=plan.clip_norm,
        scale=plan.scale,
        norm_bound=plan.norm_bound,
        device_variance=plan.device_variance,
    )


def plan_epsilon(plan: Plan, delta: float, participations: int) -> float:
    """Device-level epsilon after so many participations in rounds like this one; infinity without noise."""
    if plan.mechanism is Mechanism.NONE or plan.device_variance == 0:
        return math.inf
    release = SkellamRelease.of_rounded(
        norm_bound=plan.norm_bound,
        dimension=plan.dimension,
        variance=plan.device_variance * honest_survivors(plan),
    )
    return rdp_epsilon((release,) * participations, delta)


def objection(plan: Plan, policy: DevicePolicy, participations: int) -> Objection | None:
    """Why this device will not follow the plan, or None.

    Args:
        plan: authenticated and parsed.
        policy: the device's floors.
        participations: how often it already took part in this task.
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
    if plan.corrupt_share < policy.corrupt_share_at_least or not plan.two_survivor_sets:
        return Objection(
            DeclineReason.COHORT_TOO_SMALL,
            f"the plan assumes {plan.corrupt_share:.0%} colluding devices; this device asks for "
            f"{policy.corrupt_share_at_least:.0%} and for protection against two survivor sets",
        )
    cap = min(plan.participation_cap, policy.participations_at_most)
    if participations >= cap:
        return Objection(DeclineReason.PARTICIPATION_CAP, f"took part {participations} times of at most {cap}")
    if math.isinf(policy.epsilon_at_most):
        return None
    if plan.mechanism is Mechanism.NONE or plan.device_variance == 0:
        return Objection(DeclineReason.NOISE_TOO_SMALL, "the plan adds no noise; this device asks for some")
    epsilon = plan_epsilon(plan, policy.delta_at_most, plan.participation_cap)
    if epsilon > policy.epsilon_at_most:
        return Objection(
            DeclineReason.EPSILON_TOO_LARGE,
            f"the plan costs epsilon {epsilon:.2f} at delta {policy.delta_at_most:g}; "
            f"this device allows {policy.epsilon_at_most:g}",
        )
    return None


def _malformed(plan: Plan) -> str:
    for name, value in (("learning_rate", plan.learning_rate), ("expires_after_s", plan.expires_after_s)):
        if not (math.isfinite(value) and value > 0):
            return f"{name} is {value}"
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
    if plan.dimension > MAX_DIMENSION:
        return f"dimension is {plan.dimension}"
    if not (0 <= plan.corrupt_share < 0.5 and 0 <= plan.dropout_share < 0.5):
        return f"corrupt_share is {plan.corrupt_share}, dropout_share {plan.dropout_share}"
    try:
        encoding_of(plan)
    except PrivacyError as error:
        return str(error)
    return ""
