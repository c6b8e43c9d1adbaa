"""The mean of paired differences with its interval: the one statistic of a comparison. Needs scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean (or ratio) with its two-sided interval; nan limits where there is none."""

    mean: float
    low: float
    high: float
    n: int


def paired_t(differences: Sequence[float] | np.ndarray, *, comparisons: int = 1) -> Interval:
    """Mean of paired differences, float (n,), with the t interval of n - 1 degrees of freedom.

    comparisons: how many intervals are read together; all of them hold with the usual confidence (Bonferroni).
    Differences that are not finite are left out.
    """
    values = np.asarray(differences, dtype=float)
    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    if n == 1:
        return Interval(float(values[0]), math.nan, math.nan, 1)
    from scipy import stats

    confidence = 1 - (1 - CONFIDENCE) / comparisons
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * stats.sem(values)
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half), n)
