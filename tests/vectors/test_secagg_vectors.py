"""The golden files of secure aggregation: scripts of operations that every language must get bit for bit.

`secagg_primitives.json` holds published vectors. The others are computed here from `SCRIPTS`, and
`python tests/vectors/test_secagg_vectors.py` writes them anew; a test holds them to what the code says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from coordinator.secagg.rebuilding import Owner, rebuild_all
from coordinator.secagg.unmasking import Dropped, Masking, unmask
from coordinator.secagg.work import HERE
from edge_sdk import errors
from edge_sdk.protocol import checks
from edge_sdk.protocol.messages import Bitmap, Digest, RoundId, Survivors
from edge_sdk.secagg import client, graph, keys, merkle, modular, quorum, shamir, suite
from edge_sdk.signing import sign_raw

FOLDER = Path(__file__).parent
Inputs = dict[str, Any]
Case = tuple[str, Inputs]


def octets(name: str, count: int) -> str:
    """Bytes that look random, named by a label."""
    return suite.Stream(suite.digest(name.encode())).bytes(count).hex()


CTX, ROOT, U2 = octets("ctx", 32), octets("root", 32), octets("U2", 32)


# ---- the operations


def _aes_ctr(i: Inputs) -> str:
    cipher = Cipher(algorithms.AES(_b(i["key"])), modes.CTR(_b(i["counter"])))
    return cipher.encryptor().update(_b(i["plaintext"])).hex()


def _chacha20(i: Inputs) -> str:
    nonce = i["counter"].to_bytes(4, "little") + _b(i["nonce"])
    return Cipher(algorithms.ChaCha20(_b(i["key"]), nonce), None).encryptor().update(_b(i["plaintext"])).hex()


def _ecdsa(i: Inputs) -> str:
    private = ec.derive_private_key(int(i["private"], 16), ec.SECP256R1())
    return sign_raw(private, _b(i["message"])).hex()


def _stream(i: Inputs) -> list[Any]:
    stream, drawn = suite.Stream(_b(i["key"])), list[Any]()
    for method, argument in i["reads"]:
        value = getattr(stream, method)(argument)
        drawn.append(value.hex() if isinstance(value, bytes) else value if isinstance(value, int) else value.tolist())
    return drawn


def _add_masks(i: Inputs) -> list[int]:
    vector = np.array(i["vector"], _word(i))
    modular.add_masks(vector, [(_b(seed), sign) for seed, sign in i["masks"]])
    values: list[int] = vector.tolist()
    return values


def _mask_tail(i: Inputs) -> str:
    vector = np.zeros(i["length"], _word(i))
    modular.add_mask(vector, _b(i["seed"]), 1)
    return suite.digest(vector.astype(f"<u{i['word_bits'] // 8}").tobytes()).hex()


def _split(i: Inputs) -> list[dict[str, str]]:
    shares = shamir.split([_b(secret) for secret in i["secrets"]], i["threshold"], i["xs"], suite.Stream(_b(i["key"])))
    return [{str(x): share.hex() for x, share in of_one.items()} for of_one in shares]


def _rebuild_seed(i: Inputs) -> str:
    owner = Owner(i["index"], True, _b(i["commitment"]), _shares(i))
    return rebuild_all([owner], i["threshold"], _b(i["ctx"]), HERE).by_owner[i["index"]].hex()


def _rebuild_key(i: Inputs) -> str:
    return rebuild_all([Owner(0, False, _b(i["public"]), _shares(i))], i["threshold"], b"", HERE).by_owner[0].hex()


def _parameters(i: Inputs) -> list[int]:
    found = graph.parameters(i["size"], i["corrupt"], i["dropout"], i["two_sets"])
    return [found.degree, found.threshold, found.corrupt_bound]


def _quorum_parameters(i: Inputs) -> list[int]:
    found = quorum.parameters(i["size"], i["corrupt"], i["dropout"])
    return [found.graph.degree, found.graph.threshold, found.committee, found.quorum]


def _sharers_digest(i: Inputs) -> bytes:
    return checks.sharers_digest(Bitmap(_b(i["sharers"])))


def _survivors(i: Inputs) -> Survivors:
    sharers, survivors = (Bitmap(_b(i[name])) for name in ("sharers", "survivors"))
    return Survivors(RoundId(_b(i["rid"])), Digest(_b(i["root"])), sharers, survivors)


def _seal(i: Inputs) -> Inputs:
    sealed = client.seal_shares(
        client.round_keys(_b(i["keys"])), _b(i["self_seed"]), _b(i["ctx"]), _b(i["root"]), i["index"],
        _peers(i), i["threshold"], _b(i["entropy"]),
    )  # fmt: skip
    boxes = [[index, box.hex()] for index, box in sealed.boxes]
    return {"commitment": sealed.commitment.hex(), "boxes": boxes}


def _open(i: Inputs) -> list[str]:
    shares = client.open_box(
        client.round_keys(_b(i["keys"])), _b(i["ctx"]), _b(i["root"]), i["index"],
        _peer(i["peer_keys"], i["peer"]), _b(i["box"]),
    )  # fmt: skip
    return [share.hex() for share in shares]


def _mask(i: Inputs) -> list[int]:
    masked: list[int] = client.mask(
        np.array(i["vector"]), i["bits"], _b(i["self_seed"]), client.round_keys(_b(i["keys"])), _b(i["ctx"]),
        _b(i["root"]), _b(i["sharers_digest"]), i["index"], _peers(i),
    ).tolist()  # fmt: skip
    return masked


def _round_keys(i: Inputs) -> Inputs:
    pairs = client.round_keys(_b(i["entropy"]))
    return {
        "channel": [pairs.channel.private.hex(), pairs.channel.public.hex()],
        "mask": [pairs.mask.private.hex(), pairs.mask.public.hex()],
    }


def _transcript(i: Inputs) -> Inputs:
    """A whole round: device u's keys, self seed and share entropy are named octets; some devices drop out."""
    size, bits, length = i["size"], i["bits"], i["length"]
    ctx, root, digest_u2 = _b(i["ctx"]), _b(i["root"]), _b(i["sharers_digest"])
    everyone = range(size)
    pairs = [client.round_keys(_b(octets(f"keys {u}", 32))) for u in everyone]
    seeds = [_b(octets(f"self seed {u}", 32)) for u in everyone]
    vectors = [suite.Stream(_b(octets(f"vector {u}", 32))).uint16(length).astype(np.int64) for u in everyone]
    peers = [client.Peer(u, pairs[u].channel.public, pairs[u].mask.public) for u in everyone]
    near = [graph.neighbours(size, i["degree"], u, suite.digest(ctx, root)) for u in everyone]
    sealed = [
        client.seal_shares(
            pairs[u], seeds[u], ctx, root, u, [peers[v] for v in near[u]], i["threshold"],
            _b(octets(f"share entropy {u}", 32)),
        )
        for u in everyone
    ]  # fmt: skip
    boxes = {(u, v): box for u in everyone for v, box in sealed[u].boxes}
    sharers = [u for u in everyone if u not in i["dropped_before_masking"]]
    survivors = [u for u in sharers if u not in i["dropped_after"]]
    masked = {
        u: client.mask(
            vectors[u], bits, seeds[u], pairs[u], ctx, root, digest_u2, u,
            [peers[v] for v in near[u] if v in sharers],
        )
        for u in survivors
    }  # fmt: skip
    total = np.zeros(length, modular.work_dtype(bits))
    for vector in masked.values():
        total += vector
    shares = {
        u: {
            v + 1: client.open_box(pairs[v], ctx, root, v, peers[u], boxes[u, v])[0 if u in survivors else 1]
            for v in near[u]
            if v in survivors
        }
        for u in sharers
    }
    if "bad_share" in i:
        owner, holder = i["bad_share"]
        shares[owner][holder + 1] = bytes(32)
    for owner in i.get("withheld", []):
        shares[owner] = dict(list(shares[owner].items())[: i["threshold"] - 1])
    owners = [
        Owner(u, u in survivors, sealed[u].commitment if u in survivors else peers[u].mask_public, shares[u])
        for u in sharers
    ]
    secrets = rebuild_all(owners, i["threshold"], ctx, HERE).by_owner
    dropped = [
        Dropped(u, secrets[u], tuple((v, peers[v].mask_public) for v in near[u] if v in survivors))
        for u in sharers
        if u not in survivors
    ]
    masking = Masking(bits, ctx, root, digest_u2)
    found = unmask(total, masking, {u: secrets[u] for u in survivors}, dropped)
    assert np.array_equal(found, modular.reduce(np.sum([vectors[u] for u in survivors], axis=0), bits))
    return {
        "neighbours": near,
        "boxes_digest": suite.digest(*(boxes[pair] for pair in sorted(boxes))).hex(),
        "masked": {str(u): modular.pack(vector, bits).hex() for u, vector in masked.items()},
        "sum": found.tolist(),
    }


