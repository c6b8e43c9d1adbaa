"""The front picture: the arms of the primary contrasts in the suites that these are read in, side by side.

`python paper_figures/_evidence.py results [folder]` draws it into results/figures/evidence.svg and .png; so does
`python -m paper_figures results/<suite>` after the suite's own figures, where it is one of these.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import style
from accuracy_by_arm import draw_cell
from matplotlib.figure import Figure

from benchmarks.report.claims import CLAIMS
from benchmarks.report.statistics import summarise
from know.files import read_json

BESIDE = {
    "oracle",
    "oracle_steps",
    "local_oracle",
    "matched_rate_x8",
    "matched_rate_released_x8",
    "renorm_x8",
    "renorm_released_x8",
}
"""Arms to show beside those of the primary contrasts and all depths of KNOWN."""


def published(results: Path) -> list[Path]:
    """The folders of the suites that the primary contrasts are read in, as far as they have been run."""
    return [results / name for name in CLAIMS.core if (results / name / "suite.json").is_file()]


def draw(results: Path) -> Figure:
    panels = [cell for folder in published(results) for cell in cells(folder)]
    height = 0.75 + style.ROW * max(len(rows) for *_, rows in panels)
    figure, axes = style.panels(len(panels), columns=2, height=height)
    for place, (axis, (name, part, unavailable, rows)) in enumerate(zip(axes, panels, strict=True)):
        levels = " / ".join(f"{part.loc[policy, 'naive'].accuracy:.1f} %" for policy in style.policies_of(part))
        style.title(axis, f"{name}, {style.counted(part['n'])}\nnaive {levels}", beside=1.45)
        draw_cell(axis, part, rows, unavailable)
        if place % 2 and rows["label"].tolist() == panels[place - 1][-1]["label"].tolist():
            axis.set_yticklabels([])
        axis.set_xlabel("accuracy − naive (points)")
    style.legend(figure, axes, 2)
    n = pd.concat(part["n"] for _, part, *_ in panels)
    labels = pd.concat(rows for *_, rows in panels)["label"]
    style.footnote(
        figure,
        f"{style.interval_note(n)} Points: percentage points of target test accuracy. Above: the accuracy of naive, "
        "by rate policy. Arrows: what lies beyond the axis; a number beside one is the mean. Yellow: oracles, "
        f"really trained on twice the data.{style.dagger_note(labels)}",
    )
    return figure


def cells(folder: Path) -> list[tuple[str, pd.DataFrame, dict[str, str], pd.DataFrame]]:
    """Of every cell of a suite: its name, the summary by (policy, arm), what is not available, and the rows to show."""
    runs, every = style.load_runs(folder), style.arms_of(folder)
    unavailable = read_json(folder / "suite.json")["unavailable"]
    chosen = every[every.index.isin(CLAIMS.primary_arms | BESIDE) | (every["group"] == "known")].drop("naive")
    summary = summarise(runs)
    return [
        (
            name,
            summary[(summary["cell"] == cell) & summary["arm"].isin(["naive", *chosen.index])].set_index(
                ["policy", "arm"]
            ),
            unavailable.get(cell, {}),
            style.rows_of(chosen, runs, unavailable, cell),
        )
        for cell, name in style.cells_of(runs).items()
    ]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    style.save(draw(folder), Path(sys.argv[2]) if sys.argv[2:] else folder / "figures", "evidence")
