"""Pages and records: tables say what the rows say, a page that does not fit is found, broken rows are named."""

import dataclasses
import random
import re
import shutil
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
import pytest
from planted_results import (
    CNN,
    GAINS,
    MLP,
    SUITES,
    change_csv,
    described_as,
    record,
    records,
    run,
    table_row,
    write_results,
)

from benchmarks.records import PilotRecord, RunRecord, read_records, write_records
from benchmarks.report import publish as report
from benchmarks.report.claims import CLAIMS
from benchmarks.report.evidence import DAGGER, DIVERGED, DIVERGED_NOTE, SEEN_NOTE
from benchmarks.report.folders import COST, GROUPS, load, load_all
from benchmarks.report.render import cost_page, front_pages, suite_page
from benchmarks.report.statistics import Interval
from benchmarks.report.tables import every_cell, signed
from benchmarks.report.template import fill, markdown
from benchmarks.suite import load_suite
from know import files
from know.errors import KnowError


@pytest.fixture
def page(tmp_path):
    """Function that writes a suite's folder and returns its page."""

    def write(runs=None, **settings) -> str:
        folder = write_results(tmp_path / "results" / "made", records() if runs is None else runs, **settings)
        return (folder / "README.md").read_text(encoding="utf-8")

    return write


@pytest.fixture
def results(published, tmp_path) -> Path:
    """A copy of them that may be changed."""
    return Path(shutil.copytree(published, tmp_path / "results"))


# texts


def test_an_end_of_an_interval_shows_on_which_side_of_0_it_lies():
    assert signed(Interval(-0.001, -0.4, -0.003, 5)) == "+0.00 [-0.40, -0.00]"
    assert signed(Interval(-1e-12, -1e-12, 0.003, 5)) == "+0.00 [+0.00, +0.00]"
    sums = [0.855 + 3e-16, 0.855 - 3e-16]  # the same mean, summed in two orders
    assert len({signed(Interval(mean, 0, 1, 5)) for mean in [*sums, *map(np.float64, sums)]}) == 1


# templates


def test_a_table_in_markdown_has_the_entries_and_no_padding():
    table = pd.DataFrame([["a", "1.0", "open"], ["longer", "", "0.10"]], columns=["arm", "gain", "verdict"])
    expected = ["| arm | gain | verdict |", "|---|---:|---|", "| a | 1.0 | open |", "| longer |  | 0.10 |"]
    assert markdown(table).splitlines() == expected
    assert markdown(table, left=2).splitlines()[1] == "|---|---|---|"


def test_a_value_that_a_template_lacks_is_an_error_and_not_a_gap_in_the_page():
    with pytest.raises(jinja2.UndefinedError, match="suites"):
        fill("cost.md.j2", paper=CLAIMS.paper)


# what the tables say


def test_differences_intervals_and_shares_are_right(page):
    # Gains 1, 3, 2: mean 2, standard error 1 / sqrt 3, t of 2 degrees of freedom 4.3027, hence 2 -+ 2.48.
    # Over the oracle's 4, 6, 5: both variances and the covariance of the means are 1/3, t^2 / 3 = 6.171, and Fieller's
    # (25 - 6.171) x^2 - 2 (10 - 6.171) x + 4 - 6.171 = 0 has the roots -0.192 and 0.599.
    text = page()
    expected = ["known_x2", "73.00", "+1.00 [-1.48, +3.48]", "84.00", "+2.00 [-0.48, +4.48]", "0.40 [-0.19, 0.60]", "-"]
    assert table_row(text, "known_x2") == [*expected, "0.0016", "0.250", "90.00", "92.00"]
    assert table_row(text, "naive") == ["naive", "72.00", "", "82.00", "", "", "", "0.0016", "0.000", "90.00", "92.00"]
    # gains that are all equal have an interval of no width; its ratio to the oracle's gain still has one
    assert table_row(text, "known_x4")[4] == "+2.00 [+2.00, +2.00]"


@pytest.mark.parametrize("oracle", [(4, 6, 5), (-4, 6, 5), (0, 0, 0), (5, -5, 0)])
def test_the_gap_is_given_where_it_is_defined_and_nowhere_else(page, oracle):
    row = table_row(page(records(gains={**GAINS, "oracle": oracle})), "known_x2")
    assert row[5] == ("0.40 [-0.19, 0.60]" if oracle == (4, 6, 5) else "-")


