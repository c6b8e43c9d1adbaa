"""How KNOWN learned: error of the predicted weights while it was meta-trained, one panel a role."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import FAMILIES, footnote, legend, load_table, main, panels, title

COLUMNS = ["length", "model", "role", "update", "training_loss", "held_out_loss", "no_change_loss", "linear_loss"]
NETWORKS = {"known": "known", "scaled": "scaled_known"}
"""Models of the table, and the families they look like."""


def draw(results: Path) -> Figure:
    table = load_table(results / "metatraining.csv", COLUMNS)
    closed = load_table(results / "meta_linear.csv", ["length", "model", "role", "term", "value"])
    lengths, length = sorted(table["length"].unique()), table["length"].max()
    table = table[table["length"] == length]
    closed = closed[(closed["length"] == length) & (closed["term"] == "held_out_loss")]
    roles = table["role"].unique()
    figure, axes = panels(len(roles), columns=3, height=2.3)
    for axis, role in zip(axes, roles, strict=True):
        draw_panel(axis, table[table["role"] == role], closed[closed["role"] == role].set_index("model")["value"], role)
    axes[0].set_ylabel("mean |error| of a weight")
    legend(figure, axes, 4)
    only = f" S = {length}, the largest of {', '.join(map(str, lengths))}." if len(lengths) > 1 else f" S = {length}."
    footnote(
        figure,
        "Loss: mean absolute error of the predicted weight, in units of the weights. Thick: on held-out windows, of "
        "whole trajectories that training never saw; thin: on training windows, mean since the last evaluation, "
        "without the penalty. Marker: the update that is kept, chosen on the same held-out windows. One training per "
        "network and role, hence no interval. Horizontal lines, held out: no change predicts θ₀, linear step 2θ₀ − θ₁, "
        f"meta-linear the least-squares combination of the differences, or of them and θ₀.{only}",
    )
    return figure


def draw_panel(axis: Axes, part: pd.DataFrame, closed: pd.Series, role: str) -> None:
    """part: the rows of one role; closed: the held-out losses of the closed-form models."""
    first = part.iloc[0]
    ratios = []
    for model, family in NETWORKS.items():
        label, colour, marker = FAMILIES[family]
        rows = part[part["model"] == model]
        best = rows.loc[rows["held_out_loss"].idxmin()]
        axis.plot(rows["update"], rows["training_loss"], color=colour, linewidth=0.5)
        axis.plot(rows["update"], rows["held_out_loss"], color=colour, label=label)
        axis.plot(best["update"], best["held_out_loss"], marker, color=colour)
        ratios.append(f"{label.removesuffix(' KNOWN')} {best['held_out_loss'] / first['no_change_loss']:.2f}")
    for model, line in {"meta_linear": (0, (5, 1)), "meta_linear_theta0": (0, (3, 1, 1, 1))}.items():
        label, colour, _ = FAMILIES[model]
        axis.axhline(closed[model], color=colour, linestyle=line, linewidth=0.9, label=label)
    axis.axhline(first["linear_loss"], color=FAMILIES["linear"][1], linestyle=":", label=FAMILIES["linear"][0])
    axis.axhline(first["no_change_loss"], color="black", linestyle="--", linewidth=0.9, label="no change")
    losses = part[["training_loss", "held_out_loss"]]
    if losses.max(axis=None) > 10 * losses.min(axis=None):
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    title(axis, f"role {role}, n = 1 training\n{', '.join(ratios)} × no change")
    axis.set_xlabel("update")


if __name__ == "__main__":
    main(__file__, draw)
