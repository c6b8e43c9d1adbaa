"""How KNOWN learned: error of the predicted weights while it was meta-trained, one panel a role."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.folders import load_table
from paper_figures import _style as style

COLUMNS = ["length", "model", "role", "update", "training_loss", "selection_loss", "no_change_loss", "linear_loss"]
NETWORKS = {"known": "known", "scaled": "scaled_known"}
"""Models of the table, and the families they look like."""


def draw(results: Path) -> Figure:
    table = load_table(results / "metatraining.csv", COLUMNS)
    errors = load_table(results / "held_out.csv", ["length", "model", "role", "loss", "no_change_loss"])
    lengths, length = sorted(table["length"].unique()), table["length"].max()
    table = table[table["length"] == length]
    errors = errors[errors["length"] == length]
    roles = table["role"].unique()
    figure, axes = style.panels(len(roles), columns=3, height=2.3)
    for axis, role in zip(axes, roles, strict=True):
        draw_panel(axis, table[table["role"] == role], errors[errors["role"] == role], role)
    axes[0].set_ylabel("mean |error| of a weight")
    style.legend(figure, axes, 4)
    only = f" S = {length}, the largest of {', '.join(map(str, lengths))}." if len(lengths) > 1 else f" S = {length}."
    style.footnote(
        figure,
        "Loss: mean absolute error of the predicted weight, in units of the weights. Thick: on the windows of whole "
        "trajectories that only choose the update which is kept (marker); thin: on training windows, mean since the "
        "last evaluation, without the penalty. One training per network and role. Horizontal lines, on the same "
        "windows as the thick ones: no change predicts θ₀, linear step 2θ₀ − θ₁. Titles: mean error over n further "
        f"trajectories that neither trained nor chose anything, as a share of no change.{only}",
    )
    return figure


def draw_panel(axis: Axes, part: pd.DataFrame, errors: pd.DataFrame, role: str) -> None:
    """part, errors: the rows of one role, of the training and of the held-out trajectories."""
    first = part.iloc[0]
    means = errors.groupby("model")[["loss", "no_change_loss"]].mean()
    ratios = means["loss"] / means["no_change_loss"]
    count = errors.groupby("model").size().iloc[0]
    for model, family in NETWORKS.items():
        label, colour, marker = style.FAMILIES[family]
        rows = part[part["model"] == model]
        best = rows.loc[rows["selection_loss"].idxmin()]
        axis.plot(rows["update"], rows["training_loss"], color=colour, linewidth=0.5)
        axis.plot(rows["update"], rows["selection_loss"], color=colour, label=label)
        axis.plot(best["update"], best["selection_loss"], marker, color=colour)
    axis.axhline(
        first["linear_loss"], color=style.FAMILIES["linear"][1], linestyle=":", label=style.FAMILIES["linear"][0]
    )
    axis.axhline(first["no_change_loss"], color="black", linestyle="--", linewidth=0.9, label="no change")
    losses = part[["training_loss", "selection_loss"]]
    if losses.max(axis=None) > 10 * losses.min(axis=None):
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    names = {"known": "KNOWN", "scaled": "scaled", "meta_linear": "meta-linear"}
    shares = ", ".join(f"{name} {ratios[model]:.2f}" for model, name in names.items())
    style.title(axis, f"role {role}, n = {count}\n{shares} × no change")
    axis.set_xlabel("update")
