"""The headline table as a picture: tuned difference to naive of the main arms (rows) in every cell (columns)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from style import (
    COLUMN,
    PAGE,
    arms_of,
    cells_of,
    counted,
    dagger_note,
    footnote,
    in_distribution_marks,
    load_runs,
    main,
    main_arms,
)

from benchmarks.report.pages import GROUPS, gates, informative
from benchmarks.report.statistics import CONFIDENCE, summarise
from know.files import read_json

ROW = 0.19
"""Height of a row in inches."""


def draw(folder: Path) -> Figure:
    runs, suite = load_runs(folder), read_json(folder / "suite.json")
    tuned = summarise(runs[runs["recipe"] == "tuned"]).set_index(["cell", "arm"])
    arms, cells = arms_of(folder), cells_of(runs)
    chosen = main_arms(arms)
    rows = [("naive", [f"{tuned.loc[(cell, 'naive'), 'accuracy']:.2f} %" for cell in cells], False)]
    for group, heading in GROUPS.items():
        own = chosen[(chosen["group"] == group) & (chosen.index != "naive")]
        rows += [(heading, [""] * len(cells), True)] if len(own) else []
        marks = {cell: in_distribution_marks(own, runs, cell) for cell in cells}
        for place, (arm, label) in enumerate(own["label"].items()):
            entries = [entry(tuned, suite["unavailable"], cell, arm) + marks[cell][place] for cell in cells]
            rows.append((label, entries, False))
    passed = [informative(gates(runs[runs["cell"] == cell], folder)) for cell in cells]
    rows.append(("gates", ["passed" if ok else "uninformative" for ok in passed], True))
    figure = draw_table(rows, [title.replace(", ", "\n", 1) for title in cells.values()])
    warning = "" if suite["evidence"] else "Not evidence: a run that proves the machinery on tiny data. "
    rest = "" if len(chosen) == len(arms) else "Other depths: in the table of the suite's page. "
    footnote(
        figure,
        f"{warning}Tuned learning rates. First row: target test accuracy; others: points above naive, "
        f"{100 * CONFIDENCE:g} % paired t interval over {counted(tuned['n'])} source trajectories. {rest}Gates: a cell "
        "is uninformative if oracle > naive > from scratch, or the forgetting itself, does not show."
        f"{dagger_note(entry for _, entries, _ in rows for entry in entries)}",
    )
    return figure


def draw_table(rows: list[tuple[str, list[str], bool]], heads: list[str]) -> Figure:
    """rows: label, entries, and whether the row is bold."""
    width = max(PAGE, 1.2 + 1.55 * len(heads)) if len(heads) > 1 else COLUMN
    figure, axis = plt.subplots(figsize=(width, ROW * (len(rows) + 7)))
    axis.axis("off")
    height = 1 / (len(rows) + 3)
    labels, texts = [label for label, *_ in rows], [entries for _, entries, _ in rows]
    table = axis.table(texts, rowLabels=labels, colLabels=heads, cellLoc="right", bbox=(0, 0, 1, 1))
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    for (row, column), cell in table.get_celld().items():
        cell.set_linewidth(0)
        cell.set_height(3 * height if row == 0 else height)
        bold = row > 0 and rows[row - 1][2]
        cell.get_text().set(horizontalalignment="left" if column < 0 else "right", weight="bold" if bold else "normal")
        if row and row % 2 == 0 and not bold:
            cell.set_facecolor("#f2f2f2")
    return figure


def entry(tuned: pd.DataFrame, unavailable: dict[str, dict], cell: str, arm: str) -> str:
    if (cell, arm) not in tuned.index:
        return "not available" if arm in unavailable.get(cell, {}) else "not run"
    row = tuned.loc[(cell, arm)]
    mean, low, high = (round(row[key], 2) + 0.0 for key in ("difference", "low", "high"))
    return f"{mean:+.2f}  [{low:+.2f}, {high:+.2f}]".replace("-", "−")


if __name__ == "__main__":
    main(__file__, draw)
