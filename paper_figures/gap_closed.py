"""How far the main arms get from naive fine-tuning to an oracle: the share of the data gap, with its interval."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.statistics import oracle_of, summarise
from know.files import read_json
from paper_figures import _style as style

SHARE = {"share": "difference", "share_low": "low", "share_high": "high"}
"""Columns of the share, and what `limits` and `draw_bar` call them."""
MOST = 2.0
"""Farthest from 0 that an axis reaches: where the oracle gains little, intervals have no end worth showing."""
BESIDE = 1.45
"""Inches that the labels of the rows take."""
LOW = 1.1
"""Height in inches of a panel without rows."""


def draw(results: Path) -> Figure:
    runs, unavailable = style.load_runs(results), read_json(results / "suite.json")["unavailable"]
    every, cells = style.arms_of(results), style.cells_of(runs)
    tuned = summarise(runs[runs["policy"] == "tuned"])
    defined = set(tuned.loc[tuned["share"].notna(), "cell"])
    chosen = style.main_arms(every).drop(["naive", oracle_of(every.index)], errors="ignore")
    shown = {cell: style.rows_of(chosen if cell in defined else chosen[:0], runs, unavailable, cell) for cell in cells}
    figure, axes = tall_and_low(shown)
    before = None
    for cell, axis in axes.items():
        part, rows = tuned[tuned["cell"] == cell].set_index("arm"), shown[cell]
        name = f"{cells[cell]}, {style.counted(part['n'])}"
        if rows.empty:
            say_why(axis, name, part)
            continue
        oracle = style.name_of(every, oracle_of(part.index))
        style.title(axis, f"{name}\n{oracle} − naive {gain_of(part)}", beside=BESIDE)
        draw_cell(axis, part, rows, unavailable.get(cell, {}))
        if not axis.get_subplotspec().is_first_col() and rows.equals(before):
            axis.set_yticklabels([])  # the left neighbour has the same rows
        before = rows
    left_out = every.index.difference([*chosen.index, "naive", oracle_of(every.index)])
    rest = "" if left_out.empty else ", other depths (in the page's table)"
    style.footnote(
        figure,
        f"{style.interval_note(tuned['n'], 'Fieller')} Share: mean (arm − naive) / mean (oracle − naive) of target "
        "test accuracy, each arm at its tuned rate; 0: naive, 1: the oracle, really trained on twice the data, with as "
        "many steps as theta_0 where there is such an arm; not defined where the paired t interval of oracle − naive "
        "(points, above the panel) does not lie above 0. An arrow points to what lies beyond the axis; a number beside "
        f"it is the share. Left out: naive, the oracle{rest}."
        f"{style.dagger_note(pd.concat(shown.values())['label'])}",
    )
    return figure


def tall_and_low(shown: dict[str, pd.DataFrame]) -> tuple[Figure, dict[str, Axes]]:
    """A figure with a panel per cell: those with rows, as high as these need, and below them those without."""
    tall, low = ([cell for cell, rows in shown.items() if rows.empty == empty] for empty in (False, True))
    columns = {0: 1, 1: 1, 2: 2, 4: 2}.get(len(tall), 3)
    heights = [0.85 + style.ROW * max(map(len, shown.values()))] * -(-len(tall) // columns)
    places = [*range(len(tall)), *range(len(heights) * columns, len(heights) * columns + len(low))]
    heights += [LOW] * -(-len(low) // columns)
    figure = plt.figure(
        figsize=(style.COLUMN if columns == 1 else style.PAGE, sum(heights) + (1.3 if columns == 1 else 0.7))
    )
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    placed = zip([*tall, *low], places, strict=True)
    return figure, {cell: figure.add_subplot(grid[divmod(place, columns)]) for cell, place in placed}


def draw_cell(axis: Axes, part: pd.DataFrame, rows: pd.DataFrame, unavailable: dict[str, str]) -> None:
    """The rows of `rows_of`; part: the summary of one cell at the tuned rates, by arm."""
    shares = part[list(SHARE)].rename(columns=SHARE)
    axis.set_xlim(style.limits(shares[shares.index.isin(rows["arm"])], least=(-0.2, 1.15), most=MOST))
    style.draw_rows(axis, rows)
    for place, line in enumerate(("-", "--")):
        axis.axvline(place, color="black", linewidth=0.6, linestyle=line, zorder=1)
    for place, arm in enumerate(rows["arm"]):
        if arm in shares.index and pd.notna(shares.loc[arm, "difference"]):
            style.draw_bar(axis, place, shares.loc[arm], style.RATES["tuned"])
        elif arm:
            text = "not defined" if arm in shares.index else "not available" if arm in unavailable else "not run"
            axis.text(0, place, f" {text}", va="center", color="#777777", size=6)
    axis.locator_params(axis="x", nbins=6)
    axis.set_xlabel("share of the data gap")
    above = axis.secondary_xaxis("top")
    above.set_xticks([0, 1], ["naive", "oracle"], size=6)
    above.tick_params(length=0, pad=1)
    above.spines["top"].set_visible(False)


def say_why(axis: Axes, name: str, part: pd.DataFrame) -> None:
    """A panel without rows, where no share is defined."""
    style.title(axis, name, beside=BESIDE)
    axis.axis("off")
    if oracle_of(part.index) not in part.index:
        reason = "the oracle was not run"
    elif part["n"].min() < 2:
        reason = "one trajectory has no interval"
    else:
        reason = f"the interval of the oracle's gain over naive, {gain_of(part)} points, does not lie above 0"
    width = (axis.figure.get_figwidth() - BESIDE) / axis.get_subplotspec().get_gridspec().ncols
    text = textwrap.fill(f"The share is not defined: {reason}.", round(style.LETTERS * width) - 3)
    axis.text(0, 1, text, va="top", color="#777777", transform=axis.transAxes)


def gain_of(part: pd.DataFrame) -> str:
    """The oracle's gain over naive in points, with its interval; part: the summary of one cell by arm."""
    row = part.loc[oracle_of(part.index)]
    text = f"{style.signed(row['difference'])} [{style.signed(row['low'])}, {style.signed(row['high'])}]"
    return text.replace(" ", "\N{NO-BREAK SPACE}")
