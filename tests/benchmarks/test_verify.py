"""Held against what git has: the same records, those of other code, those of another machine, and others."""

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from planted_results import records, write_results

from benchmarks.report.publish import provenance
from benchmarks.report.verify import _compare_with_git
from know.errors import KnowError
from know.files import write_json

GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """Function that commits results, changes their runs.csv by a function of its text, and compares."""
    monkeypatch.chdir(tmp_path)
    folder = write_results(tmp_path / "results" / "one", records(trajectories=5))

    def run(change=lambda text: text, **environment) -> str:
        about = provenance()
        recorded = {key: value for key, value in {**about["environment"], **environment}.items() if value is not None}
        write_json(folder / "provenance.json", {**about, "environment": recorded})
        for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "Results"]):
            subprocess.run([*GIT, *arguments], check=True)
        path = folder / "runs.csv"
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
        return _compare_with_git("one", pd.read_csv(path), Path("results"), "HEAD", "cpu")

    return run


def shifted(points: float):
    """All accuracies of naive at the tuned rate moved."""

    def change(text: str) -> str:
        return re.sub(
            r"(,naive,.*,tuned,.*?,ok,)(0\.\d+)", lambda found: f"{found[1]}{float(found[2]) + points / 100:.4f}", text
        )

    return change


def test_the_same_records_of_other_code_are_called_so(compare):
    assert compare(lambda text: text.replace("c0de", "0ther")).endswith("which other code had made")


def test_other_records_of_the_same_environment_are_an_error(compare):
    with pytest.raises(KnowError, match="differs from HEAD"):
        compare(shifted(0.1))


def test_in_another_environment_a_small_difference_is_chance(compare):
    assert "lie within the combined intervals" in compare(shifted(0.1), torch="other")


def test_a_record_from_before_kernels_were_recorded_is_of_another_environment(compare):
    """Nobody knows then which kernels ran, so other bytes are no error."""
    assert "lie within the combined intervals" in compare(shifted(0.1), kernels=None)
    assert compare(kernels=None).endswith("byte for byte")


def test_a_record_that_lacks_a_library_which_few_results_need_is_of_the_same_environment(compare):
    with pytest.raises(KnowError, match="differs from HEAD"):
        compare(shifted(0.1), pillow=None)


def test_in_another_environment_a_large_difference_is_an_error(compare):
    with pytest.raises(KnowError, match="further apart than chance allows"):
        compare(shifted(-60), torch="other")
