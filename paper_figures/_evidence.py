"""The front picture: what every core cell says, by network and rate policy, from the data gap to the paper's baselines.

`python -m paper_figures results` draws it into results/figures/evidence.svg and .png; so does `python -m paper_figures
results/<suite>` after the suite's own figures, where it is one of these.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.claims import CLAIMS
from benchmarks.report.evidence import DAGGER, POLICIES, gates, informative, marked
from benchmarks.report.folders import Published, load
from benchmarks.report.statistics import gain, paired_t
from benchmarks.report.tables import FRONT, front_means
from paper_figures import _style as style

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#882255", "#E69F00", "#56B4E9", "#332288", "#7F7F7F", "#000000"]
"""Of the pairs of datasets, in turn."""
BAR, HEADING = 0.075, 0.14
"""Height in inches of a bar, and of a heading or of the rest of a row."""


class Shown(NamedTuple):
    """The means of one cell at one rate policy: a row per trajectory and a column per arm, in points."""

    network: str
    pair: str
    policy: str
    means: pd.DataFrame
    informative: bool
    marked: set[str]
    """Arms that ask the authors' networks about data that they were meta-trained on."""


def published(results: Path) -> list[Published]:
    """The core suites that have been run."""
    return [load(results / name, results) for name in CLAIMS.core if (results / name / "suite.json").is_file()]


def cells(suites: list[Published]) -> list[Shown]:
    found = []
    for one in suites:
        d0 = one.settings["forgetting"]["d0"]
        for cell, runs in one.cells.items():
            first, means = runs.iloc[0], front_means(runs).droplevel("cell")
            share = "" if d0 == 0.5 else f", D0 {d0:g} of the source"
            pair = f"{first['source']} → {first['target']}{share}"
            for policy in (policy for policy in POLICIES if policy in means.index):
                own = means.loc[policy].dropna(axis="columns", how="all")
                said = informative(gates(one, cell, policy)), marked(one, cell)
                found.append(Shown(first["network"], pair, policy, own, *said))
    return found


def draw(results: Path) -> Figure:
    shown = cells(published(results))
    networks = sorted({each.network for each in shown})
    policies = [policy for policy in POLICIES if policy in {each.policy for each in shown}]
    pairs = list(dict.fromkeys(each.pair for each in shown))
    looks = {pair: COLOURS[place % len(COLOURS)] for place, pair in enumerate(pairs)}
    count = {network: len({each.pair for each in shown if each.network == network}) for network in networks}
    lines, headings = sum(map(len, FRONT.values())), len(FRONT)
    heights = [lines * (BAR * count[n] + HEADING / 2) + headings * HEADING + 0.4 for n in networks]
    figure = style.plt.figure(figsize=(style.PAGE, sum(heights) + 0.9 + 0.13 * len(pairs) / 2))
    grid = figure.add_gridspec(len(networks), len(policies), height_ratios=heights)
    for (down, network), (across, policy) in ((a, b) for a in enumerate(networks) for b in enumerate(policies)):
        axis = figure.add_subplot(grid[down, across])
        own = {each.pair: each for each in shown if (each.network, each.policy) == (network, policy)}
        style.title(axis, f"{network}, {POLICIES[policy]}" + ("" if own else ": not run"), beside=1.7)
        _panel(axis, {pair: own[pair] for pair in pairs if pair in own}, count[network], looks)
        axis.tick_params(labelleft=not across)
        if down == len(networks) - 1:
            axis.set_xlabel("points of target test accuracy")
    for pair, colour in looks.items():
        figure.axes[0].plot([], [], "o", color=colour, markersize=2.8, label=pair)
    style.legend(figure, figure.axes[:1], 2)
    n = pd.Series([len(each.means) for each in shown])
    style.footnote(
        figure,
        f"{style.interval_note(n)} Arms: minus naive fine-tuning. Data gap: twice the source data at equal steps, "
        "minus naive. Local data gap: theta_0 trained further on twice the data, minus on D0. Noise floor: random "
        "steps that are finite. Hollow: the cell fails a gate at that rate, and is in no verdict. Arrows: what lies "
        "beyond the axis; a number beside one is the mean. "
        f"{DAGGER} The authors' networks were meta-trained on data of that cell.",
    )
    return figure


def _panel(axis: Axes, own: dict[str, Shown], slots: int, looks: dict[str, str]) -> None:
    """One network at one rate policy. slots: how many cells its rows have room for."""
    placed, place = [], 0.0
    for heading, rows in FRONT.items():
        placed.append((heading, "", place + HEADING / 2))
        place += HEADING
        for label, row in rows.items():
            height = BAR * slots + HEADING / 2
            placed.append((label, row, place + height / 2))
            place += height
    bars = {
        (row, pair): pd.Series(vars(paired_t(values))).rename({"mean": "difference"})
        for _, row, _ in placed
        for pair, each in own.items()
        if row and (values := gain(each.means, row)) is not None
    }
    if bars:
        axis.set_xlim(style.limits(pd.DataFrame(bars.values())))
    axis.axvline(0, color="black", linewidth=0.6, zorder=1)
    axis.set_ylim(place, 0)
    axis.set_yticks([at for *_, at in placed], [label for label, *_ in placed])
    for tick, (_, row, at) in zip(axis.get_yticklabels(), placed, strict=True):
        tick.set_weight("normal" if row else "bold")
        if not row:
            axis.axhline(at - HEADING / 2, color="#BBBBBB", linewidth=0.5)
    axis.tick_params(axis="y", length=0)
    for _, row, at in placed:
        for slot, (pair, each) in enumerate(own.items()):
            if (bar := bars.get((row, pair))) is None:
                continue
            y = at + BAR * (slot - (len(own) - 1) / 2)
            style.draw_bar(axis, y, bar, ("", looks[pair], "o"), hollow=not each.informative)
            if row in each.marked:
                axis.annotate(DAGGER, (bar["high"], y), (2, 0), textcoords="offset points", size=4, va="center")
    axis.locator_params(axis="x", nbins=6)
