"""Gates and verdicts: the rules on intervals made by hand, and on records with planted effects."""

import dataclasses
import math
import shutil

import pytest
from planted_results import records, write_results

from benchmarks.report import claim_tables, render, tables
from benchmarks.report.claims import CLAIMS, Contrast, Least
from benchmarks.report.evidence import DIVERGED, LOCAL, Evidence, Verdict, gates, sees_small_steps, together, verdict
from benchmarks.report.folders import COST, TABLES, load, load_all
from benchmarks.report.statistics import Interval, compare, paired_t
from benchmarks.settings import Cell
from know.files import write_csv

MLP = Cell("overflow", "cifar100", "cifar10_15k", "mlp", 1.0)
RESNET = dataclasses.replace(MLP, network="resnet8")
STEADY = {
    "naive": (0, 0, 0, 0, 0),
    "scratch": (-5, -6, -7, -6, -5),
    "oracle": (4, 6, 5, 5, 5),
    "oracle_steps": (3, 4, 4, 4, 3),
    "compute_matched": (0.1, -0.1, 0.2, 0, -0.2),
    "local_oracle": (1, 0.8, 1.2, 1, 1),
}
GOOD = {
    **STEADY,
    "known_x2": (1, 1.2, 0.8, 1, 1),
    "known_x4": (1.5, 1.5, 1.4, 1.6, 1.5),
    "known_x8": (2, 2.2, 1.8, 2, 2),
}
NOTHING = {arm: [0.02 * (k - 2) for k in range(5)] for arm in ("known_x2", "known_x4", "known_x8")}
X8 = Contrast(better="known_x8", worse="naive")
CLAIM = {claim.name: claim for claim in CLAIMS.claims}
BEATS_NAIVE = CLAIM["KNOWN (ours) beats naive fine-tuning"]
GROWS = CLAIM["KNOWN (ours): the gain grows with recursion"]
HALF = CLAIM["KNOWN (ours): half of the target with it matches all of the target without"]
LONGER = CLAIM["KNOWN (ours): a longer history helps"]
EVERYWHERE = CLAIM["KNOWN (ours): it helps across networks and datasets"]


def planted(short: dict, tuned: dict, cell: Cell = MLP) -> list:
    """Records whose gains differ between the two rate policies."""
    return [
        run
        for policy, gains in (("short", short), ("tuned", tuned))
        for run in records(cell, gains, 5, shift={})
        if run.policy == policy
    ]


@pytest.fixture
def publish(tmp_path):
    """Function that writes suites, name to cells with gains (or to records), and gives what they say."""

    def write(suites, *, evidence: bool = True, forgotten=None) -> Evidence:
        for name, cells in suites.items():
            runs = cells
            if isinstance(cells, dict):
                runs = [run for cell, gains in cells.items() for run in records(cell, gains, 5, shift={})]
            write_results(tmp_path / name, runs, evidence=evidence, forgotten=forgotten, with_page=False)
        return Evidence(load_all(tmp_path))

    return write


@pytest.fixture(scope="session")
def empty(tmp_path_factory):
    """The folder of a suite whose one cell fails a gate."""
    gains = {"naive": (0, 0), "scratch": (-5, -6), "oracle_steps": (1, -1), "known_x8": (9, 8)}
    folder = tmp_path_factory.mktemp("empty") / "suite"
    return write_results(folder, records(RESNET, gains, 2), evidence=True, with_page=False)


@pytest.fixture
def core(publish, empty, tmp_path):
    """As `publish`, for the first core suite; all others have one cell that fails a gate."""

    def write(cells, **options) -> Evidence:
        for name in CLAIMS.core[1:]:
            shutil.copytree(empty, tmp_path / name, dirs_exist_ok=True)
        return publish({CLAIMS.core[0]: cells}, **options)

    return write


def page(folder) -> str:
    published = load_all(folder)
    return render.claims_page(Evidence(published))


@pytest.fixture(autouse=True)
def one_cell_is_enough(monkeypatch):
    """Most planted effects stand in one cell; how many are asked for has a test of its own."""
    enough = CLAIMS.model_copy(update={"least": Least(networks=1, pairs=1)})
    monkeypatch.setattr("benchmarks.report.evidence.CLAIMS", enough)


def pooled(evidence: Evidence, contrast: Contrast = X8, policy: str = "tuned", scope=None):
    return evidence.judge(contrast, policy, scope)


# the rule for one contrast


