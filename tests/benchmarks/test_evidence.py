"""Verdicts: the rule on intervals made by hand, and on records whose answers are known."""

import dataclasses
import math

import pydantic
import pytest
from synthetic import TINY, records, write_results

from benchmarks.report import render
from benchmarks.report.claims import CLAIMS, Claims, Contrast, Side
from benchmarks.report.evidence import Evidence, Verdict, costs, together, verdict
from benchmarks.report.folders import COST, load_all
from benchmarks.report.statistics import Interval, paired_t
from benchmarks.settings import Cell
from benchmarks.suite import load_suite

MLP = Cell("overflow", "cifar100", "cifar10_15k", "mlp", 1.0)
RESNET = dataclasses.replace(MLP, network="resnet8")
STEADY = {"naive": (0, 0, 0, 0, 0), "scratch": (-5, -6, -7, -6, -5), "oracle": (4, 6, 5, 5, 5)}
GOOD = {
    **STEADY,
    "known_x2": (1, 1.2, 0.8, 1, 1),
    "known_x4": (1.5, 1.5, 1.4, 1.6, 1.5),
    "known_x8": (2, 2.2, 1.8, 2, 2),
}
X8 = Contrast(better="known_x8", worse="naive")


@pytest.fixture
def publish(tmp_path):
    """Function that writes suites, name to cells with gains, and gives the folder."""

    def write(suites: dict[str, dict[Cell, dict]], *, evidence: bool = True, forgotten=None):
        for name, cells in suites.items():
            runs = [run for cell, gains in cells.items() for run in records(cell, gains, 5)]
            write_results(tmp_path / name, runs, evidence=evidence, forgotten=forgotten, with_page=False)
        return tmp_path

    return write


@pytest.fixture
def main(publish):
    """Function that publishes both suites of the primary contrasts: these cells, and one that fails a gate."""
    uninformative = {RESNET: {**GOOD, "oracle": (0, 1, -1, 0, 0), "known_x8": (9, 9, 9, 9, 8)}}
    return lambda cells, **options: publish({"cpu/plaincnn": cells, "cpu/resnet8": uninformative}, **options)


def evidence_of(results) -> Evidence:
    return Evidence(load_all(results))


def page(results) -> str:
    published = load_all(results)
    return render.claims_page(Evidence(published), costs(published))


def front_rows(results) -> list[list[str]]:
    """The first table of the front page: every claim with its two verdicts."""
    published = load_all(results)
    text = render.front_page([], Evidence(published), costs(published))
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]


def row(text: str, first: str, heading: str) -> list[str]:
    """Entries of the row that begins so, in the section of that heading."""
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    (line,) = [line for line in section.splitlines() if line.startswith(f"| {first} |")]
    return [entry.strip() for entry in line.strip("|").split("|")]


@pytest.mark.parametrize(
    ("low", "high", "paper", "said"),
    [
        (0.1, 2.0, None, "reproduced"),
        (0.1, 2.0, 1.15, "reproduced"),
        (0.1, 1.0, 1.15, "positive, smaller than the paper"),
        (0.1, 0.3, None, "reproduced"),  # above 0, although below the margin
        (-0.1, 0.4, 1.15, "not reproduced"),
        (-3.0, -1.0, None, "not reproduced"),
        (-0.1, 0.5, 1.15, "inconclusive"),
        (0.0, 0.6, None, "inconclusive"),
        (-5.0, 5.0, 1.15, "inconclusive"),
        (math.nan, math.nan, 1.15, "open"),
    ],
)
def test_the_rule(low, high, paper, said):
    assert verdict(Interval((low + high) / 2, low, high, 8), paper) == said


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["reproduced", "reproduced"], "reproduced"),
        (["reproduced", "positive, smaller than the paper"], "positive, smaller than the paper"),
        (["reproduced", "inconclusive"], "inconclusive"),
        (["inconclusive", "not reproduced", "reproduced"], "not reproduced"),
        (["reproduced", "open"], "open"),
        ([], "open"),
    ],
)
def test_every_one_of_them_means_every_one(verdicts, said):
    assert together(verdicts) == said
    assert together(verdicts[::-1]) == said


def test_the_primary_contrasts_are_the_eight_of_the_rules():
    assert CLAIMS.primary.policy == "tuned"
    assert len({str(contrast) for contrast in CLAIMS.primary.contrasts}) == 8
    assert {contrast.better.arm for contrast in CLAIMS.primary.contrasts} == {"known_x8", "released_x8"}
    assert {c.worse.arm for c in CLAIMS.primary.contrasts if c.better.arm == "released_x8"} == {
        "naive",
        "shrink_released_x8",
        "linear_x8",
        "compute_matched",
    }


