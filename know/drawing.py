"""Drawings of an inspection and of a comparison. matplotlib is imported only here.

The benchmark's figure of steps is drawn by the same function (paper_figures/), so that both show the same.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from know.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {
    "shrink": ("shrink: along −θ₀", "#009E73"),
    "linear": ("linear: along θ₀ − θ₁", "#D55E00"),
    "neither": ("neither", "#A6A6A6"),
}
"""Label and colour of the parts of a step."""
COLOURS = ("#0072B2", "#882255", "#56B4E9", "#999933", "#661100", "#AA4499")
ROW, TOP, WIDTH = 0.16, 3.2, 9.0
"""Inches: height of a bar, height of the upper panel, width of the figure of an inspection."""
WORDS = ("tensor", "role")
"""Columns of the tables that hold words; all others hold numbers."""
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


def draw_steps(axis: Axes, table: Any) -> None:
    """One horizontal bar per label of `table`, from the top down: the mean step, split into its parts.

    table: rows, each a mapping, or a pandas DataFrame, with label, step (relative to |theta_0|), shrink, linear,
    neither (shares of it; None or NaN counts as 0). Several rows of one label, such as trajectories, are averaged, and
    a dot each marks their steps. A negative part lies left of 0, and the parts right of it are then longer than the
    step, so a line marks the step itself. Bars far longer than the others are drawn shorter in proportion, with their
    step beside them.
    """
    rows = table.to_dict("records") if hasattr(table, "to_dict") else [dict(row) for row in table]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    own = {label: np.array([_numbers(row) for row in rows if row["label"] == label]) for label in labels}
    steps = np.array([own[label][:, 0].mean() for label in labels])
    lengths = np.array([(own[label][:, 1:] * own[label][:, :1]).mean(0) for label in labels])  # (bars, parts)
    ends = lengths.clip(min=0).sum(1)
    usual = 3 * np.quantile(steps, 0.7)
    reach = (ends.max() if ends.max() < 2 * usual else usual) or 1.0
    cut = ends > reach
    lengths[cut] *= 0.85 * reach / ends[cut, None]
    y = np.arange(len(steps)) - 0.1
    left, right = np.zeros(len(steps)), np.zeros(len(steps))
    for length, (label, colour) in zip(lengths.T, PARTS.values(), strict=True):
        start = np.where(length < 0, left, right)
        axis.barh(y, length, left=start, height=0.55, color=colour, linewidth=0, label=label, zorder=2)
        left, right = left + length.clip(max=0), right + length.clip(min=0)
    line = {"linestyle": "", "color": "black", "zorder": 4}
    axis.plot(steps[~cut], y[~cut], "|", markersize=6, markeredgewidth=0.8, label="|step|", **line)
    for place in np.flatnonzero(cut):
        axis.text(right[place], y[place], f" // {steps[place]:.2g}", va="center", size=6)
    if len(rows) > len(steps):
        place = dict(zip(labels, y + 0.42, strict=True))
        shown = [(_numbers(row)[0], place[row["label"]]) for row in rows if not cut[labels.index(row["label"])]]
        axis.plot([step for step, _ in shown], [y for _, y in shown], ".", markersize=1.5, **line)
        reach = max([reach, *(step for step, _ in shown)])
    axis.set_xlim(1.03 * left.min(), 1.05 * reach)
    axis.axvline(0, color="black", linewidth=0.6, zorder=3)
    axis.set_yticks(range(len(steps)), labels)
    axis.set_ylim(len(steps) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)


def _numbers(row: Mapping[str, Any]) -> list[float]:
    """The step of a row and the shares of its parts, with 0 where there is none."""
    return [0.0 if (value := row[key]) is None or value != value else float(value) for key in ("step", *PARTS)]


def draw_inspection(folder: Path) -> bool:
    """Draw the tables of `know inspect --out` into inspection.svg and .png beside them; False without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return False
    steps, movement = (_read(folder / f"{name}.csv") for name in ("steps", "movement"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, TOP + 0.8 + ROW * len(steps)), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=(TOP, 0.8 + ROW * len(steps)))
        _draw_cosines(above, movement)
        draw_steps(below, [{**row, "label": _label(row)} for row in steps])
        below.set_title("the step of every tensor (role, weights) and role, and what it is made of", loc="left")
        below.set_xlabel("|step| / |θ₀|")
        below.legend(loc="upper center", bbox_to_anchor=(0.5, -0.55 / (0.8 + ROW * len(steps))), ncols=4)
        save_figure(figure, folder / "inspection")
    return True