@pytest.mark.parametrize(
    ("low", "high", "facts", "said"),
    [
        (0.1, 2.0, {}, "holds"),
        (0.1, 2.0, {"paper": 1.15}, "holds"),
        (0.1, 1.0, {"paper": 1.15}, "holds, smaller than in the paper"),
        (0.1, 0.3, {}, "holds"),  # above 0, although below the margin
        (0.1, 0.3, {"corrected": 0.06}, "cannot be told"),
        (-0.1, 0.4, {}, "excluded"),
        (-3.0, -1.0, {}, "excluded"),
        (-0.1, 0.5, {}, "cannot be told"),
        (-5.0, 5.0, {}, "cannot be told"),
        (-0.1, 0.4, {"gap": 4.0}, "excluded"),
        (-0.1, 0.4, {"gap": 1.0}, "cannot be told"),  # 0.4 points are 40 % of what twice the data give
        (-0.1, 0.4, {"sees": False}, "cannot be told"),
        (-0.4, -0.1, {"sees": False}, "excluded"),  # a loss is no gain, whatever can be seen
        (0.1, 0.4, {"sees": False}, "holds"),  # what was seen was seen
        (math.nan, math.nan, {}, "open"),
    ],
)
def test_the_rule(low, high, facts, said):
    assert verdict(Interval((low + high) / 2, low, high, 8), **facts) == said


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "holds, smaller than in the paper"], "holds, smaller than in the paper"),
        (["holds", "cannot be told"], "cannot be told"),
        (["cannot be told", "excluded", "holds"], "excluded"),
        (["holds", "open"], "open"),
        ([], "cannot be told"),
    ],
)
def test_every_one_of_them_means_every_one(verdicts, said):
    assert together(verdicts) == said
    assert together(verdicts[::-1]) == said


# gates


@pytest.mark.parametrize("failed", ["oracle_steps", "scratch", "forgetting"])
def test_a_cell_that_fails_a_gate_enters_nothing(core, failed):
    gains = {**GOOD} if failed == "forgetting" else {**GOOD, failed: (0, 1, -1, 0, 0)}
    cells = {MLP: GOOD, RESNET: {**gains, "known_x8": (9, 9, 9, 9, 8)}}
    evidence = core(cells, forgotten={"resnet8": (1, -1, 0, 0, 0)} if failed == "forgetting" else None)
    assert {place.network for place in evidence.places} == {"mlp"}
    interval, expected = pooled(evidence).interval, paired_t([2, 2.2, 1.8, 2, 2])
    assert dataclasses.astuple(interval) == pytest.approx(dataclasses.astuple(expected))


def test_what_all_images_lose_is_no_forgetting(tmp_path):
    """The snapshot is worse by 4 to 6 points on left-out images and on test images alike."""
    folder = write_results(tmp_path / "suite", records(MLP, GOOD, 5), evidence=True, with_page=False, everywhere=True)
    (published,) = load_all(folder.parent)
    found = gates(published, MLP.slug, "tuned")
    gate = next(interval for name, interval in found.items() if name.startswith("forgetting"))
    assert gate.mean == pytest.approx(0, abs=1e-9)
    assert not gate.low > 0


def test_gates_are_those_of_each_rate_policy(publish):
    blind = {**GOOD, "oracle_steps": (0, 1, -1, 0, 0)}
    evidence = publish({"suite": planted(GOOD, blind)})
    assert evidence.by_place(X8, "short")
    assert not evidence.by_place(X8, "tuned")


def test_a_cell_without_a_local_data_gap_excludes_no_gain_but_may_find_one(publish):
    flat = {**GOOD, **NOTHING, "local_oracle": (0.1, -0.2, 0.1, 0.2, -0.2)}
    sharp = {**GOOD, **NOTHING}
    for gains, said in (
        (flat, "cannot be told"),
        (sharp, "excluded"),
        ({**flat, "known_x8": GOOD["known_x8"]}, "holds"),
    ):
        (judged,) = publish({"suite": {MLP: gains}}).by_place(X8, "tuned").values()
        assert judged.verdict == said


def test_a_pool_is_excluded_where_the_pooled_local_gap_is_seen_though_one_of_its_cells_is_blind(core):
    blind = {**GOOD, **NOTHING, "local_oracle": (0.5, 0.2, -0.3, 0.4, 0.1)}
    flat = {**GOOD, **NOTHING, "local_oracle": (0.1, -0.2, 0.1, 0.2, -0.2)}
    assert pooled(core({MLP: {**GOOD, **NOTHING}, RESNET: blind})).verdict == "excluded"
    assert pooled(core({MLP: flat, RESNET: flat})).verdict == "cannot be told"


def test_arms_that_were_not_run_make_no_gate_but_nothing_small_is_then_seen(tmp_path):
    gains = {arm: points for arm, points in GOOD.items() if arm not in ("oracle_steps", "local_oracle")}
    write_results(tmp_path / "suite", records(MLP, gains, 5), evidence=True, with_page=False)
    found = gates(load_all(tmp_path)[0], MLP.slug, "tuned")
    assert next(iter(found)) == "data gap: oracle > naive"
    assert found[LOCAL].n == 0
    assert not sees_small_steps(found)


# planted effects