def test_without_evidence_every_claim_is_open(main):
    text = page(main({MLP: GOOD}, evidence=False))
    assert "every claim is open" in text
    assert "reproduced" not in text.split("## Primary")[1]


def test_a_clear_gain_is_reproduced_and_its_interval_is_the_paired_t(main):
    gains = {**GOOD, "shrink_x8": (2, 2.1, 1.9, 2, 2), "linear_x8": (-1, -1.2, -0.8, -1, -1)}
    gains["compute_matched"] = (3, 1, 2, 3, 0)
    text = page(main({MLP: gains}))
    expected = paired_t([2, 2.2, 1.8, 2, 2])
    shown = f"+2.00 [+{expected.low:.2f}, +{expected.high:.2f}]"
    assert row(text, "known_x8 - naive", "Primary contrasts")[1:] == [shown, "5", "< 0.001", "reproduced"]
    assert row(text, "known_x8 - shrink_x8", "Primary contrasts")[-1] == "not reproduced"
    assert row(text, "known_x8 - compute_matched", "Primary contrasts")[-1] == "inconclusive"
    assert row(text, "released_x8 - naive", "Primary contrasts")[1:] == ["-", "0", "-", "open"]
    judged = row(text, "known_x8 - naive", "KNOWN (ours) beats naive fine-tuning")
    assert judged[1] == "+1.15"
    assert judged[-1] == "reproduced"
    assert judged[2].startswith("+1.00")  # at the published rate every gain is a point less
    beside = "`known_x8` - `shrink_x8`: +0.00 [-0.09, +0.09]; statistically indistinguishable from shrinking theta_0 by"
    assert beside in text
    direct = text.split("## KNOWN (ours) beats direct weight prediction, every one")[1].split("##")[0]
    assert "known_x8 - linear_x8" in direct
    assert "Verdict: **reproduced** at published rates; **reproduced** at tuned rates." in direct


def test_until_all_of_the_main_suites_are_there_their_verdicts_are_open(publish, main):
    half = page(publish({"cpu/plaincnn": {MLP: GOOD}}))
    assert "Not run yet: cpu/resnet8." in half
    whole = page(main({MLP: GOOD}))
    for heading in ("Primary contrasts", "KNOWN (ours) beats naive fine-tuning"):
        before, after = (row(text, "known_x8 - naive", heading) for text in (half, whole))
        assert (before[-1], after[-1]) == ("open", "reproduced")
        assert "+2.00 [+1.82, +2.18]" in before  # the numbers are shown


def test_networks_that_disagree_are_shown_one_by_one(publish):
    bad = {**GOOD, "known_x2": (0, 0, 0, 0, 0), "known_x8": (-2, -2.2, -1.8, -2, -2)}
    results = publish({"cpu/plaincnn": {MLP: GOOD}, "cpu/resnet8": {RESNET: bad}})
    heading = "KNOWN (ours): the gain grows with recursion"
    alone = page(results).split(f"## {heading}\n")[1].split("\n## ")[0].split("By network")[1]
    verdicts = {
        row.split(" | ")[1]: row.strip("| ").split(" | ")[-1] for row in alone.splitlines() if "known_x8" in row
    }
    assert verdicts == {"mlp (cifar100)": "reproduced", "resnet8 (cifar100)": "not reproduced"}
    rows = front_rows(results)
    place = next(k for k, row in enumerate(rows) if row[0] == heading)
    assert [row[-1] for row in rows[place + 1 : place + 3]] == list(verdicts.values())


def test_the_front_page_says_what_the_claims_say(main):
    results = main({MLP: {**GOOD, "linear_x8": (-1, -1.2, -0.8, -1, -1)}})
    said = {claim: tuple(verdicts) for claim, *verdicts in front_rows(results)}
    text = page(results)
    for claim in CLAIMS.claims:
        section = text.split(f"## {claim.name}\n")[1].split("\n## ")[0]
        published, tuned = said[claim.name]
        assert f"**{published}** at published rates; **{tuned}** at tuned rates" in section or "No such arm" in section
    assert said["KNOWN (ours) beats naive fine-tuning"][1] == "reproduced"
    assert said["KNOWN (authors' networks) beats naive fine-tuning"] == ("open", "open")


@pytest.mark.parametrize(
    ("seconds", "networks", "said"),
    [(0.1, ("a", "b"), "reproduced"), (1.5, ("a", "b"), "not reproduced"), (0.1, ("a",), "open")],
)
def test_a_prediction_is_cheap_beside_training_on_all_main_networks(main, seconds, networks, said):
    results = main({MLP: GOOD})
    for suite, network in zip(("cpu/plaincnn", "cpu/resnet8"), networks, strict=False):
        rows = [f"c,{network},overflow,0.5,5,1000,100,known_{x},1.3,{s},8" for x, s in (("x2", 0.01), ("x8", seconds))]
        (results / suite / "cost_by_arm.csv").write_text("\n".join([",".join(COST), *rows, ""]))
    assert f"Verdict: **{said}**." in page(results).split("## Predicting is cheap")[1].split("\n## ")[0]


