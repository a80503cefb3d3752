"""The log of a device in its folder: structured, private, bounded, and shown as it grows."""

from __future__ import annotations

import errno
import io
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edge_sdk import logs
from edge_sdk.errors import StoreError
from edge_sdk.logs import LOG_FILE, LOG_FOLDER, LOG_OLDER, follow_log, log_to_folder, read_log

log = logging.getLogger("edge.device")


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    before = logging.getLogger("edge").level
    logging.getLogger("edge").setLevel(logging.INFO)
    yield
    logging.getLogger("edge").setLevel(before)


def test_lines_are_objects_that_read_as_sentences(tmp_path: Path) -> None:
    with log_to_folder(tmp_path):
        log.info("left round %d", 3)
        log.warning('a "quoted" naïve word')
        try:
            raise StoreError("no room")
        except StoreError:
            log.exception("the release failed")
    log.info("nobody keeps this")
    lines = read_log(tmp_path, 10)
    objects = [json.loads(line.text) for line in lines]
    assert [(o["level"], o["from"], o["message"]) for o in objects] == [
        ("info", "edge.device", "left round 3"),
        ("warning", "edge.device", 'a "quoted" naïve word'),
        ("error", "edge.device", "the release failed"),
    ]
    assert objects[0]["at"].endswith("+00:00")
    assert str(lines[0]).endswith(" left round 3")
    assert " WARNING a " in str(lines[1])
    assert "StoreError: no room" in str(lines[2])
    assert [str(line) for line in read_log(tmp_path, 1)] == [str(lines[2])]
    assert read_log(tmp_path, 0) == []


def test_nobody_else_can_read_it_and_what_is_no_line_is_shown_as_it_is(tmp_path: Path) -> None:
    with log_to_folder(tmp_path):
        pass
    path = tmp_path / LOG_FOLDER / LOG_FILE
    assert not path.stat().st_mode & 0o077
    assert not path.parent.stat().st_mode & 0o077
    path.write_text('torn {"at": \n[1]\n', encoding="utf-8")
    assert [str(line) for line in read_log(tmp_path, 9)] == ['torn {"at": ', "[1]"]
    assert read_log(tmp_path / "nowhere", 9) == []


def test_it_never_fills_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_MAX_BYTES", 2_000)
    with log_to_folder(tmp_path):
        for number in range(1_000):
            log.info("line %d", number)
    files = sorted((tmp_path / LOG_FOLDER).iterdir())
    assert len(files) == 1 + LOG_OLDER
    assert sum(file.stat().st_size for file in files) <= 2_000 * (1 + LOG_OLDER)
    assert all(not file.stat().st_mode & 0o077 for file in files)
    kept = [json.loads(line.text)["message"] for line in read_log(tmp_path, 10_000)]
    assert kept == [f"line {number}" for number in range(1_000 - len(kept), 1_000)]
    assert len(kept) > 40


def test_followers_see_every_line_across_rotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_MAX_BYTES", 1_000)
    said = iter(range(60))
    running = ExitStack()

    def write_some(_: float) -> None:
        # Instead of waiting: the device starts late, and says a little between two looks.
        if not (tmp_path / LOG_FOLDER).exists():
            running.enter_context(log_to_folder(tmp_path))
        for _ in range(5):
            log.info("line %d", next(said))

    following = follow_log(tmp_path, pause=write_some)
    with running:
        seen = [json.loads(next(following).text)["message"] for _ in range(60)]
    assert seen == [f"line {number}" for number in range(60)]
    following.close()


def test_a_follower_begins_where_the_log_ends_and_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / LOG_FOLDER / LOG_FILE
    path.parent.mkdir()
    path.write_text("old\n", encoding="utf-8")
    pieces = iter(["ne", "w\nne", "wer\n"])

    def write_some(_: float) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(next(pieces))

    following = follow_log(tmp_path, pause=write_some)
    assert [next(following).text, next(following).text] == ["new", "newer"]
    following.close()


class Full(io.StringIO):
    """A file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_lines_and_not_the_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_folder(tmp_path):
        (handler,) = [h for h in logging.getLogger("edge").handlers if isinstance(h, logging.FileHandler)]
        whole, handler.stream = handler.stream, Full()  # type: ignore[assignment]
        log.info("nothing of this fits")
        assert capsys.readouterr().err == ""
        handler.stream = whole
        log.info("room again")
    assert [json.loads(line.text)["message"] for line in read_log(tmp_path, 9)] == ["room again"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / LOG_FOLDER).write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot write .*device\.log"), log_to_folder(tmp_path):
        pass
