"""What the device gave away so far, for the app to show: receipts of all that left it, and what it cost in epsilon.

Everything is computed from the device's own ledger, never from what a coordinator claims.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge_sdk.privacy.subsampled import sampled_epsilon
from edge_sdk.protocol.policy import DevicePolicy, composed_epsilon
from edge_sdk.runtime.device_store import DeviceStore


@dataclass(frozen=True, slots=True)
class Receipt:
    """One masked update that left the device.

    Attributes:
        at: when, in seconds since the epoch.
        task, round_number: for which round.
        sent_bytes, sent_sha256: the masked vector, which by itself says nothing of the update.
        purpose: what the owner had agreed to; empty where nobody was asked.
        cost: by how much epsilon of the task grew; infinity for a round without noise.
        epsilon, delta: spent on the task up to and with this round.
        outcome: how the round ended for this device, such as "committed"; empty while it is open.
    """

    at: float
    task: str
    round_number: int
    sent_bytes: int
    sent_sha256: bytes
    purpose: str
    cost: float
    epsilon: float
    delta: float
    outcome: str


@dataclass(frozen=True, slots=True)
class TaskSpending:
    """What one task has cost: device-level epsilon at that delta, and how often the device took part."""

    epsilon: float
    delta: float
    participations: int


@dataclass(frozen=True, slots=True)
class Spent:
    """What the device has given away, and what it gives at most.

    Attributes:
        epsilon, delta: device-level epsilon of all that ever left it, whatever the task, at the policy's delta.
        epsilon_at_most: the policy's; a plan that could exceed it is declined.
        example_epsilon: of each single example, by this device's own noise in bundles that are private for each; None
            where there was no such bundle.
        participations, participations_at_most: rounds.
        tasks: by name.
    """

    epsilon: float
    delta: float
    epsilon_at_most: float
    example_epsilon: float | None
    participations: int
    participations_at_most: int
    tasks: Mapping[str, TaskSpending]


class PrivacyAccount:
    """A device's ledger, as its owner may want to read it.

    Args:
        store: holds the ledger.
        policy: what the device gives at most.
    """

    def __init__(self, store: DeviceStore, policy: DevicePolicy) -> None:
        self._store = store
        self._policy = policy

    def receipts(self) -> tuple[Receipt, ...]:
        """All that left the device, oldest first; since the owner withdrew, if that was ever done.

        Raises:
            StoreError: the ledger cannot be read.
        """
        outcomes, before, found = self._store.outcomes(), dict[str, float](), []
        for p in self._store.participations():
            # Infinity less infinity is no number.
            cost = p.epsilon if p.epsilon == float("inf") else p.epsilon - before.get(p.task, 0.0)
            before[p.task] = p.epsilon
            if not p.at:
                continue  # before a withdrawal, of which only the cost is kept
            found.append(
                Receipt(
                    at=p.at,
                    task=p.task,
                    round_number=p.round_number,
                    sent_bytes=p.sent_bytes,
                    sent_sha256=p.sent_sha256,
                    purpose=p.purpose,
                    cost=cost,
                    epsilon=p.epsilon,
                    delta=p.delta,
                    outcome=outcomes.get(p.rid, ""),
                )
            )
        return tuple(found)

    def spent(self) -> Spent:
        """What the tasks have cost, each and all together.

        Raises:
            StoreError: the ledger cannot be read.
        """
        policy, tasks = self._policy, dict[str, TaskSpending]()
        for p in self._store.participations():
            earlier = tasks[p.task].participations if p.task in tasks else 0
            tasks[p.task] = TaskSpending(p.epsilon, p.delta, earlier + 1)
        spending, samplings = self._store.spending(""), self._store.samplings()
        return Spent(
            epsilon=composed_epsilon(
                ((policy.counted(one), count) for one, count in spending.releases), policy.delta_at_most
            ),
            delta=policy.delta_at_most,
            epsilon_at_most=policy.epsilon_at_most,
            example_epsilon=sampled_epsilon(samplings, policy.delta_at_most) if samplings else None,
            participations=spending.all_participations,
            participations_at_most=policy.all_participations_at_most,
            tasks=tasks,
        )
