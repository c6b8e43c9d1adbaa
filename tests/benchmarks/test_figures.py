"""Figures: every script draws what the records hold, the same bytes each time, without torch."""

import dataclasses
import importlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from planted_results import CNN, GAINS, MLP, OTHERS, SUITES, described_as, records, write_results

from benchmarks.arms import lines
from benchmarks.references import REFERENCES
from benchmarks.report.evidence import DIVERGED, DIVERGED_NOTE
from benchmarks.report.folders import GROUPS, load, suites
from benchmarks.settings import Arms
from benchmarks.suite import load_suite

SCRIPTS = sorted({path.stem for path in (Path(__file__).parents[2] / "paper_figures").glob("[!_]*.py")})
RESULTS = Path(__file__).parents[2] / "results"
PUBLISHED = suites(RESULTS)
OF_ARMS = [script for script in SCRIPTS if script != "landscape"]
PICTURE = "accuracy_by_arm"
"""The one that is compared as png too, which is slower."""
WITHOUT_TORCH = """
import importlib, pathlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("a figure needs no torch")

sys.meta_path.insert(0, Refuse())
from paper_figures import _style as style
folder, out, picture, *scripts = sys.argv[1:]
for script in scripts:
    kinds = ("svg", "png") if script == picture else ("svg",)
    figure = importlib.import_module(f"paper_figures.{script}").draw(pathlib.Path(folder))
    style.save(figure, pathlib.Path(out), script, kinds)
"""


@pytest.fixture(scope="module")
def one_cell(tmp_path_factory) -> Path:
    """One cell, 2 trajectories."""
    folder = tmp_path_factory.mktemp("results") / "one"
    return write_results(folder, records(trajectories=2), with_page=False)


@pytest.fixture(scope="module")
def several_cells(tmp_path_factory) -> Path:
    """Two cells, 5 trajectories, a predictor that no figure knows, and arms that one cell lacks or cannot run."""
    gains = {**GAINS, "guess_x2": (1, 1, 2, 2, 1), "guess_x4": (2, 1, 2, 1, 2)}
    fewer = {arm: points for arm, points in GAINS.items() if arm not in ("rre", "mean")}
    runs = [*records(MLP, gains, 5), *records(CNN, fewer, 5)]
    unavailable = {CNN.slug: {"rre": "it takes at least 3 snapshots"}}
    folder = tmp_path_factory.mktemp("results") / "several"
    return write_results(folder, runs, unavailable=unavailable, with_page=False)


@pytest.fixture(scope="module")
def every_arm(tmp_path_factory) -> Path:
    """One cell with every reference and all lines of arms that a suite gets by default."""
    groups = {arm: OTHERS.get(arm, "reference") for arm in REFERENCES}
    for line in lines(Arms(references=["naive"])):
        for depth in line.depths or (0,):
            groups[f"{line.name}_x{2**depth}" if depth else line.name] = line.entry.group
    assert len(groups) > 50
    gains = {arm: GAINS.get(arm, (k % 7 - 3, k % 5 - 2, k % 3)) for k, arm in enumerate(groups)}
    described = [described_as(arm, group) for key in GROUPS for arm, group in groups.items() if group == key]
    folder = tmp_path_factory.mktemp("results") / "every"
    return write_results(folder, records(gains=gains), described=described, with_page=False)


@pytest.fixture(scope="module")
def axes(tmp_path_factory) -> Path:
    """Three cells that differ in r or in S alone."""
    cells = [dataclasses.replace(MLP, **axis) for axis in ({}, {"length": 3}, {"ratio": 0.7})]
    folder = tmp_path_factory.mktemp("results") / "axes"
    return write_results(folder, [run for cell in cells for run in records(cell)], with_page=False)


@pytest.fixture
def draw(monkeypatch):
    """Function that draws figures of a folder as a user does, in this process."""

    def run(results: Path, *scripts: str) -> None:
        monkeypatch.setattr("sys.argv", ["paper_figures", str(results), *scripts])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("paper_figures", run_name="__main__")
        if ended.value.code:
            raise ended.value

    return run