def test_arms_stand_under_the_headings_of_their_groups(page):
    rows = page().split(f"## {MLP.track}:")[1].split("\n\n")[1].splitlines()
    place = {row.split(" | ")[0].strip("| "): k for k, row in enumerate(rows)}
    headings = [name for name in place if name.startswith("**")]
    assert headings == ["**References**", "**KNOWN**", "**Direct weight prediction**", "**Averages**", "**Controls**"]
    of = {name: max((h for h in headings if place[h] < k), key=place.get) for name, k in place.items() if name in GAINS}
    assert of == {arm: f"**{GROUPS[described_as(arm)['group']]}**" for arm in GAINS}


def test_means_within_the_intervals_of_random_steps_are_marked(page):
    """Those of KNOWN's size have the intervals 0 -+ 2.48 and 0.5 -+ 0; one of another size is no part of the band."""
    gains = {**GAINS, "random_step_x8": (0, -1, 1), "known_x8": (2.6, 2.4, 2.5)}
    gains |= {"random_step_b_x8": (0.5, 0.5, 0.5), "random_step_released_x8": (-9, 9, 0)}
    arms = [described_as(arm) for arm in gains]
    for arm in arms:
        if arm["name"].startswith("random_step"):
            arm |= {"predictor": "random_step", "options": {"of": "released"} if "released" in arm["name"] else {}}
    text = page(records(gains=gains), described=arms).split("## What each arm is")[0]
    marked = {name for name in gains if name != "naive" and table_row(text, name)[4].endswith(" ≈")}
    assert {"known_x2", "linear_x2", "rre", "random_step_x8", "random_step_b_x8", "random_step_released_x8"} <= marked
    assert not marked & {"oracle", "scratch", "known_x8"}
    assert not any("≈" in line for line in page().splitlines() if line.startswith("|"))  # there is no band


def test_weight_errors_stand_where_the_truth_exists(page):
    assert "weight error |" not in page(records(MLP))
    assert table_row(page(records(CNN)), "known_x2")[-1] == "1.00"


def test_diverged_runs_are_counted_and_a_rate_on_the_edge_is_marked(page):
    changed = {"status": "diverged", "on_edge": True, "learning_rate": 0.0064}
    other = [r.model_copy(update=changed if r.arm == "known_x2" and r.policy == "tuned" else {}) for r in records()]
    row = table_row(page(other), "known_x2")
    assert (row[3], row[7]) == ("84.00 (3 diverged)", "0.0064*")
    assert "diverged)" not in page()


def test_an_arm_that_is_not_available_says_so_and_why(page):
    arms = [*map(described_as, GAINS), described_as("released_x8", "known")]
    text = page(described=arms, unavailable={MLP.slug: {"released_x8": "KNOW_REFERENCE is not set"}})
    assert "| released_x8 | not available |" in text
    assert table_row(text, "released_x8")[:2] == ["released_x8", "not available"]
    assert "Not available: `released_x8`: KNOW_REFERENCE is not set." in text


def test_what_an_incomplete_run_lacks_is_said_with_its_reason_and_nothing_else_changes(tmp_path):
    folder = write_results(tmp_path / "results" / "made", records())
    whole = (folder / "README.md").read_text(encoding="utf-8")
    lacking = [{"job": f"transfer/{CNN.slug}", "reason": "out of memory"}, {"job": "inspect", "reason": "cancelled"}]
    files.write_csv(folder / "failed.csv", lacking, ["job", "reason"])
    text = suite_page(load(folder))
    assert f"- `transfer/{CNN.slug}`: out of memory\n- `inspect`: cancelled\n" in text
    assert table_row(text, "known_x2") == table_row(whole, "known_x2")
    assert "![" not in text
    for heading in ("## What the steps are made of", "## Is there anything to extrapolate?"):
        assert text.split(heading)[1].split("##")[0].strip() == "Missing."
    (folder / "failed.csv").unlink()
    assert suite_page(load(folder)) == whole


