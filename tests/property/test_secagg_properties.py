"""What holds for every cohort, dropout pattern, vector and set of bad shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.secagg.rebuilding import Owner, rebuild_all
from coordinator.secagg.unmasking import Dropped, Masking, unmask
from coordinator.secagg.work import HERE
from edge_sdk.errors import RemoteProtocolError
from edge_sdk.secagg import client, graph, merkle, modular, shamir
from edge_sdk.secagg.keys import KeyPair
from edge_sdk.secagg.suite import Stream, derive, digest

BITS = st.integers(modular.MINIMUM_BITS, modular.MAXIMUM_BITS)
SEEDS = st.binary(min_size=32, max_size=32)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[int, int, int, list[int]]:
    """Size, degree, threshold, and for each device when it is lost: 0 never, 1 before masking, 2 after."""
    size = draw(st.integers(3, 14))
    ring_degrees = st.integers(1, (size - 2) // 2).map(lambda half: 2 * half)
    degree = draw(st.just(size - 1) if size < 4 else st.just(size - 1) | ring_degrees)
    threshold = draw(st.integers(1, degree))
    fates = draw(st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=size, max_size=size))
    return size, degree, threshold, fates


@settings(max_examples=60)
@given(cohorts(), BITS, st.integers(1, 40), SEEDS)
def test_the_unmasked_sum_is_the_sum_of_the_survivors_or_there_is_none(
    cohort: tuple[int, int, int, list[int]], bits: int, length: int, entropy: bytes
) -> None:
    size, degree, threshold, fates = cohort
    ctx, root, digest_u2 = (derive(entropy, name) for name in ("ctx", "root", "U2"))
    everyone = range(size)
    keys = [client.round_keys(derive(entropy, f"keys {u}")) for u in everyone]
    seeds = [derive(entropy, f"seed {u}") for u in everyone]
    peers = [client.Peer(u, keys[u].channel.public, keys[u].mask.public) for u in everyone]
    near = [graph.neighbours(size, degree, u, digest(ctx, root)) for u in everyone]
    sealed = [
        client.seal_shares(
            keys[u],
            seeds[u],
            ctx,
            root,
            u,
            [peers[v] for v in near[u]],
            threshold,
            derive(entropy, f"shares {u}"),
        )
        for u in everyone
    ]
    boxes = {(u, v): box for u in everyone for v, box in sealed[u].boxes}
    sharers = [u for u in everyone if fates[u] != 1]
    survivors = [u for u in sharers if fates[u] == 0]
    vectors = [Stream(derive(entropy, f"vector {u}")).uint32(length) & np.uint32((1 << bits) - 1) for u in everyone]
    total = np.zeros(length, modular.work_dtype(bits))
    for u in survivors:
        masked = client.mask(
            vectors[u],
            bits,
            seeds[u],
            keys[u],
            ctx,
            root,
            digest_u2,
            u,
            [peers[v] for v in near[u] if v in sharers],
        )
        total += modular.unpack(modular.pack(masked, bits), length, bits)

    def shares_of(u: int, which: int) -> dict[int, bytes]:
        return {
            v + 1: client.open_box(keys[v], ctx, root, v, peers[u], boxes[u, v])[which]
            for v in near[u]
            if v in survivors
        }

    owners = [
        Owner(
            u,
            u in survivors,
            sealed[u].commitment if u in survivors else peers[u].mask_public,
            shares_of(u, 0 if u in survivors else 1),
        )
        for u in sharers
    ]
    if any(sum(v in survivors for v in near[u]) < threshold for u in sharers):
        with pytest.raises(RemoteProtocolError, match="not enough good shares"):
            rebuild_all(owners, threshold, ctx, HERE)
        return
    secrets = rebuild_all(owners, threshold, ctx, HERE).by_owner
    dropped = [
        Dropped(u, secrets[u], tuple((v, peers[v].mask_public) for v in near[u] if v in survivors))
        for u in sharers
        if u not in survivors
    ]
    self_seeds = {u: secrets[u] for u in survivors}
    found = unmask(total, Masking(bits, ctx, root, digest_u2), self_seeds, dropped)
    expected = sum((vectors[u].astype(np.int64) for u in survivors), np.zeros(length, np.int64))
    np.testing.assert_array_equal(found, expected % (1 << bits))


@given(BITS, st.lists(st.integers(-(2**33), 2**33), max_size=70))
def test_packing_keeps_the_low_bits_and_is_canonical(bits: int, values: list[int]) -> None:
    vector = np.array(values, np.int64)
    packed = modular.pack(vector, bits)
    as_one_number = sum((value % (1 << bits)) << (bits * place) for place, value in enumerate(values))
    assert packed == as_one_number.to_bytes((bits * len(values) + 7) // 8, "little")
    unpacked = modular.unpack(packed, len(values), bits)
    assert unpacked.dtype == modular.work_dtype(bits)
    np.testing.assert_array_equal(unpacked, vector % (1 << bits))
    centred = modular.centre(unpacked, bits)
    np.testing.assert_array_equal((centred - vector) % (1 << bits), 0)
    assert all(-(1 << (bits - 1)) <= value < 1 << (bits - 1) for value in centred.tolist())


@given(BITS, st.binary(max_size=64), st.integers(0, 40))
def test_unpacking_takes_exactly_what_packing_gives(bits: int, data: bytes, length: int) -> None:
    try:
        vector = modular.unpack(data, length, bits)
    except RemoteProtocolError:
        return
    assert modular.pack(vector, bits) == data


@given(SEEDS, SEEDS, st.sampled_from([np.uint16, np.uint32]), st.sampled_from([1, 70_000, 131_073]))
def test_masks_cancel_and_commute(first: bytes, second: bytes, word: type[np.uint16], length: int) -> None:
    vector = np.arange(length).astype(word)
    masked = vector.copy()
    modular.add_masks(masked, [(first, 1), (second, -1)])
    assert length == 1 or first == second or not np.array_equal(masked, vector)
    modular.add_masks(masked, [(second, 1), (first, -1)])
    np.testing.assert_array_equal(masked, vector)


@given(st.data(), st.integers(1, 20), st.integers(0, 12), SEEDS)
def test_any_threshold_of_shares_rebuilds(data: st.DataObject, threshold: int, spare: int, entropy: bytes) -> None:
    xs = data.draw(st.lists(st.integers(1, 65535), min_size=threshold + spare, max_size=threshold + spare, unique=True))
    secrets = [derive(entropy, "a"), derive(entropy, "b")]
    shares = shamir.split(secrets, threshold, xs, Stream(entropy))
    chosen = data.draw(st.permutations(xs))[:threshold]
    for secret, of_secret in zip(secrets, shares, strict=True):
        assert shamir.combine({x: of_secret[x] for x in chosen}, threshold) == secret


@given(st.data(), st.integers(1, 20), st.integers(0, 16), SEEDS)
def test_bad_shares_up_to_half_the_redundancy_are_worked_around(
    data: st.DataObject, threshold: int, spare: int, entropy: bytes
) -> None:
    xs = list(range(1, threshold + spare + 1))
    pair = KeyPair.from_private(derive(entropy, "key"))
    shares = shamir.split([pair.private], threshold, xs, Stream(entropy))[0]
    limit = 1 if spare == 1 else spare // 2
    bad = data.draw(st.lists(st.sampled_from(xs), max_size=limit, unique=True))
    kind = data.draw(st.sampled_from(["random", "same", "one bit", "short"]))
    for x in bad:
        shares[x] = {
            "random": derive(entropy, f"bad {x}"),
            "same": derive(entropy, "bad"),
            "one bit": bytes([shares[x][0] ^ 1]) + shares[x][1:],
            "short": shares[x][:31],
        }[kind]
    # X25519 ignores some bits of a private key: a rebuilt one may differ there, to no effect.
    rebuilt = rebuild_all([Owner(0, False, pair.public, shares)], threshold, b"", HERE).by_owner[0]
    assert KeyPair.from_private(rebuilt).public == pair.public


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=40), st.data())
def test_every_leaf_proves_its_own_place_only(leaves: list[bytes], data: st.DataObject) -> None:
    root, proofs = merkle.root(leaves), merkle.proofs(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    claimed = data.draw(st.integers(0, len(leaves) - 1))
    leaf = data.draw(st.sampled_from(leaves) | st.binary(max_size=8))
    assert merkle.verify(root, leaves[index], index, len(leaves), proofs[index])
    holds = merkle.verify(root, leaf, claimed, len(leaves), proofs[index])
    if holds:
        assert leaf == leaves[claimed]


@given(st.integers(2, 60), st.data(), SEEDS)
def test_neighbourhood_is_mutual_and_of_the_right_size(size: int, data: st.DataObject, seed: bytes) -> None:
    degree = data.draw(st.integers(1, size).map(lambda half: 2 * half))
    near = [graph.neighbours(size, degree, u, seed) for u in range(size)]
    for u, others in enumerate(near):
        assert len(others) == len(set(others)) == min(degree, size - 1)
        assert list(others) == sorted(others)
        assert u not in others
        assert all(u in near[v] for v in others)
