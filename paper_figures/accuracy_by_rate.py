"""The search behind the tuned rates: validation accuracy of every arm against the fine-tuning learning rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.records import PilotRecord, read_records
from benchmarks.report.evidence import DIVERGED_NOTE
from benchmarks.report.folders import load
from benchmarks.report.statistics import DATA, oracle_of
from paper_figures import _style as style

LABEL = 0.32
"""Inches that the label of a learning rate takes."""


def draw(results: Path) -> Figure:
    published, pilots = load(results), read_records([results / "pilots.csv"], PilotRecord)
    every, cells = style.arms_of(results), style.cells_of(published)
    arms = every[every.index.isin(pilots["arm"])]
    blocks, lines = style.blocks_of(arms), style.line_styles(arms["depth"])
    arms = style.dealt(every, blocks).loc[arms.index]
    diverged = set(pilots.loc[pilots["status"] != "ok", "arm"])
    figure, rows = style.block_panels(len(cells), blocks, arms, height=1.75, diverged=diverged)
    for axes, (cell, name) in zip(rows, cells.items(), strict=True):
        part = pilots[pilots["cell"] == cell]
        count, oracle = part["trajectory"].nunique(), oracle_of(set(part["arm"]))
        name_and_count = f"{name}, n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{count}"
        style.head(axes, name_and_count, "validation accuracy (%)")
        for axis, (_, families) in zip(axes, blocks, strict=True):
            own = arms[arms["family"].isin([*families, "naive", oracle])]
            draw_panel(axis, part, published.cells[cell], own, lines)
        stretch(axes[0], part)
    for axis in rows[-1]:
        axis.set_xlabel("learning rate")
    add_legend(figure, arms, lines)
    style.footnote(
        figure,
        "Mean over n pilot trajectories, which choose the rates and are never evaluated; no interval, since they serve "
        "no comparison. Marker: the tuned rate of an arm. Vertical line: the paper's rate. Naive and the oracle are "
        "in every panel. The scale is stretched towards 100 %."
        f"{f' {DIVERGED_NOTE}' if diverged else ''}",
    )
    return figure


def draw_panel(axis: Axes, pilots: pd.DataFrame, runs: pd.DataFrame, arms: pd.DataFrame, lines: dict[int, str]) -> None:
    """One line per arm of `arms`, KNOWN and naive on top; pilots and runs are those of one cell."""
    mean = 100 * pilots.groupby(["arm", "learning_rate"])["validation_accuracy"].mean()
    tuned = runs[runs["policy"] == "tuned"].groupby("arm")["learning_rate"].first()
    for arm in (arm for arm in arms.itertuples() if arm.Index in mean):
        look = {"color": arm.colour, "zorder": {"known": 4, "naive": 3}.get(arm.family, 2)}
        width = 1.4 if arm.family in ("naive", *DATA) else 0.8
        curve = mean[arm.Index]
        axis.plot(curve.index, curve, style.dashed(arm.family, lines[arm.depth]), linewidth=width, **look)
        if arm.Index in tuned:  # it may lie between two points
            best = tuned[arm.Index]
            height = np.interp(np.log(best), np.log(curve.index.to_numpy()), curve.to_numpy())
            axis.plot(best, height, arm.marker, markersize=3, **look)
    axis.set_xscale("log", base=2)
    papers = runs.loc[runs["policy"] == "short", "learning_rate"].unique()
    label_rates(axis, sorted(pilots["learning_rate"].unique()), papers)
    for rate in papers:
        axis.axvline(rate, color="#555555", linewidth=0.8, linestyle=(0, (1, 1)), zorder=1)


def label_rates(axis: Axes, rates: list[float], published: np.ndarray) -> None:
    """A tick at every rate of the grid; labels, evenly, at as many as have room, the published one among them."""
    width = axis.figure.get_figwidth() / axis.get_subplotspec().get_gridspec().ncols - 0.5
    every = -(-LABEL * len(rates) // width)
    first = min((k for k, rate in enumerate(rates) if rate in published), default=0)
    labels = ["" if (k - first) % every else f"{rate:.2g}" for k, rate in enumerate(rates)]
    axis.set_xticks(rates, labels, size=6)
    axis.minorticks_off()


def stretch(axis: Axes, pilots: pd.DataFrame) -> None:
    """An axis like the logarithm of the error: the arms differ near the top, diverging ones reach far down."""
    axis.set_yscale("function", functions=(lambda a: -np.log(101 - np.minimum(a, 100)), lambda s: 101 - np.exp(-s)))
    means = 100 * pilots.groupby(["arm", "learning_rate"])["validation_accuracy"].mean()
    step = 20 if np.ptp(means) > 50 else 10
    low, high = axis.get_ylim()
    places = axis.transAxes.inverted().transform
    ticks, last = [], np.inf
    for a in [100, 99, 97, 95, 90, 85, 80, *range(80 - step, -1, -step)]:
        height = places(axis.transData.transform((1, a)))[1]
        if low <= a <= high and last - height > 0.08:  # labels any closer would overlap
            ticks, last = [a, *ticks], height
    axis.set_yticks(ticks)


def add_legend(figure: Figure, arms: pd.DataFrame, lines: dict[int, str]) -> None:
    """Line styles of the depths; the families stand above their column."""
    factors = arms[arms["depth"] > 0].groupby("depth")["factor"].unique()
    handles = [
        Line2D([], [], color="black", label=f"at {', '.join(named)}", linestyle=lines[depth])
        for depth, named in factors.items()
    ]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
