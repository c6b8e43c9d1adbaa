"""The command line: its help, what it writes, and one line with the culprit for every wrong input."""

import contextlib
import errno
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file, save_file

import know
from know import cli, inspection
from know import methods as predictors
from know.checkpoints import load_state, save_state
from know.files import sha256_file
from know.known import PRETRAINED

TINY = Path(__file__).parents[1] / "suites" / "tiny.yaml"
CELL = "overflow.digits_0-4.digits_5-9.mlp.100"
COMMANDS = typer.main.get_command(cli.app).commands
ALL_FRACTIONS = "0.0625,0.125,0.25,0.5,1"


def call(*arguments: object) -> int:
    """Run `know` in this process as its entry point does; the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["know", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            return 0 if end.code is None else end.code
    return 0


@pytest.fixture
def fails(capsys):
    """Function that runs `know` and wants exit code 2 and one line on standard error; returns the line."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        code = call(*arguments)
        output, error = capsys.readouterr()
        assert (code, "Traceback" in output + error) == (2, False), error
        assert len(error.splitlines()) == 1, error
        assert error.startswith("know: error: ")
        return error

    return run


@pytest.fixture
def place(tmp_path, monkeypatch, trajectory, hyper):
    """The current folder: a trajectory `run/`, a KNOWN, and an earlier result that must stay as it is."""
    shutil.copytree(trajectory.paths[0].parent, tmp_path / "run")
    hyper.save(tmp_path / "known.safetensors")
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "model.safetensors").write_bytes(b"an earlier result")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def intact(place, folder_bytes):
    """Function: whether all files that were there at its first call still are as they were, and nothing half made."""
    before = {}

    def check() -> None:
        after = folder_bytes(place)
        if not before:
            before.update(after)
        assert {name: after.get(name) for name in before} == before
        assert not (place / "better").exists()

    return check


def snapshots(folder: Path = Path("run")) -> list[Path]:
    """Smallest subset first."""
    return [folder / f"s{k}.safetensors" for k in reversed(range(5))]


# help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert call(command, "--help") == 0
    shown = capsys.readouterr().out
    options = [name for parameter in COMMANDS[command].params for name in parameter.opts if name.startswith("-")]
    assert [name for name in options if not re.search(rf"(?<![\w-]){name}(?![\w-])", shown)] == []
    assert shown.strip()


def test_help_names_every_command(capsys):
    assert call("--help") == 0
    shown = capsys.readouterr().out
    assert {
        "data",
        "forget",
        "metatrain",
        "predict",
        "predictors",
        "inspect",
        "import-keras",
        "transfer",
        "report",
        "verify",
    } <= set(COMMANDS)
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"]])
def test_help_does_without_torch(arguments):
    code = f"""
import sys, know.cli
sys.argv = ["know", *{arguments}]
try:
    know.cli.main()
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


# forget and predict


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A trajectory made on the command line."""
    out = tmp_path_factory.mktemp("made") / "run"
    sizes = ["--epochs", 1, "--pretrain-epochs", 1, "--batch-size", 128]
    assert call("forget", "--dataset", "digits", "--network", "mlp", *sizes, "--out", out) == 0
    return out