def test_every_arm_is_described_once_with_its_reference(page):
    section = page().partition("## What each arm is")[2].partition("\n## ")[0]
    for arm in GAINS:
        lines = [line for line in section.splitlines() if f"`{arm}`" in line]
        assert len(lines) == 1, arm
        assert lines[0].endswith("(for the tests)"), lines


# what they must not claim


@pytest.mark.parametrize(
    ("gate", "gains", "forgotten"),
    [
        ("data gap: oracle > naive", {"oracle": (-1, 6, 5)}, {}),
        ("naive > scratch", {"scratch": (1, -6, -7)}, {}),
        ("forgetting: left-out images lose more than test images", {}, {"mlp": (-1, 1, 0)}),
    ],
)
def test_a_cell_that_fails_one_gate_is_uninformative_and_the_other_is_not(page, gate, gains, forgotten):
    text = page([*records(MLP, gains={**GAINS, **gains}), *records(CNN)], forgotten=forgotten)
    of_cell = dict(
        zip(("mlp", "plaincnn"), re.split(r"^## (?=overflow|retrodiction)", text, flags=re.M)[1:], strict=True)
    )
    assert "| together | uninformative | uninformative |" in of_cell["mlp"]
    assert set(re.findall(r"^\| ([^|]+) \|.*, failed \|$", of_cell["mlp"], flags=re.M)) == {gate}
    # without a local oracle nothing says that small steps could be seen
    assert "| together | passed; cannot see small steps | passed; cannot see small steps |" in of_cell["plaincnn"]
    assert of_cell["plaincnn"].count(", passed |") == 6  # three gates at two rate policies


def test_the_gates_are_judged_by_the_limits_of_the_intervals(page):
    # lost 4, 6, 5 points: mean 5 -+ 2.48
    assert "than test images | +5.00 [+2.52, +7.48], passed" in page()
    # positive on average, but not beyond chance
    assert "than test images | +1.33 [-3.84, +6.50], failed" in page(forgotten={"mlp": (-1, 2, 3)})


@pytest.mark.parametrize("evidence", [True, False])
def test_not_evidence_is_said_exactly_where_it_is_none(tmp_path, evidence):
    folder = write_results(tmp_path / "results" / "one", records(), evidence=evidence, remarks=["A remark."])
    for text in (
        (folder / "README.md").read_text(encoding="utf-8"),
        front_pages(load_all(tmp_path / "results"))["README.md"],
    ):
        assert ("Not evidence" in text) is not evidence
        assert "A remark." in text


@pytest.mark.parametrize("trajectories", [4, 5])
def test_few_trajectories_are_called_preliminary(page, trajectories):
    assert ("Preliminary" in page(records(trajectories=trajectories))) == (trajectories < 5)


def test_the_front_page_has_one_row_for_every_cell_that_is_evidence_with_the_numbers_of_its_suite(results):
    write_results(results / "three", [*records(MLP, trajectories=5), *records(CNN, trajectories=5)], evidence=True)
    table = every_cell(load_all(results))
    assert list(zip(table["suite"], table["source, target, network"], strict=True)) == [
        (f"[{suite}]({suite}/README.md)", f"digits:0-4 to digits:5-9, {cell}")
        for suite, cell in (
            ("three", "mlp"),
            ("three", "plaincnn, 50 % of the target, retrodiction"),
            ("two", "mlp"),
        )
    ]
    own = (results / "two" / "README.md").read_text(encoding="utf-8")
    *_, shown = list(table["KNOWN, ours \N{MULTIPLICATION SIGN}2"])
    assert table_row(own, "known_x2")[4] == shown
    assert set(table["gates"]) == {"passed; cannot see small steps"}
    assert set(table["local data gap"]) == {""}  # no arm of these suites says it


@pytest.mark.parametrize("diverges", [True, False])
def test_the_front_page_marks_differences_that_hold_diverged_fine_tunes(tmp_path, diverges):
    runs = records()
    if diverges:
        lost = next(place for place, run in enumerate(runs) if (run.arm, run.policy) == ("known_x2", "tuned"))
        runs[lost] = runs[lost].model_copy(update={"status": "diverged", "accuracy": 0.0})
    write_results(tmp_path / "results" / "one", runs, evidence=True)
    (row,) = every_cell(load_all(tmp_path / "results")).to_dict("records")
    marked = [what for what, shown in row.items() if str(shown).endswith(DIVERGED)]
    assert marked == (["KNOWN, ours \N{MULTIPLICATION SIGN}2"] if diverges else [])
    said = " ".join(front_pages(load_all(tmp_path / "results"))["README.md"].split())
    assert (DIVERGED_NOTE in said) == diverges


