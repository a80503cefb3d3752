"""Suite 1: the hash, the key derivation, the round context and the byte stream all entropy is expanded with.

H is SHA-256, the KDF is HKDF-SHA256 (RFC 5869), streams are AES-256-CTR. Knows nothing of rounds or messages.
All integers are little-endian.
"""

from __future__ import annotations

import builtins
import hashlib
import hmac

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from edge_sdk.errors import LocalProtocolError

SUITE = 1
"""Names X25519, HKDF-SHA256, ChaCha20-Poly1305, AES-128-CTR masks and Shamir over GF(2^16) together."""

DIGEST_BYTES = 32
ROUND_ID_BYTES = 16
_WORD_VALUES = 1 << 64


def label(name: str) -> bytes:
    """Return the domain separation prefix of `name`: `edge-sdk/<name>/1` and a zero byte."""
    return b"edge-sdk/" + name.encode() + b"/1\0"


def digest(*parts: bytes) -> bytes:
    """Return SHA-256 of the concatenated parts, 32 bytes.

    Callers make the concatenation unambiguous: every part but the last has a fixed length or a length prefix.
    """
    return hashlib.sha256(b"".join(parts)).digest()


def hkdf(ikm: bytes, *, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """Derive `length` bytes with HKDF-SHA256 (RFC 5869); an empty salt means 32 zero bytes, as there."""
    if not 0 < length <= 255 * DIGEST_BYTES:
        raise LocalProtocolError(f"HKDF cannot derive {length} bytes", hint="ask for 1 to 8160 bytes")
    key = hmac.digest(salt or bytes(DIGEST_BYTES), ikm, "sha256")
    block, output = b"", b""
    counter = 1
    while len(output) < length:
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        output += block
        counter += 1
    return output[:length]


def context(rid: bytes, plan_digest: bytes, model_digest: bytes) -> bytes:
    """Return ctx = H(suite u16 || rid || H(plan) || H(model)), which enters every KDF and AD of a round."""
    lengths = (len(rid), len(plan_digest), len(model_digest))
    if lengths != (ROUND_ID_BYTES, DIGEST_BYTES, DIGEST_BYTES):
        raise LocalProtocolError(
            f"round id, plan digest and model digest are {lengths} bytes long",
            hint="they must be 16, 32 and 32",
        )
    return digest(SUITE.to_bytes(2, "little"), rid, plan_digest, model_digest)


def derive(entropy: bytes, name: str) -> bytes:
    """Return 32 bytes for one named use of a 32-byte entropy, so that no two uses share a stream."""
    return hkdf(entropy, salt=b"", info=label("derive") + name.encode())


class Stream:
    """A deterministic byte stream: AES-256-CTR over zeros, the key given and the initial counter zero.

    Every expansion of entropy goes through one, so that both languages draw the same values from the
    same bytes. Reading moves the stream on; each method says how many bytes it takes.
    """

    __slots__ = ("_encryptor",)

    def __init__(self, key: builtins.bytes) -> None:
        if len(key) != 32:
            raise LocalProtocolError(f"a stream key is 32 bytes, not {len(key)}", hint="derive it with HKDF")
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(builtins.bytes(16))).encryptor()

    def __repr__(self) -> str:
        return "Stream(key hidden)"

    def bytes(self, count: int) -> builtins.bytes:
        """Return the next `count` bytes."""
        return self._encryptor.update(builtins.bytes(count))

    def uint16(self, count: int) -> NDArray[np.uint16]:
        """Return the next `count` 16-bit integers, two bytes each."""
        return np.frombuffer(self.bytes(2 * count), "<u2").astype(np.uint16, copy=False)

    def uint32(self, count: int) -> NDArray[np.uint32]:
        """Return the next `count` 32-bit integers, four bytes each."""
        return np.frombuffer(self.bytes(4 * count), "<u4").astype(np.uint32, copy=False)

    def uint64(self, count: int) -> NDArray[np.uint64]:
        """Return the next `count` 64-bit integers, eight bytes each."""
        return np.frombuffer(self.bytes(8 * count), "<u8").astype(np.uint64, copy=False)

    def below(self, limit: int) -> int:
        """Return an integer exactly uniform in [0, limit), 1 <= limit <= 2^64.

        Takes eight bytes a try and rejects those at or above the largest multiple of `limit` in 2^64.
        """
        if not 1 <= limit <= _WORD_VALUES:
            raise LocalProtocolError(f"cannot draw below {limit}", hint="the limit is from 1 to 2^64")
        acceptable = _WORD_VALUES - _WORD_VALUES % limit
        while True:
            word = int.from_bytes(self.bytes(8), "little")
            if word < acceptable:
                return word % limit
