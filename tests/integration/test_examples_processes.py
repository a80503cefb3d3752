"""Example stores among processes: several at once, and some that are killed in the middle of a write."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.fields import f32, i64

SCHEMA = {"x": f32(256), "y": i64()}

WRITER = """
import sys
from pathlib import Path
import numpy as np
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.fields import f32, i64

with ExampleStore(Path(sys.argv[1]), {"x": f32(256), "y": i64()}, max_rows=10**6) as store:
    start, many = int(sys.argv[2]), int(sys.argv[3])
    for label in range(start, 10**6, many):
        y = np.arange(label, label + many)
        store.add_many({"x": np.repeat(y[:, None], 256, axis=1).astype(np.float32), "y": y})
        print(label + many, flush=True)
"""

ERASER = """
import sys
from pathlib import Path
import numpy as np
from edge_sdk.training.examples import ExampleStore

with ExampleStore(Path(sys.argv[1])) as store:
    while True:
        y = np.arange(200)
        store.add_many({"x": np.repeat(y[:, None], 256, axis=1).astype(np.float32), "y": y})
        store.erase()
        print(len(store), flush=True)
"""

ADDER = """
import sys, threading
from pathlib import Path
import numpy as np
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.fields import f32, i64

sys.stdin.readline()
with ExampleStore(Path(sys.argv[1]), {"x": f32(256), "y": i64()}) as store:
    def add(first):
        for label in range(first, first + 15):
            store.add(x=np.full(256, label, np.float32), y=label)
    threads = [threading.Thread(target=add, args=(int(sys.argv[2]) + 15 * number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


FILLER = """
import resource, sys
from pathlib import Path
import numpy as np
from edge_sdk.errors import StoreError
from edge_sdk.training.examples import ExampleStore

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
with ExampleStore(Path(sys.argv[1]), max_rows=10**6) as store:
    refused = 0
    while refused < 3:
        y = np.arange(len(store), len(store) + 50)
        try:
            store.add_many({"x": np.repeat(y[:, None], 256, axis=1).astype(np.float32), "y": y})
        except StoreError as error:
            refused += 1
            print(error.hint)
    print(len(store))
    assert store.arrays()["y"].tolist() == list(range(len(store)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.add(x=np.zeros(256, np.float32), y=len(store))
"""


def started(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def killed_after(process: subprocess.Popen[str], lines: int) -> str:
    """What the process said last before it was killed, which was some time after so many lines."""
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(lines)]
    process.kill()
    said += process.stdout.readlines()
    process.communicate()
    return [line for line in said if line.endswith("\n")][-1]


def whole(path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


@pytest.mark.parametrize("many", [1, 300])
def test_what_was_added_outlives_a_kill(tmp_path: Path, many: int) -> None:
    """Nothing that was said to be added is missing, and of what was being added there is all or nothing."""
    path, count = tmp_path / "examples.sqlite", 0
    for lines in (1, 7, 23):
        said = int(killed_after(started(WRITER, str(path), str(count), str(many)), lines))
        with ExampleStore(path, SCHEMA) as store:
            found = store.arrays()
            count = len(store)
        assert count in (said, said + many)
        assert found["y"].tolist() == list(range(count))
        assert np.array_equal(found["x"][:, 7], np.arange(count, dtype=np.float32))
        whole(path)


def test_a_kill_while_erasing_leaves_a_store_that_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "examples.sqlite"
    ExampleStore(path, SCHEMA).close()
    for lines in (1, 2, 3, 5, 8):
        killed_after(started(ERASER, str(path)), lines)
        with ExampleStore(path) as store:
            assert len(store) in (0, 200)
            assert store.arrays()["y"].tolist() == list(range(len(store)))
            store.erase()
        whole(path)


def test_a_disk_that_takes_no_more_loses_nothing(tmp_path: Path) -> None:
    """The system refuses to write; once there is room, the store goes on."""
    path = tmp_path / "examples.sqlite"
    ExampleStore(path, SCHEMA).close()
    process = started(FILLER, str(path))
    said = process.communicate()[0].splitlines()
    assert process.returncode == 0
    assert all("free space" in hint for hint in said[:3])
    with ExampleStore(path) as store:
        assert 0 < len(store) == int(said[3]) + 1
        assert store.arrays()["y"].tolist() == list(range(len(store)))
    whole(path)


def test_processes_and_threads_add_to_one_store(tmp_path: Path) -> None:
    """All begin at once, with a store that is not there yet."""
    path = tmp_path / "examples.sqlite"
    processes = [started(ADDER, str(path), str(30 * number)) for number in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    with ExampleStore(path) as store:
        assert sorted(store.arrays()["y"].tolist()) == list(range(120))
