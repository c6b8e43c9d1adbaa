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
from matplotlib.lines import Line2D
from PIL import Image

from know.drawing import STYLE
from know.errors import KnowError
from know.files import atomic, read_json
from know.pages import GROUPS, axes_of
from know.records import RunRecord, read_records
from know.statistics import CONFIDENCE, FEW

plt.rcParams.update(STYLE)
plt.rcParams.update(
    {
        "axes.labelsize": 7,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
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
    "naive": ("naive", "#000000", "x"),
    "scratch": ("from scratch", "#7F7F7F", "v"),
    "oracle": ("oracle", "#E69F00", "*"),
    "oracle_steps": ("oracle, same steps", "#E69F00", "P"),
    "known": ("KNOWN", "#0072B2", "o"),
    "released": ("released KNOWN", "#56B4E9", "X"),
    "scaled_known": ("scaled KNOWN", "#882255", "<"),
    "meta_linear": ("meta-linear", "#44AA99", "d"),
    "meta_linear_theta0": ("meta-linear with θ₀", "#332288", "p"),
    "linear": ("linear step", "#D55E00", "s"),
    "wnn": ("WNN", "#CC79A7", "h"),
    "shrink": ("shrink", "#009E73", "^"),
    "random_step": ("random step", "#CC79A7", "D"),
}
"""Label, colour and marker of families that look the same everywhere (colours: Okabe and Ito; Tol)."""

PALETTE = ["#56B4E9", "#999933", "#661100", "#AA4499", "#44AA99", "#882255", "#332288"]
MARKERS = ["o", "v", "X", "<", "h", ">", "d", "p", "8"]
"""Colours and markers of the other families, in turn; the same in two panels mean nothing."""

WORDS = {word.lower(): word for word in ("DMD", "EMA", "KNOWN", "LogFit", "MPE", "RRE", "TSV", "WNN")}
"""Words in names of families that are no plain words; `theta0` as a word is θ₀."""

BLOCKS = (("reference", "known"), ("prediction", "average"), ("control",))
"""Groups that share the panels of a figure."""

MOST = 8
"""Families in one panel; beyond that colours can no longer be told apart, and a block gets another panel."""

RECIPES = {"published": ("published rate", "#858585", "o"), "tuned": ("tuned rate", "#332288", "D")}
"""Label, colour and marker; the colours belong to no family."""


def arms_of(folder: Path) -> pd.DataFrame:
    """One row per arm of a suite, in the order of its tables, those that were not available included.

    Index: arm; columns: group, family (the line's name), depth, factor (text "×8"), label, colour, marker.
    """
    arms = pd.DataFrame(read_json(folder / "suite.json")["described"]).set_index("name")[["group", "depth"]]
    parts = [arm.rpartition("_x") if depth else (arm, "", "") for arm, depth in arms["depth"].items()]
    arms["family"], arms["factor"] = [line for line, *_ in parts], [f"×{x}" if x else "" for *_, x in parts]
    looks: dict[str, tuple[str, str, str]] = {}
    for _, families in blocks_of(arms, most=len(arms)):
        others = [family for family in families if family not in FAMILIES]
        for place, family in enumerate(others):
            name = " ".join(WORDS.get(word, word) for word in family.replace("theta0", "θ₀").split("_"))
            looks[family] = (name, PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)])
    looks |= FAMILIES
    arms["label"] = (arms["family"].map(lambda family: looks[family][0]) + " " + arms["factor"]).str.strip()
    arms["colour"], arms["marker"] = (arms["family"].map(lambda family, k=k: looks[family][k]) for k in (1, 2))
    return arms


