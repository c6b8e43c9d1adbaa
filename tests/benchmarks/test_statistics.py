"""Intervals: against scipy, by coverage in simulation, and what counts as a replicate."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.report.pretrained import relative_loss
from benchmarks.report.statistics import fieller, holm, paired_t, pooled_t, summarise, two_sample_limit

ARMS = ("naive", "known_x2", "oracle")


# intervals


@pytest.mark.parametrize("comparisons", [1, 5])
@pytest.mark.parametrize("n", [2, 5, 30])
def test_paired_t_is_scipys(n, comparisons):
    a, b = np.random.default_rng(n).normal(size=(2, n))
    ours = paired_t(a - b, comparisons=comparisons)
    theirs = stats.ttest_rel(a, b).confidence_interval(1 - 0.05 / comparisons)  # Bonferroni's correction
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert (ours.mean, ours.n) == (pytest.approx((a - b).mean()), n)


EXPERIMENTS = 1000
SHAPES = {
    "normal": lambda rng, size: rng.normal(size=size),
    "skewed": lambda rng, size: (rng.gamma(4, size=size) - 4) / 2,  # skewness 1
}


def check_coverage(intervals, truth: float, shape: str) -> None:
    covered = np.mean([i is not None and i.low <= truth <= i.high for i in intervals])
    assert 0.93 <= covered <= 0.97 if shape == "normal" else covered >= 0.92


@pytest.mark.parametrize("n", [3, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_interval_of_a_share_covers_what_it_says(shape, n):
    """Both differences share naive's noise; the oracle's gain is far enough from 0 for a share to be defined."""
    rng = np.random.default_rng(1000 + n)
    naive = rng.normal(0, 0.5, (EXPERIMENTS, n))
    arm, oracle = (gain + SHAPES[shape](rng, (EXPERIMENTS, n)) - naive for gain in (10.0, 40.0))
    check_coverage(map(fieller, arm, oracle), 0.25, shape)


@pytest.mark.parametrize("n", [3, 6])
def test_the_interval_of_a_relative_loss_covers_the_geometric_mean(n):
    """Losses of trajectories differ by orders of magnitude, and what is gained differs by a factor of 2 or so."""
    rng, intervals = np.random.default_rng(80 + n), []
    for _ in range(EXPERIMENTS):
        still = 10 ** rng.uniform(-6, -2, n)
        intervals.append(
            relative_loss(pd.DataFrame({"loss": still * 0.9 * np.exp(rng.normal(0, 0.7, n)), "no_change_loss": still}))
        )
    check_coverage(intervals, 0.9, "normal")


def test_one_sample_pooled_is_a_paired_t():
    values = np.random.default_rng(0).normal(0.3, 1, 8)
    interval, p = pooled_t([values])
    assert (interval.low, interval.high) == pytest.approx((paired_t(values).low, paired_t(values).high))
    assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_two_samples_pooled_are_welchs():
    a, b = np.random.default_rng(1).normal(0.3, 1, 8), np.random.default_rng(2).normal(0.5, 4, 6)
    interval, p = pooled_t([a, -b])  # the mean of a and -b is half of their difference
    theirs = stats.ttest_ind(a, b, equal_var=False)
    limits = theirs.confidence_interval(0.95)
    assert p == pytest.approx(theirs.pvalue)
    assert (interval.low, interval.high) == pytest.approx((limits.low / 2, limits.high / 2))
    assert interval.n == 14


def test_a_sample_counts_once_whatever_its_size():
    small, large = np.array([1.0, 1.2]), np.full(50, 3.0) + np.linspace(-1, 1, 50)
    assert pooled_t([small, large])[0].mean == pytest.approx((1.1 + 3) / 2)
    assert pooled_t([])[0].n == 0
    alone, p = pooled_t([small, np.array([2.0])])
    assert math.isnan(alone.low)
    assert math.isnan(p)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02, math.nan, 0.02], [0.04, math.nan, 0.04]),
        ([], []),
    ],
)
def test_holm_steps_down(given, expected):
    assert holm(given) == pytest.approx(expected, nan_ok=True)


def test_fieller_gives_nothing_exactly_where_the_denominator_may_be_0():
    rng, seen = np.random.default_rng(2), set()
    for _ in range(300):
        a, b = rng.normal(1, 1, 5), rng.normal(1, 1, 5)
        undefined = paired_t(b).low <= 0 <= paired_t(b).high
        seen.add(undefined)
        assert (fieller(a, b) is None) == undefined
    assert seen == {True, False}


@pytest.mark.parametrize("denominator", [2.0, -2.0])
def test_fieller_with_a_constant_denominator_is_the_t_interval_divided(denominator):
    a = np.random.default_rng(3).normal(1, 1, 6)
    ratio, difference = fieller(a, np.full(6, denominator)), paired_t(a)
    limits = sorted((difference.low / denominator, difference.high / denominator))
    assert (ratio.low, ratio.high) == pytest.approx(limits)
    assert ratio.mean == pytest.approx(difference.mean / denominator)


def test_fieller_does_not_depend_on_the_unit():
    a, b = np.random.default_rng(4).normal(3, 0.5, (2, 5))
    points, shares = fieller(100 * a, 100 * b), fieller(a, b)
    assert (points.mean, points.low, points.high) == pytest.approx((shares.mean, shares.low, shares.high))
    assert shares.low < shares.mean < shares.high


def test_few_or_missing_values_give_no_interval():
    assert paired_t(np.array([])).n == 0
    assert math.isnan(paired_t(np.array([])).mean)
    alone = paired_t(np.array([0.3, np.nan]))
    assert (alone.mean, alone.n) == (0.3, 1)
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    assert fieller(np.array([1.0]), np.array([1.0])) is None
    assert fieller(np.zeros(5), np.zeros(5)) is None
    assert paired_t(np.array([1, 2, np.nan, 4])) == paired_t(np.array([1, 2, 4]))


def test_equal_differences_have_no_width():
    interval = paired_t(np.full(5, 0.25))
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.25, 0.25, 0.25))


@pytest.mark.parametrize("comparisons", [1, 20])
def test_two_runs_of_the_same_thing_are_rarely_further_apart_than_the_limit(comparisons):
    rng, apart = np.random.default_rng(5), []
    for _ in range(300):
        a, b = rng.normal(50, 5, (2, comparisons, 5))
        limits = [two_sample_limit(x, y, comparisons=comparisons) for x, y in zip(a, b, strict=True)]
        apart.append(any(abs(x.mean() - y.mean()) > limit for x, y, limit in zip(a, b, limits, strict=True)))
    assert 0.01 < np.mean(apart) < 0.09
    assert 0 < two_sample_limit(np.ones(5), np.ones(5), comparisons=comparisons) < 0.05  # no less than a grain


# tables


def table(accuracy, *, trajectories: int = 5, fine_tunes: int = 2, arms=ARMS, **columns) -> pd.DataFrame:
    """Runs of one cell; `accuracy` is a function of (arm, trajectory, fine-tune)."""
    fixed = {"cell": "c", "policy": "tuned", "depth": 0, "learning_rate": 1e-3, "on_edge": False, "status": "ok"}
    fixed |= {"step": 0.1, "source_accuracy": 0.9, "source_accuracy_recalibrated": 0.9, "weight_error": None, **columns}
    return pd.DataFrame(
        {**fixed, "arm": arm, "trajectory": f"t{t}", "fine_tune": f, "accuracy": accuracy(arm, t, f)}
        for arm in arms
        for t in range(trajectories)
        for f in range(fine_tunes)
    )


def noisy(seed: int):
    noise = np.random.default_rng(seed).normal(0, 0.01, (3, 10, 50))
    return lambda arm, t, f: 0.7 + 0.02 * ARMS.index(arm) + noise[ARMS.index(arm), t, f]


def row(runs: pd.DataFrame, arm: str) -> pd.Series:
    found = summarise(runs)
    return found[found.arm == arm].iloc[0]


INTERVALS = ["n", "difference", "low", "high", "share", "share_low", "share_high"]


def test_fine_tunes_are_averaged_and_are_no_replicates():
    once = table(noisy(0), fine_tunes=1)
    repeated = pd.concat([once.assign(fine_tune=f) for f in range(8)])
    for arm in ARMS[1:]:
        pd.testing.assert_series_equal(row(once, arm)[INTERVALS], row(repeated, arm)[INTERVALS])


def test_an_interval_is_that_of_the_trajectory_means():
    runs = table(noisy(1), fine_tunes=3)
    means = runs.groupby(["arm", "trajectory"]).accuracy.mean()
    expected = stats.ttest_rel(100 * means["known_x2"], 100 * means["naive"]).confidence_interval(0.95)
    found = row(runs, "known_x2")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.n == 5


def test_a_known_table_gives_its_known_answer():
    gain = {"naive": 0.0, "known_x2": 0.01, "oracle": 0.04}
    runs = table(lambda arm, t, f: 0.5 + 0.1 * t + gain[arm] + (0.02 if f else -0.02))
    known, oracle = row(runs, "known_x2"), row(runs, "oracle")
    assert known.accuracy == pytest.approx(71.0)
    assert (known.difference, known.low, known.high) == pytest.approx((1, 1, 1))
    assert (known.share, known.share_low, known.share_high) == pytest.approx((0.25, 0.25, 0.25))
    assert (oracle.difference, oracle.share) == pytest.approx((4, 1))
    assert row(runs, "naive").difference == 0
    assert math.isnan(row(runs, "naive").share)


def test_a_shift_of_all_arms_of_a_trajectory_changes_no_comparison():
    runs = table(noisy(2))
    shifted = runs.assign(accuracy=runs.accuracy + 0.1 * runs.trajectory.str[1:].astype(int))
    for arm in ARMS[1:]:
        ours, theirs = (row(r, arm)[INTERVALS].astype(float) for r in (runs, shifted))
        pd.testing.assert_series_equal(ours, theirs)


def test_a_trajectory_that_an_arm_lacks_is_left_out_of_its_comparison():
    runs = table(noisy(4))
    part = runs[(runs.arm != "known_x2") | (runs.trajectory != "t0")]
    alone = runs[runs.trajectory != "t0"]
    assert row(part, "known_x2").n == 4
    pd.testing.assert_series_equal(row(part, "known_x2")[INTERVALS], row(alone, "known_x2")[INTERVALS])


def test_cells_and_rate_policies_are_kept_apart():
    runs = pd.concat([table(noisy(5)), table(noisy(6), cell="d"), table(noisy(7), policy="short")])
    found = summarise(runs)
    assert len(found) == 3 * len(ARMS)
    alone = summarise(table(noisy(6), cell="d"))
    pd.testing.assert_frame_equal(found[found.cell == "d"].reset_index(drop=True), alone)


def test_runs_that_diverged_are_counted_and_stay_in_the_mean():
    runs = table(noisy(8))
    failed = (runs.arm == "known_x2") & (runs.trajectory == "t1") & (runs.fine_tune == 0)
    runs.loc[failed, ["status", "accuracy"]] = ["diverged", 0.1]
    assert row(runs, "known_x2").failed == 1
    assert row(runs, "naive").failed == 0
    assert row(runs, "known_x2").n == 5
    assert row(runs, "known_x2").accuracy < row(table(noisy(8)), "known_x2").accuracy - 5


def test_a_cell_without_oracle_has_differences_and_no_shares():
    found = row(table(noisy(9), arms=ARMS[:2]), "known_x2")
    assert math.isfinite(found.low)
    assert math.isnan(found.share)


def test_the_local_share_is_of_the_local_data_gap():
    gain = {"naive": 0.0, "known_x2": 0.01, "oracle_steps": 0.04, "compute_matched": 0.03, "local_oracle": 0.05}
    found = row(table(lambda arm, t, f: 0.5 + 0.1 * t + gain[arm], arms=tuple(gain)), "known_x2")
    assert (found.share, found.local_share) == pytest.approx((0.25, 0.5))
    assert (found.local_share_low, found.local_share_high) == pytest.approx((0.5, 0.5))
