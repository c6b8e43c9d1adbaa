"""The inspection of a suite: which methods and arms it covers, and what it leaves out."""

import csv

import pytest
import torch

from benchmarks.inspection import inspect_suite
from benchmarks.settings import Arms, Cell
from benchmarks.steps import INSPECTED
from know.checkpoints import save_state
from know.known import Known, KnownNet
from know.roles import PREDICTED


def table(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def work(tmp_path, with_initial, models):
    """Function that makes a suite's folder of one real trajectory, and networks for S = `length`: both, by S."""

    def make(length: int):
        folder = tmp_path / f"work-{length}"
        origin = folder / "trajectories" / Cell("overflow", "digits", "mnist", "mlp", 1.0).origin.slug
        for name in ("p0", "t0"):
            (origin / name).mkdir(parents=True)
            (origin / name / "overflow").symlink_to(with_initial.paths[0].parent)
        torch.manual_seed(0)
        for name, scaling in (("known", "none"), ("scaled", "range")):
            known = Known({role: KnownNet(length) for role in PREDICTED}, {"scaling": scaling})
            known.save(folder / "known" / str(length) / f"{name}.safetensors")
        terms = {f"{role}{end}": torch.ones(length - 1 + bool(end)) for role in PREDICTED for end in ("", ".theta_0")}
        save_state(folder / "known" / str(length) / "meta_linear.safetensors", terms)
        return folder, {length: folder / "known" / str(length)}

    return make


def test_inspecting_a_suite_covers_every_line_that_moves_weights(work, monkeypatch):
    monkeypatch.delenv("KNOW_REFERENCE", raising=False)
    cells = [Cell("overflow", "digits", target, "mlp", 1.0, length=5) for target in ("mnist", "cifar10")]
    folder = work(5)
    inspect_suite(cells, ["p0", "t0"], Arms(references=["naive"]), *folder)
    found = {name: table(folder[0] / "inspection" / f"{name}.csv") for name in INSPECTED}
    assert {row["trajectory"] for row in found["steps"] + found["movement"] + found["placebo"]} == {"t0"}  # no pilot
    depths: dict[str, set[str]] = {}
    for row in found["steps"]:
        depths.setdefault(row["predictor"], set()).add(row["depth"])
    assert not depths.keys() & {"matched_rate", "recalibrate", "reset", "released", "wnn", "wnn_plus"}
    assert {"known", "scaled_known", "meta_linear_theta0", "rre_global", "mixture"} <= depths.keys()
    assert depths["logfit"] == {"1", "2", "3"}
    assert depths["rre"] == depths["expo"] == {"0"}
    keys = [tuple(row[column] for column in ("predictor", "depth", "role")) for row in found["steps"]]
    assert len(set(keys)) == len(keys)  # two targets of one source are one place
    linear = next(r for r in found["steps"] if (r["predictor"], r["depth"], r["role"]) == ("linear", "1", "all"))
    assert float(linear["linear"]) == pytest.approx(1, abs=1e-3)


def test_a_suite_that_predicts_further_sees_those_steps_decomposed_too(work):
    folder = work(5)
    arms = Arms(references=["naive"], methods={"linear": {"depths": [2, 4]}})
    inspect_suite([Cell("overflow", "digits", "mnist", "mlp", 1.0, length=5)], ["t0"], arms, *folder)
    assert {row["depth"] for row in table(folder[0] / "inspection" / "steps.csv")} == {"1", "2", "3", "4"}


def test_short_histories_leave_out_what_needs_more(work):
    folder = work(2)
    arms = Arms(references=["naive"], methods={"known": None, "rre": None, "dmd": None})
    inspect_suite([Cell("overflow", "digits", "mnist", "mlp", 1.0, length=2)], ["t0"], arms, *folder)
    assert {row["predictor"] for row in table(folder[0] / "inspection" / "steps.csv")} == {"known"}
