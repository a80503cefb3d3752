"""The one place where bytes become messages and messages bytes.

A control message travels as a frame:

    0   2  magic b"EF"
    2   1  version, 1
    3   1  kind
    4   2  certificate length c (u16 LE; 0 where the reader knows the sender's certificate)
    6   2  zero
    8   4  body length n (u32 LE)
    12  c  the sender's certificate, DER
        n  body, FlatBuffers (schema/messages.fbs)
        64 signature, raw r || s, ECDSA P-256 over SHA-256 of
           b"edge-sdk/frame/1" || 0 || device id || 0 || everything before the signature

The device id in the signed bytes is the device's that sends or receives it, "*" for an announcement, so that a
frame for one device is none for another. Reading goes authenticate, size-check, parse: `read_frame` cuts the bytes
by their stated and checked lengths, the caller's `verify` says whose they are, and only then is FlatBuffers touched.
Python's FlatBuffers has no verifier, so whatever it raises on malformed bytes becomes a RemoteProtocolError here.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import struct
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import flatbuffers
import numpy as np

from edge_sdk.errors import LocalProtocolError, RemoteProtocolError
from edge_sdk.protocol import messages
from edge_sdk.protocol._generated import messages_generated as wire
from edge_sdk.protocol.limits import CONTROL_FRAME_MAX_BYTES, LARGE_FRAME_MAX_BYTES
from edge_sdk.protocol.messages import Message, ToCoordinator, ToDevice

VERSION = 1
BROADCAST = "*"

_HEADER = struct.Struct("<2sBBHHI")
_SIGNATURE_BYTES = 64
_MAGIC = b"EF"
_DOMAIN = b"edge-sdk/frame/1\0"
_CERTIFICATE_MAX_BYTES = 4096

M = typing.TypeVar("M")

Sign = Callable[[bytes], bytes]
"""Signs bytes with the sender's key: message -> 64 bytes."""

# The kind numbers of the wire. Never renumber; a new message takes the next free number.
KINDS: dict[int, type[Message]] = {
    1: messages.Announcement,
    2: messages.Rejection,
    3: messages.Plan,
    4: messages.Roster,
    5: messages.ShareDelivery,
    6: messages.Survivors,
    7: messages.Receipt,
    8: messages.Outcome,
    9: messages.Large,
    10: messages.Quorum,
    32: messages.CheckIn,
    33: messages.AdvertiseKeys,
    34: messages.ShareKeys,
    35: messages.MaskedInput,
    36: messages.UnmaskingShares,
    37: messages.Decline,
    38: messages.Endorsement,
    64: messages.Pull,
}
_KIND_OF = {kind: number for number, kind in KINDS.items()}
_TO_DEVICE = typing.get_args(ToDevice)
_TO_COORDINATOR = typing.get_args(ToCoordinator)

