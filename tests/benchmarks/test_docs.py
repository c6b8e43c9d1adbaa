"""The pages that tell people what to type: they are run as they stand."""

import ast
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import typer
import yaml
from small_model import call

from benchmarks.__main__ import app
from know import Trajectory, cli, predict
from know.checkpoints import load_state
from know.methods import method

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of this repository with what is under version control or could be."""
    if not shutil.which("git") or not (REPOSITORY / ".git").exists():
        pytest.skip("needs git and a clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (REPOSITORY / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def finished(checkout) -> Path:
    """Such a copy with the smoke run, which has to be finished here."""
    parts = ("work/smoke", "work/store", ".snakemake/metadata")
    if not all((REPOSITORY / part).exists() for part in ("work/smoke/published.json", *parts)):
        pytest.skip("needs a finished smoke run")
    for name in parts:
        shutil.copytree(REPOSITORY / name, checkout / name)
    return checkout


def run(line: str, folder: Path) -> subprocess.CompletedProcess:
    """A shell line with the copy's own modules, and the programs of this environment."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    env = {**os.environ, "PYTHONPATH": str(folder), "PATH": path}
    return subprocess.run(line, shell=True, cwd=folder, env=env, capture_output=True, text=True, check=False)


def said(line: str, folder: Path) -> str:
    done = run(line, folder)
    assert done.returncode == 0, line + done.stdout + done.stderr
    return done.stdout + done.stderr


LINES = """
from benchmarks.arms import lines
from benchmarks.suite import load_suite
print(*(line.name for line in lines(load_suite("smoke").arms)))
"""


@pytest.mark.slow
def test_the_page_on_adding_a_method_does_what_it_says(checkout):
    """The suite that the second command runs asks this method and one other of an MLP: that all of smoke's arms are
    asked, and that finished ones are not computed again, other tests show in less time.
    """
    page = REPOSITORY / "docs" / "adding_a_method.md"
    (file,) = blocks(page, "python")
    (commands,) = blocks(page, "sh")
    (place,) = re.findall(r"Save it as `(know/methods/\w+\.py)`", page.read_text(encoding="utf-8"))
    assert not (checkout / place).exists()
    (checkout / place).write_text(file, encoding="utf-8")
    asked = said(f"{shlex.quote(sys.executable)} -c {shlex.quote(LINES)}", checkout).split()
    assert {"secant", "shrink", "known"} <= set(asked)
    suite = yaml.safe_load((REPOSITORY / "tests" / "suites" / "tiny.yaml").read_text(encoding="utf-8"))
    del suite["metatraining"]
    suite["arms"] = {"references": ["naive", "oracle"], "methods": {"secant": None, "shrink": None}}
    smoke = checkout / "benchmarks" / "suites" / "smoke.yaml"
    smoke.write_text(yaml.safe_dump({**suite, "known": "general"}), encoding="utf-8")
    lines = commands.strip().splitlines()
    assert len(lines) == 2
    for line in lines:
        said(line, checkout)
    after = pd.read_csv(checkout / "results" / "smoke" / "runs.csv")
    assert set(after["arm"]) == {"naive", "oracle", "shrink_x2", "shrink_x4", "shrink_x8", "secant_x2", "secant_x8"}
    table = (checkout / "results" / "smoke" / "README.md").read_text(encoding="utf-8")
    for arm in ("secant_x2", "secant_x8"):
        assert re.search(rf"^\| *{arm} *\| ", table, flags=re.M)


TASK = """
def fine_tune(checkpoint, learning_rate, seed):
    return learning_rate * seed
"""
MINE = """
import torch
from torch import nn

dice = torch.Generator().manual_seed(0)
labels = torch.arange(320) % 5
images = torch.randn(5, 64, generator=dice)[labels] + torch.randn(320, 64, generator=dice)
dataset = torch.utils.data.TensorDataset(images, labels)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))


def train(model, subset):
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model.train()
    for x, y in torch.utils.data.DataLoader(subset, batch_size=20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def setup():
    return model, dataset, train


def evaluate(model):
    model.eval()
    return (model(images).argmax(1) == labels).float().mean()


train(model, dataset)
"""


