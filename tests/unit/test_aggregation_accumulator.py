"""The running sum modulo 2^b: exact, whatever the order, and strict about what joins it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.aggregation.accumulator import ModularSum
from edge_sdk.errors import LocalProtocolError
from edge_sdk.secagg.modular import Words, work_dtype


def words(values: list[int], bits: int) -> Words:
    return np.array(values, work_dtype(bits))


@given(
    bits=st.integers(8, 32),
    rows=st.lists(st.lists(st.integers(0, 2**16 - 1), min_size=3, max_size=3), max_size=6),
    data=st.data(),
)
def test_the_sum_is_pythons_in_any_order(bits: int, rows: list[list[int]], data: st.DataObject) -> None:
    total = ModularSum.empty(3, bits)
    for row in data.draw(st.permutations(rows)):
        total = total.plus(words(row, bits))
    assert total.count == len(rows)
    assert total.total().tolist() == [sum(row[place] for row in rows) % 2**bits for place in range(3)]


def test_a_sum_is_a_value() -> None:
    before = ModularSum.empty(2, 16)
    after = before.plus(words([1, 2], 16))
    assert before.total().tolist() == [0, 0]
    with pytest.raises(ValueError, match="read-only"):
        after.words[0] = 9
    after.total()[0] = 9
    assert after.total().tolist() == [1, 2]


@pytest.mark.parametrize(
    "vector", [words([1, 2, 3], 16), words([1, 2], 32), np.array([[1, 2]], np.uint16)], ids=["long", "wide", "2-D"]
)
def test_another_shape_or_word_cannot_join(vector: Words) -> None:
    with pytest.raises(LocalProtocolError, match=r"cannot join a sum uint16\[2\]"):
        ModularSum.empty(2, 16).plus(vector)


def test_a_sum_is_made_of_the_work_dtype_only() -> None:
    with pytest.raises(LocalProtocolError, match="modulo 2"):
        ModularSum(16, 0, np.zeros(2, np.uint32))
    with pytest.raises(LocalProtocolError, match="-1 vectors"):
        ModularSum(16, -1, np.zeros(2, np.uint16))
