"""A device's signed frames: writes its own, and tells whose the others are. Knows no round.

What a coordinator or another device signed is checked against certificates under the pinned registrar.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric import ec

from edge_sdk.errors import IdentityError, LocalProtocolError, RemoteProtocolError
from edge_sdk.identity import Identity, verify_certificate
from edge_sdk.protocol import codec, topics
from edge_sdk.protocol.limits import CONTROL_FRAME_MAX_BYTES, EXPIRY_CONTROL_UP_S
from edge_sdk.protocol.messages import Announcement, DeviceId, Message
from edge_sdk.signing import verify_raw


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message for the broker."""

    topic: str
    payload: bytes
    expiry_s: int


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames to and from one device.

    Attributes:
        identity: the device's key, certificate and pinned registrar.
    """

    identity: Identity

    def write(self, message: Message, *, certified: bool) -> Outgoing:
        """A signed control frame to the coordinator, with the device's certificate if `certified`.

        Raises:
            LocalProtocolError: it is too large for one.
        """
        certificate = self.identity.certificate_der if certified else b""
        device_id = DeviceId(self.identity.id)
        frame = codec.write_frame(message, device_id, self.identity.sign, certificate=certificate)
        if len(frame) > CONTROL_FRAME_MAX_BYTES:
            raise LocalProtocolError(f"a {type(message).__name__} of {len(frame)} bytes does not fit a control frame")
        return Outgoing(topics.build(topics.ControlUp(device_id)), frame, EXPIRY_CONTROL_UP_S)

    def announcement(self, payload: bytes, now: float) -> tuple[Announcement, bytes]:
        """An announcement of any coordinator's, and that one's certificate, DER.

        Raises:
            RemoteProtocolError, IdentityError: it is none, or not authentic.
        """
        frame = codec.read_frame(payload)
        peer = verify_certificate(frame.certificate, self.identity.ca, "coordinator", now)
        if not verify_raw(peer.public_key, frame.signature, frame.signed_for(codec.BROADCAST)):
            raise RemoteProtocolError("an announcement whose signature is not the coordinator's")
        message = codec.parse_for_device(frame)
        if not isinstance(message, Announcement):
            raise RemoteProtocolError(f"a {type(message).__name__} where announcements are heard")
        return message, frame.certificate

    def signer_of(self, frame: codec.Frame, certificates: Iterable[bytes], now: float) -> bytes:
        """Which of these coordinators' certificates (DER) a frame to this device is signed by.

        Raises:
            RemoteProtocolError, IdentityError: by none of them, or that one is not good now.
        """
        problem: RemoteProtocolError | IdentityError = RemoteProtocolError("the signature is not the coordinator's")
        for certificate in certificates:
            try:
                peer = verify_certificate(certificate, self.identity.ca, "coordinator", now)
            except IdentityError as error:
                problem = error  # of one population's coordinator, which silences no other's
                continue
            if verify_raw(peer.public_key, frame.signature, frame.signed_for(self.identity.id)):
                return certificate
        raise problem

    def verify_peer(self, certificate: bytes, message: bytes, signature: bytes, now: float) -> str:
        """The device that signed this, by its certificate (DER).

        Raises:
            IdentityError: the certificate or the signature is not good.
        """
        peer = verify_certificate(certificate, self.identity.ca, "device", now)
        if not _has_signed(_Key(certificate, peer.public_key), message, signature):
            raise IdentityError(f"the signature is not {peer.id}'s")
        return peer.id


@dataclass(frozen=True, slots=True)
class _Key:
    """A public key, known by the certificate that it stands in."""

    certificate: bytes
    public_key: ec.EllipticCurvePublicKey = field(compare=False)


@lru_cache(maxsize=1024)
def _has_signed(key: _Key, message: bytes, signature: bytes) -> bool:
    """A roster that comes again, or to another device of this process, is not computed again."""
    return verify_raw(key.public_key, signature, message)
