"""Intervals: against scipy, by coverage in simulation, and what counts as a replicate."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.report.pretrained import relative_loss
from benchmarks.report.statistics import fieller, forgetting, holm, paired_t, pooled_t, summarise, two_sample_limit

ARMS = ("naive", "known_x2", "oracle")


# intervals


@pytest.mark.parametrize("n", [2, 5, 30])
def test_paired_t_is_scipys(n):
    a, b = np.random.default_rng(n).normal(size=(2, n))
    ours = paired_t(a - b)
    theirs = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert (ours.mean, ours.n) == (pytest.approx((a - b).mean()), n)


# Coverage: what a trajectory does to an arm's gain has variance 1, and fine-tuning adds noise, with one fine-tune a
# trajectory as in the suites. n: trajectories of smoke and of cpu.

SHAPES = {
    "normal": lambda rng, size: rng.normal(size=size),
    "skewed": lambda rng, size: (rng.gamma(4, size=size) - 4) / 2,  # skewness 1
    "t3": lambda rng, size: rng.standard_t(3, size=size) / math.sqrt(3),
}
EXPERIMENTS = 1000


CASES = [("normal", 0), ("skewed", 1), ("skewed", 4), ("t3", 1), ("t3", 4)]
"""Shape and ratio. At a ratio of 0 the shape has no part, and sums of normal numbers are normal at any ratio."""


def effects(rng, shape: str, ratio: float, n: int) -> np.ndarray:
    """Differences of an arm to naive without their mean, (EXPERIMENTS, n); ratio: of the variance between trajectories
    to that within one.
    """
    within = rng.normal(0, 1, (EXPERIMENTS, n))
    return within + math.sqrt(ratio) * SHAPES[shape](rng, (EXPERIMENTS, n))


def check_coverage(intervals, truth: float, shape: str) -> None:
    covered = np.mean([i is not None and i.low <= truth <= i.high for i in intervals])
    assert 0.93 <= covered <= 0.97 if shape == "normal" else covered >= 0.92


@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize(("shape", "ratio"), CASES)
def test_the_interval_of_a_difference_covers_what_it_says(shape, ratio, n):
    differences = 0.7 + effects(np.random.default_rng(10 * n + ratio), shape, ratio, n)
    check_coverage(map(paired_t, differences), 0.7, shape)


@pytest.mark.parametrize(("shape", "ratio"), CASES)
def test_the_pooled_interval_covers_what_it_says(shape, ratio):
    """Two networks, one three times as noisy as the other, with gains of 1.2 and 0.2."""
    rng = np.random.default_rng(100 + ratio)
    one, two = 1.2 + effects(rng, shape, ratio, 8), 0.2 + 3 * effects(rng, shape, ratio, 8)
    check_coverage((pooled_t(samples)[0] for samples in zip(one, two, strict=True)), 0.7, shape)


@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize("ratio", [0, 1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_interval_of_a_share_covers_what_it_says(shape, ratio, n):
    """Both differences share naive's noise; the oracle's gain is far enough from 0 for a share to be defined."""
    rng = np.random.default_rng(1000 + 10 * n + ratio)
    naive = rng.normal(0, 0.5, (EXPERIMENTS, n))
    arm = 4.0 + effects(rng, shape, ratio, n) - naive
    oracle = 16.0 + effects(rng, shape, ratio, n) - naive
    check_coverage(map(fieller, arm, oracle), 0.25, shape)


# Few values tell a wrong number of degrees of freedom most clearly: with 3 trajectories, one more of them lowers the
# coverage from 95 to 91 %.


def test_the_interval_of_three_differences_covers_what_it_says():
    differences = np.random.default_rng(20).normal(0.7, 2, (EXPERIMENTS, 3))
    check_coverage(map(paired_t, differences), 0.7, "normal")


@pytest.mark.parametrize("n", [3, 8])
def test_intervals_that_are_read_together_all_hold_as_often_as_one(n):
    """With independent candidates Bonferroni's correction is nearly exact."""
    rng, held = np.random.default_rng(30 + n), []
    for _ in range(300):
        intervals = [paired_t(own, comparisons=5) for own in rng.normal(0.7, 2, (5, n))]
        held.append(all(interval.low <= 0.7 <= interval.high for interval in intervals))
    assert 0.92 <= np.mean(held) <= 0.98


@pytest.mark.parametrize(("few", "many"), [(3, 12), (4, 20)])
def test_the_pooled_interval_covers_with_unequal_numbers_and_spreads(few, many):
    """The smaller sample is the noisier one, so most of the standard error has few degrees of freedom."""
    rng = np.random.default_rng(40 + few)
    one, two = rng.normal(1.2, 3, (EXPERIMENTS, few)), rng.normal(0.2, 1, (EXPERIMENTS, many))
    found = [pooled_t(samples) for samples in zip(one, two, strict=True)]
    covered = np.mean([interval.low <= 0.7 <= interval.high for interval, _ in found])
    assert 0.93 <= covered <= 0.97
    excludes_0 = [interval.low > 0 or interval.high < 0 for interval, _ in found]
    assert excludes_0 == [p < 0.05 for _, p in found]


