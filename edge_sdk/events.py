"""What a device tells its app while it runs: frozen values, in the order in which they happened.

    async for event in edge.events():
        match event:
            case Uploaded():
                print(f"{event.sent_bytes} masked bytes, epsilon {event.epsilon:.2f} so far")
            case Refused():
                print(f"{event.population}: {event.detail}")

All have `population`, the name that was joined, and `at`, seconds since the epoch. Knows nothing of who sends them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Trained:
    """A round's training ended well; nothing left the device yet."""

    population: str
    at: float
    round_number: int
    examples: int


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A masked update left the device; `epsilon` is what the task has cost so far, at `delta`."""

    population: str
    at: float
    round_number: int
    sent_bytes: int
    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class Installed:
    """Predictions come from this version of the global model from now on."""

    population: str
    at: float
    version: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The device declined a round, by its policy or because it could not go on; the coordinator is told the same.

    Attributes:
        reason: one word of the protocol, such as "cohort_too_small".
        detail: a sentence, with the numbers.
    """

    population: str
    at: float
    round_number: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Deferred:
    """The device would take part, but not now; `reason` says why, such as "not charging" or "no consent"."""

    population: str
    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Personalised:
    """A personal model was tuned from the global one, and serves if it is better by more than noise.

    Attributes:
        wins: whether it serves.
        examples: held-out examples that both were measured on.
        global_loss, personal_loss: means over these.
    """

    population: str
    at: float
    wins: bool
    examples: int
    global_loss: float
    personal_loss: float


Event: TypeAlias = Trained | Uploaded | Installed | Refused | Deferred | Personalised
OnEvent: TypeAlias = Callable[[Event], None]