def _b(text: str) -> bytes:
    return bytes.fromhex(text)


def _shares(i: Inputs) -> dict[int, bytes]:
    return {int(x): _b(share) for x, share in i["shares"].items()}


def _peer(entropy: str, index: int) -> client.Peer:
    pairs = client.round_keys(_b(entropy))
    return client.Peer(index, pairs.channel.public, pairs.mask.public)


def _peers(i: Inputs) -> list[client.Peer]:
    return [_peer(entropy, index) for index, entropy in i["peers"]]


def _word(i: Inputs) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if i["word_bits"] == 16 else np.uint32


OPERATIONS: dict[str, Callable[[Inputs], Any]] = {
    "public_key": lambda i: keys.KeyPair.from_private(_b(i["private"])).public.hex(),
    "agree": lambda i: keys.agree(_b(i["private"]), _b(i["public"])).hex(),
    "hkdf": lambda i: suite.hkdf(_b(i["ikm"]), salt=_b(i["salt"]), info=_b(i["info"]), length=i["length"]).hex(),
    "aes_ctr": _aes_ctr,
    "chacha20": _chacha20,
    "chacha20_poly1305": lambda i: (
        ChaCha20Poly1305(_b(i["key"])).encrypt(_b(i["nonce"]), _b(i["plaintext"]), _b(i["data"])).hex()
    ),
    "ecdsa_p256": _ecdsa,
    "digest": lambda i: suite.digest(*map(_b, i["parts"])).hex(),
    "context": lambda i: suite.context(_b(i["rid"]), _b(i["plan_digest"]), _b(i["model_digest"])).hex(),
    "derive": lambda i: suite.derive(_b(i["entropy"]), i["name"]).hex(),
    "stream": _stream,
    "pack": lambda i: modular.pack(np.array(i["vector"], np.int64), i["bits"]).hex(),
    "unpack": lambda i: modular.unpack(_b(i["data"]), i["length"], i["bits"]).tolist(),
    "centre": lambda i: modular.centre(np.array(i["vector"], np.int64), i["bits"]).tolist(),
    "add_masks": _add_masks,
    "mask_digest": _mask_tail,
    "split": _split,
    "combine": lambda i: shamir.combine(_shares(i), i["threshold"]).hex(),
    "rebuild_self_seed": _rebuild_seed,
    "rebuild_mask_key": _rebuild_key,
    "graph_parameters": _parameters,
    "graph_is_sound": lambda i: graph.is_sound(
        i["size"], i["degree"], i["threshold"], i["corrupt"], i["two_sets"], i["dropout"]
    ),
    "permutation": lambda i: graph.permutation(i["size"], _b(i["seed"])).tolist(),
    "neighbours": lambda i: list(graph.neighbours(i["size"], i["degree"], i["index"], _b(i["seed"]))),
    "quorum_parameters": _quorum_parameters,
    "quorum_is_sound": lambda i: quorum.is_sound(i["size"], i["committee"], i["quorum"], i["corrupt"]),
    "committee": lambda i: sorted(checks.committee_of(_b(i["ctx"]), _b(i["root"]), i["size"], i["committee"])),
    "holds_together": lambda i: quorum.holds_together(
        i["size"], i["degree"], frozenset(i["survivors"]), i["corrupt"], checks.graph_seed(_b(i["ctx"]), _b(i["root"]))
    ),
    "statement": lambda i: client.statement(_b(i["ctx"]), _b(i["root"]), i["index"], _sharers_digest(i)).hex(),
    "endorsement": lambda i: client.endorsement(_b(i["ctx"]), checks.survivors_digest(_survivors(i))).hex(),
    "merkle_root": lambda i: merkle.root([_b(leaf) for leaf in i["leaves"]]).hex(),
    "merkle_proofs": lambda i: [
        [node.hex() for node in proof] for proof in merkle.proofs([_b(leaf) for leaf in i["leaves"]])
    ],
    "merkle_verify": lambda i: merkle.verify(
        _b(i["root"]), _b(i["leaf"]), i["index"], i["size"], [_b(node) for node in i["proof"]]
    ),
    "round_keys": _round_keys,
    "advertisement": lambda i: client.advertisement(_b(i["ctx"]), _b(i["channel"]), _b(i["mask"])).hex(),
    "roster_leaf": lambda i: client.roster_leaf(
        i["index"], _b(i["certificate"]), _b(i["channel"]), _b(i["mask"]), _b(i["signature"])
    ).hex(),
    "commitment": lambda i: client.commitment(_b(i["ctx"]), i["index"], _b(i["self_seed"])).hex(),
    "seal_shares": _seal,
    "open_box": _open,
    "mask": _mask,
    "transcript": _transcript,
}


