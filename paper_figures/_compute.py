"""What the same compute buys: the gain on the target at tuned rates of every attempt, by compute and network.

`python -m paper_figures results` draws it into results/explored/compute.svg and .png, from the tables of the
exploration; the data gap is that of the core suite of the network, where it was run.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.explored import BUDGETS, gains, gains_of_all
from benchmarks.report.folders import load
from benchmarks.report.statistics import Interval, gain, paired_t, trajectory_means
from paper_figures import _style as style

LOOKS = dict(zip(BUDGETS, (("#56B4E9", "o"), ("#0072B2", "s"), ("#332288", "D")), strict=True))
"""Colour and marker of the budgets, the darker the more."""


def draw(results: Path) -> Figure:
    targets = pd.read_csv(results / "explored" / "targets.csv")
    tables = gains_of_all(targets), gains(targets).sort_values("network", kind="stable")  # the mean of all comes first
    found = pd.concat([table for table in tables if len(table)]).rename(columns={"mean": "difference"})
    networks, attempts = found["network"].unique(), sorted(found["attempt"].unique())
    height = 1.3 + style.ROW * len(attempts) * 1.6
    gaps = {network: _data_gap(results, network) for network in networks}
    ends = {network: _ends(found[found["network"] == network], gaps[network]) for network in networks}
    widths = [high - low for low, high in ends.values()]  # so that a point is as long in every panel
    shared = {"sharey": True, "width_ratios": widths, "squeeze": False}
    figure, axes = style.plt.subplots(1, len(networks), figsize=(style.PAGE, height), **shared)
    axes[0, 0].set_ylim(len(attempts) - 0.5, -0.5)
    for axis, network in zip(axes[0], networks, strict=True):
        style.title(axis, network, beside=2.0)
        axis.set_xlim(ends[network])
        _panel(axis, found[found["network"] == network], attempts, gaps[network])
    style.legend(figure, axes[0], 3)
    style.footnote(
        figure,
        f"{style.interval_note(found['n'])} Validation accuracy on the target at tuned rates, exploratory. In the "
        "mean of all networks each counts once, at budgets that all have. θ₀ lies at 0, and takes no further compute; "
        "what is called oracle takes the place of its training. Grey band: the data gap in the network's core suite, "
        "where it was run, which is of test images, of other trajectories, and of no further compute, so it gives a "
        "scale and no contrast.",
    )
    return figure


def _data_gap(results: Path, network: str) -> Interval | None:
    """Twice the source data at equal steps minus naive, at tuned rates in core/<network>."""
    if not (results / "core" / network / "suite.json").is_file():
        return None
    means = 100 * trajectory_means(load(results / "core" / network, results).runs)
    values = gain(means.xs("tuned", level="policy"), "share")
    return None if values is None else paired_t(values)


def _ends(found: pd.DataFrame, gap: Interval | None) -> tuple[float, float]:
    """Ends of a panel's axis: all of its intervals, and half a point to each side of 0 at least."""
    low, high = min(found["low"].min(), -0.5), max(found["high"].max(), 0.5, gap.high if gap else 0)
    return low - 0.1, high + 0.1


def _panel(axis: Axes, found: pd.DataFrame, attempts: list[str], gap: Interval | None) -> None:
    axis.axvline(0, color="black", linewidth=0.6, zorder=1)
    if gap:
        axis.axvspan(gap.low, gap.high, color="#E5E5E5", zorder=0)
    axis.set_yticks(range(len(attempts)), attempts)
    axis.tick_params(axis="y", length=0)
    for (_, row), place in zip(found.iterrows(), found["budget"].map(list(BUDGETS).index), strict=True):
        share = BUDGETS[row["budget"]]
        label = f"{share:.2g} × the images that made θ₀"
        style.draw_bar(axis, attempts.index(row["attempt"]) + 0.25 * (place - 1), row, (label, *LOOKS[row["budget"]]))
    axis.set_xlabel("points, minus θ₀")
