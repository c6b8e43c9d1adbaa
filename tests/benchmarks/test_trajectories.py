"""The trajectories of a suite: two tracks from one initialisation, their references, and what is refused."""

import copy
import itertools
import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from small_model import equal

from benchmarks import trajectories
from benchmarks.data import load
from benchmarks.networks import build
from benchmarks.settings import Forgetting, Origin, Recipe
from benchmarks.store import Store
from benchmarks.training import accuracy, recalibrate
from benchmarks.trajectories import make_origin
from know.errors import KnowError
from know.files import read_json
from know.seeds import stream
from know.subsets import nested_subsets
from know.trajectory import Trajectory

BATCH = 17  # D0 leaves a last batch of one image, which joins the batch before
RECIPE = Recipe(epochs=2, learning_rate=3e-3, batch_size=BATCH)
FORGETTING = Forgetting(step=Recipe(epochs=1, learning_rate=1e-3, batch_size=BATCH), smallest=16)
ORIGIN = Origin("digits:0-4", "mlp")
TRACKS = ["overflow", "retrodiction"]


@dataclass
class Call:
    """One call of `train`: what it was given, and the weights after each step of its main phase."""

    images: int
    recipe: Recipe
    start: dict
    optimizer: dict | None = None
    states: list[dict] = field(default_factory=list)


def make(ids: list[str], folder, tracks=TRACKS, origin=ORIGIN, settings=FORGETTING, **options):
    """The folder that `make_origin` makes, with a store of its own, and every call of `train` in order."""
    calls, real = [], trajectories.train

    def spy(model, dataset, split, recipe, *, after_step=None, **more):
        call = Call(len(split), recipe, copy.deepcopy(model.state_dict()), copy.deepcopy(more.get("optimizer_state")))
        calls.append(call)

        def record(*steps):
            call.states.append(copy.deepcopy(model.state_dict()))
            if after_step:
                after_step(*steps)

        return real(model, dataset, split, recipe, after_step=record, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectories, "train", spy)
        store = Store(folder / "store", forced=False)
        make_origin(origin, ids, tracks, RECIPE, settings, store=store, out=folder / "made", **options)
    return folder / "made", calls


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """p0 on both tracks: the folder, and the calls of `train`."""
    return make(["p0"], tmp_path_factory.mktemp("origin"))


@pytest.fixture(scope="module")
def runs(made) -> dict[str, Trajectory]:
    return {track: Trajectory.load(made[0] / "p0" / track) for track in TRACKS}


def that_starts(calls: list[Call], state: dict, **wanted) -> list[Call]:
    """Calls that began with these weights, with these fields of the recipe."""
    return [
        call
        for call in calls
        if equal(call.start, state) and all(getattr(call.recipe, key) == value for key, value in wanted.items())
    ]


# the two tracks


def test_both_tracks_share_initialisation_and_oracle(runs):
    overflow, retrodiction = runs.values()
    assert equal(overflow.reference("oracle"), retrodiction.reference("oracle"))
    assert equal(overflow.reference("scratch"), retrodiction.reference("scratch"))
    assert not equal(overflow.reference("oracle"), overflow.reference("scratch"))
    assert not equal(overflow.theta_0, retrodiction.theta_0)


def test_pretraining_starts_anew_each_time_and_the_oracles_have_twice_the_updates_or_the_same(made, runs):
    images = len(load("digits:0-4").train)
    calls = that_starts(made[1], runs["overflow"].reference("scratch"))
    (theta_0,) = [call for call in calls if call.images == round(images / 2) and call.recipe.steps is None]
    again = [call for call in calls if call.images == round(images / 2) and call.recipe.steps]
    shorter, double_steps = sorted(again, key=lambda call: len(call.states))
    (oracle,) = [call for call in calls if call.images == images and call.recipe.steps is None]
    (oracle_steps,) = [call for call in calls if call.images == images and call.recipe.steps]
    assert len(calls) == 5
    assert theta_0.images % BATCH == 1
    assert len(oracle_steps.states) == len(theta_0.states)
    assert len(double_steps.states) == 2 * len(theta_0.states)
    assert equal(double_steps.states[-1], runs["overflow"].reference("double_steps"))
    assert len(shorter.states) == round(len(theta_0.states) / 4)
    assert equal(shorter.states[-1], runs["overflow"].reference("shorter"))
    assert len(oracle.states) == pytest.approx(2 * len(theta_0.states), rel=0.05)
    assert equal(oracle.states[-1], runs["overflow"].reference("oracle"))
    assert equal(oracle_steps.states[-1], runs["overflow"].reference("oracle_steps"))
    assert equal(theta_0.states[-1], runs["overflow"].theta_0)