# ---- the scripts


def _suite_cases() -> Iterator[Case]:
    yield "digest", {"parts": []}
    yield "digest", {"parts": ["6162", "63"]}
    whole = {"rid": octets("rid", 16), "plan_digest": octets("plan", 32), "model_digest": octets("model", 32)}
    yield "context", whole
    yield "context", whole | {"rid": octets("rid", 15)}
    yield "derive", {"entropy": octets("entropy", 32), "name": "mask key"}
    yield "derive", {"entropy": octets("entropy", 32), "name": "channel key"}
    reads = [["bytes", 5], ["uint16", 3], ["below", 10], ["uint64", 2], ["below", 2**63 + 1], ["uint32", 2]]
    yield "stream", {"key": octets("stream", 32), "reads": [*reads, ["bytes", 40], ["below", 2**64]]}
    yield "stream", {"key": octets("stream", 32), "reads": [["below", 0]]}
    yield "stream", {"key": octets("stream", 31), "reads": [["bytes", 1]]}
    yield "hkdf", {"ikm": "00", "salt": "", "info": "", "length": 0}


def _modular_cases() -> Iterator[Case]:
    stream = suite.Stream(_b(octets("values", 32)))
    for bits in range(modular.MINIMUM_BITS, modular.MAXIMUM_BITS + 1):
        vector = (stream.uint32(11) & np.uint32((1 << bits) - 1)).tolist()
        yield "pack", {"vector": vector, "bits": bits}
        packed = modular.pack(np.array(vector), bits).hex()
        yield "unpack", {"data": packed, "length": 11, "bits": bits}
    yield "pack", {"vector": [-1, 0, 8191], "bits": 13}
    yield "unpack", {"data": "ffff00", "length": 1, "bits": 16}
    yield "unpack", {"data": "ff", "length": 1, "bits": 16}
    yield "unpack", {"data": "0080", "length": 1, "bits": 13}
    yield "unpack", {"data": "00000080", "length": 1, "bits": 31}
    yield "pack", {"vector": [0], "bits": 7}
    yield "pack", {"vector": [0], "bits": 33}
    yield "centre", {"vector": [0, 1, 4095, 4096, 8191, 8192, -1], "bits": 13}
    seeds = [octets("mask a", 32), octets("mask b", 32)]
    for word_bits in (16, 32):
        vector = [0, 1, 2**word_bits - 1, 7, 8, 9, 10, 11, 12]
        yield (
            "add_masks",
            {"vector": vector, "word_bits": word_bits, "masks": [[seeds[0], 1], [seeds[1], -1]]},
        )
        yield "mask_digest", {"length": 200_000, "word_bits": word_bits, "seed": seeds[0]}
    counter_wraps = octets("key", 16) + "ff" * 16
    yield "add_masks", {"vector": [0] * 12, "word_bits": 32, "masks": [[counter_wraps, 1]]}
    yield "add_masks", {"vector": [0], "word_bits": 16, "masks": [[seeds[0][2:], 1]]}
    yield "add_masks", {"vector": [0], "word_bits": 16, "masks": [[seeds[0], 2]]}


