"""Where the log of a command goes: to standard error, and a device's to files in its folder too.

A line for each thing that happens, repeats left out. In a file each line is a JSON object with `at` (ISO 8601, UTC),
`level`, `from` and `message`; the file is rotated, so that a device's disk never fills with it. Only commands call
this. A library that sets up logging takes that from the app it is part of.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

from edge_sdk.errors import StoreError

LOG_FOLDER = "logs"
LOG_FILE = "device.log"
LOG_MAX_BYTES = 1 << 20
LOG_OLDER = 3
"""So many older files are kept beside the newest."""
FOLLOW_EVERY_S = 0.5

REPEAT_AFTER_S = 30.0
_REMEMBERED = 256


def log_to_terminal(*, verbose: bool) -> None:
    """Show what the package logs.

    Args:
        verbose: show details, and repeats of the same line.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    if not verbose:
        handler.addFilter(unrepeated())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("edge").setLevel(logging.DEBUG if verbose else logging.INFO)


@contextmanager
def log_to_folder(home: Path) -> Iterator[None]:
    """Keep what the package logs in `home/logs` too, in a `with` block.

    Raises:
        StoreError: the folder cannot be written.
    """
    path = home / LOG_FOLDER / LOG_FILE
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        handler = _Rotating(path, maxBytes=LOG_MAX_BYTES, backupCount=LOG_OLDER, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}", hint="check the disk's free space and the permissions"
        ) from error
    handler.setFormatter(_Structured())
    handler.addFilter(unrepeated())
    logger = logging.getLogger("edge")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


class _Rotating(RotatingFileHandler):
    """Readable by its owner only; a full disk costs lines and not the device."""

    def _open(self) -> IO[str]:  # type: ignore[override]  # of what the standard library's types say, only the name
        return open(
            self.baseFilename,
            self.mode,
            encoding=self.encoding,
            opener=lambda path, flags: os.open(path, flags | os.O_CLOEXEC, 0o600),
        )

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: where a log cannot be written, there is nowhere to say so."""


class _Structured(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "from": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a device's log.

    Attributes:
        text: as it stands in the file.
    """

    text: str

    def __str__(self) -> str:
        """The line as people read it; what is not one of ours as it is."""
        try:
            line = json.loads(self.text)
            level = "" if line["level"] == "info" else f" {line['level'].upper()}"
            traceback = line.get("traceback")
            return f"{line['at'][:19].replace('T', ' ')}{level} {line['message']}" + (
                f"\n{traceback}" if traceback else ""
            )
        except (KeyError, TypeError, ValueError):
            return self.text


def read_log(home: Path, newest: int) -> list[LogLine]:
    """The newest lines of a device's log, oldest first; none where it has never run.

    Raises:
        StoreError: it cannot be read.
    """
    path = home / LOG_FOLDER / LOG_FILE
    lines: deque[LogLine] = deque(maxlen=newest)
    try:
        for number in range(LOG_OLDER, -1, -1):
            file = path.with_name(f"{LOG_FILE}.{number}") if number else path
            if file.exists():
                lines.extend(LogLine(line) for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError as error:
        raise _unreadable(path, error) from error
    return list(lines)


def follow_log(home: Path, *, pause: Callable[[float], None] = time.sleep) -> Generator[LogLine]:
    """The lines that are written from now on, without an end; `pause` waits between looks.

    Raises:
        StoreError: it cannot be read.
    """
    path = home / LOG_FOLDER / LOG_FILE
    file: IO[str] | None = None
    rest = ""
    try:
        # What is there already was shown; what comes in a file that is not there yet is all new.
        file = _opened(path)
        if file is not None:
            file.seek(0, os.SEEK_END)
        while True:
            # Looked at before reading: what is written to the old file after that look is read all the same.
            newer = _opened(path) if file is None or _was_rotated(file, path) else None
            if file is not None:
                *lines, rest = (rest + file.read()).split("\n")
                yield from map(LogLine, lines)
            if newer is not None:
                if file is not None:
                    file.close()
                file = newer
                continue
            pause(FOLLOW_EVERY_S)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        if file is not None:
            file.close()


def _opened(path: Path) -> IO[str] | None:
    try:
        return path.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _was_rotated(file: IO[str], path: Path) -> bool:
    try:
        return os.fstat(file.fileno()).st_ino != path.stat().st_ino
    except FileNotFoundError:
        return False


def _unreadable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot read {path}: {error.strerror or error}", hint="check the folder and its permissions")


def unrepeated() -> Callable[[logging.LogRecord], bool]:
    """A filter that drops a line which was said less than half a minute ago.

    Whoever can send messages can make them be refused, and a log that he fills is no use.
    """
    said: dict[str, float] = {}

    def fresh(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        last = said.get(text)
        if last is not None and record.created - last < REPEAT_AFTER_S:
            return False
        if len(said) >= _REMEMBERED:
            said.clear()
        said[text] = record.created
        return True

    return fresh
