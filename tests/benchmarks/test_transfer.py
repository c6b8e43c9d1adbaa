"""Transfer: the learning-rate protocol and a whole cell, also when it is interrupted or gets another arm."""

import json
import math
import pickle
import shutil
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import torch

from benchmarks import transfer
from benchmarks.arms import Arm, arms_of
from benchmarks.finetune import Result
from benchmarks.records import PilotRecord, RunRecord, read_records
from benchmarks.references import REFERENCES
from benchmarks.settings import Arms, Cell, Forgetting, LineOfArms, PaperPolicy, Recipe, Transfer
from benchmarks.store import Store
from benchmarks.trajectories import make_origin
from benchmarks.transfer import Bench, Task, choose_rates, describe, portions, run_cell
from know.checkpoints import save_state
from know.errors import KnowError
from know.known import Known, KnownNet
from know.prediction import predict
from know.roles import PREDICTED
from know.trajectory import Trajectory

GRID = [1e-4 * 2**k for k in range(6)]
RECIPE = Recipe(epochs=1, learning_rate=GRID[2], batch_size=32, augment="shift", head_epochs=1)
SETTINGS = Transfer(recipe=RECIPE, images=64, validation=60, fine_tunes=2, pilot_fine_tunes=2, grid=GRID, extensions=2)


# the learning-rate protocol

ARMS = [Arm(name, "Summary.", "reference", "reference") for name in ("naive", "other")]
PILOTS = ["p0", "p1"]


def search(score, *, extensions: int = 2, fine_tunes: int = 1, loss=lambda *_: 1.0):
    """The choice where `score(arm, log2(rate / first rate))` is the validation accuracy; the places of the best points;
    and all that was run.
    """
    calls = []

    def one(trajectory, arm, repeat, rate, policy):
        place = round(math.log2(rate / GRID[0]))
        calls.append((trajectory, arm.name, repeat, place))
        return Result("ok", score(arm.name, place), loss(arm.name, place), None)

    settings = SETTINGS.model_copy(update={"extensions": extensions, "pilot_fine_tunes": fine_tunes})
    choice, runs = choose_rates(ARMS, PILOTS, settings, lambda tasks: [one(*task) for task in tasks])
    chosen = {n: round(math.log2(found["point"] / GRID[0])) for n, found in choice["arms"].items()}
    for found in choice["arms"].values():
        assert 0.5 < found["learning_rate"] / found["point"] < 2
        assert found["on_edge"] == (found["point"] in (choice["grid"][0], choice["grid"][-1]))
        assert choice["grid"][0] <= found["learning_rate"] <= choice["grid"][-1]
    keys = [
        (run["trajectory"], run["arm"], run["fine_tune"], round(math.log2(run["learning_rate"] / GRID[0])))
        for run in runs
    ]
    assert sorted(calls) == sorted(keys)
    assert all(
        PilotRecord(cell="c", **run).validation_accuracy == score(key[1], key[3])
        for run, key in zip(runs, keys, strict=True)
    )
    return choice, chosen, calls


def peak(**at):
    return lambda arm, place: 0.9 - 0.01 * abs(place - at[arm])


def test_each_arm_gets_its_best_rate_and_all_arms_the_whole_grid():
    choice, chosen, calls = search(peak(naive=2, other=4), fine_tunes=2)
    assert chosen == {"naive": 2, "other": 4}
    assert choice["grid"] == GRID
    assert not any(found["on_edge"] for found in choice["arms"].values())
    expected = {(t, a, f, p): 1 for t in PILOTS for a in ("naive", "other") for f in (0, 1) for p in range(6)}
    assert Counter(calls) == expected  # once each, and on pilots alone


@pytest.mark.parametrize(
    ("naive", "other", "grid"),
    [(2, 6, range(8)), (2, -1, range(-2, 6)), (2, 5, range(7)), (2, 0, range(-1, 6)), (-1, 6, range(-2, 8))],
)
def test_an_edge_extends_the_grid_for_all_arms(naive, other, grid):
    choice, chosen, calls = search(peak(naive=naive, other=other), extensions=4)
    assert chosen == {"naive": naive, "other": other}
    assert choice["grid"] == pytest.approx([GRID[0] * 2.0**place for place in grid])
    for arm in ("naive", "other"):
        assert {place for _, name, _, place in calls if name == arm} == set(grid)
    assert not choice["arms"]["other"]["on_edge"]


