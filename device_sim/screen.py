"""What a person sees of a running demo: a live table in a terminal, a line for each round elsewhere.

Fits into 80 columns. Lines that hold paths or commands are never broken, so that they can be copied.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from coordinator.config import TaskConfig
from coordinator.service.tasks import RoundView

_COLUMNS = ("round", "devices", "reports", "lost", "loss", "accuracy", "epsilon", "kB up", "kB down", "secs")
_CAPTION = "lost at keys / shares / input / unmasking; kB for each device"
_WIDE = 100
"""Columns of a terminal in which the table has room to breathe."""

_LINES_AROUND = 12
"""Kept free around the live table: what does not fit a terminal's height cannot be drawn again in place."""


class Screen:
    """Shows a demo.

    Args:
        console: where; the terminal by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._live: Live | None = None
        self._last: tuple[Sequence[RoundView], int] = ((), 0)
        self._printed = 0

    def say(self, text: str = "", *, style: str | None = None) -> None:
        """Print a line as it is, however long; above the live table, if there is one."""
        console = self._live.console if self._live else self.console
        console.print(escape(text), style=style, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Say something by the way."""
        self.say(f"  {text}", style="dim")

    def task(self, config: TaskConfig, bundle_bytes: int) -> None:
        """Say what is about to run, and what it promises."""
        encoding, privacy = config.encoding, config.privacy
        self.say(
            f"  model: {config.dimension:,} parameters, a signed bundle of {bundle_bytes / 1000:.0f} kB; "
            f"{config.rounds} rounds over {config.goal_count} devices"
        )
        self.say(
            f"  secure aggregation: sums of at least {config.min_reports} devices, {encoding.bits} bits a parameter"
        )
        self.say(
            f"  noise: epsilon {encoding.epsilon:.2f} at delta {privacy.delta:g} over {privacy.participation_cap} "
            f"participations, multiplier {encoding.noise_multiplier:.2f}"
            if encoding.device_variance
            else "  NO NOISE, as asked"
        )

    def rounds(self, views: Sequence[RoundView], total: int) -> None:
        """Show the rounds as they stand.

        Args:
            views: all of them, in order; those that ended stay as they are.
            total: how many are to be committed.
        """
        live = self.console.is_terminal and not self.console.is_dumb_terminal
        for view in [v for v in views if v.closed_at is not None][self._printed :]:
            self._printed += 1
            if not live:
                self.say(line(view, total))
            elif view.phase == "abandoned":
                self.note(f"round {view.number} was abandoned: {_reason(view)}; it is tried again")
        if not live:
            return
        self._last = (views, total)
        if self._live is None:
            # Erased at the end, and drawn a last time in full.
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        shown = max(3, self.console.height - _LINES_AROUND)
        self._live.update(_table(views[-shown:], _title(views, total), wide=self.console.width >= _WIDE), refresh=True)

    def close(self) -> None:
        """Leave the table as it stands. May be called again."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            views, total = self._last
            self.console.print(_table(views, _title(views, total), wide=self.console.width >= _WIDE))


def _title(views: Sequence[RoundView], total: int) -> str:
    committed = sum(v.phase == "committed" for v in views)
    if views and views[-1].closed_at is None:
        return f"round {views[-1].number} of {total}: {views[-1].phase}"
    return f"{committed} of {total} rounds committed"


def _table(views: Sequence[RoundView], title: str, *, wide: bool) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        caption=_CAPTION,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1) if wide else 0,
    )
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for view in views:
        style = "red" if view.phase == "abandoned" else "" if view.closed_at is not None else "dim"
        table.add_row(*cells(view), style=style)
    return table


def cells(view: RoundView) -> tuple[str, ...]:
    """One round, column by column."""
    devices = max(1, view.selected)
    return (
        f"{view.number}",
        f"{view.selected or view.checked_in}",
        f"{view.reported}",
        "/".join(str(count) for count in dropouts(view)),
        "-" if view.loss is None else f"{view.loss:.3f}",
        "-" if view.accuracy is None else f"{view.accuracy:.1%}",
        "-" if view.epsilon is None else "none" if math.isinf(view.epsilon) else f"{view.epsilon:.2f}",
        f"{view.bytes_up / devices / 1000:.1f}",
        f"{view.bytes_down / devices / 1000:.1f}",
        "-" if view.closed_at is None else f"{view.closed_at - view.opened_at:.1f}",
    )


def line(view: RoundView, total: int) -> str:
    """One round that ended, in one line."""
    number, devices, reports, lost, loss, accuracy, epsilon, up, down, seconds = cells(view)
    begin = f"  round {number} of {total}"
    came = f"{devices} devices, {reports} reports, lost {lost}"
    if view.phase == "abandoned":
        return f"{begin} abandoned: {_reason(view)}; {came}, {seconds} s"
    return (
        f"{begin}: {came}, loss {loss}, accuracy {accuracy}, epsilon {epsilon}, "
        f"kB a device {up} up {down} down, {seconds} s"
    )


def _reason(view: RoundView) -> str:
    reason = view.reason.name.lower().replace("_", " ")
    return f"{reason} ({view.detail})" if view.detail else reason


def dropouts(view: RoundView) -> tuple[int, int, int, int]:
    """How many were lost at each stage; one that has not begun or is under way has lost none yet."""
    reached = [view.selected, view.advertised, view.shared, view.reported, view.answered]
    if view.closed_at is None:
        under_way = max((i for i, count in enumerate(reached) if count), default=0)
        reached[under_way:] = [0] * (len(reached) - under_way)
    lost = [before - after if after else 0 for before, after in itertools.pairwise(reached)]
    return lost[0], lost[1], lost[2], lost[3]
