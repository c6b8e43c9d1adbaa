"""The command line: its help, what it writes, and one line with the culprit for every wrong input."""

import contextlib
import csv
import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small_model
import torch
import typer
import yaml
from safetensors.torch import load_file, save_file
from small_model import GIVEN, call

import know
from know import cli, inspection, methods
from know.checkpoints import save_state
from know.files import PRETRAINED, sha256_file

COMMANDS = typer.main.get_command(cli.app).commands
SETUP = f"{small_model.__file__}:setup"
COMMAND = call


@pytest.fixture
def place(tmp_path, monkeypatch, trajectory, hyper):
    """The current folder: a trajectory `run/`, a KNOWN, and an earlier result that must stay as it is."""
    shutil.copytree(trajectory.paths[0].parent, tmp_path / "run")
    hyper.save(tmp_path / "known.safetensors")
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "model.safetensors").write_bytes(b"an earlier result")
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


def test_help_names_every_command(capsys):
    assert call("--help") == 0
    shown = capsys.readouterr().out
    assert set(COMMANDS) == {"forget", "predict", "compare", "methods", "inspect", "import-keras"}
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


# forget


def test_forget_makes_the_trajectory_of_the_library_and_makes_it_once(place, trajectory, folder_bytes, capsys):
    for _ in range(2):
        assert call("forget", SETUP, "--out", "made") == 0
        assert capsys.readouterr().out == "made: a trajectory of 5 snapshots; next: know predict made --out BETTER\n"
        assert folder_bytes(Path("made")) == folder_bytes(trajectory.paths[0].parent)


def test_forget_passes_its_settings_on(place):
    assert call("forget", SETUP, "--length", 2, "--ratio", 0.25, "--seed", 3, "--out", "a") == 0
    assert call("forget", SETUP, "--fractions", "0.25,1", "--seed", 3, "--out", "b") == 0
    for made in map(know.Trajectory.load, "ab"):
        assert made.fractions == (0.25, 1)
        expected = know.forget(*small_model.setup(), ratio=0.25, length=2, seed=3, out="c")
        assert small_model.equal(made.states[0], expected.states[0])


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("None", "must return model, dataset, fit; it returned a NoneType"),
        ("(1, 2)", "it returned 2 values"),
        ("(None, [1], print)", "model, a NoneType, has no state_dict"),
        ("(torch.nn.Linear(1, 1), 7, print)", "dataset, a int, has no __len__"),
        ("(torch.nn.Linear(1, 1), [1], 'train')", "fit, a str, has no __call__"),
        ("(torch.nn.Linear(1, 1), [1] * 4, print)", "4 items are too few"),
        ("(torch.nn.Linear(1, 1), [1] * 64, lambda model, subset: 1 / 0)", "line 3: ZeroDivisionError"),
        ("(torch.nn.Linear(1, 1), [1] * 64, lambda model: None)", "TypeError"),
        ("sys.exit(0)", "line 3: NameError"),
        ("exit(0)", "line 3: SystemExit"),
    ],
)
def test_a_setup_that_returns_something_else_is_an_error_of_one_line(place, fails, intact, returned, said):
    Path("mine.py").write_text(f"import torch\ndef setup():\n    return {returned}\n")
    intact()
    error = fails("forget", "mine.py:setup", "--out", "better")
    assert "mine.py:setup" in error or "items are too few" in error
    assert said in error
    intact()


# predict


