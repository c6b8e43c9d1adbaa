"""Structured forgetting: with anybody's model, data and training function; interrupted; and on the two tracks."""

import copy
import itertools
import json
import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import know
from benchmarks.data import load
from benchmarks.suite import Forgetting, Origin, Recipe
from know import forgetting
from know.errors import KnowError
from know.files import read_json
from know.forgetting import forget_builtin, make_origin
from know.trajectory import Trajectory

IMAGES = 96


def new_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(IMAGES, 6, generator=generator), torch.randint(3, (IMAGES,), generator=generator))


class Fit:
    """A user's own training function: one step of a new Adam on the whole subset.

    `calls` are the subsets and the weights it was handed; call number `fail_at` (1, 2, ...) is interrupted half-way.
    """

    def __init__(self, fail_at: int | None = None):
        self.calls, self.fail_at = [], fail_at

    def optimiser(self, model):
        return torch.optim.Adam(model.parameters(), 0.05)

    def __call__(self, model, subset):
        self.calls.append((list(subset.indices), copy.deepcopy(model.state_dict())))
        optimizer = self.optimiser(model)
        inputs, labels = (torch.stack(column) for column in zip(*subset, strict=True))
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        self.state = optimizer.state_dict()
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt


class AdamCarried(Fit):
    """The same with Adam's state carried from subset to subset."""

    def __init__(self, fail_at: int | None = None):
        super().__init__(fail_at)
        self.state = None

    def optimiser(self, model):
        optimizer = super().optimiser(model)
        if self.state:
            optimizer.load_state_dict(self.state)
        return optimizer

    def state_dict(self):
        return {"adam": self.state}

    def load_state_dict(self, state):
        self.state = state["adam"]


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# anybody's model, data and training function


def test_subsets_are_nested_and_training_is_sequential(tmp_path, data):
    fit, model = Fit(), new_model()
    trajectory = know.forget(model, data, fit, rate=0.5, length=4, seed=3, out=tmp_path / "run")
    subsets = [set(indices) for indices, _ in fit.calls]
    assert [len(subset) for subset in subsets] == [48, 24, 12]
    assert all(smaller < larger for larger, smaller in pairwise(subsets))
    assert all(len(subset) == len(indices) for subset, (indices, _) in zip(subsets, fit.calls, strict=True))
    assert trajectory.fractions == (0.125, 0.25, 0.5, 1.0)
    for k, (_, handed) in enumerate(fit.calls, start=1):  # step k begins with snapshot k - 1; the states end at 0
        assert equal(handed, trajectory.states[-k])
    assert equal(trajectory.theta_0, new_model().state_dict())
    assert equal(model.state_dict(), trajectory.states[0])
    assert [s["images"] for s in trajectory.manifest["snapshots"]] == [12, 24, 48, 96]


def test_fractions_may_be_given(tmp_path, data):
    fit = Fit()
    trajectory = know.forget(new_model(), data, fit, fractions=[0.25, 0.75, 1], out=tmp_path / "run")
    assert [len(indices) for indices, _ in fit.calls] == [72, 24]
    assert trajectory.fractions == (0.25, 0.75, 1.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rate": 0.5, "length": 9}, "0.00390625 of 96 .*empty"),
        ({"rate": 1.0}, "must rise"),
        ({"rate": 1.5}, "must rise|end at 1"),
        ({"length": 1}, "at least 2"),
        ({"fractions": [0.5, 0.9]}, "end at 1"),
    ],
)
def test_settings_that_make_no_trajectory_are_refused_before_training(tmp_path, data, settings, said):
    fit = Fit()
    with pytest.raises(KnowError, match=said):
        know.forget(new_model(), data, fit, out=tmp_path / "run", **settings)
    assert not fit.calls
    assert list(tmp_path.iterdir()) == []


