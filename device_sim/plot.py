"""The demo's picture: accuracy and epsilon by round, beside what they are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from coordinator.service.tasks import RoundView
from device_sim.baselines import Baselines

_PRIVATE, _FREE, _CENTRAL, _SPENT = "#0b6e99", "#5a9e3f", "#444444", "#c2571a"


def plot_rounds(path: Path, rounds: Sequence[RoundView], baselines: Baselines, *, devices: int) -> None:
    """Write a PNG.

    Args:
        path: the file.
        rounds: committed ones, in order.
        baselines: what to compare with.
        devices: in the fleet.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    numbers = [r.number for r in rounds]
    accuracies = [math.nan if r.accuracy is None else r.accuracy for r in rounds]
    epsilons = [math.nan if r.epsilon is None or math.isinf(r.epsilon) else r.epsilon for r in rounds]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes.axhline(baselines.centralised[-1], color=_CENTRAL, linestyle=":", label="centralised training")
    free = baselines.noise_free
    axes.plot(range(1, len(free) + 1), free, color=_FREE, marker="s", markersize=4, label="federated, no noise")
    axes.plot(numbers, accuracies, color=_PRIVATE, marker="o", linewidth=2.2, label="federated, private")
    axes.set(xlabel="round", ylabel="accuracy on held-out digits", ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.25)
    handles, labels = axes.get_legend_handles_labels()
    if not all(math.isnan(epsilon) for epsilon in epsilons):
        spent = axes.twinx()
        spent.bar(numbers, epsilons, color=_SPENT, alpha=0.22, width=0.55, label="epsilon spent")
        spent.set_ylabel("epsilon spent so far (device level)", color=_SPENT)
        spent.tick_params(axis="y", colors=_SPENT)
        spent.set_ylim(0, 2.2 * max(epsilon for epsilon in epsilons if not math.isnan(epsilon)))
        # The lines stay in front of the bars.
        axes.set_zorder(spent.get_zorder() + 1)
        axes.patch.set_visible(False)
        more, names = spent.get_legend_handles_labels()
        handles, labels = handles + more, labels + names
    axes.legend(handles, labels, loc="center right", bbox_to_anchor=(1.0, 0.55), framealpha=0.9)
    axes.set_title(f"Handwritten digits on {devices} devices, secure aggregation in every round")
    figure.savefig(path)
    pyplot.close(figure)