def test_a_folder_and_its_files_give_the_same_weights_as_the_library(place, hyper):
    arguments = ["--known", "known.safetensors", "--depth", 2]
    assert call("predict", "run", *arguments, "--out", "a") == 0
    assert call("predict", *snapshots(), "--fractions", GIVEN, *arguments, "--out", "b") == 0
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()
    expected = know.predict(know.Trajectory.load("run"), "known", 2, known=hyper)
    found = load_file("a/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["head.weight"], load_file("run/s0.safetensors")["head.weight"])


def test_what_was_asked_is_written_beside_the_weights(place):
    arguments = ["--method", "linear", "-o", "step=0.5", "--depth", 3, "--seed", 4, "--known", "known.safetensors"]
    assert call("predict", "run", *arguments, "--out", "better") == 0
    assert sorted(path.name for path in Path("better").iterdir()) == [
        "README.md",
        "know_config.yml",
        "model.safetensors",
    ]
    assert yaml.safe_load(Path("better/know_config.yml").read_text(encoding="utf-8")) == {
        "method": "linear",
        "depth": 3,
        "options": {"step": 0.5},
        "scale": 1.0,
        "seed": 4,
        "roles": [],
        "fractions": [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0],
        "virtual_data": None,  # a step that is cut stands for less
        "inputs": [{"file": path.name, "sha256": sha256_file(path)} for path in snapshots()],
        "models": {"known.safetensors": sha256_file("known.safetensors")},
        "learnt_from": None,
        "know": know.__version__,
        "torch": str(torch.__version__),
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "linear", "--depth", 3], "linear at depth 3, 8 times the data"),
        (["--method", "linear_reverse"], "linear_reverse at depth 1, from"),  # weights of half of the data
        (["--method", "linear", "-o", "step=0.5"], "linear at depth 1, from"),
        (["--method", "linear", "-o", "step=1"], "linear at depth 1, 2 times the data"),
    ],
)
def test_more_data_are_named_where_the_weights_stand_for_more_data(place, capsys, options, said):
    assert call("predict", "run", *options, "--out", "better") == 0
    assert said in capsys.readouterr().out
    assert ("times the data" in Path("better/README.md").read_text(encoding="utf-8")) == ("times" in said)


def test_what_was_taken_as_theta_0_is_said(place, capsys):
    """Files in another order would be a prediction of something else, and nothing in them says their order."""
    for files in (snapshots(), snapshots()[::-1]):
        files = [shutil.copy(path, f"{k}{path.suffix}") for k, path in enumerate(files)]
        fractions = ["--fractions", "0.0625,0.125,0.25,0.5,1"]
        for path in files:  # as others write them, without the fraction
            save_file(load_file(path), path)
        assert call("predict", *files, *fractions, "--method", "linear", "--dry-run") == 0
        assert f"theta_0 is {files[-1]}" in capsys.readouterr().out


def test_two_snapshots_that_hold_the_same_are_pointed_out(place, capsys):
    files = snapshots()
    shutil.copy(files[3], "again.safetensors")
    files = ["again.safetensors", files[3], files[4]]
    for path in files[1:]:
        save_file(load_file(path), path.name)
    save_file(load_file(files[0]), files[0])
    names = [files[0], *(path.name for path in files[1:])]
    assert call("predict", *names, "--fractions", "0.25,0.5,1", "--method", "linear", "--out", "new") == 0
    said = "again.safetensors and s1.safetensors hold the same, so between them nothing was forgotten"
    assert said in capsys.readouterr().out


def test_a_limit_has_no_depth(place, fails):
    arguments = ["predict", "run", "--method", "rre", "--out", "limit"]
    assert "method rre has no depth" in fails(*arguments, "--depth", 2)
    assert call(*arguments) == 0
    config = yaml.safe_load(Path("limit/know_config.yml").read_text(encoding="utf-8"))
    assert (config["virtual_data"], config["models"]) == (None, {})