def test_the_result_depends_on_the_seed(tmp_path, data):
    runs = [know.forget(new_model(), data, Fit(), seed=seed, out=tmp_path / str(seed)) for seed in (1, 2)]
    assert not equal(runs[0].states[0], runs[1].states[0])


# interruptions


@pytest.mark.parametrize("kind", [Fit, AdamCarried])
@pytest.mark.parametrize("fail_at", [1, 2, 4])
def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path, data, folder_bytes, kind, fail_at):
    whole, cut, rest = kind(), kind(fail_at), kind()
    know.forget(new_model(), data, whole, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        know.forget(new_model(), data, cut, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    know.forget(new_model(), data, rest, out=tmp_path / "run")
    assert [indices for indices, _ in cut.calls[:-1] + rest.calls] == [indices for indices, _ in whole.calls]
    assert folder_bytes(tmp_path / "run") == folder_bytes(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "whole"]


def test_carrying_adam_makes_a_difference(tmp_path, data):
    fresh, carried = (
        know.forget(new_model(), data, kind(), out=tmp_path / kind.__name__) for kind in (Fit, AdamCarried)
    )
    assert equal(fresh.states[-2], carried.states[-2])
    assert not equal(fresh.states[-3], carried.states[-3])


def test_an_interrupted_call_may_be_repeated_with_the_same_model_object(tmp_path, data):
    """As in a notebook: stop the cell, run it again. theta_0 must not become what the interruption left."""
    model = new_model()
    with pytest.raises(KeyboardInterrupt):
        know.forget(model, data, Fit(fail_at=2), out=tmp_path / "run")
    trajectory = know.forget(model, data, Fit(), out=tmp_path / "run")
    assert equal(trajectory.theta_0, new_model().state_dict())


def test_other_settings_start_an_interrupted_run_over(tmp_path, data):
    with pytest.raises(KeyboardInterrupt):
        know.forget(new_model(), data, Fit(fail_at=3), rate=0.5, out=tmp_path / "run")
    fit = Fit()
    trajectory = know.forget(new_model(), data, fit, rate=0.6, out=tmp_path / "run")
    assert len(fit.calls) == 4
    assert trajectory.fractions[0] == pytest.approx(0.6**4)


def test_a_finished_run_is_returned_and_not_repeated(tmp_path, data):
    first, again = Fit(), Fit()
    trajectory = know.forget(new_model(), data, first, out=tmp_path / "run")
    found = know.forget(new_model(), data, again, out=tmp_path / "run")
    assert not again.calls
    assert equal(found.states[0], trajectory.states[0])


@pytest.mark.parametrize("other", [{"rate": 0.6}, {"seed": 1}, {"length": 4}, {"facts": {"note": "other"}}])
def test_a_finished_run_of_other_settings_is_refused_and_kept(tmp_path, data, folder_bytes, other):
    know.forget(new_model(), data, Fit(), out=tmp_path / "run")
    before = folder_bytes(tmp_path / "run")
    with pytest.raises(KnowError, match="other weights, data or settings"):
        know.forget(new_model(), data, Fit(), out=tmp_path / "run", **other)
    assert folder_bytes(tmp_path / "run") == before


def test_one_changed_weight_is_another_run(tmp_path, data):
    know.forget(new_model(), data, Fit(), out=tmp_path / "run")
    model = new_model()
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6
    with pytest.raises(KnowError, match="other weights"):
        know.forget(model, data, Fit(), out=tmp_path / "run")


# the two tracks and the built-in training

BATCH = 17  # D0 leaves a last batch of one image, which joins the batch before
RECIPE = Recipe(epochs=2, learning_rate=3e-3, batch_size=BATCH)
FORGETTING = Forgetting(step=Recipe(epochs=1, learning_rate=1e-3, batch_size=BATCH), smallest=16)
ORIGIN = Origin("digits:0-4", "mlp")
TRACKS = ["overflow", "retrodiction"]


@dataclass
class Call:
    """One call of `train`: what it was handed, and the weights after each step of its main phase."""

    images: int
    recipe: Recipe
    start: dict
    states: list[dict] = field(default_factory=list)


def watched(origin: Origin, ids: list[str], out, tracks=TRACKS, settings=FORGETTING) -> list[Call]:
    """`make_origin`, and every call of `train` in order."""
    calls, real = [], forgetting.train
    with pytest.MonkeyPatch.context() as patch:

        def spy(model, dataset, split, recipe, *, after_step=None, **options):
            call = Call(len(split), recipe, copy.deepcopy(model.state_dict()))
            calls.append(call)

            def record(*steps):
                call.states.append(copy.deepcopy(model.state_dict()))
                if after_step:
                    after_step(*steps)

            return real(model, dataset, split, recipe, after_step=record, **options)

        patch.setattr(forgetting, "train", spy)
        make_origin(origin, ids, tracks, RECIPE, settings, out=out)
    return calls


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of p0 and t0 on both tracks, and the calls of `train`: 8 and then 6 for each trajectory."""
    out = tmp_path_factory.mktemp("origin") / "made"
    return out, watched(ORIGIN, ["p0", "t0"], out)


def test_both_tracks_share_initialisation_and_oracle(made):
    overflow, retrodiction = (Trajectory.load(made[0] / "t0" / track) for track in TRACKS)
    assert equal(overflow.reference("oracle"), retrodiction.reference("oracle"))
    assert equal(overflow.reference("scratch"), retrodiction.reference("scratch"))
    assert not equal(overflow.reference("oracle"), overflow.reference("scratch"))
    assert not equal(overflow.theta_0, retrodiction.theta_0)


def test_the_oracles_have_twice_the_updates_and_the_same_updates(made):
    images, half = len(load("digits:0-4").train), round(len(load("digits:0-4").train) / 2)
    assert half % BATCH == 1
    pretraining = [call for call in made[1][:14] if call.recipe.epochs == RECIPE.epochs]
    assert [call.images for call in pretraining] == [images, images, half]
    oracle, oracle_steps, theta_0 = (len(call.states) for call in pretraining)
    assert oracle_steps == theta_0
    assert oracle == pytest.approx(2 * theta_0, rel=0.05)


def test_an_eighth_of_the_source_has_oracles_of_its_multiples_on_nested_subsets(tmp_path):
    settings = FORGETTING.model_copy(update={"d0": 0.125, "length": 2})
    total, seen = len(load("digits:0-4").train), []
    with pytest.MonkeyPatch.context() as patch:
        real = forgetting.train
        patch.setattr(forgetting, "train", lambda *a, **k: seen.append(a[2]) or real(*a, **k))
        make_origin(ORIGIN, ["t0"], ["overflow"], RECIPE, settings, out=tmp_path / "made")
    pretrained = sorted({len(split): split for split in seen if len(split) >= total // 8}.items())
    assert [count for count, _ in pretrained] == [round(total * share) for share in (0.125, 0.25, 0.5, 1)]
    rows = [{tuple(image.flatten().tolist()) for image in split.images} for _, split in pretrained]
    assert all(small <= large for small, large in pairwise(rows))
    assert {"oracle", "oracle_x4", "oracle_x8"} <= Trajectory.load(tmp_path / "made/t0/overflow").manifest[
        "references"
    ].keys()


def test_pretraining_starts_anew_and_the_retrodiction_track_from_the_oracle(made):
    own = Trajectory.load(made[0] / "p0" / "retrodiction")
    calls = made[1][:14]
    pretraining = [call.start for call in calls if call.recipe.epochs == RECIPE.epochs]
    assert all(equal(start, own.reference("scratch")) for start in pretraining)
    making_theta_0 = calls[8]
    assert making_theta_0.images == calls[2].images
    assert equal(making_theta_0.start, own.reference("oracle"))
    assert equal(making_theta_0.states[-1], own.theta_0)


# references


def test_all_references_exist_on_both_tracks(made):
    both = {"scratch", "oracle", "tail_average", "ema", "compute_matched"}
    for track, expected in (("overflow", both | {"oracle_steps"}), ("retrodiction", both)):
        own = Trajectory.load(made[0] / "t0" / track)
        assert own.manifest["references"].keys() == expected
        states = [own.theta_0, *(own.reference(name) for name in sorted(expected))]
        assert all(state.keys() == own.theta_0.keys() for state in states)
        assert not any(equal(one, other) for one, other in itertools.combinations(states, 2))


def plain_averages(states: list[dict]) -> dict[str, dict]:
    """Of the weights after each step: the mean over the last quarter, and the exponential average, in loops."""
    steps = len(states)
    tail = states[-math.ceil(steps / 4) :]
    decay = max(0.0, 1 - 1 / (0.1 * steps))
    found = {"tail_average": {}, "ema": {}}
    for name in states[0]:
        values = [state[name].double() for state in states]
        found["tail_average"][name] = sum(state[name].double() for state in tail) / len(tail)
        average = values[0]
        for value in values[1:]:
            average = decay * average + (1 - decay) * value
        found["ema"][name] = average
    return found


@pytest.mark.parametrize("network", ["mlp", "normcnn"])
def test_averages_are_those_of_the_run_that_made_theta_0(made, tmp_path, network):
    """Buffers of normalisation included."""
    out, calls = made if network == "mlp" else (tmp_path / "out", None)
    calls = calls or watched(Origin("digits:0-4", network), ["p0"], out)
    for track, call in (("overflow", calls[2]), ("retrodiction", calls[8])):
        own, expected = Trajectory.load(out / "p0" / track), plain_averages(call.states)
        assert equal(own.theta_0, call.states[-1])
        assert len(call.states) >= 15
        for name in ("tail_average", "ema"):
            for key, tensor in own.reference(name).items():
                if tensor.is_floating_point():
                    torch.testing.assert_close(tensor.double(), expected[name][key], atol=1e-5, rtol=1e-5)
    assert network == "mlp" or "norm1.running_var" in own.theta_0


@pytest.mark.parametrize("epochs", [1, 2])
def test_compute_matched_goes_on_from_theta_0_for_as_many_steps_as_forgetting_took(made, tmp_path, epochs):
    out, calls = made
    if epochs > 1:
        longer = FORGETTING.model_copy(update={"step": FORGETTING.step.model_copy(update={"epochs": epochs})})
        out = tmp_path / "out"
        calls = watched(ORIGIN, ["p0"], out, settings=longer)
    for track, matched in (("overflow", 3), ("retrodiction", 9)):
        own, call, forgetting_calls = (
            Trajectory.load(out / "p0" / track),
            calls[matched],
            calls[matched + 1 : matched + 5],
        )
        assert [c.images for c in forgetting_calls] == [round(call.images / 2**k) for k in (1, 2, 3, 4)]
        assert equal(call.start, own.theta_0)
        assert call.images == calls[2].images
        assert len(call.states) == sum(len(c.states) for c in forgetting_calls)
        assert equal(call.states[-1], own.reference("compute_matched"))
        assert equal(forgetting_calls[-1].states[-1], own.states[0])  # forgetting went its own way from theta_0


# what is kept, interruptions, refusals


def test_the_manifests_tell_what_was_made(made):
    top = read_json(made[0] / "manifest.json")
    assert sorted(top["trajectories"]) == [f"{t}/{track}/manifest.json" for t in ("p0", "t0") for track in TRACKS]
    for place in top["trajectories"]:
        manifest = read_json(made[0] / place)
        images = [snapshot["images"] for snapshot in manifest["snapshots"]]
        assert images[-1] == round(len(load("digits:0-4").train) / 2)
        assert images == [round(f * images[-1]) for f in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)]
        accuracies = {key for key in manifest["snapshots"][0] if "accuracy" in key}
        assert accuracies == {"test_accuracy", "left_out_accuracy", "left_out_accuracy_theta_0"}
        assert not any("left_out" in key for key in manifest["snapshots"][-1])  # nothing is left out of D0
        assert ("oracle_steps" in manifest["references"]) == (manifest["track"] == "overflow")


def test_processes_share_the_work_and_change_no_byte(tmp_path, folder_bytes):
    for processes in (1, 2):
        out = tmp_path / str(processes)
        make_origin(ORIGIN, ["p0", "t0"], TRACKS, RECIPE, FORGETTING, out=out, processes=processes)
    assert folder_bytes(tmp_path / "1") == folder_bytes(tmp_path / "2")


def test_trajectories_are_independent_of_which_others_are_made(made, tmp_path, folder_bytes):
    make_origin(ORIGIN, ["t0"], TRACKS, RECIPE, FORGETTING, out=tmp_path / "alone")
    assert folder_bytes(tmp_path / "alone" / "t0") == folder_bytes(made[0] / "t0")
    first, second = (Trajectory.load(made[0] / name / "overflow") for name in ("p0", "t0"))
    assert not equal(first.reference("scratch"), second.reference("scratch"))


def test_an_interrupted_origin_continues_to_the_same_bytes(made, tmp_path, folder_bytes, monkeypatch):
    out, real, calls = tmp_path / "out", forgetting.train, []

    def stops(model, dataset, split, *arguments, **options):
        calls.append(len(split))
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return real(model, dataset, split, *arguments, **options)

    monkeypatch.setattr(forgetting, "train", stops)
    stop_at = 14 + 6  # inside the second trajectory
    with pytest.raises(KeyboardInterrupt):
        make_origin(ORIGIN, ["p0", "t0"], TRACKS, RECIPE, FORGETTING, out=out)
    stop_at = 0
    calls.clear()
    make_origin(ORIGIN, ["p0", "t0"], TRACKS, RECIPE, FORGETTING, out=out)
    assert len(calls) <= 14  # nothing of the first trajectory
    assert folder_bytes(out) == folder_bytes(made[0])


def test_too_small_a_subset_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(forgetting, "train", lambda *_, **__: pytest.fail("trained"))
    strict = FORGETTING.model_copy(update={"smallest": 64})
    with pytest.raises(KnowError, match=r"digits:0-4.*20 images.*64.*smallest"):
        make_origin(ORIGIN, ["t0"], TRACKS, RECIPE, strict, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_carrying_the_optimiser_is_an_option_that_changes_later_snapshots(made, tmp_path):
    fresh = FORGETTING.model_copy(update={"carry_optimizer": False})
    make_origin(ORIGIN, ["t0"], ["overflow"], RECIPE, fresh, out=tmp_path / "out")
    carried, anew = (Trajectory.load(out / "t0" / "overflow") for out in (made[0], tmp_path / "out"))
    assert equal(carried.theta_0, anew.theta_0)
    assert not equal(carried.states[-2], anew.states[-2])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["forgetting"]["carry_optimizer"] is False


def test_the_built_in_forgetting_begins_with_given_weights_or_trains_them(tmp_path):
    fresh = FORGETTING.model_copy(update={"carry_optimizer": False, "length": 3})
    trained = forget_builtin("digits:0-4", "mlp", RECIPE, fresh, seed=4, out=tmp_path / "trained")
    given = forget_builtin(
        "digits:0-4", "mlp", RECIPE, fresh, seed=4, weights=trained.paths[-1], out=tmp_path / "given"
    )
    assert len(given.states) == 3
    assert all(equal(a, b) for a, b in zip(trained.states, given.states, strict=True))
    assert not equal(trained.states[0], trained.states[-1])
    with pytest.raises(KnowError, match=r"s0\.safetensors does not fit plaincnn on digits:0-4"):
        forget_builtin("digits:0-4", "plaincnn", RECIPE, fresh, weights=trained.paths[-1], out=tmp_path / "other")
