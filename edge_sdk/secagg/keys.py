"""X25519 key pairs (RFC 7748), the only asymmetric keys of a round.

Knows nothing of identities: certificates and signatures live elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from edge_sdk.errors import LocalProtocolError, RemoteProtocolError

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An ephemeral X25519 pair as raw bytes; build it with `from_private`.

    It keeps its parsed private key, since parsing costs as much as an agreement, and the secrets it has
    agreed on, since a round uses each channel secret twice. Both go when the pair goes.
    """

    private: bytes = field(repr=False)
    public: bytes
    _parsed: X25519PrivateKey = field(init=False, repr=False, compare=False)
    _agreed: dict[bytes, bytes] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_parsed", _parse_private(self.private))

    def __reduce__(self) -> tuple[type[KeyPair], tuple[bytes, bytes]]:
        return KeyPair, (self.private, self.public)

    @classmethod
    def from_private(cls, private: bytes) -> KeyPair:
        """Return the pair of 32 random bytes (clamped on use, RFC 7748 section 5)."""
        return cls(private, _parse_private(private).public_key().public_bytes_raw())

    def agree(self, public: bytes) -> bytes:
        """Return the 32-byte secret shared with `public`; see `agree`."""
        secret = self._agreed.get(public)
        if secret is None:
            secret = self._agreed[public] = _exchange(self._parsed, public)
        return secret


def agree(private: bytes, public: bytes) -> bytes:
    """Return X25519(private, public), 32 bytes.

    Raises:
        RemoteProtocolError: the public key is malformed or of low order (the secret would be zero).
    """
    return _exchange(_parse_private(private), public)


def _parse_private(private: bytes) -> X25519PrivateKey:
    if len(private) != KEY_BYTES:
        raise LocalProtocolError(f"an X25519 private key is 32 bytes, not {len(private)}")
    return X25519PrivateKey.from_private_bytes(private)


def _exchange(parsed: X25519PrivateKey, public: bytes) -> bytes:
    if len(public) != KEY_BYTES:
        raise RemoteProtocolError(f"an X25519 public key is 32 bytes, not {len(public)}")
    try:
        return parsed.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise RemoteProtocolError(
            "an X25519 public key is a point of low order", hint="drop the peer that sent it"
        ) from error
