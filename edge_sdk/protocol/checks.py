"""What a device checks of the coordinator's messages before it acts on them. Each failure is a named reason to leave.

Stage by stage as in PROTOCOL.md 9.3. Pure: signatures are verified by the caller's `verify_peer`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from edge_sdk.errors import IdentityError, RemoteProtocolError
from edge_sdk.protocol.limits import NEIGHBOURS_MAX
from edge_sdk.protocol.messages import (
    AdvertiseKeys,
    Bitmap,
    Consistency,
    DeclineReason,
    Digest,
    Neighbour,
    Plan,
    Quorum,
    Roster,
    ShareDelivery,
    Survivors,
    members,
)
from edge_sdk.secagg import client, graph, merkle, quorum, suite
from edge_sdk.secagg.client import BOX_BYTES

SIGNATURE_BYTES = 64

VerifyPeer = Callable[[bytes, bytes, bytes], str]
"""(certificate DER, message, signature) -> the device id that the registrar vouches for; raises IdentityError."""


class Unsound(Exception):
    """A message that this device does not go on with; never crosses the session's `step`."""

    def __init__(self, reason: DeclineReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def graph_seed(context: bytes, root: bytes) -> bytes:
    """What draws the neighbours."""
    return suite.digest(b"graph", context, root)


def committee_of(context: bytes, root: bytes, size: int, committee: int) -> frozenset[int]:
    """Who may endorse the survivors, by index."""
    return quorum.members(size, committee, suite.digest(b"committee", context, root))


def sharers_digest(sharers: Bitmap) -> Digest:
    """H(U2), which enters every pairwise mask."""
    return Digest(suite.digest(b"edge-sdk/U2\0", sharers))


def survivors_digest(survivors: Survivors) -> Digest:
    """What an endorsement and an answer name, so that they are of this set and no other."""
    return Digest(suite.digest(b"edge-sdk/U3\0", survivors.rid, survivors.root, survivors.sharers, survivors.survivors))


# ---- stage 2


def require_sound_roster(
    plan: Plan,
    context: bytes,
    device_id: str,
    certificate: bytes,
    message: AdvertiseKeys,
    keys: client.RoundKeys,
    roster: Roster,
    verify_peer: VerifyPeer,
) -> None:
    """Check a roster against the plan, this device's own place in it, and all that proves its neighbours.

    Raises:
        Unsound: ROSTER_UNSOUND.
    """
    _require_sound_parameters(plan, roster)
    own_leaf = client.roster_leaf(
        roster.index, certificate, message.channel_public, message.mask_public, message.signature
    )
    if not merkle.verify(roster.root, own_leaf, roster.index, roster.size, _proof(roster.proof)):
        raise Unsound(DeclineReason.ROSTER_UNSOUND, "this device is not at its index in the roster")
    expected = graph.neighbours(roster.size, roster.degree, roster.index, graph_seed(context, roster.root))
    if tuple(n.index for n in roster.neighbours) != expected:
        raise Unsound(DeclineReason.ROSTER_UNSOUND, "the neighbours are not those of the graph")
    standing = [(roster.index, device_id)]
    for neighbour in roster.neighbours:
        if not _is_in_roster(roster, neighbour):
            raise Unsound(DeclineReason.ROSTER_UNSOUND, f"neighbour {neighbour.index} is not in the roster")
        signed = client.advertisement(context, neighbour.channel_public, neighbour.mask_public)
        try:
            standing.append((neighbour.index, verify_peer(neighbour.certificate, signed, neighbour.signature)))
        except IdentityError as error:
            raise Unsound(DeclineReason.ROSTER_UNSOUND, f"neighbour {neighbour.index}: {error}") from error
    if not _in_order(standing):
        raise Unsound(DeclineReason.ROSTER_UNSOUND, "the roster is not in the order of the devices' ids")
    # Agree with every neighbour on both secrets now (they are kept), so that no bad key can stop a later stage.
    for neighbour in roster.neighbours:
        try:
            keys.channel.agree(neighbour.channel_public)
            keys.mask.agree(neighbour.mask_public)
        except RemoteProtocolError as error:
            raise Unsound(DeclineReason.ROSTER_UNSOUND, f"neighbour {neighbour.index}: {error}") from error


def _require_sound_parameters(plan: Plan, roster: Roster) -> None:
    if not plan.min_reports <= roster.size <= plan.goal_count or roster.index >= roster.size:
        raise Unsound(
            DeclineReason.ROSTER_UNSOUND,
            f"a roster of {roster.size} for {plan.min_reports} reports of at most {plan.goal_count} devices",
        )
    if roster.degree > NEIGHBOURS_MAX:
        raise Unsound(DeclineReason.ROSTER_UNSOUND, f"{roster.degree} neighbours are more than a message holds")
    by_quorum = plan.consistency is Consistency.QUORUM
    if not graph.is_sound(roster.size, roster.degree, roster.threshold, plan.corrupt_share, not by_quorum):
        raise Unsound(
            DeclineReason.ROSTER_UNSOUND,
            f"degree {roster.degree} and threshold {roster.threshold} do not protect {roster.size} devices",
        )
    if by_quorum and not quorum.is_sound(roster.size, roster.committee, roster.quorum, plan.corrupt_share):
        raise Unsound(
            DeclineReason.ROSTER_UNSOUND,
            f"two sets can each have {roster.quorum} endorsements of a committee of {roster.committee}",
        )


def _is_in_roster(roster: Roster, other: Neighbour) -> bool:
    leaf = client.roster_leaf(other.index, other.certificate, other.channel_public, other.mask_public, other.signature)
    return merkle.verify(roster.root, leaf, other.index, roster.size, _proof(other.proof))


def _in_order(standing: Iterable[tuple[int, str]]) -> bool:
    """Ids ascend with the index: nobody stands there twice, and the coordinator has no order to choose."""
    names = [name for _, name in sorted(set(standing))]
    return all(before < after for before, after in itertools.pairwise(names))


def _proof(data: bytes) -> tuple[bytes, ...]:
    return tuple(data[i : i + 32] for i in range(0, len(data), 32))


# ---- stage 4, down


def require_sound_delivery(plan: Plan, roster: Roster, delivery: ShareDelivery) -> tuple[int, ...]:
    """Check U2 and that the boxes are those of the neighbours in it; return these.

    Raises:
        Unsound: SURVIVORS_UNSOUND.
    """
    sharers = members(delivery.sharers, roster.size)
    if sharers is None or roster.index not in sharers or len(sharers) < plan.min_reports:
        raise Unsound(DeclineReason.SURVIVORS_UNSOUND, "the set of those who shared is not acceptable")
    senders = tuple(n.index for n in roster.neighbours if n.index in sharers)
    if len(senders) < roster.threshold:
        raise Unsound(DeclineReason.SURVIVORS_UNSOUND, f"only {len(senders)} neighbours shared their keys")
    if delivery.indices != senders or len(delivery.boxes) != BOX_BYTES * len(senders):
        raise Unsound(DeclineReason.SURVIVORS_UNSOUND, "the boxes are not those of the neighbours who shared")
    return senders


# ---- stage 5


def require_sound_survivors(
    plan: Plan, context: bytes, roster: Roster, sharers: Bitmap, survivors: Survivors
) -> frozenset[int]:
    """Check U3 against what this device masked for; return it.

    Raises:
        Unsound: SURVIVORS_UNSOUND.
    """
    u2 = members(survivors.sharers, roster.size)
    u3 = members(survivors.survivors, roster.size)
    if survivors.root != roster.root or survivors.sharers != sharers or u2 is None:
        raise Unsound(DeclineReason.SURVIVORS_UNSOUND, "not the roster and the sharers that were masked for")
    if u3 is None or not u3 <= u2 or roster.index not in u3:
        raise Unsound(DeclineReason.SURVIVORS_UNSOUND, "the survivors are not among those who shared")
    if len(u3) < plan.min_reports:
        raise Unsound(DeclineReason.SURVIVORS_UNSOUND, f"{len(u3)} survivors; the plan promised {plan.min_reports}")
    live = sum(n.index in u3 for n in roster.neighbours)
    if live < roster.threshold:
        raise Unsound(DeclineReason.SURVIVORS_UNSOUND, f"only {live} neighbours survive")
    if plan.consistency is Consistency.QUORUM and not quorum.holds_together(
        roster.size, roster.degree, u3, plan.corrupt_share, graph_seed(context, roster.root)
    ):
        raise Unsound(DeclineReason.SURVIVORS_UNSOUND, "the survivors do not hold the graph together")
    return u3


def require_quorum(
    context: bytes, device_id: str, roster: Roster, survivors: Survivors, message: Quorum, verify_peer: VerifyPeer
) -> None:
    """Check that a quorum of the committee endorsed these survivors, and that all neighbours in U3 masked for this U2.

    Raises:
        Unsound: SURVIVORS_UNSOUND.
    """
    u3 = members(survivors.survivors, roster.size) or frozenset()
    committee = committee_of(context, roster.root, roster.size, roster.committee)
    indices = tuple(member.index for member in message.members)
    if len(set(indices)) < roster.quorum or not committee.issuperset(indices):
        raise Unsound(DeclineReason.SURVIVORS_UNSOUND, f"no quorum of {roster.quorum} of the committee")
    alive = {n.index: n for n in roster.neighbours if n.index in u3}
    lengths = (len(message.endorsements), len(message.statements))
    expected = (SIGNATURE_BYTES * len(indices), SIGNATURE_BYTES * len(alive))
    if message.indices != tuple(alive) or lengths != expected:
        raise Unsound(DeclineReason.SURVIVORS_UNSOUND, "endorsements or statements are missing")
    standing = [(roster.index, device_id)]
    endorsed = client.endorsement(context, survivors_digest(survivors))
    masked_for = sharers_digest(survivors.sharers)
    try:
        for position, member in enumerate(message.members):
            if not _is_in_roster(roster, member):
                raise Unsound(DeclineReason.SURVIVORS_UNSOUND, f"member {member.index} is not in the roster")
            signature = _signature(message.endorsements, position)
            standing.append((member.index, verify_peer(member.certificate, endorsed, signature)))
        for position, (index, neighbour) in enumerate(alive.items()):
            stated = client.statement(context, roster.root, index, masked_for)
            signature = _signature(message.statements, position)
            standing.append((index, verify_peer(neighbour.certificate, stated, signature)))
    except IdentityError as error:
        raise Unsound(DeclineReason.SURVIVORS_UNSOUND, f"an endorsement or a statement is not good: {error}") from error
    if not _in_order(standing):
        raise Unsound(DeclineReason.SURVIVORS_UNSOUND, "a device stands twice on the committee")


def _signature(column: bytes, position: int) -> bytes:
    return column[SIGNATURE_BYTES * position : SIGNATURE_BYTES * (position + 1)]
