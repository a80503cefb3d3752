"""What the golden files do not say of the primitives: secrets stay hidden, streams and keys behave."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from edge_sdk.errors import LocalProtocolError, PrivacyError
from edge_sdk.secagg import client, field, graph, modular, shamir
from edge_sdk.secagg.keys import KeyPair, agree
from edge_sdk.secagg.suite import Stream, digest

SECRET = digest(b"secret")


def test_keys_and_streams_do_not_show_their_secrets() -> None:
    pair = KeyPair.from_private(SECRET)
    pair.agree(KeyPair.from_private(digest(b"other")).public)
    sealed = client.SealedShares(digest(b"commitment"), ((1, SECRET),))
    for value in (pair, client.RoundKeys(pair, pair), Stream(SECRET), sealed):
        assert repr(SECRET)[2:-1] not in repr(value)
        assert SECRET.hex() not in repr(value)


def test_a_pair_agrees_as_the_function_does_and_remembers_nothing_when_copied() -> None:
    pair, other = KeyPair.from_private(SECRET), KeyPair.from_private(digest(b"other"))
    secret = agree(SECRET, other.public)
    assert pair.agree(other.public) == pair.agree(other.public) == other.agree(pair.public) == secret
    for twin in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):  # noqa: S301
        assert twin == pair
        assert twin.agree(other.public) == secret
    assert secret not in pickle.dumps(pair)


def test_a_private_key_has_32_bytes() -> None:
    with pytest.raises(LocalProtocolError, match="31"):
        KeyPair.from_private(SECRET[1:])


def test_a_stream_does_not_depend_on_how_it_is_read() -> None:
    whole, parts = Stream(SECRET), Stream(SECRET)
    expected = whole.bytes(100)
    assert parts.bytes(3) + parts.bytes(0) + parts.bytes(61) + parts.bytes(36) == expected


def test_rejection_makes_below_uniform() -> None:
    stream, limit = Stream(SECRET), 3 * 2**62
    # A quarter of all words is rejected; without that the lower third would be drawn half of the time.
    draws = [stream.below(limit) for _ in range(4000)]
    low = sum(draw < limit // 3 for draw in draws)
    assert abs(low - 4000 / 3) < 4 * (4000 * 2 / 9) ** 0.5


def test_the_field_is_a_field() -> None:
    stream = Stream(SECRET)
    a, b, c = (stream.uint16(5000).copy() for _ in range(3))
    a[:2], b[1:3] = 0, 0
    assert np.array_equal(field.multiply(a, b ^ c), field.multiply(a, b) ^ field.multiply(a, c))
    assert np.array_equal(field.multiply(a, field.multiply(b, c)), field.multiply(field.multiply(a, b), c))
    units = a[a != 0]
    assert (field.multiply(units, field.inverse(units)) == 1).all()
    exp, log = field.tables()
    assert len(set(exp[: field.ORDER].tolist())) == field.ORDER
    # x^16 = x^12 + x^3 + x + 1
    assert exp[16] == 0x100B
    assert not exp[2 * field.ORDER :].any()
    assert log[1] == 0


def test_fewer_shares_than_the_threshold_say_nothing() -> None:
    """For any other secret there are polynomials that give the same threshold-1 shares."""
    shares = shamir.split([SECRET], 3, [1, 2, 3], Stream(digest(b"polynomials")))[0]
    fake = bytes(32)
    exp, _ = field.tables()
    known = np.frombuffer(shares[1] + shares[2], np.uint16).reshape(2, -1)
    # The share at 3 that makes the secret all zeros: solve the Lagrange sum at 0 for it.
    weights = exp[field.log_weights_at_zero(np.array([1, 2, 3], np.uint16))]
    partial = field.exclusive_or(field.multiply(weights[:2, None], known), axis=0)
    third = field.multiply(partial, field.inverse(weights[2:]))
    assert shamir.combine({1: shares[1], 2: shares[2], 3: third.tobytes()}, 3) == fake


def test_a_large_split_is_made_in_blocks() -> None:
    xs = list(range(1, 701))
    shares = shamir.split([SECRET, digest(b"b")], 400, xs, Stream(SECRET))
    assert shamir.combine({x: shares[1][x] for x in xs[250:]}, 400) == digest(b"b")


@pytest.mark.parametrize(
    "accumulator",
    [np.zeros(4, np.int32), np.zeros((2, 2), np.uint16), np.zeros(8, np.uint16)[::2]],
    ids=["signed", "2-D", "strided"],
)
def test_masks_go_onto_contiguous_unsigned_words_only(accumulator: np.ndarray) -> None:
    with pytest.raises(LocalProtocolError, match="contiguous"):
        modular.add_mask(accumulator, SECRET, 1)


def test_masking_an_empty_vector_is_nothing() -> None:
    modular.add_mask(np.zeros(0, np.uint16), SECRET, 1)


def test_a_roster_has_no_more_devices_than_the_field_has_points() -> None:
    assert graph.is_sound(graph.LARGEST_ROSTER, 200, 140, 0.05)
    assert not graph.is_sound(graph.LARGEST_ROSTER + 1, 200, 140, 0.05)
    with pytest.raises(PrivacyError, match="65536"):
        graph.parameters(graph.LARGEST_ROSTER + 1, 0.05, 0.1)


def test_no_graph_withstands_a_corrupt_majority() -> None:
    with pytest.raises(PrivacyError, match="corrupt share"):
        graph.parameters(30, 0.6, 0.1)


@pytest.mark.parametrize("two_sets", [False, True])
@pytest.mark.parametrize(("size", "corrupt", "dropout"), [(30, 0.1, 0.2), (200, 0.05, 0.2), (1000, 0.1, 0.1)])
def test_chosen_parameters_are_sound_and_one_share_less_is_not(
    size: int, corrupt: float, dropout: float, two_sets: bool
) -> None:
    found = graph.parameters(size, corrupt, dropout, two_sets)
    assert graph.is_sound(size, found.degree, found.threshold, corrupt, two_sets, dropout)
    least = (found.degree + found.corrupt_bound) // 2 if two_sets else found.corrupt_bound
    assert not graph.is_sound(size, found.degree, least, corrupt, two_sets, dropout)


def test_a_permutation_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        graph.permutation(10, SECRET)[0] = 1