@pytest.mark.parametrize("extensions", [0, 2])
def test_the_grid_grows_by_so_many_points_and_an_edge_is_then_said(extensions):
    choice, chosen, _ = search(peak(naive=2, other=50), extensions=extensions)
    assert len(choice["grid"]) == 6 + extensions
    assert chosen["other"] == 5 + extensions
    assert choice["arms"]["other"]["on_edge"]
    assert not choice["arms"]["naive"]["on_edge"]


def test_the_mean_over_pilots_and_fine_tunes_decides():
    accuracy = {"p0": {2: 0.9, 3: 0.8}, "p1": {2: 0.5, 3: 0.8}}

    def evaluate(tasks):
        places = [(trajectory, round(math.log2(rate / GRID[0]))) for trajectory, _, _, rate, _ in tasks]
        return [Result("ok", accuracy[trajectory].get(place, 0.1), 1.0, None) for trajectory, place in places]

    choice, _ = choose_rates(ARMS, PILOTS, SETTINGS, evaluate)
    assert choice["arms"]["naive"]["point"] == GRID[3]
    assert GRID[2] < choice["arms"]["naive"]["learning_rate"] < GRID[3]  # the neighbour below is the better one


def test_ties_go_to_the_lower_loss_and_then_to_the_lower_rate():
    def plateau(arm, place):
        return 0.9 if place in (2, 3, 4) else 0.5

    assert search(plateau)[1]["naive"] == 2
    assert search(plateau, loss=lambda arm, place: 0.3 if place == 3 else 0.4)[1]["naive"] == 3
    assert search(plateau, loss=lambda arm, place: None if place == 2 else 0.4)[1]["naive"] == 3


# a whole cell

CELL = Cell("overflow", "digits:0-4", "digits:5-9", "mlp", 1.0)
IDS = ["p0", "t0", "t1"]
FEW = Arms(references=["naive", "oracle"], methods={"known": LineOfArms(depths=[3])})


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    out, step = tmp_path_factory.mktemp("cell") / "origin", Recipe(epochs=1, learning_rate=1e-3, batch_size=32)
    forgetting, tracks = Forgetting(step=step, smallest=16), ["overflow", "retrodiction"]
    make_origin(CELL.origin, IDS, tracks, step, forgetting, store=Store(out.with_name("store")), out=out)
    return out


def networks(folder, models, **changes):
    """The folder of a meta-training with these networks."""
    for name in ("known", "scaled"):
        changes.get(name, models[name]).save(folder / f"{name}.safetensors")
    save_state(folder / "meta_linear.safetensors", models["meta_linear"])
    return folder


@pytest.fixture(scope="module")
def trained(models, tmp_path_factory):
    return networks(tmp_path_factory.mktemp("known"), models)


@pytest.fixture(scope="module")
def cell(origin, trained):
    """Function that runs the small cell into a folder; the store lies beside it."""

    def run(out, which=CELL, settings=SETTINGS, arms=FEW, known=trained, **options) -> None:
        folders = {"origin": origin, "known": known, "store": Store(out.with_name("store")), "out": out}
        run_cell(which, IDS, settings, arms, **folders, **options)

    return run


@pytest.fixture(scope="module")
def done(cell, tmp_path_factory):
    """The folder of a finished cell."""
    out = tmp_path_factory.mktemp("done") / "cell"
    cell(out)
    return out


@pytest.fixture(scope="module")
def runs(done) -> pd.DataFrame:
    return read_records([done / "runs.csv"], RunRecord)


