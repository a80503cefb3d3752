"""Every message survives the wire, whatever is in it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.protocol import codec
from edge_sdk.protocol.messages import Message, bitmap, members
from tests.unit.wire_messages import KINDS, strategy


@pytest.mark.parametrize("kind", KINDS)
def test_decode_inverts_encode(kind: type[Message]) -> None:
    @settings(max_examples=30)
    @given(strategy(kind))
    def check(message: Message) -> None:
        body = codec.encode(message)
        assert codec.decode(kind, body) == message
        assert codec.encode(codec.decode(kind, body)) == body

    check()


@given(st.integers(1, 300).flatmap(lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size - 1)))))
def test_bitmaps_hold_their_members(size_and_members: tuple[int, set[int]]) -> None:
    size, indices = size_and_members
    bits = bitmap(indices, size)
    assert members(bits, size) == frozenset(indices)
    assert members(bits, size + 8) is None
    assert members(bits, max(indices, default=0)) is None or not indices
