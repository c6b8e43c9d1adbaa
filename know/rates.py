"""The choice of learning rates: one grid for all candidates, and for each the rate that is best in pilot runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def choose_rates(
    names: Sequence[str],
    grid: Sequence[float],
    cover: Callable[[list[float]], object],
    score: Callable[[str, float], Any],
    *,
    extensions: int = 0,
) -> tuple[list[float], dict[str, float]]:
    """Choose a rate for every name: the one of the grid with the lowest `score(name, rate)`.

    cover: makes the pilot runs of all names at these rates; called before their scores are asked for.
    extensions: by how many points the grid may grow, for all names, while the best rate of some name lies on an edge.

    Returns the grid, rising as far as it has grown, and the rate of each name.
    """
    rates = list(grid)

    def best(name: str) -> float:
        return min(rates, key=lambda rate: score(name, rate))

    cover(rates)
    for _ in range(extensions):
        chosen = set(map(best, names))
        if rates[-1] in chosen:
            rates.append(2 * rates[-1])
            cover(rates[-1:])
        elif rates[0] in chosen:
            rates.insert(0, rates[0] / 2)
            cover(rates[:1])
        else:
            break
    return rates, {name: best(name) for name in names}