def test_readme_and_manual_do_what_they_say_to_a_model_of_ones_own(tmp_path, monkeypatch):
    def know(line: str) -> None:
        program, *arguments = shlex.split(line, comments=True)
        assert (program, call(*arguments)) == ("know", 0), line

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "my_training.py").write_text(MINE, encoding="utf-8")
    section = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("## Use it on your model")[1]
    (tmp_path / "section.md").write_text(section.split("\n## ")[0], encoding="utf-8")
    (loop,), (three, _) = (blocks(tmp_path / "section.md", language) for language in ("python", "sh"))
    exec(compile(f"from my_training import *\n{loop}", "README.md", "exec"), {"__name__": "__main__"})
    lines = three.strip().splitlines()
    assert len(lines) == 3
    for line in lines:
        know(line)
    better = load_state(tmp_path / "better" / "model.safetensors")
    manual = REPOSITORY / "docs" / "manual.md"
    check, smaller = blocks(manual, "python")
    (tmp_path / "check.py").write_text(check, encoding="utf-8")
    for k in range(5):  # as a training script that wraps its model would have saved them
        state = load_state(tmp_path / "run" / f"s{k}.safetensors")
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / f"s{k}.pt")
    theta_0 = load_state(tmp_path / "run" / "s0.safetensors")
    torch.save(theta_0, tmp_path / "theta_0.pt")
    exec(compile(smaller, "manual.md", "exec"), {})
    by_hand = torch.load(tmp_path / "smaller.pt", weights_only=True)
    by_method = predict(Trajectory.load("run"), "shrink_and_perturb", noise=0.0)
    assert all(torch.equal(by_hand[name], by_method[name]) for name in theta_0)
    shared = torch.ones(4, 3)
    torch.save({"embed.weight": shared, "head.weight": shared}, tmp_path / "theta_0.pt")
    exec(compile(smaller, "manual.md", "exec"), {})
    tied = torch.load(tmp_path / "smaller.pt", weights_only=True)
    assert all(torch.equal(tensor, 0.6 * torch.ones(4, 3)) for tensor in tied.values())
    (tmp_path / "my_task.py").write_text(TASK, encoding="utf-8")
    for line in [line for block in blocks(manual, "sh") for line in block.strip().splitlines()]:
        if line.partition("#")[0].strip() not in lines:
            shutil.rmtree(tmp_path / "better", ignore_errors=True)
            know(line)
    again = load_state(tmp_path / "from_files" / "model.pt", key="state_dict")
    assert all(torch.equal(better[name], again[name]) for name in better | again)
    config = yaml.safe_load((tmp_path / "best" / "know_config.yml").read_text(encoding="utf-8"))
    choice = config["validate"]
    values = {one["candidate"]: one["value"] for one in choice["tried"]}
    assert max(values, key=values.get) == choice["kept"]