def test_a_gain_by_forgetting_holds(core):
    gains = {**GOOD, "placebo_x8": (0, 0.1, -0.1, 0, 0), "shrink_x8": (0, 0, 0.1, 0, -0.1)}
    evidence = core({MLP: gains})
    assert evidence.claim(BEATS_NAIVE).verdict == "holds"
    assert [line["sign"] for line in claim_tables.controls(evidence, BEATS_NAIVE)] == [1, 1, 1]


def test_a_gain_by_steps_alone_is_one_that_the_placebo_and_further_training_have_too(core):
    noise = (0.05, -0.05, 0.02, 0, -0.02)
    same = [gain + more for gain, more in zip(GOOD["known_x8"], noise, strict=True)]
    evidence = core({MLP: {**GOOD, "placebo_x8": same, "compute_matched": same, "local_oracle": [x + 1 for x in same]}})
    assert evidence.claim(BEATS_NAIVE).verdict == "holds"
    lines = claim_tables.controls(evidence, BEATS_NAIVE)
    assert {line["control"]: line["sign"] for line in lines} == {"placebo_x8": 0, "compute_matched": 0}
    for control in ("placebo_x8", "compute_matched"):
        assert evidence.judge(Contrast(better="known_x8", worse=control), "tuned").verdict == "excluded"


def test_rates_of_the_grid_are_told_beside_those_that_are_between_its_points(core):
    more = {"shrink_x8": GOOD["known_x8"], "placebo_x8": GOOD["known_x8"]}
    rates = {"naive": 1.7e-3, "known_x8": 1.6e-3, "shrink_x8": 3.2e-3, "placebo_x8": 1.5e-3}
    runs = records(MLP, {**STEADY, **GOOD, **more}, 5, shift={})
    at = [run.model_copy(update={"learning_rate": rates.get(run.arm, 1e-3)}) for run in runs]
    (said,) = claim_tables.rates_of_the_grid(core(at), BEATS_NAIVE)
    on_grid, beside = said.removeprefix(f"{CLAIMS.core[0]}: ").split("; beside them ")
    assert on_grid == "`known_x8` 0.0016, `shrink_x8` 0.0032"
    assert beside == "`naive` 0.0017, `placebo_x8` 0.0015, `compute_matched` 0.001"
    between = [run.model_copy(update={"learning_rate": 1.7e-3}) for run in runs]
    assert claim_tables.rates_of_the_grid(core(between), BEATS_NAIVE) == []


def test_a_gain_by_a_larger_rate_alone_holds_at_the_papers_rate_only_and_says_why(core):
    shrunk = {"matched_rate_x8": (2, 2.1, 2, 1.9, 2), "shrink_x8": (0.1, 0, 0, 0, -0.1)}
    evidence = core(planted({**GOOD, **shrunk}, {**STEADY, **NOTHING, **shrunk}))
    finding = evidence.claim(BEATS_NAIVE)
    assert finding.verdict == "holds at the paper's rate only"
    assert finding.explained == ("a learning rate that makes up for the shrinking",)
    assert finding.because == "at tuned rates: excluded"
    assert claim_tables.said(finding).endswith("explained as well by a learning rate that makes up for the shrinking")


def test_where_there_is_no_gain_at_all_it_is_excluded_and_what_presupposes_one_is_not_testable(core, publish):
    half, gains = dataclasses.replace(MLP, share=0.5), {**GOOD, **NOTHING}
    core({MLP: gains})
    evidence = publish({"ablations/shares": {MLP: gains, half: gains}})
    assert evidence.claim(BEATS_NAIVE).verdict == "excluded"
    for claim in (GROWS, HALF):
        finding = evidence.claim(claim)
        assert finding.verdict == "not testable here"
        assert "it presupposes that known_x" in finding.because


def test_a_claim_that_even_the_oracle_fails_is_not_testable(core, publish):
    half = dataclasses.replace(MLP, share=0.5)
    low = {arm: [gain - 9 for gain in gains] for arm, gains in GOOD.items()}
    core({MLP: GOOD})
    finding = publish({"ablations/shares": {MLP: GOOD, half: low}}).claim(HALF)
    assert finding.verdict == "not testable here"
    assert finding.because == "even oracle at 50 % of the target - naive is not above 0"


def test_half_of_the_target_is_compared_with_all_of_it_in_its_own_suite(core, publish):
    half = dataclasses.replace(MLP, share=0.5)
    low = {arm: [gain - 1.5 for gain in gains] for arm, gains in GOOD.items()}
    assert core({MLP: GOOD, half: low}).claim(HALF).verdict == "open"
    evidence = publish({"ablations/shares": {MLP: GOOD, half: low}})
    assert pooled(evidence, HALF.contrasts[0], scope=HALF.suites).interval.mean == pytest.approx(0.5)
    assert evidence.claim(HALF).verdict == "holds, smaller than in the paper"


