"""What arms cost: counted images against sums by hand, memory against a known allocation, a table with every arm."""

import sys

import pandas as pd
import pytest
from planted_results import TINY

from benchmarks.cost import COLUMNS, _growth, images, measure
from benchmarks.report.folders import COST
from benchmarks.settings import Arms, Cell, Recipe
from benchmarks.suite import load_suite
from know.files import write_json

SUITE = load_suite(str(TINY))
CELL = SUITE.cells[0]


@pytest.mark.parametrize("ratio", [0.33, 0.5, 0.7])
def test_forgetting_costs_its_geometric_series(ratio):
    cell = Cell("overflow", "a", "b", "mlp", 1.0, ratio, 5)
    found = images(SUITE, cell, 1000)
    share = SUITE.forgetting.step.epochs / SUITE.pretraining.epochs
    series = pytest.approx(1 + share * ratio * (1 - ratio**4) / (1 - ratio), rel=0.01)  # up to whole images
    assert found["trajectory"] / found["naive"] == series
    assert found["oracle"] == 2 * found["naive"] == 2 * found["oracle_steps"] == found["oracle_x8"] / 4
    assert found["scratch"] == 0


def test_cells_of_one_trajectory_share_its_further_training_and_pay_for_the_history_that_they_read():
    suite = load_suite("ablations/lengths")
    found = {cell.length: images(suite, cell, 1000) for cell in suite.cells}
    assert len({one["compute_matched"] for one in found.values()}) == 1
    assert found[2]["trajectory"] < found[5]["trajectory"] <= found[5]["compute_matched"]


def test_further_training_shows_as_many_images_as_its_batches_hold():
    step = Recipe(epochs=1, batch_size=32, learning_rate=1e-3)
    suite = SUITE.model_copy(update={"forgetting": SUITE.forgetting.model_copy(update={"step": step})})
    found = images(suite, CELL, 100)  # subsets of 50, 25, 12 and 6 images: 2 + 1 + 1 + 1 steps
    assert found["trajectory"] - found["naive"] == 50 + 25 + 12 + 6
    assert (
        found["compute_matched"] - found["naive"] == 100 + 32
    )  # an epoch of D0 is 4 steps, of which the last has 4 images


def test_on_the_retrodiction_track_theta_0_has_cost_the_oracle_and_a_step():
    cell = Cell("retrodiction", "a", "b", "mlp", 1.0)
    found = images(SUITE, cell, 1000)
    assert found["naive"] == found["oracle"] + 1000 * SUITE.forgetting.step.epochs


def test_steps_are_counted_in_images_where_they_are_given():
    step = Recipe(epochs=1, steps=7, batch_size=10, learning_rate=1e-3)
    suite = SUITE.model_copy(update={"forgetting": SUITE.forgetting.model_copy(update={"step": step})})
    found = images(suite, CELL, 1000)
    assert found["trajectory"] - found["naive"] == 4 * 70


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's counters of a process")
@pytest.mark.parametrize("size", [0, 64])
def test_memory_is_what_a_call_takes_at_its_peak(size):
    assert _growth(lambda: bytearray(b"x" * (size << 20)) and None) == pytest.approx(2 * size, abs=6)


def test_every_arm_has_a_row_and_pays_for_the_history_that_it_looks_at(tmp_path, models, monkeypatch):
    arms = Arms(references=["naive", "scratch", "compute_matched"], methods="all")
    suite = SUITE.model_copy(update={"arms": arms})
    classes = [str(k) for k in range(5)]
    write_json(tmp_path / "data.json", {CELL.source: {"shape": [1, 8, 8], "classes": classes, "train": 656}})
    monkeypatch.setattr("benchmarks.cost.Models", lambda folder: models)
    monkeypatch.setattr("benchmarks.cost.REPEATS", 1)  # no time is looked at
    measure(suite, tmp_path, {5: tmp_path}, out=tmp_path / "cost.csv")
    table = pd.read_csv(tmp_path / "cost.csv").set_index("arm")
    assert list(pd.read_csv(tmp_path / "cost.csv").columns) == COLUMNS == COST
    assert {"known_x2", "rre", "matched_rate_x8", "recalibrate", "compute_matched"} <= set(table.index)
    alone = {"constant_x2", "constant_x8", "expo", "reset", "recalibrate", "shrink_and_perturb"}
    assert set(table.index[table["trained"] == 1]) == alone | {"naive"}
    assert 1 < table.loc["known_x2", "trained"] <= table.loc["compute_matched", "trained"]
    assert (table.loc[table.index.str.contains("_x"), "seconds"] > 0).all()
    assert (table["theta_0_seconds"] > 0).all()
    assert table["weights"].nunique() == 1
