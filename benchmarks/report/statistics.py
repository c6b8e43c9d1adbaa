"""Statistics of the tables: paired differences over source trajectories, and the share of the gap closed.

The unit of replication is the source trajectory. Fine-tunes of one trajectory are averaged first and never counted as
replicates. Inference is conditional on the datasets and the test set.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from know.statistics import CONFIDENCE, Interval, paired_t

DATA = "oracle_steps", "oracle"
"""References whose difference to naive is the data gap, the first that was run; the second has more steps too."""
GRAIN = 0.01
SHARES = [f"{kind}{end}" for kind in ("share", "local_share") for end in ("", "_low", "_high")]
"""Columns of `summarise` for the shares of the two data gaps, with their intervals."""
FEW = 5
"""With fewer trajectories than this a result is called preliminary."""


def pooled_t(samples: Sequence[np.ndarray]) -> tuple[Interval, float]:
    """Mean over independent samples of paired differences, each sample counting once, and its p value against 0.

    A sample: float (n_i,), one value per trajectory of one source and network. The standard error is from the samples'
    own variances, the degrees of freedom are those of Welch (1947) and Satterthwaite; with one sample this is
    `paired_t`. There is no interval where a sample has fewer than two values. scipy has this for two samples only.
    """
    kept = [values[np.isfinite(values)] for values in (np.asarray(sample, dtype=float) for sample in samples)]
    kept = [values for values in kept if len(values)]
    n = sum(map(len, kept))
    if not kept:
        return Interval(math.nan, math.nan, math.nan, 0), math.nan
    mean = float(np.mean([values.mean() for values in kept]))
    if min(map(len, kept)) < 2:
        return Interval(mean, math.nan, math.nan, n), math.nan
    parts = np.array([values.var(ddof=1) / len(values) for values in kept]) / len(kept) ** 2
    error = math.sqrt(parts.sum())
    if error == 0:
        return Interval(mean, mean, mean, n), float(mean == 0)
    freedom = parts.sum() ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, kept, strict=True))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error
    return Interval(mean, float(mean - half), float(mean + half), n), float(2 * stats.t.sf(abs(mean) / error, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction, in the order given; nan stays nan and is not counted."""
    order = sorted((p, place) for place, p in enumerate(p_values) if math.isfinite(p))
    corrected, least = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p))
        corrected[place] = least
    return corrected


def two_sample_limit(a: np.ndarray, b: np.ndarray, *, comparisons: int) -> float:
    """How far the mean accuracies of two runs, float (n,) each, may be apart by chance.

    Two-sample t, Bonferroni-corrected for `comparisons`, plus `GRAIN`, since a small test set has few values.
    """
    freedom = len(a) + len(b) - 2
    error = math.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b))
    return float(stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * comparisons), freedom) * error) + GRAIN


def fieller(numerator: np.ndarray, denominator: np.ndarray) -> Interval | None:
    """Ratio of two paired means, float (n,) each, with Fieller's interval (Fieller 1954).

    None where the denominator's own interval includes 0: the ratio is then unbounded.
    """
    a, b = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    kept = np.isfinite(a) & np.isfinite(b)
    a, b = a[kept], b[kept]
    n = len(a)
    if n < 2:
        return None
    t2 = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) ** 2
    (saa, sab), (_, sbb) = np.cov(a, b, ddof=1) / n
    ma, mb = a.mean(), b.mean()
    # the interval is where (ma - x mb)^2 <= t^2 (saa - 2 x sab + x^2 sbb), a quadratic in x
    qa = mb**2 - t2 * sbb
    if qa <= 0:
        return None
    qb, qc = ma * mb - t2 * sab, ma**2 - t2 * saa
    root = math.sqrt(max(0.0, qb**2 - qa * qc))
    return Interval(float(ma / mb), float((qb - root) / qa), float((qb + root) / qa), n)


