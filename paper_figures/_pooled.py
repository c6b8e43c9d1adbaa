"""The picture of README.md: what every arm is worth at tuned rates, pooled over the core cells and in each of them.

`python -m paper_figures results` draws it into results/figures/pooled.svg and .png; so does `python -m paper_figures
results/<suite>` where that is a core suite.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.report.claims import CLAIMS, Contrast
from benchmarks.report.evidence import Evidence
from benchmarks.report.folders import load_all
from benchmarks.report.statistics import Interval
from paper_figures import _style as style

SHOWN = {
    "Twice the data": {
        "data gap": ("oracle_steps", "naive"),
        "local data gap": ("local_oracle", "compute_matched"),
    },
    "KNOWN ×2": {
        "ours": ("known_x2", "naive"),
        "the authors'": ("released_x2", "naive"),
        "ours, minus shrinking": ("known_x2", "shrink_x2"),
        "the authors', minus shrinking": ("released_x2", "shrink_released_x2"),
    },
    "The paper's baselines ×2": {
        "LogFit": ("logfit_x2", "naive"),
        "TaskVector": ("linear_x2", "naive"),
        "TSV": ("tsv_x2", "naive"),
        "WNN": ("wnn_x2", "naive"),
    },
    "The same compute": {
        "further training": ("compute_matched", "naive"),
        "further, averaged": ("compute_averaged", "naive"),
        "further, augmented": ("compute_augmented", "naive"),
    },
}
"""By heading and label, the arms whose difference is shown: the better one, and what it is compared with."""
LOOKS = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#56B4E9", "P")]
"""Colour and marker of the networks, in turn."""


def draw(results: Path) -> Figure:
    evidence, policy = Evidence(load_all(results)), CLAIMS.primary.policy
    places = sorted(place for place in evidence.informative_at(policy) if place.core)
    if not places:
        return style.only_words("No core cell that was run is informative at tuned rates.")
    networks = sorted({place.network for place in places})
    looks = {network: LOOKS[number % len(LOOKS)] for number, network in enumerate(networks)}
    figure, axis = style.plt.subplots()
    marks, bars, ticks = [], [], []
    for heading, own in SHOWN.items():
        ticks.append((heading, "bold"))
        for label, (better, worse) in own.items():
            contrast = Contrast(better=better, worse=worse)
            cells = evidence.by_place(contrast, policy)
            means = [(place.network, cells[place].interval) for place in places if place in cells]
            marks += [(len(ticks), network, replace(one, low=one.mean, high=one.mean)) for network, one in means]
            if means:
                bars.append((len(ticks), evidence.judge(contrast, policy).interval))
            ticks.append((label, "normal"))
    figure.set_size_inches(style.PAGE * 0.75, 1.2 + 1.5 * style.ROW * len(ticks))
    reach = 2 * max(abs(end) for _, one in bars for end in (one.low, one.high))
    ends = [end for *_, one in [*bars, *marks] for end in (one.low, one.high) if abs(end) < reach]
    room = 0.12 * (max(ends) - min(ends))  # for the mean of a cell that lies beyond the axis
    axis.set_xlim(min(ends) - room, max(ends) + room)
    axis.axvline(0, color="black", linewidth=0.6, zorder=1)
    for y, network, mean in marks:
        style.draw_bar(axis, y + 0.25, _row(mean), (network, *looks[network]), hollow=True)
    for y, interval in bars:
        style.draw_bar(axis, y - 0.15, _row(interval), ("pooled", "black", "D"))
    axis.set_yticks(range(len(ticks)), [label for label, _ in ticks])
    for tick, (_, weight) in zip(axis.get_yticklabels(), ticks, strict=True):
        tick.set_weight(weight)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(ticks) - 0.5, -0.5)
    axis.set_xlabel("points of target test accuracy, every arm at its tuned rate")
    style.legend(figure, [axis], 4)
    n = pd.Series([mean.n for *_, mean in marks])
    style.footnote(
        figure,
        f"Diamonds: pooled over the {len(places)} informative core cells that were run, each pair of source and "
        f"network counting once, with 95 % intervals over source trajectories ({style.counted(n)} in a cell), not "
        "corrected for their number. Hollow: the mean in each cell. Arms: minus naive fine-tuning, or minus "
        "theta_0 shrunk by as much. Data gap: theta_0 really trained on twice the data, at equal steps. Local "
        "data gap: trained further on twice the data, minus on D0. Arrows: what lies beyond the axis, with the "
        "mean. The authors' networks were meta-trained on data of some of the cells. KNOWN ×8 is on the pages of "
        "the results.",
    )
    return figure


def _row(interval: Interval) -> pd.Series:
    return pd.Series(vars(interval)).rename({"mean": "difference"})
