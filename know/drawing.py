"""Drawings of an inspection: what steps are made of, and what networks answer. matplotlib is asked for only here.

The benchmark's figures draw with the same functions (paper_figures/), so that `know inspect --out` shows the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from know.files import atomic

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {
    "shrink": ("shrink: along −θ₀", "#009E73"),
    "linear": ("linear: along θ₀ − θ₁", "#D55E00"),
    "neither": ("neither", "#A6A6A6"),
}
"""Label and colour of the parts of a step."""
COLOURS = ("#0072B2", "#882255", "#56B4E9", "#999933", "#661100", "#AA4499")
SHRINKING = 0.2
"""The share of a weight by which the line of reference shrinks it."""
ROW, TOP, WIDTH = 0.16, 3.2, 9.0
"""Inches: height of a bar, height of the upper panels, width of the figure of an inspection."""
STYLE = {
    "svg.hashsalt": "know",  # element ids would be random without it
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 150,
}


def draw_steps(axis: Axes, table: pd.DataFrame) -> None:
    """One horizontal bar per label of `table`, from the top down: the mean step, split into its parts.

    table: columns label, step (relative to |theta_0|), shrink, linear, neither (shares of it). Several rows of one
    label, such as trajectories, are averaged, and a dot each marks their steps. A negative part lies left of 0, and the
    parts right of it are then longer than the step, so a line marks the step itself. Bars far longer than the others
    are drawn shorter in proportion, with their step beside them.
    """
    rows = table.assign(step=table["step"].fillna(0)).fillna(dict.fromkeys(PARTS, 0))
    lengths = rows[list(PARTS)].mul(rows["step"], axis=0).groupby(rows["label"], sort=False).mean()
    steps = rows.groupby("label", sort=False)["step"].mean()
    ends = lengths.clip(lower=0).sum(axis=1)
    usual = 3 * steps.quantile(0.7)
    reach = (ends.max() if ends.max() < 2 * usual else usual) or 1.0
    cut = ends > reach
    lengths = lengths.mul((0.85 * reach / ends).where(cut, 1), axis=0)
    y = np.arange(len(steps)) - 0.1
    left, right = np.zeros(len(steps)), np.zeros(len(steps))
    for part, (label, colour) in PARTS.items():
        length = lengths[part].to_numpy()
        start = np.where(length < 0, left, right)
        axis.barh(y, length, left=start, height=0.55, color=colour, linewidth=0, label=label, zorder=2)
        left, right = left + length.clip(max=0), right + length.clip(min=0)
    line = {"linestyle": "", "color": "black", "zorder": 4}
    axis.plot(steps[~cut], y[~cut], "|", markersize=6, markeredgewidth=0.8, label="|step|", **line)
    for place in np.flatnonzero(cut):
        axis.text(right[place], y[place], f" // {steps.iloc[place]:.2g}", va="center", size=6)
    if len(rows) > len(steps):
        own = rows[~rows["label"].map(cut)]
        places = own["label"].map(dict(zip(steps.index, y + 0.42, strict=True)))
        axis.plot(own["step"], places, ".", markersize=1.5, **line)
        reach = max(reach, own["step"].max())
    axis.set_xlim(1.03 * left.min(), 1.05 * reach)
    axis.axvline(0, color="black", linewidth=0.6, zorder=3)
    axis.set_yticks(range(len(steps)), steps.index)
    axis.set_ylim(len(steps) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)


def draw_responses(
    axis: Axes, table: pd.DataFrame, by: str = "model", looks: Mapping[str, dict[str, Any]] | None = None
) -> None:
    """The step against theta_0: one line per value of the column `by`, with a band where the answers spread.

    table: columns theta_0, step, spread and `by`. looks: value to keywords of its line.
    """
    for place, (name, rows) in enumerate(table.groupby(by, sort=False)):
        look = {"color": COLOURS[place % len(COLOURS)], "label": name, **(looks or {}).get(name, {})}
        axis.plot(rows["theta_0"], rows["step"], linewidth=1.1, zorder=3, **look)
        if rows["spread"].any():
            ends = (rows["step"] - rows["spread"], rows["step"] + rows["spread"])
            axis.fill_between(rows["theta_0"], *ends, color=look["color"], alpha=0.18, linewidth=0, zorder=2)
    label = f"shrinks by {SHRINKING:.0%}".replace("%", " %")
    line = {"linestyle": ":", "color": "black", "linewidth": 0.9, "zorder": 1}
    axis.axline((0, 0), slope=-SHRINKING, label=label, **line)  # unlike a plot, it leaves the limits to the answers
    axis.axhline(0, color="#BBBBBB", linewidth=0.6, zorder=0)


def draw_inspection(folder: Path) -> bool:
    """Draw the tables of `know inspect --out` into inspection.svg and .png beside them; False without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return False
    import pandas as pd

    steps, movement, responses = (pd.read_csv(folder / f"{name}.csv") for name in ("steps", "movement", "responses"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, TOP + 0.8 + ROW * len(steps)), layout="constrained")
        _draw_panels(figure, steps, movement, responses)
        for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
            with atomic(folder / f"inspection.{kind}") as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata)
    return True


def _draw_panels(figure: Figure, steps: pd.DataFrame, movement: pd.DataFrame, responses: pd.DataFrame) -> None:
    """Above: cosines, and the answers by role; below: the steps."""
    roles = responses["role"].unique()
    grid = figure.add_gridspec(2, 1 + len(roles), height_ratios=(TOP, 0.8 + ROW * len(steps)))
    _draw_cosines(figure.add_subplot(grid[0, 0]), movement)
    for place, role in enumerate(roles, start=1):
        axis = figure.add_subplot(grid[0, place])
        draw_responses(axis, responses[responses["role"] == role], by="history")
        axis.set_title(f"answers of {responses['model'].iloc[0]}, {role},\nto histories made by hand", loc="left")
        axis.set_xlabel("θ₀")
    axis = figure.axes[1]
    axis.set_ylabel("step")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=5)
    axis = figure.add_subplot(grid[1, :])
    whole = steps["role"].map(lambda role: "all" if role == "all" else f"all of role {role}")
    names = steps["tensor"] + " (" + steps["role"] + ", " + steps["weights"].astype(str) + ")"
    draw_steps(axis, steps.assign(label=names.where(steps["tensor"].notna(), whole)))
    axis.set_title("the step of every tensor (role, weights) and role, and what it is made of", loc="left")
    axis.set_xlabel("|step| / |θ₀|")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.55 / (0.8 + ROW * len(steps))), ncols=4)


def _draw_cosines(axis: Axes, movement: pd.DataFrame) -> None:
    known = movement.dropna(subset="cosine")
    for colour, (role, rows) in zip(COLOURS, known.groupby("role", sort=False), strict=False):
        axis.plot(rows["difference"], rows["cosine"], "o-", markersize=3, linewidth=1, color=colour, label=role)
    if known.empty:
        axis.text(0.5, 0.5, "there is one difference only", ha="center", transform=axis.transAxes)
    else:
        axis.legend(fontsize=6, handlelength=1.4)
    axis.axhline(0, color="#BBBBBB", linewidth=0.6, zorder=0)
    axis.set_ylim(-1.05, 1.05)
    axis.set_xticks(sorted(known["difference"].unique()))
    axis.set_title("is the trajectory straight?\n1: straight on, 0: unrelated", loc="left")
    axis.set_xlabel("k, of the difference θₖ − θₖ₊₁")
    axis.set_ylabel("cosine with the difference before it")
