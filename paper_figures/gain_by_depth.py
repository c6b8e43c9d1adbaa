"""Whether predicting further back pays: gain over naive against the virtual data factor, beside the oracle's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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
    load_runs,
    look,
    main,
    panels,
    title,
)

from know.statistics import summarise


def draw(results: Path) -> Figure:
    runs = load_runs(results)
    arms, cells = arms_of(runs), cells_of(runs)
    several = arms[arms["depth"] > 0].groupby("family")["depth"].nunique() > 1
    arms = arms[arms["family"].isin([*several.index[several], "oracle"])]
    if not several.any():
        figure, (axis,) = panels(1, columns=1, height=0.5)
        axis.axis("off")
        axis.text(0, 0.5, "No predictor was run at more than one depth.", va="center")
        return figure
    summary = summarise(runs)
    columns = 4 if len(cells) > 3 and several.sum() <= 5 else 2
    figure, axes = panels(2 * len(cells), columns=columns, height=1.9)
    pairs = [(cell, recipe) for cell in cells for recipe in RECIPES]
    for place, (axis, (cell, recipe)) in enumerate(zip(axes, pairs, strict=True)):
        part = summary[(summary["cell"] == cell) & (summary["recipe"] == recipe)].set_index("arm")
        text = f"{RECIPES[recipe][0]}, {counted(part['n'])}"
        if place % 2:  # the cell's right panel: under the title and on the scale of the left one
            axis.sharey(axes[place - 1])
            axis.tick_params(labelleft=False)
            title(axis, text)
        else:
            title(axis, f"{cells[cell]}\n{text}", span=2)
        draw_panel(axis, part, arms)
        if place % columns == 0:
            axis.set_ylabel("gain over naive (points)")
        if place >= len(pairs) - columns:
            axis.set_xlabel("virtual data factor")
    legend(figure, axes, 5)
    footnote(
        figure,
        f"{interval_note(summary['n'])} Gain: accuracy minus naive, in percentage points; the two panels of a cell "
        "share an axis. Right of the scale: the oracle, really trained on more data.",
    )
    return figure


def draw_panel(axis: Axes, part: pd.DataFrame, arms: pd.DataFrame) -> None:
    """One line per predictor of `arms`; part: the summary of one cell and recipe, by arm."""
    place = {factor: np.log2(float(factor[1:])) for factor in arms["factor"] if factor}
    beyond = max(place.values()) + 0.9
    looks = look(arms["family"])
    axis.axhline(0, color="black", linewidth=0.6, zorder=1)
    lines = [family for family in looks if family != "oracle"]
    shift = {"oracle": 0.0, **dict(zip(lines, np.linspace(-0.27, 0.27, len(lines)), strict=True))}  # side by side
    for family, (label, colour, marker) in looks.items():
        found = part.reindex(arms.index[arms["family"] == family])
        x = [place.get(factor, beyond) + shift[family] for factor in arms["factor"][found.index]]
        bars = [found["difference"] - found["low"], found["high"] - found["difference"]]
        line = "" if family == "oracle" else "-"
        axis.errorbar(x, found["difference"], bars, elinewidth=0.8, c=colour, marker=marker, ls=line, label=label)
    if "oracle" in looks:
        axis.axvline(beyond - 0.45, color="#BBBBBB", linewidth=0.6, zorder=1)
        place["oracle"] = beyond
    axis.set_xticks(list(place.values()), list(place))


if __name__ == "__main__":
    main(__file__, draw)