def test_a_longer_history_is_compared_on_the_same_trajectories(publish):
    short = dataclasses.replace(MLP, length=3)
    evidence = publish({"ablations/lengths": {MLP: GOOD, short: {**GOOD, "known_x8": (1, 1.1, 0.9, 1, 1)}}})
    contrast = Contrast(better="known_x8", worse={"arm": "known_x8", "length": 3})
    assert pooled(evidence, contrast, scope=LONGER.suites).interval.mean == pytest.approx(1)
    assert evidence.claim(LONGER).verdict == "open"  # the other lengths were not run


def test_everywhere_means_in_every_place_and_not_pooled(core):
    cells = {MLP: GOOD, RESNET: {**GOOD, "known_x8": (-0.1, 0, 0.1, 0, 0)}}
    evidence = core(cells)
    assert pooled(evidence).verdict.positive
    assert evidence.claim(EVERYWHERE).verdict == "excluded"
    assert core({MLP: GOOD, RESNET: GOOD}).claim(EVERYWHERE).verdict.positive
    lacking = {arm: points for arm, points in GOOD.items() if arm != "known_x8"}
    assert core({MLP: GOOD, RESNET: lacking}).claim(EVERYWHERE).verdict == "cannot be told"


def test_claims_about_too_few_networks_or_pairs_are_not_testable(core, monkeypatch):
    targets = ("cifar10_15k", "gtsrb_32", "imagenette_48")
    cells = [dataclasses.replace(MLP, target=target) for target in targets] + [RESNET]
    for least, said in ((Least(networks=2, pairs=3), "holds"), (Least(networks=3, pairs=3), "not testable here")):
        monkeypatch.setattr("benchmarks.report.evidence.CLAIMS", CLAIMS.model_copy(update={"least": least}))
        finding = core(dict.fromkeys(cells, GOOD)).claim(BEATS_NAIVE)
        assert finding.verdict.partition(",")[0] == said
    assert finding.because == "the informative core cells are too few (networks: 2, pairs of datasets: 3)"


def test_a_gain_at_the_papers_rate_alone_needs_informative_cells_enough_at_that_rate(core, monkeypatch):
    targets = ("cifar10_15k", "gtsrb_32", "imagenette_48")
    cells = [dataclasses.replace(MLP, target=target) for target in targets] + [RESNET]
    monkeypatch.setattr(
        "benchmarks.report.evidence.CLAIMS", CLAIMS.model_copy(update={"least": Least(networks=2, pairs=3)})
    )
    lost, blind = {**STEADY, **NOTHING}, {**GOOD, "oracle_steps": (0, 1, -1, 0, 0)}
    many = [run for cell in cells for run in planted(GOOD, lost, cell)]
    assert core(many).claim(BEATS_NAIVE).verdict == "holds at the paper's rate only"
    one = [run for cell in cells for run in planted(GOOD if cell == RESNET else blind, lost, cell)]
    finding = core(one).claim(BEATS_NAIVE)
    assert finding.verdict == "excluded"
    assert finding.because.endswith("too few (networks: 1, pairs of datasets: 1)")


def test_what_is_not_finite_counts_with_0_and_is_left_out_of_one_table(core):
    runs = records(MLP, {**GOOD, "released_x8": GOOD["known_x8"]}, 5, shift={})
    lost = [
        run.model_copy(update={"step": None, "accuracy": 0.0})
        if (run.arm, run.trajectory) == ("known_x8", "t0")
        else run
        for run in runs
    ]
    evidence = core(lost)
    assert pooled(evidence).interval.mean < -5
    (row,) = claim_tables.where_finite(evidence).to_dict("records")
    expected = paired_t([2.2, 1.8, 2, 2])
    assert row["n"] == "4"
    assert row["tuned rate"] == tables.interval_text(expected)
    assert "not finite on 1 of 5 (ours) and 0 of 5 (authors' networks) source" in claim_tables.found(evidence)[1]
    assert claim_tables.where_finite(core(runs)).empty
    assert "not finite" not in claim_tables.found(core(runs))[1]


# pooling


def test_until_all_core_suites_are_there_their_verdicts_are_open(publish, tmp_path):
    few = publish({CLAIMS.core[0]: {MLP: GOOD}})
    assert pooled(few).verdict == "open"
    assert pooled(few).interval.mean == pytest.approx(2)  # the numbers are shown
    assert few.claim(BEATS_NAIVE).verdict == "open"
    assert f"Not run yet: {', '.join(sorted(CLAIMS.core[1:]))}." in page(tmp_path)


def test_once_all_core_suites_are_there_what_has_no_record_cannot_be_told(core, publish):
    evidence = core({MLP: GOOD})  # without the authors' networks
    missing = Contrast(better="released_x8", worse="naive")
    assert pooled(evidence, missing).verdict == "cannot be told"
    nowhere = core({MLP: {**GOOD, "scratch": GOOD["naive"]}})
    assert nowhere.runs.empty
    of_the_core = [claim for claim in CLAIMS.claims if not claim.suites]
    assert {nowhere.claim(claim).verdict for claim in of_the_core} == {"not testable here"}
    assert claim_tables.found(nowhere)[0].startswith("At tuned rates 0 of the ")


