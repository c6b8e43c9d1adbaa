"""Where KNOWN goes: the plane of one forgetting trajectory, its predictions and the oracle, over the source loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from style import COLUMN, FAMILIES, footnote, load_table, main, panels, title

COLUMNS = ["kind", "label", "x", "y", "loss"]
LEVELS = 15
GREYS = LinearSegmentedColormap.from_list("greys", ["#FFFFFF", "#606060"])
EDGE = [withStroke(linewidth=2, foreground="white")]
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def draw(results: Path) -> Figure:
    table = load_table(results / "landscape.csv", COLUMNS)
    kinds = dict(list(table.groupby("kind", sort=False)))
    grid, share = kinds["grid"], kinds["variance"].iloc[0]
    figure, (axis,) = panels(1, columns=1, height=0.2 + (COLUMN - 1.3) * np.ptp(grid["y"]) / np.ptp(grid["x"]))
    colours = draw_loss(axis, grid)
    beside = axis.inset_axes((1.04, 0, 0.05, 1))  # as high as the panel, whatever its aspect
    figure.colorbar(colours, cax=beside, label="source test loss (nats)", format="%.2g")
    beside.minorticks_off()
    snapshots, known, oracle = kinds["snapshot"], kinds["known"], kinds["oracle"]
    # theta_0 is where the trajectory ends and KNOWN's way back begins
    draw_path(axis, pd.concat([snapshots.iloc[-1:], known]), FAMILIES["known"][1], "--", FAMILIES["known"][2])
    draw_path(axis, snapshots, "black", "-", "o")
    draw_path(axis, oracle, FAMILIES["oracle"][1], "", FAMILIES["oracle"][2], size=11)
    ends = snapshots.iloc[[0, -1]].assign(label=lambda rows: rows["label"].str.replace("theta_", "θ"))
    for row in pd.concat([ends, known, oracle]).itertuples():
        text = row.label.translate(SUBSCRIPTS) if row.kind == "snapshot" else row.label.replace("x", "×")
        axis.annotate(text, (row.x, row.y), (5, 4), textcoords="offset points", path_effects=EDGE, zorder=6)
    axis.set_aspect("equal")
    axis.set_xlabel(f"weight distance, axis 1 ({share['x']:.0%} of variance)")
    axis.set_ylabel(f"axis 2 ({share['y']:.0%})")
    title(axis, kinds["about"]["label"].iloc[0].replace(", trajectory", "\ntrajectory"))
    footnote(
        figure,
        f"n = 1 trajectory, hence no interval. Black: snapshots, {ends['label'].iloc[0].translate(SUBSCRIPTS)} of the "
        "smallest subset to θ₀. Blue, dashed: KNOWN. Star: oracle. The plane (PCA) holds "
        f"{share['x'] + share['y']:.0%} of their variance; grey is the loss on the plane, off which they lie.",
    )
    return figure


def draw_loss(axis: Axes, grid: pd.DataFrame) -> ContourSet:
    """Filled contours, at even ratios where the loss spans more than a factor of 5; what is not finite is the worst."""
    loss = grid.pivot(index="y", columns="x", values="loss").replace(np.inf, np.nan)
    loss = loss.fillna(loss.max(axis=None)).clip(lower=1e-6)
    low, high = loss.min(axis=None), loss.max(axis=None)
    wide = high > 5 * low
    levels = np.geomspace(low, high, LEVELS) if wide else np.linspace(low, high, LEVELS)
    levels[0], levels[-1] = low, high  # rounding would leave the extremes unfilled
    place = (loss.columns, loss.index, loss)
    colours = axis.contourf(*place, levels, cmap=GREYS, norm=LogNorm(low, high) if wide else None)
    axis.contour(*place, levels, colors="#606060", linewidths=0.3)
    return colours


def draw_path(axis: Axes, points: pd.DataFrame, colour: str, line: str, marker: str, size: float = 4) -> None:
    """Markers in the given order, and an arrow along every step that is long enough to carry one."""
    x, y = points["x"].to_numpy(), points["y"].to_numpy()
    axis.plot(x, y, line, color=colour, path_effects=EDGE, zorder=4)
    axis.plot(x, y, marker, color=colour, markersize=size, markeredgecolor="white", markeredgewidth=0.6, zorder=5)
    least = 0.05 * np.ptp(axis.get_xlim())
    for k in range(len(x) - 1):
        if np.hypot(x[k + 1] - x[k], y[k + 1] - y[k]) > least:
            middle = (x[k] + 0.65 * (x[k + 1] - x[k]), y[k] + 0.65 * (y[k + 1] - y[k]))
            arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 0, "shrinkA": 0, "shrinkB": 0}
            axis.annotate("", middle, (x[k], y[k]), arrowprops=arrow, zorder=4)


if __name__ == "__main__":
    main(__file__, draw)