def test_forget_makes_a_trajectory(made):
    trajectory = know.Trajectory.load(made)
    assert trajectory.fractions == (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
    assert trajectory.manifest["network"] == "mlp"
    assert len({path.read_bytes() for path in trajectory.paths}) == 5


def test_forget_takes_given_weights(made, tmp_path):
    weights = made / "s0.safetensors"
    arguments = ["--dataset", "digits", "--network", "mlp", "--weights", weights, "--length", 2, "--rate", 0.25]
    assert call("forget", *arguments, "--out", tmp_path / "run") == 0
    trajectory = know.Trajectory.load(tmp_path / "run")
    assert trajectory.fractions == (0.25, 1)
    assert all(torch.equal(tensor, load_state(weights)[name]) for name, tensor in trajectory.theta_0.items())


def test_a_folder_and_its_files_give_the_same_weights_as_the_library(place, made, hyper):
    arguments = ["--known", "known.safetensors", "--depth", 2]
    assert call("predict", made, *arguments, "--out", "a") == 0
    assert call("predict", *snapshots(made), "--fractions", ALL_FRACTIONS, *arguments, "--out", "b") == 0
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()
    expected = know.predict(know.Trajectory.load(made), "known", 2, known=hyper)
    found = load_file("a/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["head.weight"], load_file(made / "s0.safetensors")["head.weight"])


def test_what_was_asked_is_written_beside_the_weights(place, made):
    arguments = ["--predictor", "linear", "-o", "step=0.5", "--depth", 3, "--seed", 4, "--known", "known.safetensors"]
    assert call("predict", made, *arguments, "--out", "better") == 0
    assert sorted(path.name for path in Path("better").iterdir()) == [
        "README.md",
        "know_config.yml",
        "model.safetensors",
    ]
    assert yaml.safe_load(Path("better/know_config.yml").read_text(encoding="utf-8")) == {
        "predictor": "linear",
        "depth": 3,
        "options": {"step": 0.5},
        "scale": 1.0,
        "seed": 4,
        "roles": [],
        "fractions": [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0],
        "virtual_data": 8.0,
        "inputs": [{"file": path.name, "sha256": sha256_file(path)} for path in snapshots(made)],
        "models": {"known.safetensors": sha256_file("known.safetensors")},
        "learnt_from": None,
        "know": know.__version__,
        "torch": str(torch.__version__),
    }


def test_a_limit_has_no_depth(place, made, fails):
    arguments = ["predict", made, "--predictor", "rre", "--out", "limit"]
    assert "predictor rre has no depth" in fails(*arguments, "--depth", 2)
    assert call(*arguments) == 0
    config = yaml.safe_load(Path("limit/know_config.yml").read_text(encoding="utf-8"))
    assert (config["virtual_data"], config["models"]) == (None, {})


def test_the_shipped_known_is_named_and_where_it_comes_from(place, made, capsys):
    """Nobody should take its answer for more than it is."""
    assert call("predict", made, "--out", "shipped") == 0
    assert (
        "meta-trained on cifar100, cifar10_15k, fashion_mnist, mnist, notmnist_small, pacs\n" in capsys.readouterr().out
    )
    config = yaml.safe_load(Path("shipped/know_config.yml").read_text(encoding="utf-8"))
    assert config["models"] == {"known.safetensors": sha256_file(PRETRAINED / "general" / "5" / "known.safetensors")}
    for known in ("known.safetensors", PRETRAINED / "without_cifar" / "5"):
        assert call("predict", made, "--known", known, "--out", f"own {Path(known).name}") == 0
        assert "meta-trained" not in capsys.readouterr().out  # that was said of the general one, and it is not asked


def test_an_option_reaches_the_predictor(place):
    weights = {}
    for step in ("0", "1"):
        assert call("predict", "run", "--predictor", "linear", "-o", f"step={step}", "--out", step) == 0
        weights[step] = load_file(f"{step}/model.safetensors")["head.weight"]
    theta_0, theta_1 = (load_file(f"run/s{k}.safetensors")["head.weight"] for k in (0, 1))
    assert torch.equal(weights["0"], theta_0)
    assert torch.allclose(weights["1"], 2 * theta_0 - theta_1)


def test_a_second_prediction_does_not_overwrite_the_first(place, fails, folder_bytes):
    arguments = ["predict", "run", "--predictor", "linear", "--out", "better"]
    assert call(*arguments) == 0
    before = folder_bytes(place)
    assert "better exists already" in fails(*arguments)
    assert folder_bytes(place) == before


def test_a_finished_trajectory_is_made_once(made, folder_bytes):
    times = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    sizes = ["--epochs", 1, "--pretrain-epochs", 1, "--batch-size", 128]
    assert call("forget", "--dataset", "digits", "--network", "mlp", *sizes, "--out", made) == 0
    assert {path: path.stat().st_mtime_ns for path in made.iterdir()} == times


def test_checkpoints_of_torch_do_as_well(place):
    for path in snapshots():
        torch.save(load_file(path), path.with_suffix(".pt"))
    files = [path.with_suffix(".pt") for path in snapshots()]
    assert call("predict", *files, "--fractions", ALL_FRACTIONS, "--predictor", "linear", "--out", "a") == 0
    assert call("predict", "run", "--predictor", "linear", "--out", "b") == 0
    found, expected = load_state("a/model.pt"), load_file("b/model.safetensors")  # torch in, torch out
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# predictors, inspect, import-keras


def test_every_predictor_is_listed_and_described(capsys):
    assert call("predictors") == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == predictors.names()
    for name in predictors.names():
        assert call("predictors", name) == 0
        shown, found = capsys.readouterr().out, predictors.get(name)
        assert found.documentation in shown
        assert found.reference in shown
        assert all(f"-o {option}={default}" in shown for option, default in found.options.items())


def test_an_unknown_predictor_is_named(fails):
    assert "'lineer': did you mean 'linear'" in fails("predictors", "lineer")


def test_inspect_prints_and_writes_what_the_library_finds(place, capsys):
    arguments = ["inspect", "run", "--predictor", "known", "--known", "known.safetensors", "--depth", 2]
    assert call(*arguments, "--out", "inspected") == 0
    shown = capsys.readouterr().out
    trajectory = know.Trajectory.load("run")
    rows = inspection.inspect_trajectory(trajectory, "known", 2, known=Path("known.safetensors"))
    for row in rows:
        assert re.search(rf"{re.escape(row.tensor)} .*{row.role} .*{row.step:.3f}.*{row.shrink:.3f}", shown)
    assert "cosine" in shown
    table = pd.read_csv("inspected/steps.csv")
    assert list(table["weights"]) == [row.weights for row in rows]
    assert set(pd.read_csv("inspected/responses.csv")["model"]) == {"known"}
    assert len(pd.read_csv("inspected/movement.csv")) == 3 * 4  # fc, bias and all; four differences
    assert Path("inspected/inspection.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--suite"),
        (["nowhere"], "nowhere"),
        (["run", "--predictor", "knwon"], "'knwon': did you mean 'known'"),
        (["run", "--predictor", "matched_rate"], "changes no weights"),
        (["run", "--out", "earlier"], "earlier exists already"),
        (["run", "--predictor", "shrink", "-o", "of=releasd"], "'releasd': did you mean 'released'"),
    ],
)
def test_wrong_arguments_of_inspect(place, fails, intact, arguments, said):
    intact()
    assert said in fails("inspect", *arguments)
    intact()