def test_the_p_value_of_a_pooled_mean_of_0_is_below_a_level_as_often_as_that_says():
    rng = np.random.default_rng(50)
    one, two = rng.normal(0.5, 3, (EXPERIMENTS, 4)), rng.normal(-0.5, 1, (EXPERIMENTS, 15))
    p_values = np.array([pooled_t(samples)[1] for samples in zip(one, two, strict=True)])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p_values < level) == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / EXPERIMENTS))


def test_the_interval_of_a_share_of_three_trajectories_covers_what_it_says():
    rng = np.random.default_rng(60)
    arm, oracle = rng.normal(10, 1, (EXPERIMENTS, 3)), rng.normal(40, 1, (EXPERIMENTS, 3))
    check_coverage(map(fieller, arm, oracle), 0.25, "normal")


def test_a_share_is_undefined_as_often_as_the_noncentral_t_says_and_where_it_is_not_it_seldom_misses():
    n, gap = 6, 0.9  # in standard deviations: about half of the denominators cannot be told from 0
    rng = np.random.default_rng(70)
    noise = rng.normal(size=(EXPERIMENTS, n))  # naive's, which both differences have
    arm, oracle = 0.5 * gap + noise * 0.5, gap + noise
    arm = arm + rng.normal(0, 0.5, (EXPERIMENTS, n))
    found = [fieller(a, b) for a, b in zip(arm, oracle, strict=True)]
    limit, centre = stats.t.ppf(0.975, n - 1), gap * math.sqrt(n)
    expected = stats.nct.cdf(limit, n - 1, centre) - stats.nct.cdf(-limit, n - 1, centre)
    undefined = np.mean([interval is None for interval in found])
    assert 0.3 < expected < 0.7
    assert undefined == pytest.approx(expected, abs=0.05)
    missed = [interval is not None and not interval.low <= 0.5 <= interval.high for interval in found]
    assert np.mean(missed) < 0.07


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


@pytest.mark.parametrize("n", [2, 5])
def test_means_of_the_same_thing_are_further_apart_than_the_limit_as_often_as_it_says(n):
    rng = np.random.default_rng(90 + n)
    a, b = rng.normal(50, 5, (2, EXPERIMENTS, n))
    apart = [abs(x.mean() - y.mean()) > two_sample_limit(x, y, comparisons=1) for x, y in zip(a, b, strict=True)]
    # with separate variances the true number of degrees of freedom is random and at most that of the limit
    assert 0.03 < np.mean(apart) < 0.08


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


# forgetting beyond what all images lose


def accuracies(n: int = 8, seed: int = 0) -> list[np.ndarray]:
    """Left-out and test accuracy, each before and after a step, on n trajectories."""
    return list(np.random.default_rng(seed).uniform(0.2, 0.6, (4, n)))


def limits(interval) -> tuple[float, float, float]:
    return interval.mean, interval.low, interval.high


def test_what_changes_all_images_of_a_trajectory_alike_is_no_forgetting():
    left_before, left_after, test_before, test_after = accuracies()
    found = limits(forgetting(left_before, left_after, test_before, test_after))
    for seed in range(5):
        by, at_first = np.random.default_rng(seed).normal(0, 0.1, (2, 8))
        changed = forgetting(left_before + at_first, left_after + by, test_before + at_first, test_after + by)
        assert limits(changed) == pytest.approx(found)
        easier = forgetting(left_before + by, left_after + by, test_before, test_after)  # nor are easier images
        assert limits(easier) == pytest.approx(found)


def test_forgetting_is_above_0_where_left_out_images_lose_more_and_has_the_unit_of_the_accuracies():
    before = np.full(6, 0.5)
    lost = np.array([0.04, 0.05, 0.06, 0.05, 0.04, 0.06])
    found = forgetting(before, before - lost, before - 0.2, before - 0.2 - lost / 5)
    assert found.mean == pytest.approx(0.04)
    assert found.low > 0
    points = forgetting(*(100 * each for each in (before, before - lost, before - 0.2, before - 0.2 - lost / 5)))
    assert limits(points) == pytest.approx([100 * value for value in limits(found)])
    gained = forgetting(before, before + lost, before, before)
    assert gained.high < 0
    exchanged = forgetting(before - 0.2, before - 0.2 - lost / 5, before, before - lost)
    assert limits(exchanged) == pytest.approx((-found.mean, -found.high, -found.low))


def test_the_interval_of_forgetting_covers_what_it_says_and_is_paired():
    """The drops of a trajectory vary far more than their difference does."""
    rng, intervals = np.random.default_rng(100), []
    for _ in range(EXPERIMENTS):
        start, drop = rng.uniform(0.2, 0.6, 5), rng.normal(0.05, 0.05, 5)
        own = rng.normal(0.03, 0.01, 5)
        intervals.append(forgetting(start + 0.05, start + 0.05 - drop - own, start, start - drop))
    check_coverage(intervals, 0.03, "normal")
    assert np.median([interval.high - interval.low for interval in intervals]) < 0.04


def test_a_trajectory_without_an_accuracy_is_left_out_of_forgetting_and_lengths_must_agree():
    whole = accuracies()
    part = [each.copy() for each in whole]
    part[2][3] = np.nan
    assert limits(forgetting(*part)) == limits(forgetting(*(np.delete(each, 3) for each in whole)))
    assert forgetting(*part).n == 7
    with pytest.raises(ValueError, match="same shape"):
        forgetting(*whole[:3], whole[3][:1])


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
