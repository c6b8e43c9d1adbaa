"""What every arm gains over naive fine-tuning: the paired difference in accuracy, with its interval, per cell."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import (
    RECIPES,
    ROW,
    arms_of,
    cells_of,
    counted,
    dagger_note,
    draw_bar,
    draw_rows,
    footnote,
    interval_note,
    legend,
    limits,
    load_runs,
    main,
    panels,
    rows_of,
    title,
)

from benchmarks.report.statistics import summarise
from know.files import read_json


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
        f"/ tuned rate. Yellow: oracles, really trained on more data.{dagger_note(pd.concat(shown.values())['label'])}",
    )
    return figure


def draw_cell(axis: Axes, part: pd.DataFrame, rows: pd.DataFrame, unavailable: dict[str, str]) -> None:
    """Both recipes of the rows of `rows_of`; part: the summary of one cell by (recipe, arm)."""
    axis.set_xlim(limits(part))
    axis.axvline(0, color="black", linewidth=0.6, zorder=1)
    draw_rows(axis, rows)
    for place, arm in enumerate(rows["arm"]):
        if arm in part.index.get_level_values("arm"):
            for side, (recipe, look) in zip((-0.22, 0.22), RECIPES.items(), strict=True):
                draw_bar(axis, place + side, part.loc[(recipe, arm)], look)
        elif arm:
            text = "not available" if arm in unavailable else "not run"
            axis.text(0, place, f" {text}", va="center", color="#777777", size=6)
    axis.locator_params(axis="x", nbins=6)


if __name__ == "__main__":
    main(__file__, draw)