def steady(figure: Figure) -> None:
    """Let the constrained layout of a figure round the places of its axes to 9 decimals of the figure's size.

    The solver behind the layout may end on another last bit in another process, and matplotlib makes the ids in a .svg
    from all bits.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    class Rounding(ConstrainedLayoutEngine):
        def execute(self, fig: Figure) -> Any:
            made = super().execute(fig)
            for axis in fig.axes:  # `set_position` would take them out of the layout of the next format
                axis._set_position(np.round(axis.get_position(original=True).bounds, 9), which="original")
            return made

    figure.set_layout_engine(Rounding())


def save_figure(figure: Figure, stem: Path, kinds: Iterable[str] = ("svg", "png")) -> None:
    """Write a figure as .svg and .png, without dates or versions: the same bytes from the same data."""
    steady(figure)
    metadata_of = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    for kind, metadata in ((kind, metadata_of[kind]) for kind in kinds):
        with atomic(stem.with_suffix(f".{kind}")) as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata)


def _read(path: Path) -> list[dict[str, Any]]:
    """Rows of a table of `know inspect`: words as they are, all else as numbers, None where there is none."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {key: text if key in WORDS else float(text) if text else None for key, text in row.items()}
            for row in csv.DictReader(file)
        ]


def _label(row: Mapping[str, Any]) -> str:
    if row["tensor"]:
        return f"{_literal(row['tensor'])} ({row['role']}, {row['weights']:.0f})"
    return "all" if row["role"] == "all" else f"all of role {row['role']}"


def _literal(name: str) -> str:
    """A name for matplotlib, which reads a formula between two dollar signs."""
    return name.replace("$", r"\$")


def _draw_cosines(axis: Axes, movement: list[dict]) -> None:
    known = [row for row in movement if row["cosine"] is not None]
    for colour, role in zip(COLOURS, dict.fromkeys(row["role"] for row in known), strict=False):
        x, y = zip(*((row["difference"], row["cosine"]) for row in known if row["role"] == role), strict=True)
        axis.plot(x, y, "o-", markersize=3, linewidth=1, color=colour, label=role)
    if known:
        axis.legend(fontsize=6, handlelength=1.4)
    else:
        axis.text(0.5, 0.5, "there is one difference only", ha="center", transform=axis.transAxes)
    axis.axhline(0, color="#BBBBBB", linewidth=0.6, zorder=0)
    axis.set_ylim(-1.05, 1.05)
    axis.set_xticks(sorted({row["difference"] for row in known}))
    axis.set_title("is the trajectory straight?\n1: straight on, 0: unrelated", loc="left")
    axis.set_xlabel("k, of the difference θₖ − θₖ₊₁")
    axis.set_ylabel("cosine with the difference before it")


def draw_comparison(folder: Path, rows: Sequence[Any]) -> None:
    """Draw the differences to theta_0 of a comparison, one line per candidate, into comparison.svg and .png.

    rows: `know.verdict.Row`s.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names = [name for name in dict.fromkeys(row.candidate for row in rows) if name != "theta_0"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 1.1 + 0.34 * len(names)), layout="constrained")
        axis = figure.add_subplot()
        for place, (policy, label, colour, marker) in enumerate(
            (
                ("today", "at the rate of today", COLOURS[2], "o"),
                ("tuned", "each at its own best rate", COLOURS[0], "s"),
            )
        ):
            own = [
                row for row in rows if row.policy == policy and row.candidate in names and math.isfinite(row.difference)
            ]
            y = [names.index(row.candidate) + (0.14 if place else -0.14) for row in own]
            x = [row.difference for row in own]
            ends = [[row.difference - row.low if math.isfinite(row.low) else 0 for row in own] for _ in range(2)]
            style = {"fmt": marker, "markersize": 3.5, "linewidth": 1, "capsize": 2, "color": colour, "label": label}
            axis.errorbar(x, y, xerr=ends, **style)
        axis.axvline(0, color="black", linewidth=0.6, zorder=0)
        axis.set_yticks(range(len(names)), map(_literal, names))
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_xlabel(
            "difference to theta_0 in score (higher is better), with the interval for all candidates together"
        )
        figure.legend(loc="outside upper left", ncols=2)
        save_figure(figure, folder / "comparison")