def test_a_suite_of_which_a_part_is_missing_has_not_been_run(core, tmp_path):
    core({MLP: GOOD})
    write_csv(
        tmp_path / CLAIMS.core[1] / "failed.csv", [{"job": "transfer/other", "reason": "memory"}], TABLES["failed"]
    )
    assert Evidence(load_all(tmp_path)).waits_for() == [CLAIMS.core[1]]


def test_without_evidence_every_claim_is_open(publish, tmp_path):
    publish({CLAIMS.core[0]: {MLP: GOOD}}, evidence=False)
    text = page(tmp_path)
    assert "every claim is open" in text
    assert "holds" not in text.split("every claim is open")[1]


def test_networks_are_pooled_and_each_counts_once(core):
    cells = {MLP: GOOD, RESNET: {**GOOD, "known_x8": (6, 6.2, 5.8, 6, 6)}}
    interval = pooled(core(cells)).interval
    assert (interval.mean, interval.n) == (pytest.approx(4.0), 10)


def test_targets_of_one_trajectory_are_no_replicates(core):
    other = dataclasses.replace(MLP, target="mnist")
    evidence = core({MLP: GOOD, other: {**GOOD, "known_x8": (4, 4.2, 3.8, 4, 4)}})
    interval = pooled(evidence).interval
    assert (interval.mean, interval.n) == (pytest.approx(3.0), 5)


def test_a_trajectory_in_several_suites_counts_once(publish):
    one, two = (pooled(publish({name: {MLP: GOOD}}), scope=("a", "b")) for name in ("a", "b"))
    assert one.verdict == "open"  # as long as a suite is lacking
    assert one.interval == two.interval
    assert two.interval.n == 5


def test_other_values_of_r_and_the_other_track_stay_out_of_the_pool(core, tmp_path):
    loud = {**GOOD, "known_x8": (9, 9, 9, 9, 8)}
    others = [dataclasses.replace(MLP, ratio=0.33), dataclasses.replace(MLP, track="retrodiction")]
    evidence = core({MLP: GOOD, **dict.fromkeys(others, loud)})
    interval, expected = pooled(evidence).interval, paired_t([2, 2.2, 1.8, 2, 2])
    assert dataclasses.astuple(interval) == pytest.approx(dataclasses.astuple(expected))
    assert len(evidence.by_place(X8, "tuned")) == 3
    assert len(claim_tables.ablations(evidence)) == 2


# Holm's correction


WEAK = (0.4, 1.8, 0.7, 1.3, 0.5)
"""A gain whose interval just excludes 0, so that Holm's correction decides."""
OTHERS = {"shrink_x8": (0, 0, 1, 0, 1), "placebo_x8": (0, 1, 0, 1, 0), "compute_matched": (1, 0, 1, 1, 0)}


@pytest.mark.parametrize(
    ("gain", "others", "said"),
    [
        (WEAK, {}, "holds"),
        (WEAK, OTHERS, "cannot be told"),
        ((0.4, 0.5, 0.6, 0.5, 0.5), OTHERS, "holds, smaller than in the paper"),
        ((-1, -2, -1, -1, -2), OTHERS, "excluded"),
    ],
)
def test_a_primary_contrast_has_one_verdict_wherever_it_is_printed(core, tmp_path, gain, others, said):
    gains = {arm: points for arm, points in GOOD.items() if arm != "known_x2"}
    gains |= {"known_x8": gain, **others, "local_oracle": (2, 2.2, 1.8, 2, 2.1)}
    gains = gains if others else {arm: p for arm, p in gains.items() if arm not in ("compute_matched", "local_oracle")}
    evidence, text = core({MLP: gains}), None
    judged = pooled(evidence)
    assert 0.01 < judged.p < 0.05 or gain != WEAK
    assert judged.verdict == said
    assert judged.sign == 0 or not judged.corrected >= CLAIMS.significance
    (here,) = evidence.by_place(X8, "tuned").values()
    assert here.verdict == said
    text = page(tmp_path)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| known_x8 - naive |")]
    assert len(rows) >= 4  # pooled and by place, among the primary contrasts and at its claims
    assert {row[-1] for row in rows} == {said}


def test_other_settings_show_the_deepest_known_by_the_name_that_it_has_at_that_ratio(core):
    gains = {**STEADY, "known_x1.43": (1, 1.2, 0.8, 1, 1), "known_x2.92": (2, 2.2, 1.8, 2, 2)}
    gains["shrink_x2.92"] = (3, 3.2, 2.8, 3, 3)
    table = claim_tables.ablations(core({MLP: GOOD, dataclasses.replace(MLP, ratio=0.7): gains}))
    assert table["arm"].tolist() == ["known_x2.92", "shrink_x2.92"]  # beside what is no prediction
    assert table["place"].str.endswith("r = 0.7").all()
    assert [entry[:7] for entry in table["tuned rate"]] == ["+2.00 [", "+3.00 ["]


