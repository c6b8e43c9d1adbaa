"""What the figures share: colours, sizes, names of arms and cells, panels, and files with the same bytes every time.

Each figure is one script whose `draw` reads csv files alone; `python -m paper_figures` draws and writes them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy
from PIL import Image

from benchmarks.report.evidence import DAGGER, DIVERGED, POLICIES, SEEN_NOTE, marked
from benchmarks.report.folders import GROUPS, Published
from benchmarks.report.statistics import CONFIDENCE, FEW
from benchmarks.report.tables import axes_of
from know.drawing import STYLE, save_figure
from know.files import atomic, read_json

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
    "double_steps": ("twice the steps", "#E69F00", "H"),
    "local_oracle": ("local oracle", "#B8860B", "*"),
    "oracle_x4": ("oracle ×4", "#E69F00", "d"),
    "oracle_x8": ("oracle ×8", "#E69F00", "p"),
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

PALETTE = ["#56B4E9", "#999933", "#661100", "#AA4499", "#44AA99", "#882255", "#332288", "#117733", "#CC6677", "#DDCC77"]
DEALT = 7
"""How many of them are dealt in turn; the others are for a family whose colour one before it in its panel has."""
MARKERS = ["o", "v", "X", "<", "h", ">", "d", "p", "8"]
"""Markers of the other families, in turn; the same in two panels mean nothing."""

WORDS = {
    word.lower(): word for word in ("DMD", "EMA", "ExPO", "KNOWN", "LogFit", "MPE", "Richardson", "RRE", "TSV", "WNN")
}
"""Words in names of families that are no plain words; `theta0` as a word is θ₀."""

BLOCKS = (("reference", "known"), ("prediction", "average"), ("control",))
"""Groups that share the panels of a figure."""

MOST = 8
"""Families in one panel; beyond that colours can no longer be told apart, and a block gets another panel."""

LINES = ["-.", ":", "--", "-"]
"""Line styles of the depths of a predictor, deepest solid. No suite has more depths than styles."""

RATES = {
    policy: (POLICIES[policy], *look)
    for policy, look in {"short": ("#858585", "o"), "paper": ("#C77C2A", "s"), "tuned": ("#332288", "D")}.items()
}
"""Label, colour and marker of the rate policies; the colours belong to no family."""

ROW = 0.15
"""Height in inches of a row of an arm."""


def arms_of(folder: Path) -> pd.DataFrame:
    """One row per arm of a suite, in the order of its tables, those that were not available included.

    Index: arm; columns: group, family (the line's name), depth, factor (text "×8"), label. `dealt` adds the colours.
    """
    arms = pd.DataFrame(read_json(folder / "suite.json")["described"]).set_index("name")
    arms = arms[["group", "depth", "predictor", "options"]]
    parts = [arm.rpartition("_x") if depth else (arm, "", "") for arm, depth in arms["depth"].items()]
    arms["family"], arms["factor"] = [line for line, *_ in parts], [f"×{x}" if x else "" for *_, x in parts]
    arms["label"] = (arms["family"].map(_name) + " " + arms["factor"]).str.strip()
    return arms


def _name(family: str) -> str:
    if family in FAMILIES:
        return FAMILIES[family][0]
    return " ".join(WORDS.get(word, word) for word in family.replace("theta0", "θ₀").split("_"))


def blocks_of(arms: pd.DataFrame, most: int = MOST) -> list[tuple[str, list[str]]]:
    """Heading and families of the panels that show `arms` side by side, at most `most` families in each; those with a
    depth come first.
    """
    blocks = []
    for groups in BLOCKS:
        own = arms[arms["group"].isin(groups)]
        families = list(dict.fromkeys([*own.loc[own["depth"] > 0, "family"], *own["family"]]))
        heading = ", ".join(GROUPS[group] for group in groups if group in set(own["group"]))
        count = -(-len(families) // most)
        size = -(-len(families) // max(1, count))
        for k in range(count):
            part = f" ({k + 1} of {count})".replace(" ", "\N{NO-BREAK SPACE}")[1:] if count > 1 else ""
            blocks.append((f"{heading} {part}".strip(), families[k * size : (k + 1) * size]))
    return blocks


def dealt(every: pd.DataFrame, blocks: list[tuple[str, list[str]]]) -> pd.DataFrame:
    """All arms of a suite with the columns colour and marker, such that no two families of a panel have one colour.

    Families that look the same everywhere (`FAMILIES`) keep their looks. The others get theirs in turn, in each group
    of `BLOCKS` by itself, so that a family looks the same in all figures of a suite, unless its panel has that colour
    already. blocks: heading and families of the panels.
    """
    looks = {family: look for family, (_, *look) in FAMILIES.items()}
    places = {}
    for _, families in blocks_of(every, most=len(every)):
        # those with several depths are neighbours in the figure of ablations, so they get the first colours
        others = [family for family in families if family not in looks]
        others.sort(key=lambda family: every.loc[every["family"] == family, "depth"].nunique() < 2)
        places |= {family: place for place, family in enumerate(others)}
    for _, families in blocks:
        taken = {looks[family][0] for family in families if family in looks}
        for family in (family for family in families if family not in looks):
            colour = PALETTE[places[family] % DEALT]
            if colour in taken:
                colour = next(other for other in PALETTE if other not in taken)
            taken.add(colour)
            looks[family] = [colour, MARKERS[places[family] % len(MARKERS)]]
    own = every[every["family"].isin(looks)]
    return own.assign(
        **{name: own["family"].map(lambda f, k=k: looks[f][k]) for k, name in enumerate(("colour", "marker"))}
    )


def line_styles(depths: Iterable[int]) -> dict[int, str]:
    """Depth to line style; the depth 0 of references and of predictors without depth is solid."""
    deep = sorted(set(depths) - {0})
    return {0: "-", **{depth: LINES[max(-len(LINES), place - len(deep))] for place, depth in enumerate(deep)}}


def policies_of(summary: pd.DataFrame) -> list[str]:
    """The rate policies of a summary whose index is (policy, arm), in their order."""
    return [policy for policy in POLICIES if policy in summary.index.get_level_values("policy")]


def name_of(arms: pd.DataFrame, family: str) -> str:
    """Label of a family, without a factor."""
    first = arms[arms["family"] == family].iloc[0]
    return first["label"].removesuffix(first["factor"]).strip()


def cells_of(published: Published) -> dict[str, str]:
    """Slug to title, in the order of the suite's page."""
    return {cell: name_of_cell(runs.iloc[0]) for cell, runs in published.cells.items()}


def name_of_cell(row: pd.Series | dict) -> str:
    """Two lines: source and target; the rest."""
    share = f"{100 * row['share']:g} % target".replace(" ", "\N{NO-BREAK SPACE}")
    return f"{row['source']} → {row['target']}\n{place_of(row)}, {share}"


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
    count: int, blocks: list[tuple[str, list[str]]], arms: pd.DataFrame, *, height: float, diverged: Iterable[str]
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with `count` rows of panels, one per block, that share their y axis; a block's legend above its column.

    Many blocks go to several lines, each with its legends and all rows: no panel gets too narrow to be read. Every
    panel is `height` inches high. The legends mark the families of the arms `diverged`. Returns the panels of each
    row, in the order of the blocks.
    """
    marked = set(arms.loc[arms.index.isin(diverged), "family"])
    lines = -(-len(blocks) // (3 if count == 1 else 5))
    columns = -(-len(blocks) // lines)
    width = COLUMN if len(blocks) == 1 else PAGE
    above = [
        0.13 * (2 + max(len(families) for _, families in blocks[k : k + columns]))
        for k in range(0, len(blocks), columns)
    ]
    heights = [inches for legends in above for inches in (legends, *[height] * count)]
    figure = plt.figure(figsize=(width, sum(heights) + 1.0))
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    rows: list[list[Axes]] = [[] for _ in range(count)]
    for place, (heading, families) in enumerate(blocks):
        top, column = place // columns * (1 + count), place % columns
        text = textwrap.fill(heading, round(LETTERS * width / columns) - 3)
        handles = [_handle(arms, family, f" {DIVERGED}" if family in marked else "") for family in families]
        _block_legend(figure.add_subplot(grid[top, column]), text, handles)
        for below, row in enumerate(rows, start=1):
            row.append(figure.add_subplot(grid[top + below, column], sharey=row[0] if row else None))
            row[-1].tick_params(labelleft=column == 0)
    return figure, rows


def head(axes: list[Axes], text: str, label: str) -> None:
    """Give a row of `block_panels` its title and, as y label, `label`: on those panels that stand at the left."""
    left = [axis for axis in axes if axis.get_subplotspec().is_first_col()]
    for axis in left:
        title(axis, text, span=-(-len(axes) // len(left)))
        axis.set_ylabel(label)


def _block_legend(axis: Axes, heading: str, handles: list[Line2D]) -> None:
    axis.axis("off")
    style = {"fontsize": 6, "title_fontsize": 6.5, "alignment": "left", "labelspacing": 0.25, "borderpad": 0}
    axis.legend(handles=handles, title=heading, loc="upper left", handlelength=1.8, borderaxespad=0, **style)


def _handle(arms: pd.DataFrame, family: str, mark: str) -> Line2D:
    first = arms[arms["family"] == family].iloc[0]
    style = {"color": first["colour"], "marker": first["marker"], "linestyle": dashed(family, "-")}
    return Line2D([], [], label=name_of(arms, family) + mark, markersize=3.5, **style)


def dashed(family: str, line: str) -> str:
    """The second oracle has the colour of the first, so it is dashed."""
    return {"oracle_steps": "--", "oracle_x4": "-.", "oracle_x8": ":"}.get(family, line)


def limits(part: pd.DataFrame) -> tuple[float, float]:
    """Ends of an axis of differences: all intervals, unless a few long ones would press the others together."""
    ends = pd.concat([part[["low", "high"]].stack(), part["difference"]])
    reach = max(1.0, 4 * ends.abs().quantile(0.7))
    low, high = max(min(ends.min(), -0.2), -reach), min(max(ends.max(), 0.2), reach)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def widened(ends: tuple[float, float], part: pd.DataFrame) -> tuple[float, float]:
    """The ends of an axis, further apart where that shows the intervals of `part` and no more than doubles the axis."""
    low, high = min(ends[0], part["low"].min()), max(ends[1], part["high"].max())
    room = 0.03 * (high - low)
    wider = (low - room if low < ends[0] else low, high + room if high > ends[1] else high)
    return wider if wider[1] - wider[0] <= 2 * (ends[1] - ends[0]) else ends


def rows_of(arms: pd.DataFrame, published: Published, cell: str) -> pd.DataFrame:
    """Label, family and arm of the rows of a cell's panel; a heading before each group has neither family nor arm.

    Arms of all cells with the same r, so that panels side by side have the same rows.
    """
    runs, unavailable = published.runs, published.settings["unavailable"]
    rates = runs.groupby("cell")["rate"].first()
    alike = rates.index[rates == rates[cell]]
    there = set(runs.loc[runs["cell"].isin(alike), "arm"]).union(*(unavailable.get(other, {}) for other in alike))
    rows, seen = [], marked(published, cell)
    for group, heading in GROUPS.items():
        own = arms[(arms["group"] == group) & arms.index.isin(there)]
        rows += [(heading, "", "")] if len(own) else []
        labels = own["label"] + np.where(own.index.isin(seen), f" {DAGGER}", "")
        rows += zip(labels, own["family"], own.index, strict=True)
    return pd.DataFrame(rows, columns=["label", "family", "arm"])


def dagger_note(labels: Iterable[str]) -> str:
    """What the dagger means, for a footnote, where any label has one."""
    return f" {SEEN_NOTE}" if any(DAGGER in label for label in labels) else ""


def draw_rows(axis: Axes, rows: pd.DataFrame) -> None:
    """Stripes and labels of the rows of `rows_of`, from the top down; yellow: oracles."""
    for place, (_, family, arm) in enumerate(rows.itertuples(index=False)):
        colour = "#FBEBCB" if "oracle" in family else "#F4F4F4" if arm and place % 2 else "white"
        axis.axhspan(place - 0.5, place + 0.5, color=colour, linewidth=0, zorder=0)
    axis.set_yticks(range(len(rows)), rows["label"])
    for label, arm in zip(axis.get_yticklabels(), rows["arm"], strict=True):
        label.set_weight("normal" if arm else "bold")
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(rows) - 0.5, -0.5)


def draw_bar(
    axis: Axes, y: float, row: pd.Series, look: tuple[str, str, str], *, hollow: bool = False, beside: float = 5
) -> None:
    """A mean with its interval, lying; row: difference, low, high; look: label, colour, marker, which may be hollow.

    At the ends of the axis, which are set before, an arrow points to what lies beyond. Where the mean does, it is
    written `beside` points from the arrow.
    """
    label, colour, marker = look
    style = {"color": colour, "markersize": 2.8, "linestyle": "", "zorder": 3}
    axis.hlines(y, row["low"], row["high"], linewidth=1, color=colour)
    axis.plot(row["difference"], y, marker, label=label, **style, **({"markerfacecolor": "white"} if hollow else {}))
    low, high = axis.get_xlim()
    left, right = (low, 1, "<", row["low"] < low), (high, -1, ">", row["high"] > high)
    for end, inwards, arrow, beyond in (left, right):
        outside = (row["difference"] - end) * inwards < 0
        if beyond or outside:
            inside = offset_copy(axis.transData, axis.figure, x=2 * inwards, units="points")
            axis.plot(end, y, arrow, transform=inside, **style)
        if outside:
            write_beside(axis, signed(row["difference"]), (end, y), beside * inwards, colour)


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def write_beside(axis: Axes, text: str, place: tuple[float, float], offset: float, colour: str) -> None:
    """A number `offset` points to the right of a place, or to the left of it where that is negative."""
    style = {"size": 5.5, "color": colour, "va": "center_baseline", "ha": "left" if offset > 0 else "right"}
    box = {"color": "white", "pad": 0.1, "linewidth": 0}
    axis.annotate(text, place, (offset, 0), textcoords="offset points", bbox=box, zorder=2.5, **style)


def mark_beyond(axis: Axes, x: np.ndarray, y: pd.Series, **style) -> None:
    """Triangles on the lower and the upper edge of a panel, at `x`, where `y` lies beyond its axis."""
    low, high = axis.get_ylim()
    for edge, arrow, outside in ((low, "v", y < low), (high, "^", y > high)):
        for there in x[outside]:
            axis.plot(there, edge, arrow, markersize=4, clip_on=False, **style)


def only_words(text: str) -> Figure:
    """A small picture that says why there is nothing to draw."""
    figure, axis = plt.subplots(figsize=(COLUMN, 0.5))
    axis.axis("off")
    axis.text(0, 0.5, textwrap.fill(text, round(LETTERS * COLUMN) - 6), va="center")
    return figure


def title(axis: Axes, text: str, span: int = 1, beside: float = 0.6) -> None:
    """Title of a panel, each line of `text` wrapped to the width of `span` panels; beside: inches left of them."""
    columns = axis.get_subplotspec().get_gridspec().ncols
    letters = round(LETTERS * span * (axis.figure.get_figwidth() - beside) / columns) - 4
    axis.set_title("\n".join(textwrap.fill(line, letters) for line in text.split("\n")))


def legend(figure: Figure, axes: list[Axes], columns: int) -> None:
    """One legend above all panels; a label that several lines or panels have stands there once.

    columns: at the width of a page; one text column has room for two.
    """
    columns = columns if figure.get_figwidth() > COLUMN else min(columns, 2)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns)


def footnote(figure: Figure, text: str) -> None:
    """Small print under the figure; as a common x label, so that the layout leaves room for it."""
    letters = round(LETTERS * figure.get_figwidth())
    figure.supxlabel(textwrap.fill(text, letters), x=0.01, ha="left", size=7, color="#444444")


def save(figure: Figure, folder: Path, name: str, kinds: Iterable[str] = ("svg", "png")) -> None:
    """Write `<name>.svg` and `<name>.png`, without dates or versions: the same bytes from the same data."""
    save_figure(figure, folder / name, kinds)
    if "png" in kinds:
        with Image.open(folder / f"{name}.png") as picture:  # 256 colours need a third of the room in the repository
            few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        with atomic(folder / f"{name}.png") as temporary:
            few.save(temporary, format="png", optimize=True)
    plt.close(figure)