def test_the_shipped_known_is_named_and_where_it_comes_from(place, capsys):
    """Nobody should take its answer for more than it is."""
    assert call("predict", "run", "--out", "shipped") == 0
    assert (
        "meta-trained on cifar100, cifar10_15k, fashion_mnist, mnist, notmnist_small, pacs\n" in capsys.readouterr().out
    )
    config = yaml.safe_load(Path("shipped/know_config.yml").read_text(encoding="utf-8"))
    assert config["models"] == {"known.safetensors": sha256_file(PRETRAINED / "general" / "5" / "known.safetensors")}
    other = PRETRAINED / "without_cifar" / "5" / "known.safetensors"
    for k, asked in enumerate([("--known", other.parent), ("--method", "shipped", "-o", "group=without_cifar")]):
        assert call("predict", "run", *asked, "--out", f"other{k}") == 0
        assert "meta-trained on fashion_mnist, mnist, notmnist_small, pacs\n" in capsys.readouterr().out
        config = yaml.safe_load(Path(f"other{k}/know_config.yml").read_text(encoding="utf-8"))
        assert config["models"] == {"known.safetensors": sha256_file(other)}
    assert call("predict", "run", "--known", "known.safetensors", "--out", "own") == 0
    assert "meta-trained" not in capsys.readouterr().out  # of the user's own network nothing is known


# methods, inspect, import-keras


def test_every_method_is_listed_and_described(capsys):
    assert call("methods") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == methods.names()
    for name in methods.names():
        assert call("methods", name) == 0
        shown, method = capsys.readouterr().out, methods.get(name)
        assert method.documentation in shown
        assert method.reference in shown
        assert all(f"-o {option}={default}" in shown for option, default in method.options.items())


def test_inspect_prints_and_writes_what_the_library_finds(place, capsys):
    arguments = ["inspect", "run", "--method", "known", "--known", "known.safetensors", "--depth", 2]
    assert call(*arguments, "--out", "inspected") == 0
    shown = capsys.readouterr().out
    trajectory = know.Trajectory.load("run")
    rows = inspection.inspect_trajectory(trajectory, "known", 2, known=Path("known.safetensors"))
    for row in rows:
        assert re.search(rf"{re.escape(row.tensor)} .*{row.role} .*{row.step:.3f}.*{row.shrink:.3f}", shown)
    assert "cosine" in shown
    tables = {
        path.stem: list(csv.DictReader(path.read_text().splitlines())) for path in Path("inspected").glob("*.csv")
    }
    assert [int(row["weights"]) for row in tables["steps"]] == [row.weights for row in rows]
    assert set(tables) == {"steps", "movement"}
    assert len(tables["movement"]) == 3 * 4  # fc, bias and all; four differences
    assert Path("inspected/inspection.png").stat().st_size > 10_000


def test_inspect_holds_the_movement_against_a_placebo(place, capsys):
    script = "from small_model import placebo, setup as three\n\ndef setup():\n    return (*three(), placebo)\n"
    Path("mine.py").write_text(script)
    assert call("forget", "mine.py:setup", "--out", "with") == 0
    trajectory = know.Trajectory.load("with")
    expected = [row for row in inspection.beside_placebo(trajectory, trajectory.placebo) if row["role"] == "all"]
    assert call("inspect", "with", "--method", "linear", "--out", "inspected") == 0
    lines = capsys.readouterr().out.splitlines()
    begin = next(k for k, line in enumerate(lines) if line.startswith("theta_k beside the placebo")) + 2
    shown = [[float(number) for number in line.split()] for line in lines[begin : begin + len(expected)]]
    columns = ("snapshot", "moved", "placebo_moved", "apart", "cosine")
    assert shown == [pytest.approx([row[column] for column in columns], abs=6e-3) for row in expected]
    assert call("inspect", "run", "--method", "linear") == 0
    assert "placebo" not in capsys.readouterr().out


@pytest.mark.skipif("KNOW_REFERENCE" not in os.environ, reason="KNOW_REFERENCE names no folder with released weights")
def test_imported_weights_answer_as_the_released_ones(place):
    assert call("import-keras", os.environ["KNOW_REFERENCE"], "released.safetensors") == 0
    assert call("predict", "run", "--known", "released.safetensors", "--out", "a") == 0
    assert call("predict", "run", "--method", "released", "--out", "b") == 0
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()


# wrong arguments