def _shamir_cases() -> Iterator[Case]:
    secrets, key = [octets("secret a", 8), octets("secret b", 8)], octets("polynomials", 32)
    split = {"secrets": secrets, "threshold": 3, "xs": [1, 2, 5, 300, 65535], "key": key}
    yield "split", split
    yield "split", split | {"threshold": 1}
    yield "split", split | {"secrets": ["0000"], "threshold": 5}
    for wrong in (
        {"threshold": 0}, {"threshold": 6}, {"xs": [1, 1, 2]}, {"xs": [0, 1, 2]}, {"xs": [1, 2, 65536]},
        {"secrets": ["00"]}, {"secrets": ["0000", "00000000"]}, {"secrets": [""]},
    ):  # fmt: skip
        yield "split", split | wrong
    shares = _split(split)[0]
    yield "combine", {"shares": shares, "threshold": 3}
    yield "combine", {"shares": {x: shares[x] for x in ("300", "65535", "5")}, "threshold": 3}
    yield "combine", {"shares": {x: shares[x] for x in ("1", "2")}, "threshold": 3}
    yield "combine", {"shares": shares | {"2": "00"}, "threshold": 3}
    yield "combine", {"shares": shares | {"0": shares["1"]}, "threshold": 3}
    yield "combine", {"shares": shares, "threshold": 0}

    seed = octets("seed", 32)
    shares = _split({"secrets": [seed], "threshold": 4, "xs": list(range(1, 11)), "key": key})[0]
    commitment = client.commitment(_b(CTX), 3, _b(seed)).hex()
    rebuild = {"threshold": 4, "commitment": commitment, "ctx": CTX, "index": 3}
    bad = octets("bad", 32)
    yield "rebuild_self_seed", rebuild | {"shares": shares}
    yield "rebuild_self_seed", rebuild | {"shares": shares | {"1": bad, "4": bad, "9": octets("worse", 32)}}
    yield "rebuild_self_seed", rebuild | {"shares": shares | {"1": bad, "2": "00", "77777": bad}}
    yield "rebuild_self_seed", rebuild | {"shares": {x: shares[x] for x in "12345"} | {"2": bad}}
    yield "rebuild_self_seed", rebuild | {"shares": {x: shares[x] for x in "1234"} | {"2": bad}}
    yield "rebuild_self_seed", rebuild | {"shares": {x: shares[x] for x in "123"}}
    yield "rebuild_self_seed", rebuild | {"shares": shares, "index": 4}
    yield "rebuild_self_seed", rebuild | {"shares": shares, "threshold": 0}
    public = keys.KeyPair.from_private(_b(seed)).public.hex()
    yield "rebuild_mask_key", {"shares": shares | {"3": bad}, "threshold": 4, "public": public}
    yield "rebuild_mask_key", {"shares": shares, "threshold": 4, "public": octets("other", 32)}


