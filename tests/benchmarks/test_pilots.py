"""Cells tried on their pilots: what is touched, and the gaps of a table that can be computed by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import TINY

from benchmarks import transfer
from benchmarks.pilots import COLUMNS, gap_interval, half_width, half_widths, run_pilots, summary
from benchmarks.store import Store
from benchmarks.suite import load_suite
from know.statistics import paired_t

REPOSITORY = Path(__file__).parents[2]


def test_pilots_are_fine_tuned_at_their_own_rates_and_no_test_image_is_read(tmp_path, monkeypatch):
    suite = load_suite(str(TINY)).model_copy(update={"metatraining": None, "known": "general"})
    asked, real = [], transfer.FineTuner.__call__

    def spy(tuner, request):
        asked.append(request)
        return real(tuner, request)

    monkeypatch.setattr(transfer.FineTuner, "__call__", spy)
    store = Store(tmp_path / "store", forced=False)
    rows = pd.DataFrame(run_pilots("tiny", suite, store=store, work=tmp_path / "work", processes=1))
    assert list(rows.columns) == COLUMNS
    assert set(rows["trajectory"]) == {"p0"}
    assert set(rows["arm"]) == {"naive", "oracle_steps", "local_oracle", "compute_matched"}
    assert len(rows) == 4 * suite.transfer.fine_tunes
    assert asked
    assert not any(request.test for request in asked)
    made = {path.name for path in (tmp_path / "store" / "trajectories").iterdir() if path.is_dir()}
    assert len(made) == 1


def test_gaps_are_differences_on_one_trajectory_and_one_fine_tune():
    better = {"naive": 0, "oracle_steps": 3, "local_oracle": 1.5, "compute_matched": 1}
    rows = pd.DataFrame(
        {"suite": "s", "cell": "c", "learning_rate": 1e-3, "trajectory": t, "fine_tune": f}
        | {
            "arm": arm,
            "validation_accuracy": (40 + 5 * place + 2 * f + gain * (1 + place) + (f if gain == 3 else 0)) / 100,
        }
        for place, t in enumerate(("p0", "p1"))
        for f in range(2)
        for arm, gain in better.items()
    )
    (row,) = summary(rows).to_dict("records")
    assert row["naive"] == "43.5"
    assert row["data gap"] == "+3.5, +6.5"  # half a point more, the mean over the two fine-tunes
    assert float(row["data gap, between fine-tunes"]) == pytest.approx(0.5**0.5, abs=0.01)
    assert row["local data gap"] == "+0.5, +1.0"
    assert float(row["local data gap, between fine-tunes"]) == 0
    assert row["data gap, mean"].startswith("+5.00 [")
    assert row["replaced"] == "no"


def test_the_interval_of_a_gap_covers_the_truth_of_its_trajectories_as_often_as_it_says():
    """The fine-tunes of two given trajectories vary; the trajectories themselves are no sample here."""
    rng, truth, covered = np.random.default_rng(1), np.array([0.2, 1.4]), 0
    for _ in range(2000):
        gaps = truth[:, None] + rng.normal(0, 0.8, (2, 4))
        index = pd.MultiIndex.from_product([["p0", "p1"], range(4)], names=["trajectory", "fine_tune"])
        table = pd.DataFrame({"naive": 0.0, "oracle_steps": gaps.flatten()}, index=index)
        interval = gap_interval(table, "data gap")
        covered += interval.low <= truth.mean() <= interval.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ((-0.5, 0.1, -0.3, -0.2), "yes"),  # plainly below half a point
        ((0.4, 0.4, 0.5, 0.3), "yes"),
        ((-2.0, 2.5, -1.5, 1.2), "no"),  # its mean is as small, and nothing is known of it
        ((2.0, 2.5, 1.5, 1.2), "no"),
    ],
)
def test_only_a_gap_that_is_shown_to_be_small_replaces_a_cell(gaps, said):
    rows = pd.DataFrame(
        {"suite": "s", "cell": "c", "learning_rate": 1e-3, "trajectory": t, "fine_tune": f, "arm": arm}
        | {"validation_accuracy": 0.4 + (gap / 100 if arm == "oracle_steps" else 0)}
        for t in ("p0", "p1")
        for f, gap in enumerate(gaps)
        for arm in ("naive", "oracle_steps", "local_oracle", "compute_matched")
    )
    (row,) = summary(rows).to_dict("records")
    assert row["replaced"] == said


# how wide intervals will be


def test_the_half_width_is_that_of_the_t_interval_of_such_trajectories():
    rng, between, within = np.random.default_rng(0), 0.3, 0.6
    for n, m in ((8, 3), (12, 4)):
        widths = []
        for _ in range(2000):
            interval = paired_t(rng.normal(0, between, n) + rng.normal(0, within, (m, n)).mean(0))
            widths.append(((interval.high - interval.low) / 2) ** 2)
        assert half_width(between**2, within**2, n, m) == pytest.approx(np.mean(widths) ** 0.5, rel=0.05)


def test_more_fine_tunes_do_not_help_beyond_what_trajectories_differ():
    assert half_width(1.5, 0.0, 8, 4) == half_width(1.5, 0.0, 8, 1)
    assert half_width(0.0, 1.5, 8, 4) == pytest.approx(half_width(0.0, 1.5, 8, 1) / 2)
    assert half_width(0.5, 1.0, 4, 1) == half_width(1.5, 0.0, 4, 1)


def test_half_widths_are_given_for_the_suites_that_were_tried(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    rows = pd.DataFrame(
        {"suite": suite, "cell": cell, "learning_rate": 1e-3, "trajectory": t, "fine_tune": f, "arm": arm}
        | {"validation_accuracy": 0.4 + gain}
        for suite, cell in (
            ("core/resnet8", "overflow.cifar100.cifar10_15k.resnet8.100"),
            ("core/halves", "overflow.cifar100_0-49.cifar100_50-99.resnet8.100"),
        )
        for t in ("p0", "p1")
        for f in range(2)
        for arm, gain in (("local_oracle", 0.01 * f), ("compute_matched", 0.0))
    )
    home, other = half_widths(rows, {"cifar10_15k": 10_000, "cifar100:50-99": 5000}.get).to_dict("records")
    validation, tests = 2000, 10_000
    assert float(home["SD between fine-tunes"]) == pytest.approx((0.5 * validation / tests) ** 0.5, abs=0.005)
    assert float(other["SD between fine-tunes"]) == pytest.approx((0.5 * validation / 5000) ** 0.5, abs=0.005)
    for arm in ("known_x8", "released_x8"):  # fewer test images, a wider interval
        assert 0 < float(home[f"{arm}, half-width"]) < float(other[f"{arm}, half-width"])
