"""Choosing among predictions by a number of the user's: what is kept, how many are judged, what the choice costs."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_model import FRACTIONS, GIVEN, call, equal

import know
from know.choosing import candidates, choose_files
from know.errors import KnowError
from know.export import Request
from know.trajectory import Trajectory

LINEAR, SHRINK = Request("linear"), Request("shrink", 3)
DISTANCE = """
import torch
from pathlib import Path
from safetensors.torch import load_file

FOLDER = Path(__file__).parent
TARGET = load_file(FOLDER / "target.safetensors")

def score(checkpoint):
    with open(FOLDER / "asked", "a") as file:
        file.write(".")
    return -float((load_file(checkpoint)["fc.weight"] - TARGET["fc.weight"]).norm())

def halves(checkpoint, split):
    weights = load_file(checkpoint)["fc.weight"]
    with open(FOLDER / "asked", "a") as file:
        file.write({"choice": "c", "check": "k"}[split])
    rows = {"choice": 0, "check": 1}[split]
    return -float((weights - TARGET["fc.weight"])[rows::2].norm())

def same(checkpoint):
    return 0.0

def moved(checkpoint):
    return float(not torch.equal(load_file(checkpoint)["fc.weight"], TARGET["fc.weight"]))

def usual(checkpoint, split="validation"):
    return {"validation": 1.0}[split]

def elsewhere(checkpoint):
    import os
    os.chdir("/")
    return torch.tensor([0.0])

def overwrites(checkpoint):
    Path(checkpoint).write_bytes(b"other")
    return 0.0

def removes(checkpoint):
    Path(checkpoint).unlink()
    return 0.0
