"""What every arm gains over naive fine-tuning: the paired difference in accuracy, with its interval, per cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.evidence import DIVERGED, DIVERGED_NOTE
from benchmarks.report.folders import load
from paper_figures import _style as style


def draw(results: Path) -> Figure:
    published = load(results)
    runs, summary, unavailable = published.runs, published.summary, published.settings["unavailable"]
    arms, cells = style.arms_of(results).drop("naive"), style.cells_of(published)
    shown = {cell: style.rows_of(arms, published, cell) for cell in cells}
    diverged = runs[runs["status"] != "ok"].groupby("cell")["arm"].agg(set)
    for cell in diverged.index:
        shown[cell].loc[shown[cell]["arm"].isin(diverged[cell]), "label"] += f" {DIVERGED}"
    first, *others = shown.values()
    alike = all(first.equals(other) for other in others)  # else every panel needs room for labels of its own
    columns = 3 if alike and len(cells) not in (2, 4) else 2
    height = 0.75 + style.ROW * max(map(len, shown.values()))
    figure, axes = style.panels(len(cells), columns=columns, height=height)
    for place, (axis, (cell, name)) in enumerate(zip(axes, cells.items(), strict=True)):
        part = summary[summary["cell"] == cell].set_index(["policy", "arm"])
        levels = " / ".join(f"{part.loc[policy, 'naive'].accuracy:.1f} %" for policy in style.policies_of(part))
        style.title(
            axis, f"{name}, {style.counted(part['n'])}\nnaive {levels}", beside=1.45 * (1 if alike else columns)
        )
        draw_cell(axis, part, shown[cell], unavailable.get(cell, {}))
        if place % columns and shown[cell].equals(shown[list(cells)[place - 1]]):
            axis.set_yticklabels([])  # the left neighbour has the same rows
        if place >= len(cells) - columns:
            axis.set_xlabel("accuracy − naive (points)")
    style.legend(figure, axes, 2)
    policies = style.policies_of(summary.set_index(["policy", "arm"]))
    order = f" ({' / '.join(style.RATES[policy][0] for policy in policies)})" if len(policies) > 2 else ""
    style.footnote(
        figure,
        f"{style.interval_note(summary['n'])} Points: percentage points of target test accuracy. An arrow "
        "points to what lies beyond the axis; a number beside it is the mean. Above: the accuracy of naive, by rate "
        f"policy{order}. Yellow: oracles, really trained on more data."
        f"{style.dagger_note(pd.concat(shown.values())['label'])}"
        f"{f' {DIVERGED_NOTE}' if len(diverged) else ''}",
    )
    return figure


def draw_cell(axis: Axes, part: pd.DataFrame, rows: pd.DataFrame, unavailable: dict[str, str]) -> None:
    """The rate policies of the rows of `rows_of`; part: the summary of one cell by (policy, arm)."""
    diverged = part["failed"] > 0  # such arms may reach far, and would press the others together
    axis.set_xlim(style.limits(part if diverged.all() else part[~diverged]))
    axis.axvline(0, color="black", linewidth=0.6, zorder=1)
    style.draw_rows(axis, rows)
    for place, arm in enumerate(rows["arm"]):
        if arm in part.index.get_level_values("arm"):
            policies = style.policies_of(part)
            for k, (side, policy) in enumerate(zip(np.linspace(-0.22, 0.22, len(policies)), policies, strict=True)):
                if (policy, arm) in part.index:
                    beside = 5 + 16 * k  # numbers do not fit one below the other
                    style.draw_bar(axis, place + side, part.loc[(policy, arm)], style.RATES[policy], beside=beside)
        elif arm:
            text = "not available" if arm in unavailable else "not run"
            axis.text(0, place, f" {text}", va="center", color="#777777", size=6)
    axis.locator_params(axis="x", nbins=6)
