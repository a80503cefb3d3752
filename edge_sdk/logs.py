"""Where the log of a command goes: to standard error, a line for each thing that happens, repeats left out.

Only commands call this. A library that sets up logging takes that from the app it is part of.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

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