@pytest.mark.parametrize("predictor", ["released", "wnn"])
def test_a_model_that_is_not_here_is_named_with_the_reason(place, fails, intact, monkeypatch, predictor):
    intact()
    for folder in (None, "earlier"):
        monkeypatch.delenv("KNOW_REFERENCE", raising=False)
        if folder:
            monkeypatch.setenv("KNOW_REFERENCE", folder)
        said = fails("predict", "run", "--predictor", predictor, "--out", "better")
        assert "KNOW_REFERENCE" in said
        assert ("lacks" in said) == bool(folder)
    intact()


def test_import_keras_refuses_what_is_no_keras_file(place, fails, intact):
    intact()
    assert "KNOWN_Conv.h5" in fails("import-keras", "earlier", "better")
    assert "'wnm': did you mean 'wnn'" in fails("import-keras", "earlier", "better", "--model", "wnm")
    assert "'papper': did you mean 'paper'" in fails("import-keras", "earlier", "better", "--roles", "papper")
    intact()


@pytest.mark.skipif("KNOW_REFERENCE" not in os.environ, reason="KNOW_REFERENCE names no folder with released weights")
def test_imported_weights_answer_as_the_released_ones(place, made):
    assert call("import-keras", os.environ["KNOW_REFERENCE"], "released.safetensors") == 0
    assert call("predict", made, "--known", "released.safetensors", "--out", "a") == 0
    assert call("predict", made, "--predictor", "released", "--out", "b") == 0
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()


# wrong arguments


