"""The search behind the tuned rates: validation accuracy of every arm against the fine-tuning learning rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from style import arms_of, cells_of, footnote, load_runs, look, main, panels, title

from know.records import PilotRecord, read_records

LINES = [":", "--", "-"]
"""Line styles of the depths of a predictor, deepest solid."""


def draw(results: Path) -> Figure:
    runs, pilots = load_runs(results), read_records([results / "pilots.csv"], PilotRecord)
    arms, cells = arms_of(runs), cells_of(runs)
    lines = line_styles(arms)
    columns = 2 if len(cells) <= 4 else 3
    figure, axes = panels(len(cells), columns=columns, height=2.2, sharex=True)
    for place, (axis, (cell, name)) in enumerate(zip(axes, cells.items(), strict=True)):
        part = pilots[pilots["cell"] == cell]
        count = part["trajectory"].nunique()
        title(axis, f"{name}, n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{count}")
        draw_panel(axis, part, runs[runs["cell"] == cell], arms, lines)
        if place % columns == 0:
            axis.set_ylabel("validation accuracy (%)")
        if place >= len(cells) - columns:
            axis.set_xlabel("fine-tuning learning rate")
            axis.tick_params(labelbottom=True)
    add_legend(figure, arms, lines)
    footnote(
        figure,
        "Mean over n pilot trajectories, which choose the rates and are never evaluated; no interval, since they serve "
        "no comparison. Dot: the tuned rate of an arm. Vertical line: the published rate. "
        "The scale is stretched towards 100 %.",
    )
    return figure


def line_styles(arms: pd.DataFrame) -> dict[str, str]:
    """Factor ("×8") to line style; the empty factor of references is solid."""
    factors = arms[arms["depth"] > 0].sort_values("depth")["factor"].unique()
    return {"": "-", **{factor: LINES[max(-len(LINES), place - len(factors))] for place, factor in enumerate(factors)}}


def draw_panel(axis: Axes, pilots: pd.DataFrame, runs: pd.DataFrame, arms: pd.DataFrame, lines: dict[str, str]) -> None:
    """One line per arm, KNOWN and naive on top; pilots and runs are those of one cell."""
    looks = look(arms["family"])
    mean = 100 * pilots.groupby(["arm", "learning_rate"])["validation_accuracy"].mean()
    tuned = runs[runs["recipe"] == "tuned"].groupby("arm")["learning_rate"].first()
    for arm in (arm for arm in arms.index if arm in mean):
        family, line = arms.loc[arm, "family"], lines[arms.loc[arm, "factor"]]
        style = {"color": looks[family][1], "zorder": {"known": 4, "naive": 3}.get(family, 2)}
        axis.plot(mean[arm].index, mean[arm], dashed(family, line), linewidth=1.3 if family == "naive" else 1, **style)
        if arm in tuned and tuned[arm] in mean[arm].index:
            axis.plot(tuned[arm], mean[arm][tuned[arm]], "o", markersize=3, **style)
    axis.set_xscale("log", base=2)
    rates = sorted(pilots["learning_rate"].unique())
    axis.set_xticks(rates, [f"{rate:.3g}" for rate in rates], rotation=45)
    axis.minorticks_off()
    stretch(axis, mean)
    for rate in runs.loc[runs["recipe"] == "published", "learning_rate"].unique():
        axis.axvline(rate, color="#555555", linewidth=0.8, linestyle=(0, (1, 1)), zorder=1)


def stretch(axis: Axes, accuracies: pd.Series) -> None:
    """An axis like the logarithm of the error: the arms differ near the top, diverging ones reach far down."""
    axis.set_yscale("function", functions=(lambda a: -np.log(101 - np.minimum(a, 100)), lambda s: 101 - np.exp(-s)))
    step = 20 if np.ptp(accuracies) > 50 else 10
    low, high = axis.get_ylim()
    axis.set_yticks([a for a in [*range(0, 80, step), 80, 85, 90, 95, 97, 99, 100] if low <= a <= high])


def dashed(family: str, line: str) -> str:
    """The second oracle has the colour of the first, so it is dashed."""
    return "--" if family == "oracle_steps" else line


def add_legend(figure: Figure, arms: pd.DataFrame, lines: dict[str, str]) -> None:
    """Colours of the families, then line styles of the factors."""
    handles = [
        Line2D([], [], color=colour, label=label, linestyle=dashed(family, "-"))
        for family, (label, colour, _) in look(arms["family"]).items()
    ]
    handles += [Line2D([], [], color="black", label=f"at {f}", linestyle=line) for f, line in lines.items() if f]
    figure.legend(handles=handles, loc="outside upper center", ncols=3 if figure.get_figwidth() < 5 else 6)


if __name__ == "__main__":
    main(__file__, draw)