"""


@pytest.fixture
def trajectory(tmp_path) -> Trajectory:
    dice, paths = torch.Generator().manual_seed(0), []
    theta_0 = {"fc.weight": torch.randn(6, 4, generator=dice), "fc.bias": torch.randn(6, generator=dice)}
    for k in reversed(range(5)):
        paths.append(tmp_path / f"in{k}.safetensors")
        save_file({n: t + 0.1 * k * torch.randn(t.shape, generator=dice) for n, t in theta_0.items()}, paths[-1])
    return Trajectory.from_checkpoints(paths, FRACTIONS)


@pytest.fixture
def script(tmp_path, trajectory):
    """A function that writes the script whose numbers fall with the distance from given weights."""

    def write(target: dict[str, torch.Tensor]) -> Path:
        save_file(target, tmp_path / "target.safetensors")
        (tmp_path / "check.py").write_text(DISTANCE, encoding="utf-8")
        return tmp_path / "check.py"

    return write


def asked(folder: Path) -> str:
    return (folder / "asked").read_text() if (folder / "asked").exists() else ""


@pytest.mark.parametrize(("wanted", "kept"), [(0.4, 0.5), (5, 1.0), (-3, 0.0)])
def test_the_best_length_of_the_step_is_kept_theta_0_included(tmp_path, trajectory, script, wanted, kept):
    target = know.predict(trajectory, "linear", scale=wanted)
    lines = []
    config, _ = choose_files(trajectory, [LINEAR], tmp_path / "out", f"{script(target)}:score", say=lines.append)
    names = ["theta_0", "linear:1 at scale 1", "linear:1 at scale 0.5", "linear:1 at scale 0.25"]
    assert [one["candidate"] for one in config["validate"]["tried"]] == names
    assert (config["scale"], len(lines)) == (kept, 5)
    assert ("Theta_0, unchanged" in (tmp_path / "out/README.md").read_text(encoding="utf-8")) == (kept == 0)
    assert equal(load_file(tmp_path / "out/model.safetensors"), know.predict(trajectory, "linear", scale=kept))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "know_config.yml", "README.md"}
    assert yaml.safe_load((tmp_path / "out/know_config.yml").read_text(encoding="utf-8")) == config


@pytest.mark.parametrize("wanted", [("linear", 1), ("shrink", 3), ("linear", 2)])
def test_the_best_of_several_methods_is_kept(tmp_path, trajectory, script, wanted):
    place = f"{script(know.predict(trajectory, *wanted, scale=0.5))}:score"
    methods = ["--method", "linear", "--method", "shrink:3", "--method", "linear:2"]
    files = [*trajectory.paths, "--fractions", GIVEN]
    assert call("predict", *files, *methods, "--validate", place, "--scale", "0.5,1", "--out", tmp_path / "out") == 0
    config = yaml.safe_load((tmp_path / "out/know_config.yml").read_text(encoding="utf-8"))
    assert (config["method"], config["depth"], config["scale"]) == (*wanted, 0.5)
    assert equal(load_file(tmp_path / "out/model.safetensors"), know.predict(trajectory, *wanted, scale=0.5))
    assert len(asked(tmp_path)) == 7


def test_theta_0_is_kept_where_all_are_equal_and_a_shorter_step_where_two_are(tmp_path, trajectory, script):
    place = script(trajectory.theta_0)
    config, _ = choose_files(trajectory, [LINEAR, SHRINK], tmp_path / "same", f"{place}:same")
    assert (config["scale"], config["virtual_data"]) == (0, None)
    assert equal(load_file(tmp_path / "same/model.safetensors"), trajectory.theta_0)
    config, _ = choose_files(trajectory, [LINEAR], tmp_path / "moved", f"{place}:moved")
    assert config["scale"] == 0.25  # all that have moved are equal


def test_a_split_with_a_default_is_left_to_the_function(tmp_path, trajectory, script):
    place = script(trajectory.theta_0)
    config, _ = choose_files(trajectory, [LINEAR], tmp_path / "out", f"{place}:usual")
    assert "gain_on_check" not in config["validate"]


@pytest.mark.parametrize("name", ["overwrites", "removes"])
def test_a_function_that_changes_what_it_judges_is_stopped(tmp_path, trajectory, script, name):
    with pytest.raises(KnowError, match="changed the checkpoint that it should only read"):
        choose_files(trajectory, [LINEAR], tmp_path / "out", f"{script(trajectory.theta_0)}:{name}")
    assert not (tmp_path / "out").exists()


def test_a_function_that_goes_elsewhere_changes_no_relative_path(tmp_path, trajectory, script, monkeypatch):
    script(trajectory.theta_0)
    monkeypatch.chdir(tmp_path)
    files = [*(path.name for path in trajectory.paths), "--fractions", GIVEN]
    assert call("predict", *files, "--validate", "check.py:elsewhere", "--out", "out") == 0
    assert equal(load_file(tmp_path / "out/model.safetensors"), trajectory.theta_0)


def test_theta_0_is_kept_bit_for_bit_where_its_own_method_would_overflow(tmp_path, script):
    paths = []
    for k in range(3):
        paths.append(tmp_path / f"extreme{k}.safetensors")
        save_file({"fc.weight": torch.tensor([[3e38 * (-1) ** k, -0.0], [1.0, k / 2]])}, paths[-1])
    extreme = Trajectory.from_checkpoints(paths, (0.25, 0.5, 1))
    config, _ = choose_files(extreme, [LINEAR], tmp_path / "out", f"{script(extreme.theta_0)}:same")
    kept = load_file(tmp_path / "out/model.safetensors")["fc.weight"]
    assert config["scale"] == 0
    assert kept.view(torch.int32).equal(extreme.theta_0["fc.weight"].view(torch.int32))


def test_a_candidate_that_overflows_is_left_out(tmp_path, script):
    paths = []
    for k, size in enumerate((1e38, 1.2e38, 1.4e38)):
        paths.append(tmp_path / f"large{k}.safetensors")
        save_file({"fc.weight": torch.full((6, 4), size)}, paths[-1])
    huge, lines = Trajectory.from_checkpoints(paths, (0.25, 0.5, 1)), []
    place, asked = script(huge.theta_0), [Request("linear", options=(("step", 20.0),)), LINEAR]
    config, _ = choose_files(huge, asked, tmp_path / "out", f"{place}:moved", scales=(0.25, 1), say=lines.append)
    assert "linear:1 at scale 1: overflows, not judged" in lines
    assert (config["method"], config["options"], config["scale"]) == ("linear", {}, 0.25)


def test_a_limit_of_evaluations_counts_every_call_and_keeps_theta_0_and_each_method(tmp_path, trajectory, script):
    target = know.predict(trajectory, "linear", scale=0.25)
    for function, limit, tried in (("score", 3, 3), ("halves", 6, 4), ("halves", 100, 7)):
        (tmp_path / "asked").unlink(missing_ok=True)
        place, out = f"{script(target)}:{function}", tmp_path / f"{function}{limit}"
        lines = []
        config, _ = choose_files(trajectory, [LINEAR, SHRINK], out, place, evaluations=limit, say=lines.append)
        assert any(f"{tried} of 7 candidates are judged; not: " in line for line in lines) == (tried < 7)
        assert len(config["validate"]["tried"]) == tried
        assert len(asked(tmp_path)) == min(limit, 7 + 2 * (function == "halves"))
        first = ["theta_0", "linear:1 at scale 1", "shrink:3 at scale 1"]
        assert [one["candidate"] for one in config["validate"]["tried"]][:3] == first
    with pytest.raises(KnowError, match="2 and 2 for the second split"):
        choose_files(trajectory, [LINEAR], tmp_path / "none", place, evaluations=3)


def test_splits_that_are_the_same_data_are_told_so(tmp_path, trajectory, script):
    place = script(know.predict(trajectory, "linear", scale=0.5))
    text = place.read_text() + "\n\ndef careless(checkpoint, split):\n    return score(checkpoint)\n"
    place.write_text(text, encoding="utf-8")
    config, _ = choose_files(trajectory, [LINEAR], tmp_path / "out", f"{place}:careless")
    assert config["validate"]["said"].endswith("so they seem to be the same data")


def test_candidates_are_theta_0_and_then_each_method_at_the_first_length():
    found = [(one.method, one.scale) for one in candidates([LINEAR, SHRINK], (1, 0, 0.5, 1))]
    assert found == [("linear", 0), ("linear", 1), ("shrink", 1), ("linear", 0.5), ("shrink", 0.5)]


def test_the_second_split_says_what_the_choice_cost(tmp_path, trajectory, script):
    """The target is one half-step in the rows of the choice, and theta_0 in the rows of the check."""
    half, theta_0 = know.predict(trajectory, "linear", scale=0.5), trajectory.theta_0
    target = {**theta_0, "fc.weight": theta_0["fc.weight"].clone()}
    target["fc.weight"][0::2] = half["fc.weight"][0::2]
    config, _ = choose_files(trajectory, [LINEAR], tmp_path / "out", f"{script(target)}:halves")
    step = half["fc.weight"] - theta_0["fc.weight"]
    facts = config["validate"]
    assert config["scale"] == 0.5
    assert facts["gain"] == pytest.approx(float(step[0::2].norm()), rel=1e-5)
    assert facts["gain_on_check"] == pytest.approx(-float(step[1::2].norm()), rel=1e-5)
    assert "which does not confirm it: theta_0 is better there" in facts["said"]
    assert asked(tmp_path) == "ckccck"  # theta_0 twice, the others once, and what was kept once more
    assert f"{facts['gain'] - facts['gain_on_check']:+.4g}, estimates" in facts["said"]
    assert facts["said"] in (tmp_path / "out/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("script", "name", "said"),
    [
        ("def f(path): return 1 / 0", "f", "line 1: ZeroDivisionError"),
        ("def f(path):\n    return float('nan')", "f", "no finite number"),
        ("def f(path): return None", "f", "must return one number; it returned a NoneType"),
        ("def f(path): return 1, 2", "f", "it returned a tuple"),
        ("def f(path): return '0.5'", "f", "it returned a str"),
        ("import torch\ndef f(path): return torch.zeros(2)", "f", "it returned a Tensor"),
        ("def f(path, split): return {'choice': 1}[split]", "f", "KeyError"),
        ("def g(path): return 1", "f", "no function 'f'"),
        ("import nothing_like_it", "f", "ModuleNotFoundError"),
        ("def f(", "f", "SyntaxError"),
        (None, "f", "a script that exists"),
    ],
)
def test_a_validation_that_fails_is_named_and_nothing_is_left(tmp_path, trajectory, script, name, said):
    if script is not None:
        (tmp_path / "check.py").write_text(script)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KnowError, match=said):
        choose_files(trajectory, [LINEAR], tmp_path / "out", f"{tmp_path / 'check.py'}:{name}", scales=(1,))
    assert sorted(path for path in tmp_path.iterdir() if path.name != "__pycache__") == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "linear", "--method", "shrink"], "--method takes several values only with --validate"),
        (["--scale", "0.5,1"], "--scale takes several values only with --validate"),
        (["--evaluations", 4], "--evaluations belongs to a choice"),
        (["--method", "linear:x"], "NAME or NAME:depth"),
        (["--method", "linear", "-o", "depth=3"], "option of method linear 'depth'"),
        (["--method", "linear", "-o", "predictor=known"], "option of method linear 'predictor'"),
        (["--validate", ""], "write it as SCRIPT.py:function"),
        (["--scale", "0", "--validate", "check.py:score"], "theta_0 is the only candidate"),
        (["--threads", 10**12], "--threads"),
        (["--method", "known", "--method", "typo", "--validate", "check.py:score"], "typo"),
        (["--method", "known", "--method", "mean:2", "--validate", "check.py:score"], "mean has no depth"),
        (["--scale", "0.5,nan", "--validate", "check.py:score"], "nan"),
        (["--method", "linear", "--method", "shrink", "-o", "step=1", "--validate", "check.py:score"], "one --method"),
        (["--evaluations", 1, "--validate", "check.py:score"], "theta_0 and one prediction need 2"),
    ],
)
def test_what_cannot_be_chosen_is_said(tmp_path, trajectory, script, arguments, said, capsys, monkeypatch):
    script(trajectory.theta_0)
    monkeypatch.chdir(tmp_path)
    files = [*trajectory.paths, "--fractions", GIVEN]
    assert call("predict", *files, "--out", tmp_path / "out", *arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not asked(tmp_path)  # nothing was judged before