def lines_of(store) -> list[str]:
    """Every result of fine-tuning in a store."""
    return [line for path in (store / "fine-tunes").rglob("*.jsonl") for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_the_number_of_processes_changes_no_byte_and_all_of_them_remember(cell, done, tmp_path):
    out = tmp_path / "two"
    cell(out, processes=2)
    files = sorted(path.name for path in done.iterdir())
    assert files == sorted(path.name for path in out.iterdir())
    assert all((out / name).read_bytes() == (done / name).read_bytes() for name in files)
    alone, shared = (sorted(lines_of(folder.with_name("store"))) for folder in (done, out))
    assert alone == shared


@pytest.mark.slow
def test_a_process_keeps_what_it_has_read_for_all_portions_that_it_is_sent(origin, trained, tmp_path):
    sent = pickle.dumps(Bench(CELL, SETTINGS, origin, trained, Store(tmp_path / "store"), "cpu"))
    assert transfer._worker(pickle.loads(sent)) is transfer._worker(pickle.loads(sent))


def test_fine_tunes_at_once_give_the_same_rows_but_for_rounding(cell, done, tmp_path, folder_bytes, monkeypatch):
    together = SETTINGS.model_copy(update={"together": 7})
    calls, real = [], transfer.fine_tune_stacked
    monkeypatch.setattr(transfer, "fine_tune_stacked", lambda asked, *rest: calls.append(asked) or real(asked, *rest))
    monkeypatch.setattr(transfer, "FineTuner", None)
    cell(tmp_path / "once", settings=together)
    assert max(map(len, calls)) > 2
    theirs, ours = (read_records([folder / "runs.csv"], RunRecord) for folder in (done, tmp_path / "once"))
    keys = ["trajectory", "arm", "policy", "fine_tune"]
    assert ours[keys].equals(theirs[keys])
    short = ours.policy == "short"  # the tuned rate may tip to a neighbour
    assert (ours.accuracy - theirs.accuracy)[short].abs().max() < 0.02
    assert ours[["step", "source_accuracy", "target_seed"]].equals(theirs[["step", "source_accuracy", "target_seed"]])

    # interrupted, it goes on to the same bytes: portions are computed as a whole
    stop = len(calls) // 2

    def interrupted(asked, *rest):
        calls.append(asked)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return real(asked, *rest)

    calls.clear()
    monkeypatch.setattr(transfer, "fine_tune_stacked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cell(tmp_path / "again" / "twice", settings=together)
    cell(tmp_path / "again" / "twice", settings=together)
    assert folder_bytes(tmp_path / "again" / "twice") == folder_bytes(tmp_path / "once")


@pytest.mark.parametrize("together", [1, 2, 5, 100])
def test_portions_are_whole_groups_in_order(together):
    arms = [Arm(name, "", "", "") for name in ("a", "b", "c")]
    tasks = [Task(f"t{t}", arm, k, 1e-3) for t in range(3) for arm in arms for k in range(2)]
    made = portions(tasks, together)
    assert [task for portion in made for task in portion] == tasks
    assert all(len(portion) % 2 == 0 for portion in made)  # two of each start stay together
    assert all(together <= len(portion) < together + 2 for portion in made[:-1])


@pytest.fixture
def fine_tunes(monkeypatch):
    """What every fine-tune was asked; number `stop_at` is interrupted."""
    real = transfer.FineTuner.__call__

    class Calls(list):
        stop_at = -1

    calls = Calls()

    def spy(tuner, request):
        if len(calls) == calls.stop_at:
            raise KeyboardInterrupt
        calls.append({**vars(request), "start": request.start.fingerprint()})
        return real(tuner, request)

    monkeypatch.setattr(transfer.FineTuner, "__call__", spy)
    return calls


def test_every_arm_is_recorded_on_every_trajectory_but_the_pilots(done, runs):
    keys = runs[["trajectory", "arm", "policy", "fine_tune"]]
    assert not keys.duplicated().any()
    assert len(runs) == 2 * 3 * 2 * 2
    assert set(runs.trajectory) == {"t0", "t1"}
    assert set(runs.arm) == {"naive", "oracle", "known_x8"}
    searched = read_records([done / "pilots.csv"], PilotRecord)
    assert set(searched.trajectory) == {"p0"}
    choice = json.loads((done / "choice.json").read_text())
    assert len(searched) == 3 * 2 * len(choice["grid"])
    assert sorted(p.name for p in done.iterdir()) == ["choice.json", "pilots.csv", "runs.csv"]


def test_rates_are_the_published_one_and_the_frozen_choice(done, runs):
    choice = json.loads((done / "choice.json").read_text())
    assert set(runs[runs.policy == "short"].learning_rate) == {RECIPE.learning_rate}
    for arm, table in runs[runs.policy == "tuned"].groupby("arm"):
        assert set(table.learning_rate) == {choice["arms"][arm]["learning_rate"]}


def test_all_arms_of_a_trajectory_share_their_seeds(runs):
    assert (runs.groupby("trajectory").source_seed.nunique() == 1).all()
    assert (runs.groupby(["trajectory", "fine_tune"]).target_seed.nunique() == 1).all()
    assert runs.source_seed.nunique() == 2
    assert runs.target_seed.nunique() == 4


def test_steps_and_errors_are_those_of_the_weights(runs, cell, tmp_path):
    assert set(runs[runs.arm == "naive"].step) == {0}
    assert (runs[runs.arm != "naive"].step > 0).all()
    assert runs.weight_error.isna().all()
    cell(tmp_path / "cell", replace(CELL, track="retrodiction"))
    errors = read_records([tmp_path / "cell" / "runs.csv"], RunRecord).groupby("arm").weight_error.agg(["min", "max"])
    assert tuple(errors.loc["naive"]) == (1, 1)
    assert tuple(errors.loc["oracle"]) == (0, 0)
    assert errors.loc["known_x8", "min"] > 0


def test_source_accuracies_are_those_of_the_weights_before_fine_tuning(runs):
    assert (runs.groupby(["trajectory", "arm"]).source_accuracy.nunique() == 1).all()
    assert (runs.source_accuracy == runs.source_accuracy_recalibrated).all()  # no running statistics in an MLP
    assert (runs[runs.arm == "naive"].source_accuracy > 0.3).all()
    assert runs[runs.arm == "known_x8"].source_accuracy.mean() < runs[runs.arm == "naive"].source_accuracy.mean()


def test_the_choice_describes_every_arm_also_those_that_are_missing(cell, tmp_path, monkeypatch):
    monkeypatch.delenv("KNOW_REFERENCE", raising=False)
    arms = Arms(references=["naive"], methods={"released": LineOfArms(depths=[1])})
    cell(tmp_path / "cell", arms=arms)
    described = json.loads((tmp_path / "cell" / "choice.json").read_text())["described"]
    assert [arm["name"] for arm in described] == ["naive", "released_x2"]
    assert [bool(arm["missing"]) for arm in described] == [False, True]
    assert described[1]["predictor"] == "released"
    assert set(read_records([tmp_path / "cell" / "runs.csv"], RunRecord).arm) == {"naive"}


class Copy(Arm):
    """naive under another name."""

    def start(self, trajectory, models, seed):
        return Arm("naive", "", "", "").start(trajectory, models, seed)


def test_the_name_of_an_arm_changes_no_result(done, cell, tmp_path, monkeypatch, fine_tunes):
    arms = [Copy("a copy", "", "", "reference"), Arm("naive", "", "", "reference")]
    monkeypatch.setattr(transfer, "arms_of", lambda *_: arms)
    cell(tmp_path / "cell")
    runs = read_records([tmp_path / "cell" / "runs.csv"], RunRecord)
    order = ["trajectory", "policy", "fine_tune"]
    copied, naive = (runs[runs.arm == arm].sort_values(order).reset_index(drop=True) for arm in ("a copy", "naive"))
    pd.testing.assert_frame_equal(copied.drop(columns="arm"), naive.drop(columns="arm"))
    before = read_records([done / "runs.csv"], RunRecord)
    before = before[(before.arm == "naive") & (before.policy == "short")].sort_values(order)
    assert list(before.accuracy) == list(naive[naive.policy == "short"].accuracy)  # nor do the other arms
    pilots = read_records([tmp_path / "cell" / "pilots.csv"], PilotRecord)
    assert sum(not call["test"] for call in fine_tunes) == len(pilots) / 2  # the same content once


def expected_fine_tunes(folder, arms=None) -> int:
    """How many different fine-tunes a finished cell, or some arms of it, took."""
    pilots, runs = read_records([folder / "pilots.csv"], PilotRecord), read_records([folder / "runs.csv"], RunRecord)
    count = 0
    for table in (pilots, runs):
        table = table[table.arm.isin(arms)] if arms else table
        count += len(table[["trajectory", "arm", "fine_tune", "learning_rate"]].drop_duplicates())
    return count


@pytest.mark.parametrize(
    "finished", [pytest.param(0, marks=pytest.mark.slow), 10, pytest.param(40, marks=pytest.mark.slow)]
)
def test_an_interrupted_cell_goes_on_to_the_same_bytes(done, runs, cell, tmp_path, folder_bytes, fine_tunes, finished):
    out, fine_tunes.stop_at = tmp_path / "cell", finished
    with pytest.raises(KeyboardInterrupt):
        cell(out)
    assert not out.exists()
    if finished:
        for path in (tmp_path / "store" / "fine-tunes").rglob("*.jsonl"):
            with path.open("a") as results:
                results.write('{"key": "0123456789')  # a line that the kill cut short
    fine_tunes.stop_at = -1
    cell(out)
    assert folder_bytes(out) == folder_bytes(done)
    assert len(fine_tunes) == expected_fine_tunes(done)  # nothing twice
    tests = len(runs[["trajectory", "arm", "fine_tune", "learning_rate"]].drop_duplicates())
    assert sum(call["test"] for call in fine_tunes) == tests  # the pilots' test accuracy is never looked at
    cell(out)
    assert len(fine_tunes) == expected_fine_tunes(done)


def test_other_settings_are_computed_anew(cell, tmp_path, fine_tunes):
    fine_tunes.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        cell(tmp_path / "cell")
    fine_tunes.stop_at = 10
    with pytest.raises(KeyboardInterrupt):
        cell(tmp_path / "cell", settings=SETTINGS.model_copy(update={"validation": 50}))
    assert len(fine_tunes) == 10
    assert fine_tunes[5] == fine_tunes[0]


def test_an_added_arm_leaves_the_other_rows_as_they_were_and_computes_its_own_alone(cell, tmp_path, fine_tunes):
    """With a fixed grid: an arm whose best rate lies on the edge extends it for all."""
    out, fixed = tmp_path / "cell", SETTINGS.model_copy(update={"extensions": 0})
    cell(out, settings=fixed)
    before = {name: (out / name).read_text().splitlines() for name in ("runs.csv", "pilots.csv")}
    first = len(fine_tunes)
    more = FEW.model_copy(update={"methods": {**FEW.methods, "linear": LineOfArms(depths=[1])}})
    cell(out, settings=fixed, arms=more)
    for name, lines in before.items():
        after = (out / name).read_text().splitlines()
        assert [line for line in after if ",linear_x2," not in line] == lines
        assert len(after) > len(lines)
    assert len(fine_tunes) - first == expected_fine_tunes(out, ["linear_x2"])


@pytest.mark.slow
def test_all_arms_of_a_suite_run_through(cell, tmp_path):
    """Every reference, method and arm, on the shortest of cells."""
    quick = SETTINGS.model_copy(
        update={"extensions": 0, "fine_tunes": 1, "pilot_fine_tunes": 1, "images": 8, "grid": GRID[2:3]}
    )
    out = tmp_path / "cell"
    arms = Arms(references=[name for name in REFERENCES if name not in ("oracle_x4", "oracle_x8")])  # D0 is a half
    cell(out, settings=quick, arms=arms)
    runs = read_records([out / "runs.csv"], RunRecord)
    assert set(runs.arm) == {arm.name for arm in arms_of(arms, CELL)}
    assert set(runs.status) == {"ok"}
    still = {"naive", "reset", "recalibrate", "matched_rate_x2", "matched_rate_x8"}
    assert set(runs[runs.step == 0].arm) == still
    naive = runs[runs.arm == "naive"].accuracy.tolist()
    assert runs[runs.arm == "reset"].accuracy.tolist() == naive  # an MLP has no normalisation
    steps = runs.groupby("arm").step.mean()
    assert steps["mixture_x8"] == steps["known_x8"]
    assert steps["linear_reverse_x2"] == pytest.approx(steps["linear_x2"], rel=1e-4)


def test_an_arm_that_overflows_is_recorded_as_diverged(cell, models, overflowing, tmp_path):
    arms = Arms(references=["naive"], methods={name: LineOfArms(depths=[1]) for name in ("known", "linear", "shrink")})
    cell(tmp_path / "cell", arms=arms, known=networks(tmp_path / "known", models, known=overflowing))
    runs = read_records([tmp_path / "cell" / "runs.csv"], RunRecord)
    for arm, table in runs.groupby("arm"):
        overflows = arm in ("known_x2", "shrink_x2")
        assert set(table.status) == {"diverged" if overflows else "ok"}
        assert table.step.isna().all() == overflows
        assert (table.accuracy == 0).all() == overflows
        assert (table.source_accuracy == 0).all() == overflows
    pilots = read_records([tmp_path / "cell" / "pilots.csv"], PilotRecord)
    assert set(pilots[pilots.arm == "known_x2"].status) == {"diverged"}
    assert pilots[pilots.arm == "known_x2"].validation_loss.isna().all()


@pytest.mark.parametrize("track", ["overflow", "retrodiction"])
def test_steps_and_errors_are_relative_distances(origin, track):
    trajectory = Trajectory.load(origin / "t0" / track)
    theta_0, truth = trajectory.theta_0, trajectory.reference("oracle")
    half = {name: torch.lerp(theta_0[name], truth[name], 0.5) for name in theta_0}
    shrunk = {name: 0.75 * tensor for name, tensor in theta_0.items()}
    assert describe(theta_0, trajectory, track)["step"] == 0
    assert describe(shrunk, trajectory, track)["step"] == pytest.approx(0.25, rel=1e-5)
    errors = [describe(weights, trajectory, track)["weight_error"] for weights in (theta_0, half, truth)]
    assert errors == ([1, pytest.approx(0.5, rel=1e-4), 0] if track == "retrodiction" else [None] * 3)


def test_a_shorter_history_is_read_from_the_longer_trajectory(cell, origin, tmp_path, models):
    """S = 3 on trajectories of five snapshots, with a KNOWN of its own."""
    known = Known({role: KnownNet(3) for role in PREDICTED})
    folder = networks(tmp_path / "known", models, known=known)
    arms, out = Arms(references=["naive"], methods={"known": LineOfArms(depths=[1])}), tmp_path / "cell"
    quick = SETTINGS.model_copy(update={"extensions": 0, "fine_tunes": 1, "pilot_fine_tunes": 1})
    cell(out, replace(CELL, length=3), quick, arms, known=folder)
    runs = read_records([out / "runs.csv"], RunRecord)
    assert set(runs.length) == {3}
    short = Trajectory.load(origin / "t0" / "overflow").last(3)
    expected = describe(predict(short, "known", known=known), short, "overflow")["step"]
    assert set(runs[(runs.arm == "known_x2") & (runs.trajectory == "t0")].step) == {expected}


def test_a_track_that_was_not_made_is_named(origin, trained, tmp_path):
    shutil.copytree(origin, tmp_path / "origin")
    shutil.rmtree(tmp_path / "origin" / "t1" / "retrodiction")
    folders = {"known": trained, "store": Store(tmp_path / "store"), "out": tmp_path / "out"}
    with pytest.raises(KnowError, match="t1/retrodiction holds no finished trajectory"):
        run_cell(replace(CELL, track="retrodiction"), IDS, SETTINGS, FEW, origin=tmp_path / "origin", **folders)


def test_the_papers_policy_is_its_rate_for_as_long_as_it_says_for_the_arms_that_are_named(cell, tmp_path, monkeypatch):
    paper = PaperPolicy(arms=["known_x8"], epochs=3, head_epochs=2)
    changes = {"extensions": 0, "fine_tunes": 1, "pilot_fine_tunes": 1, "images": 8, "paper": paper}
    made, real = [], transfer.FineTuner.__call__

    def spy(tuner, request):
        recipe = tuner.settings.recipe
        made.append((recipe.epochs, recipe.head_epochs, request.learning_rate, request.test))
        return real(tuner, request)

    monkeypatch.setattr(transfer.FineTuner, "__call__", spy)
    cell(tmp_path / "cell", settings=SETTINGS.model_copy(update=changes))
    rows = read_records([tmp_path / "cell" / "runs.csv"], RunRecord)
    policies = rows.groupby("arm")["policy"].agg(set).to_dict()
    assert policies == {name: {"short", "tuned"} | ({"paper"} if name == "known_x8" else set()) for name in policies}
    longer = [entry for entry in made if entry[:2] == (3, 2)]
    assert longer == [(3, 2, RECIPE.learning_rate, True)] * rows["trajectory"].nunique()
    assert {entry[:2] for entry in made} == {(3, 2), (RECIPE.epochs, RECIPE.head_epochs)}
    assert set(rows.loc[rows["policy"] == "paper", "learning_rate"]) == {RECIPE.learning_rate}


def test_the_papers_policy_names_arms_of_the_suite(cell, tmp_path):
    wrong = SETTINGS.model_copy(update={"paper": PaperPolicy(arms=["known_x8", "knwon_x2"])})
    with pytest.raises(KnowError, match=r"transfer\.paper\.arms: there is no arm knwon_x2"):
        cell(tmp_path / "cell", settings=wrong)
