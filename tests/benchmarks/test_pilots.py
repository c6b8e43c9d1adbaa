"""Cells tried on their pilots: what is touched, and the gaps of a table that can be computed by hand."""

import pandas as pd
import pytest
from synthetic import TINY

from benchmarks import transfer
from benchmarks.pilots import COLUMNS, run_pilots, summary
from benchmarks.store import Store
from benchmarks.suite import load_suite


def test_pilots_are_fine_tuned_at_both_policies_and_no_test_image_is_read(tmp_path, monkeypatch):
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
    assert set(rows.loc[rows["policy"] == "short", "learning_rate"]) == {suite.transfer.recipe.learning_rate}
    assert len(rows) == 4 * 2 * suite.transfer.fine_tunes
    assert asked
    assert not any(request.test for request in asked)
    made = {path.name for path in (tmp_path / "store" / "trajectories").iterdir() if path.is_dir()}
    assert len(made) == 1


def test_gaps_are_differences_on_one_trajectory_and_one_fine_tune():
    better = {"naive": 0, "oracle_steps": 3, "local_oracle": 1.5, "compute_matched": 1}
    rows = pd.DataFrame(
        {"suite": "s", "cell": "c", "policy": "tuned", "learning_rate": 1e-3, "trajectory": t, "fine_tune": f}
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
