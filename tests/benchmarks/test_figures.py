"""Figures: every script draws what the records hold, the same bytes each time, without torch."""

import dataclasses
import importlib
import json
import os
import runpy
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmarks.report.pages import GROUPS
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image
from synthetic import CNN, GAINS, MLP, OTHERS, described_as, records, write_results

from benchmarks.settings import Arms
from benchmarks.suite import Reference
from know import methods as predictors
from know.drawing import draw_inspection, draw_steps

SCRIPTS = sorted({path.stem for path in (Path(__file__).parents[2] / "paper_figures").glob("[!_]*.py")} - {"style"})
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
    """Two cells, 5 trajectories, a predictor that no figure knows, and arms that one cell lacks or cannot run."""
    gains = {**GAINS, "guess_x2": (1, 1, 2, 2, 1), "guess_x4": (2, 1, 2, 1, 2)}
    fewer = {arm: points for arm, points in GAINS.items() if arm not in ("rre", "mean")}
    runs = [*records(MLP, gains, 5), *records(CNN, fewer, 5)]
    unavailable = {CNN.slug: {"rre": "it takes at least 3 snapshots"}}
    return write_results(tmp_path_factory.mktemp("results") / "several", runs, unavailable=unavailable)


@pytest.fixture(scope="module")
def every_arm(tmp_path_factory) -> Path:
    """One cell with every reference and all lines of arms that a suite gets by default."""
    groups = {arm: OTHERS.get(arm, "reference") for arm in typing.get_args(Reference)}
    for line in predictors.lines(Arms(references=["naive"])):
        for depth in line.depths or (0,):
            groups[f"{line.name}_x{2**depth}" if depth else line.name] = line.predictor.group
    assert len(groups) > 50
    gains = {arm: GAINS.get(arm, (k % 7 - 3, k % 5 - 2, k % 3)) for k, arm in enumerate(groups)}
    described = [described_as(arm, group) for key in GROUPS for arm, group in groups.items() if group == key]
    return write_results(tmp_path_factory.mktemp("results") / "every", records(gains=gains), described=described)


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


@pytest.fixture
def module(repository, monkeypatch):
    """Function that imports a script, or what the scripts share, to look at a figure before it is a file."""
    monkeypatch.syspath_prepend(str(repository / "paper_figures"))
    yield importlib.import_module
    plt.close("all")


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
    for script in set(SCRIPTS) - {"landscape", "metatraining", "response_curves"}:  # these show no arms
        draw(script, results, tmp_path / "figures")


@pytest.mark.filterwarnings("error::UserWarning")
def test_all_predictors_have_room(draw, every_arm, tmp_path):
    for script in SCRIPTS:  # a layout that finds no room warns
        _, png = draw(script, every_arm, tmp_path)
        assert len(png) < 300_000


@pytest.mark.filterwarnings("error::UserWarning")
def test_other_rates_and_lengths_have_all_figures(draw, tmp_path):
    runs = [*records(MLP), *records(dataclasses.replace(MLP, length=3)), *records(dataclasses.replace(MLP, rate=0.7))]
    results = write_results(tmp_path / "results" / "axes", runs)
    for script in SCRIPTS:
        draw(script, results, tmp_path / "figures")


def marks(axis) -> dict[str, list[float]]:
    """x of the markers in every row of a panel, by the row's label."""
    labels = dict(zip(axis.get_yticks(), [label.get_text() for label in axis.get_yticklabels()], strict=True))
    found: dict[str, list[float]] = {}
    for line in axis.lines:
        if line.get_marker() != "None":
            found.setdefault(labels[line.get_ydata()[0]], []).extend(line.get_xdata())
    return found


def words(figure: Figure) -> str:
    found = " ".join(text.get_text() for axis in figure.axes for text in axis.texts)
    return " ".join(found.split())  # without breaks of lines, and spaces that break none


def test_the_share_of_the_gap_is_drawn_and_not_the_ends_of_the_gap(module, tmp_path):
    (axis,) = module("gap_closed").draw(write_results(tmp_path / "results" / "one", records())).axes
    found = marks(axis)
    assert found["KNOWN ×2"] == pytest.approx([0.4])  # 2 of the oracle's 5 points
    assert found["from scratch"][0] == pytest.approx(-6 / 5)
    assert "oracle" not in found
    assert "naive" not in found


