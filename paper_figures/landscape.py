"""Where KNOWN goes: the plane of one forgetting trajectory, its predictions and the oracle, over the source loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from scipy.interpolate import RectBivariateSpline

from benchmarks.report.folders import load_table
from benchmarks.settings import DEPTHS
from paper_figures import _style as style

COLUMNS = ["kind", "label", "x", "y", "loss"]
LEVELS = 15
WIDTH = style.COLUMN - 1.3
"""Inches of a panel, without the labels and the scale beside it."""
SMALL = 0.35
"""Part of the plane, in x or y, from which on the trajectory and the predictions need no second panel."""
FINE = 80
"""Points of the interpolated grid in each direction."""
GREYS = LinearSegmentedColormap.from_list("greys", ["#FFFFFF", "#606060"])
LABEL = 22, 10
"""Width and height of a label in points, about."""
EDGE = [withStroke(linewidth=2, foreground="white")]
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def draw(results: Path) -> Figure:
    table = load_table(results / "landscape.csv", COLUMNS)
    kinds = dict(list(table.groupby("kind", sort=False)))
    share = {axis: f"{100 * kinds['variance'].iloc[0][axis]:.3g}\N{NO-BREAK SPACE}%" for axis in "xy"}
    both = f"{100 * kinds['variance'].iloc[0][['x', 'y']].sum():.3g}\N{NO-BREAK SPACE}%"
    loss, window = loss_of(kinds["grid"]), window_of(kinds)
    parts = [loss] if window is None else [loss, zoomed(loss, window)]
    high = [WIDTH * np.ptp(part.index) / np.ptp(part.columns) for part in parts]
    figure, axes = plt.subplots(
        len(parts), figsize=(style.COLUMN, sum(high) + 0.7 + 0.8 * len(parts)), height_ratios=high, squeeze=False
    )
    for axis, part in zip(axes.flat, parts, strict=True):
        draw_loss(axis, part)
        axis.set_aspect("equal")
        axis.locator_params(nbins=6)
        axis.set_xlabel(f"weight distance, axis 1 ({share['x']} of variance)")
        axis.set_ylabel(f"axis 2 ({share['y']})")
    whole, last = axes.flat[0], axes.flat[-1]
    if window is not None:
        last.set(xlim=window[0], ylim=window[1])  # before the labels, which look where there is room
        draw_points(whole, kinds, labels=False)
        draw_window(whole, window)
    draw_points(last, kinds, labels=True)
    style.title(whole, kinds["about"]["label"].iloc[0].replace(", trajectory", "\ntrajectory"))
    first = kinds["snapshot"]["label"].iloc[0].translate(SUBSCRIPTS).replace("theta_", "θ")
    zoom = "" if window is None else " Below: the rectangle, with the loss interpolated by cubic splines."
    lacking = "" if len(known_of(kinds)) == len(DEPTHS) else " Not drawn: predictions that are not finite."
    style.footnote(
        figure,
        f"n = 1 trajectory, hence no interval. Black: snapshots, {first} of the smallest subset to θ₀. Blue, dashed: "
        f"KNOWN. Star: oracle. The plane (PCA) holds {both} of their variance; grey is the loss on the plane, off "
        "which they lie, with the normalisation and running statistics of θ₀; the oracle's own loss is another."
        f"{zoom}{lacking}",
    )
    return figure


def known_of(kinds: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of KNOWN's predictions, without those that are not finite: all, some or none."""
    return kinds.get("known", kinds["snapshot"].iloc[:0])


def loss_of(grid: pd.DataFrame) -> pd.DataFrame:
    """Loss by y (rows) and x (columns); what is not finite is the worst."""
    loss = grid.pivot(index="y", columns="x", values="loss").replace(np.inf, np.nan)
    return loss.fillna(loss.max(axis=None)).clip(lower=1e-6)


