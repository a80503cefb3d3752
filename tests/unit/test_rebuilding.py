"""Secrets out of shares of which many are bad: what helps is tried, what does not is given up, and liars are named."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
import pytest

from coordinator.secagg import rebuilding, unmasking
from coordinator.secagg.rebuilding import NotRebuilt, Owner, rebuild_all
from coordinator.secagg.unmasking import Dropped, Masking, unmask
from coordinator.secagg.work import HERE, Here
from coordinator.service.workers import ProcessWorkers
from edge_sdk.errors import LocalProtocolError
from edge_sdk.secagg import client, modular, shamir
from edge_sdk.secagg.keys import KeyPair
from edge_sdk.secagg.suite import Stream, derive, digest

CTX = digest(b"ctx")
SIZE, THRESHOLD = 30, 20


def secret(index: int) -> bytes:
    return derive(CTX, f"secret {index}")


def owner(index: int, *, liars: Iterable[int] = (), holders: int = SIZE, alive: bool = True) -> Owner:
    """An owner whose shares all others hold; those of `liars` are garbage."""
    points = [x for x in range(1, SIZE + 1) if x != index + 1]
    (shares,) = shamir.split([secret(index)], THRESHOLD, points, Stream(derive(CTX, f"polynomial {index}")))
    given = dict(islice(shares.items(), holders))
    for liar in liars:
        if liar + 1 in given:
            given[liar + 1] = derive(CTX, f"lie {index} {liar}")
    check = client.commitment(CTX, index, secret(index)) if alive else KeyPair.from_private(secret(index)).public
    return Owner(index, alive, check, given)


def test_all_secrets_come_back_and_nobody_is_accused() -> None:
    found = rebuild_all([owner(index, alive=index % 3 > 0) for index in range(SIZE)], THRESHOLD, CTX, HERE)
    assert found.by_owner == {index: secret(index) for index in range(SIZE)}
    assert found.liars == frozenset()


def test_a_holder_caught_once_is_left_out_everywhere() -> None:
    """Nine shares to spare locate four errors. With eight liars a secret falls only once others have named some."""
    liars = set(range(8))
    few = {index: set(islice(liars, index % 4, index % 4 + 4)) for index in range(8, 20)}
    owners = [owner(index, liars=few[index]) for index in few] + [owner(index, liars=liars) for index in range(20, 30)]
    found = rebuild_all(owners, THRESHOLD, CTX, HERE)
    assert found.by_owner.keys() == {*range(8, 30)}
    assert found.liars == liars


def test_holders_framed_by_one_owner_still_count_for_the_others() -> None:
    """Owner 0 dealt wrong shares to four honest holders, and others have no share to lose."""
    framed = owner(0, liars={10, 11, 12, 13})
    tight = [owner(index, liars={1}, holders=THRESHOLD + 2) for index in range(20, 25)]
    found = rebuild_all([framed, *tight], THRESHOLD, CTX, HERE)
    assert found.by_owner.keys() == {0, *range(20, 25)}
    assert found.liars == {1, 10, 11, 12, 13}


def test_one_bad_share_among_one_too_many_is_found_by_trying() -> None:
    owners = [owner(index, liars={2}, holders=THRESHOLD + 1) for index in range(20, 30)]
    found = rebuild_all(owners, THRESHOLD, CTX, HERE)
    assert found.by_owner.keys() == {*range(20, 30)}
    assert found.liars == {2}


def test_work_is_bounded_whatever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = 0
    combine = shamir.combine

    def counted(*arguments: object) -> bytes:
        nonlocal tried
        tried += 1
        return combine(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shamir, "combine", counted)
    monkeypatch.setattr(rebuilding, "SWEEPS", 50)
    hopeless = [owner(index, liars=set(range(0, SIZE, 2))) for index in range(SIZE)]
    with pytest.raises(NotRebuilt) as refused:
        rebuild_all(hopeless, THRESHOLD, CTX, HERE)
    assert refused.value.owners == frozenset(range(SIZE))
    assert tried <= 50 + 4 * SIZE


def test_too_few_shares_name_their_owner() -> None:
    owners = [owner(0), owner(1, holders=THRESHOLD - 1), owner(2)]
    with pytest.raises(NotRebuilt, match="not enough good shares of the secrets of 1 devices: 1") as refused:
        rebuild_all(owners, THRESHOLD, CTX, HERE)
    assert refused.value.owners == {1}
    assert refused.value.hint


def test_secrets_do_not_show_when_printed() -> None:
    found = rebuild_all([owner(0)], THRESHOLD, CTX, HERE)
    assert repr(secret(0)) not in repr(found) + repr(owner(0))
    assert repr(secret(0)) not in repr(Dropped(0, secret(0), ()))


# ---- masks, dealt out


def masked_sum(length: int, bits: int) -> tuple[modular.Words, Masking, dict[int, bytes], list[Dropped]]:
    """Zeros under the masks of ten devices, of which two dropped out; all are neighbours."""
    masking = Masking(bits, CTX, digest(b"root"), digest(b"U2"))
    pairs = [client.round_keys(derive(CTX, f"keys {u}")) for u in range(10)]
    peers = [client.Peer(u, pair.channel.public, pair.mask.public) for u, pair in enumerate(pairs)]
    total = np.zeros(length, modular.work_dtype(bits))
    for u in range(8):
        others = [peer for peer in peers if peer.index != u]
        total += client.mask(
            np.zeros(length, np.int64), bits, secret(u), pairs[u], CTX, masking.root, masking.sharers_digest, u, others
        )
    live = tuple((u, peers[u].mask_public) for u in range(8))
    return total, masking, {u: secret(u) for u in range(8)}, [Dropped(u, pairs[u].mask.private, live) for u in (8, 9)]


@pytest.mark.parametrize("bits", [16, 20])
def test_masks_come_off_batch_by_batch_in_other_processes(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    length = 3_001
    monkeypatch.setattr(unmasking, "_WORDS_IN_A_BATCH", 3 * length)
    arguments = masked_sum(length, bits)
    assert arguments[0].any()
    with ProcessWorkers(2) as workers:
        assert not unmask(*arguments, workers).any()
    assert not unmask(*arguments, Here()).any()
    assert arguments[0].any(), "the sum that was given is left alone"


def test_nobody_is_both_alive_and_gone() -> None:
    total, masking, seeds, dropped = masked_sum(8, 16)
    with pytest.raises(LocalProtocolError, match=r"devices \[8\]"):
        unmask(total, masking, {**seeds, 8: secret(8)}, dropped)
