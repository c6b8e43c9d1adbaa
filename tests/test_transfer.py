"""Transfer: pairing of the arms, the learning-rate protocol, and a whole cell, also when it is interrupted."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import torch

from know import predictors, transfer
from know.data import Split, load
from know.errors import KnowError
from know.forgetting import make_origin
from know.nets import build
from know.records import PilotRecord, RunRecord, read_records
from know.suite import Arms, Cell, Forgetting, Origin, PredictorArms, Recipe, Transfer
from know.transfer import Arm, Result, arms_of, choose_rates, fine_tune, run_cell, target_split

GRID = [1e-4 * 2**k for k in range(6)]
RECIPE = Recipe(epochs=1, learning_rate=GRID[2], batch_size=32, augment=True, head_epochs=1)
SETTINGS = Transfer(recipe=RECIPE, images=64, validation=60, fine_tunes=2, grid=GRID, extensions=2)


@pytest.fixture(scope="module")
def target():
    return load("digits:5-9")


# the split of the target


@pytest.mark.parametrize("seed", [0, 1])
def test_training_and_validation_images_are_disjoint_and_shares_are_prefixes(target, seed):
    numbered = replace(target, train=Split(torch.arange(len(target.train)), target.train.labels))
    splits = {share: target_split(numbered, SETTINGS, share, seed) for share in (0.25, 0.5, 1.0)}
    whole, validation = splits[1.0]
    assert (len(whole), len(validation)) == (64, 60)
    assert not set(whole.images.tolist()) & set(validation.images.tolist())
    assert len(set(whole.images.tolist()) | set(validation.images.tolist())) == 124
    for share, (part, same) in splits.items():
        assert len(part) == 64 * share
        assert torch.equal(part.images, whole.images[: len(part)])
        assert torch.equal(same.images, validation.images)
        assert torch.equal(part.labels, target.train.labels[part.images])
    other, _ = target_split(numbered, SETTINGS, 1.0, seed + 5)
    assert not torch.equal(other.images, whole.images)


def test_a_target_that_is_too_small_is_refused(target):
    total = len(target.train)
    full = SETTINGS.model_copy(update={"images": total - 60})
    assert sum(map(len, target_split(target, full, 1.0, 0))) == total
    with pytest.raises(KnowError, match=rf"digits:5-9 has {total} .* is {total + 1}"):
        target_split(target, SETTINGS.model_copy(update={"images": total - 59}), 1.0, 0)


# fine-tuning


@pytest.fixture
def seen(monkeypatch):
    """What every call of the training loop was handed: weights, images, seed, learning rate."""
    calls, real = [], transfer.train

    def spy(model, dataset, split, recipe, **options):
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        calls.append({"weights": weights, "images": split.images, **options})
        return real(model, dataset, split, recipe, **options)

    monkeypatch.setattr(transfer, "train", spy)
    return calls


def tune(target, weights, *, share=1.0, learning_rate=GRID[2], seed=7, test=True, network="mlp") -> Result:
    options = {"share": share, "learning_rate": learning_rate, "seed": seed, "test": test}
    return fine_tune(weights, network, target, SETTINGS, **options)


def weights(seed: int, network: str = "mlp", classes: int = 5) -> dict[str, torch.Tensor]:
    return build(network, (1, 8, 8), classes, seed=seed).state_dict()


def test_the_learning_rate_is_in_no_seed(target, seen):
    tune(target, weights(0), learning_rate=GRID[0])
    tune(target, weights(0), learning_rate=GRID[5])
    first, second = seen
    assert (first["learning_rate"], second["learning_rate"]) == (GRID[0], GRID[5])
    assert first["seed"] == second["seed"]
    assert torch.equal(first["images"], second["images"])
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])


def test_all_weights_get_the_same_head_images_and_order(target, seen):
    tune(target, weights(0))
    tune(target, weights(1))
    first, second = seen
    assert first["seed"] == second["seed"]
    assert torch.equal(first["images"], second["images"])
    same = {n for n in first["weights"] if torch.equal(first["weights"][n], second["weights"][n])}
    assert same == {"head.weight", "head.bias"}
    for call, seed in ((first, 0), (second, 1)):
        assert all(torch.equal(call["weights"][n], t) for n, t in weights(seed).items() if not n.startswith("head."))


def test_another_fine_tune_gets_another_head_subset_and_order(target, seen):
    tune(target, weights(0), seed=7)
    tune(target, weights(0), seed=8)
    first, second = seen
    assert first["seed"] != second["seed"]
    assert not torch.equal(first["weights"]["head.weight"], second["weights"]["head.weight"])
    assert not torch.equal(first["images"], second["images"])


def test_a_share_changes_the_order_and_neither_head_nor_permutation(target, seen):
    tune(target, weights(0), share=1.0)
    tune(target, weights(0), share=0.5)
    whole, half = seen
    assert whole["seed"] != half["seed"]
    assert torch.equal(whole["images"][:32], half["images"])
    assert torch.equal(whole["weights"]["head.weight"], half["weights"]["head.weight"])


def test_the_same_call_gives_the_same_result_and_the_weights_stay_as_they_were(target):
    state = weights(0)
    before = {name: tensor.clone() for name, tensor in state.items()}
    torch.manual_seed(1)
    first = tune(target, state)
    torch.manual_seed(2)
    assert tune(target, state) == first
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_the_old_head_does_not_matter(target):
    state = weights(0)
    other = {**state, "head.weight": torch.randn(30, 64), "head.bias": torch.randn(30)}
    assert tune(target, other) == tune(target, state)


def test_the_test_set_is_read_only_if_asked(target):
    unreadable = replace(target, test=Split(torch.zeros(3, 5, 9, 9, dtype=torch.uint8), torch.zeros(3).long()))
    hidden, shown = tune(unreadable, weights(0), test=False), tune(target, weights(0), test=True)
    assert hidden.accuracy is None
    assert replace(shown, accuracy=None) == hidden
    assert 0 <= shown.accuracy <= 1


def test_weights_of_another_network_are_refused(target):
    with pytest.raises(KnowError, match="do not fit plaincnn"):
        tune(target, weights(0), network="plaincnn")


def test_divergence_is_a_result(target):
    result = tune(target, {name: 1e30 * tensor for name, tensor in weights(0).items()})
    assert result.status == "diverged"
    assert result.validation_loss is None
    json.dumps(vars(result), allow_nan=False)


# the learning-rate protocol

ARMS = [Arm("naive"), Arm("other")]
PILOTS = ["p0", "p1"]


def search(score, *, extensions: int = 2, fine_tunes: int = 1, loss=lambda *_: 1.0):
    """The choice where `score(arm, log2(rate / first rate))` is the validation accuracy; and all that was run."""
    calls = []

    def evaluate(trajectory, arm, repeat, rate):
        place = round(math.log2(rate / GRID[0]))
        calls.append((trajectory, arm.name, repeat, place))
        return Result("ok", score(arm.name, place), loss(arm.name, place), None)

    settings = SETTINGS.model_copy(update={"extensions": extensions, "fine_tunes": fine_tunes})
    choice, runs = choose_rates(ARMS, PILOTS, settings, evaluate)
    chosen = {n: round(math.log2(found["learning_rate"] / GRID[0])) for n, found in choice["arms"].items()}
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


@pytest.mark.parametrize(("best", "grid"), [(6, range(8)), (-1, range(-2, 6)), (5, range(7)), (0, range(-1, 6))])
def test_an_edge_extends_the_grid_for_all_arms(best, grid):
    choice, chosen, calls = search(peak(naive=2, other=best))
    assert chosen == {"naive": 2, "other": best}
    assert choice["grid"] == pytest.approx([GRID[0] * 2.0**place for place in grid])
    for arm in ("naive", "other"):
        assert {place for _, name, _, place in calls if name == arm} == set(grid)
    assert not choice["arms"]["other"]["on_edge"]


@pytest.mark.parametrize("extensions", [0, 1, 2])
def test_the_grid_grows_by_so_many_points_and_an_edge_is_then_said(extensions):
    choice, chosen, _ = search(peak(naive=2, other=50), extensions=extensions)
    assert len(choice["grid"]) == 6 + extensions
    assert chosen["other"] == 5 + extensions
    assert choice["arms"]["other"]["on_edge"]
    assert not choice["arms"]["naive"]["on_edge"]


def test_both_edges_are_followed():
    choice, chosen, _ = search(peak(naive=-1, other=6), extensions=4)
    assert chosen == {"naive": -1, "other": 6}
    assert len(choice["grid"]) == 10


def test_the_mean_over_pilots_and_fine_tunes_decides():
    accuracy = {"p0": {2: 0.9, 3: 0.8}, "p1": {2: 0.5, 3: 0.8}}

    def evaluate(trajectory, arm, repeat, rate):
        return Result("ok", accuracy[trajectory].get(round(math.log2(rate / GRID[0])), 0.1), 1.0, None)

    choice, _ = choose_rates(ARMS, PILOTS, SETTINGS, evaluate)
    assert choice["arms"]["naive"]["learning_rate"] == GRID[3]


def test_ties_go_to_the_lower_loss_and_then_to_the_lower_rate():
    def plateau(arm, place):
        return 0.9 if place in (2, 3, 4) else 0.5

    assert search(plateau)[1]["naive"] == 2
    assert search(plateau, loss=lambda arm, place: 0.3 if place == 3 else 0.4)[1]["naive"] == 3
    assert search(plateau, loss=lambda arm, place: None if place == 2 else 0.4)[1]["naive"] == 3


# arms


def test_arms_are_references_and_every_predictor_at_its_depths():
    settings = Arms(references=["naive", "scratch", "oracle", "oracle_steps"])
    arms = arms_of(settings, 0.5, "overflow")
    names = [arm.name for arm in arms]
    assert len(set(names)) == len(names)
    assert names[:4] == settings.references
    assert {arm.predictor for arm in arms[4:]} == set(predictors.names())
    assert {"known_x2", "known_x4", "known_x8", "shrink_x8"} <= set(names)
    assert [arm.name for arm in arms_of(settings, 0.5, "retrodiction")] == [n for n in names if n != "oracle_steps"]


def test_depths_and_options_may_be_chosen():
    chosen = {"linear": PredictorArms(depths=[2], options={"step": 0.5}), "known": None}
    arms = {arm.name: arm for arm in arms_of(Arms(references=["naive"], predictors=chosen), 1 / 3, "overflow")}
    assert list(arms) == ["naive", "linear_x9", "known_x3", "known_x9", "known_x27"]
    assert arms["linear_x9"].options == {"step": 0.5}
    with pytest.raises(KnowError, match="predictor 'lineal': did you mean 'linear'"):
        arms_of(Arms(references=["naive"], predictors={"lineal": None}), 0.5, "overflow")
    wrong = {"linear": PredictorArms(options={"size": 1.0})}
    with pytest.raises(KnowError, match="option of predictor linear 'size'"):
        arms_of(Arms(references=["naive"], predictors=wrong), 0.5, "overflow")


# a whole cell

IDS = ["p0", "t0", "t1"]
FEW = Arms(references=["naive", "oracle"], predictors={"known": PredictorArms(depths=[3])})


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    out, step = tmp_path_factory.mktemp("cell") / "origin", Recipe(epochs=1, learning_rate=1e-3, batch_size=32)
    tracks = ["overflow", "retrodiction"]
    make_origin(Origin("digits:0-4", "mlp"), IDS, tracks, step, Forgetting(step=step, smallest=16), out=out)
    return out


@pytest.fixture(scope="module")
def hyper_file(hyper, tmp_path_factory):
    path = tmp_path_factory.mktemp("known") / "known.safetensors"
    hyper.save(path)
    return path


@pytest.fixture(scope="module")
def cell(origin, hyper_file):
    """Function that runs the small cell into a folder."""

    def run(out, track="overflow", settings=SETTINGS, arms=FEW) -> None:
        which = Cell(track, "digits:0-4", "digits:5-9", "mlp", 1.0)
        run_cell(which, IDS, settings, arms, origin=origin, known=hyper_file, rate=0.5, out=out)

    return run


@pytest.fixture(scope="module")
def done(cell, tmp_path_factory):
    """The folder of a finished cell."""
    out = tmp_path_factory.mktemp("done") / "cell"
    cell(out)
    return out


def test_every_arm_is_recorded_on_every_trajectory_but_the_pilots(done):
    runs = read_records([done / "runs.csv"], RunRecord)
    keys = runs[["trajectory", "arm", "recipe", "fine_tune"]]
    assert not keys.duplicated().any()
    assert len(runs) == 2 * 3 * 2 * 2
    assert set(runs.trajectory) == {"t0", "t1"}
    assert set(runs.arm) == {"naive", "oracle", "known_x8"}
    searched = read_records([done / "pilots.csv"], PilotRecord)
    assert set(searched.trajectory) == {"p0"}
    choice = json.loads((done / "choice.json").read_text())
    assert len(searched) == 3 * 2 * len(choice["grid"])
    assert sorted(p.name for p in done.iterdir()) == ["choice.json", "pilots.csv", "runs.csv"]


def test_rates_are_the_published_one_and_the_frozen_choice(done):
    runs, choice = read_records([done / "runs.csv"], RunRecord), json.loads((done / "choice.json").read_text())
    assert set(runs[runs.recipe == "published"].learning_rate) == {RECIPE.learning_rate}
    for arm, table in runs[runs.recipe == "tuned"].groupby("arm"):
        assert set(table.learning_rate) == {choice["arms"][arm]["learning_rate"]}


def test_all_arms_of_a_trajectory_share_their_seeds(done):
    runs = read_records([done / "runs.csv"], RunRecord)
    assert (runs.groupby("trajectory").source_seed.nunique() == 1).all()
    assert (runs.groupby(["trajectory", "fine_tune"]).target_seed.nunique() == 1).all()
    assert runs.source_seed.nunique() == 2
    assert runs.target_seed.nunique() == 4


def test_steps_and_errors_are_those_of_the_weights(done, cell, tmp_path):
    runs = read_records([done / "runs.csv"], RunRecord)
    assert set(runs[runs.arm == "naive"].step) == {0}
    assert (runs[runs.arm != "naive"].step > 0).all()
    assert runs.weight_error.isna().all()
    cell(tmp_path / "cell", track="retrodiction")
    errors = read_records([tmp_path / "cell" / "runs.csv"], RunRecord).groupby("arm").weight_error.agg(["min", "max"])
    assert tuple(errors.loc["naive"]) == (1, 1)
    assert tuple(errors.loc["oracle"]) == (0, 0)
    assert errors.loc["known_x8", "min"] > 0


class Copy(Arm):
    """naive under another name."""

    def weights(self, trajectory, known, seed):
        return trajectory.theta_0


def test_the_name_of_an_arm_changes_no_result(done, cell, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "arms_of", lambda *_: [Copy("a copy"), Arm("naive")])
    cell(tmp_path / "cell")
    runs = read_records([tmp_path / "cell" / "runs.csv"], RunRecord)
    order = ["trajectory", "recipe", "fine_tune"]
    copied, naive = (runs[runs.arm == arm].sort_values(order).reset_index(drop=True) for arm in ("a copy", "naive"))
    pd.testing.assert_frame_equal(copied.drop(columns="arm"), naive.drop(columns="arm"))
    before = read_records([done / "runs.csv"], RunRecord)
    before = before[(before.arm == "naive") & (before.recipe == "published")].sort_values(order)
    assert list(before.accuracy) == list(naive[naive.recipe == "published"].accuracy)  # nor do the other arms


@pytest.mark.parametrize("finished", [0, 10, 40])
def test_an_interrupted_cell_continues_to_the_same_bytes(done, cell, tmp_path, monkeypatch, folder_bytes, finished):
    out, real, calls = tmp_path / "cell", transfer.fine_tune, []

    def stops(*arguments, **options):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(options)
        return real(*arguments, **options)

    monkeypatch.setattr(transfer, "fine_tune", stops)
    stop_after = finished
    with pytest.raises(KeyboardInterrupt):
        cell(out)
    assert not out.exists()
    if finished:
        with (tmp_path / "cell.partial" / "journal.jsonl").open("a") as journal:
            journal.write('{"key": "p0 naive 0 0.0')  # a line that the kill cut short
    stop_after = -1
    cell(out)
    assert folder_bytes(out) == folder_bytes(done)
    pilots, runs = (len((done / name).read_text().splitlines()) - 1 for name in ("pilots.csv", "runs.csv"))
    untuned = sum(
        r["learning_rate"] == RECIPE.learning_rate
        for r in json.loads((done / "choice.json").read_text())["arms"].values()
    )
    tests = runs - 4 * untuned  # both recipes share a fine-tune where their rates are equal
    assert len(calls) == pilots + tests  # nothing twice
    assert sum(options["test"] for options in calls) == tests  # the pilots' test accuracy is never looked at


def test_other_settings_start_an_interrupted_cell_over(cell, tmp_path, monkeypatch):
    real, calls = transfer.fine_tune, []

    def stops(*arguments, **options):
        calls.append(options)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(transfer, "fine_tune", stops)
    with pytest.raises(KeyboardInterrupt):
        cell(tmp_path / "cell")
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        cell(tmp_path / "cell", settings=SETTINGS.model_copy(update={"validation": 50}))
    assert len(calls) == 5
    assert calls[0]["learning_rate"] == GRID[0]


def test_a_track_that_was_not_made_is_named(origin, hyper_file, tmp_path):
    shutil.copytree(origin, tmp_path / "origin")
    shutil.rmtree(tmp_path / "origin" / "t1" / "retrodiction")
    which = Cell("retrodiction", "digits:0-4", "digits:5-9", "mlp", 1.0)
    with pytest.raises(KnowError, match="t1/retrodiction holds no finished trajectory"):
        run_cell(
            which, IDS, SETTINGS, FEW, origin=tmp_path / "origin", known=hyper_file, rate=0.5, out=tmp_path / "out"
        )
