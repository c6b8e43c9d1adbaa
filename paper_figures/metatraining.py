"""How KNOWN learned: error of the predicted weights while it was meta-trained, one panel a role."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from style import FAMILIES, footnote, legend, load_table, main, panels, title

COLUMNS = ["role", "update", "training_loss", "held_out_loss", "no_change_loss", "linear_loss"]


def draw(results: Path) -> Figure:
    table = load_table(results / "metatraining.csv", COLUMNS)
    roles = table["role"].unique()
    figure, axes = panels(len(roles), columns=3, height=2.1)
    for axis, role in zip(axes, roles, strict=True):
        part = table[table["role"] == role]
        best = part.loc[part["held_out_loss"].idxmin()]
        axis.plot(part["update"], part["training_loss"], color="#56B4E9", label="training")
        axis.plot(part["update"], part["held_out_loss"], color=FAMILIES["known"][1], label="held out")
        axis.plot(best["update"], best["held_out_loss"], "o", color=FAMILIES["known"][1], label="kept")
        axis.axhline(best["no_change_loss"], color="black", linestyle="--", label="no change, held out")
        axis.axhline(best["linear_loss"], color=FAMILIES["linear"][1], linestyle=":", label="linear step, held out")
        losses = part[["training_loss", "held_out_loss"]]
        if losses.max(axis=None) > 10 * losses.min(axis=None):
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
            axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        ratios = [best["held_out_loss"] / best[column] for column in ("no_change_loss", "linear_loss")]
        title(axis, f"role {role}, n = 1 training\nkept {ratios[0]:.2f} × no change, {ratios[1]:.2f} × linear")
        axis.set_xlabel("update")
    axes[0].set_ylabel("mean |error| of a weight")
    legend(figure, axes, 5)
    footnote(
        figure,
        "Loss: mean absolute error of the predicted weight, in units of the weights. Training: mean since the last "
        "evaluation, without the penalty; held out: windows of whole trajectories that training never saw. One "
        "training per role, hence no interval. No change predicts θ₀, linear step 2θ₀ − θ₁.",
    )
    return figure


if __name__ == "__main__":
    main(__file__, draw)
