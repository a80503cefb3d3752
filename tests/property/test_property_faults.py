"""Whatever goes wrong, in whatever order, a round is committed with its survivors' sum or given up with a reason.

A failing example prints a `Case`: paste it into tests/simulation/reproductions.py, and it stays fixed.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.service.tasks import RoundView
from device_sim.script import STAGES, CrashCoordinator, Fault, Reboot, Vanish
from device_sim.virtual import Network
from edge_sdk.protocol.messages import AbandonReason
from tests.simulation.world import Case, device_name, fresh_folder

DEVICES = 7
ROUNDS = 2

_devices = st.integers(0, DEVICES - 1).map(device_name)
_rounds = st.integers(1, ROUNDS)
_stages = st.sampled_from(sorted(STAGES))

faults: st.SearchStrategy[Fault] = st.one_of(
    st.builds(Vanish, _devices, _rounds, _stages),
    st.builds(Reboot, _devices, _rounds, _stages),
    st.builds(CrashCoordinator, st.integers(1, 120)),
)
networks = st.builds(
    Network,
    latency_s=st.sampled_from([0.02, 0.5, 3.0]),
    loss=st.sampled_from([0.0, 0.05, 0.2]),
    duplicates=st.sampled_from([0.0, 0.2]),
)
cases = st.builds(
    Case,
    devices=st.just(DEVICES),
    rounds=st.just(ROUNDS),
    min_reports=st.integers(2, 5),
    seed=st.integers(0, 10_000),
    network=networks,
    by_quorum=st.booleans(),
    faults=st.lists(faults, max_size=8, unique=True).map(tuple),
)


@pytest.mark.no_cover  # whole rounds
@settings(max_examples=40)
@given(cases)
def test_every_round_is_right_or_given_up(case: Case) -> None:
    with fresh_folder() as folder:
        rounds = case.run(folder)
    assert all(is_explained(view) for view in rounds), rounds


def is_explained(view: RoundView) -> bool:
    """Whether a round's end is one of those that the faults of this test may bring about."""
    possible = {
        AbandonReason.NONE,
        AbandonReason.TOO_FEW_CHECK_INS,
        AbandonReason.TOO_FEW_KEYS,
        AbandonReason.TOO_FEW_SHARES,
        AbandonReason.TOO_FEW_REPORTS,
        AbandonReason.NO_QUORUM,
        AbandonReason.TOO_FEW_ANSWERS,
    }
    return view.closed_at is not None and view.reason in possible
