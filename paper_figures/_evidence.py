"""The front picture: the arms of the primary contrasts in the suites that these are read in, side by side.

`python paper_figures/_evidence.py results [folder]` draws it into results/figures/evidence.svg and .png; so does
`python -m paper_figures results/<suite>` after the suite's own figures, where it is one of these.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from accuracy_by_arm import ROW, draw_cell
from matplotlib.figure import Figure
from style import (
    RECIPES,
    arms_of,
    cells_of,
    counted,
    dagger_note,
    footnote,
    interval_note,
    legend,
    load_runs,
    panels,
    rows_of,
    save,
    title,
)

from benchmarks.report.claims import CORE, MAIN
from benchmarks.report.statistics import summarise
from know.files import read_json

BESIDE = {"oracle", "oracle_steps", "matched_rate_x8", "matched_rate_released_x8", "renorm_x8", "renorm_released_x8"}
"""Arms to show beside those of the primary contrasts and all depths of KNOWN."""


def published(results: Path) -> list[Path]:
    """The folders of the suites that the primary contrasts are read in, as far as they have been run."""
    return [results / name for name in MAIN if (results / name / "suite.json").is_file()]


def draw(results: Path) -> Figure:
    found = [cell for folder in published(results) for cell in cells(folder)]
    height = 0.75 + ROW * max(len(rows) for *_, rows in found)
    figure, axes = panels(len(found), columns=2, height=height)
    for place, (axis, (name, part, unavailable, rows)) in enumerate(zip(axes, found, strict=True)):
        levels = " / ".join(f"{part.loc[recipe, 'naive'].accuracy:.1f} %" for recipe in RECIPES)
        title(axis, f"{name}, {counted(part['n'])}\nnaive {levels}", beside=1.45)
        draw_cell(axis, part, rows, unavailable)
        if place % 2 and rows["label"].tolist() == found[place - 1][-1]["label"].tolist():
            axis.set_yticklabels([])
        axis.set_xlabel("accuracy − naive (points)")
    legend(figure, axes, 2)
    n = pd.concat(part["n"] for _, part, *_ in found)
    labels = pd.concat(rows for *_, rows in found)["label"]
    footnote(
        figure,
        f"{interval_note(n)} Points: percentage points of target test accuracy. Above: the accuracy of naive, "
        "published / tuned rate. Arrows: what lies beyond the axis; a number beside one is the mean. Yellow: oracles, "
        f"really trained on twice the data.{dagger_note(labels)}",
    )
    return figure


def cells(folder: Path) -> list[tuple[str, pd.DataFrame, dict[str, str], pd.DataFrame]]:
    """Of every cell of a suite: its name, the summary by (recipe, arm), what is not available, and the rows to show."""
    runs, every = load_runs(folder), arms_of(folder)
    unavailable = read_json(folder / "suite.json")["unavailable"]
    chosen = every[every.index.isin(CORE | BESIDE) | (every["group"] == "known")].drop("naive")
    summary = summarise(runs)
    return [
        (
            name,
            summary[(summary["cell"] == cell) & summary["arm"].isin(["naive", *chosen.index])].set_index(
                ["recipe", "arm"]
            ),
            unavailable.get(cell, {}),
            rows_of(chosen, runs, unavailable, cell),
        )
        for cell, name in cells_of(runs).items()
    ]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    save(draw(folder), Path(sys.argv[2]) if sys.argv[2:] else folder / "figures", "evidence")