@pytest.mark.parametrize(
    ("fractions", "said"),
    [
        ("1,0.5,0.25,0.125,0.0625", "1, 0.5, 0.25, 0.125, 0.0625"),
        ("0.125,0.0625,0.25,0.5,1", "0.125, 0.0625"),
        ("0.25,0.5,1", "3 fractions .* 5 snapshots"),
        ("0.0625,0.125,0.25,0.5,0.9", "0.9"),
        ("0.0625,0.125,0.25,1,2", "2"),
        ("0,0.125,0.25,0.5,1", "above 0"),
        ("-0.1,0.125,0.25,0.5,1", "-0.1"),
        ("nan,0.125,0.25,0.5,1", "nan"),
        ("0.5,0.5,0.5,0.5,1", "0.5"),
        ("a,b,c,d,e", "a,b,c,d,e"),
        ("", "--fractions"),
        (None, "--fractions"),
    ],
)
def test_wrong_fractions(place, fails, intact, fractions, said):
    intact()
    given = [] if fractions is None else [f"--fractions={fractions}"]
    assert re.search(said, fails("predict", *snapshots(), *given, "--predictor", "linear", "--out", "better"))
    intact()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--predictor", "linaer"], "'linaer': did you mean 'linear'"),
        (["run", "--predictor", "linear", "-o", "stpe=1"], "'stpe': did you mean 'step'"),
        (["run", "--predictor", "linear", "-o", "step"], "'step'"),
        (["run", "--predictor", "linear", "-o", "step=long"], "step .*'long'"),
        (["run", "--predictor", "shrink", "-o", "step=1"], "'step'"),
        (["run", "--predictor", "linear", "--depth", "0"], "depth .* 0"),
        (["run", "--predictor", "linear", "--depth", "-1"], "depth .* -1"),
        (["run", "--predictor", "linear", "--depth", "deep"], "--depth"),
        (["run", "--predictor", "linear", "--dept", "2"], "--dept"),
        (["run", "--predictor", "linear", "--threads", "-1"], "--threads"),
        (["run", "--fractions", "0.5,1"], "--fractions"),
        (["nowhere"], "nowhere"),
        (["run/s0.safetensors"], "run/s0.safetensors"),
        (["run", "--known", "run/s0.safetensors"], "run/s0.safetensors"),
        (["run", "--known", "nowhere.safetensors"], "nowhere.safetensors"),
        (["run/s1.safetensors", "nowhere.pt", "--fractions", "0.5,1"], "nowhere.pt"),
        (["run/s1.safetensors", "run", "--fractions", "0.5,1"], "run"),
        (
            ["run/s1.safetensors", "run/s0.safetensors", "--fractions", "0.5,1", "--known", "known.safetensors"],
            r"\b2\b",
        ),
    ],
)
def test_wrong_arguments_of_predict(place, fails, intact, arguments, said):
    intact()
    assert re.search(said, fails("predict", *arguments, "--out", "better"))
    intact()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--dataset"),
        (["--out", "better"], "--dataset"),
        (["--dataset", "digits"], "--out"),
        (["--dataset", "digts", "--out", "better"], "'digts': did you mean 'digits'"),
        (["--dataset", "digits:0-12", "--out", "better"], "0-12"),
        (["--dataset", "digits:a", "--out", "better"], "'a'"),
        (["--dataset", "digits", "--network", "mpl", "--out", "better"], "'mpl': did you mean 'mlp'"),
        (["--dataset", "digits", "--network", "timm:resnet", "--out", "better"], "'resnet'"),
        (["--dataset", "digits", "--rate", "1.5", "--out", "better"], "--rate"),
        (["--dataset", "digits", "--length", "1", "--out", "better"], "--length"),
        (["--dataset", "digits", "--length", "20", "--pretrain-epochs", "1", "--out", "better"], "smallest subset"),
        (["--dataset", "digits", "--epochs", "0", "--out", "better"], "--epochs"),
        (["--dataset", "digits", "--pretrain-epochs", "0", "--out", "better"], "--pretrain-epochs"),
        (["--dataset", "digits", "--learning-rate", "0", "--out", "better"], "--learning-rate"),
        (["--dataset", "digits", "--batch-size", "0", "--out", "better"], "--batch-size"),
        (["--dataset", "digits", "--device", "cuda:99", "--out", "better"], "'cuda:99'"),
        (["--dataset", "digits", "--device", "abacus", "--out", "better"], "'abacus'"),
        (["--dataset", "digits", "--weights", "nowhere.pt", "--out", "better"], "nowhere.pt"),
        (["--dataset", "digits", "--weights", "known.safetensors", "--network", "mlp", "--out", "better"], "known.saf"),
    ],
)
def test_wrong_arguments_of_forget(place, fails, intact, arguments, said):
    intact()
    assert re.search(said, fails("forget", *arguments))
    intact()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data", "digts"], "'digts'"),
        (["data", "--suite", "tiney"], "'tiney': did you mean 'tiny'"),
        (["data", "--suite", "nowhere/tiny.yaml"], "nowhere/tiny.yaml"),
        (["forget", "--suite", "tiny"], "digits_0-4.mlp"),
        (["forget", "--suite", "tiny", "--origin", "digits_0-4.mpl"], "'digits_0-4.mpl': did you mean"),
        (["metaset", "--suite", "tiny", "--shard", "1"], r"not 1\b"),
        (["metaset", "--suite", "tiny", "--shard", "-1"], "--shard"),
        (["metaset", "--suite", "tiny"], "--shard"),
        (["metatrain", "--suite", "tiny"], "work/tiny/metaset/0/manifest.json does not exist"),
        (["transfer", "--suite", "tiny", "--cell", CELL.replace("mlp", "mpl")], "mpl.100': did you mean"),
        (["transfer", "--suite", "tiny", "--cell", CELL], "work/tiny"),
        (["landscape", "--suite", "tiny"], "work/tiny"),
        (["report", "--suite", "tiny"], "work/tiny"),
        (["report", "--check"], "results"),
        (["report", "--check", "--results", "earlier"], "earlier"),
        (["verify", "--suite", "tiny"], "work/tiny"),
        (["verify", "--suite", "tiny", "--against"], "--against"),
        (["predcit", "run"], "predcit"),
    ],
)
def test_wrong_arguments_of_a_suite(place, fails, intact, arguments, said):
    Path("benchmarks/suites").mkdir(parents=True)
    shutil.copy(TINY, "benchmarks/suites")
    intact()
    assert re.search(said, fails(*arguments))
    intact()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("trajectories: 2", "trajectoris: 2", "'trajectoris', did you mean 'trajectories'"),
        ("smallest: 16", "smalest: 16", "forgetting.smalest"),
        ("pilots: 1", "pilots: none", "pilots"),
        ("pilots: 1", "pilots: [", "line"),
        ("networks: [mlp]", "networks: [mpl]", "'mpl'"),
        ("smallest: 16", "smallest: 64", "smallest"),
        ("predictors: all", "predictors: {linaer: }", "'linaer'"),
    ],
)
def test_a_wrong_suite_stops_before_training(place, fails, intact, old, new, said):
    text = TINY.read_text(encoding="utf-8")
    assert old in text
    Path("mine.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    origin = "digits_0-4.mpl" if "mpl" in new else "digits_0-4.mlp"
    intact()
    assert re.search(said, fails("forget", "--suite", "mine.yaml", "--origin", origin))
    assert not list(Path("work").rglob("*.safetensors"))  # nothing was trained
    intact()


# damaged files


class Trap:
    """Unpickled, it would make the file `sprung`."""

    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


def _without_a_tensor(path: Path) -> None:
    state = load_file(path)
    del state["head.bias"]
    save_state(path, state)


def _reshaped(path: Path) -> None:
    save_state(path, {**load_file(path), "head.bias": torch.zeros(7)})


def _not_finite(value: float):
    def damage(path: Path) -> None:
        state = load_file(path)
        state["second.weight"][3, 4] = value
        save_state(path, state)

    return damage


DAMAGE = {
    "missing tensor": (_without_a_tensor, "'head.bias'"),
    "mis-shaped tensor": (_reshaped, "'head.bias'"),
    "nan": (_not_finite(float("nan")), "'second.weight'"),
    "infinite": (_not_finite(float("inf")), "'second.weight'"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "corrupt or truncated"),
    "corrupt": (lambda path: path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:]), "corrupt or truncated"),
    "empty": (lambda path: path.write_bytes(b""), "corrupt or truncated"),
    "of another kind": (lambda path: path.write_text("not weights"), "corrupt or truncated"),
}


