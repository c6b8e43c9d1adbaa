"""What every arm gains over naive fine-tuning: the paired difference in accuracy, with its interval, per cell."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import (
    RECIPES,
    arms_of,
    cells_of,
    counted,
    footnote,
    interval_note,
    legend,
    limits,
    load_runs,
    main,
    panels,
    title,
)

from know.files import read_json
from know.pages import GROUPS
from know.statistics import summarise

ROW = 0.15
"""Height of a row in inches."""


def draw(results: Path) -> Figure:
    runs = load_runs(results)
    arms, cells = arms_of(results).drop("naive"), cells_of(runs)
    unavailable = read_json(results / "suite.json")["unavailable"]
    summary = summarise(runs)
    shown = {cell: rows_of(arms, runs, unavailable, cell) for cell in cells}
    columns = 2 if len(cells) in (2, 4) else 3
    height = 0.75 + ROW * max(map(len, shown.values()))
    figure, axes = panels(len(cells), columns=columns, height=height)
    for place, (axis, (cell, name)) in enumerate(zip(axes, cells.items(), strict=True)):
        part = summary[summary["cell"] == cell].set_index(["recipe", "arm"])
        levels = " / ".join(f"{part.loc[recipe, 'naive'].accuracy:.1f} %" for recipe in RECIPES)
        title(axis, f"{name}, {counted(part['n'])}\nnaive {levels}", beside=1.45)
        draw_cell(axis, part, shown[cell], unavailable.get(cell, {}))
        if place % columns and shown[cell].equals(shown[list(cells)[place - 1]]):
            axis.set_yticklabels([])  # the left neighbour has the same rows
        if place >= len(cells) - columns:
            axis.set_xlabel("accuracy − naive (points)")
    legend(figure, axes, 2)
    footnote(
        figure,
        f"{interval_note(summary['n'])} Points: percentage points of target test accuracy. An arrow "
        "points to what lies beyond the axis; a number beside it is the mean. Above: the accuracy of naive, published "
        "/ tuned rate. Yellow: oracles, really trained on more data.",
    )
    return figure


def rows_of(arms: pd.DataFrame, runs: pd.DataFrame, unavailable: dict, cell: str) -> pd.DataFrame:
    """Label, family and arm of the rows of a cell's panel; a heading before each group has neither family nor arm.

    Arms of all cells with the same r, so that panels side by side have the same rows.
    """
    rates = runs.groupby("cell")["rate"].first()
    alike = rates.index[rates == rates[cell]]
    there = set(runs.loc[runs["cell"].isin(alike), "arm"]).union(*(unavailable.get(other, {}) for other in alike))
    rows = []
    for group, heading in GROUPS.items():
        own = arms[(arms["group"] == group) & arms.index.isin(there)]
        rows += [(heading, "", "")] if len(own) else []
        rows += zip(own["label"], own["family"], own.index, strict=True)
    return pd.DataFrame(rows, columns=["label", "family", "arm"])


def draw_cell(axis: Axes, part: pd.DataFrame, rows: pd.DataFrame, unavailable: dict[str, str]) -> None:
    """Rows of `rows_of` from the top down; part: the summary of one cell by (recipe, arm)."""
    low, high = limits(part)
    axis.set_xlim(low, high)
    axis.axvline(0, color="black", linewidth=0.6, zorder=1)
    for place, (_, family, arm) in enumerate(rows.itertuples(index=False)):
        colour = "#FBEBCB" if family.startswith("oracle") else "#F4F4F4" if arm and place % 2 else "white"
        axis.axhspan(place - 0.5, place + 0.5, color=colour, linewidth=0, zorder=0)
        if arm in part.index.get_level_values("arm"):
            draw_row(axis, place, part.xs(arm, level="arm"))
        elif arm:
            text = "not available" if arm in unavailable else "not run"
            axis.text(0, place, f" {text}", va="center", color="#777777", size=6)
    axis.locator_params(axis="x", nbins=6)
    axis.set_yticks(range(len(rows)), rows["label"])
    for label, arm in zip(axis.get_yticklabels(), rows["arm"], strict=True):
        label.set_weight("normal" if arm else "bold")
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(rows) - 0.5, -0.5)


def draw_row(axis: Axes, place: int, found: pd.DataFrame) -> None:
    """Both recipes of one arm; found: its summary by recipe."""
    low, high = axis.get_xlim()
    for column, (recipe, (label, colour, marker)) in enumerate(RECIPES.items()):
        y, style, row = place + (0.2 if column else -0.2), {"color": colour, "zorder": 3}, found.loc[recipe]
        axis.hlines(y, row.low, row.high, linewidth=1, color=colour)
        axis.plot(row.difference, y, marker, linestyle="", markersize=2.8, label=label, **style)
        left, right = (low, 1, "<", row.low < low), (high, -1, ">", row.high > high)
        for end, inwards, arrow, beyond in (left, right):
            if beyond:
                axis.plot(end, y, arrow, markersize=2.8, clip_on=False, **style)
            if beyond and (row.difference - end) * inwards < 0:
                text = f"{row.difference:+.1f}".replace("-", "−")
                write_beside(axis, text, (end, place), inwards * (5 + 22 * column), colour)  # points, side by side


def write_beside(axis: Axes, text: str, place: tuple[float, float], offset: float, colour: str) -> None:
    """A number `offset` points to the right of a place, or to the left of it where that is negative."""
    style = {"size": 6, "color": colour, "va": "center", "ha": "left" if offset > 0 else "right"}
    box = {"color": "white", "pad": 0.4, "linewidth": 0}
    axis.annotate(text, place, (offset, 0), textcoords="offset points", bbox=box, zorder=4, **style)


if __name__ == "__main__":
    main(__file__, draw)
