"""The commands of the experiment: one line with the culprit for every wrong input, and nothing half made."""

import re
import shutil
from pathlib import Path

import pytest
from planted_results import TINY, run

CELL = "overflow.digits_0-4.digits_5-9.mlp.100"
COMMAND = run


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with the suite `tiny`."""
    (tmp_path / "benchmarks" / "suites").mkdir(parents=True)
    shutil.copy(TINY, tmp_path / "benchmarks" / "suites")
    (tmp_path / "earlier").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["datasets", "digts"], "'digts'"),
        (["data", "--suite", "tiney"], "'tiney': did you mean 'tiny'"),
        (["data", "--suite", "nowhere/tiny.yaml"], "nowhere/tiny.yaml"),
        (["forget", "--suite", "tiny"], "--origin"),
        (["forget", "--suite", "tiny", "--origin", "digits_0-4.mpl"], "'digits_0-4.mpl': did you mean"),
        (["metaset", "--suite", "tiny", "--shard", "1"], r"not 1\b"),
        (["metaset", "--suite", "tiny", "--shard", "-1"], "--shard"),
        (["metaset", "--suite", "tiny"], "--shard"),
        (["metatrain", "--suite", "tiny"], "work/tiny/metaset/0/manifest.json does not exist"),
        (["transfer", "--suite", "tiny", "--cell", CELL.replace("mlp", "mpl")], "mpl.100': did you mean"),
        (["transfer", "--suite", "tiny", "--cell", CELL], "work/tiny"),
        (["landscape", "--suite", "tiny"], "work/tiny"),
        (["publish", "--suite", "tiny"], "work/tiny"),
        (["report", "--check"], "results"),
        (["report", "--check", "--results", "earlier"], "earlier"),
        (["verify", "--suite", "tiny"], "work/tiny"),
        (["verify", "--suite", "tiny", "--against"], "--against"),
        (["reprot"], "reprot"),
        (["explore", "--network", "mlp", "--suite", "tiny", "--attempt", "futher"], "'futher': did you mean 'further'"),
        (["explore", "--network", "mlp", "--suite", "tiny", "--budget", "x2"], "budget 'x2'"),
        (["explore", "--network", "mlp", "--suite", "tiney"], "'tiney': did you mean 'tiny'"),
        (["explore", "--network", "mpl", "--suite", "tiny"], "network 'mpl': did you mean 'mlp'"),
    ],
)
def test_wrong_arguments_of_a_suite(place, fails, intact, arguments, said):
    intact()
    assert re.search(said, fails(*arguments))
    intact()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("trajectories: 2", "trajectoris: 2", "'trajectoris', did you mean 'trajectories'"),
        ("smallest: 16", "smalest: 16", "forgetting.smalest"),
        ("pilots: 1", "pilots: none", "pilots"),
        ("pilots: 1", "pilots: [", "line"),
        ("networks: [mlp]", "networks: [mpl]", "'mpl'"),
        ("smallest: 16", "smallest: 64", "smallest"),
        ("linear: {depths: [1]}", "linaer: {depths: [1]}", "'linaer'"),
    ],
)
def test_a_wrong_suite_stops_before_training(place, fails, intact, old, new, said):
    text = TINY.read_text(encoding="utf-8")
    assert old in text
    Path("mine.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    origin = "digits_0-4.mpl" if "mpl" in new else "digits_0-4.mlp"
    intact()
    assert re.search(said, fails("forget", "--suite", "mine.yaml", "--origin", origin))
    assert not list(Path("work").rglob("*.safetensors"))  # nothing was trained
    intact()


def test_an_interruption_says_how_to_go_on(place, capsys, monkeypatch):
    def interrupted(results):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.report.publish.check", interrupted)
    assert run("report", "--check") == 130
    assert capsys.readouterr().err == "know: interrupted; the same command goes on from what was kept\n"