GIVE_UP = ["--out", "better"]
TWO = ["run/s1.safetensors", "run/s0.safetensors", "--fractions", "0.5,1"]
COMPARED = ["run", "--task", "mine.py:fine_tune", "--rates", "1e-3,1e-2", *GIVE_UP]
WRONG = [
    ("forget", [], "Missing argument 'script'"),
    ("forget", [SETUP], "--out"),
    ("forget", ["mine.py:setup", *GIVE_UP], "'mine.py:setup': write it as SCRIPT.py:function"),
    ("forget", [SETUP.removesuffix(":setup"), *GIVE_UP], "write it as SCRIPT.py:function"),
    ("forget", [f"{SETUP}s", *GIVE_UP], "no function 'setups'"),
    ("forget", [SETUP, "--ratio", "1.5", *GIVE_UP], "ratio must lie between 0 and 1"),
    ("forget", [SETUP, "--length", "20", *GIVE_UP], "640 items are too few"),
    ("forget", [SETUP, "--fractions", "a", *GIVE_UP], "--fractions 'a'"),
    ("forget", [SETUP, "--fractions", "", *GIVE_UP], "--fractions ''"),
    ("forget", [SETUP, "--dataset", "digits", *GIVE_UP], "--dataset"),
    ("compare", [*COMPARED, "--beside", "further"], "--beside 'further': write it as NAME=CHECKPOINT"),
    ("compare", [*COMPARED, "--beside", "=further.pt"], "write it as NAME=CHECKPOINT"),
    ("compare", [*COMPARED, "--beside", "a=one.pt", "--beside", "a=two.pt"], "the name a was given before"),
    ("compare", [*COMPARED, "--beside", "a=one.pt"], "one.pt does not exist"),
    ("predict", ["run", "--method", "linear", "-o", "step", *GIVE_UP], "'step'"),
    ("predict", ["run", "--method", "linear", "-o", "step=long", *GIVE_UP], "step .*'long'"),
    ("predict", ["run", "--method", "linear", "--depth", "0", *GIVE_UP], "depth .* 0"),
    ("predict", ["run", "--method", "linear", "--depth", "deep", *GIVE_UP], "--depth"),
    ("predict", ["run", "--method", "linear", "--dept", "2", *GIVE_UP], "--dept"),
    ("predict", ["run", "--method", "linear", "--threads", "-1", *GIVE_UP], "--threads"),
    ("predict", ["run", "--fractions", "0.5,1", *GIVE_UP], "--fractions"),
    ("predict", [*TWO[:2], "--fractions=a,b", *GIVE_UP], "a,b"),
    ("predict", [*TWO[:2], *GIVE_UP], "--fractions"),
    ("predict", ["nowhere", *GIVE_UP], "nowhere"),
    ("predict", ["run/s0.safetensors", *GIVE_UP], "run/s0.safetensors"),
    ("predict", ["run", "--known", "run/s0.safetensors", *GIVE_UP], "run/s0.safetensors"),
    ("predict", ["run", "--known", "nowhere.safetensors", *GIVE_UP], "nowhere.safetensors"),
    ("predict", ["run/s1.safetensors", "nowhere.pt", *TWO[2:], *GIVE_UP], "nowhere.pt"),
    ("predict", ["run/s1.safetensors", "run", *TWO[2:], *GIVE_UP], "run"),
    ("predict", [*TWO, "--known", "known.safetensors", *GIVE_UP], "takes 5 snapshots, and was asked about 2"),
    ("predict", [], "give a trajectory folder, or checkpoints with --fractions"),
    ("predict", ["run/s0.safetensors", *GIVE_UP], "or name the files of the snapshots, smallest subset first"),
    ("predict", ["run/s0.safetensors", "run/s0.safetensors", *TWO[2:], *GIVE_UP], "is given twice"),
    ("predict", ["run", "--dept", "2", *GIVE_UP], r"\(see `know predict --help`\)"),
    ("forgte", [SETUP], r"\(see `know --help`\)"),
    ("methods", ["lineer"], "'lineer': did you mean 'linear'"),
    ("inspect", [], "give a trajectory folder"),
    ("inspect", ["nowhere"], "nowhere"),
    ("inspect", ["run", "--method", "shrink", "-o", "of=releasd"], "'releasd': did you mean 'released'"),
    ("inspect", ["run", "-o", "out=elsewhere"], "option of method known 'out'"),
    ("import-keras", ["earlier", "better"], "KNOWN_Conv.h5"),
    ("import-keras", ["earlier", "run"], "exists already"),
    ("import-keras", ["earlier", "better", "--model", "wnm"], "'wnm': did you mean 'wnn'"),
    ("import-keras", ["earlier", "better", "--roles", "papper"], "'papper': did you mean 'paper'"),
]


