"""What a demo shows: the numbers of a round, column by column, and a picture of all of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from coordinator.service.tasks import RoundView
from device_sim.baselines import Baselines
from device_sim.plot import plot_rounds
from device_sim.screen import Screen, cells, dropouts, line
from edge_sdk.protocol.messages import AbandonReason

ROUND = RoundView(
    number=3,
    phase="committed",
    reason=AbandonReason.NONE,
    opened_at=100.0,
    closed_at=104.25,
    checked_in=200,
    selected=200,
    advertised=196,
    shared=190,
    reported=185,
    answered=181,
    bytes_up=2_000_000,
    bytes_down=4_500_000,
    loss=0.25,
    accuracy=0.913,
    epsilon=3.456,
    clip_norm=None,
    within=None,
    faults={},
    declined={},
    detail="",
)
BASELINES = Baselines(centralised=(0.9, 0.98), noise_free=(0.8, 0.95, 0.97))


def rounds(count: int) -> list[RoundView]:
    return [replace(ROUND, number=n, epsilon=2.0 * math.sqrt(n), accuracy=1 - 0.3 / n) for n in range(1, count + 1)]


def test_dropouts_are_counted_by_stage() -> None:
    assert dropouts(ROUND) == (4, 6, 5, 4)


def test_a_stage_that_has_not_begun_has_lost_nobody() -> None:
    assert dropouts(replace(ROUND, reported=0, answered=0)) == (4, 6, 0, 0)


def test_a_stage_under_way_has_lost_nobody_yet() -> None:
    assert dropouts(replace(ROUND, closed_at=None, reported=12, answered=0)) == (4, 6, 0, 0)
    assert dropouts(replace(ROUND, closed_at=None, selected=0, advertised=0, shared=0, reported=0, answered=0)) == (
        0,
        0,
        0,
        0,
    )


def test_a_round_column_by_column() -> None:
    assert cells(ROUND) == ("3", "200", "185", "4/6/5/4", "0.250", "91.3%", "3.46", "10.0", "22.5", "4.2")


def test_a_round_under_way_says_its_phase_and_leaves_open_what_is_not_known() -> None:
    view = replace(ROUND, phase="selection", closed_at=None, selected=0, loss=None, accuracy=None, epsilon=None)
    shown = cells(view)
    assert shown[:2] == ("3", "200")
    assert (shown[4], shown[5], shown[6], shown[9]) == ("-", "-", "-", "-")


def test_an_abandoned_round_says_why_and_no_noise_is_named() -> None:
    view = replace(ROUND, phase="abandoned", reason=AbandonReason.TOO_FEW_REPORTS, epsilon=math.inf)
    assert line(view, 10).startswith("  round 3 of 10 abandoned: too few reports; 200 devices")
    assert cells(view)[6] == "none"


def test_without_a_terminal_each_finished_round_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(Console(force_terminal=False, width=300))
    views = rounds(2)
    screen.rounds(views[:1], 2)
    screen.rounds([views[0], replace(views[1], closed_at=None)], 2)
    screen.rounds(views, 2)
    screen.close()
    lines = capsys.readouterr().out.splitlines()
    assert [shown.split(":")[0].strip() for shown in lines] == ["round 1 of 2", "round 2 of 2"]


@pytest.mark.parametrize(
    ("count", "epsilon", "budget"),
    [(10, True, 8.0), (1, True, None), (3, False, math.inf)],
    ids=["as in the demo", "one round", "no noise"],
)
def test_the_picture_is_drawn(count: int, epsilon: bool, budget: float | None, tmp_path: Path) -> None:
    views = rounds(count) if epsilon else [replace(view, epsilon=math.inf) for view in rounds(count)]
    views[0] = replace(views[0], accuracy=None)
    path = tmp_path / "demo.png"
    plot_rounds(path, views, BASELINES, devices=200, budget=budget)
    picture = imread(path)
    assert picture.shape[0] > (600 if epsilon else 400)
    assert picture.shape[1] > 900
    assert 0.2 < picture[..., :3].mean() < 0.99
