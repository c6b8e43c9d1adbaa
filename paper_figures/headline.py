"""The headline table as a picture: tuned difference to naive of every arm (rows) in every cell (columns)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from style import PAGE, arms_of, cells_of, counted, footnote, load_runs, main

from know.files import read_json
from know.report import gates, informative
from know.statistics import CONFIDENCE, summarise

ROW = 0.19
"""Height of a row in inches."""


def draw(folder: Path) -> Figure:
    runs = load_runs(folder)
    tuned = summarise(runs[runs["recipe"] == "tuned"]).set_index(["cell", "arm"])
    arms, cells = arms_of(runs), cells_of(runs)
    rows = ["naive", *(arm for arm in arms.index if arm != "naive")]
    heads = [title.replace(", ", "\n", 1) for title in cells.values()]
    texts = [[_entry(tuned, cell, arm) for cell in cells] for arm in rows]
    passed = [informative(gates(runs[runs["cell"] == cell], folder)) for cell in cells]
    texts.append(["passed" if ok else "uninformative" for ok in passed])
    labels = [*(arms.at[arm, "label"] for arm in rows), "gates"]
    width = max(PAGE, 1.2 + 1.55 * len(cells))
    figure, axis = plt.subplots(figsize=(width, ROW * (len(texts) + 6)))
    axis.axis("off")
    height = 1 / (len(texts) + 3)
    table = axis.table(texts, rowLabels=labels, colLabels=heads, cellLoc="right", bbox=(0, 0, 1, 1))
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    for (row, column), cell in table.get_celld().items():
        cell.set_linewidth(0)
        cell.set_height(3 * height if row == 0 else height)
        cell.get_text().set_horizontalalignment("left" if column < 0 else "right")
        if row and row % 2 == 0:
            cell.set_facecolor("#f2f2f2")
    evidence = read_json(folder / "suite.json")["evidence"]
    warning = "" if evidence else "Not evidence: a run that proves the machinery on tiny data. "
    footnote(
        figure,
        f"{warning}Tuned learning rates. First row: target test accuracy; others: points above naive, "
        f"{100 * CONFIDENCE:g} % paired t interval over {counted(tuned['n'])} source trajectories. Gates: a cell is "
        "uninformative if oracle > naive > from scratch, or the forgetting itself, does not show.",
    )
    return figure


def _entry(tuned: pd.DataFrame, cell: str, arm: str) -> str:
    if (cell, arm) not in tuned.index:
        return "not run"
    row = tuned.loc[(cell, arm)]
    if arm == "naive":
        return f"{row['accuracy']:.2f} %"
    mean, low, high = (round(row[key], 2) + 0.0 for key in ("difference", "low", "high"))
    return f"{mean:+.2f}  [{low:+.2f}, {high:+.2f}]".replace("-", "−")


if __name__ == "__main__":
    main(__file__, draw)