@pytest.fixture
def module():
    """Function that imports a script, or what the scripts share, to look at a figure before it is a file."""
    yield lambda name: importlib.import_module(f"paper_figures.{name}")
    plt.close("all")


@pytest.fixture(scope="module")
def drawn(one_cell, repository, tmp_path_factory) -> Path:
    """The folder of all figures of one cell, drawn by a process of its own that cannot import torch."""
    out = tmp_path_factory.mktemp("figures")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(one_cell), str(out), PICTURE, *SCRIPTS]
    subprocess.run(command, cwd=repository, env={**os.environ, "PYTHONHASHSEED": "1"}, check=True)
    return out


def files(script: str, folder: Path) -> tuple[bytes, bytes]:
    return tuple((folder / f"{script}.{kind}").read_bytes() for kind in ("svg", "png"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_second_process_draws_the_same(module, drawn, one_cell, script, tmp_path):
    module("_style").save(module(script).draw(one_cell), tmp_path, script, kinds=("svg",))
    content = (tmp_path / f"{script}.svg").read_bytes()
    assert content == (drawn / f"{script}.svg").read_bytes()
    # nothing in the file tells when, where and by which version
    assert not any(word in content for word in (b"Matplotlib", b"matplotlib v", b"dc:date", str(one_cell).encode()))


def test_a_picture_has_the_same_bytes_in_a_second_process(draw, drawn, one_cell, tmp_path):
    own = shutil.copytree(one_cell, tmp_path / "own")
    draw(own, PICTURE)
    svg, png = files(PICTURE, own / "figures")
    assert (svg, png) == files(PICTURE, drawn)
    assert png.startswith(b"\x89PNG")
    assert b"tIME" not in png


def points(axis, colour: str, marker: str) -> dict[str, float]:
    """Where the marks of that look lie along the axis, by the label of their row."""
    labels = dict(zip(axis.get_yticks().round(), (text.get_text() for text in axis.get_yticklabels()), strict=True))
    marks = [line for line in axis.lines if (line.get_color(), line.get_marker()) == (colour, marker)]
    return {labels[round(float(mark.get_ydata()[0]))]: float(mark.get_xdata()[0]) for mark in marks}


def test_every_arm_is_drawn_at_its_own_difference_and_interval_by_rate_policy(module, several_cells):
    style, published = module("_style"), load(several_cells)
    summary = published.summary
    arms = style.arms_of(several_cells)
    axes = [axis for axis in module("accuracy_by_arm").draw(several_cells).axes if axis.lines]
    assert len(axes) == 2
    for axis, cell in zip(axes, style.cells_of(published), strict=True):
        axis.set_yticklabels(axes[0].get_yticklabels())  # the left neighbour has the labels of both
        lines = [segment for drawn in axis.collections for segment in drawn.get_segments()]
        ends = {tuple(segment[:, 0].round(6)) for segment in lines}
        for policy in ("short", "tuned"):
            own = summary[(summary["cell"] == cell) & (summary["policy"] == policy) & (summary["arm"] != "naive")]
            drawn = points(axis, *style.RATES[policy][1:])
            assert len(drawn) == len(own)
            for row in own.itertuples():
                assert drawn[arms["label"][row.arm]] == pytest.approx(row.difference)
                assert (round(row.low, 6), round(row.high, 6)) in ends


def test_the_search_is_drawn_as_the_mean_of_the_pilots_with_the_rate_that_was_chosen(module, one_cell):
    style, pilots = module("_style"), pd.read_csv(one_cell / "pilots.csv")
    arms, runs = style.arms_of(one_cell), load(one_cell).runs
    arms = style.dealt(arms, style.blocks_of(arms))
    drawn = [line for axis in module("accuracy_by_rate").draw(one_cell).axes for line in axis.lines]
    for arm in ("naive", "known_x2", "linear_x2"):
        means = 100 * pilots[pilots["arm"] == arm].groupby("learning_rate")["validation_accuracy"].mean()
        own = [line for line in drawn if line.get_color() == arms["colour"][arm]]
        assert any(
            np.array_equal(line.get_ydata(), means) and list(line.get_xdata()) == list(means.index) for line in own
        )
        tuned = runs.loc[(runs["arm"] == arm) & (runs["policy"] == "tuned"), "learning_rate"].iloc[0]
        assert any(list(line.get_xdata()) == [tuned] and line.get_marker() == arms["marker"][arm] for line in own)


@pytest.mark.parametrize("script", ["accuracy_by_arm", "", "nonsense"])
def test_what_is_missing_is_named_in_one_line(draw, script, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        draw(tmp_path / "nowhere", *([script] if script else []))
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("know: error:")
    assert len(error.splitlines()) == 1
    assert ("nowhere" if script != "nonsense" else "unknown figure") in error
    assert not list(tmp_path.iterdir())


def test_an_arm_with_diverged_fine_tunes_is_marked_and_no_other(module, tmp_path):
    runs = records(trajectories=2)
    lost = next(run for run in runs if run.arm == "known_x2")
    runs[runs.index(lost)] = lost.model_copy(update={"status": "diverged", "accuracy": 0.0})
    for name, own, marked in (("lost", runs, {"KNOWN ×2"}), ("fine", records(trajectories=2), set())):
        figure = module("accuracy_by_arm").draw(write_results(tmp_path / name, own, with_page=False))
        labels = [label.get_text() for axis in figure.axes for label in axis.get_yticklabels()]
        assert {label.removesuffix(f" {DIVERGED}") for label in labels if label.endswith(DIVERGED)} == marked
        assert any(DIVERGED_NOTE in " ".join(text.get_text().split()) for text in figure.texts) == bool(marked)


@pytest.mark.parametrize("diverges", [True, False])
@pytest.mark.parametrize(("script", "table"), [("ablation", "runs"), ("accuracy_by_rate", "pilots")])
def test_legends_mark_the_families_that_hold_diverged_fine_tunes(module, tmp_path, script, table, diverges):
    runs = [*records(MLP), *records(dataclasses.replace(MLP, ratio=0.7))]
    folder = write_results(tmp_path / "results" / "r", runs, with_page=False)
    if diverges:
        rows = pd.read_csv(folder / f"{table}.csv")
        rows.loc[rows["arm"] == "known_x2", "status"] = "diverged"
        rows.to_csv(folder / f"{table}.csv", index=False)
    figure = module(script).draw(folder)
    labels = [text.get_text() for axis in figure.axes if axis.get_legend() for text in axis.get_legend().get_texts()]
    assert [label for label in labels if DIVERGED in label] == ([f"KNOWN {DIVERGED}"] if diverges else [])
    assert any(DIVERGED_NOTE in " ".join(text.get_text().split()) for text in figure.texts) == diverges


def test_a_suite_with_one_predictor_at_one_depth_has_all_its_figures(module, tmp_path):
    arms = {arm: GAINS[arm] for arm in ("naive", "known_x2")}
    results = write_results(tmp_path / "results" / "few", records(gains=arms), with_page=False)
    for script in OF_ARMS:
        assert module(script).draw(results).axes


CROWDED = [
    ("every_arm", "accuracy_by_arm"),
    ("axes", "ablation"),
]


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(("suite", "script"), CROWDED)
def test_all_arms_and_cells_have_room(module, request, suite, script):
    module(script).draw(request.getfixturevalue(suite)).draw_without_rendering()  # a layout without room warns


def words(figure: Figure) -> str:
    found = " ".join(text.get_text() for axis in figure.axes for text in axis.texts)
    return " ".join(found.split())  # without breaks of lines, and spaces that break none


@pytest.mark.parametrize("oracle", ["oracle", "oracle_steps"])
def test_the_oracle_that_was_run_stands_in_every_panel(module, tmp_path, oracle):
    gains = {oracle if arm == "oracle" else arm: points for arm, points in GAINS.items()}
    folder = write_results(tmp_path / "results" / "one", records(gains=gains), with_page=False)
    colour = module("_style").FAMILIES[oracle][1]
    panels = [axis for axis in module("accuracy_by_rate").draw(folder).axes if axis.lines]
    assert panels
    assert all(colour in [line.get_color() for line in axis.lines] for axis in panels)


def test_no_two_depths_of_a_suite_have_the_same_line(module):
    for name in SUITES:
        depths = {depth for line in lines(load_suite(name).arms) for depth in line.depths}
        styles = module("_style").line_styles(depths)
        assert len({styles[depth] for depth in depths}) == len(depths), name


def test_an_ablation_joins_depths_whatever_factor_the_arms_are_named_by(module, tmp_path):
    here = {"naive": (0, 0, 0), "oracle": (5, 4, 6), "known_x2": (2, 1, 3), "known_x4": (1, 1, 1)}
    there = {**here, "known_x2": (3, 2, 4), "known_x4": (4, 3, 5)}
    names = {"known_x2": "known_x1.4", "known_x4": "known_x2"}  # what the depths 1 and 2 are called at r = 0.7
    runs = records(dataclasses.replace(MLP, ratio=0.7), there)
    runs = [run.model_copy(update={"arm": names.get(run.arm, run.arm)}) for run in runs]
    described = [*map(described_as, here), {**described_as("known_x2"), "name": "known_x1.4"}]
    results = write_results(
        tmp_path / "results" / "r", [*records(MLP, here), *runs], described=described, with_page=False
    )
    axis = module("ablation").draw(results).axes[-1]
    lines = {tuple(line.get_ydata().round(6)) for line in axis.lines if line.get_marker() != "None"}
    assert lines == {(5, 5), (2, 3), (1, 4)}
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.5\n×2, ×4", "0.7\n×1.4, ×2"]


def test_an_ablation_has_a_panel_for_what_varies_alone(module, several_cells, axes):
    assert "neither S nor r" in words(module("ablation").draw(several_cells))
    figure = module("ablation").draw(axes)
    assert [axis.get_xlabel().split()[0] for axis in figure.axes if axis.lines] == ["length", "ratio"]


def test_what_lies_beyond_an_axis_is_told_inside_it(module):
    axis = Figure().add_subplot()
    axis.set_xlim(-1, 1)
    module("_style").draw_bar(axis, 0, pd.Series({"difference": -5.0, "low": -7.0, "high": 0.5}), ("", "black", "o"))
    arrow, (left, right) = axis.lines[-1], axis.get_window_extent().intervalx
    assert left < arrow.get_transform().transform((-1, 0))[0] < right
    assert [text.get_text() for text in axis.texts] == ["−5.0"]


def test_arms_of_which_some_runs_diverged_do_not_set_the_axis(module):
    script, arms = module("accuracy_by_arm"), ["naive", "known_x2", "known_x8", "placebo_x8", "shrink_x8"]
    gains = np.array([0.0, 0.5, -44, -44, -6])
    index = pd.MultiIndex.from_product([["tuned"], arms], names=["policy", "arm"])
    bars = {"difference": gains, "low": gains - 0.5, "high": gains + 0.5, "accuracy": 44 + gains}
    bars["failed"] = [0, 0, 8, 8, 1]
    rows = pd.DataFrame({"label": arms, "family": "known", "arm": arms})
    figure, axis = plt.subplots()
    script.draw_cell(axis, pd.DataFrame(bars, index=index), rows, {})
    low, high = axis.get_xlim()
    assert -2 < low < 1 <= high
    assert [text.get_text() for text in axis.texts] == [f"\N{MINUS SIGN}{gain}" for gain in ("44.0", "44.0", "6.0")]
    plt.close(figure)


def test_no_two_families_of_a_panel_have_the_same_colour_and_line(module, repository):
    style = module("_style")
    for file in sorted((repository / "results").glob("*/*/suite.json")):
        arms = style.arms_of(file.parent)
        for some in (arms, arms[arms["depth"] > 0], arms[arms["depth"] == 0]):
            blocks = style.blocks_of(some)
            colours = style.dealt(arms, blocks).drop_duplicates("family").set_index("family")["colour"]
            for _, families in blocks:
                looks = [(colours[family], style.dashed(family, "-")) for family in families]
                assert len(set(looks)) == len(looks), file


def test_a_bar_over_some_of_the_trajectories_says_of_how_many_it_is(module, one_cell, tmp_path):
    steps = pd.read_csv(one_cell / "steps.csv")
    lost = (steps["predictor"] == "known") & (steps["depth"] == 2) & (steps["trajectory"] == steps["trajectory"][0])
    (tmp_path / "suite.json").write_bytes((one_cell / "suite.json").read_bytes())
    steps[~lost].to_csv(tmp_path / "steps.csv", index=False)
    axis = module("step_decomposition").draw(tmp_path).axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert [label for label in labels if "n = " in label] == [f"KNOWN ×4 (n = {steps['trajectory'].nunique() - 1})"]


def test_an_axis_grows_for_an_interval_that_is_near_alone(module):
    widened = module("_style").widened
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


@pytest.mark.parametrize("kept", [3, 1, 0])
def test_a_trajectory_on_which_known_is_not_finite_is_drawn_without_and_says_so(module, one_cell, tmp_path, kept):
    table = pd.read_csv(one_cell / "landscape.csv")
    table.drop(table.index[table["kind"] == "known"][kept:]).to_csv(tmp_path / "landscape.csv", index=False)
    figure = module("landscape").draw(tmp_path)
    said = " ".join(" ".join(text.get_text() for text in figure.texts).split())  # lines are broken anywhere
    assert ("not finite" in said) == (kept < 3)
    named = [text.get_text() for axis in figure.axes for text in axis.texts if "×" in text.get_text()]
    assert len(named) == kept


def test_labels_lie_apart_and_go_up_no_further_than_they_have_to(module):
    landscape = module("landscape")
    wide, high = landscape.LABEL
    places = np.array([[0, 0], [1, 3], [-2, 4], [3 * wide, 4], [0, 90]])
    up = landscape.apart(places)
    assert list(up) == [0, high - 3, 2 * high - 4, 0, 0]


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


def test_the_front_picture_has_a_panel_for_every_network_and_rate_policy_that_was_run(module, tmp_path):
    front = module("_evidence")
    for count, name in enumerate(("core/plaincnn", "core/resnet8"), start=1):
        runs = records(dataclasses.replace(MLP, network=name[5:]), trajectories=2)
        write_results(tmp_path / name, runs, with_page=False)
        figure = front.draw(tmp_path)
        assert len(figure.axes) == 2 * count
        assert all(name[5:] in axis.get_title(loc="left") for axis in figure.axes[-2:])


def test_the_front_picture_shows_every_cell_and_which_of_them_are_in_no_verdict(module, tmp_path):
    front = module("_evidence")
    gains = {**GAINS, "local_oracle": (2, 2, 3, 2, 2), "compute_matched": (1, 1, 1, 1, 1)}
    write_results(tmp_path / "core/plaincnn", records(MLP, gains, 5), with_page=False)
    nothing = {**gains, "oracle": (0, 0, 0, 0, 0)}
    other = dataclasses.replace(MLP, source="digits:5-9", target="digits:0-4")
    write_results(tmp_path / "core/imagenette", records(other, nothing, 5), with_page=False)
    (tuned,) = (axis for axis in front.draw(tmp_path).axes if "tuned" in axis.get_title(loc="left"))
    marks = [line for line in tuned.lines if len(line.get_xdata()) == 1 and line.get_marker() == "o"]
    means = {"full": [], "hollow": []}
    for mark in marks:
        means["hollow" if mark.get_markerfacecolor() == "white" else "full"].append(
            round(float(mark.get_xdata()[0]), 6)
        )
    # data gap, local data gap, KNOWN x2, compute-matched, and the linear step, which is TaskVector
    assert means == {"full": [5.0, 1.2, 2.0, 1.0, 0.0], "hollow": [0.0, 1.2, 2.0, 1.0, 0.0]}


def test_the_front_picture_is_drawn_with_the_figures_of_a_main_suite(module, repository, tmp_path):
    folder = write_results(tmp_path / "core/plaincnn", records(trajectories=2), with_page=False)
    suite = json.loads((folder / "suite.json").read_text())
    (folder / "suite.json").write_text(json.dumps({**suite, "name": "core/plaincnn", "figures": []}))
    runpy.run_path(str(repository / "paper_figures" / "__main__.py"))["main"](folder)
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {f"{name}.{kind}" for name in ("evidence", "pooled") for kind in ("png", "svg")}


def test_the_pooled_picture_has_the_mean_of_every_informative_cell_and_the_pooled_interval(module, tmp_path):
    gains = {**GAINS, "local_oracle": (2, 2, 3, 2, 2), "compute_matched": (1, 1, 1, 1, 1)}
    better, nothing = {**gains, "known_x2": (3, 4, 5, 4, 4)}, {**gains, "oracle": (0, 0, 0, 0, 0)}
    back = dataclasses.replace(MLP, source="digits:5-9", target="digits:0-4")
    for name, cell, own in (
        ("core/plaincnn", MLP, gains),
        ("core/imagenette", back, better),
        ("core/resnet8", CNN, nothing),  # not informative
    ):
        write_results(tmp_path / name, records(cell, own, 5), name=name, evidence=True, with_page=False)
    (axis,) = module("_pooled").draw(tmp_path).axes
    row = [label.get_text() for label in axis.get_yticklabels()].index("ours")
    marks = [line for line in axis.lines if len(line.get_xdata()) == 1 and abs(line.get_ydata()[0] - row) < 0.5]
    found = {style: sorted(float(m.get_xdata()[0]) for m in marks if m.get_marker() == style) for style in "oD"}
    assert found == {"o": pytest.approx([2, 4]), "D": pytest.approx([3])}


def test_the_figure_of_what_compute_buys_shows_every_gain_by_its_budget_beside_the_data_gap(module, tmp_path):
    gains = {
        ("theta_0", "forgetting"): 0,
        ("further", "forgetting"): 2,
        ("further", "x3"): 4,
        ("soup", "forgetting"): -1,
    }
    rows = [
        {"network": network, "budget": budget, "attempt": attempt, "trajectory": f"e{k}", "learning_rate": 1e-3}
        | {"fine_tune": 0, "validation_accuracy": (40 + k + gain * (1 + 0.1 * k)) / 100}
        for network in ("plaincnn", "resnet8")
        for (attempt, budget), gain in gains.items()
        for k in range(3)
    ]
    (tmp_path / "explored").mkdir()
    pd.DataFrame(rows).to_csv(tmp_path / "explored" / "targets.csv", index=False)
    write_results(tmp_path / "core/plaincnn", records(MLP, trajectories=5), with_page=False)
    both, plain, other = module("_compute").draw(tmp_path).axes
    for axis, bands in ((both, 0), (plain, 1), (other, 0)):
        marks = [line for line in axis.lines if len(line.get_xdata()) == 1 and line.get_marker() in "osD"]
        places = sorted((round(float(line.get_xdata()[0]), 6), round(float(line.get_ydata()[0]), 6)) for line in marks)
        assert places == [(-1.1, 0.75), (2.2, -0.25), (4.4, 0.25)]
        assert len(axis.patches) == bands


@pytest.fixture(scope="module")
def locked(repository) -> None:
    """Skips where a library that decides about the bytes of a figure is not the one of requirements.lock."""
    lock = (repository / "requirements.lock").read_text().split()
    own = [f"{name}=={version(name)}" for name in ("matplotlib", "numpy", "pandas", "scipy")]
    if others := [name for name in own if name not in lock]:
        pytest.skip(f"figures may have other bytes with {', '.join(others)}, which requirements.lock does not name")


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.relative_to(RESULTS).as_posix())
def test_the_committed_figures_are_those_that_are_drawn_today(module, locked, folder, tmp_path):
    for script in json.loads((folder / "suite.json").read_text())["figures"]:
        module("_style").save(module(script).draw(folder), tmp_path, script, kinds=("svg",))
        assert (tmp_path / f"{script}.svg").read_bytes() == (folder / "figures" / f"{script}.svg").read_bytes(), script


def test_the_committed_figures_of_all_results_are_those_that_are_drawn_today(module, locked, tmp_path):
    for script, place in module("__main__").FRONT.items():
        module("_style").save(module(script).draw(RESULTS), tmp_path, script, kinds=("svg",))
        assert (tmp_path / f"{script}.svg").read_bytes() == RESULTS.joinpath(f"{place}.svg").read_bytes(), script
