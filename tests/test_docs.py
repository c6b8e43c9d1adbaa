"""The pages that tell people what to type: they are run as they stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

REPOSITORY = Path(__file__).parents[1]
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
    (place,) = re.findall(r"Save it as `(know/predictors/\w+\.py)`", PAGE.read_text(encoding="utf-8"))
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
