"""The error tree: every failure a person can meet, with what was wrong and what to do about it.

Knows nothing else of the package, so that every module may import it.
"""

from __future__ import annotations


class EdgeError(Exception):
    """Base of all errors raised on purpose by edge-sdk.

    Args:
        message: what was wrong, naming the thing.
        hint: what the reader can do about it; may be empty where nothing can be done.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # shown under the message in a traceback


class ConfigError(EdgeError):
    """A setting, an argument or a file that a person wrote is unusable."""


class ProtocolError(EdgeError):
    """The protocol was broken; see the two kinds below."""


class LocalProtocolError(ProtocolError):
    """This side tried something the protocol forbids in its state: a bug here."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something malformed, unauthentic or out of place."""


class TransportError(EdgeError):
    """The broker or the network cannot be used."""


class StoreError(EdgeError):
    """Durable state cannot be read or written."""


class WorkerError(EdgeError):
    """Work that was dealt out to other processes was not done."""


class IdentityError(EdgeError):
    """A key or certificate is missing, wrong, expired or not trusted."""


class ArtifactError(EdgeError):
    """A bundle is malformed, tampered with, not trusted or not for this runtime."""


class ExportError(EdgeError):
    """A model cannot be turned into a training artifact."""


class TrainingError(EdgeError):
    """Training, evaluation or prediction failed on this device."""


class BudgetExceeded(EdgeError):
    """Training took more of the machine than its owner allows."""


class PrivacyError(EdgeError):
    """A plan is weaker than the policy, or privacy parameters cannot be met."""


class PrivacyBudgetExceeded(PrivacyError):
    """The next release would spend more than the budget allows."""
