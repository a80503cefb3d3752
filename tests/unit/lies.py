"""What a lying coordinator says to one device, `ME`, of a cohort of eight, and what the device complains of.

Told to pure sessions in tests/unit, and to devices in processes of their own, in Python and in Kotlin, in
tests/integration. Each is told in place of the stage's honest message, which the device would have answered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from coordinator.registrar.authority import create_authority, issue_identity
from coordinator.rounds.states import Entry
from edge_sdk.protocol.messages import Bitmap, Digest, Message, PublicKey, Roster, ShareDelivery, Survivors, bitmap
from edge_sdk.secagg import client
from tests.simulation import world
from tests.simulation.world import authority, device_name, identity
from tests.unit.cohort import Round, signed_entry

SIZE = 8
ME = device_name(0)


@dataclass(frozen=True)
class Lie:
    """One message in place of an honest one.

    Attributes:
        name: what it is, for whoever reads a test's result.
        tell: makes the message, from the round as it is before it.
        complaint: a part of what the device says of it.
    """

    name: str
    tell: Callable[[Round], Message]
    complaint: str


def all_but(*missing: int) -> Bitmap:
    return bitmap(set(range(SIZE)) - set(missing), SIZE)


# ---- stage 2


def _roster(name: str, complaint: str, change: Callable[[Roster], Roster]) -> Lie:
    return Lie(name, lambda held: change(held.roster(ME)), complaint)


def _neighbour(name: str, complaint: str, **changes: Any) -> Lie:
    def change(roster: Roster) -> Roster:
        others = list(roster.neighbours)
        others[2] = replace(others[2], **{k: v(roster) if callable(v) else v for k, v in changes.items()})
        return replace(roster, neighbours=tuple(others))

    return _roster(name, complaint, change)


_PLACE, _GRAPH, _MEMBER = "not at its index", "not those of the graph", "is not in the roster"
_WEAK = "do not protect"

ROSTERS = (
    _roster("another root", _PLACE, lambda r: replace(r, root=Digest(bytes(32)))),
    _roster("another index", _PLACE, lambda r: replace(r, index=1)),
    _roster("an index beyond the roster", "roster of 8", lambda r: replace(r, index=SIZE)),
    _roster("an index beyond all", "roster of 8", lambda r: replace(r, index=2**32 - 1)),
    _roster("no proof", _PLACE, lambda r: replace(r, proof=b"")),
    _roster("a proof cut short", _PLACE, lambda r: replace(r, proof=r.proof[:-1])),
    _roster("a proof too long", _PLACE, lambda r: replace(r, proof=r.proof + bytes(32))),
    _roster("one more in it", _WEAK, lambda r: replace(r, size=SIZE + 1)),
    _roster("fewer than reports", "roster of 3 for 4 reports", lambda r: replace(r, size=3)),
    _roster("more than the goal", "roster of 101", lambda r: replace(r, size=101)),
    _roster("more than any", "roster of 4294967295", lambda r: replace(r, size=2**32 - 1)),
    _roster("a low threshold", _WEAK, lambda r: replace(r, threshold=3)),
    _roster("no threshold", _WEAK, lambda r: replace(r, threshold=0)),
    _roster("a threshold of all", _WEAK, lambda r: replace(r, threshold=8)),
    _roster("another degree", _GRAPH, lambda r: replace(r, degree=6)),
    _roster("a small degree", _WEAK, lambda r: replace(r, degree=4, threshold=2)),
    _roster("no degree", _WEAK, lambda r: replace(r, degree=0, threshold=0)),
    _roster("no neighbours", _GRAPH, lambda r: replace(r, neighbours=())),
    _roster("a neighbour left out", _GRAPH, lambda r: replace(r, neighbours=r.neighbours[1:])),
    _roster("neighbours in another order", _GRAPH, lambda r: replace(r, neighbours=r.neighbours[::-1])),
    _roster("a neighbour twice", _GRAPH, lambda r: replace(r, neighbours=(*r.neighbours, r.neighbours[-1]))),
    _neighbour("a neighbour of another index", _GRAPH, index=0),
    _neighbour("a neighbour with another's proof", _MEMBER, proof=lambda r: r.neighbours[3].proof),
    _neighbour("a neighbour without proof", _MEMBER, proof=b""),
    _neighbour("a neighbour's certificate is another", _MEMBER, certificate=b"x"),
    _neighbour("a neighbour's channel key is another", _MEMBER, channel_public=PublicKey(bytes(32))),
    _neighbour("neighbours' mask keys swapped", _MEMBER, mask_public=lambda r: r.neighbours[1].mask_public),
)


# ---- stage 2, where the tree is right and an entry in it is not


def _forged(name: str, complaint: str, make: Callable[[Round], Entry], index: int = 3) -> Lie:
    return Lie(name, lambda held: held.forged_roster(ME, lambda all_: all_.__setitem__(index, make(held))), complaint)


def _invented(held: Round) -> Entry:
    other = create_authority("Other", now=world.START)
    who = issue_identity(other, identity_id="device-003", role="device", now=world.START)
    return _entry(held, "device-003", who.certificate_der, who.sign)


def _of_another_role(held: Round) -> Entry:
    boss = identity("coordinator", "coordinator")
    return _entry(held, "device-003", boss.certificate_der, boss.sign)


def _expired(held: Round) -> Entry:
    before = world.START - 10 * 86_400
    who = issue_identity(authority(), identity_id="device-003", role="device", now=before, lifetime_days=1)
    return _entry(held, "device-003", who.certificate_der, who.sign)


def _entry(held: Round, name: str, certificate: bytes, sign: Callable[[bytes], bytes]) -> Entry:
    return signed_entry(name, certificate, client.round_keys(bytes(32)), held.config.context, sign)


def _low_order(which: str) -> Callable[[Round], Entry]:
    """Keys that give everybody the same secret."""

    def make(held: Round) -> Entry:
        keys = client.round_keys(bytes(32))
        object.__setattr__(getattr(keys, which), "public", bytes(32))
        return held.entry("device-003", keys=keys)

    return make


def _swap(entries: list[Entry]) -> None:
    entries[3], entries[4] = entries[4], entries[3]


FORGED_ROSTERS = (
    _forged("an invented device of another registrar", "not by the registrar", _invented),
    _forged("a neighbour that is no device", "role coordinator", _of_another_role),
    _forged("a neighbour whose certificate expired", "expired", _expired),
    _forged(
        "a neighbour whose certificate is garbage",
        "over the limit",
        lambda held: _entry(held, "x", bytes(3_000), lambda data: bytes(64)),
    ),
    _forged(
        "keys that their owner did not sign",
        "signature",
        lambda held: replace(held.entry("device-003"), message=held.entry("device-004").message),
    ),
    _forged(
        "keys signed for another plan or model", "signature", lambda held: held.entry("device-003", context=bytes(32))
    ),
    _forged("a device twice", "order of the devices", lambda held: held.entry("device-005")),
    _forged("another device twice", "order of the devices", lambda held: held.entry("device-005"), 7),
    _forged("this device as its own neighbour", "order of the devices", lambda held: held.entry(ME)),
    _forged("this device left out", _PLACE, lambda held: held.entry("device-050"), 0),
    _forged("other keys under this device's name", _PLACE, lambda held: held.entry(ME), 0),
    _forged("a channel key of low order", "low order", _low_order("channel")),
    _forged("a mask key of low order", "low order", _low_order("mask")),
    Lie(
        "an order of the coordinator's choice",
        lambda held: held.forged_roster(ME, _swap),
        "order of the devices",
    ),
)


# ---- stage 4, down


def _delivery(name: str, complaint: str, change: Callable[[ShareDelivery], ShareDelivery]) -> Lie:
    return Lie(name, lambda held: change(held.delivery(ME)), complaint)


_SHARERS, _BOXES = "set of those who shared", "not those of the neighbours"

DELIVERIES = (
    _delivery("this device did not share", _SHARERS, lambda d: replace(d, sharers=all_but(0))),
    _delivery("fewer sharers than reports", _SHARERS, lambda d: replace(d, sharers=bitmap({0, 1, 2}, SIZE))),
    _delivery("no sharers", _SHARERS, lambda d: replace(d, sharers=Bitmap(b""))),
    _delivery("sharers beyond the roster", _SHARERS, lambda d: replace(d, sharers=Bitmap(d.sharers + b"\0"))),
    _delivery(
        "too few neighbours shared", "only 4 neighbours", lambda d: replace(d, sharers=bitmap({0, 1, 2, 3, 4}, SIZE))
    ),
    _delivery("a box of one who did not share", _BOXES, lambda d: replace(d, sharers=all_but(5))),
    _delivery("a sender left out", _BOXES, lambda d: replace(d, indices=d.indices[:-1])),
    _delivery("senders in another order", _BOXES, lambda d: replace(d, indices=d.indices[::-1])),
    _delivery("this device as a sender", _BOXES, lambda d: replace(d, indices=(0, *d.indices[1:]))),
    _delivery("a box cut short", _BOXES, lambda d: replace(d, boxes=d.boxes[:-1])),
    _delivery("no boxes", _BOXES, lambda d: replace(d, boxes=b"")),
    _delivery("boxes under others' names", "only 0 boxes", lambda d: replace(d, boxes=d.boxes[80:] + d.boxes[:80])),
    _delivery("boxes of zeros", "only 0 boxes", lambda d: replace(d, boxes=bytes(len(d.boxes)))),
    _delivery(
        "two boxes swapped",
        "only 5 boxes",
        lambda d: replace(d, boxes=d.boxes[80:160] + d.boxes[:80] + d.boxes[160:]),
    ),
    Lie(
        "boxes for another device",
        lambda held: replace(held.delivery(ME), boxes=held.delivery(device_name(1)).boxes),
        "only 0 boxes",
    ),
)


# ---- stage 5


def _survivors(name: str, complaint: str, change: Callable[[Survivors], Survivors]) -> Lie:
    return Lie(name, lambda held: change(held.survivors), complaint)


_OTHERS, _STRANGERS = "not the roster and the sharers", "not among those who shared"

SURVIVORS = (
    _survivors("this device is gone", _STRANGERS, lambda s: replace(s, survivors=all_but(0))),
    _survivors(
        "fewer survivors than reports",
        "3 survivors; the plan promised 4",
        lambda s: replace(s, survivors=bitmap({0, 1, 2}, SIZE)),
    ),
    _survivors("this device alone", "1 survivors", lambda s: replace(s, survivors=bitmap({0}, SIZE))),
    _survivors(
        "too few neighbours survive", "only 5 neighbours survive", lambda s: replace(s, survivors=all_but(1, 2))
    ),
    _survivors("other sharers than were masked for", _OTHERS, lambda s: replace(s, sharers=all_but(7))),
    _survivors(
        "one device neither shared nor survived",
        _OTHERS,
        lambda s: replace(s, sharers=all_but(7), survivors=all_but(7)),
    ),
    _survivors("another roster", _OTHERS, lambda s: replace(s, root=Digest(bytes(32)))),
    _survivors("no survivors", _STRANGERS, lambda s: replace(s, survivors=Bitmap(b""))),
    _survivors("survivors beyond the roster", _STRANGERS, lambda s: replace(s, survivors=Bitmap(s.survivors + b"\1"))),
)