def _graph_cases() -> Iterator[Case]:
    for size, corrupt, dropout in (
        (2, 0.05, 0.1), (3, 0.05, 0.1), (10, 0.05, 0.1), (49, 0.1, 0.2), (50, 0.05, 0.1), (100, 0.1, 0.1),
        (200, 0.05, 0.2), (300, 0.1, 0.3), (1000, 0.1, 0.1), (10_000, 0.1, 0.1), (60, 0.2, 0.3),
    ):  # fmt: skip
        for two_sets in (False, True):
            yield (
                "graph_parameters",
                {"size": size, "corrupt": corrupt, "dropout": dropout, "two_sets": two_sets},
            )
    for size, corrupt in ((1, 0.0), (30, 0.4), (100, 1.0)):
        yield "graph_parameters", {"size": size, "corrupt": corrupt, "dropout": 0.1, "two_sets": True}
    sound = {"size": 200, "degree": 72, "threshold": 42, "corrupt": 0.05, "dropout": 0.2, "two_sets": True}
    for change in (
        {}, {"threshold": 41}, {"threshold": 41, "two_sets": False}, {"threshold": 10, "two_sets": False},
        {"degree": 71}, {"degree": 2, "threshold": 2}, {"degree": 200, "threshold": 150}, {"threshold": 73},
        {"degree": 199, "threshold": 105}, {"degree": 199, "threshold": 104}, {"corrupt": 0.2},
        {"size": 1}, {"degree": 0, "threshold": 0}, {"degree": 16, "threshold": 16}, {"corrupt": -0.1},
    ):  # fmt: skip
        yield "graph_is_sound", sound | change
    seed = octets("graph", 32)
    yield "permutation", {"size": 20, "seed": seed}
    for degree, index in ((4, 0), (4, 19), (18, 7), (19, 7), (30, 7)):
        yield "neighbours", {"size": 20, "degree": degree, "index": index, "seed": seed}
    for degree, index in ((3, 0), (0, 0), (4, 20), (4, -1)):
        yield "neighbours", {"size": 20, "degree": degree, "index": index, "seed": seed}