def window_of(kinds: dict[str, pd.DataFrame]) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Ends in x and y around the trajectory and the predictions, where these take up little of the plane."""
    own, grid = pd.concat([kinds["snapshot"], known_of(kinds)])[["x", "y"]], kinds["grid"][["x", "y"]]
    if ((own.max() - own.min()) / (grid.max() - grid.min())).max() > SMALL:
        return None
    middle, side = (own.max() + own.min()) / 2, 0.65 * (own.max() - own.min()).max()
    half = np.minimum([1.2 * side, side], (grid.max() - grid.min()) / 2)
    low = np.clip(middle - half, grid.min(), grid.max() - 2 * half)  # inside the plane, where the loss is known
    return tuple((low[axis], low[axis] + 2 * half[axis]) for axis in "xy")


def zoomed(loss: pd.DataFrame, window: tuple[tuple[float, float], tuple[float, float]]) -> pd.DataFrame:
    """The loss on a finer grid within a window."""
    degree = min(3, len(loss) - 1, len(loss.columns) - 1)
    surface = RectBivariateSpline(loss.columns, loss.index, np.log(loss.to_numpy().T), kx=degree, ky=degree)
    x, y = (np.linspace(*ends, FINE) for ends in window)
    return pd.DataFrame(np.exp(surface(x, y)).T, index=y, columns=x)


def draw_loss(axis: Axes, loss: pd.DataFrame) -> None:
    """Filled contours with their scale beside them, at even ratios where the loss spans more than a factor of 5."""
    low, high = loss.min(axis=None), loss.max(axis=None)
    wide = high > 5 * low
    levels = np.geomspace(low, high, LEVELS) if wide else np.linspace(low, high, LEVELS)
    levels[0], levels[-1] = low, high  # rounding would leave the extremes unfilled
    place = (loss.columns, loss.index, loss)
    colours = axis.contourf(*place, levels, cmap=GREYS, norm=LogNorm(low, high) if wide else None)
    axis.contour(*place, levels, colors="#606060", linewidths=0.3)
    beside = axis.inset_axes((1.04, 0, 0.05, 1))  # as high as the panel, whatever its aspect
    digits = 3 if high < 1.5 * low else 2

    def rounded(value: float, _: object) -> str:  # 120, where "%.2g" gives 1.2e+02
        return f"{float(f'{value:.{digits}g}'):g}"

    axis.figure.colorbar(colours, cax=beside, label="test loss (nats)", format=rounded)
    beside.minorticks_off()


def draw_points(axis: Axes, kinds: dict[str, pd.DataFrame], *, labels: bool) -> None:
    """Trajectory, predictions and oracle; without labels, the oracle is named alone."""
    snapshots, known = kinds["snapshot"], known_of(kinds)
    oracle = kinds.get("oracle", snapshots.iloc[:0])
    # theta_0 is where the trajectory ends and KNOWN's way back begins
    draw_path(
        axis, pd.concat([snapshots.iloc[-1:], known]), style.FAMILIES["known"][1], "--", style.FAMILIES["known"][2]
    )
    draw_path(axis, snapshots, "black", "-", "o")
    draw_path(axis, oracle, style.FAMILIES["oracle"][1], "", style.FAMILIES["oracle"][2], size=11)
    ends = snapshots.iloc[[0, -1]].assign(label=lambda rows: rows["label"].str.replace("theta_", "θ"))
    named = pd.concat([ends, known, oracle] if labels else [oracle])
    place = axis.transData.transform(named[["x", "y"]].to_numpy()) * 72 / axis.figure.dpi  # in points
    for row, up in zip(named.itertuples(), apart(place), strict=True):
        text = row.label.translate(SUBSCRIPTS) if row.kind == "snapshot" else row.label.replace("x", "×")
        look = {"path_effects": EDGE, "zorder": 6, "annotation_clip": True, "xytext": (7, up)}
        if axis.transAxes.inverted().transform(axis.transData.transform((row.x, row.y)))[0] > 0.8:
            look |= {"xytext": (-7, up), "horizontalalignment": "right"}  # or it would stick out on the right
        axis.annotate(text, (row.x, row.y), textcoords="offset points", va="center", **look)


def apart(places: np.ndarray) -> np.ndarray:
    """How far up labels (N, 2, in points) have to go so that none lies on another, each as little as possible."""
    up, done = np.zeros(len(places)), []
    for k in np.argsort(places[:, 1], kind="stable"):
        beside = [other for other in done if abs(places[other, 0] - places[k, 0]) < LABEL[0]]
        lowest = max((places[other, 1] + up[other] + LABEL[1] for other in beside), default=-np.inf)
        up[k] = max(0.0, lowest - places[k, 1])
        done.append(k)
    return up


def draw_window(axis: Axes, window: tuple[tuple[float, float], tuple[float, float]]) -> None:
    (left, right), (low, high) = window
    axis.add_patch(Rectangle((left, low), right - left, high - low, fill=False, linewidth=0.8, zorder=6))


def draw_path(axis: Axes, points: pd.DataFrame, colour: str, line: str, marker: str, size: float = 4) -> None:
    """Markers in the given order, and an arrow along every step that is long enough to carry one."""
    x, y = points["x"].to_numpy(), points["y"].to_numpy()
    axis.plot(x, y, line, color=colour, path_effects=EDGE, zorder=4)
    axis.plot(x, y, marker, color=colour, markersize=size, markeredgecolor="white", markeredgewidth=0.6, zorder=5)
    least = 0.05 * np.ptp(axis.get_xlim())
    for k in range(len(x) - 1):
        if np.hypot(x[k + 1] - x[k], y[k + 1] - y[k]) > least:
            middle = (x[k] + 0.65 * (x[k + 1] - x[k]), y[k] + 0.65 * (y[k + 1] - y[k]))
            arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 0, "shrinkA": 0, "shrinkB": 0}
            axis.annotate("", middle, (x[k], y[k]), arrowprops=arrow, zorder=4)
