"""The arithmetic of suites: what is counted, by settings whose sums can be done by hand."""

import pytest
import torch
from synthetic import TINY

from benchmarks.data import random_dataset
from benchmarks.references import REFERENCES
from benchmarks.scaling import count
from benchmarks.settings import Arms, Pair, PaperPolicy, Transfer
from benchmarks.suite import load_suite

SIZE = 800
GRID = [1e-4 * 2**k for k in range(6)]
ALL = ["naive", "oracle", "oracle_steps", "double_steps", "local_oracle", "compute_matched"]
RECIPE = {"epochs": 3, "head_epochs": 2, "learning_rate": 4e-4}


class Clock:
    """A clock on which every image takes one second."""

    device = "cpu"

    def __init__(self):
        self.seen = random_dataset(SIZE, (1, 8, 8), 5)

    def data(self, spec):
        return self.seen

    def model(self, spec, network):
        return torch.nn.Linear(2, 2)

    def training(self, spec, network, recipe):
        return 1.0

    def evaluation(self, spec, network):
        return 1.0


@pytest.fixture
def counted():
    """Function that counts a suite of one cell, two references and one method at two depths, with changed settings."""

    def of(references=("naive", "compute_matched"), **changes):
        tiny = load_suite(str(TINY))
        pair = Pair(source="a", target="b", networks=["mlp"], **changes.pop("pair", {}))
        transfer = {"recipe": RECIPE, "images": 100, "validation": 50, "grid": GRID, "extensions": 2}
        transfer = Transfer.model_validate(transfer | changes.pop("transfer", {}))
        arms = Arms(references=list(references), methods={"linear": {"depths": [1, 3]}})
        forgetting = tiny.forgetting.model_copy(
            update={"d0": 0.5, "ratio": 0.5, "length": 3, "step": tiny.forgetting.step.model_copy(update={"epochs": 2})}
        )
        pretraining = tiny.pretraining.model_copy(update={"epochs": 4})
        own = {
            "pairs": [pair],
            "transfer": transfer,
            "arms": arms,
            "forgetting": forgetting,
            "pretraining": pretraining,
        }
        return count("mine", tiny.model_copy(update={**own, "trajectories": 3, "pilots": 2, **changes}), Clock())

    return of


def test_fine_tunes_are_those_of_the_search_and_of_every_policy(counted):
    row = counted()
    assert row["fine_tunes"] == 4 * (2 * 8 + 3 * 2)
    heads = 4 * (2 * 3 + 3)  # of every arm and trajectory, for all rates; the grid grows twice
    assert row["target_images"] == 100 * (row["fine_tunes"] * RECIPE["epochs"] + heads * RECIPE["head_epochs"])
    more = counted(transfer={"fine_tunes": 4, "pilot_fine_tunes": 2})
    assert more["fine_tunes"] == 4 * (2 * 2 * 8 + 3 * 4 * 2)
    paper = PaperPolicy(arms=["naive", "linear_x8"], epochs=100, head_epochs=10)
    longer = counted(transfer={"paper": paper})
    assert longer["fine_tunes"] == row["fine_tunes"] + 2 * 3
    assert longer["target_images"] == row["target_images"] + 2 * 3 * 110 * 100


def test_the_source_is_trained_on_for_the_placebo_and_for_every_reference_that_is_named(counted):
    own, step = 4 * SIZE / 2, 2 * SIZE / 2 * (0.5 + 0.25)
    # of one trajectory, pilots included: theta_0; forgetting, placebo, compute-matched
    assert counted()["source_images"] / 5 == own + 3 * step
    # the oracle, as many steps on twice the data, twice the steps; theta_0 trained further, on D0 and on twice the data
    assert counted(ALL)["source_images"] / 5 == (1 + 2 + 1 + 2) * own + 4 * step
    assert counted(["naive", "tail_average", "oracle"])["source_images"] / 5 == (1 + 2) * own + 2 * step


def test_retrodiction_trains_theta_0_further_and_shares_the_oracle(counted):
    back = counted(pair={"tracks": ["retrodiction"]})["source_images"] / 5
    own, first, step = 4 * SIZE / 2, 2 * SIZE / 2, 2 * SIZE / 2 * (0.5 + 0.25)
    assert back == 2 * own + first + 3 * step
    both = counted(ALL, pair={"tracks": ["overflow", "retrodiction"]})["source_images"] / 5
    assert both == 6 * own + 4 * step + first + 3 * step


def test_runs_from_an_initialisation_are_trained_once_for_all_r(counted):
    one, two = (counted(pair={"ratios": ratios}) for ratios in ([0.5], [0.5, 0.7]))
    further = 3 * 2 * SIZE / 2 * (0.7 + 0.49)
    assert two["source_images"] - one["source_images"] == pytest.approx(5 * further)
    # naive is the same; compute-matched and the method at two depths are not
    assert two["fine_tunes"] - one["fine_tunes"] == 3 * one["fine_tunes"] / 4


def test_references_are_fine_tuned_once_for_all_lengths(counted):
    one, two = (counted(pair={"lengths": lengths}) for lengths in ([3], [2, 3]))
    assert two["source_images"] == one["source_images"]
    assert two["fine_tunes"] - one["fine_tunes"] == 2 * one["fine_tunes"] / 4


def test_references_of_more_data_are_counted_where_they_exist(counted):
    tiny = load_suite(str(TINY)).forgetting
    step = tiny.step.model_copy(update={"epochs": 2})
    eighth = tiny.model_copy(update={"d0": 0.125, "ratio": 0.5, "length": 3, "step": step})
    own, further = 4 * SIZE / 8, 2 * SIZE / 8 * (0.5 + 0.25)
    assert {name for name, each in REFERENCES.items() if each.factor > 2} == {"oracle_x4", "oracle_x8"}
    named = [*ALL, "oracle_x4", "oracle_x8"]
    assert counted(named, forgetting=eighth)["source_images"] == 5 * ((1 + 2 + 1 + 2 + 4 + 8) * own + 4 * further)