def test_other_settings_mark_differences_that_hold_diverged_fine_tunes(core):
    runs = records(dataclasses.replace(MLP, ratio=0.7), {**STEADY, "known_x2.92": (2, 2.2, 1.8, 2, 2)}, 5, shift={})
    lost = next(k for k, run in enumerate(runs) if (run.arm, run.policy) == ("known_x2.92", "tuned"))
    runs[lost] = runs[lost].model_copy(update={"status": "diverged"})
    (row,) = claim_tables.ablations(core([*planted(GOOD, GOOD), *runs])).to_dict("records")
    assert [what for what, shown in row.items() if shown.endswith(DIVERGED)] == ["tuned rate"]


FURTHER = {
    **STEADY,
    "local_oracle": (2, 2.2, 1.8, 2, 2.1),
    "compute_averaged": (1, 1.2, 0.8, 1, 1),
    "compute_augmented": (1, 1.1, 0.9, 1, 1),
    "compute_augmented_averaged": (1, 1.2, 0.8, 1.1, 0.9),
}
"""The mean of late weights gains one point where nothing is augmented; where something is, averaging gains nothing."""


LOSES = {**FURTHER, "compute_averaged": (-1, -1.2, -0.8, -1, -1)}
"""The mean of late weights takes one point away."""
ONLY_NAIVE = {**FURTHER, "compute_matched": (1, 1.1, 0.9, 1, 1), "local_oracle": (3, 3.2, 2.8, 3, 3.1)}
"""What it gains, further training alone gains too."""
UNSURE = {**FURTHER, "compute_averaged": (-12, 12, -9, 9, -11)}
"""What it does cannot be told, and swamps what other cells say."""
ENOUGH = [({"network": "mlp"}, FURTHER), ({"network": "resnet8"}, FURTHER), ({"source": "pacs"}, FURTHER)]


@pytest.mark.parametrize(
    ("where", "holding", "said"),
    [
        (ENOUGH, 3, "holds"),
        (ENOUGH[:2], 2, "cannot be told"),  # too few cells
        (
            [({"network": network}, FURTHER) for network in ("mlp", "resnet8", "vit_tiny")],
            3,
            "cannot be told",
        ),  # one pair
        (
            [({"target": target}, FURTHER) for target in ("mnist", "pacs", "gtsrb_32")],
            3,
            "cannot be told",
        ),  # one network
        ([*ENOUGH, ({"target": "mnist"}, LOSES)], 3, "cannot be told"),  # it loses somewhere
        ([*ENOUGH[:2], ({"source": "pacs"}, ONLY_NAIVE)], 2, "cannot be told"),  # not beyond further training
        ([*ENOUGH, ({"source": "mnist"}, UNSURE), ({"source": "gtsrb_32"}, UNSURE)], 3, "cannot be told"),  # not pooled
        ([({"network": "mlp"}, LOSES), ({"network": "resnet8"}, LOSES), ({"source": "pacs"}, LOSES)], 0, "excluded"),
        ([*ENOUGH[:2], ({"target": "cifar100:50-99"}, FURTHER)], 2, "cannot be told"),  # images that chose it
        ([*ENOUGH[:2], ({"source": "pacs", "ratio": 0.7}, FURTHER)], 2, "cannot be told"),  # not as the core cells are
    ],
)
def test_a_finalist_has_to_hold_in_cells_enough_and_to_lose_in_none(publish, empty, tmp_path, where, holding, said):
    for name in CLAIMS.core:
        shutil.copytree(empty, tmp_path / name)
    cells = [(dataclasses.replace(MLP, **changes), gains) for changes, gains in where]
    evidence = publish({name: {cell: gains} for name, (cell, gains) in zip(CLAIMS.core, cells, strict=False)})
    averaged, augmented = CLAIMS.finalists
    verdict, places = evidence.confirmed(averaged)
    assert (verdict, len(places)) == (said, holding)
    assert evidence.confirmed(augmented) == ("excluded", [])  # averaging adds nothing to it
    text = page(tmp_path).split("## What else")[1].split("\n## ")[0]
    found = [evidence.by_place(contrast, "tuned") for contrast in averaged.contrasts]
    loses = any(one.interval.high < 0 for own in found for place, one in own.items() if place.core)
    assert ("; below 0: compute_averaged - " in text) == loses
    where = "; it holds in core/" if holding else "; below 0: compute_averaged - " if loses else "."
    assert f"`compute_averaged`, against naive and `compute_matched`: **{said}**{where}" in text
    assert "`compute_augmented_averaged`, against naive and `compute_augmented`: **excluded**.\n" in text
    assert "| compute_averaged - compute_matched |" in text
    assert "compute_averaged" not in page(tmp_path).split("## Primary contrasts")[1].split("\n## ")[0]