@pytest.mark.parametrize(("command", "arguments", "said"), WRONG)
def test_wrong_arguments_are_named_and_change_nothing(place, fails, intact, command, arguments, said):
    intact()
    assert re.search(said, fails(command, *arguments))
    intact()


# damaged files


def _without_a_tensor(path: Path) -> None:
    state = load_file(path)
    del state["head.bias"]
    save_state(path, state)


DAMAGE = {
    "missing tensor": (_without_a_tensor, "'head.bias'"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "corrupt or truncated"),
}


@pytest.mark.parametrize("by", ["folder", "files"])
@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_snapshot_is_named(place, fails, intact, damage, said, by):
    damage(Path("run/s2.safetensors"))
    if by == "files":
        Path("run/manifest.json").unlink()
    intact()
    inputs = ["run"] if by == "folder" else [*snapshots(), "--fractions", GIVEN]
    error = fails("predict", *inputs, "--method", "linear", "--out", "better")
    assert "run/s2.safetensors" in error
    assert ("hash in its manifest" if by == "folder" else said) in error
    intact()


def test_a_known_that_is_not_finite_is_refused(place, fails, intact):
    state = load_file("known.safetensors")
    state["fc.out.bias"].fill_(float("nan"))
    save_file(state, "broken.safetensors")
    intact()
    assert "broken.safetensors" in fails("predict", "run", "--known", "broken.safetensors", "--out", "better")
    intact()


# places that cannot be written


@pytest.mark.parametrize("out", ["earlier", "known.safetensors", "known.safetensors/better", "/proc/better"])
@pytest.mark.parametrize("command", ["predict", "forget"])
def test_a_place_that_cannot_be_written_is_named_and_kept(place, fails, intact, command, out):
    inputs = {
        "predict": ["run", "--method", "linear"],
        "forget": [SETUP],
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
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_a_disk_that_fills_while_predicting(place, fails, intact, size, ending):
    files = [path.with_suffix(ending) for path in snapshots()]
    for path in snapshots() if ending == ".pt" else ():
        torch.save(load_file(path), path.with_suffix(ending))
    asked = ["predict", *files, "--fractions", GIVEN, "--method", "linear"]
    intact()
    with file_size_limit(size):
        error = fails(*asked, "--out", "better")
    assert "better" in error
    intact()
    assert call(*asked, "--out", "better") == 0
    assert call(*asked, "--out", "again") == 0
    assert Path(f"better/model{ending}").read_bytes() == Path(f"again/model{ending}").read_bytes()


@pytest.mark.parametrize("size", [0, 100, 20_000])  # a snapshot has 38 kB
def test_a_disk_that_fills_while_forgetting(place, trajectory, fails, intact, folder_bytes, size):
    intact()
    with file_size_limit(size):
        error = fails("forget", SETUP, "--out", "better")
    assert "better" in error
    intact()
    assert call("forget", SETUP, "--out", "better") == 0  # with room again, it ends as if nothing had happened
    assert folder_bytes(Path("better")) == folder_bytes(trajectory.paths[0].parent)


def test_a_disk_that_is_full_at_the_last_moment(place, fails, intact, monkeypatch):
    def replace(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))

    intact()
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", replace)
        error = fails("predict", "run", "--method", "linear", "--out", "better")
    assert "better" in error
    assert "No space left" in error
    intact()