def test_a_cell_whose_oracle_gains_nothing_says_that_no_share_is_defined(module, tmp_path):
    nothing = {**GAINS, "oracle": (-1, 1, 0, 0, 0)}
    results = write_results(tmp_path / "results" / "none", [*records(MLP), *records(CNN, nothing)])
    figure = module("gap_closed").draw(results)
    defined, undefined = figure.axes
    assert marks(defined)
    assert not undefined.lines
    assert "not defined: the interval of the oracle's gain over naive, +0.0 [−2.5, +2.5] points" in words(figure)


def test_an_ablation_joins_depths_whatever_factor_the_arms_are_named_by(module, tmp_path):
    here = {"naive": (0, 0, 0), "oracle": (5, 4, 6), "known_x2": (2, 1, 3), "known_x4": (1, 1, 1)}
    there = {**here, "known_x2": (3, 2, 4), "known_x4": (4, 3, 5)}
    names = {"known_x2": "known_x1.4", "known_x4": "known_x2"}  # what the depths 1 and 2 are called at r = 0.7
    runs = records(dataclasses.replace(MLP, rate=0.7), there)
    runs = [run.model_copy(update={"arm": names.get(run.arm, run.arm)}) for run in runs]
    described = [*map(described_as, here), {**described_as("known_x2"), "name": "known_x1.4"}]
    results = write_results(tmp_path / "results" / "r", [*records(MLP, here), *runs], described=described)
    axis = module("ablation").draw(results).axes[-1]
    lines = {tuple(line.get_ydata().round(6)) for line in axis.lines if line.get_marker() != "None"}
    assert lines == {(5, 5), (2, 3), (1, 4)}
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.5\n×2, ×4", "0.7\n×1.4, ×2"]


def test_an_ablation_has_a_panel_for_what_varies_alone(module, several_cells, tmp_path):
    assert "neither S nor r" in words(module("ablation").draw(several_cells))
    runs = [run for axes in ({}, {"length": 3}, {"rate": 0.7}) for run in records(dataclasses.replace(MLP, **axes))]
    figure = module("ablation").draw(write_results(tmp_path / "results" / "axes", runs))
    assert [axis.get_xlabel().split()[0] for axis in figure.axes if axis.lines] == ["length", "ratio"]


def test_what_lies_beyond_an_axis_is_told_inside_it(module):
    axis = Figure().add_subplot()
    axis.set_xlim(-1, 1)
    module("style").draw_bar(axis, 0, pd.Series({"difference": -5.0, "low": -7.0, "high": 0.5}), ("", "black", "o"))
    arrow, (left, right) = axis.lines[-1], axis.get_window_extent().intervalx
    assert left < arrow.get_transform().transform((-1, 0))[0] < right
    assert [text.get_text() for text in axis.texts] == ["−5.0"]


def test_an_axis_grows_for_an_interval_that_is_near_alone(module):
    widened = module("style").widened
    low, high = widened((-1, 1), pd.DataFrame({"low": [0.5], "high": [2.0]}))
    assert low == -1
    assert 2 < high < 2.5
    assert widened((-1, 1), pd.DataFrame({"low": [8.0], "high": [9.0]})) == (-1, 1)


def test_a_small_trajectory_gets_a_panel_of_its_own(module, one_cell, tmp_path):
    landscape = module("landscape")
    assert len(landscape.draw(one_cell).axes) == 1
    table = pd.read_csv(one_cell / "landscape.csv")
    rows = table["kind"].isin(["grid", "oracle"])
    table.loc[rows, ["x", "y"]] *= 10
    table.to_csv(tmp_path / "landscape.csv", index=False)
    axis = landscape.draw(tmp_path).axes[1]
    own = table[table["kind"].isin(["snapshot", "known"])]
    for ends, values in ((axis.get_xlim(), own["x"]), (axis.get_ylim(), own["y"])):
        assert values.between(*ends).all()
    assert np.ptp(axis.get_xlim()) < 40


def test_panels_of_one_cell_stand_three_in_a_line_at_most(module, every_arm):
    axes = module("accuracy_by_rate").draw(every_arm).axes
    assert len(axes) > 2 * 3  # a panel and its legend each
    assert all(axis.get_subplotspec().get_gridspec().ncols <= 3 for axis in axes)