@pytest.mark.parametrize("by", ["folder", "files"])
@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_snapshot_is_named(place, fails, intact, damage, said, by):
    damage(Path("run/s2.safetensors"))
    intact()
    inputs = ["run"] if by == "folder" else [*snapshots(), "--fractions", ALL_FRACTIONS]
    error = fails("predict", *inputs, "--predictor", "linear", "--out", "better")
    assert "run/s2.safetensors" in error
    assert ("hash in its manifest" if by == "folder" else said) in error
    intact()


def test_a_pickle_with_code_is_refused_and_not_run(place, fails, intact):
    Path("trap.pt").write_bytes(pickle.dumps({"head.bias": Trap()}, protocol=2))
    torch.save({"head.bias": Trap()}, "trap.pth")
    intact()
    for name in ("trap.pt", "trap.pth"):
        error = fails("predict", name, "run/s0.safetensors", "--fractions", "0.5,1", "--out", "better")
        assert name in error
        assert "more than tensors" in error
        error = fails("forget", "--dataset", "digits:0-4", "--network", "mlp", "--weights", name, "--out", "better")
        assert name in error
        assert "more than tensors" in error
    assert not Path("sprung").exists()
    intact()
    pickle.loads(Path("trap.pt").read_bytes())
    assert Path("sprung").exists()  # the trap does work