def pooled_verdicts(text: str, contrast: str) -> list[str]:
    """The verdicts at tuned rates of all rows that pool a contrast over networks, wherever they stand on a page."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {contrast} | ")]
    return [row[-1] for row in rows if " (cifar100)" not in row[1]]  # a row of one network names it


WEAK = (0.4, 1.8, 0.7, 1.3, 0.5)
"""A gain whose interval just excludes 0, so that Holm's correction decides."""
OTHERS = {"shrink_x8": (0, 0, 1, 0, 1), "linear_x8": (0, 1, 0, 1, 0), "compute_matched": (1, 0, 1, 1, 0)}


@pytest.mark.parametrize(
    ("gain", "others", "said"),
    [
        (WEAK, {}, "reproduced"),
        (WEAK, OTHERS, "inconclusive"),
        ((0.4, 0.5, 0.6, 0.5, 0.5), OTHERS, "positive, smaller than the paper"),
        ((-1, -2, -1, -1, -2), OTHERS, "not reproduced"),
    ],
)
def test_a_primary_contrast_has_one_verdict_wherever_it_is_printed(main, gain, others, said):
    results = main({MLP: {**GOOD, "known_x8": gain, **others}})
    evidence, text = evidence_of(results), page(results)
    assert 0.01 < evidence.judge(X8, "tuned").p < 0.05 or gain != WEAK
    assert pooled_verdicts(text, "known_x8 - naive") == [said, said]
    for contrast in CLAIMS.primary.contrasts:
        printed = pooled_verdicts(text, str(contrast))
        assert set(printed) == {evidence.judge(contrast, "tuned").verdict}
        judged = evidence.judge(contrast, "tuned")
        assert judged.sign == 0 or judged.corrected < CLAIMS.significance
    assert len(pooled_verdicts(text, "known_x8 - linear_x8")) == 1 + bool(others)


def test_holms_correction_also_decides_what_is_said_beside_a_control(main):
    shrink = [gain - more for gain, more in zip(GOOD["known_x8"], WEAK, strict=True)]
    noise = {"linear_x8": (1, 3, 2, 2, 2.5), "compute_matched": (3, 1, 2, 2, 2.5)}
    few = page(main({MLP: {**GOOD, "shrink_x8": shrink}}))
    many = page(main({MLP: {**GOOD, "shrink_x8": shrink, **noise}}))
    assert "; more than shrinking theta_0 by as much" in few
    assert "; statistically indistinguishable from shrinking theta_0 by as much" in many


def test_the_rule_is_not_corrected_at_other_rates_or_in_other_suites(main):
    evidence = evidence_of(main({MLP: {**GOOD, "known_x8": WEAK, **OTHERS}}))
    for judged in (evidence.judge(X8, "published"), evidence.judge(X8, "tuned", "all")):
        assert math.isnan(judged.corrected)
    by_cell = evidence.by_cell(X8, "tuned")
    assert {judged.verdict for (counts, _), judged in by_cell.items() if counts} == {Verdict.REPRODUCED}


@pytest.mark.parametrize("failed", ["oracle", "scratch", "forgetting"])
def test_a_cell_that_fails_a_gate_enters_nothing(main, failed):
    gains = {**GOOD} if failed == "forgetting" else {**GOOD, failed: (0, 1, -1, 0, 0)}
    cells = {MLP: GOOD, RESNET: {**gains, "known_x8": (9, 9, 9, 9, 8)}}
    forgotten = {"resnet8": (1, -1, 0, 0, 0)} if failed == "forgetting" else None
    evidence = evidence_of(main(cells, forgotten=forgotten))
    assert sorted(evidence.informative.values()) == [False, False, True]
    interval, expected = evidence.judge(X8, "tuned").interval, paired_t([2, 2.2, 1.8, 2, 2])
    assert dataclasses.astuple(interval) == pytest.approx(dataclasses.astuple(expected))


def test_networks_are_pooled_and_each_counts_once(main):
    cells = {MLP: GOOD, RESNET: {**GOOD, "known_x8": (6, 6.2, 5.8, 6, 6)}}
    interval = evidence_of(main(cells)).judge(X8, "tuned").interval
    assert (interval.mean, interval.n) == (pytest.approx(4.0), 10)