def _quorum_cases() -> Iterator[Case]:
    for size, corrupt, dropout in (
        (2, 0.0, 0.1), (10, 0.1, 0.2), (49, 0.1, 0.3), (50, 0.05, 0.1), (200, 0.1, 0.2), (1000, 0.1, 0.1),
        (1000, 0.1, 0.3), (10_000, 0.05, 0.2), (200, 0.2, 0.45), (1, 0.0, 0.1),
    ):  # fmt: skip
        yield "quorum_parameters", {"size": size, "corrupt": corrupt, "dropout": dropout}
    sound = {"size": 1000, "committee": 81, "quorum": 59, "corrupt": 0.1}
    for change in (
        {}, {"quorum": 58}, {"quorum": 81}, {"quorum": 82}, {"committee": 82}, {"committee": 83}, {"corrupt": 0.2},
        {"committee": 0, "quorum": 0}, {"committee": 1000, "quorum": 551}, {"committee": 1000, "quorum": 550},
        {"committee": 1001, "quorum": 900}, {"committee": 1, "quorum": 1},
    ):  # fmt: skip
        yield "quorum_is_sound", sound | change
    place = {"ctx": CTX, "root": ROOT}
    for committee in (0, 1, 7, 20):
        yield "committee", place | {"size": 20, "committee": committee}
    order = graph.permutation(60, checks.graph_seed(_b(CTX), _b(ROOT))).tolist()
    gaps: list[list[int]] = [
        [],
        order[:8],
        order[:8] + order[30:38],
        order[:8] + order[34:38],
        order[:8] + order[31:36],
    ]
    for gone in gaps:
        alive = [index for index in range(60) if index not in gone]
        yield "holds_together", place | {"size": 60, "degree": 16, "survivors": alive, "corrupt": 0.05}
    yield "holds_together", place | {"size": 9, "degree": 8, "survivors": [1, 2], "corrupt": 0.05}
    sets = {"sharers": "ff03", "survivors": "fb03"}
    yield "statement", place | {"index": 258, "sharers": sets["sharers"]}
    yield "endorsement", place | sets | {"rid": octets("rid", 16)}


def _merkle_cases() -> Iterator[Case]:
    for size in (1, 2, 3, 5, 7, 8):
        yield "merkle_root", {"leaves": [octets(f"leaf {n}", n) for n in range(size)]}
    leaves = [octets(f"leaf {n}", n) for n in range(7)]
    yield "merkle_proofs", {"leaves": leaves}
    root = merkle.root([_b(leaf) for leaf in leaves]).hex()
    proofs = [[node.hex() for node in proof] for proof in merkle.proofs([_b(leaf) for leaf in leaves])]
    good = {"root": root, "leaf": leaves[6], "index": 6, "size": 7, "proof": proofs[6]}
    for change in (
        {}, {"index": 5}, {"index": 7}, {"index": -1}, {"size": 8}, {"size": 6}, {"leaf": leaves[5]},
        {"proof": proofs[6][:-1]}, {"proof": [*proofs[6], root]}, {"proof": proofs[5]}, {"proof": ["00"]},
        {"root": octets("other", 32)}, {"leaf": leaves[3], "index": 3, "proof": proofs[3]},
    ):  # fmt: skip
        yield "merkle_verify", good | change
    yield "merkle_root", {"leaves": []}


