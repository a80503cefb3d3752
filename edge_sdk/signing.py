"""ECDSA P-256 signatures in the one form used everywhere, and the PEM text that holds the keys.

Signed frames and bundles both carry raw 64-byte r||s signatures over SHA-256. Signing is deterministic
(RFC 6979), so replaying a journal gives the same bytes. Knows nothing of files, certificates,
frames or bundles.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from edge_sdk.errors import IdentityError

SIGNATURE_BYTES = 64
KEY_ID_BYTES = 32

_COORDINATE_BYTES = 32
_SIGN = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
_VERIFY = ec.ECDSA(hashes.SHA256())


def new_private_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 private key from the operating system's randomness."""
    return ec.generate_private_key(ec.SECP256R1())


def sign_raw(private_key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Sign SHA-256 of `message` deterministically (RFC 6979).

    Returns:
        64 bytes, r||s, each big-endian.

    Raises:
        IdentityError: the key is not on P-256.
    """
    _require_p256(private_key.curve)
    r, s = decode_dss_signature(private_key.sign(message, _SIGN))
    return r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")


def verify_raw(public_key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """Say whether `signature` (64 bytes, r||s) is this key's signature of `message`; malformed ones are not."""
    if len(signature) != SIGNATURE_BYTES or not isinstance(public_key.curve, ec.SECP256R1):
        return False
    r = int.from_bytes(signature[:_COORDINATE_BYTES], "big")
    s = int.from_bytes(signature[_COORDINATE_BYTES:], "big")
    try:
        public_key.verify(encode_dss_signature(r, s), message, _VERIFY)
    except InvalidSignature:
        return False
    return True


def key_id(public_key: ec.EllipticCurvePublicKey) -> bytes:
    """Name a public key: SHA-256 of its SubjectPublicKeyInfo in DER, 32 bytes."""
    spki = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()


def private_key_to_pem(private_key: ec.EllipticCurvePrivateKey) -> bytes:
    """Write a private key as unencrypted PKCS#8 PEM."""
    return private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_key_to_pem(public_key: ec.EllipticCurvePublicKey) -> bytes:
    """Write a public key as SubjectPublicKeyInfo PEM."""
    return public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def private_key_from_pem(pem: bytes, *, source: str = "private key") -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted P-256 private key; `source` names it in errors.

    Raises:
        IdentityError: not PEM, encrypted, or not a P-256 key.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(
            f"{source} is not an unencrypted PEM private key: {error}",
            hint="pass the PEM file that holds the EC P-256 private key",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"{source} is not an elliptic-curve key", hint="use an EC P-256 key")
    _require_p256(key.curve, source)
    return key


def public_key_from_pem(pem: bytes, *, source: str = "public key") -> ec.EllipticCurvePublicKey:
    """Read a P-256 public key; `source` names it in errors.

    Raises:
        IdentityError: not PEM, or not a P-256 public key.
    """
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(
            f"{source} is not a PEM public key: {error}",
            hint="pass the PEM file that holds the signer's public key (`BEGIN PUBLIC KEY`)",
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise IdentityError(f"{source} is not an elliptic-curve key", hint="use an EC P-256 key")
    _require_p256(key.curve, source)
    return key


def _require_p256(curve: ec.EllipticCurve, source: str = "key") -> None:
    if not isinstance(curve, ec.SECP256R1):
        raise IdentityError(f"{source} is on curve {curve.name}, not P-256", hint="use an EC P-256 key")