# what a page looks like

AWKWARD = {
    "plain": GAINS,
    # means of -0.00001 points: nothing rounds to a minus zero
    "almost nothing": {**GAINS, "known_x2": (-0.00001,) * 3, "linear_x2": (-0.004, 0.004, -0.00001)},
    "nothing at all": {arm: (0, 0, 0) for arm in GAINS},
    "no oracle": {arm: points for arm, points in GAINS.items() if arm != "oracle"},
    "naive alone": {"naive": GAINS["naive"]},
    "another's predictor": {**GAINS, "guess_x2": (1, 1, 2), "guess_x64": (2, 1, 2)},
}


@pytest.mark.parametrize("gains", AWKWARD.values(), ids=AWKWARD)
def test_pages_have_no_dates_paths_nan_or_minus_zero(tmp_path, gains):
    folder = write_results(tmp_path / "results" / "one", [*records(MLP, gains), *records(CNN, gains)])
    for text in (
        (folder / "README.md").read_text(encoding="utf-8"),
        front_pages(load_all(tmp_path / "results"))["README.md"],
    ):
        assert not re.search(r"\bnan\b|\binf\b|None", text)
        outside = re.sub(r"\[[^\]]*\]", "", text)  # an end of an interval shows its side of 0
        assert not re.search(r"-0(\.0*)?(?![\d.])", outside)
        assert not re.search(r"\b(19|20)\d\d-\d\d|\d\d:\d\d", text)
        assert not re.search(r"(^|[\s(`])/\w", text, flags=re.M)
        assert str(tmp_path) not in text


def test_the_tables_are_well_formed_and_the_lists_have_no_stray_points(page):
    text = page([*records(MLP), *records(CNN)])
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    # a line of a paragraph that begins with a sign of a list would become a point of its own
    assert not re.search(r"^ +[-*+] ", text, flags=re.M)


def test_what_the_page_links_to_is_in_the_folder(page, tmp_path):
    links = re.findall(r"(?<!!)\[[^]]*\]\(([^)#]+)\)", page())
    folder = tmp_path / "results" / "made"
    assert {"runs.csv", "pilots.csv", "suite.json"} <= {link for link in links if (folder / link).is_file()}
    assert {link for link in links if not (folder / link).is_file()} == set(report.UNVERSIONED)


@pytest.mark.parametrize(
    ("predictor", "options", "target", "seen"),
    [
        ("released", {}, "cifar10_15k", True),
        ("shrink", {"of": "released"}, "mnist", True),
        ("released", {}, "notmnist_small", False),
        ("released", {}, "cifar100:0-4", False),
        ("known", {}, "cifar10", False),
        ("shrink", {"of": "known"}, "mnist", False),
    ],
)
def test_rows_of_the_authors_networks_are_marked_where_they_have_seen_the_data(page, predictor, options, target, seen):
    cell = dataclasses.replace(MLP, target=target)
    described = [described_as(arm) for arm in GAINS]
    described = [
        {**arm, "predictor": predictor, "options": options} if arm["name"] == "known_x2" else arm for arm in described
    ]
    text = page(records(cell), described=described)
    rows = [line for line in text.splitlines() if line.startswith("| known_x2")]
    assert (DAGGER in rows[0]) == seen
    assert (SEEN_NOTE in text) == seen


def test_what_an_arm_costs_is_shown_beside_the_training_of_theta_0(tmp_path):
    folder = write_results(tmp_path / "results" / "one", records())
    (folder / "cost_by_arm.csv").write_text(
        ",".join(COST)
        + "\ndigits,mlp,overflow,0.5,5,1000,20,known_x2,1.5,0.004,8\ndigits,mlp,overflow,0.5,5,1000,20,naive,1,0,0\n"
    )
    text = cost_page(load_all(tmp_path / "results"))
    assert table_row(text, "known_x2")[1:] == ["1.50", "0.004", "4.0e-06", "0.02 %", "8.0"]
    assert table_row(text, "naive")[1:] == ["1.00", "", "", "", ""]
    assert "1,000 predicted weights; training theta_0 takes 20 s" in text


