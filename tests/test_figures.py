"""Figures: every script draws what the records hold, the same bytes each time, without torch."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import CNN, GAINS, MLP, records, write_results

SCRIPTS = sorted({path.stem for path in (Path(__file__).parents[1] / "paper_figures").glob("[!_]*.py")} - {"style"})
WITHOUT_TORCH = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("a figure needs no torch")

sys.meta_path.insert(0, Refuse())
places = sys.argv[1:]
for k in (0, 2):
    sys.argv[1:] = places[k : k + 2]
    runpy.run_module("paper_figures", run_name="__main__")
"""


@pytest.fixture(scope="module")
def one_cell(tmp_path_factory) -> Path:
    """One cell, 2 trajectories."""
    return write_results(tmp_path_factory.mktemp("results") / "one", records(trajectories=2))


@pytest.fixture(scope="module")
def several_cells(tmp_path_factory) -> Path:
    """Two cells, 5 trajectories, a predictor that the figures have never heard of, and an arm that one cell lacks."""
    gains = {**GAINS, "guess_x2": (1, 1, 2, 2, 1), "guess_x4": (2, 1, 2, 1, 2)}
    runs = [*records(MLP, gains, 5), *records(CNN, GAINS, 5)]
    return write_results(tmp_path_factory.mktemp("results") / "several", runs)


@pytest.fixture
def draw(repository, monkeypatch):
    """Function that runs one script as a user does, in this process."""

    def run(script: str, results: Path, out: Path) -> tuple[bytes, bytes]:
        path = repository / "paper_figures" / f"{script}.py"
        monkeypatch.setattr("sys.argv", [str(path), str(results), str(out)])
        monkeypatch.syspath_prepend(str(path.parent))
        runpy.run_path(str(path), run_name="__main__")
        return tuple((out / f"{script}.{kind}").read_bytes() for kind in ("svg", "png"))

    return run


@pytest.fixture(scope="module")
def drawn(one_cell, several_cells, repository, tmp_path_factory) -> dict[Path, Path]:
    """All figures of both, drawn by a process of its own that cannot import torch: results to folder."""
    out = {results: tmp_path_factory.mktemp("figures") for results in (one_cell, several_cells)}
    places = [str(path) for pair in out.items() for path in pair]
    command = [sys.executable, "-c", WITHOUT_TORCH, *places]
    subprocess.run(command, cwd=repository, env={**os.environ, "PYTHONHASHSEED": "1"}, check=True)
    return out


def files(script: str, folder: Path) -> tuple[bytes, bytes]:
    return tuple((folder / f"{script}.{kind}").read_bytes() for kind in ("svg", "png"))


@pytest.fixture(params=["one_cell", "several_cells"])
def results(request) -> Path:
    return request.getfixturevalue(request.param)


def test_every_script_is_drawn_without_torch(drawn, results):
    names = {path.name for path in drawn[results].iterdir()}
    assert names == {f"{script}.{kind}" for script in SCRIPTS for kind in ("svg", "png")}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_second_process_draws_the_same_bytes(draw, drawn, results, script, tmp_path):
    found = draw(script, results, tmp_path)
    assert found == files(script, drawn[results])
    assert found[0].startswith(b"<?xml")
    assert found[1].startswith(b"\x89PNG")
    for content in found:  # nothing in the file tells when, where and by which version
        assert not any(word in content for word in (b"Matplotlib", b"matplotlib v", b"dc:date", b"tIME"))
        assert str(results).encode() not in content


@pytest.mark.parametrize("script", ["accuracy_by_arm", "gain_by_depth", "headline"])
def test_a_figure_follows_its_records(draw, drawn, one_cell, script, tmp_path):
    more = {**GAINS, "known_x2": (2, 3, 2, 2, 2)}
    other = write_results(tmp_path / "results" / "one", records(gains=more, trajectories=2))
    for found, before in zip(draw(script, other, tmp_path / "figures"), files(script, drawn[one_cell]), strict=True):
        assert found != before


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_missing_table_is_named_in_one_line(draw, script, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        draw(script, tmp_path / "nowhere", tmp_path)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error:")
    assert len(error.splitlines()) == 1
    assert "nowhere" in error
    assert not list(tmp_path.iterdir())


def test_a_suite_with_one_predictor_at_one_depth_has_all_its_figures(draw, tmp_path):
    arms = {arm: GAINS[arm] for arm in ("naive", "known_x2")}
    results = write_results(tmp_path / "results" / "few", records(gains=arms))
    for script in set(SCRIPTS) - {"landscape", "metatraining"}:  # these two show no arms
        draw(script, results, tmp_path / "figures")
