"""What did not move is not predicted, by any method; and what is said of unusual values and settings."""

import contextlib
import io

import pytest
import torch
from safetensors.torch import load_file
from snapshot_files import FRACTIONS, base, normal, predict_to

import know
from know.cli import app
from know.errors import KnowError
from know.export import Changes, Request, notes, plan, predict_files
from know.prediction import Piece, predicted
from know.trajectory import Trajectory

# what did not move


@pytest.mark.parametrize(
    "still",
    [
        torch.full((6, 6), float("-inf")).triu(1),
        torch.tensor([0.0, -0.0, 1.0, float("nan")]),
        torch.zeros(5, 5),
        torch.ones(300_000),  # more than one piece
    ],
    ids=["mask", "nan", "zeros", "large"],
)
@pytest.mark.parametrize("method", ["known", "linear", "shrink", "shrink_and_perturb"])
def test_a_tensor_that_is_the_same_in_all_snapshots_is_copied(written, tmp_path, still, method):
    trajectory = written(lambda k: {**base(k), "table": still.clone()})
    found = know.predict(trajectory, method)
    assert torch.equal(found["table"].view(torch.uint8), still.view(torch.uint8))
    assert not torch.equal(found["fc.weight"], base(0)["fc.weight"])
    predict_to(trajectory, tmp_path / "out", method=method)
    kept = load_file(tmp_path / "out/model.safetensors")["table"]
    assert torch.equal(kept.view(torch.uint8), still.view(torch.uint8))
    assert {row.tensor: row.action for row in plan(trajectory)}["table"] == "copied: the same in all snapshots"


