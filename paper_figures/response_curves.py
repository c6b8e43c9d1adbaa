"""What the networks answer to histories made by hand: their step against theta_0."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.report.folders import load_table
from know.drawing import draw_responses
from paper_figures import _style as style

COLUMNS = ["model", "role", "history", "theta_0", "step", "spread"]
NETWORKS = {"known": "known", "scaled": "scaled_known", "released": "released", "wnn": "wnn"}
"""Networks of the table, and the families they look like."""
DASHES = ["-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1))]
"""Lines of the values of S, largest first."""


def draw(results: Path) -> Figure:
    table = load_table(results / "responses.csv", COLUMNS)
    roles, histories = table["role"].unique(), table["history"].unique()
    looks = looks_of(table["model"].unique())
    figure, axes = style.panels(len(roles) * len(histories), columns=len(histories), height=1.6, sharex=True)
    for place, axis in enumerate(axes):
        role, history = roles[place // len(histories)], histories[place % len(histories)]
        if place % len(histories) == 0:
            axis.set_ylabel(f"role {role}: step")
        else:
            axis.sharey(axes[place - place % len(histories)])
            axis.tick_params(labelleft=False)
        draw_responses(axis, table[(table["role"] == role) & (table["history"] == history)], looks=looks)
        axis.locator_params(axis="x", nbins=3)
        if place < len(histories):
            axis.set_title(history)
        if place >= len(axes) - len(histories):
            axis.set_xlabel("θ₀")
    style.legend(figure, axes, 5)
    style.footnote(
        figure,
        "One network per model and role, hence no interval. Histories that end at θ₀; constant: it never moved; "
        "rising: the last fifth of it grew in even steps; saturating: likewise, each step half the one before; noisy: "
        "constant but for independent noise of 5 % before θ₀, mean answer with a band of one standard deviation.",
    )
    return figure


def looks_of(models: list[str]) -> dict[str, dict]:
    """Keywords of every model's line: "known, S = 5" has KNOWN's colour, and the dashes of its S."""
    parts = {model: model.partition(", S = ")[::2] for model in models}
    lengths = sorted({int(length) for _, length in parts.values()}, reverse=True)
    looks = {}
    for model, (network, length) in parts.items():
        label, colour, _ = style.FAMILIES[NETWORKS[network]]
        line = DASHES[lengths.index(int(length)) % len(DASHES)]
        looks[model] = {"label": f"{label}, S = {length}", "color": colour, "linestyle": line}
    return looks
