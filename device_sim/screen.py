"""What a person sees of a running demo: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from coordinator.config import TaskConfig
from coordinator.service.tasks import RoundView

_COLUMNS = (
    ("round", "right"),
    ("cohort", "right"),
    ("reports", "right"),
    ("dropouts at keys/shares/input/unmask", "center"),
    ("loss", "right"),
    ("accuracy", "right"),
    ("epsilon", "right"),
    ("kB up", "right"),
    ("kB down", "right"),
    ("seconds", "right"),
)


class Screen:
    """Shows a demo.

    Args:
        console: where; the terminal by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._live: Live | None = None
        self._printed = 0
        self._notes: list[str] = []

    def note(self, text: str) -> None:
        """Say something once, above the table."""
        (self._live.console if self._live else self.console).print(Text(f"  {text}", style="dim"))

    def task(self, config: TaskConfig, bundle_bytes: int) -> None:
        """Say what is about to run, and what it promises."""
        encoding, privacy = config.encoding, config.privacy
        self.console.print(
            f"  model: {config.dimension:,} parameters in a signed bundle of {bundle_bytes / 1000:.0f} kB; "
            f"{config.rounds} rounds over {config.goal_count} devices"
        )
        noise = (
            f"Skellam noise for epsilon {encoding.epsilon:.2f} at delta {privacy.delta:g} over "
            f"{privacy.participation_cap} participations (noise multiplier {encoding.noise_multiplier:.2f})"
            if encoding.device_variance
            else "NO NOISE, as asked"
        )
        self.console.print(
            f"  secure aggregation: sums of at least {config.min_reports} devices, {encoding.bits} bits a parameter; "
            f"{noise}"
        )

    def rounds(self, views: Sequence[RoundView], total: int) -> None:
        """Show the rounds as they stand."""
        if self.console.is_terminal:
            if self._live is None:
                self._live = Live(console=self.console, auto_refresh=False, transient=False)
                self._live.start()
            self._live.update(Group(_table(views, total)), refresh=True)
            return
        for view in [v for v in views if v.closed_at is not None][self._printed :]:
            self._printed += 1
            self.console.print(
                "  " + ", ".join(f"{name} {cell}" for (name, _), cell in zip(_COLUMNS, cells(view), strict=True))
            )

    def close(self) -> None:
        """Leave the live table as it stands."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _table(views: Sequence[RoundView], total: int) -> Table:
    table = Table(title=f"rounds committed: {sum(v.phase == 'committed' for v in views)} of {total}")
    for name, justify in _COLUMNS:
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # rich's own literals
    for view in views:
        style = "red" if view.phase == "abandoned" else "" if view.closed_at is not None else "dim"
        table.add_row(*cells(view), style=style)
    return table


def cells(view: RoundView) -> tuple[str, ...]:
    """One round, column by column."""
    devices = max(1, view.selected)
    number = f"{view.number}"
    if view.phase == "abandoned":
        number += f" abandoned: {view.reason.name.lower().replace('_', ' ')}"
    elif view.closed_at is None:
        number += f" {view.phase}"
    return (
        number,
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


def dropouts(view: RoundView) -> tuple[int, int, int, int]:
    """How many were lost at each stage; a stage that has not begun has lost none."""
    reached = (view.selected, view.advertised, view.shared, view.reported, view.answered)
    lost = [before - after if after else 0 for before, after in itertools.pairwise(reached)]
    return lost[0], lost[1], lost[2], lost[3]