def test_a_large_tensor_that_moves_at_its_end_alone_is_predicted(written):
    def make(k):
        tensor = torch.ones(300_000)
        tensor[-1] += 0.01 * k
        return {"large": tensor}

    assert know.predict(written(make), "linear")["large"][-1] != 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda k: base(0), "all snapshots hold the same weights: nothing was forgotten"),
        (lambda k: {}, "0 weights would be predicted"),
        (lambda k: {"a": torch.arange(3)}, "0 weights would be predicted"),
        (lambda k: {"a.weight": torch.zeros(0), "b.weight": torch.zeros(0)}, "0 weights would be predicted"),
    ],
    ids=["equal", "empty", "integers", "empty tensors"],
)
def test_a_prediction_of_nothing_is_an_error(written, tmp_path, make, said):
    trajectory = written(make, ".pt")
    with pytest.raises(KnowError, match=said):
        know.predict(trajectory)
    with pytest.raises(KnowError, match=said):
        predict_files(trajectory, Request(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# the Python interface


def test_global_settings_of_torch_neither_matter_nor_change(written):
    trajectory = written(base)
    expected = know.predict(trajectory, "shrink_and_perturb"), know.predict(trajectory)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")  # stands for "cuda" on a machine without one
        fresh = Trajectory.from_checkpoints(trajectory.paths, FRACTIONS)
        found = know.predict(fresh, "shrink_and_perturb"), know.predict(fresh)
        assert (torch.get_default_dtype(), torch.get_default_device().type) == (torch.float64, "meta")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_rounding_to_a_coarser_dtype_is_no_movement(written):
    frozen = normal(4, 4)

    def make(k):
        dtype = torch.float32 if k else torch.bfloat16
        return {name: tensor.to(dtype) for name, tensor in {**base(k), "frozen": frozen}.items()}

    assert torch.equal(know.predict(written(make))["frozen"], frozen.bfloat16())


WRONG = {
    "trajectory": lambda t, m: know.predict("run/"),
    "depth": lambda t, m: know.predict(t, depth="2"),
    "scale": lambda t, m: know.predict(t, scale="0.5"),
    "method": lambda t, m: know.predict(t, None),
    "unknown method": lambda t, m: know.predict(t, ["linear"]),
    "roles": lambda t, m: know.predict(t, roles=["head.*"]),
    "known": lambda t, m: know.predict(t, known=5),
    "seed": lambda t, m: know.predict(t, seed="a"),
    "model": lambda t, m: know.forget(m.state_dict(), [0] * 64, print, out="a"),
    "dataset": lambda t, m: know.forget(m, iter([]), print, out="a"),
    "fit": lambda t, m: know.forget(m, [0] * 64, "train", out="a"),
    "out": lambda t, m: know.forget(m, [0] * 64, print, out=None),
    "length": lambda t, m: know.forget(m, [0] * 64, print, length=2.5, out="a"),
    "ratio": lambda t, m: know.forget(m, [0] * 64, print, ratio="half", out="a"),
    "fractions": lambda t, m: know.forget(m, [0] * 64, print, fractions=["1/2", "1"], out="a"),
    "lazy": lambda t, m: know.forget(torch.nn.LazyLinear(3), [0] * 64, print, out="a"),
    "from_checkpoints": lambda t, m: Trajectory.from_checkpoints("run/", FRACTIONS),
    "from_checkpoints takes a list": lambda t, m: Trajectory.from_checkpoints(None, FRACTIONS),
    "key": lambda t, m: Trajectory.from_checkpoints(t.paths, FRACTIONS, key=5),
    "strip": lambda t, m: Trajectory.from_checkpoints(t.paths, FRACTIONS, strip=[None]),
    "the pattern 1": lambda t, m: know.predict(t, roles={1: "skip"}),
    "describe": lambda t, m: know.forget(m, [0] * 64, print, describe=5, out="a"),
    "references": lambda t, m: know.forget(m, [0] * 64, print, references=5, out="a"),
    "facts": lambda t, m: know.forget(m, [0] * 64, print, facts={"a": torch.ones(1)}, out="a"),
    "above 0 and not above 1": lambda t, m: know.nested_subsets(64, fractions=[0.5, 2]),
}


@pytest.mark.parametrize("argument", WRONG)
def test_a_wrong_argument_is_named(written, tmp_path, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KnowError, match=argument):
        WRONG[argument](written(base), torch.nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("fractions", "said"),
    [
        ([0.9, 0.95, 0.98, 0.99, 1], "meta-trained for 0.30 to 0.90"),
        ([0.2, 0.4, 0.6, 0.8, 1], "meta-trained on equal ones"),
    ],
)
def test_ratios_outside_what_known_was_shown_are_said(written, tmp_path, fractions, said):
    trajectory = Trajectory.from_checkpoints(written(base).paths, fractions)
    assert any(said in note for note in predict_to(trajectory, tmp_path / "out"))
    assert said in (tmp_path / "out/README.md").read_text()
    assert not predict_to(written(base), tmp_path / "usual")


def test_large_weights_are_counted(written, tmp_path):
    trajectory = written(lambda k: {"fc.weight": torch.tensor([[0.1, 4.0], [-3.0, 1.0]]) * (1 + 0.01 * k)})
    assert any(note.startswith("2 weights are larger than 2") for note in predict_to(trajectory, tmp_path / "out"))


@pytest.mark.parametrize(("length", "said"), [(1e-4, True), (0.05, False), (0.5, True)])
def test_steps_of_a_length_that_known_has_hardly_met_are_said(written, length, said):
    """Every role moves by the same share of theta_0 in each step; what never moves says nothing."""
    start = {name: tensor for name, tensor in base(0).items() if tensor.is_floating_point()}
    frozen = {"frozen.weight": torch.full((50, 50), 3.0)}
    trajectory = written(lambda k: {name: (1 + length * k) * tensor for name, tensor in start.items()} | frozen)
    found = [note for note in notes(trajectory, Request()) if "has hardly met" in note]
    assert bool(found) == said
    if said:
        assert all(f"{length:.2g} ({role}; 0.0" in found[0] for role in set(predicted(trajectory).values()))
    assert not any("has hardly met" in note for note in notes(trajectory, Request("linear")))


def test_weights_that_run_away_are_counted(written):
    theta_0 = torch.tensor([0.1, -0.2, 0.4, 0.0])
    changes = Changes()
    changes.add(Piece("fc.weight", "fc", 0, theta_0, torch.tensor([0.59, -0.7, 0.4, 0.61])))
    assert changes.runaway == 2
    usual = Changes()
    usual.add(Piece("fc.weight", "fc", 0, theta_0, 1.4 * theta_0))
    tiny = Changes()
    tiny.add(Piece("fc.bias", "bias", 0, torch.full((3,), 1e-4), torch.full((3,), 1e-2)))
    assert tiny.runaway == 0
    said = "predicted weights are more than 1.5 times"
    assert any(note.startswith(f"2 {said}") for note in notes(written(base), Request(), changes))
    assert not any(said in note for note in notes(written(base), Request(), usual))


def test_weights_at_which_known_overflows_are_named_with_the_way_out(written, tmp_path):
    trajectory = written(lambda k: {"fc.weight": torch.full((2, 2), 20.0 + k), "head.weight": torch.rand(2, 2) + k / 9})
    with pytest.raises(KnowError, match=r"overflows at tensor 'fc\.weight'.*--skip 'fc\.weight' leaves it alone"):
        know.predict(trajectory)
    left_alone = know.predict(trajectory, roles={"fc.weight": "skip"})
    assert torch.equal(left_alone["fc.weight"], trajectory.theta_0["fc.weight"])


def test_inspect_takes_the_reading_options_of_predict(written):
    def make(k):
        return {
            "state_dict": {f"module.{n}": t for n, t in base(k).items()} | {"module.mask": torch.ones(3, 3)},
            "epoch": 1,
        }

    trajectory = written(make, ".pt")
    line = ["inspect", *map(str, trajectory.paths), "--fractions", ",".join(map(str, FRACTIONS)), "--key", "state_dict"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        app([*line, "--strip", "module.", "--skip", "conv.*"], standalone_mode=False)
    assert "fc.weight" in said.getvalue()
    assert not any(name in said.getvalue() for name in ("conv.weight", "mask", "module."))
