"""The golden files of frames: fixed messages under a fixed key, and frames that a reader must refuse.

`python -m tests.vectors.test_messages_vectors` writes them anew. A writer in another language may lay out a FlatBuffers
body in another way; what it must match is reading.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge_sdk import errors
from edge_sdk.protocol import codec
from edge_sdk.protocol._generated import messages_generated as wire
from edge_sdk.protocol.messages import CheckIn, Decline, DeclineReason, Plan, Receipt, Rejection, Roster
from edge_sdk.signing import public_key_from_pem, sign_raw, verify_raw
from tests.unit.wire_messages import KINDS, from_json, largest, sample, smallest, to_json

FILE = Path(__file__).parent / "messages.json"
Inputs = dict[str, Any]

PRIVATE = 0x1F2E3D4C5B6A79880796A5B4C3D2E1F00F1E2D3C4B5A69788796A5B4C3D2E1F1
DEVICE = "device-1"

tables: Any = wire  # generated, without types


# ---- the operations


def _write(i: Inputs) -> str:
    kind = next(kind for kind in KINDS if kind.__name__ == i["kind"])
    message = from_json(kind, i["message"])
    certificate = bytes.fromhex(i["certificate"])
    return codec.write_frame(message, i["device_id"], _signer(int(i["private"], 16)), certificate=certificate).hex()


def _read(i: Inputs) -> Inputs:
    frame = codec.read_frame(bytes.fromhex(i["frame"]), large=i.get("large", False))
    key = public_key_from_pem(i["public"].encode())
    if not verify_raw(key, frame.signature, frame.signed_for(i["device_id"])):
        raise errors.RemoteProtocolError("the signature is not the sender's")
    parse = codec.parse_for_device if i["reader"] == "device" else codec.parse_for_coordinator
    message = parse(frame)
    return {
        "kind": type(message).__name__,
        "certificate": frame.certificate.hex(),
        "message": to_json(message),
    }


OPERATIONS: dict[str, Callable[[Inputs], Any]] = {"write": _write, "read": _read}


# ---- the script


def _signer(private: int) -> codec.Sign:
    key = ec.derive_private_key(private, ec.SECP256R1())
    return lambda data: sign_raw(key, data)


def _public(private: int) -> str:
    key = ec.derive_private_key(private, ec.SECP256R1()).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


def _cases() -> Iterator[tuple[str, Inputs]]:
    for kind in KINDS:
        reader = "device" if kind in codec._TO_DEVICE else "coordinator"
        certificate = "0102030405" if kind.__name__ in ("Announcement", "CheckIn") else ""
        device_id = codec.BROADCAST if kind.__name__ == "Announcement" else DEVICE
        for message in (sample(kind), smallest(kind), largest(kind)):
            inputs = {
                "kind": kind.__name__,
                "device_id": device_id,
                "private": f"{PRIVATE:064x}",
                "certificate": certificate,
                "message": to_json(message),
            }
            yield "write", inputs
            yield "read", _reading(bytes.fromhex(_write(inputs)), reader, device_id)
    yield from _refusals()


def _reading(frame: bytes, reader: str = "device", device_id: str = DEVICE) -> Inputs:
    return {"frame": frame.hex(), "device_id": device_id, "reader": reader, "public": _public(PRIVATE)}


def _refusals() -> Iterator[tuple[str, Inputs]]:
    good = codec.write_frame(sample(Receipt), DEVICE, _signer(PRIVATE))

    def edited(offset: int, value: bytes) -> bytes:
        return good[:offset] + value + good[offset + len(value) :]

    yield "read", _reading(b"")
    yield "read", _reading(good[:75])
    yield "read", _reading(edited(0, b"FE"))
    yield "read", _reading(edited(2, b"\2"))
    yield "read", _reading(edited(3, b"\0"))
    yield "read", _reading(edited(3, b"\x7f"))
    yield "read", _reading(edited(6, b"\1"))
    yield "read", _reading(edited(4, b"\1\x10"))
    yield "read", _reading(edited(8, struct.pack("<I", 1 << 31)))
    yield "read", _reading(good + b"\0")
    yield "read", _reading(good[:-1])
    yield "read", _reading(edited(len(good) - 1, bytes([good[-1] ^ 1])))
    yield "read", _reading(edited(len(good) - 64, bytes(64)))
    yield "read", _reading(edited(40, bytes([good[40] ^ 1])))
    yield "read", _reading(good, device_id="device-2")
    yield "read", _reading(good) | {"public": _public(PRIVATE + 1)}
    yield "read", _reading(good, reader="coordinator")
    yield "read", _reading(codec.write_frame(sample(CheckIn), DEVICE, _signer(PRIVATE)))
    for kind, body in _malformed_bodies():
        number = next(number for number, known in codec.KINDS.items() if known is kind)
        signed = struct.pack("<2sBBHHI", b"EF", 1, number, 0, 0, len(body)) + body
        signature = _signer(PRIVATE)(b"edge-sdk/frame/1\0" + DEVICE.encode() + b"\0" + signed)
        reader = "device" if kind in codec._TO_DEVICE else "coordinator"
        yield "read", _reading(signed + signature, reader)


def _malformed_bodies() -> Iterator[tuple[Any, bytes]]:
    """Bodies that an authentic but faulty peer might send."""
    receipt = codec.encode(sample(Receipt))
    yield Receipt, b""
    yield Receipt, receipt[: len(receipt) // 2]
    yield Receipt, struct.pack("<I", 1 << 30) + receipt[4:]
    octets = np.arange(40, dtype=np.uint8)
    short = {"rid": octets[:15], "sha256": octets[:32], "status": 1}
    yield Receipt, _packed(tables.ReceiptT(**short))
    yield Receipt, _packed(tables.ReceiptT(**short | {"rid": octets[:16], "sha256": octets[:33]}))
    yield Receipt, _packed(tables.ReceiptT(**short | {"rid": octets[:16], "status": 99}))
    yield Receipt, _packed(tables.ReceiptT(rid=octets[:16], status=1))
    beyond = len(DeclineReason) + 1
    yield Decline, _packed(tables.DeclineT(rid=octets[:16], reason=beyond, detail=""))
    yield Rejection, _packed(tables.RejectionT(task="t", reason=1, retryAfterS=float("nan"), retrySpreadS=0.0))
    yield Rejection, codec.encode(sample(Rejection)).replace("é".encode(), b"\xff\xfe")
    plan = tables.PlanT.InitFromPackedBuf(codec.encode(sample(Plan)))
    plan.bundle = None
    yield Plan, _packed(plan)
    for column, length in (("channelPublic", 31), ("signature", 0), ("certificateLengths", 2)):
        roster = tables.RosterT.InitFromPackedBuf(codec.encode(sample(Roster)))
        setattr(roster.neighbours, column, getattr(roster.neighbours, column)[:length])
        yield Roster, _packed(roster)
    roster = tables.RosterT.InitFromPackedBuf(codec.encode(sample(Roster)))
    roster.neighbours.proofLengths = roster.neighbours.proofLengths + np.uint32(1)
    yield Roster, _packed(roster)


def _packed(table: Any) -> bytes:
    builder = flatbuffers.Builder(64)
    builder.Finish(table.Pack(builder))
    return bytes(builder.Output())


# ---- as for the other golden files


def perform(op: str, inputs: Inputs) -> Inputs:
    """What an operation gives: {"out": value} or {"error": the error's class}."""
    try:
        return {"out": json.loads(json.dumps(OPERATIONS[op](inputs)))}
    except errors.EdgeError as error:
        return {"error": type(error).__name__}


def compute() -> Inputs:
    """The whole content of the golden file."""
    about = (
        "Frames. Bytes are hexadecimal, enums numbers, keys P-256 (the signature of a written frame is RFC 6979's); "
        "a case with 'error' must fail so."
    )
    return {"about": about, "cases": [{"op": op, "in": inputs} | perform(op, inputs) for op, inputs in _cases()]}


def test_operations_give_what_the_file_says() -> None:
    cases = json.loads(FILE.read_text())["cases"]
    for case in cases:
        expected = {key: case[key] for key in ("out", "error") if key in case}
        assert perform(case["op"], case["in"]) == expected, case
    assert sum("error" in case for case in cases) >= 30
    assert {case["error"] for case in cases if "error" in case} == {"RemoteProtocolError"}


def test_the_file_holds_the_whole_script() -> None:
    assert json.loads(FILE.read_text()) == compute()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_frames_that_are_read(kind: type[Any]) -> None:
    cases = json.loads(FILE.read_text())["cases"]
    assert sum(case["op"] == "read" and case.get("out", {}).get("kind") == kind.__name__ for case in cases) == 3


def write() -> None:
    content = compute()
    lines = ",\n".join(json.dumps(case) for case in content["cases"])
    FILE.write_text(f'{{"about": {json.dumps(content["about"])},\n"cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    write()
