"""Frames: what travels, and what a reader refuses before it believes anything."""

from __future__ import annotations

import dataclasses
import itertools
import random
import struct
import tracemalloc
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from edge_sdk.errors import LocalProtocolError, RemoteProtocolError
from edge_sdk.protocol import codec, messages
from edge_sdk.protocol.limits import CONTROL_FRAME_MAX_BYTES, LARGE_FRAME_MAX_BYTES
from edge_sdk.protocol.messages import CheckIn, MaskedInput, Message, Plan, Pull, Receipt, Roster, UnmaskingShares
from edge_sdk.signing import sign_raw, verify_raw
from tests.unit.wire_messages import KINDS, largest, sample, schema, smallest

KEY = ec.derive_private_key(7, ec.SECP256R1())


def sign(data: bytes) -> bytes:
    return sign_raw(KEY, data)


def verified(frame: codec.Frame, device_id: str = "device-1") -> bool:
    return verify_raw(KEY.public_key(), frame.signature, frame.signed_for(device_id))


FRAME = codec.write_frame(sample(Receipt), "device-1", sign)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [sample, smallest, largest])
def test_every_message_comes_back_as_it_went(kind: type[Message], make: Any) -> None:
    message = make(kind)
    data = codec.write_frame(message, "device-1", sign, certificate=b"certificate")
    frame = codec.read_frame(data)
    assert verified(frame)
    assert frame.certificate == b"certificate"
    assert codec.decode(frame.kind, frame.body) == message
    assert codec.write_frame(message, "device-1", sign, certificate=b"certificate") == data


def test_kind_numbers_are_those_of_the_wire_for_ever() -> None:
    assert [(number, kind.__name__) for number, kind in codec.KINDS.items()] == [
        (1, "Announcement"),
        (2, "Rejection"),
        (3, "Plan"),
        (4, "Roster"),
        (5, "ShareDelivery"),
        (6, "Survivors"),
        (7, "Receipt"),
        (8, "Outcome"),
        (9, "Large"),
        (10, "Quorum"),
        (32, "CheckIn"),
        (33, "AdvertiseKeys"),
        (34, "ShareKeys"),
        (35, "MaskedInput"),
        (36, "UnmaskingShares"),
        (37, "Decline"),
        (38, "Endorsement"),
        (64, "Pull"),
    ]


@pytest.mark.parametrize("kind", [*KINDS, messages.BlobRef])
def test_schema_and_dataclass_have_the_same_fields_in_the_same_order(kind: type[Message]) -> None:
    assert list(schema()[kind.__name__]) == [field.name for field in dataclasses.fields(kind)]


def test_a_message_travels_one_way_only() -> None:
    for kind in KINDS:
        frame = codec.read_frame(codec.write_frame(smallest(kind), "device-1", sign))
        if kind is not Pull:
            parse = codec.parse_for_device if kind in codec._TO_COORDINATOR else codec.parse_for_coordinator
            with pytest.raises(RemoteProtocolError, match="does not travel this way"):
                parse(frame)
    assert codec.parse_for_device(codec.read_frame(FRAME)) == sample(Receipt)
    check_in = codec.read_frame(codec.write_frame(sample(CheckIn), "device-1", sign))
    assert codec.parse_for_coordinator(check_in) == sample(CheckIn)


# ---- what is cut off before anything is believed


def edited(offset: int, value: bytes) -> bytes:
    return FRAME[:offset] + value + FRAME[offset + len(value) :]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "too few"),
        (FRAME[:75], "too few"),
        (edited(0, b"XX"), "magic"),
        (edited(2, b"\x00"), "version 0"),
        (edited(2, b"\x02"), "version 2"),
        (edited(3, b"\x00"), "unknown message kind"),
        (edited(3, b"\x0b"), "unknown message kind"),
        (edited(3, b"\xff"), "unknown message kind"),
        (edited(6, b"\x01\x00"), "reserved"),
        (edited(4, b"\x01\x10"), "certificate of 4097"),
        (edited(4, b"\x01\x00"), "add up"),
        (edited(8, struct.pack("<I", 2**32 - 1)), "add up"),
        (edited(8, b"\x00\x00\x00\x00"), "add up"),
        (FRAME + b"\x00", "add up"),
        (FRAME[:-1], "add up"),
        (bytes(CONTROL_FRAME_MAX_BYTES + 1), "over the limit"),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        codec.read_frame(data)


