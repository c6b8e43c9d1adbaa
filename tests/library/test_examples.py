"""The example runs as it stands, by itself and through the command line."""

import runpy
from pathlib import Path

import pytest
import torch
from tiny import call, equal

import know

SCRIPT = Path(__file__).parents[2] / "examples" / "digits.py"


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
