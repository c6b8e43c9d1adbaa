"""What rules for the choice of learning rates lose, on pilots that are simulated: a table for docs/LOG.md.

    python -m benchmarks.rate_rules

An arm's accuracy falls on both sides of its best rate, as it does in the pilots of results/first: by a formula, by the
median curve of those tables, or off a cliff above the best rate. Pilots scatter around it, alike at neighbouring rates.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from know.rates import lowest

FIRST, CHOICES, POINTS = Path("results/first"), 20_000, 7
BELOW, ABOVE, CLIFF = (1.0, 1.1, 1.6), (1.6, 2.5, 4.2), (10, 30, 60)
"""Points of accuracy lost per squared octave below and above the best rate: quartiles of the tables; and a cliff."""
DEVIATIONS, CORRELATION = (0.65, 1.0, 1.5), 0.55
"""Standard deviations of a pilot in points, and the correlation between pilots at neighbouring rates."""

Truth = Callable[[np.ndarray], np.ndarray]
"""Accuracy in points, 0 at the best rate, at distances from it in octaves."""
Rule = Callable[[np.ndarray, float], float]
"""A place on the grid, in points of it from 0, from mean accuracies in points at every point, a factor apart."""


def best_point(scores: np.ndarray, factor: float) -> float:
    return float(scores.argmax())


def smoothed(scores: np.ndarray, factor: float) -> float:
    return 1.0 + float(np.convolve(scores, (0.25, 0.5, 0.25), mode="valid").argmax())


def parabola(scores: np.ndarray, factor: float) -> float:
    place = int(scores.argmax())
    if place in (0, len(scores) - 1):
        return float(place)
    left, middle, right = scores[place - 1 : place + 2]
    return place + 0.5 * (left - right) / (left - 2 * middle + right)


def weighted_mean(scores: np.ndarray, factor: float) -> float:
    weights = np.exp(scores - scores.max())
    return float(weights @ np.arange(len(scores)) / weights.sum())


def chosen(scores: np.ndarray, factor: float) -> float:
    place = int(scores.argmax())
    if place in (0, len(scores) - 1):
        return float(place)
    rate = lowest([factor**k for k in (-1, 0, 1)], -scores[place - 1 : place + 2])
    return place + float(np.log(rate) / np.log(factor))


RULES: dict[str, Rule] = {
    "best point": best_point,
    "best point after smoothing (1, 2, 1)": smoothed,
    "parabola through three points": parabola,
    "mean of the points, weights exp(accuracy in points)": weighted_mean,
    "**a + b log(rate) - c rate, three points**": chosen,
}


def formula(dice: np.random.Generator, above: tuple[float, ...] = ABOVE) -> Truth:
    low, high = dice.choice(BELOW), dice.choice(above)
    return lambda octaves: -np.where(octaves < 0, low, high) * octaves**2


def median_curve() -> Truth:
    """The median curve of the arms in results/first whose best point has two neighbours on either side."""
    curves = []
    for path in sorted(FIRST.glob("cpu*/*/pilots.csv")):
        table = pd.read_csv(path).groupby(["cell", "arm", "learning_rate"])["validation_accuracy"].mean().unstack()
        for scores in 100 * table.to_numpy():
            place = int(np.nanargmax(scores))
            if 2 <= place <= len(scores) - 3:
                curves.append(scores[place - 2 : place + 3] - scores[place])
    median = np.nanmedian(curves, axis=0)
    return lambda octaves: np.interp(octaves, np.arange(-2, 3), median) + 4 * np.minimum(0, 2 - np.abs(octaves))


def losses(truth: Callable[[np.random.Generator], Truth], pilots: int) -> pd.DataFrame:
    """By rule: the mean loss in points, and the variance of the difference, in octaves, between arms that are alike."""
    dice, found = np.random.default_rng(0), {name: [] for name in RULES}
    for _ in range(CHOICES // 2):
        best, curve, deviation = dice.uniform(1, POINTS - 2), truth(dice), dice.choice(DEVIATIONS)
        noise = dice.standard_normal((2, POINTS))
        for point in range(1, POINTS):
            noise[:, point] = CORRELATION * noise[:, point - 1] + (1 - CORRELATION**2) ** 0.5 * noise[:, point]
        scores = curve(np.arange(POINTS) - best) + deviation / pilots**0.5 * noise  # (2, points) of two such arms
        for name, rule in RULES.items():
            one, two = (rule(each, 2.0) - best for each in scores)
            found[name].append((-curve(np.array([one, two])).mean(), (one - two) ** 2))
    return pd.DataFrame({name: np.mean(pairs, axis=0) for name, pairs in found.items()}, index=["loss", "variance"]).T


def held_out() -> tuple[pd.Series, int]:
    """By rule, in points, without a model: one pilot of results/first chooses on every other point of the grid, and the
    other one says what is lost at the point nearest to that rate, beside its own best. Also the number of choices.
    """
    found: dict[str, list[float]] = {name: [] for name in RULES}
    for path in sorted(FIRST.glob("cpu*/*/pilots.csv")):
        table = 100 * pd.read_csv(path).pivot_table(
            index=["cell", "arm", "trajectory"], columns="learning_rate", values="validation_accuracy"
        )
        for _, pair in table.groupby(["cell", "arm"]):
            pair = pair.dropna(axis=1).to_numpy()
            if len(pair) != 2:
                continue
            for one, other in (pair, pair[::-1]):
                for start in (0, 1):
                    for name, rule in RULES.items():
                        place = round(start + 2 * rule(one[start::2], 4.0))
                        found[name].append(other.max() - other[min(place, len(other) - 1)])
    return pd.Series({name: np.mean(lost) for name, lost in found.items()}), len(found["best point"])


def main() -> None:
    curve = median_curve()
    truths = {"formula": formula, "curves of the tables": lambda dice: curve, "cliff": lambda d: formula(d, CLIFF)}
    table = {}
    for (label, truth), pilots in ((each, pilots) for each in truths.items() for pilots in (2, 4)):
        made = losses(truth, pilots)
        table[f"{label}, {pilots} pilots"] = made["loss"]
        if label == "formula":
            table[f"variance, {pilots} pilots"] = made["variance"]
    lost, count = held_out()
    table[f"held out, {count} choices"] = lost
    print(pd.DataFrame(table).rename_axis("rule").reset_index().to_markdown(index=False, floatfmt=".2f"))


if __name__ == "__main__":
    main()