def test_the_contrasts_of_the_finalists_are_corrected_over_those_that_were_run(core):
    still = dict.fromkeys(("compute_matched", "compute_augmented"), (0, 0, 0, 0, 0))
    contrast = CLAIMS.finalists[0].contrasts[1]
    for arms, count, said in (
        (["compute_averaged"], 2, "holds"),
        (["compute_averaged", "compute_augmented_averaged"], 4, "cannot be told"),
    ):
        evidence = core({MLP: {**STEADY, **still, **dict.fromkeys(arms, WEAK)}})
        (judged,) = evidence.by_place(contrast, "tuned").values()
        assert judged.corrected == pytest.approx(count * judged.p)  # all of them have the same gain
        assert judged.p < 0.05
        assert judged.verdict == said


def test_a_finalist_is_open_until_all_core_suites_have_been_run(publish):
    assert publish({CLAIMS.core[0]: {MLP: FURTHER}}).confirmed(CLAIMS.finalists[0])[0] == "open"


def test_what_the_finalists_do_changes_no_correction_of_the_claims(core):
    further = {arm: gains for arm, gains in FURTHER.items() if arm not in STEADY}
    (alone,), (beside,) = (core({MLP: {**GOOD, **more}}).by_place(X8, "tuned").values() for more in ({}, further))
    assert alone.corrected > alone.p
    assert beside == alone


def test_the_correction_is_within_a_place(core):
    cells = {MLP: {**GOOD, "known_x8": WEAK}, RESNET: {**GOOD, **OTHERS, "known_x8": WEAK}}
    judged = core(cells).by_place(X8, "tuned")
    corrected = {place.network: found.corrected for place, found in judged.items()}
    assert corrected["mlp"] < corrected["resnet8"]


def test_the_rule_is_not_corrected_at_other_rates_or_in_other_suites(core, publish):
    others = publish({"cells/mine": {MLP: {**GOOD, "known_x8": WEAK, **OTHERS}}})
    (outside,) = others.by_place(X8, "tuned").values()
    assert math.isnan(outside.corrected)
    assert not any(claim_tables.primary(others, family) for family in CLAIMS.families)  # and so no verdict is printed
    evidence = core({MLP: {**GOOD, "known_x8": WEAK, **OTHERS}})
    for judged in (pooled(evidence, policy="short"), pooled(evidence, scope=CLAIMS.core[:1])):
        assert math.isnan(judged.corrected)


# pages


def test_the_front_page_says_what_the_claims_say_and_begins_with_what_holds(core, tmp_path):
    evidence = core({MLP: {**GOOD, "released_x8": (-1, -1.2, -0.8, -1, -1)}})
    front = claim_tables.front(evidence)
    heads = front[front["here"] != ""]
    verdicts = list(heads["here"].str.partition(":")[0].str.partition(",")[0])
    assert verdicts[0] == "holds"
    assert verdicts == sorted(verdicts, key=[str(one).partition(",")[0] for one in Verdict].index)
    text, said = page(tmp_path), dict(zip(heads.iloc[:, 0], heads["here"], strict=True))
    for claim in CLAIMS.claims:
        section = text.split(f"## {claim.name}\n")[1].split("\n## ")[0]
        assert f"Here: **{said[claim.name]}**" in section
        assert claim.asked in section


def test_the_front_page_shows_the_lowest_and_the_highest_contrast_of_a_claim(core, tmp_path):
    lines = {"logfit_x2": (0.3, 0.4, 0.2, 0.3, 0.4), "wnn_x2": (5, 5.2, 5.1, 5, 5), "linear_x2": (-3, -3, -3.3, -3, -3)}
    evidence = core({MLP: {**GOOD, "known_x2": (1, 1.1, 0.9, 1, 1), **lines}})
    front = claim_tables.front(evidence)
    place = list(front["claim of the paper"]).index("KNOWN (ours) beats the paper's other predictions")
    shown = front.iloc[place : place + 3]
    assert list(shown["contrast"])[:2] == ["known_x2 - wnn_x2", "known_x2 - linear_x2"]
    assert [text.split()[0] for text in shown["tuned rate"]][:2] == ["-4.06", "+4.06"]
    assert list(shown["here"] == "") == [False, True, False]


