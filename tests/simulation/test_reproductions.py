"""What was found once is not lost again; and a run told twice is the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_sim.script import CrashCoordinator, Reboot, Vanish
from device_sim.virtual import Network
from edge_sdk.protocol.messages import DeclineReason
from edge_sdk.runtime.learner import Bundle
from tests.simulation.reproductions import COMMITTED
from tests.simulation.world import Case, World, device_name, fresh_folder


@pytest.mark.parametrize("case", COMMITTED)
def test_what_once_failed_is_committed(folder: Path, case: Case) -> None:
    rounds = case.run(folder)
    assert [view.phase for view in rounds] == ["committed"] * case.rounds


def test_a_case_is_the_whole_run() -> None:
    faults = (Vanish(device_name(1), 1, "share_keys"), Reboot(device_name(2), 1, "unmasking"), CrashCoordinator(17))
    case = Case(6, rounds=2, seed=11, network=Network(0.3, 0.1, 0.2), faults=faults)
    again = eval(repr(case))  # noqa: S307  # a case in a failure's report is pasted as it was printed
    assert again == case
    runs = []
    for told in (case, again):
        with fresh_folder() as folder:
            runs.append(told.run(folder))
    assert runs[0] == runs[1]


def test_an_error_tells_how_to_replay_it(folder: Path) -> None:
    faults = (Vanish(device_name(1), 1, "share_keys"), CrashCoordinator(17))
    with World(folder, 4, seed=3, faults=faults) as world:

        def broken(bundle: Bundle, checkpoint: bytes) -> int:
            raise ZeroDivisionError(DeclineReason.BUNDLE_INVALID.name)

        world.learners[2].check = broken  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError) as caught:
            world.run()
    (note,) = caught.value.__notes__
    assert "seed=3" in note
    assert "CrashCoordinator(delivery=17)" in note
    assert "Vanish(device_id='device-001', round_number=1, stage='share_keys')" in note