def test_targets_of_one_trajectory_are_no_replicates(main):
    other = dataclasses.replace(MLP, target="mnist")
    evidence = evidence_of(main({MLP: GOOD, other: {**GOOD, "known_x8": (4, 4.2, 3.8, 4, 4)}}))
    interval = evidence.judge(X8, "tuned").interval
    assert (interval.mean, interval.n) == (pytest.approx(3.0), 5)


def test_a_trajectory_in_several_suites_counts_once(publish):
    shares = {MLP: GOOD, dataclasses.replace(MLP, share=0.5): GOOD}
    half = Contrast(better=Side(arm="known_x8", share=0.5), worse="naive")
    one, two = (evidence_of(publish(suites)).judge(half, "tuned", "all") for suites in ({"a": shares}, {"b": shares}))
    assert one == two
    assert one.interval.n == 5


def test_half_of_the_target_is_compared_with_all_of_it(publish):
    half = dataclasses.replace(MLP, share=0.5)
    low = {arm: [gain - 1.5 for gain in gains] for arm, gains in GOOD.items()}
    text = page(publish({"wide": {MLP: GOOD, half: low}}))
    heading = "KNOWN (ours): half of the target with it matches all of the target without"
    assert row(text, "known_x8 at 50 % of the target - naive", heading)[5].startswith("+0.50")


def test_other_values_of_r_and_the_other_track_stay_out_of_the_pool(main):
    loud = {**GOOD, "known_x8": (9, 9, 9, 9, 8)}
    cells = {
        MLP: GOOD,
        dataclasses.replace(MLP, ratio=0.33): loud,
        dataclasses.replace(MLP, track="retrodiction"): loud,
    }
    evidence = evidence_of(main(cells))
    interval, expected = evidence.judge(X8, "tuned").interval, paired_t([2, 2.2, 1.8, 2, 2])
    assert dataclasses.astuple(interval) == pytest.approx(dataclasses.astuple(expected))
    assert len(evidence.by_cell(X8, "tuned")) == 3


def test_ablations_and_repeated_cells_do_not_count_as_networks_and_data(tmp_path):
    other = dataclasses.replace(MLP, network="plaincnn")
    bad = {**GOOD, "known_x8": (-2, -2.2, -1.8, -2, -2)}
    ablations = {dataclasses.replace(MLP, **change): bad for change in ({"share": 0.5}, {"length": 3}, {"ratio": 0.33})}
    cells = {"cpu/plaincnn": {MLP: GOOD}, "wide/again": {MLP: GOOD, **ablations}, "wide/network": {other: GOOD}}
    for name, found in cells.items():
        write_results(
            tmp_path / name, [r for c, g in found.items() for r in records(c, g, 5)], evidence=True, with_page=False
        )
    longer = load_suite(str(TINY)).model_dump(mode="json")["pretraining"] | {"epochs": 99}
    runs = records(dataclasses.replace(MLP, network="vit_tiny"), bad, 5)
    write_results(tmp_path / "wide/longer", runs, evidence=True, with_page=False, pretraining=longer)
    counted = [place for counts, place in evidence_of(tmp_path).by_cell(X8, "tuned") if counts]
    assert counted == [f"cpu/plaincnn: {MLP.slug}", f"wide/network: {other.slug}"]
    text = page(tmp_path)
    assert "`known` at tuned rates: **reproduced**" in text
    assert text.count("| `known` ablation, wide/") == 4


def test_a_longer_history_is_compared_on_the_same_trajectories(publish):
    short = dataclasses.replace(MLP, length=3)
    text = page(publish({"lengths": {MLP: GOOD, short: {**GOOD, "known_x8": (1, 1.1, 0.9, 1, 1)}}}))
    assert row(text, "known_x8 - known_x8, S = 3", "KNOWN (ours): a longer history helps")[5].startswith("+1.00")
    assert "Verdict: **open**" in text.split("a longer history helps")[1]  # the other lengths were not run


# claims.yaml


def test_every_number_of_the_paper_is_that_of_its_tables():
    gains = {
        ("known_x2", "naive"): 0.60,
        ("released_x8", "naive"): 1.15,
        ("known_x8", "known_x2"): 0.55,
        ("known_x8", "linear_x8"): None,
    }
    for (better, worse), gain in gains.items():
        found = CLAIMS.paper_gain(Contrast(better=better, worse=worse))
        assert found == (None if gain is None else pytest.approx(gain))
    half = Contrast(better={"arm": "known_x8", "share": 0.5}, worse="naive")
    assert CLAIMS.paper_gain(half) == pytest.approx(0.71)
    assert str(half) == "known_x8 at 50 % of the target - naive"


def test_a_key_that_is_misspelt_is_refused():
    data = CLAIMS.model_dump()
    assert Claims.model_validate(data) == CLAIMS
    with pytest.raises(pydantic.ValidationError, match="margins"):
        Claims.model_validate({**data, "margins": 1})
