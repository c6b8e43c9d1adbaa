"""Structured forgetting with anybody's model, data and training function, also where it is interrupted."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from small_model import equal
from torch.utils.data import TensorDataset
from training_functions import AdamCarried, Fit, interrupted, new_data, new_model

import know
from know.errors import KnowError


@pytest.fixture(scope="module")
def data() -> TensorDataset:
    return new_data()


# anybody's model, data and training function


def test_subsets_are_nested_and_training_is_sequential(tmp_path, data):
    fit, model = Fit(), new_model()
    trajectory = know.forget(model, data, fit, ratio=0.5, length=4, seed=3, out=tmp_path / "run")
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


def test_a_finished_trajectory_that_has_lost_a_snapshot_is_not_taken_for_whole(tmp_path, data):
    know.forget(new_model(), data, Fit(), length=3, out=tmp_path / "run").paths[1].unlink()
    with pytest.raises(KnowError, match=r"has lost s1\.safetensors; make the trajectory again"):
        know.forget(new_model(), data, Fit(), length=3, out=tmp_path / "run")


def test_a_trajectory_that_has_lost_other_weights_still_predicts_and_names_them_where_asked(tmp_path, data):
    further = {"placebo": Fit(), "references": {"mine": new_model().state_dict()}}
    made = know.forget(new_model(), data, Fit(), length=3, out=tmp_path / "run", **further)
    for name in ("p1", "mine"):
        made.paths[0].with_name(f"{name}.safetensors").unlink()
    again = know.Trajectory.load(tmp_path / "run")
    assert equal(know.predict(again, "linear"), know.predict(made, "linear"))
    with pytest.raises(KnowError, match=r"mine\.safetensors does not exist"):
        again.reference("mine")
    with pytest.raises(KnowError, match=r"p1\.safetensors does not exist"):
        _ = again.placebo.states


def test_fractions_may_be_given(tmp_path, data):
    fit = Fit()
    trajectory = know.forget(new_model(), data, fit, fractions=np.array([0.25, 0.75, 1]), out=tmp_path / "run")
    assert [len(indices) for indices, _ in fit.calls] == [72, 24]
    assert trajectory.fractions == (0.25, 0.75, 1.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ratio": 0.5, "length": 9}, "96 items are too few .*0\\.00390625.*empty"),
        ({"ratio": 1.0}, "ratio must lie between 0 and 1"),
        ({"ratio": 1.5}, "ratio must lie between 0 and 1"),
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
    whole, cut, rest = kind(), kind(), kind()
    know.forget(new_model(), data, whole, out=tmp_path / "whole")
    with interrupted(fail_at):
        know.forget(new_model(), data, cut, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    know.forget(new_model(), data, rest, out=tmp_path / "run")
    assert [indices for indices, _ in cut.calls[:-1] + rest.calls] == [indices for indices, _ in whole.calls]
    assert folder_bytes(tmp_path / "run") == folder_bytes(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "whole"]


def test_a_run_that_was_interrupted_on_a_gpu_continues_without_one(tmp_path, data, folder_bytes, monkeypatch):
    know.forget(new_model(), data, AdamCarried(), out=tmp_path / "whole")
    with monkeypatch.context() as patch:  # what torch writes beside a tensor on a GPU
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        with interrupted(3):
            know.forget(new_model(), data, AdamCarried(), out=tmp_path / "run")
    know.forget(new_model(), data, AdamCarried(), out=tmp_path / "run")
    assert folder_bytes(tmp_path / "run") == folder_bytes(tmp_path / "whole")


def test_a_run_that_is_interrupted_while_it_finishes_needs_no_state_of_fit(tmp_path, data, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(know.recording.Recorder, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            know.forget(new_model(), data, AdamCarried(), out=tmp_path / "run", placebo=AdamCarried())
    assert not list((tmp_path / "run.partial").glob("fit-*"))
    fits = AdamCarried(), AdamCarried()
    model = new_model()
    made = know.forget(model, data, fits[0], out=tmp_path / "run", placebo=fits[1])
    assert not any(fit.calls for fit in fits)
    assert equal(model.state_dict(), made.states[0])


def test_carrying_adam_makes_a_difference(tmp_path, data):
    fresh, carried = (
        know.forget(new_model(), data, kind(), out=tmp_path / kind.__name__) for kind in (Fit, AdamCarried)
    )
    assert equal(fresh.states[-2], carried.states[-2])
    assert not equal(fresh.states[-3], carried.states[-3])


def test_an_interrupted_call_may_be_repeated_with_the_same_model_object(tmp_path, data):
    """As in a notebook: stop the cell, run it again. theta_0 must not become what the interruption left."""
    model = new_model()
    with interrupted(2):
        know.forget(model, data, Fit(), out=tmp_path / "run")
    trajectory = know.forget(model, data, Fit(), out=tmp_path / "run")
    assert equal(trajectory.theta_0, new_model().state_dict())


def test_an_interrupted_run_of_other_settings_is_refused_and_kept(tmp_path, data, folder_bytes):
    with interrupted(3):
        know.forget(new_model(), data, Fit(), ratio=0.5, out=tmp_path / "run")
    before, fit = folder_bytes(tmp_path), Fit()
    with pytest.raises(KnowError, match=r"unfinished work of other settings \(fractions\)"):
        know.forget(new_model(), data, fit, ratio=0.6, out=tmp_path / "run")
    assert not fit.calls
    assert folder_bytes(tmp_path) == before


def test_a_finished_run_is_returned_and_not_repeated(tmp_path, data):
    first, again = Fit(), Fit()
    trajectory = know.forget(new_model(), data, first, out=tmp_path / "run")
    found = know.forget(new_model(), data, again, out=tmp_path / "run")
    assert not again.calls
    assert equal(found.states[0], trajectory.states[0])


@pytest.mark.parametrize("other", [{"ratio": 0.6}, {"seed": 1}, {"length": 4}, {"facts": {"note": "other"}}])
def test_a_finished_run_of_other_settings_is_refused_and_kept(tmp_path, data, folder_bytes, other):
    know.forget(new_model(), data, Fit(), out=tmp_path / "run")
    before = folder_bytes(tmp_path / "run")
    with pytest.raises(KnowError, match="other weights, data, settings or `fit`"):
        know.forget(new_model(), data, Fit(), out=tmp_path / "run", **other)
    assert folder_bytes(tmp_path / "run") == before


def test_one_changed_weight_is_another_run(tmp_path, data):
    know.forget(new_model(), data, Fit(), out=tmp_path / "run")
    model = new_model()
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6
    with pytest.raises(KnowError, match="other weights"):
        know.forget(model, data, Fit(), out=tmp_path / "run")


# what a manifest cannot hold is refused before any training


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"facts": {"seed": 0}}, "facts has 'seed', a name that the manifest uses itself"),
        ({"facts": {"fit": "sgd"}}, "facts has 'fit'"),
        ({"facts": {"loss": float("nan")}}, "facts must be JSON-serialisable, with finite numbers"),
        ({"references": {"s0": {"w": torch.ones(1)}}}, "references: 's0' cannot name a file"),
        ({"references": {"a/b": {"w": torch.ones(1)}}}, "references: 'a/b' cannot name a file"),
        ({"references": {"mine": 5}}, r"references\['mine'\] must be a module or a state_dict"),
    ],
)
def test_facts_and_references_that_cannot_be_kept_are_refused_before_training(tmp_path, data, asked, said):
    fit = Fit()
    with pytest.raises(KnowError, match=said):
        know.forget(new_model(), data, fit, out=tmp_path / "run", **asked)
    assert not fit.calls
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ({"loss": float("nan")}, "with finite numbers"),
        ({"loss": torch.tensor(1.0)}, "JSON-serialisable"),
        ({"images": 3}, "'images', a name"),
        ({"sha256": "0"}, "'sha256', a name"),
    ],
)
def test_a_snapshot_with_facts_that_cannot_be_kept_is_not_recorded(tmp_path, data, fact, said):
    """So that the call goes on to a whole trajectory when `describe` is mended."""
    with pytest.raises(KnowError, match=said):
        know.forget(new_model(), data, Fit(), out=tmp_path / "run", describe=lambda model, index: fact)
    made = know.forget(new_model(), data, Fit(), out=tmp_path / "run", describe=lambda model, index: {"loss": 1.0})
    assert [snapshot["loss"] for snapshot in made.manifest["snapshots"]] == [1.0] * 5


def test_a_finished_folder_without_a_reference_that_is_asked_for_is_not_taken(tmp_path, data):
    know.forget(new_model(), data, Fit(), out=tmp_path / "run")
    with pytest.raises(KnowError, match="is finished and keeps no reference weights 'mine'"):
        know.forget(new_model(), data, Fit(), out=tmp_path / "run", references={"mine": new_model()})


def test_a_finished_folder_is_taken_by_another_version_of_the_package(tmp_path, data, monkeypatch):
    """What it holds does not depend on the code that reads it; only unfinished work has to be of the same code."""
    made = know.forget(new_model(), data, Fit(), out=tmp_path / "run")
    monkeypatch.setattr(know.forgetting, "code_hash", lambda entry: "another")
    assert know.forget(new_model(), data, Fit(), out=tmp_path / "run") == made


def test_a_state_of_fit_that_could_not_be_loaded_again_is_refused_before_training(tmp_path, data):
    class Unsafe(Fit):
        def state_dict(self):
            return {"path": Path("here")}

        def load_state_dict(self, state):
            pass

    fit = Unsafe()
    with pytest.raises(KnowError, match=r"fit\.state_dict\(\) holds something that cannot be loaded again safely"):
        know.forget(new_model(), data, fit, out=tmp_path / "run")
    assert not fit.calls


def test_a_theta_0_with_values_that_are_not_finite_is_said_before_training_and_named_as_the_cause(tmp_path, data):
    """What is trained from it has them in other tensors too, and `fit` is not to blame."""
    model = new_model()
    last = list(model.state_dict())[-1]
    model.state_dict()[last].view(-1)[0] = float("nan")
    with (
        pytest.warns(UserWarning, match=f"theta_0 has values that are not finite .* in '{last}'"),
        pytest.raises(KnowError, match=f"after fit on fraction 0.5 tensor .*; '{last}' had such values before it"),
    ):
        know.forget(model, data, Fit(), out=tmp_path / "run")


def test_a_mask_of_infinite_values_is_no_fault_of_theta_0(tmp_path, data, recwarn):
    """It is a buffer, whatever its name, and stays as it is."""
    model = new_model()
    model.register_buffer("attn_bias", torch.full((3, 3), float("-inf")).triu(1))
    made = know.forget(model, data, Fit(), out=tmp_path / "run")
    assert not [warning for warning in recwarn if "not finite" in str(warning.message)]
    assert torch.equal(know.predict(made, "linear")["attn_bias"], made.theta_0["attn_bias"])


def test_a_fit_that_renames_tensors_is_told_so(tmp_path, data):
    def prune(model, subset):
        torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)

    with pytest.raises(KnowError, match="changed the names of the model's tensors, such as '0"):
        know.forget(new_model(), data, prune, out=tmp_path / "run")
