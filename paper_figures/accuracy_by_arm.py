"""What every arm gains over naive fine-tuning: the paired difference in accuracy, with its interval, per cell."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import RECIPES, arms_of, cells_of, counted, footnote, interval_note, legend, load_runs, main, panels, title

from know.statistics import summarise


def draw(results: Path) -> Figure:
    runs = load_runs(results)
    arms, cells = arms_of(runs).drop("naive"), cells_of(runs)
    summary = summarise(runs)
    columns = min(len(cells), 2 if len(cells) <= 4 else 3)
    figure, axes = panels(len(cells), columns=columns, height=0.75 + 0.17 * len(arms), sharey=True)
    for place, (axis, (cell, name)) in enumerate(zip(axes, cells.items(), strict=True)):
        part = summary[summary["cell"] == cell].set_index(["recipe", "arm"])
        levels = ", ".join(f"{part.loc[recipe, 'naive'].accuracy:.1f} % {recipe}" for recipe in RECIPES)
        title(axis, f"{name}, {counted(part['n'])}\nnaive {levels}")
        draw_cell(axis, part, arms)
        if place >= len(cells) - columns:
            axis.set_xlabel("accuracy − naive (points)")
    legend(figure, axes, 2)
    footnote(
        figure,
        f"{interval_note(summary['n'])} Points: percentage points of target test accuracy. An arrow "
        "points to what lies beyond the axis; a number beside it is the mean. Shaded: oracles, really trained on more "
        "data.",
    )
    return figure


def draw_cell(axis: Axes, part: pd.DataFrame, arms: pd.DataFrame) -> None:
    """Rows of `arms`, from the top down; part: the summary of one cell by (recipe, arm)."""
    low, high = limits(part)
    axis.set_xlim(low, high)
    axis.axvline(0, color="black", linewidth=0.6, zorder=1)
    for row, (arm, family) in enumerate(arms["family"].items()):
        if arm not in part.index.get_level_values("arm"):
            axis.text(0, row, " not run", va="center", color="#777777")
        elif family.startswith("oracle"):
            axis.axhspan(row - 0.5, row + 0.5, color="#FBEBCB", linewidth=0, zorder=0)
        for offset, (recipe, (label, colour, marker)) in zip((-0.18, 0.18), RECIPES.items(), strict=True):
            y, style = row + offset, {"color": colour, "zorder": 3}
            if (recipe, arm) not in part.index:
                continue
            found = part.loc[(recipe, arm)]
            axis.hlines(y, found.low, found.high, linewidth=1.1, color=colour)
            axis.plot(found.difference, y, marker, linestyle="", markersize=3.5, label=label, **style)
            left, right = (low, "left", "<", found.low < low), (high, "right", ">", found.high > high)
            for end, side, arrow, beyond in (left, right):
                if beyond:
                    axis.plot(end, y, arrow, markersize=3.5, clip_on=False, **style)
                if beyond and (found.difference < low if side == "left" else found.difference > high):
                    text = f"  {found.difference:+.1f}  ".replace("-", "−")
                    axis.text(
                        end, y, text, ha=side, va="center", color=colour, bbox={"color": "white", "pad": 0}, zorder=2
                    )
    axis.locator_params(axis="x", nbins=6)
    axis.set_yticks(range(len(arms)), arms["label"])
    axis.set_ylim(len(arms) - 0.5, -0.5)


def limits(part: pd.DataFrame) -> tuple[float, float]:
    """Ends of the x axis: all intervals, unless a few long ones would press the others together."""
    ends = pd.concat([part[["low", "high"]].stack(), part["difference"]])
    reach = max(1.0, 4 * ends.abs().quantile(0.7))
    low, high = max(min(ends.min(), -0.2), -reach), min(max(ends.max(), 0.2), reach)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


if __name__ == "__main__":
    main(__file__, draw)