def test_legends_lie_inside_a_figure_of_one_column(module, one_cell):
    for script in ("accuracy_by_arm", "step_decomposition"):
        figure = module(script).draw(one_cell)
        figure.draw_without_rendering()
        (legend,) = figure.legends
        (left, right), width = legend.get_window_extent().intervalx, figure.bbox.width
        assert left >= 0
        assert right <= width


def test_the_front_picture_has_a_panel_for_every_main_suite_that_was_run(repository, tmp_path):
    root, sizes = tmp_path / "results", []
    for name in ("cpu/plaincnn", "cpu/resnet8"):
        folder = write_results(root / name, records(dataclasses.replace(MLP, network=name[4:])))
        suite = json.loads((folder / "suite.json").read_text())
        (folder / "suite.json").write_text(json.dumps({**suite, "name": name, "figures": []}))
        command = [sys.executable, "-m", "paper_figures", str(folder)]
        subprocess.run(command, cwd=repository, check=True)
        sizes.append(Image.open(root / "figures" / "evidence.png").size)
    assert sizes[1][0] > 1.5 * sizes[0][0]


def test_a_bar_has_the_length_of_the_step_and_its_negative_part_lies_left_of_zero():
    table = pd.DataFrame({"label": ["a", "a", "b"], "step": [0.1, 0.3, 0.2], "shrink": [0.5, 0.5, 1.2]})
    axis = Figure().add_subplot()
    draw_steps(axis, table.assign(linear=[0.5, 0.5, -0.3], neither=[0, 0, 0.1]))
    ends = [(bar.get_y(), bar.get_x(), bar.get_x() + bar.get_width()) for bar in axis.patches]
    places = sorted({y for y, *_ in ends})
    reached = [[end for y, *pair in ends if y == place for end in pair] for place in places]
    assert [round(end, 6) for part in reached for end in (min(part), max(part))] == [0, 0.2, -0.06, 0.26]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]


def test_a_bar_too_long_for_the_axis_keeps_its_parts_and_tells_its_step():
    table = pd.DataFrame({"label": list("abcde"), "step": [0.1, 0.1, 0.1, 0.1, 40.0], "shrink": 0.5, "linear": 0.5})
    axis = Figure().add_subplot()
    draw_steps(axis, table.assign(neither=0))
    longest = [bar.get_width() for bar in axis.patches if bar.get_y() == axis.patches[4].get_y()]
    assert longest[0] == longest[1] > 0.1
    assert axis.get_xlim()[1] < 1
    assert [text.get_text().strip() for text in axis.texts] == ["// 40"]


@pytest.fixture
def inspected(tmp_path) -> Path:
    """What `know inspect --out` writes, of two tensors; the second has a step of nothing."""
    folder = tmp_path / "inspected"
    folder.mkdir()
    head = "tensor,role,weights,step,shrink,linear,neither,shrink_by,linear_by"
    steps = ["w,fc,8,0.1,0.5,0.6,-0.1,0.05,0.2", "b,bias,2,0,,,,0,0"]
    steps += [f",{role},8,0.1,0.5,0.6,-0.1,," for role in ("fc", "all")]
    (folder / "steps.csv").write_text("\n".join([head, *steps, ""]))
    (folder / "movement.csv").write_text("role,difference,size,cosine\nfc,0,0.1,\nfc,1,0.1,0.5\nall,0,0.1,\nall,1,,\n")
    rows = [f"known,{role},{h},{x},{-x},0.1" for role in ("conv", "fc") for h in ("constant", "noisy") for x in (0, 1)]
    (folder / "responses.csv").write_text("\n".join(["model,role,history,theta_0,step,spread", *rows, ""]))
    return folder


def test_an_inspection_is_drawn_the_same_twice(inspected, folder_bytes):
    assert draw_inspection(inspected)
    first = folder_bytes(inspected)
    assert {"inspection.svg", "inspection.png"} <= {Path(name).name for name in first}
    assert draw_inspection(inspected)
    assert folder_bytes(inspected) == first


def test_an_inspection_of_one_difference_is_drawn(inspected):
    (inspected / "movement.csv").write_text("role,difference,size,cosine\nfc,0,0.1,\nall,0,0.1,\n")
    assert draw_inspection(inspected)


def test_without_matplotlib_an_inspection_has_no_figure(inspected, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not draw_inspection(inspected)
    assert not list(inspected.glob("inspection.*"))
