"""A task's configuration: what an operator asks for, validated once, and kept with the task as JSON.

The privacy numbers in `Encoding` are computed from the rest when the task is created (coordinator.privacy), so that a
task runs to its end on the parameters it was announced with.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

from coordinator.aggregation.server_optimizers import server_optimizer
from coordinator.privacy.clipping import AdaptiveClipping
from coordinator.rounds.agreement import agreement
from coordinator.rounds.states import Pacing
from edge_sdk.errors import ConfigError
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.protocol.limits import COHORT_MAX, NEIGHBOURS_MAX
from edge_sdk.protocol.messages import BlobRef, Consistency, Digest, Plan, RoundId
from edge_sdk.protocol.topics import is_id
from edge_sdk.secagg import suite
from edge_sdk.secagg.quorum import QuorumParameters


@dataclass(frozen=True, slots=True)
class Training:
    """What each device does with the checkpoint.

    Attributes:
        epochs: passes over the device's examples.
        batch_size: examples a step.
        max_steps: no more steps than this, whatever the device holds.
        learning_rate: of the step's optimizer.
        proximal: how strongly local training is held to the checkpoint (FedProx's mu); 0 for not at all.
    """

    epochs: int
    batch_size: int
    max_steps: int
    learning_rate: float
    proximal: float = 0.0


@dataclass(frozen=True, slots=True)
class Privacy:
    """What the task promises its devices.

    Attributes:
        epsilon: device-level budget over all participations; infinity turns the noise off, explicitly.
        delta: at which epsilon is stated.
        clip_norm: largest L2 norm of an update.
        participation_cap: the most rounds one device takes part in; epsilon holds for this many.
        corrupt_share: colluding devices to protect against.
        dropout_share: dropouts after advertise_keys that a round survives.
        mechanism: the noise, where epsilon asks for any.
        bits: of the modulus; None for the fewest that cost little noise.
        local_noise: each device adds enough for epsilon alone, so that no other's is relied on.
        adaptive_clipping: how the clip norm moves from where it begins; None where it stays.
        consistency: what keeps the survivors of a round one set; see coordinator.rounds.agreement.
    """

    epsilon: float
    delta: float
    clip_norm: float
    participation_cap: int
    corrupt_share: float
    dropout_share: float
    mechanism: Mechanism = Mechanism.SKELLAM
    bits: int | None = None
    local_noise: bool = False
    adaptive_clipping: AdaptiveClipping | None = None
    consistency: Consistency = Consistency.THRESHOLD


@dataclass(frozen=True, slots=True)
class Encoding:
    """How updates become integers, from the privacy plan; see privacy/encode. `clip_bit` and `scale` go with the first
    round's clip norm.
    """

    mechanism: Mechanism
    bits: int
    clip_bit: float
    scale: float
    norm_bound: float
    device_variance: int
    noise_multiplier: float
    epsilon: float


@dataclass(frozen=True, slots=True)
class TaskConfig:
    """One computation over one population.

    Attributes:
        task, population: names, 1 to 63 of a-z, 0-9 and '-'.
        bundle: the signed artifact's head.
        dimension: trainable parameters in the bundle's layout.
        rounds: how many to commit.
        goal_count: devices that selection fills to.
        min_check_ins: the fewest check-ins worth a round.
        min_reports: the fewest reports that are ever released together.
        server_optimizer: name and options, such as "fedavgm:learning_rate=1,momentum=0.9".
        signer: the public key that the bundle must be signed with, PEM.
        evaluation: an .npz with x and y, held out, at the coordinator's side; empty for none.
        parts: what else belongs to the bundle; devices fetch of it what they need and lack.
        query: what the fleet is asked instead of training a model, as a person writes it; empty for training.
        max_abandoned: this many rounds abandoned in a row pause the task; those to which too few came do not count,
            unless devices were sent away from them.
    """

    task: str
    population: str
    bundle: BlobRef
    dimension: int
    rounds: int
    goal_count: int
    min_check_ins: int
    min_reports: int
    training: Training
    privacy: Privacy
    encoding: Encoding
    pacing: Pacing
    server_optimizer: str
    signer: str
    evaluation: str = ""
    parts: tuple[BlobRef, ...] = ()
    query: str = ""
    max_abandoned: int = field(default=10)

    def __post_init__(self) -> None:
        for name in ("task", "population"):
            value = getattr(self, name)
            if not is_id(value):
                raise ConfigError(
                    f"{value[:80]!r} cannot name a {name}",
                    hint="use 1 to 63 of the characters a-z, 0-9 and '-', beginning with a letter or a digit",
                )
        for name in ("dimension", "rounds", "goal_count", "min_check_ins", "min_reports", "max_abandoned"):
            _positive(name, getattr(self, name))
        if not 2 <= self.min_reports <= self.min_check_ins <= self.goal_count:
            raise ConfigError(
                f"min_reports {self.min_reports}, min_check_ins {self.min_check_ins} and goal_count "
                f"{self.goal_count} are out of order",
                hint="choose 2 <= min_reports <= min_check_ins <= goal_count",
            )
        for part in (self.training, self.pacing):
            for entry in dataclasses.fields(part):
                if entry.name != "proximal":
                    _positive(entry.name, getattr(part, entry.name))
        if not (math.isfinite(self.training.proximal) and self.training.proximal >= 0):
            raise ConfigError(f"proximal is {self.training.proximal}", hint="give 0 for none, or a positive number")
        privacy = self.privacy
        _positive("clip_norm", privacy.clip_norm)
        _positive("participation_cap", privacy.participation_cap)
        if not privacy.epsilon > 0 or not 0 < privacy.delta < 1:
            raise ConfigError(
                f"epsilon {privacy.epsilon} and delta {privacy.delta} make no promise",
                hint="choose epsilon > 0 and 0 < delta < 1",
            )
        adaptive = privacy.adaptive_clipping
        if adaptive is not None:
            _positive("learning_rate of adaptive clipping", adaptive.learning_rate)
            if not 0 < adaptive.quantile < 1:
                raise ConfigError(
                    f"{adaptive.quantile} is no quantile to adapt the clip norm to", hint="choose one between 0 and 1"
                )
            if self.query:
                raise ConfigError("the norm of a query's answers is known", hint="leave adaptive clipping out")
        if privacy.mechanism is Mechanism.NONE:
            raise ConfigError(
                "no mechanism is no noise", hint="an infinite epsilon turns the noise off, whatever the mechanism"
            )
        if not (0 <= privacy.corrupt_share <= 1 / 3 and 0 <= privacy.dropout_share < 0.5):
            raise ConfigError(
                f"corrupt_share {privacy.corrupt_share} and dropout_share {privacy.dropout_share} are out of range",
                hint="no graph protects against more than a third of corrupt devices; drop out may fewer than half",
            )
        groups = server_optimizer(self.server_optimizer).groups
        if self.rounds % groups:
            raise ConfigError(
                f"{self.rounds} rounds do not make whole groups of {groups} to combine",
                hint=f"choose a multiple of {groups} rounds",
            )
        if self.goal_count > COHORT_MAX:
            raise ConfigError(f"goal_count is {self.goal_count}", hint=f"choose at most {COHORT_MAX}")
        degree = self.agreement(self.goal_count).graph.degree
        if degree > NEIGHBOURS_MAX:
            raise ConfigError(
                f"each of {self.goal_count} devices would need {degree} neighbours; a message holds {NEIGHBOURS_MAX}",
                hint="choose consistency by quorum, or a smaller dropout_share, corrupt_share or goal_count",
            )

    def agreement(self, size: int) -> QuorumParameters:
        """Graph and committee of a roster of so many devices.

        Raises:
            PrivacyError: none keeps the promise.
        """
        privacy = self.privacy
        return agreement(privacy.consistency, size, privacy.corrupt_share, privacy.dropout_share)

    def plan(
        self, rid: RoundId, *, round_number: int, model_version: int, checkpoint: BlobRef, clip_norm: float
    ) -> Plan:
        """What the devices of one round are asked to do, and promised.

        Whatever its clip norm, a round's integers and their noise are the same, and so is what it costs.
        """
        privacy, encoding, training, pacing = self.privacy, self.encoding, self.training, self.pacing
        return Plan(
            rid=rid,
            suite=suite.SUITE,
            task=self.task,
            round_number=round_number,
            model_version=model_version,
            bundle=self.bundle,
            checkpoint=checkpoint,
            goal_count=self.goal_count,
            min_reports=self.min_reports,
            corrupt_share=privacy.corrupt_share,
            dropout_share=privacy.dropout_share,
            consistency=privacy.consistency,
            dimension=self.dimension,
            bits=encoding.bits,
            mechanism=encoding.mechanism,
            local_noise=privacy.local_noise,
            clip_norm=clip_norm,
            clip_bit=encoding.clip_bit * (clip_norm / privacy.clip_norm),
            scale=encoding.scale * (privacy.clip_norm / clip_norm),
            norm_bound=encoding.norm_bound,
            device_variance=encoding.device_variance,
            noise_multiplier=encoding.noise_multiplier,
            epsilon=encoding.epsilon,
            delta=privacy.delta,
            participation_cap=privacy.participation_cap,
            epochs=training.epochs,
            batch_size=training.batch_size,
            max_steps=training.max_steps,
            learning_rate=training.learning_rate,
            expires_after_s=2.0
            * (
                pacing.advertise_timeout_s
                + pacing.share_timeout_s
                + pacing.report_timeout_s
                + pacing.unmask_timeout_s * (2 if privacy.consistency is Consistency.QUORUM else 1)
            ),
            proximal=training.proximal,
        )

    def to_json(self) -> str:
        """The configuration as JSON, digests in hexadecimal."""
        return json.dumps(dataclasses.asdict(self), default=_plain, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> TaskConfig:
        """The inverse of `to_json`.

        Raises:
            ConfigError: it is not such a configuration.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            bundle, parts = _reference(data.pop("bundle")), tuple(_reference(part) for part in data.pop("parts"))
            encoding, privacy = data.pop("encoding"), data.pop("privacy")
            return TaskConfig(
                bundle=bundle,
                parts=parts,
                training=Training(**data.pop("training")),
                privacy=_privacy(**privacy),
                encoding=Encoding(mechanism=Mechanism(encoding.pop("mechanism")), **encoding),
                pacing=Pacing(**data.pop("pacing")),
                **data,
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the stored task configuration cannot be read: {error}", hint="create the task anew"
            ) from error


def _reference(data: dict[str, Any]) -> BlobRef:
    return BlobRef(Digest(bytes.fromhex(data["sha256"])), data["size_bytes"])


def _privacy(*, mechanism: int, consistency: int, adaptive_clipping: dict[str, float] | None, **values: Any) -> Privacy:
    adaptive = None if adaptive_clipping is None else AdaptiveClipping(**adaptive_clipping)
    return Privacy(
        mechanism=Mechanism(mechanism), consistency=Consistency(consistency), adaptive_clipping=adaptive, **values
    )


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} is {value}", hint=f"give a positive {name}")