def test_a_frame_of_another_version_says_what_to_do() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        codec.read_frame(edited(2, b"\x02"))
    assert "update" in caught.value.hint


def test_larger_frames_are_read_only_where_they_were_pulled() -> None:
    message = dataclasses.replace(sample(MaskedInput), inline=bytes(CONTROL_FRAME_MAX_BYTES))
    data = codec.write_frame(message, "device-1", sign)
    with pytest.raises(RemoteProtocolError, match="over the limit"):
        codec.read_frame(data)
    assert codec.decode(MaskedInput, codec.read_frame(data, large=True).body) == message


def test_nobody_writes_what_nobody_reads() -> None:
    message = dataclasses.replace(sample(MaskedInput), inline=bytes(LARGE_FRAME_MAX_BYTES))
    with pytest.raises(LocalProtocolError, match="larger than any reader takes"):
        codec.write_frame(message, "device-1", sign)
    with pytest.raises(RemoteProtocolError, match="over the limit"):
        codec.read_frame(bytes(LARGE_FRAME_MAX_BYTES + 1), large=True)


# ---- whose it is


def test_every_bit_counts_for_the_signature() -> None:
    for position in range(len(FRAME)):
        changed = bytearray(FRAME)
        changed[position] ^= 1 << (position % 8)
        try:
            frame = codec.read_frame(bytes(changed))
        except RemoteProtocolError:
            continue
        assert not verified(frame)


def test_a_frame_for_one_device_is_none_for_another() -> None:
    frame = codec.read_frame(FRAME)
    assert verified(frame)
    for other in ("device-2", "device-", "device-11", codec.BROADCAST, ""):
        assert not verified(frame, other)


def test_the_certificate_is_under_the_signature() -> None:
    data = codec.write_frame(sample(Receipt), "device-1", sign, certificate=b"mine")
    frame = codec.read_frame(data.replace(b"mine", b"thin"))
    assert frame.certificate == b"thin"
    assert not verified(frame)


# ---- bodies that are no such message


def test_mutated_bodies_are_other_messages_or_refused() -> None:
    rng = random.Random(5)
    for kind in KINDS:
        body = codec.encode(sample(kind))
        for _ in range(400):
            changed = bytearray(body)
            for _ in range(rng.choice([1, 1, 2, 8])):
                changed[rng.randrange(len(changed))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            decoded_or_refused(kind, bytes(changed))


def test_truncated_padded_and_random_bodies_are_refused_in_order() -> None:
    rng = random.Random(6)
    for kind in KINDS:
        body = codec.encode(sample(kind))
        for length in range(0, len(body), 1 + len(body) // 100):
            decoded_or_refused(kind, body[:length])
        for _ in range(100):
            decoded_or_refused(kind, rng.randbytes(rng.randrange(200)))


def test_a_body_of_another_kind_is_another_message_or_refused() -> None:
    for kind, other in itertools.permutations(KINDS, 2):
        decoded_or_refused(kind, codec.encode(sample(other)))


def test_huge_lengths_in_small_bodies_cost_nothing() -> None:
    tracemalloc.start()
    for kind in (Roster, UnmaskingShares, Pull, Plan, MaskedInput):
        body = codec.encode(sample(kind, entries=3))
        for at in range(0, len(body) - 4, 4):
            for value in (0xFFFFFFFF, 0x7FFFFFFF, 0x10000000, len(body) // 2):
                decoded_or_refused(kind, body[:at] + struct.pack("<I", value) + body[at + 4 :])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_columns_that_share_their_bytes_stay_small() -> None:
    """FlatBuffers lets offsets point anywhere: every column of a roster may be the whole body."""
    body = codec.encode(sample(Roster, entries=30))
    tracemalloc.start()
    for at in range(0, 400, 4):
        (offset,) = struct.unpack_from("<I", body, at)
        if 0 < offset < len(body):
            for target in (4, 8, 64):
                moved = struct.pack("<I", max(4, offset - target))
                decoded_or_refused(Roster, body[:at] + moved + body[at + 4 :])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * len(body) + (4 << 20)


def decoded_or_refused(kind: type[Message], body: bytes) -> None:
    try:
        message = codec.decode(kind, body)
    except RemoteProtocolError:
        return
    assert type(message) is kind
    assert codec.decode(kind, codec.encode(message)) == message