def test_the_five_sentences_have_the_pooled_differences_and_count_the_cells(core, publish):
    assert not claim_tables.found(publish({"suite": {MLP: GOOD}}))  # it is no core suite
    evidence = core({MLP: {**GOOD, "shrink_x8": (1, 1, 1.2, 1, 0.8)}})
    cells, known, controls, same, short = claim_tables.found(evidence)
    assert f"1 of the {len(CLAIMS.core)} core cells" in cells
    assert "(networks: 1, pairs of datasets: 1), and 1 see" in cells

    def shown(better: str, worse: str, policy: str = "tuned") -> str:
        difference = tables.signed(pooled(evidence, Contrast(better=better, worse=worse), policy).interval)
        return f'[{difference}](CLAIMS.md "{better} - {worse}, {policy}, pooled")'

    assert f"at x8 {shown('known_x8', 'naive')} (ours) and - (authors' networks)" in known  # theirs was not run
    assert f"at x2, {shown('known_x2', 'naive')} (ours)" in known
    assert "not finite" not in known
    assert shown("known_x8", "shrink_x8") in controls
    assert f"worth {shown('compute_matched', 'naive')} points" in same
    assert shown("known_x8", "naive", "short") in short

    failing = planted({**GOOD, "oracle_steps": (1, -1, 0, 1, -1)}, GOOD)
    for k, run in enumerate(failing):
        if (run.arm, run.trajectory) == ("known_x8", "t4"):
            failing[k] = run.model_copy(update={"status": "diverged", "accuracy": 0.0, "step": None})
    _, known, *_, short = claim_tables.found(core(failing))
    assert "no core cell that was run is informative" in short
    assert "not finite on 1 of 5 (ours) source trajectories" in known


def test_a_random_step_that_is_not_finite_is_no_noise(tmp_path):
    gains = {**STEADY, "random_step_x8": (0.1, -0.1, 0.2, -0.2, 0)}
    steps = records(MLP, gains, 5, shift={})
    assert not any(run.step is None for run in steps if run.arm == "random_step_x8")
    for k, run in enumerate(steps):
        if (run.arm, run.trajectory) == ("random_step_x8", "t4"):
            steps[k] = run.model_copy(update={"status": "diverged", "accuracy": 0.0, "step": None})
    published = load(write_results(tmp_path / "suite", steps, with_page=False), tmp_path)
    means = tables.front_means(published.runs[published.runs["policy"] == "tuned"])
    assert compare(means, "random_step_x8") == pytest.approx([0.1, -0.1, 0.2, -0.2, math.nan], nan_ok=True)
    low, high = tables.noise_band(published, next(iter(published.cells)))["tuned"]
    assert -0.5 < low < 0 < high < 0.5


def test_networks_and_pairs_stand_before_what_is_pooled(core, tmp_path):
    core({MLP: GOOD, RESNET: {**GOOD, "known_x8": (-2, -2.2, -1.8, -2, -2)}})
    section = page(tmp_path).split(f"## {BEATS_NAIVE.name}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| known_x8 - naive")]
    assert [row[1] for row in rows] == ["mlp", "resnet8", "pooled"]
    assert rows[2][3] == "+1.15"


@pytest.mark.parametrize(
    ("seconds", "networks", "said"),
    [
        (0.1, ("plaincnn", "resnet8"), "holds"),
        (1.5, ("plaincnn", "resnet8"), "excluded"),
        (0.1, ("plaincnn",), "open"),
        (None, ("plaincnn", "resnet8"), "open"),  # x8 was not run
    ],
)
def test_a_prediction_is_cheap_beside_training_on_the_networks_where_that_is_measured(
    core, tmp_path, seconds, networks, said
):
    core({MLP: GOOD})
    for suite, network in zip(CLAIMS.core, networks, strict=False):
        rows = [
            f"c,{network},overflow,0.5,5,1000,100,known_{x},1.3,{s},8" for x, s in (("x2", 0.01), ("x8", seconds)) if s
        ]
        (tmp_path / suite / "cost_by_arm.csv").write_text("\n".join([",".join(COST), *rows, ""]))
    assert f"Here: **{said}**." in page(tmp_path).split("## Predicting is cheap")[1].split("\n## ")[0]


def test_a_core_suite_beside_the_rule_in_which_a_prediction_is_dear_is_named(core, tmp_path):
    core({MLP: GOOD})
    for suite, seconds in zip(("core/plaincnn", "core/resnet8", "core/halves"), (0.1, 0.1, 2.5), strict=True):
        rows = [f"c,mlp,overflow,0.5,5,1000,100,known_x8,1.3,{seconds},8"]
        (tmp_path / suite / "cost_by_arm.csv").write_text("\n".join([",".join(COST), *rows, ""]))
    section = page(tmp_path).split("## Predicting is cheap")[1].split("\n## ")[0]
    assert "Here: **holds**." in section
    assert "that much or more in core/halves (`known_x8` 2.5 %)." in section
    assert "`core/plaincnn`" not in section


# claims.yaml


def test_the_primary_contrasts_are_those_of_the_rules():
    assert CLAIMS.primary.policy == "tuned"
    found = {(contrast.better.arm, contrast.worse.arm.partition("_x")[0]) for contrast in CLAIMS.primary.contrasts}
    ours, authors = (
        {(f"{line}_x{n}", worse) for n in (2, 8) for worse in controls}
        for line, controls in {
            "known": ("naive", "shrink", "placebo", "compute_matched"),
            "released": ("naive", "shrink_released", "placebo_released", "compute_matched"),
        }.items()
    )
    assert found == ours | authors


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
