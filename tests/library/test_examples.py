"""The examples run as they stand, by themselves and through the command line."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from small_model import call, equal

import know

SCRIPT = Path(__file__).parents[2] / "examples" / "digits.py"
COMPARISON = SCRIPT.with_name("compare_digits.py")


def test_the_example_on_digits_prints_both_accuracies(capsys):
    pytest.importorskip("sklearn")
    runpy.run_path(str(SCRIPT), run_name="__main__")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("theta_0: test accuracy 0.9")
    assert second.startswith("predicted, as if trained on twice the data: test accuracy 0.9")


def test_the_command_line_makes_the_trajectory_of_the_example(tmp_path):
    pytest.importorskip("sklearn")
    assert call("forget", f"{SCRIPT}:setup", "--length", 2, "--out", tmp_path / "digits") == 0
    trajectory = know.Trajectory.load(tmp_path / "digits")
    model, train, _ = runpy.run_path(str(SCRIPT))["setup"]()
    assert equal(trajectory.theta_0, model.state_dict())
    assert [s["images"] for s in trajectory.manifest["snapshots"]] == [round(len(train) / 2), len(train)]
    assert not torch.equal(trajectory.states[0]["0.weight"], trajectory.states[1]["0.weight"])


def test_the_comparison_on_digits_says_what_can_be_said(capsys, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("sys.argv", [str(COMPARISON), str(tmp_path / "compared")])
    runpy.run_path(str(COMPARISON), run_name="__main__")
    said = capsys.readouterr().out
    assert "theta_0, known_x2, known_x8, shrink_x8, further: at most 80 fine-tunes" in said
    assert "lies on an edge" not in said  # else the rate may be the cause, and the example shows nothing
    assert re.search(
        "gain of more than .* is compatible|A gain is left|At the rate of today|All candidates score less", said
    )
    assert len((tmp_path / "compared/runs.csv").read_text().splitlines()) >= 5 * (4 * 2 + 4)
