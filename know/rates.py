"""The choice of learning rates: one grid for all candidates, and for each the rate where its pilot runs are best.

Pilot runs are few, so the best point of a grid is partly chance, and points a factor 2 apart are far apart. A curve
through the best point and its two neighbours therefore gives the rate: score = a - b log(rate) + c rate, the lower the
better. It falls slowly with the logarithm of the rate and rises fast with the rate itself, as the score of a network
does. docs/LOG.md compares this with other rules ("Choosing rates").
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """The rate of one name. point: the point of the grid with the lowest score. on_edge: whether that point is the
    first or the last of the grid.
    """

    rate: float
    point: float
    on_edge: bool


def choose_rates(
    names: Sequence[str],
    grid: Sequence[float],
    cover: Callable[[list[float]], object],
    score: Callable[[str, float], tuple[float, ...]],
    *,
    extensions: int = 0,
) -> tuple[list[float], dict[str, Choice]]:
    """Choose a rate for every name: near the point of the grid where `score(name, rate)` is lowest.

    grid: learning rates above 0, rising.
    cover: makes the pilot runs of all names at these rates; called before their scores are asked for.
    score: the mean score of the pilot runs, the lower the better, and after it what decides where means are equal.
        Where all of that is equal, the lower rate is taken. A point with an infinite or nan number in it has diverged.
    extensions: by how many points the grid may grow, for all names, while the best point of some name lies on an edge.

    Returns the grid, rising as far as it has grown, and the choice of each name. A rate between the points is rounded
    to 3 significant digits. It lies between the neighbours of the best point, and never outside the grid.
    """
    rates = list(grid)

    def best(name: str) -> float:
        def order(rate: float) -> tuple[float, ...]:
            # nan is neither above nor below a number, and min would then depend on the order
            return (*(math.inf if math.isnan(part) else part for part in score(name, rate)), rate)

        return min(rates, key=order)

    cover(rates)
    for _ in range(extensions):
        points = set(map(best, names))
        if rates[-1] in points:
            rates.append(2 * rates[-1])
            cover(rates[-1:])
        elif rates[0] in points:
            rates.insert(0, rates[0] / 2)
            cover(rates[:1])
        else:
            break

    def choice(name: str) -> Choice:
        point = best(name)
        if point in (rates[0], rates[-1]):
            return Choice(point, point, on_edge=True)  # outside the grid nothing is known
        place = rates.index(point)
        three = rates[place - 1 : place + 2]
        scores = [score(name, rate) for rate in three]
        if not all(map(math.isfinite, itertools.chain(*scores))):
            # a run that diverged does not say how far the curve falls towards it; the point itself was seen to work
            return Choice(point, point, on_edge=False)
        rate = float(f"{lowest(three, [first for first, *_ in scores]):.3g}")
        # rounding may leave an interval that is narrower than the third digit
        return Choice(rate if three[0] < rate < three[2] else point, point, on_edge=False)

    return rates, {name: choice(name) for name in names}


def lowest(rates: Sequence[float], scores: Sequence[float]) -> float:
    """The rate at which the curve a - b log(rate) + c rate through three points is lowest.

    rates: float (3,), above 0, rising. scores: float (3,), finite, of which the middle one is not above the others.

    The answer lies between the first and the last rate: where one neighbour is as good as the middle and the other is
    worse by any amount, it is the logarithmic mean of the middle and the good one, which for factors of 2 is 0.53 of a
    factor above the middle, or 0.47 below it. Where all three scores are equal it is the middle.
    """
    below, middle, above = rates
    left, right = scores[0] - scores[1], scores[2] - scores[1]
    if left == right == 0:
        return middle
    low, high = below / middle, above / middle
    # with b and c from the two differences, in units of the middle rate, the lowest point is at b / c
    return middle * (left * (high - 1) + right * (1 - low)) / (left * math.log(high) - right * math.log(low))