def test_the_retrodiction_track_starts_from_the_oracle(made, runs):
    own = runs["retrodiction"]
    (making_theta_0,) = that_starts(made[1], own.reference("oracle"))
    assert making_theta_0.images == round(len(load("digits:0-4").train) / 2)
    assert making_theta_0.recipe == FORGETTING.step
    assert equal(making_theta_0.states[-1], own.theta_0)


def test_an_eighth_of_the_source_has_oracles_of_its_multiples_on_nested_subsets(tmp_path, monkeypatch):
    settings = FORGETTING.model_copy(update={"d0": 0.125, "length": 2})
    total, splits, real = len(load("digits:0-4").train), [], trajectories.train
    monkeypatch.setattr(trajectories, "train", lambda *a, **k: splits.append(a[2]) or real(*a, **k))
    out, calls = make(["t0"], tmp_path, ["overflow"], settings=settings)
    pretrained = sorted({len(split): split for split in splits if len(split) >= total // 8}.items())
    assert [count for count, _ in pretrained] == [round(total * share) for share in (0.125, 0.25, 0.5, 1)]
    rows = [{tuple(image.flatten().tolist()) for image in split.images} for _, split in pretrained]
    assert all(small <= large for small, large in pairwise(rows))
    made = Trajectory.load(out / "t0" / "overflow")
    for name, factor in (("oracle", 2), ("oracle_x4", 4), ("oracle_x8", 8)):
        (call,) = [call for call in calls if call.states and equal(call.states[-1], made.reference(name))]
        assert (call.images, call.recipe.steps) == (round(total * factor / 8), None)  # for as many epochs
        assert equal(call.start, made.reference("scratch"))


# references


def test_all_references_exist_on_both_tracks_and_differ(runs):
    both = {"scratch", "oracle", "tail_average", "ema", "decay_average", "compute_matched"}
    both |= {"compute_averaged", "compute_augmented", "compute_augmented_averaged"}
    alone = {"oracle_steps", "double_steps", "shorter", "local_oracle"}
    for track, expected in (("overflow", both | alone), ("retrodiction", both)):
        own = runs[track]
        assert own.manifest["references"].keys() == expected
        states = [own.theta_0, *(own.reference(name) for name in sorted(expected))]
        assert all(state.keys() == own.theta_0.keys() for state in states)
        assert not any(equal(one, other) for one, other in itertools.combinations(states, 2))


def plain_averages(states: list[dict]) -> dict[str, dict]:
    """Of the weights after each step: the mean over the last quarter, and the exponential average, in loops."""
    steps = len(states)
    tail, decay = states[-math.ceil(steps / 4) :], max(0.0, 1 - 1 / (0.1 * steps))
    averages = {"tail_average": {}, "ema": {}, "decay_average": {}}
    for name in states[0]:
        values = [state[name].double() for state in states]
        averages["tail_average"][name] = sum(state[name].double() for state in tail) / len(tail)
        average = values[0]
        for value in values[1:]:
            average = decay * average + (1 - decay) * value
        averages["ema"][name] = average
        weights = [math.prod(range(t, t + 3)) for t in range(1, steps + 1)]  # t (t + 1) (t + 2), about t cubed
        averages["decay_average"][name] = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    return averages


@pytest.mark.parametrize("network", ["mlp", "normcnn"])
def test_averages_are_those_of_the_run_that_made_theta_0(made, tmp_path, network):
    """Buffers of normalisation are averaged too."""
    out, calls = made if network == "mlp" else make(["p0"], tmp_path, origin=Origin("digits:0-4", network))
    for track in TRACKS:
        own = Trajectory.load(out / "p0" / track)
        (call,) = [call for call in calls if call.states and equal(call.states[-1], own.theta_0)]
        assert len(call.states) >= 15
        for name, expected in plain_averages(call.states).items():
            for key, tensor in own.reference(name).items():
                if tensor.is_floating_point():
                    torch.testing.assert_close(tensor.double(), expected[key], atol=1e-5, rtol=1e-5)
    assert network == "mlp" or "norm1.running_var" in own.theta_0


@pytest.mark.parametrize("epochs", [1, 2])
def test_compute_matched_goes_on_from_theta_0_for_as_many_steps_as_forgetting_took(made, tmp_path, epochs):
    step = FORGETTING.step.model_copy(update={"epochs": epochs})
    out, calls = made
    if epochs > 1:
        out, calls = make(["p0"], tmp_path, settings=FORGETTING.model_copy(update={"step": step}))
    for track in TRACKS:
        own = Trajectory.load(out / "p0" / track)
        half = round(len(load("digits:0-4").train) / 2)
        further = [call for call in that_starts(calls, own.theta_0) if call.recipe.steps]
        further = [call for call in further if call.recipe.augment == "none"]
        steps, beside = [], []
        for state, other in zip(
            reversed(own.states[1:]), reversed(own.placebo.states[1:]), strict=True
        ):  # theta_0 first
            (call,) = that_starts(calls, state, steps=None)
            steps.append(call)
            number = len(call.states)
            beside += [c for c in that_starts(calls, other, steps=number) if c.images == half and number < 2 * half]
        # one run gives the last weights and the mean of its late ones
        (matched,) = [c for c in further if c.images == half and len(c.states) == sum(len(s.states) for s in steps)]
        assert [len(call.states) for call in beside] == [len(call.states) for call in steps]  # the placebo's
        assert equal(beside[-1].states[-1], own.placebo.states[0])
        if track == "overflow":
            (local,) = [call for call in further if call.images > half]
            assert len(local.states) == len(matched.states)
            assert equal(local.states[-1], own.reference("local_oracle"))
        assert [call.images for call in steps] == [round(matched.images / 2**k) for k in (1, 2, 3, 4)]
        assert len(matched.states) == sum(len(call.states) for call in steps)
        assert equal(matched.states[-1], own.reference("compute_matched"))
        assert equal(steps[-1].states[-1], own.states[0])  # forgetting went its own way from theta_0


@pytest.mark.parametrize("network", ["mlp", "normcnn"])
def test_averages_of_further_training_are_means_of_its_late_weights(made, tmp_path, network):
    """Running statistics are measured with those weights on the first images of D0 instead; others keep their own."""
    out, calls = made if network == "mlp" else make(["p0"], tmp_path, origin=Origin("digits:0-4", network))
    dataset = load("digits:0-4")
    for track in TRACKS:
        own = Trajectory.load(out / "p0" / track)
        (first,) = nested_subsets(len(dataset.train), seed=stream(own.manifest["source_seed"], "D0"), fractions=[0.5])
        d0 = dataset.train.take(first)
        for name, last in (
            ("compute_averaged", "compute_matched"),
            ("compute_augmented_averaged", "compute_augmented"),
        ):
            further = [call for call in that_starts(calls, own.theta_0) if call.states]
            call = next(call for call in further if equal(call.states[-1], own.reference(last)))
            assert call.recipe.augment == ("shift" if "augmented" in name else "none")
            late, found = call.states[len(call.states) // 2 :], own.reference(name)
            means = {key: sum(state[key].double() for state in late) / len(late) for key in found}
            model = build(network, dataset.shape, len(dataset.classes))
            model.load_state_dict(found)
            recalibrate(model, dataset, d0.take(range(min(trajectories.MEASURED, len(d0)))))
            assert equal(model.state_dict(), found)
            for key, tensor in found.items():
                if tensor.is_floating_point() and "running" not in key:
                    torch.testing.assert_close(tensor.double(), means[key], atol=1e-5, rtol=1e-5)


# what is kept, interruptions, refusals


def test_the_manifests_tell_what_was_made(made):
    top = read_json(made[0] / "manifest.json")
    assert sorted(top["trajectories"]) == [f"p0/{track}/manifest.json" for track in TRACKS]
    for place in top["trajectories"]:
        manifest = read_json(made[0] / place)
        images = [snapshot["images"] for snapshot in manifest["snapshots"]]
        assert images[-1] == round(len(load("digits:0-4").train) / 2)
        assert images == [round(f * images[-1]) for f in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)]
        accuracies = {key for key in manifest["snapshots"][0] if "accuracy" in key}
        assert accuracies == {"test_accuracy", "left_out_accuracy", "left_out_accuracy_theta_0"}
        assert not any("left_out" in key for key in manifest["snapshots"][-1])  # nothing is left out of D0
        assert ("oracle_steps" in manifest["references"]) == (manifest["track"] == "overflow")


def test_images_that_a_step_leaves_out_are_shown_to_its_snapshot_and_to_theta_0(made):
    dataset = load("digits:0-4")
    model = build("mlp", dataset.shape, len(dataset.classes))

    def answers(state, part) -> float:
        model.load_state_dict(state)
        return round(accuracy(model, dataset, part), 6)

    for track in TRACKS:
        own = Trajectory.load(made[0] / "p0" / track)
        seed = own.manifest["source_seed"]
        (first,) = nested_subsets(len(dataset.train), seed=stream(seed, "D0"), fractions=[0.5])
        d0 = dataset.train.take(first)
        subsets = nested_subsets(len(d0), seed=stream(seed, "subsets"), fractions=own.fractions)
        for snapshot, state, subset in list(zip(own.manifest["snapshots"], own.states, subsets, strict=True))[:-1]:
            rest = d0.take(sorted(set(range(len(d0))) - set(torch.as_tensor(subset).tolist())))
            assert snapshot["left_out_accuracy"] == answers(state, rest)
            assert snapshot["left_out_accuracy_theta_0"] == answers(own.theta_0, rest)


def test_an_interrupted_origin_continues_to_the_same_bytes(made, tmp_path, folder_bytes, monkeypatch):
    real, calls = trajectories.train, []

    def stops(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(trajectories, "train", stops)
    with pytest.raises(KeyboardInterrupt):
        make(["p0"], tmp_path)
    out, _ = make(["p0"], tmp_path)
    assert folder_bytes(out) == folder_bytes(made[0])


@pytest.mark.slow
def test_trajectories_are_independent_of_which_others_are_made_and_by_how_many_processes(made, tmp_path, folder_bytes):
    out, _ = make(["t0", "p0"], tmp_path, processes=2)
    assert folder_bytes(out / "p0") == folder_bytes(made[0] / "p0")
    first, second = (Trajectory.load(out / name / "overflow") for name in ("p0", "t0"))
    assert not equal(first.reference("scratch"), second.reference("scratch"))


def test_too_small_a_subset_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(trajectories, "train", lambda *_, **__: pytest.fail("trained"))
    strict = FORGETTING.model_copy(update={"smallest": 64})
    with pytest.raises(KnowError, match=r"digits:0-4.*20 images.*64.*smallest"):
        make(["t0"], tmp_path, settings=strict)
    assert list(tmp_path.iterdir()) == []


def test_carrying_the_optimiser_is_an_option_that_changes_later_snapshots(made, runs, tmp_path):
    fresh = FORGETTING.model_copy(update={"carry_optimizer": False})
    out, _ = make(["p0"], tmp_path, ["overflow"], settings=fresh)
    anew = Trajectory.load(out / "p0" / "overflow")
    assert equal(runs["overflow"].theta_0, anew.theta_0)
    assert not equal(runs["overflow"].states[-2], anew.states[-2])
    assert read_json(out / "manifest.json")["forgetting"]["carry_optimizer"] is False


@pytest.mark.parametrize("carry", [True, False])
def test_all_that_goes_on_from_theta_0_takes_over_the_same_state_of_the_optimiser(made, tmp_path, carry):
    """Further training, its oracle, the first forgetting step and the placebo differ in their images alone."""
    settings = FORGETTING.model_copy(update={"carry_optimizer": carry})
    out, calls = made if carry else make(["p0"], tmp_path, settings=settings)
    for track in TRACKS:
        own = Trajectory.load(out / "p0" / track)
        further = that_starts(calls, own.theta_0)
        assert len(further) >= 4
        if not carry:
            assert not any(call.optimizer for call in further)
            continue
        first, *others = (moments(call.optimizer) for call in further)
        assert first
        assert all(equal(first, other) for other in others)


def moments(state: dict) -> dict:
    """The tensors of a state of Adam, by name."""
    return {f"{k}.{name}": tensor for k, each in state["state"].items() for name, tensor in each.items()}