def test_a_page_does_not_depend_on_the_order_of_the_rows(page):
    runs = [*records(MLP), *records(CNN)]
    shuffled = random.Random(1).sample(runs, len(runs))
    assert page(runs) == page(shuffled)


# check


def test_what_was_written_passes_the_check(results):
    pages = ("one/README.md", "two/README.md", "README.md", "CLAIMS.md", "COST.md", "index.html")
    names = [f"{results}/{page}" for page in pages]
    assert report.check(results) == names


@pytest.mark.parametrize("changed", ["one/README.md", "two/README.md", "README.md", "index.html"])
def test_one_digit_changed_in_a_page_is_found(results, changed):
    path = results / changed
    text = path.read_text(encoding="utf-8")
    for digit in ("+2.00 [-0.48", "+2.00 [+1.12", '"runs":[[2'):
        text_with = path.read_text(encoding="utf-8").replace(digit, digit.replace("2", "3", 1), 1)
        path.write_text(text_with, encoding="utf-8")
    assert path.read_text(encoding="utf-8") != text
    with pytest.raises(KnowError, match=re.escape(f"{path} does not fit its records")):
        report.check(results)


def test_one_digit_changed_in_the_records_is_found(results):
    path = results / "two" / "runs.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(",0.83,", ",0.84,", 1), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != text
    with pytest.raises(KnowError, match=re.escape(f"{results}/two/README.md does not fit")):
        report.check(results)


def test_a_line_too_many_or_too_few_is_found(results):
    path = results / "one" / "README.md"
    text = path.read_text(encoding="utf-8")
    for other in (text + "More.\n", text[: text.rindex("!")], ""):
        path.write_text(other, encoding="utf-8")
        with pytest.raises(KnowError, match="does not fit"):
            report.check(results)


def test_the_check_changes_nothing(results, folder_bytes):
    (results / "one" / "README.md").write_text("Other.\n", encoding="utf-8")
    before = folder_bytes(results)
    with pytest.raises(KnowError):
        report.check(results)
    assert folder_bytes(results) == before


def test_a_suite_that_was_run_with_other_settings_than_its_file_has_is_found(results, monkeypatch):
    smoke = load_suite("smoke").model_dump(mode="json")
    for name, settings in (("one", smoke), ("two", smoke | {"pilots": 7})):
        path = results / name / "suite.json"
        files.write_json(path, files.read_json(path) | settings)
    report.write_pages(results)
    assert report.check(results)  # neither has a file
    monkeypatch.setattr(report, "load_suite", lambda name: load_suite("smoke"))
    monkeypatch.setattr(report, "suite_names", lambda: ["one"])
    assert report.check(results)
    monkeypatch.setattr(report, "suite_names", lambda: ["one", "two"])
    with pytest.raises(KnowError, match="two was run with pilots: 7, and its file has"):
        report.check(results)


