"""What the figures share: colours, sizes, names of arms and cells, panels, and files with the same bytes every time.

Each figure is one script, `python paper_figures/<name>.py results/<suite> [folder]`, that reads csv files alone. It
writes `<name>.svg` and `<name>.png` into `folder`, by default `results/<suite>/figures`.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
sys.path.insert(0, str(Path(__file__).parents[1]))  # a script finds `know` in its checkout, installed or not

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from know.errors import KnowError
from know.files import atomic
from know.records import RunRecord, read_records
from know.statistics import CONFIDENCE, FEW

plt.rcParams.update(
    {
        "svg.hashsalt": "know",  # element ids would be random without it
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",  # ships with matplotlib
        "font.size": 7,
        "axes.titlesize": 7,
        "axes.titlelocation": "left",
        "axes.labelsize": 7,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "lines.linewidth": 1.1,
        "lines.markersize": 4,
        "axes.formatter.use_mathtext": True,
        "figure.constrained_layout.use": True,
        "savefig.dpi": 220,
    }
)

COLUMN, PAGE = 3.5, 7.0
"""Widths in inches: of one text column, of the page."""

LETTERS = 19
"""Letters of 7 pt per inch, to wrap long lines by."""

FAMILIES = {
    "oracle": ("oracle", "#E69F00", "*"),
    "oracle_steps": ("oracle, same steps", "#E69F00", "P"),
    "known": ("KNOWN", "#0072B2", "o"),
    "shrink": ("shrink", "#009E73", "^"),
    "linear": ("linear step", "#D55E00", "s"),
    "random_step": ("random step", "#CC79A7", "D"),
    "naive": ("naive", "#000000", "x"),
    "scratch": ("from scratch", "#7F7F7F", "v"),
}
"""Label, colour and marker of a predictor or reference, in the order of the figures (colours: Okabe and Ito)."""

OTHERS = [("#882255", "<"), ("#56B4E9", ">"), ("#999933", "X"), ("#661100", "p"), ("#44AA99", "d")]
"""Colour and marker of predictors without an entry above, by the alphabet."""

RECIPES = {"published": ("published rate", "#858585", "o"), "tuned": ("tuned rate", "#332288", "D")}
"""Label, colour and marker; the colours belong to no family."""


def look(families: pd.Series) -> dict[str, tuple[str, str, str]]:
    """Label, colour and marker of every family there is, in the order of the figures: unknown ones before naive."""
    unknown = sorted(set(families) - set(FAMILIES))
    known, last = [f for f in FAMILIES if f not in ("naive", "scratch")], ["naive", "scratch"]
    looks = {f: (f.replace("_", " "), *OTHERS[i % len(OTHERS)]) for i, f in enumerate(unknown)} | FAMILIES
    return {f: looks[f] for f in [*known, *unknown, *last] if f in set(families)}


def arms_of(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, in the order of the figures. Index: arm; columns: family, depth, factor (text "×8"), label."""
    arms = runs.groupby("arm")[["predictor", "depth"]].first()
    arms["family"] = arms["predictor"].where(arms["predictor"] != "", arms.index)
    arms["factor"] = [f"×{arm.rpartition('_x')[2]}" if depth else "" for arm, depth in arms["depth"].items()]
    looks = look(arms["family"])
    arms["label"] = (arms["family"].map(lambda family: looks[family][0]) + " " + arms["factor"]).str.strip()
    order = {family: place for place, family in enumerate(looks)}
    return arms.sort_values(["family", "depth", "label"], key=lambda c: c.map(order) if c.name == "family" else c)


def load_runs(folder: Path) -> pd.DataFrame:
    return read_records([folder / "runs.csv"], RunRecord)


def load_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """A csv without a record schema; KnowError if it is missing or lacks a column."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KnowError(f"{path} cannot be read ({reason}); run the suite first") from error
    if missing := [column for column in columns if column not in table]:
        raise KnowError(f"{path} lacks the columns {', '.join(missing)}")
    return table


def cells_of(runs: pd.DataFrame) -> dict[str, str]:
    """Slug to title, in the order track, source, target, network, share."""
    keys = ["track", "source", "target", "network", "share", "cell"]
    found = runs[keys].drop_duplicates().sort_values(keys).itertuples()
    return {c.cell: f"{c.source} → {c.target}\n{c.network}, {c.track}, {100 * c.share:g} % target" for c in found}


def counted(n: pd.Series) -> str:
    """n = 5, or n = 4 to 5 where it differs; with spaces at which no line breaks."""
    return (f"n = {n.min():g}" + (f" to {n.max():g}" if n.max() > n.min() else "")).replace(" ", "\N{NO-BREAK SPACE}")


def interval_note(n: pd.Series) -> str:
    """The footnote that says what the bars are, from the statistics that made them and the n in the data."""
    few = f"; preliminary: fewer than {FEW} trajectories" if n.min() < FEW else ""
    return (
        f"Bars: {100 * CONFIDENCE:g} % paired t interval over source trajectories, {counted(n)} "
        f"(fine-tunes of one trajectory are averaged first){few}."
    )


def panels(count: int, *, columns: int, height: float, **share: bool) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows, each `height` inches high; the places left over are empty."""
    columns = min(columns, count)
    rows = -(-count // columns)
    width, rest = (COLUMN, 1.3) if count == 1 else (PAGE, 0.7)  # the rest holds legend and footnote
    figure, axes = plt.subplots(rows, columns, figsize=(width, rows * height + rest), squeeze=False, **share)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def title(axis: Axes, text: str, span: int = 1) -> None:
    """Title of a panel, each line of `text` wrapped to the width of `span` panels."""
    columns = axis.get_subplotspec().get_gridspec().ncols
    letters = round(LETTERS * span * (axis.figure.get_figwidth() - 0.6) / columns) - 4
    axis.set_title("\n".join(textwrap.fill(line, letters) for line in text.split("\n")))


def legend(figure: Figure, axes: list[Axes], columns: int) -> None:
    """One legend above all panels; a label that several lines or panels have stands there once."""
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=columns)


def footnote(figure: Figure, text: str) -> None:
    """Small print under the figure; as a common x label, so that the layout leaves room for it."""
    letters = round(LETTERS * figure.get_figwidth())
    figure.supxlabel(textwrap.fill(text, letters), x=0.01, ha="left", size=7, color="#444444")


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `<name>.svg` and `<name>.png`, without dates or versions: the same bytes from the same data."""
    for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        with atomic(folder / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata)
    plt.close(figure)


def main(script: str, draw: Callable[[Path], Figure]) -> None:
    """The command line of a figure: results folder, and optionally the folder to write to."""
    arguments = sys.argv[1:]
    if len(arguments) not in (1, 2) or arguments[0].startswith("-"):
        sys.exit(f"usage: python paper_figures/{Path(script).name} results/<suite> [folder]")
    results = Path(arguments[0])
    try:
        save(draw(results), Path(arguments[1]) if arguments[1:] else results / "figures", Path(script).stem)
    except KnowError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
