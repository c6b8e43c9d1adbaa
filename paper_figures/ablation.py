"""What the length S of the history and the ratio r of consecutive subsets do: gain over naive against each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.report.evidence import DIVERGED_NOTE
from benchmarks.report.folders import CELL, load
from benchmarks.report.statistics import DATA, summarise
from benchmarks.settings import LENGTH, RATIO
from paper_figures import _style as style

USUAL = {"length": LENGTH, "rate": RATIO}
"""What may vary, with the paper's value."""
LEFT_OUT = ("naive", "scratch")


def draw(results: Path) -> Figure:
    runs, arms = load(results).runs, style.arms_of(results)
    every_series = [(varied, cells, table_of(runs, arms, cells, varied)) for varied, cells in series_of(runs)]
    shown = [one for one in every_series if len(one[2])]
    if not shown:
        return style.only_words("This suite varies neither S nor r.")
    every = pd.concat(table for *_, table in shown)
    own = arms[arms["family"].isin(every["family"])]
    blocks = style.blocks_of(own)
    if own["family"].nunique() <= style.MOST:
        blocks = [("", list(dict.fromkeys(own["family"])))]  # one panel
    arms, lines = style.dealt(arms, blocks).loc[own.index], style.line_styles(every["depth"])
    diverged = set(every.loc[every["failed"] > 0, "arm"])
    figure, rows = style.block_panels(len(shown), blocks, arms, height=2.1, diverged=diverged)
    for axes, (varied, cells, table) in zip(rows, shown, strict=True):
        first = cells.iloc[0].to_dict() | {varied: USUAL[varied]}
        name = f"{style.name_of_cell(first)}, {style.counted(table['n'])}"
        style.head(axes, name, "gain over naive (points)")
        axes[0].set_ylim(style.widened(style.limits(table), table[table["family"].isin(DATA)]))
        for axis, (_, families) in zip(axes, blocks, strict=True):
            own = table[table["family"].isin(families)].join(arms[["colour", "marker"]], on="arm")
            draw_panel(axis, own, varied, lines)
            label_values(axis, table, varied, cells["rate"].iloc[0])
    add_legend(figure, lines)
    style.footnote(
        figure,
        f"{style.interval_note(every['n'])} Gain: accuracy minus that of naive in the same cell, in percentage points, "
        "each arm at its tuned rate. A line joins the same depth d, d predictions one after the other, which stands "
        "for r⁻ᵈ times the data. Arms that two values or more have, without naive and from scratch; next to each "
        "other only so that bars can be told apart. A triangle on the edge: the mean lies beyond it."
        f"{f' {DIVERGED_NOTE}' if diverged else ''}",
    )
    return figure


def series_of(runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """What varies, and the cells that differ in it alone, one row per cell; first all series for S, then for r."""
    cells = runs[[*CELL, "cell"]].drop_duplicates()
    series = []
    for varied in USUAL:
        for _, own in cells.groupby([key for key in CELL if key != varied]):
            series += [(varied, own.sort_values(varied))] if len(own) > 1 else []
    return series


def table_of(runs: pd.DataFrame, arms: pd.DataFrame, cells: pd.DataFrame, varied: str) -> pd.DataFrame:
    """The summary of the arms that two cells have or more, with family and the value of what varies.

    The depth is that of the records: the factor in an arm's name depends on r, and so may stand for several depths.
    """
    table = summarise(runs[runs["cell"].isin(cells["cell"]) & (runs["policy"] == "tuned")])
    table = table[~table["arm"].isin(LEFT_OUT)]
    table = table.merge(cells[["cell", varied]], on="cell").rename(columns={varied: "value"})
    table = table.join(arms["family"], on="arm")
    table = table.sort_values(["arm", "value"], key=lambda c: c.map(list(arms.index).index) if c.name == "arm" else c)
    return table[table.groupby(["family", "depth"])["value"].transform("nunique") > 1]


def draw_panel(axis: Axes, table: pd.DataFrame, varied: str, lines: dict[int, str]) -> None:
    """One line per family and depth, deepest filled and solid; the y axis has its ends."""
    axis.axhline(0, color="black", linewidth=0.6, zorder=1)
    own = list(table.groupby(["family", "depth"], sort=False))
    values = sorted(table["value"].unique())
    side = min(0.32 * np.diff(values).min(), 0.014 * (values[-1] - values[0]) * (len(own) - 1))
    for shift, ((family, depth), rows) in zip(np.linspace(-side, side, len(own)), own, strict=True):
        rows = rows.sort_values("value")
        x, colour = rows["value"].to_numpy() + shift, rows["colour"].iloc[0]
        look = {"color": colour, "zorder": 4 if family == "known" else 3}
        look["markerfacecolor"] = colour if lines[depth] == "-" else "white"
        axis.vlines(x, rows["low"], rows["high"], linewidth=0.7, color=colour, zorder=2)
        size = 6 if family in DATA else 3.5
        marker = rows["marker"].iloc[0]
        axis.plot(x, rows["difference"], marker, ls=lines[depth], linewidth=0.7, markersize=size, **look)
        style.mark_beyond(axis, x, rows["difference"], **look)


def label_values(axis: Axes, table: pd.DataFrame, varied: str, rate: float) -> None:
    """Ticks at the values; below them, or beside S, how much data the depths stand for."""
    depths, values = sorted(set(table["depth"]) - {0}), sorted(table["value"].unique())

    def factors(r: float) -> str:
        return ", ".join(f"×{r**-depth:.2g}" for depth in depths)

    if varied == "rate":
        axis.set_xticks(values, [f"{r:g}\n{factors(r)}" for r in values])
        axis.set_xlabel("ratio r of consecutive subsets;\nbelow it: data factors")
    else:
        axis.set_xticks(values)
        axis.set_xlabel(f"length S of the history{f' (depths: {factors(rate)})' if depths else ''}")


def add_legend(figure: Figure, lines: dict[int, str]) -> None:
    """Line styles of the depths, where there are several; the families stand above their column."""
    handles = []
    for depth, line in lines.items():
        look = {"marker": "o", "markersize": 3.5, "markerfacecolor": "black" if line == "-" else "white"}
        handles += [Line2D([], [], color="black", linestyle=line, label=f"depth {depth}", **look)] if depth else []
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
