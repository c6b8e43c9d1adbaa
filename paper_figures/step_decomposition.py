"""What the predicted steps are made of: how much shrinks the weights, goes on as the last step did, or is neither."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.folders import load_table
from know.drawing import draw_steps
from paper_figures import _style as style

PLACE = ["track", "source", "network", "rate", "length"]
COLUMNS = [*PLACE, "trajectory", "predictor", "depth", "role", "step", "shrink", "linear", "neither"]
LINES = (
    *("known", "scaled_known", "released", "wnn", "meta_linear", "meta_linear_theta0", "linear", "logfit"),
    *("richardson", "dmd", "tsv", "trajectory_part", "constant", "shrink"),
)
"""The main lines, in the order of the figure; the others are in the table of the suite's page."""


def draw(results: Path) -> Figure:
    table = load_table(results / "steps.csv", COLUMNS)
    arms = style.arms_of(results)
    table = table[(table["role"] == "all") & table["predictor"].isin(arms["family"])]
    left_out = [family for family in dict.fromkeys(arms["family"]) if family in set(table["predictor"]) - set(LINES)]
    shown = [line for line in LINES if line in set(table["predictor"])]
    table = table[table["predictor"].isin(shown)].sort_values(
        ["predictor", "depth", "trajectory"], key=lambda c: c.map(shown.index) if c.name == "predictor" else c
    )
    if table.empty:
        return style.only_words("None of the main predictors was run.")
    names = {line: style.name_of(arms, line) for line in shown}
    factors = (table["rate"] ** -table["depth"]).map(lambda factor: f" ×{factor:.2g}").where(table["depth"] > 0, "")
    table["label"] = table["predictor"].map(names) + factors
    n = table.groupby([*PLACE, "predictor", "depth"])["trajectory"].transform("nunique")
    most = table.groupby(PLACE)["trajectory"].transform("nunique")
    table["label"] += n.map(lambda count: f" (n = {count})").where(n < most, "")
    places = [part for _, part in table.groupby(PLACE)]
    labels = [list(part["label"].drop_duplicates()) for part in places]
    alike = all(labels[0] == other for other in labels)  # else every panel needs room for labels of its own
    columns = 2 if len(places) in (2, 4) else 3
    figure, axes = style.panels(len(places), columns=columns, height=0.8 + 0.125 * max(map(len, labels)))
    for place, (axis, part) in enumerate(zip(axes, places, strict=True)):
        draw_place(axis, part, beside=0.6 if alike else 1.1 * columns)
        if place % columns and labels[place] == labels[place - 1]:
            axis.set_yticklabels([])  # the left neighbour has the same bars
        if place >= len(places) - columns:
            axis.set_xlabel("|step| / |θ₀|")
    style.legend(figure, axes, 4)
    rest = f" Not drawn: {', '.join(style.name_of(arms, family) for family in left_out)}." if left_out else ""
    style.footnote(
        figure,
        f"Mean over the source trajectories on which the answer is finite, {style.counted(n)}; dots: the |step| of "
        "each; of an answer that is finite on none there is no bar. All predicted tensors. Each "
        "tensor's step is a (−θ₀) + b (θ₀ − θ₁) + a rest orthogonal to both; the length of a part is |step| times its "
        "share of |step|², left of 0 where the share is negative. // with a number: a bar too long for the axis, drawn "
        f"shorter in proportion, and its |step|.{rest}",
    )
    return figure


def draw_place(axis: Axes, part: pd.DataFrame, beside: float) -> None:
    """One panel; part: rows of one track, source, network, r and S, in the order of the bars; beside: see `title`."""
    first = part.iloc[0]
    draw_steps(axis, part)
    bars = part[["predictor", "depth"]].drop_duplicates()["predictor"].reset_index(drop=True)
    for odd, (_, own) in enumerate(bars.groupby(bars, sort=False)):
        if odd % 2 == 0:
            axis.axhspan(own.index[0] - 0.5, own.index[-1] + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
    n = style.counted(pd.Series([part["trajectory"].nunique()]))
    style.title(axis, f"{first['source']}\n{style.place_of(first)}, {n}", beside=beside)