_LENGTHS: dict[typing.Any, int] = {
    messages.Digest: 32,
    messages.RoundId: 16,
    messages.PublicKey: 32,
    messages.Signature: 64,
}


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame cut into its parts and not yet trusted.

    Attributes:
        kind: a known message type.
        certificate: DER, empty where none travelled.
        body: FlatBuffers bytes.
        signature: 64 bytes.
        signed: the bytes of the frame that the signature covers, without domain and device id.
    """

    kind: type[Message]
    certificate: bytes
    body: bytes
    signature: bytes
    signed: bytes

    def signed_for(self, device_id: str) -> bytes:
        """The exact bytes that the sender signed, if the frame concerns this device."""
        return _DOMAIN + device_id.encode() + b"\0" + self.signed


def write_frame(message: Message, device_id: str, sign: Sign, *, certificate: bytes = b"") -> bytes:
    """The signed frame of a message; deterministic where `sign` is.

    Args:
        message: what to say.
        device_id: the device that sends or receives it, or `BROADCAST`.
        sign: the sender's signature over given bytes.
        certificate: the sender's certificate where the reader may not know it.

    Raises:
        LocalProtocolError: the frame would be larger than any reader takes.
    """
    body = encode(message)
    head = _HEADER.pack(_MAGIC, VERSION, _KIND_OF[type(message)], len(certificate), 0, len(body))
    signed = head + certificate + body
    if len(signed) + _SIGNATURE_BYTES > LARGE_FRAME_MAX_BYTES:
        raise LocalProtocolError(f"a {type(message).__name__} of {len(body)} bytes is larger than any reader takes")
    return signed + sign(_DOMAIN + device_id.encode() + b"\0" + signed)


def read_frame(data: bytes, *, large: bool = False) -> Frame:
    """Cut a frame by its stated lengths, without believing it.

    Args:
        data: the bytes as they came.
        large: the bytes were pulled as the content of a `Large`, so the larger cap holds.

    Raises:
        RemoteProtocolError: too large, too short, another magic, version or kind, lengths that do not add up.
    """
    limit = LARGE_FRAME_MAX_BYTES if large else CONTROL_FRAME_MAX_BYTES
    if len(data) > limit:
        raise RemoteProtocolError(f"a frame of {len(data)} bytes is over the limit of {limit}")
    if len(data) < _HEADER.size + _SIGNATURE_BYTES:
        raise RemoteProtocolError(f"{len(data)} bytes are too few for a frame")
    magic, version, number, certificate_bytes, reserved, body_bytes = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise RemoteProtocolError("not a frame: the magic bytes are missing")
    if version != VERSION:
        raise RemoteProtocolError(
            f"frame version {version}, but this side speaks {VERSION}",
            hint="update the older of the two sides",
        )
    kind = KINDS.get(number)
    if kind is None:
        raise RemoteProtocolError(f"unknown message kind {number}")
    if reserved:
        raise RemoteProtocolError("the frame's reserved bytes are not zero")
    if certificate_bytes > _CERTIFICATE_MAX_BYTES:
        raise RemoteProtocolError(f"a certificate of {certificate_bytes} bytes is over the limit")
    body_at = _HEADER.size + certificate_bytes
    if len(data) != body_at + body_bytes + _SIGNATURE_BYTES:
        raise RemoteProtocolError("the frame's lengths do not add up")
    return Frame(
        kind=kind,
        certificate=data[_HEADER.size : body_at],
        body=data[body_at : body_at + body_bytes],
        signature=data[body_at + body_bytes :],
        signed=data[: body_at + body_bytes],
    )


def parse_for_device(frame: Frame) -> ToDevice:
    """The message in an authenticated frame from the coordinator."""
    return typing.cast(ToDevice, _parse(frame, _TO_DEVICE))


def parse_for_coordinator(frame: Frame) -> ToCoordinator:
    """The message in an authenticated frame from a device."""
    return typing.cast(ToCoordinator, _parse(frame, _TO_COORDINATOR))


def _parse(frame: Frame, allowed: tuple[type[Message], ...]) -> Message:
    if frame.kind not in allowed:
        raise RemoteProtocolError(f"a {frame.kind.__name__} does not travel this way")
    return decode(frame.kind, frame.body)


@functools.lru_cache(maxsize=8)  # the same plan, survivors and outcome go to every device of a cohort
def encode(message: Message) -> bytes:
    """The FlatBuffers body of a message; equal messages give equal bytes."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(_to_wire(message).Pack(builder))
    return bytes(builder.Output())