def trajectory_means(runs: pd.DataFrame) -> pd.DataFrame:
    """The accuracy per (cell, rate policy, arm, trajectory): the mean over fine-tunes. Arms are the columns.

    Index: cell, policy, trajectory.
    """
    return runs.pivot_table(index=["cell", "policy", "trajectory"], columns="arm", values="accuracy", aggfunc="mean")


def compare(means: pd.DataFrame, arm: str, baseline: str = "naive") -> np.ndarray:
    """Paired differences arm - baseline, one per trajectory (rows of `means`), nan where either is missing."""
    return (means[arm] - means[baseline]).to_numpy()


def data_gaps(means: pd.DataFrame) -> dict[str, tuple[str, str] | None]:
    """The arms whose difference is the data gap (`share`) and the local data gap (`local_share`), as far as they are
    columns of a table of means and have values.
    """
    run = set(means.columns[means.notna().any()])
    arms = {"share": (oracle_of(run), "naive"), "local_share": ("local_oracle", "compute_matched")}
    return {name: pair if run.issuperset(pair) else None for name, pair in arms.items()}


def gain(means: pd.DataFrame, what: str) -> np.ndarray | None:
    """Paired differences, one per trajectory: of an arm to naive, or a data gap (`share`, `local_share`); None where
    an arm was not run.
    """
    pair = data_gaps(means)[what] if what in ("share", "local_share") else (what, "naive")
    return compare(means, *pair) if pair and set(pair) <= set(means) else None


def oracle_of(run: Container[str]) -> str:
    """The oracle of the data gap among the arms that were run; its usual name where there is none."""
    return next((name for name in DATA if name in run), DATA[0])


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per (cell, rate policy, arm), in percentage points.

    Columns: cell, policy, arm, depth, n (trajectories), accuracy (mean); difference with low and high
    (paired with naive); share with share_low and share_high (of the data gap, oracle_steps - naive, or oracle - naive
    where there is no such arm), local_share likewise (of the local data gap, local_oracle - compute_matched); nan where
    undefined;
    learning_rate, on_edge, failed (runs that diverged); step, source_accuracy (and _recalibrated) and weight_error
    (means, before fine-tuning).
    """
    means = 100 * trajectory_means(runs)
    facts = runs.groupby(["cell", "policy", "arm"]).agg(
        depth=("depth", "first"),
        learning_rate=("learning_rate", "first"),
        on_edge=("on_edge", "first"),
        failed=("status", lambda status: int((status != "ok").sum())),
        step=("step", lambda values: pd.to_numeric(values).mean()),
        source_accuracy=("source_accuracy", lambda values: 100 * values.mean()),
        source_accuracy_recalibrated=("source_accuracy_recalibrated", lambda values: 100 * values.mean()),
        weight_error=("weight_error", lambda values: pd.to_numeric(values).mean()),
    )
    rows = []
    for (cell, policy), table in means.groupby(level=["cell", "policy"]):
        gaps = {kind: pair for kind, pair in data_gaps(table).items() if pair}
        for arm in table.columns[table.notna().any()]:
            difference = paired_t(compare(table, arm))
            shares = {}
            for kind, (better, worse) in gaps.items():
                share = None
                if arm != "naive" and np.nanmean(compare(table, better, worse)) > 0:  # there is a gap
                    share = fieller(compare(table, arm), compare(table, better, worse))
                found = (share.mean, share.low, share.high) if share else (math.nan,) * 3
                shares |= dict(zip((kind, f"{kind}_low", f"{kind}_high"), found, strict=True))
            rows.append(
                {
                    "cell": cell,
                    "policy": policy,
                    "arm": arm,
                    "n": int(table[arm].notna().sum()),
                    "accuracy": table[arm].mean(),
                    "difference": difference.mean,
                    "low": difference.low,
                    "high": difference.high,
                    **dict.fromkeys(SHARES, math.nan),
                    **shares,
                    **facts.loc[(cell, policy, arm)].to_dict(),
                }
            )
    return pd.DataFrame(rows)