def test_the_page_on_adding_a_method_lists_every_argument_of_the_decorator():
    page = (REPOSITORY / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", page.split("## The seven arguments")[1], flags=re.M)
    assert sorted(listed) == sorted(inspect.signature(method).parameters)
    assert len(listed) == 7


def test_the_tree_in_the_readme_names_what_is_there():
    (tree,) = blocks(REPOSITORY / "README.md", "text")
    parent, listed = "", set()
    for line in tree.splitlines():
        names = re.fullmatch(r"((?:  )?[^\s,]+(?:, [^\s,]+)?) +\S.*", line)[1]
        parent = parent if line.startswith(" ") else names
        paths = [parent + names.strip()] if line.startswith(" ") else names.split(", ")
        assert all((REPOSITORY / path).exists() for path in paths), line
        listed |= set(paths)
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    folders = {f"{name.partition('/')[0]}/" for name in tracked.split("\n") if "/" in name and name[0] not in '."'}
    assert folders <= listed


@pytest.mark.parametrize("package", ["know", "benchmarks"])
def test_modules_use_only_those_of_the_lines_before_their_own(package):
    """The order in docs/design.md has every module, and no import goes against it, also not one inside a function."""
    (text,) = blocks(REPOSITORY / "docs" / "design.md", "text")
    lines = re.search(rf"^{package} (.*(?:\n .*)*)", text, flags=re.M)[1].splitlines()
    place = {name: number for number, line in enumerate(lines) for name in re.findall(r"\w+", line)}
    imported = set()
    for path in (REPOSITORY / package).rglob("*.py"):
        own = path.relative_to(REPOSITORY / package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and re.match(rf"{package}\b", node.module or ""):
                _, _, rest = node.module.partition(".")
                names = [rest.partition(".")[0]] if rest else [alias.name for alias in node.names]
                imported |= {(own, name) for name in names if name != own}
        assert own in place or own in ("__init__", "__main__"), path
    assert len(imported) > 30
    assert [(a, b) for a, b in imported if a in place and b in place and place[a] <= place[b]] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_link_on_a_page_exists(page):
    text = page.read_text(encoding="utf-8")
    commands = {"know": cli.app, "python -m benchmarks": app}
    for program, commands_of in commands.items():
        known = typer.main.get_command(commands_of).commands
        named = set(re.findall(rf"(?:^|`){program} ([a-z][a-z-]+)", text, flags=re.M))
        assert named <= known.keys(), program
    places = re.findall(r"`((?:know|benchmarks|docs|tests|examples|paper_figures|workflow|profiles)/[\w./-]*)`", text)
    missing = [*broken(page), *(place for place in places if not (REPOSITORY / place).exists())]
    assert [place for place in missing if place != "know/methods/secant.py"] == []


def broken(page: Path) -> list[str]:
    """The links of a page to files, or headings of files, that are not there."""
    links = re.findall(r'\]\(([^)\s]+)(?:\s+"[^"]*")?\)', page.read_text(encoding="utf-8"))
    return [link for link in links if "://" not in link and not leads_somewhere(page, *link.partition("#")[::2])]


def leads_somewhere(page: Path, name: str, heading: str) -> bool:
    place = page.parent / name if name else page
    if not heading or not place.exists():
        return place.exists()
    titles = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), flags=re.M)
    return heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


RESULTS = REPOSITORY / "results"


def test_what_the_pages_of_the_results_link_to_is_there():
    missing = [
        f"{page.relative_to(RESULTS)}: {link}" for page in sorted(RESULTS.rglob("*.md")) for link in broken(page)
    ]
    assert missing == []


@pytest.mark.slow
def test_a_clone_restores_a_run_as_the_manual_says_and_notices_what_is_missing(finished, tmp_path_factory):
    checkout = finished
    block = next(text for text in blocks(REPOSITORY / "docs" / "benchmark.md", "sh") if "dvc pull" in text)
    remote, push, pull, *rest = (line.partition("#")[0].strip() for line in block.splitlines())
    remote = remote.replace("URL", str(tmp_path_factory.mktemp("remote")))
    shutil.rmtree(checkout / ".dvc" / "cache", ignore_errors=True)
    git = "git -c user.name=someone -c user.email=someone@example.org"
    # other machines round differently: the run at hand is the one that is kept
    for line in (
        "git init --quiet",
        "dvc commit --force --quiet dvc.yaml",
        "git add --all",
        f"{git} commit --quiet -m all",
    ):
        said(line, checkout)
    for line in (remote, push):
        said(line, checkout)
    there = tmp_path_factory.mktemp("there") / "clone"
    said(f"git clone --quiet {checkout} {there}", checkout)
    assert not (there / "work").exists()
    for line in (remote, pull):
        said(line, there)
    assert rest[0] == "python -m benchmarks verify"
    answers = [said(line, there) for line in rest]
    assert "have their recorded hashes" in answers[0]
    assert "Nothing to be done" in answers[-1]
    snapshot = min((there / "work" / "smoke" / "trajectories").rglob("*.safetensors"))
    snapshot.unlink()
    failed = run("python -m benchmarks verify", there)
    assert failed.returncode == 2
    assert f"{snapshot.relative_to(there)} is missing; restore it with `dvc pull`" in failed.stderr