def _shorten(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGED = {
    "suite.json lost": ("suite.json", lambda path: path.write_text("{}", encoding="utf-8")),
    "suite.json cut short": ("suite.json", _shorten),
    "runs.csv gone": ("runs.csv", lambda path: path.unlink()),
    "runs.csv empty": ("runs.csv", lambda path: path.write_text("", encoding="utf-8")),
    "trajectories.csv gone": ("trajectories.csv", lambda path: path.unlink()),
    "trajectories.csv empty": ("trajectories.csv", lambda path: path.write_text("", encoding="utf-8")),
    "steps.csv of other columns": ("steps.csv", lambda path: path.write_text("a,b\n1,2\n")),
}


@pytest.mark.parametrize(("file", "damage"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named_in_one_line(results, capsys, file, damage):
    damage(results / "one" / file)
    assert run("report", "--check", "--results", results) == 2
    error = capsys.readouterr().err
    assert error.startswith("know: error:")
    assert len(error.splitlines()) == 1
    assert f"one/{file}" in error


def test_a_mean_over_some_of_the_trajectories_says_of_how_many(results):
    steps = pd.read_csv(results / "one" / "steps.csv")
    one = steps.iloc[0]
    lost = (steps["predictor"] == one["predictor"]) & (steps["trajectory"] == one["trajectory"])
    steps[~lost].to_csv(results / "one" / "steps.csv", index=False)
    report.write_pages(results)
    page = (results / "one" / "README.md").read_text(encoding="utf-8").split("## What the steps are made of")[1]
    rows = [line for line in page.split("\n## ")[0].splitlines() if line.startswith("| ")]
    assert {line.split(" | ")[0].strip("| ") for line in rows if "(n = " in line} == {one["predictor"]}


@pytest.mark.slow
def test_the_committed_pages_fit_their_records(repository, monkeypatch, capsys):
    if not list((repository / "results").glob("*/suite.json")):
        pytest.skip("no committed results")
    monkeypatch.chdir(repository)
    assert run("report", "--check") == 0
    assert "results/README.md fits its records" in capsys.readouterr().out


def test_a_published_suite_says_of_itself_what_its_file_says(repository):
    """The pages are made from the records; a remark that is mended in the suite's file alone would stay wrong there."""
    found = {str(path.parent.relative_to(repository / "results")) for path in repository.glob("results/**/suite.json")}
    for name in sorted(found.intersection(SUITES)):
        said = files.read_json(repository / "results" / name / "suite.json")
        suite = load_suite(name)
        assert (said["title"], said["remarks"]) == (suite.title, suite.remarks), name


# records


def test_records_come_back_as_they_were_written(tmp_path):
    runs = [*records(MLP), *records(CNN)]
    write_records(tmp_path / "runs.csv", runs, RunRecord)
    table = read_records([tmp_path / "runs.csv"], RunRecord)
    back = [RunRecord(**{k: None if v != v else v for k, v in row.items()}) for row in table.to_dict("records")]
    assert sorted(map(repr, back)) == sorted(map(repr, runs))


def test_the_order_of_writing_leaves_no_trace(tmp_path):
    # the last two differ in their recipe alone: the tuned rate is the published one
    runs = [*records(), record(trajectory="t9", policy="short"), record(trajectory="t9", learning_rate=4e-4)]
    texts = set()
    for seed in range(5):
        write_records(tmp_path / "runs.csv", random.Random(seed).sample(runs, len(runs)), RunRecord)
        texts.add((tmp_path / "runs.csv").read_bytes())
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("accuracy", "1.5"),
        ("accuracy", "nan"),
        ("accuracy", ""),
        ("track", "overflown"),
        ("on_edge", "perhaps"),
    ],
)
def test_a_broken_row_is_named_by_file_line_and_column(tmp_path, column, value):
    path = tmp_path / "runs.csv"
    write_records(path, records(), RunRecord)
    change_csv(path, 4, **{column: value})  # the header is line 1
    with pytest.raises(KnowError, match=re.escape(f"{path}, line 6, column {column}: ")):
        read_records([path], RunRecord)


@pytest.mark.parametrize("header", ["remove", "add"])
def test_other_columns_are_refused(tmp_path, header):
    path = tmp_path / "pilots.csv"
    text = (
        "cell,trajectory,arm,fine_tune,learning_rate,status,validation_accuracy,validation_loss\nc,p0,a,0,1,ok,0.5,\n"
    )
    path.write_text(text, encoding="utf-8")
    assert len(read_records([path], PilotRecord)) == 1
    text = text.replace("status,", "").replace("ok,", "") if header == "remove" else text.replace("\n", ",more\n")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(KnowError, match=f"{path}, line 2, column {'status' if header == 'remove' else 'more'}"):
        read_records([path], PilotRecord)


def test_a_table_that_is_none_is_named(tmp_path):
    path = tmp_path / "runs.csv"
    for content in (b"", b"\xff\xfe\x00binary", b"a,b\n1,2,3\n4\n1,2,3,4,5\n"):
        path.write_bytes(content)
        with pytest.raises(KnowError, match=re.escape(str(path))):
            read_records([path], RunRecord)
    with pytest.raises(KnowError, match=r"gone\.csv does not exist"):
        read_records([tmp_path / "gone.csv"], RunRecord)
