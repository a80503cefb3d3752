"""A phone's hardware, made of software: keys with attestations under a root that a test gives to the registrar.

The certificates have the form of Android's key attestation. No chain of a real phone was ever seen here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from coordinator.registrar.attestation import DESCRIPTION

SOFTWARE, TEE, STRONGBOX = 0, 1, 2


def tlv(tag: int, content: bytes) -> bytes:
    """DER of up to 127 bytes, or up to 65,535."""
    size = bytes([len(content)]) if len(content) < 128 else b"\x82" + len(content).to_bytes(2, "big")
    return bytes([tag]) + size + content


def key_description(challenge: bytes, *levels: int) -> bytes:
    """What the hardware writes of a key, of these security levels: the attestation's and the key's."""
    number, octets, enumerated, sequence, tagged = 0x02, 0x04, 0x0A, 0x30, 0xA1
    purposes = tlv(tagged, tlv(0x31, tlv(number, b"\x02")))
    fields = [tlv(number, b"\x01\x2c"), tlv(enumerated, bytes([levels[0]]))]
    fields += [tlv(number, b"\x01\x2c"), tlv(enumerated, bytes([levels[1]])), tlv(octets, challenge), tlv(octets, b"")]
    return tlv(sequence, b"".join((*fields, tlv(sequence, b""), tlv(sequence, purposes))))


@dataclass
class Maker:
    """Who makes phones: a root, and an intermediate key that each phone has in its hardware."""

    name: str = "Maker"
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.root_key, self.key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self.root = self.certificate(f"{self.name} root", self.root_key, None, self.root_key)
        self.intermediate = self.certificate(f"{self.name} phone", self.key, self.root, self.root_key)

    def certificate(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey,
        issuer: x509.Certificate | None,
        signer: ec.EllipticCurvePrivateKey,
        *,
        is_ca: bool = True,
        description: bytes | None = None,
        days: int = 3_000,
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if issuer is None else issuer.subject)
            .public_key(key if isinstance(key, ec.EllipticCurvePublicKey) else key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - timedelta(days=1_000))
            .not_valid_after(self.now + timedelta(days=days))
        )
        if is_ca:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        if description is not None:
            builder = builder.add_extension(x509.UnrecognizedExtension(DESCRIPTION, description), critical=False)
        return builder.sign(signer, hashes.SHA256())

    def attest(
        self, key: ec.EllipticCurvePublicKey, challenge: bytes, *, level: int = TEE, kept: int | None = None
    ) -> list[x509.Certificate]:
        """The chain of a key, leaf first, with its root."""
        described = key_description(challenge, level, level if kept is None else kept)
        leaf = self.certificate(
            "Android Keystore Key", key, self.intermediate, self.key, is_ca=False, description=described
        )
        return [leaf, self.intermediate, self.root]


def pem(chain: list[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in chain)