def _stage_cases() -> Iterator[Case]:
    entropies = [octets(f"keys {u}", 32) for u in range(4)]
    yield "round_keys", {"entropy": entropies[0]}
    publics = {"channel": octets("c_pk", 32), "mask": octets("s_pk", 32)}
    yield "advertisement", {"ctx": CTX} | publics
    leaf = {
        "index": 258,
        "certificate": octets("certificate", 9),
        "signature": octets("signature", 64),
    } | publics
    yield "roster_leaf", leaf
    yield "roster_leaf", leaf | {"channel": "00"}
    yield "commitment", {"ctx": CTX, "index": 2, "self_seed": octets("self seed", 32)}
    seal = {
        "keys": entropies[2], "self_seed": octets("self seed", 32), "ctx": CTX, "root": ROOT, "index": 2,
        "peers": [[3, entropies[3]], [0, entropies[0]], [1, entropies[1]]], "threshold": 2,
        "entropy": octets("share entropy", 32),
    }  # fmt: skip
    yield "seal_shares", seal
    yield "seal_shares", seal | {"threshold": 4}
    yield "seal_shares", seal | {"self_seed": "00"}
    index, box = _seal(seal)["boxes"][0]
    opened = {
        "keys": entropies[0], "ctx": CTX, "root": ROOT, "index": index, "peer": 2, "peer_keys": entropies[2],
        "box": box,
    }  # fmt: skip
    yield "open_box", opened
    for change in (
        {"index": 1}, {"peer": 3}, {"ctx": ROOT}, {"root": CTX}, {"keys": entropies[1]}, {"box": box[:-2]},
        {"peer_keys": entropies[3]}, {"box": box[:-2] + f"{int(box[-2:], 16) ^ 1:02x}"},
    ):  # fmt: skip
        yield "open_box", opened | change
    masking = {
        "keys": entropies[2], "self_seed": octets("self seed", 32), "ctx": CTX, "root": ROOT, "index": 2,
        "sharers_digest": U2, "peers": seal["peers"], "vector": [0, 1, 2, 3, 8191],
    }  # fmt: skip
    for bits in (13, 16, 20, 32):
        yield "mask", masking | {"bits": bits}
    yield "mask", masking | {"bits": 13, "peers": []}
    yield "mask", masking | {"bits": 13, "index": 3}
    transcript = {
        "size": 12, "degree": 8, "threshold": 4, "bits": 13, "length": 9, "ctx": CTX, "root": ROOT,
        "sharers_digest": U2, "dropped_before_masking": [3], "dropped_after": [0, 7],
    }  # fmt: skip
    yield "transcript", transcript
    yield "transcript", transcript | {"bits": 20, "bad_share": [5, 1]}
    yield "transcript", transcript | {"withheld": [7]}


SCRIPTS: dict[str, tuple[str, Callable[[], Iterator[Case]]]] = {
    "secagg_suite.json": ("Hash, context, key derivation and the byte stream.", _suite_cases),
    "secagg_modular.json": ("Packing, centring and masking modulo 2^bits.", _modular_cases),
    "secagg_shamir.json": (
        "Shamir over GF(2^16), and rebuilding from shares of which some are bad.",
        _shamir_cases,
    ),
    "secagg_graph.json": ("Degree, threshold, soundness and neighbours.", _graph_cases),
    "secagg_quorum.json": (
        "Committees, the ring that survivors hold together, and what is signed for a quorum.",
        _quorum_cases,
    ),
    "secagg_merkle.json": ("Merkle roots and audit paths.", _merkle_cases),
    "secagg_stages.json": ("A device's stages, and whole rounds with dropouts.", _stage_cases),
}


def perform(op: str, inputs: Inputs) -> Inputs:
    """What an operation gives: {"out": value} or {"error": the error's class}."""
    try:
        return {"out": json.loads(json.dumps(OPERATIONS[op](inputs)))}
    except errors.EdgeError as error:
        return {"error": type(error).__name__}


def compute(name: str) -> Inputs:
    """The whole content of a golden file."""
    about, script = SCRIPTS[name]
    cases = [{"op": op, "in": inputs} | perform(op, inputs) for op, inputs in script()]
    return {"about": f"{about} Bytes are hexadecimal; a case with 'error' must fail so.", "cases": cases}


@pytest.mark.parametrize("name", ["secagg_primitives.json", *SCRIPTS])
def test_operations_give_what_the_file_says(name: str) -> None:
    for case in json.loads((FOLDER / name).read_text())["cases"]:
        expected = {key: case[key] for key in ("out", "error") if key in case}
        assert perform(case["op"], case["in"]) == expected, case


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_file_holds_the_whole_script(name: str) -> None:
    assert json.loads((FOLDER / name).read_text()) == compute(name)


def write_all() -> None:
    for name in SCRIPTS:
        content = compute(name)
        lines = ",\n".join(json.dumps(case) for case in content["cases"])
        head = json.dumps(content["about"])
        (FOLDER / name).write_text(f'{{"about": {head},\n"cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    write_all()
