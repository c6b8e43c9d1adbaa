"""Whether predicting further back pays: gain over naive against the virtual data factor, beside the oracle's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.statistics import oracle_of, summarise
from paper_figures import _style as style


def draw(results: Path) -> Figure:
    runs = style.load_runs(results)
    arms, cells = style.arms_of(results), style.cells_of(runs)
    ran = arms[arms.index.isin(runs["arm"])]
    several = ran[ran["depth"] > 0].groupby("family")["depth"].nunique() > 1
    arms = ran[ran["family"].isin(several.index[several])]
    if arms.empty:
        return style.only_words("No predictor was run at more than one depth.")
    blocks, oracle = blocks_with_known(arms), oracle_of(ran.index)
    arms = pd.concat([arms, ran[ran.index == oracle]])
    summary = summarise(runs[runs["policy"] == "tuned"])
    figure, rows = style.block_panels(len(cells), blocks, arms, height=1.9)
    for axes, (cell, name) in zip(rows, cells.items(), strict=True):
        part = summary[summary["cell"] == cell].set_index("arm")
        style.head(axes, f"{name}, {style.counted(part['n'])}", "gain over naive (points)")
        ends = style.limits(part[part.index.isin(arms.index)])
        axes[0].set_ylim(style.widened(ends, part[part.index == oracle]))
        for axis, (_, families) in zip(axes, blocks, strict=True):
            own = arms[arms["family"].isin([*families, "known", oracle]) & arms.index.isin(part.index)]
            draw_panel(axis, part, own, oracle)
    for axis in rows[-1]:
        axis.set_xlabel("virtual data factor")
    beside = " Right of the scale: the oracle, really trained on more data." if oracle in arms.index else ""
    style.footnote(
        figure,
        f"{style.interval_note(summary['n'])} Gain: accuracy minus naive, in percentage points, each arm at its tuned "
        f"rate (at the paper's rate: accuracy_by_arm). Predictors with several depths; KNOWN in every panel.{beside} A "
        "triangle on the edge: the mean lies beyond it. A bar that ends there is longer.",
    )
    return figure


def blocks_with_known(arms: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """The blocks of `arms`; KNOWN has a column of its own only if nothing else is there to be compared with it."""
    blocks = [(heading, families) for heading, families in style.blocks_of(arms) if families != ["known"]]
    if not blocks:
        return style.blocks_of(arms)
    first = ["known"] if "known" in set(arms["family"]) else []
    return [(heading, [*first, *(f for f in families if f not in first)]) for heading, families in blocks]


def draw_panel(axis: Axes, part: pd.DataFrame, arms: pd.DataFrame, oracle: str) -> None:
    """One line per predictor of `arms`, and a point for the oracle; part: the summary of one cell, by arm."""
    place = {factor: np.log2(float(factor[1:])) for factor in arms["factor"] if factor}
    beyond = max(place.values(), default=0) + 0.9
    axis.axhline(0, color="black", linewidth=0.6, zorder=1)
    lines = [family for family in dict.fromkeys(arms["family"]) if family != oracle]
    side = min(0.33, 0.04 * (len(lines) - 1))
    shift = {oracle: 0.0, **dict(zip(lines, np.linspace(-side, side, len(lines)), strict=True))}  # side by side
    for family, rows in arms.groupby("family", sort=False):
        gains, (colour, marker) = part.loc[rows.index], rows[["colour", "marker"]].iloc[0]
        x = np.array([place.get(factor, beyond) + shift[family] for factor in rows["factor"]])
        look = {"color": colour, "zorder": 4 if family == "known" else 3}
        axis.vlines(x, gains["low"], gains["high"], linewidth=0.7, **look)
        size = 6 if family == oracle else 3
        axis.plot(x, gains["difference"], marker, ls="-", linewidth=0.5, markersize=size, **look)
        style.mark_beyond(axis, x, gains["difference"], **look)
    if oracle in arms.index:
        axis.axvline(beyond - 0.45, color="#BBBBBB", linewidth=0.6, zorder=1)
        place["oracle"] = beyond
    axis.set_xticks(list(place.values()), list(place))