def blocks_of(arms: pd.DataFrame, most: int = MOST) -> list[tuple[str, list[str]]]:
    """Heading and families of the panels that show `arms` side by side, at most `most` families in each.

    Those with a depth come first: a figure of depths alone then has the same neighbours, and their colours differ.
    """
    found = []
    for groups in BLOCKS:
        own = arms[arms["group"].isin(groups)]
        families = list(dict.fromkeys([*own.loc[own["depth"] > 0, "family"], *own["family"]]))
        heading = ", ".join(GROUPS[group] for group in groups if group in set(own["group"]))
        count = -(-len(families) // most)
        size = -(-len(families) // max(1, count))
        for k in range(count):
            part = f" ({k + 1} of {count})".replace(" ", "\N{NO-BREAK SPACE}")[1:] if count > 1 else ""
            found.append((f"{heading} {part}".strip(), families[k * size : (k + 1) * size]))
    return found


def name_of(arms: pd.DataFrame, family: str) -> str:
    """Label of a family, without a factor."""
    first = arms[arms["family"] == family].iloc[0]
    return first["label"].removesuffix(first["factor"]).strip()


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
    """Slug to title, in the order track, source, target, network, share, and r and S where they are not the paper's."""
    keys = ["track", "source", "target", "network", "share", "rate", "length", "cell"]
    found = runs[keys].drop_duplicates().sort_values(keys).to_dict("records")
    shares = [f"{100 * c['share']:g} % target".replace(" ", "\N{NO-BREAK SPACE}") for c in found]
    return {
        c["cell"]: f"{c['source']} → {c['target']}\n{place_of(c)}, {share}"
        for c, share in zip(found, shares, strict=True)
    }


def place_of(row: pd.Series | dict) -> str:
    """Network, track, and r and S where they are not the paper's."""
    return f"{row['network']}, {row['track']}{axes_of(row)}"


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


def block_panels(
    count: int, blocks: list[tuple[str, list[str]]], arms: pd.DataFrame, *, height: float
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with `count` rows of panels, one per block, that share their y axis; a block's legend above its column.

    Every panel is `height` inches high. Returns the panels row by row.
    """
    above = 0.13 * (2 + max(len(families) for _, families in blocks))
    size = (COLUMN if len(blocks) == 1 else PAGE, above + count * height + 1.0)
    figure = plt.figure(figsize=size)
    grid = figure.add_gridspec(1 + count, len(blocks), height_ratios=[above, *[height] * count])
    for column, (heading, families) in enumerate(blocks):
        axis = figure.add_subplot(grid[0, column])
        axis.axis("off")
        handles = [_handle(arms, family) for family in families]
        text = textwrap.fill(heading, round(LETTERS * size[0] / len(blocks)) - 3)
        style = {"fontsize": 6, "title_fontsize": 6.5, "alignment": "left", "labelspacing": 0.25, "borderpad": 0}
        axis.legend(handles=handles, title=text, loc="upper left", handlelength=1.8, borderaxespad=0, **style)
    rows = []
    for row in range(1, 1 + count):
        first = figure.add_subplot(grid[row, 0])
        rest = [figure.add_subplot(grid[row, column], sharey=first) for column in range(1, len(blocks))]
        for axis in rest:
            axis.tick_params(labelleft=False)
        rows.append([first, *rest])
    return figure, rows


def _handle(arms: pd.DataFrame, family: str) -> Line2D:
    first = arms[arms["family"] == family].iloc[0]
    style = {"color": first["colour"], "marker": first["marker"], "linestyle": dashed(family, "-")}
    return Line2D([], [], label=name_of(arms, family), markersize=3.5, **style)


def dashed(family: str, line: str) -> str:
    """The second oracle has the colour of the first, so it is dashed."""
    return "--" if family == "oracle_steps" else line


def limits(part: pd.DataFrame) -> tuple[float, float]:
    """Ends of an axis of differences: all intervals, unless a few long ones would press the others together."""
    ends = pd.concat([part[["low", "high"]].stack(), part["difference"]])
    reach = max(1.0, 4 * ends.abs().quantile(0.7))
    low, high = max(min(ends.min(), -0.2), -reach), min(max(ends.max(), 0.2), reach)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def title(axis: Axes, text: str, span: int = 1, beside: float = 0.6) -> None:
    """Title of a panel, each line of `text` wrapped to the width of `span` panels; beside: inches left of them."""
    columns = axis.get_subplotspec().get_gridspec().ncols
    letters = round(LETTERS * span * (axis.figure.get_figwidth() - beside) / columns) - 4
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
    with atomic(folder / f"{name}.svg") as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
    with atomic(folder / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png")
        with Image.open(temporary) as picture:  # 256 colours need a third of the room in the repository
            few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(temporary, format="png", optimize=True)
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