def decode(kind: type[M], body: bytes) -> M:
    """The message of the given type in a FlatBuffers body.

    Raises:
        RemoteProtocolError: malformed in any way that the fields' types and fixed lengths show.
    """
    try:
        packed = getattr(wire, kind.__name__ + "T").InitFromPackedBuf(body)
        return typing.cast(M, _from_wire(packed, kind))
    # What flatbuffers and numpy raise on bytes that are no such table, found by mutation.
    except (
        struct.error,
        IndexError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as error:
        raise RemoteProtocolError(f"a malformed {kind.__name__}: {error}") from error


# ---- the generic bridge between the dataclasses and the generated object API


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    attribute: str
    to_wire: Callable[[typing.Any], typing.Any]
    from_wire: Callable[[typing.Any], typing.Any]


def _bytes_to_wire(value: bytes) -> typing.Any:
    return np.frombuffer(value, np.uint8)


def _bytes_from_wire(length: int | None) -> Callable[[typing.Any], bytes]:
    def convert(value: typing.Any) -> bytes:
        data = b"" if value is None or isinstance(value, int) else value.tobytes()
        if length is not None and len(data) != length:
            raise ValueError(f"a field of {len(data)} bytes must have {length}")
        return typing.cast(bytes, data)

    return convert


def _ints_to_wire(value: tuple[int, ...]) -> typing.Any:
    return np.asarray(value, np.uint32)


def _ints_from_wire(value: typing.Any) -> tuple[int, ...]:
    return () if value is None or isinstance(value, int) else tuple(value.tolist())


def _float_from_wire(value: typing.Any) -> float:
    if math.isnan(value):
        raise ValueError("a number that is none")
    return float(value)


def _text_from_wire(value: typing.Any) -> str:
    return "" if value is None else typing.cast(str, value.decode("utf-8"))


def _same(value: typing.Any) -> typing.Any:
    return value


def _converters(kind: typing.Any) -> tuple[Callable[..., typing.Any], Callable[..., typing.Any]]:
    """How a field of this annotated type goes to the wire and comes from it."""
    if dataclasses.is_dataclass(kind):
        return _to_wire, lambda value: _from_wire(value, kind)
    if isinstance(kind, typing.NewType):
        return _bytes_to_wire, _bytes_from_wire(_LENGTHS.get(kind))
    if isinstance(kind, types.GenericAlias) and kind.__origin__ is tuple:
        item = kind.__args__[0]
        if item is int:
            return _ints_to_wire, _ints_from_wire
        return lambda entries: _to_columns(entries, item), lambda packed: _from_columns(packed, item)
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        return int, kind
    if kind is bytes:
        return _bytes_to_wire, _bytes_from_wire(None)
    if kind is str:
        return _same, _text_from_wire
    if kind is float:
        return _same, _float_from_wire
    return _same, kind


@functools.cache
def _fields(kind: typing.Any) -> tuple[_Field, ...]:
    return tuple(
        _Field(field.name, _camel(field.name), *_converters(_hints(kind)[field.name]))
        for field in dataclasses.fields(kind)
    )


def _to_wire(message: typing.Any) -> typing.Any:
    packed = getattr(wire, type(message).__name__ + "T")()
    kind: typing.Any = type(message)
    for field in _fields(kind):
        setattr(packed, field.attribute, field.to_wire(getattr(message, field.name)))
    return packed


def _from_wire(packed: typing.Any, kind: typing.Any) -> typing.Any:
    if packed is None:
        raise ValueError(f"the {kind.__name__} is missing")
    return kind(**{field.name: field.from_wire(getattr(packed, field.attribute)) for field in _fields(kind)})


# ---- a tuple of records travels as one table of columns, named after the record with an s


def _to_columns(entries: tuple[typing.Any, ...], kind: typing.Any) -> typing.Any:
    packed = getattr(wire, kind.__name__ + "sT")()
    hints = _hints(kind)
    for field in dataclasses.fields(kind):
        values = [getattr(entry, field.name) for entry in entries]
        if hints[field.name] is int:
            setattr(packed, _camel(field.name), np.asarray(values, np.uint32))
            continue
        setattr(packed, _camel(field.name), np.frombuffer(b"".join(values), np.uint8))
        if hints[field.name] not in _LENGTHS:
            lengths = np.fromiter(map(len, values), np.uint32, len(values))
            setattr(packed, _camel(field.name + "_lengths"), lengths)
    return packed


def _from_columns(packed: typing.Any, kind: typing.Any) -> tuple[typing.Any, ...]:
    if packed is None:
        raise ValueError(f"the {kind.__name__}s are missing")
    hints = _hints(kind)
    columns: list[typing.Any] = []
    for field in dataclasses.fields(kind):
        value = getattr(packed, _camel(field.name))
        if hints[field.name] is int:
            columns.append(_ints_from_wire(value))
            continue
        data = _bytes_from_wire(None)(value)
        size = _LENGTHS.get(hints[field.name])
        if size is None:
            columns.append(_cut(data, _ints_from_wire(getattr(packed, _camel(field.name + "_lengths")))))
        else:
            columns.append([data[at : at + size] for at in range(0, len(data), size)])
            if len(data) % size:
                raise ValueError(f"{len(data)} bytes are no column of {size} each")
    return tuple(kind(*row) for row in zip(*columns, strict=True))


def _cut(data: bytes, lengths: tuple[int, ...]) -> list[bytes]:
    if sum(lengths) != len(data):
        raise ValueError("the lengths of a column do not add up")
    ends = list(itertools.accumulate(lengths))
    return [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]


@functools.cache
def _hints(kind: typing.Any) -> dict[str, typing.Any]:
    return typing.get_type_hints(kind, vars(messages))
