"""The finder of degree and threshold: the published table, and what its levels mean."""

from __future__ import annotations

import pytest

from edge_sdk.errors import PrivacyError
from edge_sdk.secagg.graph import GraphParameters, is_sound, parameters

SIZES = (100, 300, 1_000, 10_000)

# Expected degree and threshold for (corrupt share, dropout share) and each of SIZES: against a coordinator that follows
# the protocol, then against one that may show two survivor sets. docs/privacy.md shows the same.
TABLE = {
    (0.05, 0.1): ("16/6 26/16", "28/14 52/34", "36/19 78/52", "42/22 96/64"),
    (0.1, 0.1): ("22/11 32/22", "36/21 66/46", "48/27 96/67", "54/31 122/85"),
    (0.1, 0.2): ("28/11 52/32", "50/24 118/75", "66/31 194/124", "78/37 280/179"),
    (0.1, 0.3): ("34/11 72/42", "66/26 186/109", "88/36 414/247", "108/44 778/465"),
}


@pytest.mark.parametrize("shares", TABLE)
def test_the_finder_gives_the_table(shares: tuple[float, float]) -> None:
    for size, cell in zip(SIZES, TABLE[shares], strict=True):
        found = [parameters(size, *shares, two) for two in (False, True)]
        assert " ".join(f"{one.degree}/{one.threshold}" for one in found) == cell


@pytest.mark.parametrize("two_sets", [False, True])
@pytest.mark.parametrize("size", [60, 200, 1_000])
def test_what_the_finder_gives_is_sound_and_no_smaller_degree_is(size: int, two_sets: bool) -> None:
    found = parameters(size, 0.1, 0.1, two_sets)
    assert is_sound(size, found.degree, found.threshold, 0.1, two_sets, 0.1)
    # One share fewer would let the colluders, or two survivor sets, reach it.
    least = (found.degree + found.corrupt_bound) // 2 + 1 if two_sets else found.corrupt_bound + 1
    assert found.threshold == least
    assert not is_sound(size, found.degree, least - 1, 0.1, two_sets, 0.1)


def test_higher_levels_ask_for_more_neighbours() -> None:
    def degree(security_bits: int, correctness_bits: int) -> int:
        found = parameters(1_000, 0.1, 0.1, security_bits=security_bits, correctness_bits=correctness_bits)
        return found.degree

    assert degree(40, 20) == 96
    assert degree(60, 20) > degree(40, 20) > degree(20, 20)
    assert degree(40, 40) > degree(40, 20)


def test_small_cohorts_are_complete() -> None:
    assert parameters(49, 0.1, 0.1) == GraphParameters(48, 33, 4)


@pytest.mark.parametrize("bits", [(0, 20), (40, 0), (129, 20)])
def test_levels_out_of_range_are_refused(bits: tuple[int, int]) -> None:
    with pytest.raises(PrivacyError, match="bits make no graph"):
        parameters(100, 0.1, 0.1, security_bits=bits[0], correctness_bits=bits[1])
