"""The pages that tell people what to type: they are run as they stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from know.checkpoints import load_state

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "adding_a_predictor.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of this repository with what is under version control or could be, and the finished smoke run if any."""
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
    if (REPOSITORY / "work" / "smoke").is_dir() and (REPOSITORY / ".snakemake" / "metadata").is_dir():
        shutil.copytree(REPOSITORY / "work" / "smoke", tmp_path / "work" / "smoke")
        shutil.copytree(REPOSITORY / ".snakemake" / "metadata", tmp_path / ".snakemake" / "metadata")
    return tmp_path


def run(line: str, folder: Path) -> subprocess.CompletedProcess:
    """A shell line with the copy's own modules, and the programs of this environment."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    env = {**os.environ, "PYTHONPATH": str(folder), "PATH": path}
    return subprocess.run(line, shell=True, cwd=folder, env=env, capture_output=True, text=True, check=False)


def said(line: str, folder: Path) -> str:
    done = run(line, folder)
    assert done.returncode == 0, line + done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_page_on_adding_a_predictor_does_what_it_says(checkout):
    (file,) = blocks(PAGE, "python")
    (commands,) = blocks(PAGE, "sh")
    (place,) = re.findall(r"Save it as `(know/methods/\w+\.py)`", PAGE.read_text(encoding="utf-8"))
    assert not (checkout / place).exists()
    (checkout / place).write_text(file, encoding="utf-8")
    before = pd.read_csv(checkout / "results" / "smoke" / "runs.csv")
    lines = commands.strip().splitlines()
    assert len(lines) == 2
    for line in lines:
        said(line, checkout)
    after = pd.read_csv(checkout / "results" / "smoke" / "runs.csv")
    table = (checkout / "results" / "smoke" / "README.md").read_text(encoding="utf-8")
    for arm in ("secant_x2", "secant_x8"):
        assert f"\n| {arm} | " in table
        assert set(after.loc[after["arm"] == arm, "cell"]) == set(before["cell"])
    others = after[~after["arm"].isin(["secant_x2", "secant_x8"])]
    assert set(others["arm"]) == set(before["arm"])


MINE = """
import torch
from torch import nn
from benchmarks.data import load

digits = load("digits:0-4")
images, labels = digits.train.images.float().flatten(1) / 16, digits.train.labels
dataset = torch.utils.data.TensorDataset(images, labels)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))


def fit(model, subset):
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model.train()
    for x, y in torch.utils.data.DataLoader(subset, batch_size=32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def evaluate(model):
    model.eval()
    return (model(images).argmax(1) == labels).float().mean()


fit(model, dataset)
"""


def test_the_readme_does_what_it_says_to_a_model_of_ones_own(tmp_path):
    section = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("## Use it on your model")[1]
    (tmp_path / "section.md").write_text(section.split("\n## ")[0], encoding="utf-8")
    make, check = blocks(tmp_path / "section.md", "python")
    (tmp_path / "my_training.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "make_trajectory.py").write_text(make, encoding="utf-8")
    (tmp_path / "check.py").write_text(check, encoding="utf-8")
    commands = blocks(tmp_path / "section.md", "sh")
    assert len(commands) == 4
    for command in commands:
        if "s4.pt" in command:  # as a training script that wraps its model would have saved them
            for k in range(5):
                state = load_state(tmp_path / "run" / f"s{k}.safetensors")
                wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
                torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / f"s{k}.pt")
        for line in command.strip().splitlines():
            said(line, tmp_path)
    folders = ["better", "best", "better_digits"]
    assert all((tmp_path / folder / "model.safetensors").is_file() for folder in folders)
    better = load_state(tmp_path / "better" / "model.safetensors")
    again = load_state(tmp_path / "from_files" / "model.pt", key="state_dict")
    assert all(torch.equal(better[name], again[name]) for name in better | again)
    tried = yaml.safe_load((tmp_path / "best" / "know_config.yml").read_text(encoding="utf-8"))["validate"]["values"]
    assert max(tried, key=tried.get) == yaml.safe_load((tmp_path / "best" / "know_config.yml").read_text())["scale"]


def test_a_clone_restores_a_run_as_the_readme_says_and_notices_what_is_missing(checkout, tmp_path_factory):
    if not (checkout / "work" / "smoke" / "published.json").is_file():
        pytest.skip("needs a finished smoke run")
    block = next(text for text in blocks(REPOSITORY / "README.md", "sh") if "dvc pull" in text)
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
    assert rest[0] == "know verify"
    answers = [said(line, there) for line in rest]
    assert "have their recorded hashes" in answers[0]
    assert "Nothing to be done" in answers[-1]
    snapshot = min((there / "work" / "smoke" / "trajectories").rglob("*.safetensors"))
    snapshot.unlink()
    failed = run("know verify", there)
    assert failed.returncode == 2
    assert f"{snapshot.relative_to(there)} is missing; restore it with `dvc pull`" in failed.stderr