def test_an_unfinished_trajectory_is_refused(place, fails, intact):
    Path("run/manifest.json").unlink()
    intact()
    assert "run holds no finished trajectory" in fails("predict", "run", "--predictor", "linear", "--out", "better")
    shutil.move("run", "run.partial")
    error = fails("predict", "run", "--predictor", "linear", "--out", "better")
    assert "interrupted" in error


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"snapshots": [{"file": "s0.safetensors"}]}', "\x00"])
def test_a_damaged_manifest_is_named(place, fails, intact, content):
    Path("run/manifest.json").write_text(content, encoding="utf-8")
    intact()
    assert "run/manifest.json" in fails("predict", "run", "--predictor", "linear", "--out", "better")
    intact()


def test_a_known_that_is_not_finite_is_refused(place, fails, intact):
    state = load_file("known.safetensors")
    state["fc.out.bias"].fill_(float("nan"))
    save_file(state, "broken.safetensors")
    intact()
    assert "broken.safetensors" in fails("predict", "run", "--known", "broken.safetensors", "--out", "better")
    intact()


def test_data_with_a_wrong_hash_is_refused(place, fails, intact, monkeypatch):
    rng, arrays = np.random.default_rng(0), {"class_names": np.array([str(c) for c in range(10)])}
    for part in ("train", "test"):
        arrays[f"{part}_images"] = rng.integers(0, 256, (20, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(20, dtype=np.uint8) % 10
    np.savez("mnist.npz", **arrays)
    monkeypatch.setenv("KNOW_DATA", ".")
    intact()
    assert re.search("mnist.* sha256", fails("data", "mnist"))
    assert re.search("mnist.* sha256", fails("forget", "--dataset", "mnist", "--network", "mlp", "--out", "better"))
    Path("fashion_mnist.npz").write_bytes(Path("mnist.npz").read_bytes()[:500])
    assert "fashion_mnist.npz" in fails("data", "fashion_mnist")
    assert "notmnist_small.npz" in fails("data", "notmnist_small")
    intact()


# places that cannot be written


@pytest.mark.parametrize("out", ["earlier", "known.safetensors", "known.safetensors/better", "/proc/better"])
@pytest.mark.parametrize("command", ["predict", "forget"])
def test_a_place_that_cannot_be_written_is_named_and_kept(place, fails, intact, command, out):
    inputs = {
        "predict": ["run", "--predictor", "linear"],
        "forget": ["--dataset", "digits:0-4", "--network", "mlp", "--epochs", 1, "--pretrain-epochs", 1],
    }
    intact()
    assert out in fails(command, *inputs[command], "--out", out)
    intact()


@contextlib.contextmanager
def file_size_limit(size: int):
    """No file of this process can grow beyond `size` bytes: writing more fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_disk_that_fills_while_predicting(place, fails, intact, size):
    intact()
    with file_size_limit(size):
        error = fails("predict", "run", "--predictor", "linear", "--out", "better")
    assert "better" in error
    intact()
    assert call("predict", "run", "--predictor", "linear", "--out", "better") == 0
    assert call("predict", "run", "--predictor", "linear", "--out", "again") == 0
    assert Path("better/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()


# a snapshot has 38 kB, the state of Adam 80 kB
@pytest.mark.parametrize("size", [0, 100, 20_000, 60_000])
def test_a_disk_that_fills_while_forgetting(place, made, fails, intact, folder_bytes, size):
    sizes = ["--epochs", 1, "--pretrain-epochs", 1, "--batch-size", 128]
    arguments = ["forget", "--dataset", "digits", "--network", "mlp", *sizes, "--out", "better"]
    intact()
    with file_size_limit(size):
        error = fails(*arguments)
    assert "better" in error
    intact()
    assert call(*arguments) == 0  # with room again, it ends as if nothing had happened
    assert folder_bytes(Path("better")) == folder_bytes(made)


def test_a_disk_that_is_full_at_the_last_moment(place, fails, intact, monkeypatch):
    def replace(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))

    intact()
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", replace)
        error = fails("predict", "run", "--predictor", "linear", "--out", "better")
    assert "better" in error
    assert "No space left" in error
    intact()


def test_an_interruption_says_how_to_go_on(place, capsys, monkeypatch):
    def interrupted(results):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.report.publish.check", interrupted)
    assert call("report", "--check") == 130
    assert capsys.readouterr().err == "know: interrupted; run the same command again to resume\n"
