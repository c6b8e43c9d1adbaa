"""A suite in one process, and what another machine has published, taken over."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.report import publish as report
from benchmarks.report.pages import suites
from benchmarks.suite import load_suite
from know import cli
from know import methods as predictors
from know.cli import main
from know.files import code_hash, read_json, write_json

REPOSITORY = Path(__file__).parents[2]
CELL = "overflow.digits_0-4.digits_5-9.mlp.100"


def know(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["know", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a published run of the tiny suite and, beside it, the work."""
    folder = tmp_path_factory.mktemp("chain")
    shutil.copytree(REPOSITORY / "benchmarks", folder / "benchmarks")
    text = (REPOSITORY / "tests" / "suites" / "tiny.yaml").read_text(encoding="utf-8")
    few = text.replace("predictors: all", "predictors: {known: {depths: [1]}, shrink: {depths: [1]}}")
    (folder / "benchmarks" / "suites" / "tiny.yaml").write_text(few, encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            assert know(patch, "run", "--suite", "tiny") == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def there(place, tmp_path, monkeypatch) -> Path:
    """A copy of it that may be changed; the current folder."""
    folder = shutil.copytree(place, tmp_path / "there")
    monkeypatch.chdir(folder)
    return folder


def test_a_second_run_computes_nothing(there, monkeypatch, capsys):
    monkeypatch.setattr(cli, "forget", pytest.fail)
    monkeypatch.setattr(cli, "transfer", pytest.fail)
    before = {path: path.read_bytes() for path in there.rglob("*.csv")}
    assert know(monkeypatch, "run", "--suite", "tiny") == 0
    said = capsys.readouterr().out
    assert said.count("done before") == 8
    assert "known_x2" in said  # the short table
    assert {path: path.read_bytes() for path in there.rglob("*.csv")} == before


def test_other_settings_make_anew_what_depends_on_them_alone(there, monkeypatch, capsys):
    suite = there / "benchmarks" / "suites" / "tiny.yaml"
    suite.write_text(suite.read_text().replace("shrink: {depths: [1]}", "shrink: {depths: [1, 2]}"))
    assert know(monkeypatch, "run", "--suite", "tiny") == 0
    lines = [line.split("] ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert lines[:4] == [f"{s}: done before" for s in ("data", "forget/digits_0-4.mlp", "metaset/0", "metatrain/5")]
    assert lines[4:] == [f"transfer/{CELL}", "landscape", "inspect", "cost"]
    assert "shrink_x4" in (there / "results" / "tiny" / "runs.csv").read_text()


def test_the_records_are_those_of_the_steps_by_hand(there, monkeypatch):
    """`know run` only orders the commands, which the workflow calls too."""
    shutil.move(there / "work", there / "old")
    steps = [("data",), ("forget", "--origin", "digits_0-4.mlp"), ("metaset", "--shard", "0"), ("metatrain",)]
    for name, *options in [*steps, ("transfer", "--cell", CELL)]:
        assert know(monkeypatch, name, "--suite", "tiny", *options) == 0
    for file in (f"transfers/{CELL}/runs.csv", f"transfers/{CELL}/pilots.csv", "known/5/known.safetensors"):
        assert (there / "work" / "tiny" / file).read_bytes() == (there / "old" / "tiny" / file).read_bytes()


def test_a_device_that_is_not_there_is_one_line(there, monkeypatch, capsys):
    assert know(monkeypatch, "forget", "--suite", "tiny", "--origin", "digits_0-4.mlp", "--device", "cuda:7") == 2
    assert "device 'cuda:7' is not available here" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_suite_names_its_device(there, monkeypatch, capsys):
    suite = there / "benchmarks" / "suites" / "tiny.yaml"
    suite.write_text(suite.read_text() + "\ndevice: cuda\n")
    place = ("--suite", "tiny", "--origin", "digits_0-4.mlp")
    shutil.rmtree(there / "work" / "tiny" / "trajectories")
    assert know(monkeypatch, "forget", *place) == 2
    assert "device 'cuda' is not available" in capsys.readouterr().err
    assert know(monkeypatch, "forget", *place, "--device", "cpu") == 0


# records of another machine


@pytest.fixture
def here(there, tmp_path, monkeypatch) -> Path:
    """Another folder, with results of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copytree(REPOSITORY / "results" / "smoke", folder / "results" / "smoke")
    monkeypatch.chdir(folder)
    return folder


def test_records_of_another_machine_are_taken_over_with_its_provenance(there, here, monkeypatch):
    about = read_json(there / "results" / "tiny" / "provenance.json")
    about |= {"commit": "unknown"}
    about["environment"]["gpu"] = "NVIDIA of another machine"
    write_json(there / "results" / "tiny" / "provenance.json", about)
    assert know(monkeypatch, "report", "--merge", str(there / "results")) == 0
    assert {path.name for path in suites(Path("results"))} == {"smoke", "tiny"}
    taken = read_json(here / "results" / "tiny" / "provenance.json")
    assert taken["environment"]["gpu"] == "NVIDIA of another machine"
    assert taken["commit"] == report.provenance()["commit"]
    for name in ("runs.csv", "pilots.csv", "cost.csv"):
        assert (here / "results" / "tiny" / name).read_bytes() == (there / "results" / "tiny" / name).read_bytes()
    assert report.check(Path("results"))


@pytest.mark.parametrize("damage", ["code", "metrics", "row", "nothing"])
def test_what_does_not_fit_is_refused_before_anything_is_written(there, here, monkeypatch, capsys, damage):
    theirs = there / "results" / "tiny"
    runs = (theirs / "runs.csv").read_text()
    if damage == "code":
        (theirs / "runs.csv").write_text(runs.replace(code_hash("benchmarks.transfer"), "0" * 16))
    elif damage == "metrics":
        write_json(theirs / "metrics.json", {})
    elif damage == "row":
        (theirs / "runs.csv").write_text(runs.replace(",ok,0", ",ok,7", 1))
    source = there / "results" if damage != "nothing" else there / "nowhere"
    assert know(monkeypatch, "report", "--merge", str(source)) == 2
    error = capsys.readouterr().err
    said = {"code": "is of other code", "metrics": "does not fit its records", "row": "line 2", "nothing": "no folder"}
    assert said[damage] in error
    assert error.count("\n") == 1
    assert not (here / "results" / "tiny").exists()


def test_the_script_for_gpu_machines_runs_its_pieces_and_keeps_their_records(there, monkeypatch):
    """On the CPU, with the tiny suite: twice, the second time without computing."""
    shutil.rmtree(there / "work")
    shutil.copytree(REPOSITORY / "know", there / "know", ignore=shutil.ignore_patterns("__pycache__"))
    surroundings = {**os.environ, "DEVICE": "cpu", "OUT": "back", "PYTHON": sys.executable}
    for again in (False, True):
        command = ["bash", "benchmarks/gpu.sh", "tiny"]
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
        assert done.stdout.count("done before") == (8 if again else 0)
        assert "known_x2" in done.stdout.rpartition("difference to naive")[2]
    assert know(monkeypatch, "report", "--merge", "back") == 0
    same = ("runs.csv", "pilots.csv", "metrics.json")
    assert all(
        (there / "results" / "tiny" / f).read_bytes() == (there / "back" / "tiny" / f).read_bytes() for f in same
    )


@pytest.mark.parametrize("path", sorted((REPOSITORY / "benchmarks" / "suites").glob("*/*.yaml")), ids=lambda p: p.stem)
def test_every_suite_that_ships_is_valid_and_fair(path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    settings = load_suite(f"{path.parent.name}/{path.stem}")
    assert settings.evidence
    assert {"naive", "scratch", "oracle"} <= set(settings.arms.references)
    named = {line.predictor.name for line in predictors.lines(settings.arms)}
    assert {"known", "shrink", "linear"} <= named
    assert settings.device == ("cuda" if path.parent.name in ("gpu", "paper") else "cpu")
