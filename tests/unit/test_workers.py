"""Worker processes: nothing is lost or done twice when one dies, nobody waits for ever, none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from coordinator.secagg.work import dealt
from coordinator.service.workers import DEATHS, ProcessWorkers
from edge_sdk.errors import ConfigError, WorkerError
from tests.unit.errands import die, die_once, fail, who_did

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workers() -> Iterator[ProcessWorkers]:
    with ProcessWorkers(2) as pool:
        yield pool


def test_every_batch_is_done_once_and_elsewhere(workers: ProcessWorkers) -> None:
    done = list(workers.each(who_did, range(20)))
    assert sorted(number for number, _ in done) == list(range(20))
    assert os.getpid() not in {process for _, process in done}


def test_one_batch_is_not_worth_a_process(workers: ProcessWorkers) -> None:
    assert list(workers.each(who_did, [7])) == [(7, os.getpid())]
    assert list(workers.each(who_did, [])) == []
    assert workers._executor is None


def test_a_worker_that_dies_costs_its_batch_another_try(workers: ProcessWorkers, tmp_path: Path) -> None:
    done = list(workers.each(die_once, [(number, tmp_path) for number in range(12)]))
    assert sorted(done) == list(range(12))
    assert (tmp_path / "died").exists()


def test_workers_that_keep_dying_end_the_work_and_not_the_pool(workers: ProcessWorkers) -> None:
    with pytest.raises(WorkerError, match=f"died {DEATHS + 1} times"):
        list(workers.each(die, range(4)))
    assert len(list(workers.each(who_did, range(4)))) == 4


def test_an_error_in_the_work_is_the_callers(workers: ProcessWorkers) -> None:
    with pytest.raises(ValueError, match="no such number"):
        list(workers.each(fail, range(8)))
    assert len(list(workers.each(who_did, range(4)))) == 4


def test_a_closed_pool_does_nothing(workers: ProcessWorkers) -> None:
    begun = workers.each(who_did, range(1_000))
    next(begun)
    workers.close()
    with pytest.raises(WorkerError, match="stopped"):
        list(begun)
    with pytest.raises(WorkerError, match="stopped"):
        list(workers.each(who_did, range(2)))


def test_the_number_of_workers() -> None:
    assert ProcessWorkers().count == os.cpu_count()
    assert ProcessWorkers(10_000).count == os.cpu_count()
    with pytest.raises(ConfigError, match="do no work"):
        ProcessWorkers(0)


PARENT = """
import os, sys
from coordinator.service.workers import ProcessWorkers
from tests.unit.errands import who_did
if __name__ == "__main__":
    pool = ProcessWorkers(2)
    print(*{process for _, process in pool.each(who_did, range(20))}, flush=True)
    sys.stdin.read()
"""


def test_workers_end_with_a_coordinator_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert children
        parent.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


def test_batches_hold_everything_in_order_up_to_the_limit() -> None:
    costs = [3, 1, 4, 1, 5, 9, 2, 6]
    batches = list(dealt(costs, lambda cost: cost, 6))
    assert batches == [(3, 1, 4), (1, 5), (9,), (2, 6)]
    assert list(dealt([], lambda _: 1, 6)) == []
