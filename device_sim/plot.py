"""The demo's picture: accuracy by round beside what it is compared with, and below it the epsilon spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from coordinator.service.tasks import RoundView
from device_sim.baselines import Baselines

_PRIVATE, _FREE, _CENTRAL, _SPENT = "#0b6e99", "#5a9e3f", "#444444", "#c2571a"
_SIZE_INCHES, _SIZE_WITHOUT_NOISE_INCHES = (8.0, 5.6), (8.0, 4.2)


def plot_rounds(
    path: Path, rounds: Sequence[RoundView], baselines: Baselines, *, devices: int, budget: float | None = None
) -> None:
    """Write a PNG; its lower part is left out where no epsilon is known.

    Args:
        path: the file.
        rounds: committed ones, in order.
        baselines: what to compare with.
        devices: in the fleet.
        budget: of epsilon, drawn as a line; None for none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    numbers = [r.number for r in rounds]
    private = [math.nan if r.accuracy is None else r.accuracy for r in rounds]
    free, central = baselines.noise_free, baselines.centralised[-1]
    spent = [(r.number, r.epsilon) for r in rounds if r.epsilon is not None and math.isfinite(r.epsilon)]

    figure = Figure(figsize=_SIZE_INCHES if spent else _SIZE_WITHOUT_NOISE_INCHES, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    if spent:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    else:
        upper = lower = figure.subplots()

    upper.axhline(central, color=_CENTRAL, linestyle="--", linewidth=1.2, label=f"centralised training: {central:.1%}")
    name = f"federated without noise: {free[-1]:.1%}"
    upper.plot(range(1, len(free) + 1), free, color=_FREE, marker="s", markersize=4, label=name)
    name = f"federated and private: {private[-1]:.1%}"
    upper.plot(numbers, private, color=_PRIVATE, marker="o", markersize=5, linewidth=2.2, label=name)
    lowest = min(value for value in (*private, *free, central) if not math.isnan(value))
    # Room below the curves, to the next ten percent, for the legend.
    upper.set_ylim(max(0.0, math.floor(lowest * 10 - 1) / 10), 1.02)
    upper.set_ylabel("accuracy on held-out examples")
    upper.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    upper.legend(loc="lower right", framealpha=0.9)
    upper.set_title(f"Handwritten digits on {devices:,} devices, secure aggregation in every round", loc="left")

    if spent:
        lower.bar([number for number, _ in spent], [epsilon for _, epsilon in spent], color=_SPENT, width=0.5)
        top = max(epsilon for _, epsilon in spent)
        if budget is not None and math.isfinite(budget):
            top = max(top, budget)
            lower.axhline(budget, color=_SPENT, linestyle=":", linewidth=1.4)
            lower.text(
                0.01, budget, f"budget {budget:g}", color=_SPENT, va="bottom", transform=lower.get_yaxis_transform()
            )
        lower.set_ylim(0, 1.35 * top)
        lower.set_ylabel("epsilon spent")
    lower.set_xlabel("round")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (upper, lower):
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
